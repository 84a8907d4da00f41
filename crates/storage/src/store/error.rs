//! Why a data directory, or a partition of it, is not served.

use std::{io, path::PathBuf};

use quipu_model::PartitionKey;

/// Bytes of a partition that were acknowledged once and are no longer what was written.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "partition {key} is damaged in {path} at position {position}: {detail}; it is not served here before it is repaired from \
     another replica, and nothing was deleted: where there is no other, bring the file back from a copy"
)]
pub struct PartitionDamage {
    /// The partition.
    pub key: PartitionKey,
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub position: u64,
    /// What was found.
    pub detail: String,
}

/// Why a data directory was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the data directory is in use by another process: stop that, or give another --data-dir"
    )]
    InUse,
    /// A newer version wrote it.
    #[error(
        "{path} has format {found}, and this version reads up to {supported}: run the newer version that wrote it"
    )]
    NewerFormat {
        /// The file that says so.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that this version reads.
        supported: u32,
    },
    /// Bytes that all partitions depend on are not what was written.
    #[error(
        "{path} is damaged at position {position}: {detail}; nothing was changed or deleted: bring the file back from a \
         copy of the directory; in a cluster, replace the node"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        position: u64,
        /// What was found.
        detail: String,
    },
    /// The disk did not do what was asked.
    #[error("{operation} {path}: {error}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}
