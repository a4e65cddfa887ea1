//! Work that libtorch's threads share, each with operations of its own: threads that wait for each other after every
//! operation lose a fifth of the time of small products, where waiting threads sleep.

use std::ffi::{c_char, c_void};
use std::ops::{Deref, Range};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use tch::{TchError, Tensor};

use crate::check;

/// Tensor that several threads read. By a contract that no type enforces, it is not written as long as it exists, nor is a
/// tensor that shares its storage.
#[derive(Debug)]
pub struct ReadOnly(Tensor);

// SAFETY: libtorch's tensors may be read in several threads at the same time, and by the contract this one is not written.
unsafe impl Sync for ReadOnly {}

impl ReadOnly {
    /// A handle to the same memory.
    pub fn new(tensor: &Tensor) -> Self {
        Self(tensor.shallow_clone())
    }
}

impl From<Tensor> for ReadOnly {
    fn from(tensor: Tensor) -> Self {
        Self(tensor)
    }
}

impl Deref for ReadOnly {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.0
    }
}

/// A range's start, and its result or panic.
type Done<T> = (usize, std::thread::Result<Result<T, TchError>>);

struct Work<'a, T, F> {
    compute: &'a F,
    done: Mutex<Vec<Done<T>>>,
}

/// Divides `0..n` into ranges, one for each of libtorch's threads, and computes each in its thread. Operations of libtorch in
/// `compute` use that thread alone, and autograd does not record them. Returns the results in the order of the ranges, which
/// are not empty.
///
/// # Errors
/// The error of the first range that has one.
pub fn map_ranges<T, F>(n: usize, compute: F) -> Result<Vec<T>, TchError>
where
    T: Send,
    F: Fn(Range<usize>) -> Result<T, TchError> + Sync,
{
    let work = Work { compute: &compute, done: Mutex::default() };
    let count = i64::try_from(n).map_err(|_| TchError::Shape(format!("{n} parts of work")))?;
    // SAFETY: the function calls `run` with this context, which is shared and lives longer than the call, and with ranges
    // within `0..n`.
    check(unsafe { sepal_parallel_for(count, run::<T, F>, (&raw const work).cast()) })?;
    let mut done = work.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(start, _)| *start);
    done.into_iter().map(|(_, result)| result.unwrap_or_else(|panic| resume_unwind(panic))).collect()
}

extern "C" fn run<T, F>(context: *const c_void, from: i64, to: i64)
where
    T: Send,
    F: Fn(Range<usize>) -> Result<T, TchError> + Sync,
{
    // SAFETY: the context that `map_ranges` passes for the same types.
    let work = unsafe { &*context.cast::<Work<'_, T, F>>() };
    let range = from as usize..to as usize;
    let start = range.start;
    // A panic must not unwind into C++.
    let result = catch_unwind(AssertUnwindSafe(|| tch::no_grad(|| (work.compute)(range))));
    work.done.lock().unwrap_or_else(PoisonError::into_inner).push((start, result));
}

// SAFETY: the function of parallel.cpp, with the same signature.
unsafe extern "C" {
    fn sepal_parallel_for(n: i64, body: extern "C" fn(*const c_void, i64, i64), context: *const c_void) -> *mut c_char;
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn ranges_are_computed_once_and_in_order() {
        for n in [0, 1, 2, 7, 100] {
            let found = map_ranges(n, |range| Ok(range.collect::<Vec<usize>>())).expect("ranges");
            assert!(found.iter().all(|range| !range.is_empty()) && found.len() <= n, "{found:?}");
            assert_eq!(found.concat(), (0..n).collect::<Vec<usize>>());
        }
    }

    #[test]
    fn products_in_threads_are_those_of_one() {
        let x = ReadOnly::from(Tensor::randn([33, 64], (Kind::Float, Device::Cpu)).set_requires_grad(true));
        let rows = |range: Range<usize>| x.f_narrow(0, range.start as i64, range.len() as i64)?.f_mm(&x.f_tr()?);
        let parts = map_ranges(33, rows).expect("products");
        assert!(parts.iter().all(|part| !part.requires_grad()));
        let expected = tch::no_grad(|| x.matmul(&x.tr()));
        assert!(Tensor::cat(&parts, 0).allclose(&expected, 1e-5, 1e-5, false));
    }

    #[test]
    fn first_error_is_returned_and_panics_go_on() {
        let failed = map_ranges(64, |range| match range.contains(&63) {
            true => Err(TchError::Shape("the last".to_owned())),
            false => Ok(()),
        });
        assert!(failed.expect_err("an error").to_string().contains("the last"));
        let panics = || map_ranges(3, |_| -> Result<(), TchError> { panic!("in a thread") });
        assert!(catch_unwind(panics).is_err());
    }
}
