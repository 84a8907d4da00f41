//! Giving batches to other replicas no faster than so many bytes a second, so that a rebuild leaves room for producers.

use std::{num::NonZeroU64, time::Duration};

use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep_until},
};

/// Whose turn it is to give bytes away, one at a time in the order of asking.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: NonZeroU64,
    /// When what was given so far is paid for.
    paid: Mutex<Instant>,
}

/// The right to give bytes away now.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    bytes_per_second: NonZeroU64,
    paid: MutexGuard<'a, Instant>,
}

impl Throttle {
    pub(crate) fn new(bytes_per_second: NonZeroU64) -> Self {
        Self {
            bytes_per_second,
            paid: Mutex::new(Instant::now()),
        }
    }

    /// Waits for a turn. What is given in it is paid for before the next: who asks for much need not wait longer than others
    /// did before.
    pub(super) async fn turn(&self) -> Turn<'_> {
        let paid = self.paid.lock().await;
        sleep_until(*paid).await;
        Turn {
            bytes_per_second: self.bytes_per_second,
            paid,
        }
    }
}

impl Turn<'_> {
    /// Ends the turn, in which so many bytes were given.
    pub(super) fn spend(mut self, bytes: usize) {
        let seconds = bytes as f64 / self.bytes_per_second.get() as f64;
        *self.paid = Instant::now() + Duration::from_secs_f64(seconds);
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU64, time::Duration};

    use tokio::time::Instant;

    use super::Throttle;

    #[tokio::test(start_paused = true)]
    async fn bytes_leave_at_the_rate_that_was_set_however_many_ask() {
        let throttle = Throttle::new(NonZeroU64::new(1000).unwrap());
        let began = Instant::now();
        let give = async || throttle.turn().await.spend(500);
        tokio::join!(give(), give(), give(), give());
        assert_eq!(began.elapsed(), Duration::from_millis(1500));
        // Who gives up while it waits takes nothing from the others.
        let hasty = tokio::time::timeout(Duration::from_millis(1), throttle.turn()).await;
        assert!(hasty.is_err());
        drop(throttle.turn().await);
        assert_eq!(began.elapsed(), Duration::from_secs(2));
    }
}
