//! Bytes that one connection may take.

use std::any::Any;
use std::time::Duration;

use crate::activity::Activity;

/// Reservation of bytes, which ends when it is dropped.
pub type Reserved = Box<dyn Any>;

/// Bytes that one connection may take for messages that arrive, and for answers that wait to be written.
pub trait Quota {
    /// Reserves bytes of a message that arrives; `None` if they exceed the quota.
    fn reserve(&self, bytes: u64) -> Option<Reserved>;

    /// Reserves bytes of an answer; `None` if they exceed the quota.
    fn reserve_answer(&self, bytes: u64) -> Option<Reserved>;

    /// True while calls are computed or answers are read, which frees bytes in the end.
    fn will_free(&self) -> bool;
}

/// Bytes of the first step of a reservation. Each further step is as large as all before it.
const FIRST_STEP: usize = 64 << 10;
/// Interval and number of trials to reserve bytes of a message that arrives, 10 min in all. Meanwhile, its sender waits.
const TRIAL_INTERVAL: Duration = Duration::from_millis(50);
const MAX_TRIALS: u32 = 12_000;
/// Consecutive trials while nothing will free bytes, 5 s.
const MAX_IDLE_TRIALS: u32 = 100;

/// Reservations of data that arrives. They grow in steps with the data, so that a stated length alone reserves little.
pub(crate) struct Reservations<'a> {
    quota: Option<&'a dyn Quota>,
    activity: &'a Activity,
    bytes: usize,
    reserved: Vec<Reserved>,
}

impl<'a> Reservations<'a> {
    pub(crate) fn new(quota: Option<&'a dyn Quota>, activity: &'a Activity) -> Self {
        Self { quota, activity, bytes: 0, reserved: Vec::new() }
    }

    /// Returns the number of bytes that may be read when `len` bytes of `total` have arrived.
    pub(crate) async fn readable(&mut self, len: usize, total: usize) -> Result<usize, capnp::Error> {
        let Some(quota) = self.quota else { return Ok(total - len) };
        if len >= self.bytes {
            let step = (total - len).min(len.max(FIRST_STEP));
            self.reserved.push(reserve_when_free(quota, step, self.activity).await?);
            self.bytes = len + step;
        }
        Ok(self.bytes - len)
    }

    pub(crate) fn into_reserved(self) -> Vec<Reserved> {
        self.reserved
    }
}

/// Reserves bytes of a message that arrives, or returns the error that ends the connection. It waits for the calls that hold
/// the memory, of which a client may send more at once than fit.
pub(crate) async fn reserve_when_free(
    quota: &dyn Quota,
    bytes: usize,
    activity: &Activity,
) -> Result<Reserved, capnp::Error> {
    if let Some(reserved) = quota.reserve(bytes as u64) {
        return Ok(reserved);
    }
    let _wait = activity.begin_wait();
    let mut idle_trials = 0;
    for _ in 0..MAX_TRIALS {
        tokio::time::sleep(TRIAL_INTERVAL).await;
        if let Some(reserved) = quota.reserve(bytes as u64) {
            return Ok(reserved);
        }
        idle_trials = if quota.will_free() { 0 } else { idle_trials + 1 };
        if idle_trials >= MAX_IDLE_TRIALS {
            break;
        }
    }
    Err(exceeded(activity))
}

/// Reserves bytes of an answer, or returns the error that ends the connection.
pub(crate) fn reserve_answer(quota: &dyn Quota, bytes: usize, activity: &Activity) -> Result<Reserved, capnp::Error> {
    quota.reserve_answer(bytes as u64).ok_or_else(|| exceeded(activity))
}

fn exceeded(activity: &Activity) -> capnp::Error {
    activity.overload("the messages of this connection exceed its memory on the server".to_owned())
}

/// Quota of a fixed number of bytes, for tests.
#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[derive(Debug, Default)]
    pub(crate) struct FixedQuota {
        pub(crate) used: Rc<Cell<u64>>,
        pub(crate) limit: u64,
        pub(crate) is_computing: Cell<bool>,
    }

    struct Guard(Rc<Cell<u64>>, u64);

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.set(self.0.get() - self.1);
        }
    }

    impl Quota for FixedQuota {
        fn reserve(&self, bytes: u64) -> Option<Reserved> {
            let used = self.used.get() + bytes;
            (used <= self.limit).then(|| {
                self.used.set(used);
                Box::new(Guard(Rc::clone(&self.used), bytes)) as Reserved
            })
        }

        fn reserve_answer(&self, bytes: u64) -> Option<Reserved> {
            self.reserve(bytes)
        }

        fn will_free(&self) -> bool {
            self.is_computing.get()
        }
    }

    #[tokio::test]
    async fn reservations_grow_with_the_data_and_never_exceed_it() {
        let quota = FixedQuota { limit: u64::MAX, ..FixedQuota::default() };
        let total = 5 * FIRST_STEP + 3;
        let activity = Activity::default();
        let mut reservations = Reservations::new(Some(&quota), &activity);
        assert_eq!(reservations.readable(0, total).await.expect("room"), FIRST_STEP);
        assert_eq!(reservations.readable(10, total).await.expect("room"), FIRST_STEP - 10);
        assert_eq!(reservations.readable(FIRST_STEP, total).await.expect("room"), FIRST_STEP);
        assert_eq!(reservations.readable(2 * FIRST_STEP, total).await.expect("room"), 2 * FIRST_STEP);
        assert_eq!(reservations.readable(4 * FIRST_STEP, total).await.expect("room"), FIRST_STEP + 3);
        assert_eq!(quota.used.get(), total as u64);
        drop(reservations.into_reserved());
        assert_eq!(quota.used.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn message_waits_for_bytes_that_others_free_and_not_for_ever() {
        let quota = FixedQuota { limit: 100, ..FixedQuota::default() };
        let (other, activity) = (quota.reserve(60).expect("room"), Activity::default());
        let free = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(other);
        };
        let (reserved, ()) = tokio::join!(reserve_when_free(&quota, 50, &activity), free);
        assert!(reserved.is_ok() && !activity.is_overloaded());
        let error = reserve_when_free(&quota, 60, &activity).await.err().map(|error| error.kind);
        assert_eq!((error, activity.is_overloaded()), (Some(capnp::ErrorKind::Overloaded), true));
    }

    #[tokio::test(start_paused = true)]
    async fn message_waits_for_calls_as_long_as_they_are_computed() {
        let quota = FixedQuota { limit: 100, is_computing: Cell::new(true), ..FixedQuota::default() };
        let (call, activity) = (quota.reserve(60).expect("room"), Activity::default());
        activity.begin_message();
        let computing = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            assert!(!activity.is_receiving(), "its sender is not slow");
            drop(call);
        };
        let (reserved, ()) = tokio::join!(reserve_when_free(&quota, 50, &activity), computing);
        assert!(reserved.is_ok() && activity.is_receiving() && !activity.is_overloaded());
    }
}
