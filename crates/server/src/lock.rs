use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a value whose every change is whole, so that a panic elsewhere leaves it usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
