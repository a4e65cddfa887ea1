use crate::error::ForwardError;

/// Error of work on blocks that other servers can do again.
pub trait Repeatable {
    /// True if servers with wrong results were taken out of use.
    fn is_quarantine(&self) -> bool;
}

impl Repeatable for ForwardError {
    fn is_quarantine(&self) -> bool {
        Self::is_quarantine(self)
    }
}

/// Does `work`, and again each time that servers with wrong results were taken out of use. The work begins anew: it starts a
/// session with the blocks, and nothing of an earlier attempt counts. Each repetition has a server less, or no relays, so their
/// number is bounded by that of the servers.
///
/// # Errors
/// The error of the last attempt.
pub fn without_liars<T, E: Repeatable>(mut work: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    loop {
        match work() {
            Err(error) if error.is_quarantine() => {}
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use sepal_remote::RemoteError;

    use super::*;
    use crate::blocks::BlocksError;

    #[test]
    fn work_is_repeated_after_a_quarantine_alone() {
        let quarantine = || BlocksError::Remote(RemoteError::Quarantined { servers: vec!["a:1".to_owned()] });
        let mut attempts = 0;
        let outcome: Result<u32, ForwardError> = without_liars(|| {
            attempts += 1;
            if attempts < 3 { Err(quarantine().into()) } else { Ok(attempts) }
        });
        assert_eq!(outcome.expect("the third attempt"), 3);
        let mut attempts = 0;
        let outcome: Result<(), ForwardError> = without_liars(|| {
            attempts += 1;
            Err(BlocksError::Remote(RemoteError::Stopped).into())
        });
        assert!(outcome.is_err() && attempts == 1);
    }
}
