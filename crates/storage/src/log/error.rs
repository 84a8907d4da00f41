//! One error type an operation.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use quipu_model::{LogId, Offset, PartitionKey};

use super::IncomingError;
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

/// Why a damaged partition is not repaired yet.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Not only bytes of its segments are gone: no other replica can give what is.
    #[error(
        "{damage}; it cannot be repaired in place: move the partition to another node, and back if it is to be here"
    )]
    Beyond {
        /// What was found.
        damage: Arc<PartitionDamage>,
    },
    /// What was put together is not what was written.
    #[error(
        "{path} is not repaired: at position {position}, what another replica gave does not fit: {detail}"
    )]
    Unsound {
        /// The segment's file.
        path: PathBuf,
        /// Where in it.
        position: u64,
        /// What does not fit.
        detail: String,
    },
    /// Another replica's log must not take this one's place: something that this one acknowledged may not be in it.
    #[error("what another replica gave reaches entry {reaches}, and this log entry {last}")]
    Behind {
        /// The last entry of the other log that is committed.
        reaches: LogId,
        /// The last entry of this log.
        last: LogId,
    },
    /// Another replica's log is not here yet.
    #[error(transparent)]
    Incoming(#[from] IncomingError),
    /// Another replica's log did not take this one's place.
    #[error(transparent)]
    NotReplaced(#[from] AppendError),
    /// The disk did not do what was asked; where it is full, the repair goes on once there is room.
    #[error("repairing {path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: Arc<io::Error>,
    },
    /// The store takes nothing more.
    #[error(transparent)]
    Failed(#[from] StorageFailure),
}

impl RepairError {
    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            error: Arc::new(error),
        }
    }
}
