//! What to read, and how.

use std::time::Duration;

use quipu_model::{Offset, TimestampMs, TopicConfig};

use crate::{Result, error::Error};

/// Where to begin in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the first record still kept.
    Earliest,
    /// After the last record committed by now.
    Latest,
    /// At this offset.
    Offset(Offset),
    /// At the first record with this timestamp or a later one; at the end where there is none.
    Timestamp(TimestampMs),
    /// So many records before the end as it is now, or at the first record still kept.
    FromEnd(u64),
}

/// Where to stop in a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// Nowhere: what is written later is read too.
    #[default]
    Never,
    /// After the last record committed by now.
    Latest,
    /// Before this offset. Where it is not reached yet, the consumer waits for it.
    Offset(Offset),
    /// Before the first record with this timestamp or a later one; at the end as it is now where there is none.
    Timestamp(TimestampMs),
}

/// A partition to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub(crate) topic: Box<str>,
    pub(crate) partition: u32,
    pub(crate) start: Start,
    pub(crate) end: End,
}

impl Assignment {
    /// A partition from `start` on, without an end.
    pub fn new(topic: &str, partition: u32, start: Start) -> Self {
        Self {
            topic: topic.into(),
            partition,
            start,
            end: End::Never,
        }
    }

    /// Stops there.
    #[must_use]
    pub fn until(mut self, end: End) -> Self {
        self.end = end;
        self
    }
}

/// What to do where the offset to read is not kept (any more, or yet).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfRange {
    /// Fail: the records that the caller counts on are gone.
    #[default]
    Fail,
    /// Go on at the first record still kept.
    Earliest,
    /// Go on after the last committed record.
    Latest,
}

/// How a consumer behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// The most bytes of batches that one message brings, 1 to 32 MiB; a larger batch comes alone. 1 MiB.
    pub fetch_bytes: u32,
    /// Messages of each partition that wait to be read, at least 1, before the consumer stops receiving. 2.
    pub prefetch: usize,
    /// What to do where the offset to read is not kept. Fail.
    pub out_of_range: OutOfRange,
    /// The wait before connecting again; each further try waits twice as long. 20 ms.
    pub retry_backoff: Duration,
    /// The longest wait before connecting again. 1 s.
    pub retry_backoff_max: Duration,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            fetch_bytes: 1 << 20,
            prefetch: 2,
            out_of_range: OutOfRange::Fail,
            retry_backoff: Duration::from_millis(20),
            retry_backoff_max: Duration::from_secs(1),
        }
    }
}

impl ConsumerConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let largest = TopicConfig::MAX_MESSAGE_BYTES_LIMIT;
        if !(1..=largest).contains(&self.fetch_bytes) {
            return Err(Error::invalid(format_args!(
                "fetch_bytes is {}: choose 1 to {largest}",
                self.fetch_bytes
            )));
        }
        if self.prefetch == 0 {
            return Err(Error::invalid("prefetch is 0: choose at least 1"));
        }
        Ok(())
    }
}
