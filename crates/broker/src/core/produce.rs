//! Taking in record batches.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quipu_model::{
    Offset, PartitionId, PartitionKey, RecordBatch, TimestampMs, TimestampType, TopicConfig,
};
use quipu_replication::Acks;
use tokio::time::Instant;

use super::{Core, Found};
use crate::{
    error::{BrokerError, Reason},
    memory::MemoryPermit,
    metadata::internal_topic,
};

/// What a producer asks for.
#[derive(Debug)]
pub struct Produce<'a> {
    pub topic: &'a str,
    pub partition: PartitionId,
    pub acks: Acks,
    /// How long to wait for the acknowledgement; `None`: [`Produce::DEFAULT_TIMEOUT`].
    pub timeout: Option<Duration>,
    pub payload: Payload,
}

/// The records.
#[derive(Debug)]
pub enum Payload {
    /// Bytes that should be one batch, to be checked.
    Encoded(Bytes),
    /// The same, where the caller has taken the memory for it already and keeps it until the append has ended.
    Held(Bytes),
    /// A batch that this broker built.
    Built(RecordBatch),
}

impl Produce<'_> {
    const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
    const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);
}

/// A request that was found to be right and holds its memory: all that is left is to append.
#[derive(Debug)]
pub struct Prepared {
    core: Arc<Core>,
    found: Found,
    batch: RecordBatch,
    acks: Acks,
    timeout: Duration,
    started: Instant,
    _memory: Option<MemoryPermit>,
}

/// Where a batch went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// `None` with [`Acks::None`].
    pub base_offset: Option<Offset>,
    /// Whether it had been appended before.
    pub duplicate: bool,
    /// The first offset that the partition still keeps.
    pub log_start: Offset,
}

impl Core {
    /// Checks a produce request: topic, partition, size, CRC and every record.
    ///
    /// # Errors
    /// Where any of them is refused, or the node has no memory for it now. Nothing was done then.
    pub(crate) fn prepare(self: &Arc<Self>, request: Produce<'_>) -> Result<Prepared, BrokerError> {
        let started = Instant::now();
        let found = self.find(request.topic, request.partition)?;
        let topic = &found.topic.topic;
        if topic.name.is_internal() {
            return Err(internal_topic(&topic.name));
        }
        let size = request.payload.len();
        let most = topic.config.max_message_bytes;
        if size > most as usize {
            return Err(BrokerError::new(
                Reason::BatchTooLarge,
                format!(
                    "the batch has {size} bytes, {} takes {most}: send smaller batches, or raise max.message.bytes",
                    topic.name
                ),
            ));
        }
        let memory = match &request.payload {
            Payload::Held(_) => None,
            _ => Some(self.produce_memory.take(size)?),
        };
        let timeout = request.timeout.unwrap_or(Produce::DEFAULT_TIMEOUT);
        Ok(Prepared {
            core: Arc::clone(self),
            batch: request.payload.check(&topic.config, self.clock.now())?,
            found,
            acks: request.acks,
            timeout: timeout.min(Produce::LONGEST_TIMEOUT),
            started,
            _memory: memory,
        })
    }
}

impl Payload {
    /// Bytes of the batch.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Encoded(bytes) | Self::Held(bytes) => bytes.len(),
            Self::Built(batch) => batch.bytes().len(),
        }
    }

    fn check(self, config: &TopicConfig, now: TimestampMs) -> Result<RecordBatch, BrokerError> {
        let (batch, is_sound) = match self {
            Self::Encoded(bytes) | Self::Held(bytes) => (RecordBatch::from_bytes(bytes)?, false),
            Self::Built(batch) => (batch, true),
        };
        if config.cleanup.compact {
            batch.validate_keyed_records()?;
        } else if !is_sound {
            batch.validate_records()?;
        }
        if config.timestamp_type == TimestampType::CreateTime {
            check_timestamps(&batch, config, now)?;
        }
        Ok(batch)
    }
}

/// Refuses what comes from a clock that is wrong by more than the topic lets pass.
fn check_timestamps(
    batch: &RecordBatch,
    config: &TopicConfig,
    now: TimestampMs,
) -> Result<(), BrokerError> {
    let (before, after) = (
        config.timestamp_before_max_ms,
        config.timestamp_after_max_ms,
    );
    // Nobody bounds them, as a rule: then the records need not be looked at again.
    if (before, after) == (TopicConfig::FOREVER_MS, TopicConfig::FOREVER_MS) {
        return Ok(());
    }
    let earliest = now.get().saturating_sub_unsigned(before);
    let latest = now.get().saturating_add_unsigned(after);
    for record in batch.records()? {
        let record = record?;
        let timestamp = record.timestamp.get();
        if !(earliest..=latest).contains(&timestamp) {
            return Err(BrokerError::new(
                Reason::InvalidBatch,
                format!(
                    "a record has timestamp {timestamp}, the topic takes {earliest} to {latest} now: set the producer's clock right, or change message.timestamp.before.max.ms or message.timestamp.after.max.ms"
                ),
            ));
        }
    }
    Ok(())
}

impl Prepared {
    /// The partition that the batch goes to.
    pub(crate) fn key(&self) -> PartitionKey {
        self.found.running.partition.key()
    }

    /// The batch's length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.batch.bytes().len()
    }

    /// Appends. The first poll takes the batch's place in the partition.
    ///
    /// # Errors
    /// Where it is refused, or nobody knows what became of it: [`BrokerError::outcome`] says which.
    pub async fn append(self) -> Result<Appended, BrokerError> {
        let metrics = &self.core.metrics;
        let bytes = self.batch.bytes().len() as u64;
        let records = u64::from(self.batch.header().record_count);
        let partition = &self.found.running.partition;
        let config = &self.found.topic.topic.config;
        let batch = match config.timestamp_type {
            TimestampType::CreateTime => self.batch,
            TimestampType::LogAppendTime => self.batch.with_append_time(self.core.clock.now()),
        };
        let result = partition.append(batch, self.acks, self.timeout).await;
        match result {
            Ok(appended) => {
                metrics.appended(self.acks, self.started.elapsed(), bytes, records);
                Ok(Appended {
                    base_offset: appended.base_offset,
                    duplicate: appended.duplicate,
                    log_start: partition.start_offset(),
                })
            }
            Err(error) => {
                let error = self.core.append_error(error);
                metrics.append_failed(error.reason);
                Err(error)
            }
        }
    }
}
