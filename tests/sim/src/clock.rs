//! A node's clock: the runtime's paused one, and a time of day that can be set wrong.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use quipu_model::TimestampMs;
use quipu_storage::io::Clock;
use tokio::time::Instant;

pub(crate) const EPOCH_MS: i64 = 1_700_000_000_000;

#[derive(Debug)]
pub(crate) struct NodeClock {
    start: Instant,
    /// How far the time of day is off, in milliseconds.
    skew_ms: AtomicI64,
}

impl NodeClock {
    pub(crate) fn new(start: Instant) -> Self {
        Self {
            start,
            skew_ms: AtomicI64::new(0),
        }
    }

    pub(crate) fn step_to(&self, skew_ms: i64) {
        self.skew_ms.store(skew_ms, Ordering::Relaxed);
    }
}

impl Clock for NodeClock {
    fn now(&self) -> TimestampMs {
        let elapsed = self.start.elapsed().as_millis() as i64;
        TimestampMs::new(EPOCH_MS + elapsed + self.skew_ms.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}
