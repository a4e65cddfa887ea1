//! Tensors and [`Bytes`] over the same memory, without a copy.
//!
//! Contract that no type enforces: shared memory is never written. After [`bytes_from_tensor`], neither the tensor nor one
//! that shares its storage (a view, a detached one) is changed in place; a tensor from [`tensor_from_bytes`] never is.
//! Copy parameters, which an optimizer updates, and gradients of the graph, which libtorch accumulates in place.
//!
//! [`TightHeap`] keeps the heap small while weights are loaded.

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::take_text;

/// Failure to share memory.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum MemoryError {
    /// Tensor that is not contiguous or not on the CPU.
    #[error("share the memory of a tensor that is {}", if *is_on_cpu { "not contiguous" } else { "not on the CPU" })]
    Layout { is_on_cpu: bool },
    /// Number of bytes that does not fit the shape.
    #[error("make a {kind:?} tensor of shape {shape:?} over {found} bytes")]
    Size { kind: Kind, shape: Vec<i64>, found: usize },
    /// Error of libtorch.
    #[error("make a tensor over memory: {message}")]
    Torch { message: String },
}

/// Tensor viewed as bytes, which keeps its storage alive.
struct Owner(Tensor);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        let n_bytes = self.0.numel() * self.0.kind().elt_size_in_bytes();
        if n_bytes == 0 {
            return &[];
        }
        // SAFETY: `bytes_from_tensor` checked that the tensor is on the CPU and contiguous, so this many bytes begin at its
        // pointer. The tensor keeps its storage alive and in place, and by the contract it is not written.
        unsafe { std::slice::from_raw_parts(self.0.data_ptr().cast::<u8>(), n_bytes) }
    }
}

/// Returns the memory of `tensor`, which must be contiguous and on the CPU and must not be written any more. It is freed
/// with the last of the bytes and tensors that share it.
///
/// # Errors
/// [`MemoryError::Layout`] if the tensor is not contiguous or not on the CPU.
pub fn bytes_from_tensor(tensor: &Tensor) -> Result<Bytes, MemoryError> {
    let is_on_cpu = tensor.device() == Device::Cpu;
    if !is_on_cpu || !tensor.is_contiguous() {
        return Err(MemoryError::Layout { is_on_cpu });
    }
    // Detached, because the graph of a tensor may be large.
    Ok(Bytes::from_owner(Owner(tensor.detach())))
}

/// Returns a tensor over `bytes`, which must not be written. The bytes live as long as the tensors that share its storage.
/// Misaligned bytes are copied.
///
/// # Errors
/// [`MemoryError`] if the number of bytes does not fit shape and kind, or if libtorch fails.
pub fn tensor_from_bytes(bytes: Bytes, shape: &[i64], kind: Kind) -> Result<Tensor, MemoryError> {
    let n_bytes = shape.iter().try_fold(kind.elt_size_in_bytes(), |n, &dim| n.checked_mul(usize::try_from(dim).ok()?));
    if n_bytes != Some(bytes.len()) {
        return Err(MemoryError::Size { kind, shape: shape.to_vec(), found: bytes.len() });
    }
    if bytes.as_ptr().align_offset(kind.elt_size_in_bytes()) != 0 {
        return Tensor::f_from_data_size(&bytes, shape, kind).map_err(torch_error);
    }
    let like = Tensor::f_empty([0], (kind, Device::Cpu)).map_err(torch_error)?;
    let data = bytes.as_ptr().cast_mut().cast();
    let owner = Box::into_raw(Box::new(bytes)).cast();
    let mut error = std::ptr::null_mut();
    // SAFETY: `data` is aligned, has the size of shape and kind and lives as long as `owner`, which the shim takes over
    // and returns once, through `drop_bytes`. By the contract it is not written.
    let tensor = unsafe {
        sepal_tensor_from_memory(data, shape.as_ptr(), shape.len(), like.as_ptr(), owner, drop_bytes, &raw mut error)
    };
    if tensor.is_null() {
        return Err(MemoryError::Torch { message: take_text(error) });
    }
    // SAFETY: the shim created this tensor with `new`, and Rust owns it.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

/// Guard during which freed memory of [`TIGHT_BYTES`] and more is returned to the system at once, in all threads.
///
/// A heap that keeps freed memory for later, as steps of training need it, has holes after weights were loaded: of matrices
/// that were rounded, the rounded ones lie between those that were freed. With glibc only.
#[derive(Debug)]
pub struct TightHeap(());

/// Number of guards.
static TIGHT_HEAPS: Mutex<usize> = Mutex::new(0);

/// Least size of memory that is returned to the system at once while a [`TightHeap`] exists.
pub const TIGHT_BYTES: i32 = 1 << 20;

/// The same without one, unless [`THRESHOLD`] is set: glibc's largest value. glibc increases its own to it, as memory of such
/// sizes is freed.
const USUAL_BYTES: i32 = 32 << 20;

/// Variable with which a user, or the start of a program, chooses the size.
const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";

impl TightHeap {
    /// Begins to return memory. Memory that exists is not affected.
    pub fn begin() -> Self {
        let mut guards = TIGHT_HEAPS.lock().unwrap_or_else(PoisonError::into_inner);
        *guards += 1;
        map_memory_from(TIGHT_BYTES);
        Self(())
    }
}

impl Drop for TightHeap {
    fn drop(&mut self) {
        let mut guards = TIGHT_HEAPS.lock().unwrap_or_else(PoisonError::into_inner);
        *guards -= 1;
        if *guards == 0 {
            let chosen = std::env::var(THRESHOLD).ok().and_then(|bytes| bytes.parse().ok());
            map_memory_from(chosen.unwrap_or(USUAL_BYTES));
        }
    }
}

fn map_memory_from(bytes: i32) {
    // SAFETY: the function of memory.cpp, with the same signature; it may be called at any time, in any thread.
    unsafe extern "C" {
        fn sepal_map_memory_from(bytes: i32);
    }
    // SAFETY: as above.
    unsafe { sepal_map_memory_from(bytes) }
}

fn torch_error(error: TchError) -> MemoryError {
    MemoryError::Torch { message: error.to_string() }
}

// SAFETY: the function of memory.cpp, with the same signature.
unsafe extern "C" {
    fn sepal_tensor_from_memory(
        data: *mut c_void,
        shape: *const i64,
        n_dims: usize,
        like: *const C_tensor,
        owner: *mut c_void,
        drop: extern "C" fn(*mut c_void),
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
}

extern "C" fn drop_bytes(owner: *mut c_void) {
    // SAFETY: created by `Box::into_raw` in `tensor_from_bytes`; the shim calls this once.
    let bytes = unsafe { Box::from_raw(owner.cast::<Bytes>()) };
    // A panic in the destructor of the bytes must not unwind into C++.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(bytes)));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("numbers")
    }

    /// Returns the bytes of these numbers, and a weak reference to observe their release.
    fn tracked_bytes(values: &[f32]) -> (Bytes, std::sync::Weak<Vec<u8>>) {
        struct Shared(Arc<Vec<u8>>);
        impl AsRef<[u8]> for Shared {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let data = Arc::new(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        let weak = Arc::downgrade(&data);
        (Bytes::from_owner(Shared(data)), weak)
    }

    #[test]
    fn bytes_from_tensor_shares_memory() {
        let tensor = Tensor::from_slice(&[1.0_f32, -2.0, 0.5, 4.0]).view([2, 2]);
        let bytes = bytes_from_tensor(&tensor).expect("shared");
        assert_eq!(bytes.as_ptr().cast(), tensor.data_ptr().cast_const());
        let part = bytes_from_tensor(&tensor.narrow(0, 1, 1)).expect("shared");
        assert_eq!(part, [0.5_f32, 4.0].map(f32::to_le_bytes).concat());
        // The last clone of the bytes keeps the memory alive.
        let expected = [1.0_f32, -2.0, 0.5, 4.0].map(f32::to_le_bytes).concat();
        drop((tensor, part));
        let clone = bytes.clone();
        drop(bytes);
        assert_eq!(std::thread::spawn(move || clone.to_vec()).join().expect("read elsewhere"), expected);
    }

    #[test]
    fn bytes_from_tensor_not_contiguous_fails() {
        let tensor = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).view([2, 2]);
        assert!(matches!(bytes_from_tensor(&tensor.tr()), Err(MemoryError::Layout { is_on_cpu: true })));
    }

    #[test]
    fn tensor_from_bytes_keeps_bytes_alive() {
        let (bytes, weak) = tracked_bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let start = bytes.as_ptr();
        let tensor = tensor_from_bytes(bytes, &[3, 2], Kind::Float).expect("a tensor");
        assert_eq!(tensor.data_ptr().cast_const().cast(), start, "not copied");
        assert_eq!(tensor.size(), [3, 2]);
        let row = tensor.get(1);
        let doubled = tensor.set_requires_grad(true) * 2.0;
        assert_eq!(numbers(&doubled), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
        drop((doubled, tensor));
        assert!(weak.upgrade().is_some(), "a view holds the bytes");
        assert_eq!(numbers(&row), [3.0, 4.0]);
        drop(row);
        assert!(weak.upgrade().is_none(), "dropped with the last tensor");
    }

    #[test]
    fn round_trip_copies_nothing() {
        let (bytes, weak) = tracked_bytes(&[1.0, 2.0]);
        let tensor = tensor_from_bytes(bytes.clone(), &[2], Kind::Float).expect("a tensor");
        let shared = bytes_from_tensor(&tensor).expect("shared");
        assert_eq!(shared.as_ptr(), bytes.as_ptr());
        drop((tensor, bytes));
        assert_eq!(shared, [1.0_f32, 2.0].map(f32::to_le_bytes).concat());
        drop(shared);
        assert!(weak.upgrade().is_none());
    }

    #[test]
    fn tensor_from_misaligned_bytes_copies() {
        let padded = Bytes::from([vec![0], [1.5_f32, -2.5].map(f32::to_le_bytes).concat()].concat());
        for start in [1, 2, 3] {
            let shifted = Bytes::from([vec![0; start], padded[1..].to_vec()].concat()).slice(start..);
            let tensor = tensor_from_bytes(shifted, &[2], Kind::Float).expect("a tensor");
            assert_eq!(numbers(&tensor), [1.5, -2.5]);
        }
    }

    #[test]
    fn tensor_from_bytes_checks_size() {
        let (bytes, weak) = tracked_bytes(&[]);
        let tensor = tensor_from_bytes(bytes, &[0, 4], Kind::Float).expect("a tensor");
        assert_eq!(tensor.size(), [0, 4]);
        assert!(bytes_from_tensor(&tensor).expect("shared").is_empty());
        drop(tensor);
        assert!(weak.upgrade().is_none());
        for shape in [[3], [-2], [i64::MAX]] {
            let (bytes, weak) = tracked_bytes(&[1.0, 2.0]);
            let found = tensor_from_bytes(bytes, &shape, Kind::Float);
            assert!(matches!(found, Err(MemoryError::Size { found: 8, .. })), "{found:?}");
            assert!(weak.upgrade().is_none());
        }
    }
}
