//! Tensors and [`Bytes`] over the same memory, without a copy.
//!
//! The contract, which no type can hold: shared memory is never written. After [`bytes_of`] neither the tensor nor one
//! that shares its storage (a view, a detached one) is changed in place; a tensor from [`tensor_over`] never is. What an
//! optimizer updates, or what goes into the graph as a gradient (libtorch adds up in place), is therefore copied instead.

use std::ffi::{c_char, c_void};

use bytes::Bytes;
use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::take_text;

/// Memory that cannot be shared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Only numbers one after another, in this machine's memory, are bytes.
    #[error("share the memory of a tensor that is {}", if *is_on_cpu { "not contiguous" } else { "not on the CPU" })]
    Scattered {
        /// Whether it is in this machine's memory at all.
        is_on_cpu: bool,
    },
    /// Bytes of another number than the shape says.
    #[error("make a {kind:?} tensor of shape {shape:?} over {found} bytes")]
    Size {
        /// The number format.
        kind: Kind,
        /// The dimensions.
        shape: Vec<i64>,
        /// How many bytes there are.
        found: usize,
    },
    /// libtorch refused.
    #[error("make a tensor over memory: {message}")]
    Torch {
        /// What it said.
        message: String,
    },
}

/// A tensor whose numbers are looked at as bytes. Its storage lives as long as it does.
struct Owner(Tensor);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        let n_bytes = self.0.numel() * self.0.kind().elt_size_in_bytes();
        if n_bytes == 0 {
            return &[];
        }
        // SAFETY: `bytes_of` saw that the tensor is on the CPU and contiguous, so this many bytes begin at its pointer;
        // its storage is neither moved nor freed while the tensor is there, and by the contract nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.0.data_ptr().cast::<u8>(), n_bytes) }
    }
}

/// The memory of `tensor`, which must be contiguous and on the CPU; it is freed with the last of the bytes and of the
/// tensors that share it. It must not be written any more.
///
/// # Errors
/// [`MemoryError::Scattered`] if its numbers do not lie one after another in this machine's memory.
pub fn bytes_of(tensor: &Tensor) -> Result<Bytes, MemoryError> {
    let is_on_cpu = tensor.device() == Device::Cpu;
    if !is_on_cpu || !tensor.is_contiguous() {
        return Err(MemoryError::Scattered { is_on_cpu });
    }
    // Detached: bytes need no graph, and the graph of a tensor may be large.
    Ok(Bytes::from_owner(Owner(tensor.detach())))
}

/// A tensor over `bytes`, which live as long as it and those that share its storage. It must not be written.
/// Bytes that do not lie where numbers of this kind may are copied.
///
/// # Errors
/// [`MemoryError`] if they are not as many as shape and kind say, or if libtorch refuses.
pub fn tensor_over(bytes: Bytes, shape: &[i64], kind: Kind) -> Result<Tensor, MemoryError> {
    let n_bytes = shape.iter().try_fold(kind.elt_size_in_bytes(), |n, &dim| n.checked_mul(usize::try_from(dim).ok()?));
    if n_bytes != Some(bytes.len()) {
        return Err(MemoryError::Size { kind, shape: shape.to_vec(), found: bytes.len() });
    }
    if bytes.as_ptr().align_offset(kind.elt_size_in_bytes()) != 0 {
        return Tensor::f_from_data_size(&bytes, shape, kind).map_err(refused);
    }
    let like = Tensor::f_empty([0], (kind, Device::Cpu)).map_err(refused)?;
    let data = bytes.as_ptr().cast_mut().cast();
    let owner = Box::into_raw(Box::new(bytes));
    let mut error = std::ptr::null_mut();
    // SAFETY: `data` has as many bytes as shape and kind say and lives as long as `owner`, which the shim takes over and
    // gives back once, through `drop_bytes`; it is aligned; by the contract nobody writes to it.
    let tensor = unsafe {
        sepal_memory_over(data, shape.as_ptr(), shape.len(), like.as_ptr(), owner.cast(), drop_bytes, &raw mut error)
    };
    if tensor.is_null() {
        return Err(MemoryError::Torch { message: take_text(error) });
    }
    // SAFETY: the shim made this tensor for us with `new`.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

fn refused(error: TchError) -> MemoryError {
    MemoryError::Torch { message: error.to_string() }
}

// SAFETY: this is the function of memory.cpp, with the same signature.
unsafe extern "C" {
    fn sepal_memory_over(
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
    // SAFETY: made by `Box::into_raw` in `tensor_over`; the shim calls this once.
    let bytes = unsafe { Box::from_raw(owner.cast::<Bytes>()) };
    // A panic of whoever owns the bytes must not cross into C++.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(bytes)));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("numbers")
    }

    /// The bytes of these numbers, and whether they are still held.
    fn watched(values: &[f32]) -> (Bytes, std::sync::Weak<Vec<u8>>) {
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
    fn bytes_are_the_memory_of_the_tensor() {
        let tensor = Tensor::from_slice(&[1.0_f32, -2.0, 0.5, 4.0]).view([2, 2]);
        let bytes = bytes_of(&tensor).expect("shared");
        assert_eq!(bytes.as_ptr().cast(), tensor.data_ptr().cast_const());
        let part = bytes_of(&tensor.narrow(0, 1, 1)).expect("shared");
        assert_eq!(part, [0.5_f32, 4.0].map(f32::to_le_bytes).concat());
        // The memory is there as long as somebody holds it.
        let expected = [1.0_f32, -2.0, 0.5, 4.0].map(f32::to_le_bytes).concat();
        drop((tensor, part));
        let clone = bytes.clone();
        drop(bytes);
        assert_eq!(std::thread::spawn(move || clone.to_vec()).join().expect("read elsewhere"), expected);
    }

    #[test]
    fn what_is_scattered_is_refused() {
        let tensor = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).view([2, 2]);
        assert!(matches!(bytes_of(&tensor.tr()), Err(MemoryError::Scattered { is_on_cpu: true })));
    }

    #[test]
    fn a_tensor_over_bytes_holds_them() {
        let (bytes, held) = watched(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let start = bytes.as_ptr();
        let tensor = tensor_over(bytes, &[3, 2], Kind::Float).expect("a tensor");
        assert_eq!(tensor.data_ptr().cast_const().cast(), start, "not copied");
        assert_eq!(tensor.size(), [3, 2]);
        let row = tensor.get(1);
        let doubled = tensor.set_requires_grad(true) * 2.0;
        assert_eq!(numbers(&doubled), [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]);
        drop((doubled, tensor));
        assert!(held.upgrade().is_some(), "a view holds the bytes");
        assert_eq!(numbers(&row), [3.0, 4.0]);
        drop(row);
        assert!(held.upgrade().is_none(), "dropped with the last tensor");
    }

    #[test]
    fn there_and_back_nothing_is_copied() {
        let (bytes, held) = watched(&[1.0, 2.0]);
        let tensor = tensor_over(bytes.clone(), &[2], Kind::Float).expect("a tensor");
        let back = bytes_of(&tensor).expect("shared");
        assert_eq!(back.as_ptr(), bytes.as_ptr());
        drop((tensor, bytes));
        assert_eq!(back, [1.0_f32, 2.0].map(f32::to_le_bytes).concat());
        drop(back);
        assert!(held.upgrade().is_none());
    }

    #[test]
    fn misaligned_bytes_are_copied() {
        let padded = Bytes::from([vec![0], [1.5_f32, -2.5].map(f32::to_le_bytes).concat()].concat());
        for start in [1, 2, 3] {
            let shifted = Bytes::from([vec![0; start], padded[1..].to_vec()].concat()).slice(start..);
            let tensor = tensor_over(shifted, &[2], Kind::Float).expect("a tensor");
            assert_eq!(numbers(&tensor), [1.5, -2.5]);
        }
    }

    #[test]
    fn empty_tensors_and_wrong_sizes() {
        let (bytes, held) = watched(&[]);
        let tensor = tensor_over(bytes, &[0, 4], Kind::Float).expect("a tensor");
        assert_eq!(tensor.size(), [0, 4]);
        assert!(bytes_of(&tensor).expect("shared").is_empty());
        drop(tensor);
        assert!(held.upgrade().is_none());
        for shape in [[3], [-2], [i64::MAX]] {
            let (bytes, held) = watched(&[1.0, 2.0]);
            let found = tensor_over(bytes, &shape, Kind::Float);
            assert!(matches!(found, Err(MemoryError::Size { found: 8, .. })), "{found:?}");
            assert!(held.upgrade().is_none());
        }
    }
}
