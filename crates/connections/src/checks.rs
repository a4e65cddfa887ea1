use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::metrics::End;

/// Calls `check` at regular intervals, for the first time after one of them, until it finds a reason to end a connection.
pub async fn check_regularly(interval: Duration, mut check: impl FnMut() -> Option<End>) -> End {
    let mut ticks = tokio::time::interval(interval);
    // After a pause of this process, one check follows, so that no connection is blamed for the pause.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Some(end) = check() {
            return end;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn checks_follow_intervals_until_one_finds_a_reason() {
        let (interval, started, mut n_checks) = (Duration::from_secs(5), Instant::now(), 0);
        let check = || {
            n_checks += 1;
            (n_checks == 3).then_some(End::Slow)
        };
        assert_eq!(check_regularly(interval, check).await, End::Slow);
        assert!(n_checks == 3 && started.elapsed() >= 3 * interval);
    }
}
