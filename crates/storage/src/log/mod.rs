//! One partition's log.

use std::sync::Arc;

use bytes::Bytes;
use quipu_model::{
    LogId, Offset, PartitionKey, ProducerEpoch, ProducerId, RaftIndex, RecordBatch, Sequence, Term,
    TimestampMs, TopicConfig, Vote,
};

use crate::{Completion, PartitionDamage, StorageFailure};

/// What a Raft entry that is not a batch is for. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ControlKind {
    /// A new leader's first entry.
    Blank = 1,
    /// A change of voters; the bytes are replication's own.
    Membership = 2,
    /// Records below an offset may be deleted (retention); the bytes are the offset, big-endian.
    Trim = 3,
}

/// A Raft entry that is not a batch: it takes an index but no offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub kind: ControlKind,
    pub bytes: Bytes,
}

/// What a Raft entry carries.
#[derive(Clone, Debug)]
pub enum Payload {
    /// A batch. On append, its base offset is stamped with the log's end; an entry from a leader's log must already
    /// carry exactly that.
    Batch(RecordBatch),
    Control(Control),
}

/// One Raft entry.
#[derive(Clone, Debug)]
pub struct LogEntry {
    pub id: LogId,
    pub payload: Payload,
}

/// An entry without a batch's bytes: what applying needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryInfo {
    pub id: LogId,
    pub kind: EntryKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A batch with the offsets of its records: from `base` up to, not including, `next`.
    Batch {
        base: Offset,
        next: Offset,
    },
    Control(Control),
}

/// What a partition's log holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last entry that Raft may no longer ask for.
    pub last_purged: Option<LogId>,
    /// The last entry appended (or purged, where the log is empty).
    pub last: Option<LogId>,
    /// The last entry known to be durable.
    pub flushed: Option<LogId>,
    /// The first offset still kept.
    pub start_offset: Offset,
    /// The offset that the next record gets.
    pub end_offset: Offset,
    /// Bytes of batches kept.
    pub size_bytes: u64,
    pub segments: u32,
}

/// A producer's newest batch in the log, and the last few before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerTail {
    pub epoch: ProducerEpoch,
    /// The newest batches, oldest first, at most five (Kafka's bound on batches in flight): first sequence, last
    /// sequence, base offset.
    pub batches: Vec<(Sequence, Sequence, Offset)>,
}

/// A run of whole batches read from a log.
#[derive(Clone, Debug)]
pub struct ReadBatches {
    /// Lent from the segment's map, not copied. The first batch may begin before the offset asked for.
    pub bytes: Bytes,
    /// The offset after the last batch: where to read on.
    pub next_offset: Offset,
}

/// An offset found by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampedOffset {
    pub offset: Offset,
    pub timestamp: TimestampMs,
}

#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// A leader's entry does not fit behind this log's end: a bug or damage, never to be written.
    #[error("entry {id} of {key} does not continue the log: {detail}")]
    Discontinuous {
        key: PartitionKey,
        id: LogId,
        detail: String,
    },
    #[error(transparent)]
    Damaged(#[from] Arc<PartitionDamage>),
    #[error(transparent)]
    Failed(#[from] StorageFailure),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("offset {offset} is out of range: {key} holds offsets {start} to {end}")]
    OutOfRange {
        key: PartitionKey,
        offset: Offset,
        start: Offset,
        end: Offset,
    },
    #[error(transparent)]
    Damaged(#[from] Arc<PartitionDamage>),
    #[error("reading {path}: {error}")]
    Io {
        path: std::path::PathBuf,
        error: std::io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// Nothing was written; reads go on; it heals by itself once there is room.
    #[error(
        "no room for {bytes} bytes in {path}: {detail}; free space on the disk, or lower the topics' retention"
    )]
    DiskFull {
        path: std::path::PathBuf,
        bytes: u64,
        detail: String,
    },
    /// The write-ahead log waits for a checkpoint: try again shortly.
    #[error("the write-ahead log is full until the running checkpoint ends; retry shortly")]
    Busy,
    #[error(transparent)]
    Damaged(#[from] Arc<PartitionDamage>),
    #[error(transparent)]
    Failed(#[from] StorageFailure),
}

/// Room for a batch, taken before it is proposed, so that appending it cannot meet a full disk. Dropped once the batch was
/// appended or given up.
#[derive(Debug)]
pub struct Reservation {
    _private: (),
}

/// Which closed segments may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    pub max_age_ms: Option<u64>,
    pub max_bytes: Option<u64>,
    pub max_records: Option<u64>,
}

/// One partition's log: a handle that is cheap to share. Writes come from one task at a time; reads from any thread.
#[derive(Debug)]
pub struct PartitionLog {
    key: PartitionKey,
}

#[allow(unused_variables)]
impl PartitionLog {
    pub fn key(&self) -> PartitionKey {
        self.key
    }
    pub fn state(&self) -> LogState {
        unimplemented!()
    }
    /// The damage for which the partition is not served, if any.
    pub fn damage(&self) -> Option<Arc<PartitionDamage>> {
        unimplemented!()
    }
    pub fn set_config(&self, config: TopicConfig) {
        unimplemented!()
    }

    /// Checks for and takes room for a batch of `bytes` bytes.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, ReserveError> {
        unimplemented!()
    }
    /// Appends entries that continue the log: they can be read at once; `done` is called when they are durable.
    pub fn append(&self, entries: Vec<LogEntry>, done: Completion) -> Result<(), AppendError> {
        unimplemented!()
    }
    /// Stores a vote; `done` is called once it, and all that was appended before, is durable.
    pub fn save_vote(&self, vote: Vote, done: Completion) -> Result<(), AppendError> {
        unimplemented!()
    }
    pub fn vote(&self) -> Option<Vote> {
        unimplemented!()
    }
    /// Drops all entries after `last`.
    pub fn truncate_after(&self, last: Option<LogId>) -> Result<(), AppendError> {
        unimplemented!()
    }
    /// Forgets entries up to and including `upto` for Raft (their records stay until trimmed). Past the log's end, the log
    /// is emptied and goes on at `next_offset`.
    pub fn purge(&self, upto: LogId, next_offset: Offset) -> Result<(), AppendError> {
        unimplemented!()
    }
    /// Deletes the closed segments whose records all lie below `before`, and makes `before` the first offset served.
    pub fn trim(&self, before: Offset) -> Result<(), AppendError> {
        unimplemented!()
    }

    /// Notes what Raft has applied (membership bytes included), for the next checkpoint to keep. A checkpoint never
    /// stores it ahead of what is flushed.
    pub fn set_applied(&self, applied: LogId, membership: Option<(LogId, Bytes)>) {
        unimplemented!()
    }
    /// What was applied as of the last start's checkpoint, clamped to the recovered log's end.
    pub fn recovered_applied(&self) -> (Option<LogId>, Option<(LogId, Bytes)>) {
        unimplemented!()
    }

    /// The term of an entry, from the table of terms; `None` outside the log.
    pub fn term_of(&self, index: RaftIndex) -> Option<Term> {
        unimplemented!()
    }
    /// The first and last entry of each term in a range (for Raft's search of a common point).
    pub fn key_log_ids(&self, first: RaftIndex, last: RaftIndex) -> Vec<LogId> {
        unimplemented!()
    }
    /// Entries `first` to `end` (exclusive), at most about `max_bytes` of them but at least one where there is one.
    pub fn entries(
        &self,
        first: RaftIndex,
        end: RaftIndex,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, ReadError> {
        unimplemented!()
    }
    /// The same without the batches' bytes.
    pub fn entry_infos(
        &self,
        first: RaftIndex,
        end: RaftIndex,
    ) -> Result<Vec<EntryInfo>, ReadError> {
        unimplemented!()
    }
    /// The last entry of the last closed segment that lies wholly below `offset`: up to where Raft's log may be purged
    /// after a trim, with the offset that follows it.
    pub fn purge_point(&self) -> Option<(LogId, Offset)> {
        unimplemented!()
    }

    /// Whole batches from the one that holds `from` on: at most `max_bytes` (at least one batch), all below `up_to`.
    pub fn read(
        &self,
        from: Offset,
        max_bytes: usize,
        up_to: Offset,
    ) -> Result<ReadBatches, ReadError> {
        unimplemented!()
    }
    /// Whether reading from `from` is known not to wait for the disk: then it may be done on an async worker.
    pub fn is_warm(&self, from: Offset) -> bool {
        unimplemented!()
    }
    /// The first record at or after `timestamp` whose offset is below `up_to`.
    pub fn offset_for_timestamp(
        &self,
        timestamp: TimestampMs,
        up_to: Offset,
    ) -> Result<Option<TimestampedOffset>, ReadError> {
        unimplemented!()
    }

    pub fn producer_tail(&self, id: ProducerId) -> Option<ProducerTail> {
        unimplemented!()
    }

    /// Up to which offset the policy lets records go now: the end of the last closed segment to delete.
    pub fn retention_point(&self, policy: RetentionPolicy, now: TimestampMs) -> Option<Offset> {
        unimplemented!()
    }
    /// Closes the active segment where it is older than `segment.ms`.
    pub fn roll_if_due(&self, now: TimestampMs) -> Result<(), AppendError> {
        unimplemented!()
    }
}
