//! What all partitions of a store share.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use parking_lot::Mutex;
use prometheus_client::{
    metrics::{counter::Counter, histogram::Histogram},
    registry::{Registry, Unit},
};
use quipu_model::{PartitionKey, Position};

use super::{
    StoreConfig,
    compactor::{Compacting, CompactionMetrics},
    housekeeper::Task,
};
use crate::{
    io::{Clock, Disk, DiskFile, Workers, Working},
    wal::{StorageFailure, Wal, stopped},
};

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) wal: Wal,
    pub(super) workers: Arc<dyn Workers>,
    pub(super) config: StoreConfig,
    pub(super) metrics: StoreMetrics,
    /// The housekeeper, and the way to it.
    pub(super) tasks: OnceLock<(mpsc::Sender<Task>, Arc<dyn Working>)>,
    /// The worker that compacts.
    pub(super) compacting: OnceLock<Compacting>,
    /// Whether a checkpoint was asked for and has not begun.
    pub(super) checkpoint_asked: AtomicBool,
    /// Held by the one checkpoint that runs: two could write their states in the wrong order.
    pub(crate) checkpointing: Mutex<()>,
}

impl Context {
    /// Asks for a checkpoint where enough waits for one.
    pub(crate) fn checkpoint_if_due(&self) {
        if self.is_worth_checkpoint(self.wal.live_bytes()) {
            self.request_checkpoint();
        }
    }

    /// Whether a checkpoint is due once it lets so many bytes go.
    pub(crate) fn is_worth_checkpoint(&self, bytes: u64) -> bool {
        bytes >= self.config.checkpoint_bytes
    }

    pub(crate) fn request_checkpoint(&self) {
        if !self.checkpoint_asked.swap(true, Ordering::AcqRel) {
            self.give(Task::Checkpoint);
        }
    }

    pub(crate) fn start_writeback(&self, file: Arc<dyn DiskFile>, position: Position, len: u64) {
        self.give(Task::Writeback(file, position, len));
    }

    /// Leaves word of a partition's damage for the next start.
    pub(crate) fn mark_damaged(&self, key: PartitionKey) {
        self.give(Task::MarkDamaged(key));
    }

    pub(crate) fn remove_dir(&self, dir: PathBuf) {
        self.give(Task::RemoveDir(dir));
    }

    /// Removes files; one that is not there is no matter, and one that stays is found by the next start.
    pub(crate) fn remove_files_now(&self, paths: &[PathBuf]) {
        for path in paths.iter().filter(|path| self.disk.exists(path)) {
            if let Err(error) = self.disk.remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "could not remove a file that is no longer needed");
            }
        }
    }

    pub(super) fn remove_dir_now(&self, dir: &Path) {
        if let Err(error) = self.disk.remove_dir_all(dir) {
            tracing::warn!(dir = %dir.display(), %error, "could not remove a directory that is no longer needed");
        }
    }

    fn give(&self, task: Task) {
        if let Some((tasks, housekeeper)) = self.tasks.get() {
            // A stopped housekeeper leaves the rest to the next start.
            let _ = tasks.send(task);
            housekeeper.wake();
        }
    }

    /// There may be something to compact.
    pub(crate) fn wake_compactor(&self) {
        if let Some(compacting) = self.compacting.get() {
            compacting.wake();
        }
    }

    /// Ends the compactor, and the housekeeper once it has finished what it has.
    pub(super) fn stop_workers(&self) {
        if let Some(compacting) = self.compacting.get() {
            compacting.stop();
        }
        self.give(Task::Stop);
        if let Some((_, housekeeper)) = self.tasks.get() {
            housekeeper.join();
        }
    }

    /// Waits for what a completion of the write-ahead log is to send.
    pub(crate) fn wait_flushed(
        &self,
        flushed: &mpsc::Receiver<Result<(), StorageFailure>>,
    ) -> Result<(), StorageFailure> {
        let mut told = None;
        self.workers.before_blocking(&mut || {
            told = told.take().or_else(|| flushed.try_recv().ok());
            told.is_some()
        });
        // The writer calls every completion, on its way down too.
        told.unwrap_or_else(|| flushed.recv().unwrap_or_else(|_| Err(stopped())))
    }
}

/// What a store counts besides its write-ahead log.
#[derive(Debug)]
pub(super) struct StoreMetrics {
    pub(super) checkpoints: Counter,
    pub(super) checkpoint_seconds: Histogram,
    pub(super) compaction: CompactionMetrics,
}

impl StoreMetrics {
    pub(super) fn new() -> Self {
        let buckets = prometheus_client::metrics::histogram::exponential_buckets(0.001, 2.0, 15);
        Self {
            checkpoints: Counter::default(),
            checkpoint_seconds: Histogram::new(buckets),
            compaction: CompactionMetrics::default(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "storage_checkpoints",
            "Checkpoints that ended well",
            self.checkpoints.clone(),
        );
        registry.register_with_unit(
            "storage_checkpoint",
            "How long a checkpoint took",
            Unit::Seconds,
            self.checkpoint_seconds.clone(),
        );
        self.compaction.register(registry);
    }
}
