//! Free memory of the devices of one server, compared with the share of each.

use sepal_core::{Device, Span};

use crate::memory::{BlockSizes, Budget, FreeMemory, MemoryError, MemoryNeed, MemoryRequest, StatedMemoryError, check};
use crate::stacks::even_shares;

/// Free memory of devices that hold even shares of a span, see [`even_shares`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMemory(Vec<(Device, FreeMemory)>);

impl DeviceMemory {
    /// Free memory of the devices, see [`FreeMemory::from_env`].
    ///
    /// # Errors
    /// [`StatedMemoryError`] as for one device.
    pub fn from_env(devices: &[Device]) -> Result<Self, StatedMemoryError> {
        let read = |&device: &Device| Ok((device, FreeMemory::from_env(device)?));
        Ok(Self::new(devices.iter().map(read).collect::<Result<_, StatedMemoryError>>()?))
    }

    /// A device that is named several times has a part of its memory for each of its shares.
    fn new(devices: Vec<(Device, FreeMemory)>) -> Self {
        let n_shares = |device: Device| devices.iter().filter(|(other, _)| *other == device).count().max(1) as u64;
        let part = |&(device, free): &(Device, FreeMemory)| {
            let bytes = free.device.map(|bytes| bytes / n_shares(device));
            (device, FreeMemory { device: bytes, ..free })
        };
        Self(devices.iter().map(part).collect())
    }

    /// First device whose free memory is unknown.
    pub fn unknown(&self) -> Option<Device> {
        self.0.iter().find(|(_, free)| free.device.is_none()).map(|(device, _)| *device)
    }

    /// Free memory of all devices in bytes; `None` if that of one is unknown.
    pub fn total(&self) -> Option<u64> {
        self.0.iter().map(|(_, free)| free.device).sum()
    }

    /// Number of blocks, at most `limit`, whose shares fit into the free memory of the devices; 0 if not one does.
    /// Unknown memory is not checked.
    pub fn fitting_blocks(&self, sizes: &BlockSizes, limit: usize, request: MemoryRequest) -> usize {
        let fits = |n: &usize| Span::new(0, *n).is_ok_and(|span| self.check(sizes, span, request).is_ok());
        (1..=limit).rev().find(fits).unwrap_or(0)
    }

    /// Checks that the share of each device fits into its free memory, as [`check`] does for one device. The budgets of
    /// `request` are those of all devices, and its device is not read. The memory that shares on the CPU take is not there for
    /// weights on their way to the devices after it. Returns the need of all shares.
    ///
    /// # Errors
    /// [`MemoryError`] of the first device that lacks memory.
    pub fn check(
        &self,
        sizes: &BlockSizes,
        span: Span,
        request: MemoryRequest,
    ) -> Result<MemoryNeed, Box<MemoryError>> {
        let shares = even_shares(span, self.0.len());
        let n_shares = shares.len();
        let (mut sum, mut host_bytes) = (MemoryNeed::default(), 0);
        for (&(device, free), share) in self.0.iter().zip(shares) {
            let part = |budget: Budget| budget.map(|bytes| part_of(bytes, share.len(), span.len()));
            let (tapes, adapters) = (part(request.tapes), part(request.adapters));
            // Each device has the default of its own.
            let messages = if request.messages == Budget::SPARE { Budget::SPARE } else { part(request.messages) };
            let request = MemoryRequest { device, tapes, adapters, messages, ..request };
            let free = FreeMemory { host: free.host.map(|bytes| bytes.saturating_sub(host_bytes)), ..free };
            let need = check(sizes, share, request, free).map_err(|error| of_server(error, n_shares))?;
            if device == Device::Cpu {
                host_bytes += need.total();
            }
            sum = sum + need;
        }
        Ok(sum)
    }
}

/// `bytes * part / all`.
fn part_of(bytes: u64, part: usize, all: usize) -> u64 {
    let product = u128::from(bytes) * part as u128 / all.max(1) as u128;
    u64::try_from(product).unwrap_or(u64::MAX)
}

/// Counts servers with as many devices instead of single devices.
fn of_server(mut error: Box<MemoryError>, n_devices: usize) -> Box<MemoryError> {
    let n_servers = error.alternatives.n_servers.map(|n_servers| n_servers.div_ceil(n_devices.max(1)));
    error.alternatives.n_servers = n_servers;
    error
}

#[cfg(test)]
mod tests {
    use sepal_core::{ComputeFormat, Family, ModelConfig, WeightFormat};

    use super::*;

    /// Sizes of a Llama of 32 blocks with 218 million parameters each.
    fn sizes() -> BlockSizes {
        let plain = ModelConfig::plain(Family::Llama, 32, 4096, 32, 14_336, 128_256);
        BlockSizes::from_config(&ModelConfig { n_kv_heads: 8, ..plain })
    }

    fn request(format: WeightFormat) -> MemoryRequest {
        let compute = ComputeFormat::F32;
        let (tapes, adapters, messages) = (Budget::AtMost(1 << 30), Budget::AtMost(1 << 30), Budget::SPARE);
        MemoryRequest { device: Device::Cpu, format, compute, tapes, adapters, messages }
    }

    fn memory(devices: &[(Device, Option<u64>)]) -> DeviceMemory {
        let free = |&(device, gigabytes): &(Device, Option<u64>)| {
            (device, FreeMemory { device: gigabytes.map(|gigabytes| gigabytes << 30), host: Some(64 << 30) })
        };
        DeviceMemory::new(devices.iter().map(free).collect())
    }

    fn span(end: usize) -> Span {
        Span::new(0, end).expect("a span")
    }

    #[test]
    fn one_device_is_checked_as_before() {
        let (one, free) =
            (memory(&[(Device::Cpu, Some(24))]), FreeMemory { device: Some(24 << 30), host: Some(64 << 30) });
        for (format, end) in [(WeightFormat::F32, 32), (WeightFormat::Bf16, 32), (WeightFormat::F32, 4)] {
            let expected = check(&sizes(), span(end), request(format), free);
            assert_eq!(one.check(&sizes(), span(end), request(format)), expected, "{format}");
        }
        assert_eq!((one.total(), one.unknown()), (Some(24 << 30), None));
    }

    #[test]
    fn share_of_each_device_is_checked() {
        let (first, second) = (Device::Cuda(0), Device::Cuda(1));
        let equal = memory(&[(first, Some(20)), (second, Some(20))]);
        let need = equal.check(&sizes(), span(32), request(WeightFormat::F32)).expect("they fit");
        assert_eq!((need.weights, need.tapes, need.adapters), (4 * 6_979_321_856, 1 << 30, 1 << 30));
        let unequal = memory(&[(first, Some(20)), (second, Some(8))]);
        let error = unequal.check(&sizes(), span(32), request(WeightFormat::F32)).expect_err("too large");
        assert_eq!((error.device, error.span.to_string().as_str()), (second, "16:32"));
        let fitting = unequal.fitting_blocks(&sizes(), 32, request(WeightFormat::F32));
        assert!((10..18).contains(&fitting), "{fitting}: twice the blocks of the smaller device");
        assert!(unequal.check(&sizes(), span(fitting + 2), request(WeightFormat::F32)).is_err());
        let n_servers = error.alternatives.n_servers.expect("blocks fit");
        assert_eq!(n_servers, 32_usize.div_ceil(error.alternatives.n_blocks).div_ceil(2));
    }

    #[test]
    fn device_that_is_named_twice_has_half_of_its_memory_for_each_share() {
        let twice = memory(&[(Device::Cpu, Some(40)), (Device::Cpu, Some(40))]);
        assert_eq!(twice.total(), Some(40 << 30));
        assert!(twice.check(&sizes(), span(32), request(WeightFormat::F32)).is_ok());
        let less = memory(&[(Device::Cpu, Some(24)), (Device::Cpu, Some(24))]);
        assert!(less.check(&sizes(), span(32), request(WeightFormat::F32)).is_err());
    }

    #[test]
    fn shares_on_the_cpu_leave_less_host_memory_for_other_devices() {
        let with_host = |bytes: u64| {
            let cpu = FreeMemory { device: Some(bytes), host: Some(bytes) };
            let cuda = FreeMemory { device: Some(40 << 30), host: Some(bytes) };
            let memory = DeviceMemory::new(vec![(Device::Cpu, cpu), (Device::Cuda(0), cuda)]);
            memory.check(&sizes(), span(32), request(WeightFormat::F32))
        };
        // The budgets of the share are less than a quarter of the free memory.
        let half = Budget::AtMost(1 << 29);
        let cpu = MemoryRequest { tapes: half, adapters: half, ..request(WeightFormat::F32) };
        let need = MemoryNeed::new(&sizes(), 16, cpu, 24 << 30);
        assert!(with_host(need.total() + need.loading).is_ok());
        let error = with_host(need.total() + need.loading - 1).expect_err("a block does not pass the host");
        assert_eq!((error.device, error.span.to_string().as_str()), (Device::Cpu, "16:32"));
        assert_eq!((error.need.total(), error.free), (need.loading, need.loading - 1));
    }

    #[test]
    fn unknown_memory_of_a_device_is_not_checked() {
        let unknown = memory(&[(Device::Cuda(0), Some(20)), (Device::Cuda(1), None)]);
        assert_eq!((unknown.unknown(), unknown.total()), (Some(Device::Cuda(1)), None));
        assert!(unknown.check(&sizes(), span(32), request(WeightFormat::F32)).is_ok());
        let little = memory(&[(Device::Cuda(0), Some(8)), (Device::Cuda(1), None)]);
        let fitting = little.fitting_blocks(&sizes(), 32, request(WeightFormat::F32));
        assert!((1..32).contains(&fitting), "{fitting}: the known memory limits the blocks");
    }
}
