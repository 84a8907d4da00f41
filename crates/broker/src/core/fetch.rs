//! Handing out committed batches.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quipu_model::{LeaderEpoch, Offset, PartitionId, batch::BatchHeader};
use quipu_replication::{Leadership, Partition};
use quipu_storage::{ReadBatches, ReadError};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{Core, Found};
use crate::{
    error::{BrokerError, Reason},
    memory::MemoryPermit,
    metadata::Traffic,
};

/// What a consumer asks for.
#[derive(Clone, Debug)]
pub struct Fetch<'a> {
    pub topic: &'a str,
    pub partition: PartitionId,
    pub offset: Offset,
    /// Most bytes of batches; a larger number is lowered to [`Fetch::MOST_BYTES`] and to what memory allows. One batch comes
    /// whatever its size.
    pub max_bytes: usize,
    /// Bytes to wait for.
    pub min_bytes: usize,
    /// How long to wait for them.
    pub max_wait: Duration,
}

impl Fetch<'_> {
    /// The most bytes in one answer.
    pub(crate) const MOST_BYTES: usize = 4 << 20;
    const LONGEST_WAIT: Duration = Duration::from_secs(300);
}

/// Committed batches.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Whole batches, lent from the log. The first may begin before the offset asked for.
    pub batches: Bytes,
    pub high_watermark: Offset,
    pub log_start: Offset,
    /// The newest epoch that this node knows of.
    pub leader_epoch: LeaderEpoch,
}

impl Core {
    /// Answers with batches from an offset on, once there are enough or the wait is over.
    ///
    /// # Errors
    /// Where the partition is not served or does not hold the offset.
    pub(crate) async fn fetch(&self, request: Fetch<'_>) -> Result<Fetched, BrokerError> {
        let started = Instant::now();
        let found = self.find(request.topic, request.partition)?;
        let partition = &found.running.partition;
        if let Some(error) = self.led_elsewhere(partition) {
            return Err(error);
        }
        let mut high_watermark = partition.high_watermark();
        let max_bytes = self.fetch_bytes(request.max_bytes);
        let min_bytes = request.min_bytes.min(max_bytes);
        let deadline = started + request.max_wait.min(Fetch::LONGEST_WAIT);
        loop {
            let end = *high_watermark.borrow_and_update();
            let batches = read_below(partition, request.offset, max_bytes, end)
                .await?
                .bytes;
            if batches.len() >= min_bytes || Instant::now() >= deadline {
                self.metrics
                    .fetched(started.elapsed(), batches.len() as u64);
                return Ok(Fetched {
                    batches,
                    high_watermark: end,
                    log_start: partition.start_offset(),
                    leader_epoch: partition.leader().1,
                });
            }
            tokio::select! {
                moved = high_watermark.changed() => if moved.is_err() {
                    return Err(self.stopped_error(request.topic));
                },
                () = tokio::time::sleep_until(deadline) => {}
                () = found.running.stopped.cancelled() => {
                    return Err(self.stopped_error(request.topic));
                }
            }
        }
    }

    /// Resolves once the high watermark is no longer at `seen`, or the partition is not served here any more.
    pub(crate) async fn moved(&self, topic: &str, partition: PartitionId, seen: Offset) {
        let Ok(found) = self.find(topic, partition) else {
            return;
        };
        let mut high_watermark = found.running.partition.high_watermark();
        let mut leadership = found.running.partition.leadership();
        // Not within `wait_for`, which holds the lock that looking takes: who tells the next leader may wait in between, and then
        // both wait for ever.
        let elsewhere = async {
            while self.led_elsewhere(&found.running.partition).is_none()
                && leadership.changed().await.is_ok()
            {}
        };
        tokio::select! {
            // Where the sender is gone, the partition is not served any more.
            _ = high_watermark.wait_for(|now| *now != seen) => {}
            () = elsewhere => {}
            () = found.running.stopped.cancelled() => {}
        }
    }

    /// Follows a partition from an offset on, up to `end` where it is given. Between messages it waits where the client is past
    /// its quota.
    ///
    /// # Errors
    /// Where the partition is not served. That the offset is out of range is told by the first message.
    pub(crate) fn fetch_stream(
        self: &Arc<Self>,
        client: Arc<str>,
        topic: &str,
        partition: PartitionId,
        offset: Offset,
        max_bytes: usize,
        end: Option<Offset>,
    ) -> Result<FetchStream, BrokerError> {
        let found = self.find(topic, partition)?;
        if let Some(error) = self.led_elsewhere(&found.running.partition) {
            return Err(error);
        }
        Ok(FetchStream {
            core: Arc::clone(self),
            client,
            high_watermark: found.running.partition.high_watermark(),
            leadership: found.running.partition.leadership(),
            found,
            next: offset,
            max_bytes: self.fetch_bytes(max_bytes),
            end,
            memory: None,
            ahead: None,
        })
    }

    /// What one answer may hold where a consumer asked for `wanted`.
    fn fetch_bytes(&self, wanted: usize) -> usize {
        wanted.min(Fetch::MOST_BYTES).min(self.fetch_memory.total())
    }
}

/// How often a leader with waiting consumers looks whether a majority still follows it.
const FOLLOWED_CHECK: Duration = Duration::from_secs(1);
/// How long a leader may take to find out whether a majority still follows it.
pub(crate) const CONFIRMATION: Duration = Duration::from_secs(1);

/// A consumer that follows a partition. It holds the memory of the message that was handed out last, and, while it catches up
/// and the budget has room, of the one after it.
#[derive(Debug)]
pub(crate) struct FetchStream {
    core: Arc<Core>,
    /// Whose quota it takes from.
    client: Arc<str>,
    found: Found,
    high_watermark: watch::Receiver<Offset>,
    leadership: watch::Receiver<Leadership>,
    next: Offset,
    max_bytes: usize,
    end: Option<Offset>,
    /// Being asked for the next message means that the last one has gone to the socket.
    memory: Option<MemoryPermit>,
    ahead: Option<ReadAhead>,
}

/// The next message of a consumer that catches up, read while the socket takes the one before: reading old bytes is work for
/// another thread, and waiting for it between any two messages left a quarter of the processors idle.
#[derive(Debug)]
struct ReadAhead {
    read: AbortOnDropHandle<Result<ReadBatches, BrokerError>>,
    /// Until the message is handed out and its size known.
    _memory: MemoryPermit,
}

impl FetchStream {
    /// The next batches, once there are some; `None` after the last offset asked for.
    ///
    /// # Errors
    /// Where the partition ends, or no longer holds the offset. The stream is over then.
    pub(crate) async fn next(&mut self) -> Result<Option<Fetched>, BrokerError> {
        self.memory = None;
        if self.end.is_some_and(|end| self.next >= end) {
            return Ok(None);
        }
        self.settle().await;
        let high_watermark = self.wait_for_batches().await?;
        let started = Instant::now();
        let (read, memory) = self.read(high_watermark).await?;
        self.next = read.next_offset;
        self.memory = Some(memory);
        self.read_ahead(high_watermark);
        let batches = match self.end {
            Some(end) if read.next_offset > end => cut_at(read.bytes, end),
            _ => read.bytes,
        };
        self.core
            .metrics
            .fetched(started.elapsed(), batches.len() as u64);
        Ok(Some(Fetched {
            batches,
            high_watermark,
            log_start: self.found.running.partition.start_offset(),
            leader_epoch: self.leadership.borrow().epoch,
        }))
    }

    /// The batches at the next offset, and the memory that they take.
    async fn read(
        &mut self,
        high_watermark: Offset,
    ) -> Result<(ReadBatches, MemoryPermit), BrokerError> {
        let read = match self.ahead.take() {
            Some(ahead) => ahead.read.await.map_err(|_| self.stopped_error())??,
            None => {
                let partition = &self.found.running.partition;
                read_below(partition, self.next, self.most(), high_watermark).await?
            }
        };
        let memory = self.core.fetch_memory.take(read.bytes.len())?;
        Ok((read, memory))
    }

    /// Waits until the client is not past its quota, or nothing is read any more.
    async fn settle(&self) {
        tokio::select! {
            () = self.core.quotas.settle(&self.client, Traffic::Fetch) => {}
            () = self.found.running.stopped.cancelled() => {}
        }
    }

    /// The most bytes of a message.
    fn most(&self) -> usize {
        let quotas = &self.core.quotas;
        self.max_bytes
            .min(quotas.most_at_once(&self.client, Traffic::Fetch))
    }

    /// Begins to read the next message, where there is one already, memory for it, and another thread to wait for.
    fn read_ahead(&mut self, high_watermark: Offset) {
        let end = self.end.unwrap_or(high_watermark).min(high_watermark);
        let partition = &self.found.running.partition;
        if self.next >= end || partition.is_warm(self.next) {
            return;
        }
        let (from, max_bytes) = (self.next, self.most());
        let Some(memory) = self.core.fetch_memory.take_spare(max_bytes) else {
            return;
        };
        let partition = partition.clone();
        let read = async move { read_below(&partition, from, max_bytes, high_watermark).await };
        self.ahead = Some(ReadAhead {
            read: AbortOnDropHandle::new(tokio::spawn(read)),
            _memory: memory,
        });
    }

    /// Waits until the high watermark is past the next offset (or the next offset is wrong: then reading says so).
    async fn wait_for_batches(&mut self) -> Result<Offset, BrokerError> {
        loop {
            let end = *self.high_watermark.borrow_and_update();
            if self.found.running.stopped.is_cancelled() {
                return Err(self.stopped_error());
            }
            if end > self.next || is_beyond(&self.found.running.partition, self.next, end) {
                return Ok(end);
            }
            tokio::select! {
                moved = self.high_watermark.changed() => if moved.is_err() {
                    return Err(self.stopped_error());
                },
                () = self.found.running.stopped.cancelled() => {}
                // Others may have a leader that this one cannot hear of, and that takes new records.
                () = tokio::time::sleep(FOLLOWED_CHECK) => {
                    if let Some(error) = self.core.led_by_nobody(&self.found.running.partition) {
                        return Err(error);
                    }
                }
                // A consumer at the end is better served by who has the newest records.
                changed = self.leadership.changed() => {
                    if changed.is_err() {
                        return Err(self.stopped_error());
                    }
                    if let Some(error) = self.core.led_elsewhere(&self.found.running.partition) {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn stopped_error(&self) -> BrokerError {
        self.core
            .stopped_error(self.found.topic.topic.name.as_str())
    }
}

/// Batches from `from` on, none where that is the end.
async fn read_below(
    partition: &Partition,
    from: Offset,
    max_bytes: usize,
    high_watermark: Offset,
) -> Result<ReadBatches, BrokerError> {
    if from >= high_watermark && !is_beyond(partition, from, high_watermark) {
        return Ok(ReadBatches {
            bytes: Bytes::new(),
            next_offset: from,
        });
    }
    if from > high_watermark {
        return Err(refusal(partition, from).await);
    }
    match partition.read(from, max_bytes).await {
        Err(ReadError::Damaged(damage)) if !partition.is_alone() => {
            // Just found: another replica leads soon.
            Err(BrokerError::new(Reason::NotLeader, damage.to_string()))
        }
        read => Ok(read?),
    }
}

/// Where a partition ends; `None` where this node does not lead it for certain, or does not know yet.
pub(crate) async fn certain_end(partition: &Partition) -> Option<Offset> {
    let epoch = partition.leader().1;
    partition.confirm(epoch, CONFIRMATION).await.ok()?;
    let ready = partition.leadership().borrow().ready;
    ready.then(|| *partition.high_watermark().borrow())
}

/// Why an offset behind all that is known here cannot be read. A consumer that is told "out of range" may begin anew: only who
/// leads for certain says so. One that was deposed and does not know it yet lacks what its successor took in.
async fn refusal(partition: &Partition, from: Offset) -> BrokerError {
    let end = certain_end(partition).await;
    let high_watermark = *partition.high_watermark().borrow();
    if end.is_some_and(|end| is_beyond(partition, from, end)) {
        return BrokerError::new(
            Reason::OffsetOutOfRange,
            format!(
                "offset {from} is out of range: partition {} holds offsets {} to {high_watermark}",
                partition.key(),
                partition.start_offset()
            ),
        );
    }
    BrokerError::new(
        Reason::NotLeader,
        format!(
            "this node does not lead {}, as far as it knows, and knows of offsets up to {high_watermark} only: ask its leader, or \
             retry shortly",
            partition.key()
        ),
    )
}

/// Whether an offset is not to be waited for here: it lies past the log's end, or this node does not know what is committed.
/// Whoever was told of a record by a leader that had appended it may ask for what follows before it is committed.
fn is_beyond(partition: &Partition, from: Offset, high_watermark: Offset) -> bool {
    let ready = || partition.leadership().borrow().ready;
    from > high_watermark && (from > partition.end_offset() || !ready())
}

/// The batches that begin before `end`.
fn cut_at(batches: Bytes, end: Offset) -> Bytes {
    let mut length = 0;
    while let Some(Ok(header)) = batches.get(length..).map(BatchHeader::parse) {
        if header.base_offset >= end {
            break;
        }
        length += header.total_len();
    }
    batches.slice(..length.min(batches.len()))
}

#[cfg(test)]
mod tests {
    use quipu_model::{
        LeaderEpoch, Offset, TimestampMs,
        batch::{BatchBuilder, Compression},
    };

    use super::cut_at;

    #[test]
    fn whole_batches_before_the_end_are_kept() {
        let batch = |base: u64| {
            let mut builder = BatchBuilder::new(Compression::None);
            builder.append(TimestampMs::new(1), None, Some(b"a"), &[]);
            builder.append(TimestampMs::new(1), None, Some(b"b"), &[]);
            let batch = builder.build().unwrap();
            batch
                .stamped(Offset::new(base), LeaderEpoch::new(1))
                .into_bytes()
        };
        let one = batch(0).len();
        let all: bytes::Bytes = [batch(0), batch(2), batch(4)].concat().into();
        for (end, kept) in [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (9, 3)] {
            assert_eq!(
                cut_at(all.clone(), Offset::new(end)).len(),
                kept * one,
                "{end}"
            );
        }
    }
}
