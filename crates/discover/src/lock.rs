use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex. Every change in this crate is atomic, so a panic elsewhere leaves the value usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
