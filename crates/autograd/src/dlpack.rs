//! Tensors as [DLPack](https://dmlc.github.io/dlpack/latest/) structures, which libraries exchange without a copy.

use std::ffi::{c_char, c_void};
use std::ptr::NonNull;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::check;

/// Owner of a `DLManagedTensor`, which keeps the memory of its tensor alive.
#[derive(Debug)]
pub struct DlPack(NonNull<c_void>);

// SAFETY: the functions of dlpack.cpp, with the same signatures.
unsafe extern "C" {
    fn sepal_dlpack_from_tensor(tensor: *const C_tensor, out: *mut *mut c_void) -> *mut c_char;
    fn sepal_dlpack_to_tensor(source: *mut c_void, out: *mut *mut C_tensor) -> *mut c_char;
    fn sepal_dlpack_free(source: *mut c_void);
}

impl DlPack {
    /// Shares the memory of `tensor`, without its graph.
    ///
    /// # Errors
    /// [`TchError`] for a tensor that DLPack cannot describe, such as a sparse one.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self, TchError> {
        let detached = tensor.f_detach()?;
        let mut structure = std::ptr::null_mut();
        // SAFETY: a live tensor, of which the function takes a reference of its own; `structure` is a place for one pointer.
        check(unsafe { sepal_dlpack_from_tensor(detached.as_ptr(), &raw mut structure) })?;
        NonNull::new(structure).map(Self).ok_or_else(|| TchError::Torch("no DLPack structure was made".to_owned()))
    }

    /// Returns a tensor over the same memory.
    ///
    /// # Errors
    /// [`TchError`] for a format or a device that this libtorch does not have.
    pub fn into_tensor(self) -> Result<Tensor, TchError> {
        let mut tensor = std::ptr::null_mut();
        // SAFETY: `self` owns a live structure, which the function takes over if it succeeds.
        check(unsafe { sepal_dlpack_to_tensor(self.0.as_ptr(), &raw mut tensor) })?;
        // The tensor owns the structure now.
        std::mem::forget(self);
        // SAFETY: the function created this tensor with `new`, and Rust owns it.
        Ok(unsafe { Tensor::from_ptr(tensor) })
    }

    /// Takes over a structure.
    ///
    /// # Safety
    /// `structure` points to a valid `DLManagedTensor` that has no other owner.
    pub unsafe fn from_raw(structure: NonNull<c_void>) -> Self {
        Self(structure)
    }

    /// Gives the structure away; [`from_raw`](Self::from_raw) takes it over again.
    pub fn into_raw(self) -> NonNull<c_void> {
        let structure = self.0;
        std::mem::forget(self);
        structure
    }
}

impl Drop for DlPack {
    fn drop(&mut self) {
        // SAFETY: `self` owns a live structure; it is freed once, here.
        unsafe { sepal_dlpack_free(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn through_dlpack(tensor: &Tensor) -> Tensor {
        let structure = DlPack::from_tensor(tensor).expect("shared").into_raw();
        // SAFETY: the structure was just given away, and nothing else owns it.
        unsafe { DlPack::from_raw(structure) }.into_tensor().expect("a tensor")
    }

    #[test]
    fn dlpack_shares_memory_and_outlives_its_tensor() {
        let tensor = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).reshape([2, 2]);
        let shared = through_dlpack(&tensor);
        assert_eq!(shared.data_ptr(), tensor.data_ptr());
        drop(tensor);
        assert_eq!(Vec::<f32>::try_from(shared.reshape([4])).expect("numbers"), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn dlpack_keeps_formats_strides_and_drops_graphs() {
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16, Kind::Int64] {
            let tensor = Tensor::arange(6_i64, (kind, tch::Device::Cpu)).reshape([2, 3]).transpose(0, 1);
            let shared = through_dlpack(&tensor);
            assert_eq!((shared.kind(), shared.size(), &shared), (kind, vec![3, 2], &tensor));
        }
        let leaf = Tensor::from_slice(&[1.0_f32]).set_requires_grad(true);
        assert!(!through_dlpack(&leaf).requires_grad());
    }

    #[test]
    fn dlpack_that_is_not_used_is_freed() {
        let tensor = Tensor::from_slice(&[1.0_f32]);
        drop(DlPack::from_tensor(&tensor).expect("shared"));
        assert_eq!(Vec::<f32>::try_from(&tensor).expect("numbers"), [1.0]);
    }
}
