//! A data directory: all partitions of a node and their write-ahead log.

mod ballast;
mod checkpoint;
mod context;
mod error;
mod format;
mod housekeeper;
mod open;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use quipu_model::{LogId, Offset, PartitionKey, TopicConfig};

pub(crate) use self::context::Context;
pub use self::{
    error::{OpenError, PartitionDamage},
    open::{RecoveryReport, UnrecoveredStore},
};
use crate::{
    PartitionLog,
    log::RecoveringLog,
    wal::{RecordKind, StorageFailure, WalRecord},
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

/// An open data directory. Dropping it without [`Store::close`] is a crash, as far as the disk is concerned: nothing
/// acknowledged is lost.
#[derive(Debug)]
pub struct Store {
    context: Arc<Context>,
    partitions: Partitions,
    directory_id: [u8; 16],
    housekeeper: Mutex<Option<housekeeper::Housekeeper>>,
    /// Held until the store is closed or dropped.
    lock: Mutex<Option<Box<dyn std::fmt::Debug + Send + Sync>>>,
}

type Partitions = Arc<RwLock<HashMap<PartitionKey, Arc<PartitionLog>>>>;

impl Store {
    /// The random id that the directory got when it was created.
    pub fn directory_id(&self) -> [u8; 16] {
        self.directory_id
    }

    /// Creates an empty partition, or gives the one that is there.
    ///
    /// # Errors
    /// Where its directory cannot be made.
    pub fn create_partition(
        &self,
        key: PartitionKey,
        config: TopicConfig,
    ) -> Result<Arc<PartitionLog>, OpenError> {
        if let Some(log) = self.partition(key) {
            log.set_config(config);
            return Ok(log);
        }
        let (disk, now) = (Arc::clone(&self.context.disk), self.context.clock.now());
        let dir = partition_dir(key);
        let io = |error| OpenError::Io {
            operation: "creating",
            path: dir.clone(),
            error,
        };
        disk.create_dir_all(&dir).map_err(io)?;
        // Its name must be durable before its first record: a replay passes over records of partitions without a directory.
        for parent in dir.ancestors().skip(1) {
            disk.sync_dir(parent).map_err(io)?;
        }
        let recovering = RecoveringLog::new(disk, dir.clone(), key, config, now);
        let log = recovering.finish(Arc::clone(&self.context)).map_err(io)?;
        Ok(Arc::clone(
            self.partitions.write().entry(key).or_insert(log),
        ))
    }

    /// A partition of this store.
    pub fn partition(&self, key: PartitionKey) -> Option<Arc<PartitionLog>> {
        self.partitions.read().get(&key).cloned()
    }

    /// All partitions of this store, in no order.
    pub fn partitions(&self) -> Vec<PartitionKey> {
        self.partitions.read().keys().copied().collect()
    }

    /// Removes a partition and its files. No error where there is none. Blocks until that is durable.
    ///
    /// # Errors
    /// Where the store has failed.
    pub fn remove_partition(&self, key: PartitionKey) -> Result<(), StorageFailure> {
        let Some(log) = self.partitions.write().remove(&key) else {
            return Ok(());
        };
        log.mark_removed();
        let record = WalRecord {
            key,
            kind: RecordKind::Removed,
            log_id: LogId::default(),
            base_offset: Offset::ZERO,
            payload: Default::default(),
        };
        let (sender, flushed) = mpsc::sync_channel(1);
        self.context.wal.submit(
            vec![record],
            Box::new(move |result| {
                let _ = sender.send(result);
            }),
        )?;
        if let Ok(result) = flushed.recv() {
            result?;
        }
        self.context.remove_dir(partition_dir(key));
        Ok(())
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
        if let Some(housekeeper) = self.housekeeper.lock().take() {
            housekeeper.stop(&self.context);
        }
        self.checkpoint()?;
        self.context.wal.close()?;
        // Whoever still holds a handle cannot write any more: the directory is free for the next process.
        drop(self.lock.lock().take());
        Ok(())
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
        if let Some(housekeeper) = self.housekeeper.lock().take() {
            housekeeper.stop(&self.context);
        }
    }
}

/// The directory of a partition: named by ids, never by what a client chose.
fn partition_dir(key: PartitionKey) -> PathBuf {
    Path::new("topics")
        .join(key.topic.to_string())
        .join(key.partition.to_string())
}
