//! Between libtorch tensors and [`HostTensor`]s: one copy each way or, where nobody writes, none; one conversion where
//! the dtype differs.

use sepal_autograd::memory::{self, MemoryError};
use sepal_core::{DType, HostTensor, ShapeError};
use tch::{Device, Kind, TchError, Tensor};

/// A failed move between libtorch and host memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A dimension that libtorch cannot count.
    #[error("make a tensor of shape {shape:?}: a dimension is too large")]
    TooLarge {
        /// The dimensions.
        shape: Vec<usize>,
    },
    /// The bytes do not fit the shape.
    #[error("read a tensor back")]
    Shape(#[from] ShapeError),
    /// Memory that cannot be shared.
    #[error("share memory between libtorch and the host")]
    Memory(#[from] MemoryError),
    /// libtorch refused, for example for want of memory.
    #[error("move a tensor of shape {shape:?} between libtorch and the host")]
    Torch {
        /// The dimensions.
        shape: Vec<i64>,
        /// What libtorch said.
        #[source]
        source: TchError,
    },
}

/// The numbers of `tensor`, any shape and device, in host memory as `dtype`: a copy, which what happens to the tensor
/// later does not change.
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

/// As [`to_host`], without a copy where the numbers already lie in host memory, one after another, as `dtype`. Then
/// the memory is shared and must not be written any more: not for parameters, which an optimizer updates in place.
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

/// `host` as an fp32 tensor on the CPU, whatever its dtype, with memory of its own.
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

/// As [`from_host`], without a copy of fp32: the tensor is over the bytes of `host`, which live as long as it does.
/// It must not be written, and it must not become a gradient, since libtorch adds up gradients in place.
///
/// # Errors
/// [`HostError`] if libtorch cannot hold it.
pub fn share_from_host(host: &HostTensor) -> Result<Tensor, HostError> {
    let shape = host
        .shape()
        .iter()
        .map(|&dim| i64::try_from(dim))
        .collect::<Result<Vec<i64>, _>>()
        .map_err(|_| HostError::TooLarge { shape: host.shape().to_vec() })?;
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

/// libtorch's word for a format, if it has it.
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
    fn numbers_survive_every_dtype() {
        let tensor = Tensor::from_slice(&[1.5_f32, -2.0, 0.25, 0.0, 8.0, -0.5]).view([2, 3]);
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            check(&tensor, dtype, &[1.5, -2.0, 0.25, 0.0, 8.0, -0.5]);
            check(&tensor.tr(), dtype, &[1.5, 0.0, -2.0, 8.0, 0.25, -0.5]);
        }
    }

    #[test]
    fn eight_bits_go_by_blocks_of_64() {
        // Every block has a 127, so that its scale is one and nothing is lost.
        let values = [127.0_f32, -64.0, 3.0, 0.0].repeat(33)[..130].to_vec();
        let tensor = Tensor::from_slice(&values).view([2, 65]);
        let expected = share_to_host(&tensor, DType::F32).expect("to the host").to_q8();
        assert_eq!(to_host(&tensor, DType::Q8).expect("to the host"), expected);
        assert_eq!(expected.data().len(), 130 + 3 * 4);
        check(&tensor.narrow(0, 0, 1), DType::Q8, &values[..65]);
        check(&Tensor::zeros([0, 4], (Kind::Float, Device::Cpu)), DType::Q8, &[]);
    }

    #[test]
    fn scalars_empty_tensors_and_tracked_ones() {
        check(&Tensor::from(3.0_f32), DType::F32, &[3.0]);
        check(&Tensor::zeros([0, 4], (Kind::Float, tch::Device::Cpu)), DType::Bf16, &[]);
        check(&Tensor::from_slice(&[1.0_f64, 2.0]).set_requires_grad(true), DType::F32, &[1.0, 2.0]);
    }

    #[test]
    fn a_copy_stays_as_it_was() {
        let mut parameter = Tensor::from_slice(&[1.0_f32, 2.0]).set_requires_grad(true);
        let host = to_host(&parameter, DType::F32).expect("to the host");
        drop(tch::no_grad(|| parameter.fill_(7.0)));
        assert_eq!(host.to_f32(), [1.0, 2.0]);
        drop(from_host(&host).expect("from the host").fill_(8.0));
        assert_eq!(host.to_f32(), [1.0, 2.0]);
    }

    #[test]
    fn shared_memory_is_not_copied() {
        let tensor = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).view([2, 2]);
        let host = share_to_host(&tensor, DType::F32).expect("to the host");
        assert_eq!(host.data().as_ptr(), tensor.data_ptr().cast_const().cast());
        let back = share_from_host(&host).expect("from the host");
        assert_eq!(back.data_ptr(), tensor.data_ptr());
        drop((tensor, host));
        assert_eq!(numbers(&back), [1.0, 2.0, 3.0, 4.0]);
    }
}
