//! Reading records.

mod config;
mod fetcher;

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::Stream;
use quipu_model::{
    Offset, RecordBatch, TimestampMs,
    batch::{Record as StoredRecord, RecordHeader},
};
use tokio::{sync::mpsc, task::JoinHandle};

pub use self::config::{Assignment, ConsumerConfig, End, OutOfRange, Start};
use self::fetcher::{Channels, Fetched, Fetcher};
use crate::{OffsetAt, Result, admin::list_offset, cluster::Cluster, error::Error};

/// Records of a batch for which memory is set aside before they were seen.
const MOST_PREALLOCATED: usize = 4096;

/// A record that was read. Key, value and headers are slices of the message that brought them, without a copy: one that
/// is kept for long keeps its whole message in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerRecord {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The record's place in the partition.
    pub offset: Offset,
    /// When it was sent, or what its producer said.
    pub timestamp: TimestampMs,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// The headers, in order.
    pub headers: Vec<RecordHeader>,
}

/// The records of one batch, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordChunk {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// At least one record.
    pub records: Vec<StoredRecord>,
}

/// Reads assigned partitions: as a [`Stream`] of records, or batch by batch with [`Consumer::next_batch`]. Both end once
/// every partition has reached its end, and never where one has none.
///
/// Lost connections and restarted brokers are no errors: reading goes on where it was. An error in the stream concerns one
/// partition, which is not read any further until [`Consumer::seek`]; the others go on.
#[derive(Debug)]
pub struct Consumer {
    cluster: Arc<Cluster>,
    channels: Arc<Channels>,
    config: ConsumerConfig,
    partitions: Vec<Assigned>,
    /// The partition to look at first: each gets its turn.
    turn: usize,
    /// What the stream of single records has yet to hand out, and its partition.
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    /// Its place among the assigned partitions.
    at: usize,
    records: std::vec::IntoIter<StoredRecord>,
}

#[derive(Debug)]
struct Assigned {
    topic: Arc<str>,
    partition: u32,
    /// The offset of the next record to hand out.
    position: Offset,
    end: Option<Offset>,
    paused: bool,
    /// Nothing is handed out; what was received is kept.
    held: bool,
    /// Absent while paused and once the end is reached.
    source: Option<Source>,
    batches: VecDeque<RecordBatch>,
}

#[derive(Debug)]
struct Source {
    messages: mpsc::Receiver<Result<Fetched>>,
    task: JoinHandle<()>,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Consumer {
    pub(crate) fn new(cluster: Arc<Cluster>, config: ConsumerConfig) -> Self {
        Self {
            cluster,
            channels: Arc::default(),
            config,
            partitions: Vec::new(),
            turn: 0,
            current: None,
        }
    }

    /// Replaces the partitions to read. Starts and ends that are not offsets are looked up now.
    ///
    /// # Errors
    /// Where the configuration is out of bounds, a partition does not exist or stands twice, or its leader does not
    /// answer; the earlier assignment stays then.
    pub async fn assign(
        &mut self,
        assignments: impl IntoIterator<Item = Assignment>,
    ) -> Result<()> {
        self.config.check()?;
        let mut partitions: Vec<Assigned> = Vec::new();
        for assignment in assignments {
            let Assignment {
                topic, partition, ..
            } = &assignment;
            let same = |p: &Assigned| *p.topic == **topic && p.partition == *partition;
            if partitions.iter().any(same) {
                return Err(Error::invalid(format_args!(
                    "{topic}/{partition} is assigned twice"
                )));
            }
            let position = self.start(topic, *partition, assignment.start).await?;
            partitions.push(Assigned {
                position,
                end: self.end(&assignment).await?,
                partition: *partition,
                topic: assignment.topic.into(),
                paused: false,
                held: false,
                source: None,
                batches: VecDeque::new(),
            });
        }
        for partition in &mut partitions {
            partition.source = self.source(partition);
        }
        self.partitions = partitions;
        self.turn = 0;
        self.current = None;
        Ok(())
    }

    /// Stops reading a partition: nothing of it is handed out, received or kept in memory until [`Consumer::resume`].
    ///
    /// # Errors
    /// Where the partition is not assigned.
    pub fn pause(&mut self, topic: &str, partition: u32) -> Result<()> {
        let assigned = self.assigned(topic, partition)?;
        assigned.paused = true;
        assigned.source = None;
        assigned.batches.clear();
        self.drop_current(topic, partition);
        Ok(())
    }

    /// Reads a paused partition again, from where it was.
    ///
    /// # Errors
    /// Where the partition is not assigned.
    pub fn resume(&mut self, topic: &str, partition: u32) -> Result<()> {
        let assigned = self.assigned(topic, partition)?;
        if !std::mem::replace(&mut assigned.paused, false) {
            return Ok(());
        }
        self.restart(topic, partition);
        Ok(())
    }

    /// Goes on reading elsewhere in a partition. An end that was set stays.
    ///
    /// # Errors
    /// Where the partition is not assigned, or its leader does not answer.
    pub async fn seek(&mut self, topic: &str, partition: u32, start: Start) -> Result<()> {
        self.assigned(topic, partition)?;
        let position = self.start(topic, partition, start).await?;
        self.drop_current(topic, partition);
        let assigned = self.assigned(topic, partition)?;
        assigned.position = position;
        assigned.source = None;
        assigned.batches.clear();
        if assigned.paused {
            return Ok(());
        }
        self.restart(topic, partition);
        Ok(())
    }

    /// The offset of the next record that this consumer hands out; `None` where the partition is not assigned.
    pub fn position(&self, topic: &str, partition: u32) -> Option<Offset> {
        let at = self.place(topic, partition)?;
        Some(self.partitions[at].position)
    }

    /// The records of the next batch, whichever partition has one. `None` once every partition has reached its end.
    ///
    /// Cancel safe. Of a batch that the [`Stream`] has begun to hand out singly, the rest comes first.
    pub async fn next_batch(&mut self) -> Option<Result<RecordChunk>> {
        let current = match self.current.take() {
            Some(current) if current.records.len() > 0 => current,
            _ => match poll_fn(|cx| self.poll_batch(cx)).await? {
                Ok(current) => current,
                Err(error) => return Some(Err(error)),
            },
        };
        let assigned = &mut self.partitions[current.at];
        let records: Vec<StoredRecord> = current.records.collect();
        if let Some(last) = records.last() {
            assigned.position = last.offset.plus(1);
        }
        Some(Ok(RecordChunk {
            topic: Arc::clone(&assigned.topic),
            partition: assigned.partition,
            records,
        }))
    }

    /// The partitions that are assigned.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = (Arc<str>, u32)> {
        let partitions = self.partitions.iter();
        partitions.map(|assigned| (Arc::clone(&assigned.topic), assigned.partition))
    }

    /// Hands out nothing of a partition, if it is assigned, until this is taken back. What was received already is kept, unlike where
    /// it is [paused](Self::pause).
    pub(crate) fn hold(&mut self, topic: &str, partition: u32, held: bool) {
        if let Ok(assigned) = self.assigned(topic, partition) {
            assigned.held = held;
        }
    }

    pub(crate) fn has_partitions(&self) -> bool {
        !self.partitions.is_empty()
    }

    /// Reads one more partition, from `position` on.
    pub(crate) fn add(&mut self, topic: Arc<str>, partition: u32, position: Offset) {
        self.remove(&topic, partition);
        let mut assigned = Assigned {
            topic,
            partition,
            position,
            end: None,
            paused: false,
            held: false,
            source: None,
            batches: VecDeque::new(),
        };
        assigned.source = self.source(&assigned);
        self.partitions.push(assigned);
    }

    /// Reads a partition no more, if it did; nothing of it is handed out any more.
    pub(crate) fn remove(&mut self, topic: &str, partition: u32) {
        let Some(at) = self.place(topic, partition) else {
            return;
        };
        self.drop_current(topic, partition);
        self.partitions.remove(at);
        if let Some(current) = &mut self.current
            && current.at > at
        {
            current.at -= 1;
        }
    }

    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Current>>> {
        let count = self.partitions.len();
        let mut pending = false;
        for step in 0..count {
            let at = (self.turn + step) % count;
            match self.partitions[at].poll_chunk(cx) {
                Poll::Ready(Some(records)) => {
                    // A partition keeps its turn until its message is through: its bytes are in the cache.
                    self.turn = match self.partitions[at].batches.is_empty() {
                        true => at + 1,
                        false => at,
                    };
                    let records = records.map(|records| Current {
                        at,
                        records: records.into_iter(),
                    });
                    return Poll::Ready(Some(records));
                }
                Poll::Ready(None) => {}
                Poll::Pending => pending = true,
            }
        }
        match pending {
            true => Poll::Pending,
            false => Poll::Ready(None),
        }
    }

    fn assigned(&mut self, topic: &str, partition: u32) -> Result<&mut Assigned> {
        match self.place(topic, partition) {
            Some(at) => Ok(&mut self.partitions[at]),
            None => Err(Error::invalid(format_args!(
                "{topic}/{partition} is not assigned to this consumer: assign it first"
            ))),
        }
    }

    fn place(&self, topic: &str, partition: u32) -> Option<usize> {
        let mut partitions = self.partitions.iter();
        partitions.position(|p| *p.topic == *topic && p.partition == partition)
    }

    fn drop_current(&mut self, topic: &str, partition: u32) {
        let current = self.current.as_ref().map(|current| current.at);
        if current.is_some() && current == self.place(topic, partition) {
            self.current = None;
        }
    }

    fn restart(&mut self, topic: &str, partition: u32) {
        if let Some(at) = self.place(topic, partition) {
            self.partitions[at].source = self.source(&self.partitions[at]);
        }
    }

    /// A task that reads the partition from its position on; none where there is nothing to read.
    fn source(&self, assigned: &Assigned) -> Option<Source> {
        if assigned.end.is_some_and(|end| assigned.position >= end) {
            return None;
        }
        let fetcher = Fetcher {
            cluster: Arc::clone(&self.cluster),
            channels: Arc::clone(&self.channels),
            config: self.config.clone(),
            topic: Arc::clone(&assigned.topic),
            partition: assigned.partition,
            position: assigned.position,
            end: assigned.end,
        };
        let (sender, messages) = mpsc::channel(self.config.prefetch);
        let task = tokio::spawn(fetcher.run(sender));
        Some(Source { messages, task })
    }

    async fn look_up(&self, topic: &str, partition: u32, at: OffsetAt) -> Result<Offset> {
        let found = list_offset(&self.cluster, topic, partition, at).await?;
        Ok(found.offset)
    }

    async fn start(&self, topic: &str, partition: u32, start: Start) -> Result<Offset> {
        match start {
            Start::Offset(offset) => Ok(offset),
            Start::Earliest => self.look_up(topic, partition, OffsetAt::Earliest).await,
            Start::Latest => self.look_up(topic, partition, OffsetAt::Latest).await,
            Start::Timestamp(timestamp) => {
                let at = OffsetAt::Timestamp(timestamp);
                self.look_up(topic, partition, at).await
            }
            Start::FromEnd(records) => {
                let earliest = self.look_up(topic, partition, OffsetAt::Earliest).await?;
                let latest = self.look_up(topic, partition, OffsetAt::Latest).await?;
                let wanted = Offset::new(latest.get().saturating_sub(records));
                Ok(wanted.max(earliest))
            }
        }
    }

    async fn end(&self, assignment: &Assignment) -> Result<Option<Offset>> {
        let at = match assignment.end {
            End::Never => return Ok(None),
            End::Offset(offset) => return Ok(Some(offset)),
            End::Latest => OffsetAt::Latest,
            End::Timestamp(timestamp) => OffsetAt::Timestamp(timestamp),
        };
        let offset = self.look_up(&assignment.topic, assignment.partition, at);
        offset.await.map(Some)
    }
}

impl Assigned {
    /// The records of the next batch; `Ready(None)` at the end, `Pending` for ever while paused or held.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<StoredRecord>>>> {
        if self.paused || self.held {
            return Poll::Pending;
        }
        loop {
            while let Some(batch) = self.batches.pop_front() {
                match self.records(&batch) {
                    // Compaction took them away, or they lie before the position.
                    Ok(records) if records.is_empty() => {
                        let next = batch.header().next_offset();
                        let next = self.end.map_or(next, |end| next.min(end));
                        self.position = self.position.max(next);
                    }
                    Ok(records) => return Poll::Ready(Some(Ok(records))),
                    Err(error) => {
                        self.batches.clear();
                        self.source = None;
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
            let Some(source) = &mut self.source else {
                return Poll::Ready(None);
            };
            match std::task::ready!(source.messages.poll_recv(cx)) {
                Some(Ok(Fetched::Batches(batches))) => self.batches.extend(batches),
                Some(Ok(Fetched::Moved(position))) => self.position = position,
                Some(Err(error)) => {
                    self.source = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.source = None,
            }
        }
    }

    /// A batch's records from the position on and before the end.
    fn records(&self, batch: &RecordBatch) -> Result<Vec<StoredRecord>> {
        if batch.header().is_control() {
            return Ok(Vec::new());
        }
        let bad = |error| {
            Error::malformed(format_args!(
                "{}/{}, batch at offset {}: {error}",
                self.topic,
                self.partition,
                batch.header().base_offset
            ))
        };
        // Not on the word of the count alone: it may lie in a compressed batch.
        let count = batch.header().record_count as usize;
        let mut records = Vec::with_capacity(count.min(MOST_PREALLOCATED));
        for record in batch.records().map_err(bad)? {
            let record = record.map_err(bad)?;
            if self.end.is_some_and(|end| record.offset >= end) {
                break;
            }
            if record.offset >= self.position {
                records.push(record);
            }
        }
        Ok(records)
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumerRecord>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(current) = &mut self.current {
                let at = current.at;
                if let Some(record) = current.records.next() {
                    let assigned = &mut self.partitions[at];
                    assigned.position = record.offset.plus(1);
                    let record = ConsumerRecord {
                        topic: Arc::clone(&assigned.topic),
                        partition: assigned.partition,
                        offset: record.offset,
                        timestamp: record.timestamp,
                        key: record.key,
                        value: record.value,
                        headers: record.headers,
                    };
                    return Poll::Ready(Some(Ok(record)));
                }
                self.current = None;
            }
            match std::task::ready!(self.poll_batch(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(current)) => self.current = Some(current),
            }
        }
    }
}
