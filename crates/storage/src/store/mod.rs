//! A data directory: all partitions of a node and their write-ahead log.

use std::{path::PathBuf, sync::Arc};

use prometheus_client::registry::Registry;
use quipu_model::{Offset, PartitionKey, TopicConfig};

use crate::{
    PartitionLog, StorageFailure,
    io::{Clock, Disk},
};

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The size of each write-ahead log file, in bytes.
    pub wal_file_bytes: u64,
    /// A checkpoint starts once this many bytes of write-ahead log wait for one.
    pub checkpoint_bytes: u64,
    /// Appends are put off once this many bytes wait for a checkpoint.
    pub wal_max_bytes: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            wal_file_bytes: 64 << 20,
            checkpoint_bytes: 256 << 20,
            wal_max_bytes: 1 << 30,
        }
    }
}

/// Bytes that were acknowledged once and are no longer what was written.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{key} is damaged in {path} at position {position}: {detail}; nothing was deleted; bring the file back from a copy, or replace this replica"
)]
pub struct PartitionDamage {
    pub key: PartitionKey,
    pub path: PathBuf,
    pub position: u64,
    pub detail: String,
}

/// Why a data directory was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "data directory {path} is in use by another process: stop it, or give another --data-dir"
    )]
    InUse { path: PathBuf },
    #[error(
        "data directory {path} has format {found}; this version reads up to {supported}: run the newer version that wrote it"
    )]
    NewerFormat {
        path: PathBuf,
        found: u32,
        supported: u32,
    },
    #[error("{path} is damaged at position {position}: {detail}; nothing was changed or deleted")]
    Damaged {
        path: PathBuf,
        position: u64,
        detail: String,
    },
    #[error("{operation} {path}: {error}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        error: std::io::Error,
    },
}

/// What recovery found and did.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    pub partitions: usize,
    pub records_replayed: u64,
    pub bytes_replayed: u64,
    /// Bytes of never acknowledged records cut off the write-ahead log's torn end.
    pub torn_bytes: u64,
    pub damaged: Vec<PartitionDamage>,
    pub took_ms: u64,
}

/// A data directory that is locked and of a known format, but not yet read.
#[derive(Debug)]
pub struct UnrecoveredStore {}

#[allow(unused_variables)]
impl UnrecoveredStore {
    /// Locks a data directory, creating it where it is absent or empty.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: StoreConfig,
    ) -> Result<Self, OpenError> {
        unimplemented!()
    }
    /// Loads the last checkpoint and replays the write-ahead log over it.
    pub fn recover(self) -> Result<(Store, RecoveryReport), OpenError> {
        unimplemented!()
    }
}

/// An open data directory. Dropping it without [`Store::close`] is a crash as far as the disk is concerned.
#[derive(Debug)]
pub struct Store {}

#[allow(unused_variables)]
impl Store {
    /// The random id that the directory got when it was created.
    pub fn directory_id(&self) -> [u8; 16] {
        unimplemented!()
    }
    pub fn create_partition(
        &self,
        key: PartitionKey,
        config: TopicConfig,
    ) -> Result<Arc<PartitionLog>, OpenError> {
        unimplemented!()
    }
    pub fn partition(&self, key: PartitionKey) -> Option<Arc<PartitionLog>> {
        unimplemented!()
    }
    pub fn partitions(&self) -> Vec<PartitionKey> {
        unimplemented!()
    }
    /// Removes a partition and its files; its handle fails from then on. No error where there is none.
    pub fn remove_partition(&self, key: PartitionKey) -> Result<(), StorageFailure> {
        unimplemented!()
    }
    /// Makes all that is in the segments durable and lets the write-ahead log forget it. Blocks.
    pub fn checkpoint(&self) -> Result<(), StorageFailure> {
        unimplemented!()
    }
    /// Checkpoints and stops the threads. Blocks.
    pub fn close(&self) -> Result<(), StorageFailure> {
        unimplemented!()
    }
    /// The first failed write or sync, once there was one. The node must end then.
    pub fn failure(&self) -> Option<StorageFailure> {
        unimplemented!()
    }
    /// Calls `f` (on the failing thread) when the store fails.
    pub fn on_failure(&self, f: Box<dyn FnOnce(StorageFailure) + Send>) {
        unimplemented!()
    }
    pub fn register_metrics(&self, registry: &mut Registry) {
        unimplemented!()
    }
}
