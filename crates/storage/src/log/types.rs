//! What goes into a partition's log and what comes out of it.

use bytes::Bytes;
use quipu_model::{LogId, Offset, ProducerEpoch, RecordBatch, Sequence, TimestampMs};

/// What a Raft entry that is not a batch is for. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ControlKind {
    /// A new leader's first entry.
    Blank = 1,
    /// A change of voters; the bytes are replication's own.
    Membership = 2,
    /// Records below an offset may be deleted (retention); the bytes are replication's own.
    Trim = 3,
}

impl ControlKind {
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Blank, Self::Membership, Self::Trim]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// A Raft entry that is not a batch: it takes an index but no offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// What it is for.
    pub kind: ControlKind,
    /// What it says, in replication's encoding.
    pub bytes: Bytes,
}

/// What a Raft entry carries.
#[derive(Clone, Debug)]
pub enum Payload {
    /// A producer's batch: appending stamps it with the log's end.
    Batch(RecordBatch),
    /// A batch as another log holds it: appending refuses it unless its base offset is this log's end.
    Stamped(RecordBatch),
    /// Anything else.
    Control(Control),
}

/// One Raft entry.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Its term and index.
    pub id: LogId,
    /// What it carries.
    pub payload: Payload,
}

/// An entry without a batch's bytes: what applying needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryInfo {
    /// Its term and index.
    pub id: LogId,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A batch with the offsets of its records: from `base` up to, not including, `next`.
    Batch {
        /// The first record's offset.
        base: Offset,
        /// The offset after the last record's.
        next: Offset,
    },
    /// Anything else.
    Control(Control),
}

/// What a partition's log holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The last entry that Raft may no longer ask for.
    pub last_purged: Option<LogId>,
    /// The last entry appended (or purged, where the log is empty).
    pub last: Option<LogId>,
    /// The first offset still kept.
    pub start_offset: Offset,
    /// The offset that the next record gets.
    pub end_offset: Offset,
    /// Bytes of batches kept.
    pub size_bytes: u64,
    /// Files they stand in.
    pub segments: u32,
}

/// One batch of an idempotent producer, as the log remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerBatch {
    /// The first record's sequence.
    pub first: Sequence,
    /// The last record's sequence.
    pub last: Sequence,
    /// The first record's offset.
    pub base_offset: Offset,
}

/// A producer's newest batches in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerTail {
    /// The epoch that they were sent in: the newest seen.
    pub epoch: ProducerEpoch,
    /// Oldest first, at most [`crate::MAX_PRODUCER_BATCHES`].
    pub batches: Vec<ProducerBatch>,
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
    /// The record's offset.
    pub offset: Offset,
    /// The record's timestamp.
    pub timestamp: TimestampMs,
}

/// Which closed segments may go. `None` is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Those whose newest record is older, in milliseconds.
    pub max_age_ms: Option<u64>,
    /// The oldest, while the partition holds more bytes.
    pub max_bytes: Option<u64>,
    /// The oldest, while the partition holds more records.
    pub max_records: Option<u64>,
}
