use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::TchError;

/// Signal that ends a forward or backward pass between two blocks, once all of its callers have left.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cancel<'a>(&'a [Arc<AtomicBool>]);

impl<'a> Cancel<'a> {
    /// Signal of the callers of a pass, each with a flag that is set when the caller leaves and never cleared.
    pub fn new(callers: &'a [Arc<AtomicBool>]) -> Self {
        Self(callers)
    }

    /// True if there are callers and all of them have left.
    pub fn is_set(self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|flag| flag.load(Ordering::Relaxed))
    }

    /// Returns an error if the signal is set, to be called before each block.
    pub(crate) fn check(self) -> Result<(), TchError> {
        if self.is_set() { Err(TchError::Torch("all callers have left".to_owned())) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_ends_after_its_last_caller_has_left() {
        assert!(!Cancel::default().is_set());
        let callers = [Arc::<AtomicBool>::default(), Arc::default()];
        let cancel = Cancel::new(&callers);
        callers[1].store(true, Ordering::Relaxed);
        assert!(!cancel.is_set() && cancel.check().is_ok());
        callers[0].store(true, Ordering::Relaxed);
        assert!(cancel.is_set() && cancel.check().is_err());
    }
}
