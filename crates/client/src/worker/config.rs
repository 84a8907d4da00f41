//! How a worker behaves.

use std::time::Duration;

use super::BreakerConfig;
use crate::{GroupConfig, ProducerConfig, Result, error::Error};

/// Which records are worked on one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Those of one key, in the order of their partition. Records without a key are in no order: whoever sends them leaves open in
    /// which partition they go.
    #[default]
    Key,
    /// All of a partition.
    Partition,
}

/// How a worker behaves.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// The group, and the topics to read; their names must be given, not a pattern. It stores offsets itself: `auto_commit` is of no
    /// account.
    pub group: GroupConfig,
    /// Which records are worked on one after the other. [`Order::Key`].
    pub order: Order,
    /// Records that are worked on at a time, at least 1. 64.
    pub concurrency: usize,
    /// How long a record waits after each failure, 1 ms to 24 h each and at most 16 of them; one that fails once more after the last is
    /// a dead letter. 1 s, 5 s, 25 s, 125 s: five attempts in all.
    pub retry_delays: Vec<Duration>,
    /// How long one attempt may take, less than the group's rebalance timeout; then it has failed. 1 min.
    pub attempt_timeout: Duration,
    /// When to stop for a while. After 20 failures in a row.
    pub breaker: Option<BreakerConfig>,
    /// How often is stored how far records were processed. 500 ms.
    pub commit_interval: Duration,
    /// Records of a partition that are read ahead of the first one that is not done, at least 1. 2000.
    pub window: usize,
    /// The bytes of keys and values that are read ahead, over all partitions; each partition has its share, and may go over it by one
    /// batch. 64 MiB.
    pub buffer_bytes: usize,
    /// How long closing waits for what is being worked on. 30 s.
    pub drain_timeout: Duration,
    /// How records that failed are sent.
    pub producer: ProducerConfig,
}

impl WorkerConfig {
    /// The longest that a record may wait for its next attempt.
    pub const LONGEST_DELAY: Duration = Duration::from_secs(24 * 60 * 60);
    /// The most attempts after the first.
    pub const MOST_RETRIES: usize = 16;

    /// Defaults, for a group and a topic.
    pub fn new(group: impl Into<String>, topic: impl Into<String>) -> Self {
        Self {
            group: GroupConfig::new(group, topic),
            order: Order::default(),
            concurrency: 64,
            retry_delays: exponential_delays(Duration::from_secs(1), 5, 4),
            attempt_timeout: Duration::from_secs(60),
            breaker: Some(BreakerConfig::default()),
            commit_interval: Duration::from_millis(500),
            window: 2000,
            buffer_bytes: 64 << 20,
            drain_timeout: Duration::from_secs(30),
            producer: ProducerConfig::default(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let refused = |message: &str| Err(Error::invalid(message));
        if self.group.pattern.is_some() {
            return refused(
                "a worker reads topics by name: a pattern would match its own retry topics",
            );
        }
        if self.concurrency == 0 || self.window == 0 {
            return refused("concurrency and window must be at least 1");
        }
        if self.commit_interval.is_zero() || self.attempt_timeout.is_zero() {
            return refused("commit_interval and attempt_timeout must be longer than nothing");
        }
        if self.attempt_timeout >= self.group.rebalance_timeout {
            return refused(
                "attempt_timeout is not less than the group's rebalance_timeout: partitions could not be given away in time",
            );
        }
        let waits = &self.retry_delays;
        let bounds = Duration::from_millis(1)..=Self::LONGEST_DELAY;
        if waits.len() > Self::MOST_RETRIES || !waits.iter().all(|wait| bounds.contains(wait)) {
            return refused("retry_delays must be at most 16 of 1 ms to 24 h");
        }
        if self.breaker.is_some_and(|breaker| breaker.failures == 0) {
            return refused("a breaker's failures must be at least 1");
        }
        Ok(())
    }
}

/// Delays that grow by a factor: `first`, `first × factor` and so on, `retries` of them, none longer than
/// [`WorkerConfig::LONGEST_DELAY`].
pub fn exponential_delays(first: Duration, factor: u32, retries: usize) -> Vec<Duration> {
    let longer = |delay: &Duration| {
        let longer = delay.saturating_mul(factor);
        Some(longer.min(WorkerConfig::LONGEST_DELAY))
    };
    std::iter::successors(Some(first), longer)
        .take(retries)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{BreakerConfig, WorkerConfig, exponential_delays};

    #[test]
    fn delays_grow_to_their_bound() {
        let seconds =
            |delays: Vec<Duration>| -> Vec<u64> { delays.iter().map(Duration::as_secs).collect() };
        let second = Duration::from_secs(1);
        assert_eq!(seconds(exponential_delays(second, 5, 4)), [1, 5, 25, 125]);
        assert_eq!(
            seconds(exponential_delays(second, 60, 4)),
            [1, 60, 3600, 86_400]
        );
        assert!(exponential_delays(second, 2, 0).is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = || WorkerConfig::new("g", "t");
        assert!(good().check().is_ok());
        let wrong: [fn(&mut WorkerConfig); 9] = [
            |config| config.concurrency = 0,
            |config| config.window = 0,
            |config| config.commit_interval = Duration::ZERO,
            |config| config.attempt_timeout = Duration::ZERO,
            |config| config.attempt_timeout = config.group.rebalance_timeout,
            |config| config.retry_delays = vec![Duration::ZERO],
            |config| config.retry_delays = vec![Duration::from_secs(1); 17],
            |config| config.group.pattern = Some(".*".to_owned()),
            |config| {
                config.breaker = Some(BreakerConfig {
                    failures: 0,
                    ..BreakerConfig::default()
                });
            },
        ];
        for (number, wrong) in wrong.iter().enumerate() {
            let mut config = good();
            wrong(&mut config);
            assert!(config.check().is_err(), "{number}");
        }
    }
}
