//! Conversions between libtorch tensors and [`HostTensor`]s, with one copy, or none for shared memory, and one
//! conversion if the dtypes differ.

use sepal_autograd::memory::{self, MemoryError};
use sepal_core::{DType, HostTensor, ShapeError};
use tch::{Device, Kind, TchError, Tensor};

/// Failed conversion between libtorch and host memory.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum HostError {
    /// A dimension exceeds libtorch's range.
    #[error("make a tensor of shape {shape:?}: a dimension is too large")]
    TooLarge { shape: Vec<usize> },
    /// The bytes do not fit the shape.
    #[error("read a tensor back")]
    Shape(#[from] ShapeError),
    /// The memory cannot be shared.
    #[error("share memory between libtorch and the host")]
    Memory(#[from] MemoryError),
    /// libtorch failed, for example for lack of memory.
    #[error("move a tensor of shape {shape:?} between libtorch and the host")]
    Torch { shape: Vec<i64>, source: TchError },
}

/// Copies the numbers of `tensor`, of any shape and device, to host memory as `dtype`.
///
/// # Errors
/// [`HostError`] if libtorch cannot convert or copy it.
pub fn to_host(tensor: &Tensor, dtype: DType) -> Result<HostTensor, HostError> {
    let Some(kind) = kind(dtype) else {
        return share_to_host(tensor, dtype);
    };
    let copy = tch::no_grad(|| tensor.f_internal_to_copy((kind, Device::Cpu), false));
    share_to_host(&copy.map_err(|source| torch(tensor, source))?, dtype)
}

/// Same as [`to_host`], without a copy if the numbers are contiguous in host memory as `dtype`. The memory is then
/// shared and must not be written: not for parameters, which an optimizer updates in place.
///
/// # Errors
/// [`HostError`] if libtorch cannot convert or copy it.
pub fn share_to_host(tensor: &Tensor, dtype: DType) -> Result<HostTensor, HostError> {
    let shape: Vec<usize> = tensor.size().iter().map(|&dim| dim.unsigned_abs() as usize).collect();
    let Some(kind) = kind(dtype) else {
        return Ok(share_to_host(tensor, DType::F32)?.to_q8());
    };
    let plain =
        tch::no_grad(|| tensor.f_to_device(Device::Cpu).and_then(|t| t.f_to_kind(kind)).and_then(|t| t.f_contiguous()));
    let data = memory::bytes_from_tensor(&plain.map_err(|source| torch(tensor, source))?)?;
    Ok(HostTensor::new(dtype, shape, data)?)
}

/// Converts `host` to an fp32 tensor on the CPU with its own memory.
///
/// # Errors
/// [`HostError`] if libtorch cannot hold it.
pub fn from_host(host: &HostTensor) -> Result<Tensor, HostError> {
    let tensor = share_from_host(host)?;
    match host.dtype() {
        DType::F32 => {
            tensor.f_internal_to_copy((Kind::Float, Device::Cpu), false).map_err(|source| torch(&tensor, source))
        }
        DType::F16 | DType::Bf16 | DType::Q8 => Ok(tensor),
    }
}

/// Same as [`from_host`], without a copy of fp32: the tensor shares the bytes of `host`. It must not be written, and
/// must not become a gradient, since libtorch accumulates gradients in place.
///
/// # Errors
/// [`HostError`] if libtorch cannot hold it.
pub fn share_from_host(host: &HostTensor) -> Result<Tensor, HostError> {
    let shape: Result<Vec<i64>, _> = host.shape().iter().map(|&dim| i64::try_from(dim)).collect();
    let shape = shape.map_err(|_| HostError::TooLarge { shape: host.shape().to_vec() })?;
    let Some(kind) = kind(host.dtype()) else {
        return Tensor::f_from_data_size(bytemuck::cast_slice(&host.to_f32()), &shape, Kind::Float)
            .map_err(|source| HostError::Torch { shape, source });
    };
    let tensor = memory::tensor_from_bytes(host.data().clone(), &shape, kind)?;
    tensor.f_to_kind(Kind::Float).map_err(|source| HostError::Torch { shape, source })
}

fn torch(tensor: &Tensor, source: TchError) -> HostError {
    HostError::Torch { shape: tensor.size(), source }
}

/// libtorch kind of a dtype, if there is one.
fn kind(dtype: DType) -> Option<Kind> {
    match dtype {
        DType::F32 => Some(Kind::Float),
        DType::F16 => Some(Kind::Half),
        DType::Bf16 => Some(Kind::BFloat16),
        DType::Q8 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tensor: &Tensor, dtype: DType, expected: &[f32]) {
        let host = to_host(tensor, dtype).expect("to the host");
        assert_eq!(host.dtype(), dtype);
        assert_eq!(host.to_f32(), expected);
        assert_eq!(share_to_host(tensor, dtype).expect("to the host"), host);
        for back in [from_host(&host), share_from_host(&host)] {
            let back = back.expect("from the host");
            assert_eq!((back.size(), back.kind()), (tensor.size(), Kind::Float));
            assert_eq!(numbers(&back), expected);
        }
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("numbers")
    }

    #[test]
    fn conversions_round_trip() {
        let tensor = Tensor::from_slice(&[1.5_f32, -2.0, 0.25, 0.0, 8.0, -0.5]).view([2, 3]);
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            check(&tensor, dtype, &[1.5, -2.0, 0.25, 0.0, 8.0, -0.5]);
            check(&tensor.tr(), dtype, &[1.5, 0.0, -2.0, 8.0, 0.25, -0.5]);
        }
    }

    #[test]
    fn q8_uses_blocks_of_64() {
        // Every block contains 127, so its scale is one and the conversion is exact.
        let values = [127.0_f32, -64.0, 3.0, 0.0].repeat(33)[..130].to_vec();
        let tensor = Tensor::from_slice(&values).view([2, 65]);
        let expected = share_to_host(&tensor, DType::F32).expect("to the host").to_q8();
        assert_eq!(to_host(&tensor, DType::Q8).expect("to the host"), expected);
        assert_eq!(expected.data().len(), 130 + 3 * 4);
        check(&tensor.narrow(0, 0, 1), DType::Q8, &values[..65]);
        check(&Tensor::zeros([0, 4], (Kind::Float, Device::Cpu)), DType::Q8, &[]);
    }

    #[test]
    fn to_host_accepts_scalar_empty_and_tracked() {
        check(&Tensor::from(3.0_f32), DType::F32, &[3.0]);
        check(&Tensor::zeros([0, 4], (Kind::Float, tch::Device::Cpu)), DType::Bf16, &[]);
        check(&Tensor::from_slice(&[1.0_f64, 2.0]).set_requires_grad(true), DType::F32, &[1.0, 2.0]);
    }

    #[test]
    fn to_host_copy_is_independent() {
        let mut parameter = Tensor::from_slice(&[1.0_f32, 2.0]).set_requires_grad(true);
        let host = to_host(&parameter, DType::F32).expect("to the host");
        drop(tch::no_grad(|| parameter.fill_(7.0)));
        assert_eq!(host.to_f32(), [1.0, 2.0]);
        drop(from_host(&host).expect("from the host").fill_(8.0));
        assert_eq!(host.to_f32(), [1.0, 2.0]);
    }

    #[test]
    fn share_to_host_shares_memory() {
        let tensor = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).view([2, 2]);
        let host = share_to_host(&tensor, DType::F32).expect("to the host");
        assert_eq!(host.data().as_ptr(), tensor.data_ptr().cast_const().cast());
        let back = share_from_host(&host).expect("from the host");
        assert_eq!(back.data_ptr(), tensor.data_ptr());
        drop((tensor, host));
        assert_eq!(numbers(&back), [1.0, 2.0, 3.0, 4.0]);
    }
}
