//! The write-ahead log that all partitions of a data directory share.

use bytes::Bytes;
use quipu_model::{LogId, Offset, PartitionKey};

/// A log sequence number: the place of a record in the write-ahead log. The first is 1; they have no gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

/// What a WAL record says. The numbers are on disk: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A Raft entry holding a record batch; payload: the stamped batch.
    Batch = 1,
    /// A Raft entry holding something else; payload: one byte of control kind, then its bytes.
    Control = 2,
    /// A vote; `log_id.term` is its term; payload: node id, committed flag.
    Vote = 3,
    /// All entries after `log_id` are gone.
    Truncate = 4,
    /// The log was reset to begin after `log_id` at `base_offset` (snapshot install or purge).
    Purge = 5,
    /// Records below `base_offset` are gone.
    Trim = 6,
    /// The partition was removed from this node: whatever stands before is void.
    Removed = 7,
    /// Nothing: written when the log falls idle, so that the mark of what is durable follows the last group.
    Mark = 8,
}

/// A record to be written.
#[derive(Clone, Debug)]
pub struct WalRecord {
    pub key: PartitionKey,
    pub kind: RecordKind,
    pub log_id: LogId,
    pub base_offset: Offset,
    /// The payload in up to two pieces, written one after the other (a batch's stamped prefix and the rest of it).
    pub payload: [Bytes; 2],
}

/// The first failed write or sync: from then on the store acknowledges nothing more.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{operation} failed on {path}: {error}; nothing more is acknowledged: see to the disk, then start the broker again"
)]
pub struct StorageFailure {
    pub operation: &'static str,
    pub path: std::path::PathBuf,
    pub error: std::sync::Arc<std::io::Error>,
}

/// Called once the records it was submitted with are durable, or never will be. Runs on the WAL's thread: it must not block.
pub type Completion = Box<dyn FnOnce(Result<(), StorageFailure>) + Send>;
