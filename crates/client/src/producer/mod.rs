//! Sending records.

mod accumulator;
mod config;
mod connection;
mod delivery;
pub(crate) mod identity;
mod lane;
mod numbered;
mod partitioner;
mod sender;

use std::sync::Arc;

use quipu_model::{TimestampMs, TopicConfig, batch::BatchBuilder};
use tokio::sync::{mpsc, oneshot};

use self::{accumulator::Accumulator, sender::Command};
pub use self::{
    config::{Acks, ProducerConfig},
    delivery::{Delivery, RecordMetadata},
    numbered::NumberedProducer,
    partitioner::{murmur2, partition_for_key},
};
use crate::{Result, cluster::Cluster, error::Error};

/// A record to be sent. Its bytes are borrowed: [`Producer::send`] copies them once, into the batch.
///
/// ```
/// use quipu_client::Record;
///
/// let record = Record::new("orders").key(b"customer-7").value(b"2 apples");
/// # let _ = record;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: Option<u32>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [(&'a str, Option<&'a [u8]>)],
    pub(crate) timestamp: Option<TimestampMs>,
}

impl<'a> Record<'a> {
    /// A record without key and value.
    pub fn new(topic: &'a str) -> Self {
        Self {
            topic,
            partition: None,
            key: None,
            value: None,
            headers: &[],
            timestamp: None,
        }
    }

    /// Chooses the partition. Without this the key does, and without a key the producer.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Sets the key: records of one key go to one partition.
    #[must_use]
    pub fn key(mut self, key: &'a [u8]) -> Self {
        self.key = Some(key);
        self
    }

    /// Sets the value. A record without one is a tombstone where a topic is compacted.
    #[must_use]
    pub fn value(mut self, value: &'a [u8]) -> Self {
        self.value = Some(value);
        self
    }

    /// Sets the headers; their order is kept, and a key may stand twice.
    #[must_use]
    pub fn headers(mut self, headers: &'a [(&'a str, Option<&'a [u8]>)]) -> Self {
        self.headers = headers;
        self
    }

    /// Sets the timestamp, which otherwise is the time of `send`.
    #[must_use]
    pub fn timestamp(mut self, timestamp: TimestampMs) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// The most bytes that the record takes in a batch.
    pub(crate) fn size(&self) -> usize {
        BatchBuilder::record_size(self.key, self.value, self.headers)
    }
}

/// Sends records in batches, several at a time, and in order within a partition. Cheap to clone; clones share everything.
///
/// Unless told otherwise a producer is idempotent: a batch that has to be sent again is stored once, and the order of a
/// partition's records is that of their `send` calls, through lost connections and restarts of the broker. A record that is
/// not acknowledged within the delivery timeout fails with an [`Error`] whose outcome says whether it may be stored all
/// the same. Those behind it go on: where the broker shows (by refusing their sequence) that the lost one was not stored,
/// the partition continues in the next epoch of the producer's id, since in the old one's sequence there would be a gap for
/// ever. From then on the broker refuses the lost one, should it still come.
///
/// A producer that is dropped still sends what it holds, for as long as the runtime lives; [`Producer::close`] waits for it.
#[derive(Clone, Debug)]
pub struct Producer {
    accumulator: Arc<Accumulator>,
    cluster: Arc<Cluster>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Producer {
    pub(crate) async fn start(cluster: Arc<Cluster>, config: ProducerConfig) -> Result<Self> {
        config.check()?;
        let identity = if config.is_idempotent() {
            Some(identity::init(&cluster).await?)
        } else {
            None
        };
        let accumulator = Arc::new(Accumulator::new(config));
        let commands = sender::spawn(Arc::clone(&accumulator), Arc::clone(&cluster), identity);
        Ok(Self {
            accumulator,
            cluster,
            commands,
        })
    }

    /// Hands a record over. This waits for nothing but room in the buffer (and, at a topic's first record, for its number
    /// of partitions); the [`Delivery`] tells where the record was stored.
    ///
    /// # Errors
    /// Where the record is larger than the buffer or than any batch may be, there is no such topic or partition, or the
    /// producer is closed. The record is not sent then.
    pub async fn send(&self, record: Record<'_>) -> Result<Delivery> {
        let topic = match self.accumulator.topic(record.topic) {
            Some(topic) => topic,
            None => self.learn(record.topic).await?,
        };
        let bytes = record.size();
        let room = &self.accumulator.room;
        let permits = self.permits(bytes)?;
        let permit = match room.try_acquire_many(permits) {
            Ok(permit) => permit,
            Err(_) => {
                let waited = room.acquire_many(permits).await;
                waited.map_err(|_| Error::closed())?
            }
        };
        let partition = topic.choose(&record)?;
        let timestamp = record.timestamp.unwrap_or_else(now);
        let appended = partition.append(&self.accumulator.config, &record, timestamp, bytes)?;
        permit.forget();
        if appended.announce {
            // A partition that takes records is one whose sending task still runs.
            let _ = self.commands.send(Command::Wake(Arc::clone(partition)));
        }
        Ok(Delivery::new(
            appended.batch,
            partition.id,
            appended.index,
            timestamp,
        ))
    }

    /// Sends all that is there without waiting for batches to fill, and waits until every record whose `send` returned
    /// before is acknowledged or has failed.
    ///
    /// # Errors
    /// The first failure among them.
    pub async fn flush(&self) -> Result<()> {
        let (reply, batches) = oneshot::channel();
        if self.commands.send(Command::Flush(reply)).is_err() {
            return Ok(());
        }
        let mut first_failure = Ok(());
        for batch in batches.await.unwrap_or_default() {
            let settled = batch.settled().await;
            first_failure = first_failure.and(settled.map(drop));
        }
        first_failure
    }

    /// Flushes and ends. Records sent afterwards, through whichever clone, fail.
    ///
    /// # Errors
    /// As [`Producer::flush`].
    pub async fn close(&self) -> Result<()> {
        let flushed = self.flush().await;
        let (reply, closed) = oneshot::channel();
        if self.commands.send(Command::Close(reply)).is_ok() {
            // An error here too means that the task has ended.
            let _ = closed.await;
        }
        flushed
    }

    async fn learn(&self, topic: &str) -> Result<Arc<accumulator::Topic>> {
        let partitions = self.cluster.partition_count(topic).await?;
        if partitions == 0 {
            return Err(Error::malformed(format_args!(
                "the broker says that topic {topic:?} has no partitions"
            )));
        }
        self.accumulator.add_topic(topic, partitions)
    }

    /// The room that a record of so many bytes takes.
    fn permits(&self, bytes: usize) -> Result<u32> {
        let largest = TopicConfig::MAX_MESSAGE_BYTES_LIMIT as usize;
        let most = largest.min(self.accumulator.config.buffer_bytes);
        match u32::try_from(bytes) {
            Ok(permits) if bytes <= most => Ok(permits),
            _ => Err(Error::invalid(format_args!(
                "a record of {bytes} bytes is larger than the {most} that this producer can send: split it, or store it elsewhere and send where"
            ))),
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the one place where the client reads the time of day; everything that waits goes by tokio's clock"
)]
pub(crate) fn now() -> TimestampMs {
    let since_epoch = std::time::SystemTime::UNIX_EPOCH.elapsed();
    TimestampMs::new(since_epoch.map_or(0, |elapsed| elapsed.as_millis() as i64))
}
