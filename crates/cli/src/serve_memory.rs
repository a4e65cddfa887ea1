//! Division of the memory of a server among its uses for clients.

use sepal_core::ModelConfig;
use sepal_server::memory::Budget;
use sepal_server::{Limits, ServerOptions};

use crate::args::ServeArgs;
use crate::output::Failure;
use crate::units::size;

const MB: u64 = 1 << 20;
/// Default of all uses where the free memory is unknown.
const UNKNOWN_BYTES: u64 = 8192 * MB;
/// Least default of all uses.
const MIN_BYTES: u64 = 256 * MB;
/// Greatest defaults of tapes, of tunables and of messages with inputs.
const TAPE_BYTES: u64 = 4096 * MB;
const TUNABLE_BYTES: u64 = 1024 * MB;
const TRANSIENT_BYTES: u64 = 1024 * MB;

/// Options about memory, in megabytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MemoryOptions {
    max_memory: Option<u64>,
    tape_budget: Option<u64>,
    client_memory: Option<u64>,
    adapter_memory: Option<u64>,
}

impl From<&ServeArgs> for MemoryOptions {
    fn from(args: &ServeArgs) -> Self {
        Self {
            max_memory: args.max_memory,
            tape_budget: args.tape_budget_mb,
            client_memory: args.client_memory_mb,
            adapter_memory: args.adapter_memory_mb,
        }
    }
}

impl MemoryOptions {
    /// Budgets of tapes, of tunables and of all else, before blocks are loaded.
    pub(crate) fn budgets(self) -> Result<[Budget; 3], Failure> {
        if self.max_memory.is_some() {
            let memory = ClientMemory::new(self, None)?;
            let rest = memory.all - memory.tapes - memory.tunables;
            return Ok([memory.tapes, memory.tunables, rest].map(Budget::Stated));
        }
        let budget = |option: Option<u64>, default| match option {
            Some(_) => Budget::Stated(bytes(option, default)),
            None => Budget::AtMost(default),
        };
        Ok([budget(self.tape_budget, TAPE_BYTES), budget(self.adapter_memory, TUNABLE_BYTES), Budget::SPARE])
    }
}

fn bytes(option: Option<u64>, default: u64) -> u64 {
    option.map_or(default, |megabytes| megabytes.saturating_mul(MB))
}

/// Memory for clients, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientMemory {
    /// Everything.
    all: u64,
    tapes: u64,
    /// Tunables and cached prefixes of all clients, and of one.
    tunables: u64,
    client_tunables: u64,
    /// Largest computation.
    call: u64,
    /// Largest message, half of what is left for messages and inputs.
    message: u64,
}

impl ClientMemory {
    /// Divides the memory. `available` is that beside the blocks, `None` if it is unknown.
    pub(crate) fn new(options: MemoryOptions, available: Option<u64>) -> Result<Self, Failure> {
        let default = available.map_or(UNKNOWN_BYTES, |bytes| (bytes / 4 * 3).max(MIN_BYTES));
        let all = bytes(options.max_memory, default);
        let tapes = bytes(options.tape_budget, (all / 8 * 3).min(TAPE_BYTES));
        let tunables = bytes(options.adapter_memory, (all / 8).min(TUNABLE_BYTES));
        let parts = tapes.saturating_add(tunables);
        if options.max_memory.is_some() && parts > all / 4 * 3 {
            let [parts, all] = [parts, all].map(size);
            return Err(format!(
                "divide the memory of clients: --tape-budget-mb and --adapter-memory-mb take {parts}, more than three \
                 quarters of --max-memory, {all}"
            )
            .into());
        }
        // Parts that are stated hold, where the free memory is unknown.
        let all = all.max(parts.saturating_add(all / 4));
        let transient = ((all - parts) / 3).min(TRANSIENT_BYTES);
        Ok(Self {
            all,
            tapes,
            tunables,
            client_tunables: bytes(options.client_memory, tunables / 2),
            call: all - parts - transient,
            message: transient / 2,
        })
    }

    /// Options of a server of this model with the memory and with `limits` on rows, tokens and messages.
    pub(crate) fn server_options(&self, limits: Limits, config: &ModelConfig) -> ServerOptions {
        let limits = Limits {
            max_message_bytes: limits.max_message_bytes.min(self.message),
            tape_budget_bytes: self.tapes,
            client_bytes: self.client_tunables,
            shared_bytes: self.tunables,
            // Positions beyond those have no meaning to the model.
            max_row_tokens: config.max_positions.map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)),
            call_bytes: self.call,
            ..limits
        };
        ServerOptions { limits, max_memory: Some(self.all), ..ServerOptions::default() }
    }
}

#[cfg(test)]
mod tests {
    use sepal_core::Family;

    use super::*;

    fn divide(options: MemoryOptions, available: Option<u64>) -> ClientMemory {
        ClientMemory::new(options, available).expect("a division")
    }

    /// Memory beside tapes, tunables and the computation, for messages and inputs.
    fn transient(memory: &ClientMemory) -> u64 {
        memory.all - memory.tapes - memory.tunables - memory.call
    }

    #[test]
    fn defaults_stay_within_a_machine_of_4_gb() {
        let available = 3400 * MB;
        let memory = divide(MemoryOptions::default(), Some(available));
        assert_eq!(memory.all, available / 4 * 3);
        assert!(memory.tapes < 1000 * MB && memory.call >= memory.all / 4, "{memory:?}");
        assert_eq!((transient(&memory), memory.client_tunables), (memory.message * 2, memory.tunables / 2));
    }

    #[test]
    fn defaults_of_parts_do_not_grow_on_large_machines() {
        let memory = divide(MemoryOptions::default(), Some(256 << 30));
        assert_eq!((memory.tapes, memory.tunables), (TAPE_BYTES, TUNABLE_BYTES));
        assert_eq!((memory.client_tunables, memory.message), (512 * MB, 512 * MB));
        let unknown = divide(MemoryOptions::default(), None);
        assert_eq!((unknown.all, unknown.message), (UNKNOWN_BYTES, 512 * MB));
        assert_eq!(divide(MemoryOptions::default(), Some(0)).all, MIN_BYTES);
    }

    #[test]
    fn stated_parts_are_kept_or_refused() {
        let (tape_budget, adapter_memory, client_memory) = (Some(6000), Some(2), Some(1));
        let stated = MemoryOptions { tape_budget, adapter_memory, client_memory, max_memory: None };
        let memory = divide(stated, Some(4096 * MB));
        assert_eq!((memory.tapes, memory.tunables, memory.client_tunables), (6000 * MB, 2 * MB, MB));
        assert!(memory.all > 6002 * MB && memory.call > 0, "{memory:?}");
        let limited = MemoryOptions { max_memory: Some(1000), ..MemoryOptions::default() };
        let excessive = MemoryOptions { tape_budget: Some(700), ..limited };
        let error = ClientMemory::new(excessive, None).map(drop).expect_err("too much");
        assert!(error.to_string().contains("more than three quarters of --max-memory"), "{error}");
        let memory = divide(MemoryOptions { tape_budget: Some(0), ..limited }, None);
        assert_eq!((memory.all, memory.tapes, memory.tunables), (1000 * MB, 0, 125 * MB));
        assert!(excessive.budgets().is_err());
    }

    #[test]
    fn stated_options_are_budgets_that_are_reserved_completely() {
        let budgets = |options: MemoryOptions| options.budgets().expect("budgets");
        let default = [Budget::AtMost(TAPE_BYTES), Budget::AtMost(TUNABLE_BYTES), Budget::SPARE];
        assert_eq!(budgets(MemoryOptions::default()), default);
        let tapes = MemoryOptions { tape_budget: Some(u64::MAX), ..MemoryOptions::default() };
        assert_eq!(budgets(tapes), [Budget::Stated(u64::MAX), default[1], default[2]]);
        let all = MemoryOptions { max_memory: Some(1000), ..MemoryOptions::default() };
        assert_eq!(budgets(all), [375, 125, 500].map(|megabytes| Budget::Stated(megabytes * MB)));
    }

    #[test]
    fn limits_state_the_memory_and_the_positions_of_the_model() {
        let memory = divide(MemoryOptions { max_memory: Some(1000), ..MemoryOptions::default() }, None);
        let config = ModelConfig { max_positions: Some(128), ..ModelConfig::plain(Family::Llama, 2, 64, 4, 96, 32) };
        let options = memory.server_options(Limits::default(), &config);
        assert_eq!((options.max_memory, options.limits.max_row_tokens), (Some(1000 * MB), 128));
        assert_eq!(options.limits.max_message_bytes, memory.message);
        let unlimited = memory.server_options(Limits::default(), &ModelConfig { max_positions: None, ..config });
        assert_eq!(unlimited.limits.max_row_tokens, 0);
    }
}
