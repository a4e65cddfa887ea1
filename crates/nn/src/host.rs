//! Between libtorch tensors and [`HostTensor`]s: one copy each way, one conversion where the dtype differs.

use bytes::Bytes;
use sepal_core::{DType, HostTensor, ShapeError};
use tch::{Kind, TchError, Tensor};

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

/// The numbers of `tensor`, any shape and device, in host memory as `dtype`.
///
/// # Errors
/// [`HostError`] if libtorch cannot convert or copy it.
pub fn to_host(tensor: &Tensor, dtype: DType) -> Result<HostTensor, HostError> {
    let shape: Vec<usize> = tensor.size().iter().map(|&dim| dim.unsigned_abs() as usize).collect();
    let numel = tensor.numel();
    let mut data = vec![0_u8; numel * dtype.size()];
    tch::no_grad(|| tensor.f_to_kind(kind(dtype)).and_then(|t| t.f_copy_data_u8(&mut data, numel)))
        .map_err(|source| HostError::Torch { shape: tensor.size(), source })?;
    Ok(HostTensor::new(dtype, shape, Bytes::from(data))?)
}

/// `host` as an fp32 tensor on the CPU, whatever its dtype.
///
/// # Errors
/// [`HostError`] if libtorch cannot hold it.
pub fn from_host(host: &HostTensor) -> Result<Tensor, HostError> {
    let shape = host
        .shape()
        .iter()
        .map(|&dim| i64::try_from(dim))
        .collect::<Result<Vec<i64>, _>>()
        .map_err(|_| HostError::TooLarge { shape: host.shape().to_vec() })?;
    Tensor::f_from_data_size(host.data(), &shape, kind(host.dtype()))
        .and_then(|tensor| tensor.f_to_kind(Kind::Float))
        .map_err(|source| HostError::Torch { shape, source })
}

fn kind(dtype: DType) -> Kind {
    match dtype {
        DType::F32 => Kind::Float,
        DType::F16 => Kind::Half,
        DType::Bf16 => Kind::BFloat16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tensor: &Tensor, dtype: DType, expected: &[f32]) {
        let host = to_host(tensor, dtype).expect("to the host");
        assert_eq!(host.dtype(), dtype);
        assert_eq!(host.to_f32(), expected);
        let back = from_host(&host).expect("from the host");
        assert_eq!((back.size(), back.kind()), (tensor.size(), Kind::Float));
        assert_eq!(Vec::<f32>::try_from(back.flatten(0, -1)).expect("numbers"), expected);
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
    fn scalars_empty_tensors_and_tracked_ones() {
        check(&Tensor::from(3.0_f32), DType::F32, &[3.0]);
        check(&Tensor::zeros([0, 4], (Kind::Float, tch::Device::Cpu)), DType::Bf16, &[]);
        check(&Tensor::from_slice(&[1.0_f64, 2.0]).set_requires_grad(true), DType::F32, &[1.0, 2.0]);
    }
}
