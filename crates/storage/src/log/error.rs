//! One error type an operation.

use std::{io, path::PathBuf, sync::Arc};

use quipu_model::{LogId, Offset, PartitionKey};

use crate::{PartitionDamage, StorageFailure};

/// Why entries were not appended, or the log not cut.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// An entry does not fit behind this log's end: a broken invariant, never to be written.
    #[error("entry {id} of {key} does not continue the log: {detail}")]
    Discontinuous {
        /// The partition.
        key: PartitionKey,
        /// The entry refused.
        id: LogId,
        /// What does not fit.
        detail: String,
    },
    /// The partition is not written until it is repaired.
    #[error(transparent)]
    Damaged(#[from] Arc<PartitionDamage>),
    /// The store takes nothing more.
    #[error(transparent)]
    Failed(#[from] StorageFailure),
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such offset, or no longer.
    #[error("offset {offset} is out of range: {key} holds offsets {start} to {end}")]
    OutOfRange {
        /// The partition.
        key: PartitionKey,
        /// The offset asked for.
        offset: Offset,
        /// The first offset kept.
        start: Offset,
        /// The offset after the last one that may be read.
        end: Offset,
    },
    /// The partition is not read until it is repaired.
    #[error(transparent)]
    Damaged(#[from] Arc<PartitionDamage>),
    /// The disk did not give the bytes.
    #[error("reading {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Why there is no room for a batch now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReserveError {
    /// Nothing was written; reads go on; it heals by itself once there is room.
    #[error(
        "no room for {bytes} more bytes in {path}: {detail}; free space on the disk, or lower the topics' retention"
    )]
    DiskFull {
        /// The file that could not grow.
        path: PathBuf,
        /// By how much.
        bytes: u64,
        /// What the system said.
        detail: String,
    },
    /// Too much waits for a checkpoint: it runs, and makes room.
    #[error("the log waits for a checkpoint to end: retry shortly")]
    Busy,
    /// The partition is not written until it is repaired.
    #[error(transparent)]
    Damaged(#[from] Arc<PartitionDamage>),
    /// The store takes nothing more.
    #[error(transparent)]
    Failed(#[from] StorageFailure),
}
