//! How a producer behaves.

use std::time::Duration;

use quipu_model::{TopicConfig, batch::Compression};

use crate::{Result, error::Error};

/// When the broker acknowledges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// Once the record is on disk on a majority of the partition's replicas.
    #[default]
    All,
    /// Once the leader has appended it; it may still be lost.
    Leader,
    /// At once; nothing is promised, and the producer is not idempotent.
    None,
}

/// How a producer behaves. [`ProducerConfig::default`] is durable, idempotent and batches for throughput.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerConfig {
    /// When the broker acknowledges. [`Acks::All`].
    pub acks: Acks,
    /// How batches are compressed. Not at all.
    pub compression: Compression,
    /// How long a batch that is not full waits for more records. 5 ms; zero sends at once whatever is there.
    pub linger: Duration,
    /// The size at which a batch is full, in bytes before compression: 1 KiB to 32 MiB. 64 KiB. A record larger than
    /// this gets a batch of its own.
    pub batch_bytes: usize,
    /// The most bytes of records that wait for an answer, over all partitions; [`send`](crate::Producer::send) waits
    /// for room. 64 MiB.
    pub buffer_bytes: usize,
    /// Batches of one partition that may be unanswered at a time, 1 to 5. 5.
    pub max_in_flight: usize,
    /// Whether a batch that is sent again is stored once, and batches stay in order. Yes.
    pub idempotent: bool,
    /// How long a record may take from `send` to its acknowledgement, retries included; then it fails. 120 s.
    pub delivery_timeout: Duration,
    /// How long the broker may take to acknowledge one request. 30 s.
    pub request_timeout: Duration,
    /// The wait before the first retry; each further one waits twice as long. 20 ms.
    pub retry_backoff: Duration,
    /// The longest wait before a retry. 1 s.
    pub retry_backoff_max: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            compression: Compression::None,
            linger: Duration::from_millis(5),
            batch_bytes: 64 << 10,
            buffer_bytes: 64 << 20,
            max_in_flight: Self::MAX_IN_FLIGHT,
            idempotent: true,
            delivery_timeout: Duration::from_secs(120),
            request_timeout: Duration::from_secs(30),
            retry_backoff: Duration::from_millis(20),
            retry_backoff_max: Duration::from_secs(1),
        }
    }
}

impl ProducerConfig {
    /// The broker remembers this many batches of a producer: with more in flight it could not tell a repeated one.
    pub const MAX_IN_FLIGHT: usize = 5;

    pub(crate) fn check(&self) -> Result<()> {
        let largest = TopicConfig::MAX_MESSAGE_BYTES_LIMIT as usize;
        if !(1 << 10..=largest).contains(&self.batch_bytes) {
            return Err(Error::invalid(format_args!(
                "batch_bytes is {}: choose 1024 to {largest}",
                self.batch_bytes
            )));
        }
        if self.linger >= self.delivery_timeout {
            return Err(Error::invalid(format_args!(
                "linger ({:?}) is not less than delivery_timeout ({:?}): records would fail unsent",
                self.linger, self.delivery_timeout
            )));
        }
        if self.buffer_bytes < self.batch_bytes {
            return Err(Error::invalid(format_args!(
                "buffer_bytes ({}) is less than batch_bytes ({}): one batch would not fit",
                self.buffer_bytes, self.batch_bytes
            )));
        }
        if !(1..=Self::MAX_IN_FLIGHT).contains(&self.max_in_flight) {
            return Err(Error::invalid(format_args!(
                "max_in_flight is {}: choose 1 to {}",
                self.max_in_flight,
                Self::MAX_IN_FLIGHT
            )));
        }
        Ok(())
    }

    /// Without an answer, a lost batch could not be told from a stored one: no sequence would hold.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.idempotent && self.acks != Acks::None
    }
}
