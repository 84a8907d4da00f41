//! A clock that moves when it is told to.

use std::time::Duration;

use parking_lot::Mutex;
use quipu_model::TimestampMs;

use super::Clock;

/// A clock for tests and simulations: time stands still until [`ManualClock::advance`].
#[derive(Debug)]
pub struct ManualClock {
    start: TimestampMs,
    elapsed: Mutex<Duration>,
}

impl ManualClock {
    /// A clock that shows `start`.
    pub fn new(start: TimestampMs) -> Self {
        Self {
            start,
            elapsed: Mutex::default(),
        }
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        *self.elapsed.lock() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> TimestampMs {
        let elapsed = i64::try_from(self.elapsed.lock().as_millis()).unwrap_or(i64::MAX);
        TimestampMs::new(self.start.get().saturating_add(elapsed))
    }

    fn monotonic(&self) -> Duration {
        *self.elapsed.lock()
    }
}
