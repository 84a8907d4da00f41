//! A data directory: all partitions of a node and their write-ahead log.

mod ballast;
mod checkpoint;
mod compactor;
mod context;
mod error;
mod format;
mod housekeeper;
mod lifecycle;
mod open;
mod peers;
mod scrub;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use quipu_model::{NodeId, PartitionKey};

pub(crate) use self::{
    context::Context,
    format::{RAFT_STATE_FILE, crc_line, read_format, read_raft_state, read_raft_state_at},
    open::LOCK_FILE,
    peers::read as read_peers,
};
pub use self::{
    error::{OpenError, PartitionDamage},
    open::{RecoveryReport, UnrecoveredStore},
};
use crate::{PartitionLog, wal::StorageFailure};

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The size of each write-ahead log file, in bytes.
    pub wal_file_bytes: u64,
    /// A checkpoint starts once this many bytes of write-ahead log wait for one.
    pub checkpoint_bytes: u64,
    /// Appends are put off once this many bytes wait for a checkpoint.
    pub wal_max_bytes: u64,
    /// How many bytes of what was written last are left in the system's page cache for readers that follow close behind; what
    /// is older is read from the disk again. Appending into memory that the cache has used before is far cheaper than into
    /// memory that it has not. Only full stretches of 8 MiB of a segment count; smaller segments are the system's to keep or
    /// drop.
    pub cached_bytes: u64,
    /// How long a closed segment's bytes are trusted before the background scrub reads them again.
    pub scrub_interval: Duration,
    /// How many bytes a second the scrub reads while it has something to read; 0 turns it off.
    pub scrub_bytes_per_second: u64,
    /// How many bytes a second compaction reads and writes, together, while it has something to do; 0 turns it off.
    pub compaction_bytes_per_second: u64,
    /// How many bytes the table of keys may take with which compaction works. Partitions with more new keys (20 bytes each, and a
    /// ninth more) are compacted in more passes.
    pub compaction_memory_bytes: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            wal_file_bytes: 64 << 20,
            checkpoint_bytes: 256 << 20,
            wal_max_bytes: 1 << 30,
            cached_bytes: 512 << 20,
            scrub_interval: Duration::from_secs(24 * 60 * 60),
            scrub_bytes_per_second: 8 << 20,
            compaction_bytes_per_second: 32 << 20,
            compaction_memory_bytes: 56_000_000,
        }
    }
}

/// An open data directory. Dropping it without [`Store::close`] is a crash, as far as the disk is concerned: nothing
/// acknowledged is lost. A completion must not be what drops it: that would wait for its own thread.
#[derive(Debug)]
pub struct Store {
    context: Arc<Context>,
    partitions: Partitions,
    /// Held while a partition is created or removed.
    lifecycle: Mutex<()>,
    peers: peers::Peers,
    directory_id: [u8; 16],
    /// Held until the store is closed or dropped.
    lock: Mutex<Option<Box<dyn std::fmt::Debug + Send + Sync>>>,
}

type Partitions = Arc<RwLock<HashMap<PartitionKey, Arc<PartitionLog>>>>;

impl Store {
    /// The random id that the directory got when it was created.
    pub fn directory_id(&self) -> [u8; 16] {
        self.directory_id
    }

    /// The data directory that another node was first met with, which is `directory_id` where it never was before. Durable on
    /// return. Blocks.
    ///
    /// # Errors
    /// Where what was remembered is unreadable or cannot be written.
    pub fn remember_peer(
        &self,
        node: NodeId,
        directory_id: [u8; 16],
    ) -> Result<[u8; 16], OpenError> {
        self.peers.remember(&*self.context.disk, node, directory_id)
    }

    /// A partition of this store.
    pub fn partition(&self, key: PartitionKey) -> Option<Arc<PartitionLog>> {
        self.partitions.read().get(&key).cloned()
    }

    /// Whether what blocks on this store is to be done where it is asked for: see [`crate::io::Workers`].
    pub fn is_single_threaded(&self) -> bool {
        self.context.workers.is_single_threaded()
    }

    /// All partitions of this store, in no order.
    pub fn partitions(&self) -> Vec<PartitionKey> {
        self.partitions.read().keys().copied().collect()
    }

    /// Makes all that is in the segments durable and lets the write-ahead log forget it. Blocks.
    ///
    /// # Errors
    /// Where the store has failed.
    pub fn checkpoint(&self) -> Result<(), StorageFailure> {
        checkpoint::run(&self.context, &self.partitions)
    }

    /// Checkpoints, stops the threads and unlocks the data directory; the store takes nothing more. Blocks.
    ///
    /// # Errors
    /// Where the store has failed.
    pub fn close(&self) -> Result<(), StorageFailure> {
        self.context.stop_workers();
        let checkpointed = self.checkpoint();
        self.end_logs();
        let closed = self.context.wal.close();
        // Whoever still holds a handle cannot write any more: the directory is free for the next process.
        drop(self.lock.lock().take());
        checkpointed.and(closed)
    }

    fn end_logs(&self) {
        self.partitions.read().values().for_each(|log| log.end());
    }

    /// The first failed write or sync, once there was one. The node must end then.
    pub fn failure(&self) -> Option<StorageFailure> {
        self.context.wal.failure()
    }

    /// Calls `f`, on the thread that meets it, when the store fails.
    pub fn on_failure(&self, f: Box<dyn FnOnce(StorageFailure) + Send>) {
        self.context.wal.on_failure(f);
    }

    /// Adds the store's metrics to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.context.wal.register(registry);
        self.context.metrics.register(registry);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.context.stop_workers();
        // The lock goes last: handles that live on must not write into a directory that another process has opened.
        self.end_logs();
        self.context.wal.abandon();
    }
}

/// The directory of a partition: named by ids, never by what a client chose.
pub(crate) fn partition_dir(key: PartitionKey) -> PathBuf {
    Path::new("topics")
        .join(key.topic.to_string())
        .join(key.partition.to_string())
}
