//! The write-ahead log that all partitions of a data directory share.
//!
//! One worker takes all that is queued, writes it with one call, syncs once and reports; another keeps a file ready, so
//! that going on to the next one costs nothing. [`UnrecoveredWal::open`], then [`UnrecoveredWal::replay`], gives a [`Wal`].

mod dump;
mod format;
mod metrics;
mod reader;
mod scan;
mod shared;
mod spares;
mod writer;

pub(crate) use dump::{FileItem, dump_file};
pub(crate) use reader::{ReplayedRecord, UnrecoveredWal};
pub(crate) use shared::stopped;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use quipu_model::{LogId, Offset, PartitionKey};

use crate::{
    ReserveError,
    io::{DiskFile, Workers},
};
use shared::Shared;

const DIRECTORY: &str = "wal";

/// A log sequence number: the place of a record in the write-ahead log. The first is 1; they have no gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Lsn(u64);

impl Lsn {
    /// Wraps a bare number; 0 stands before the first record.
    pub(crate) const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The bare number.
    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    /// The next record's number.
    pub(crate) const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a WAL record says. The numbers are on disk: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordKind {
    /// A Raft entry holding a record batch; payload: the stamped batch.
    Batch = 1,
    /// A Raft entry holding something else; payload: one byte of control kind, then its bytes.
    Control = 2,
    /// A vote; `log_id.term` is its term, `log_id.index` the entry from which on the replica votes; payload: node id, committed
    /// flag.
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
    /// Another replica's log stands in place of the partition's, up to `log_id` and `base_offset`; payload: the format of the
    /// state, the state.
    Install = 9,
}

impl RecordKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Batch,
            2 => Self::Control,
            3 => Self::Vote,
            4 => Self::Truncate,
            5 => Self::Purge,
            6 => Self::Trim,
            7 => Self::Removed,
            8 => Self::Mark,
            9 => Self::Install,
            _ => return None,
        })
    }
}

/// A record to be written.
#[derive(Clone, Debug)]
pub(crate) struct WalRecord {
    pub(crate) key: PartitionKey,
    pub(crate) kind: RecordKind,
    pub(crate) log_id: LogId,
    pub(crate) base_offset: Offset,
    /// The payload in up to two pieces, written one after the other (a batch's stamped prefix and the rest of it).
    pub(crate) payload: [Bytes; 2],
}

/// The first failed write or sync: from then on the store acknowledges nothing more.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{operation} failed on {path}: {error}; nothing more is acknowledged: see to the disk, then start the broker again"
)]
pub struct StorageFailure {
    /// What was being done.
    pub operation: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// What the system said.
    pub error: Arc<std::io::Error>,
}

/// Called once the records it was submitted with are durable, or never will be. Runs on the WAL's thread: it must not block.
pub type Completion = Box<dyn FnOnce(Result<(), StorageFailure>) + Send>;

/// How a write-ahead log behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WalConfig {
    /// The size of each file, in bytes. A record that is larger gets a larger file of its own.
    pub(crate) file_bytes: u64,
    /// [`Wal::has_room`] says no while more bytes than this wait for a checkpoint.
    pub(crate) max_bytes: u64,
}

/// An open write-ahead log. Dropping it without [`Wal::close`] is a crash as far as the disk is concerned: what is still
/// queued is not written, and its completions get an error.
#[derive(Debug)]
pub(crate) struct Wal {
    shared: Arc<Shared>,
}

impl Wal {
    /// Queues records; their numbers follow each other, the last is returned. The order of submissions is the order in the
    /// log. Never waits for the disk. Without records, `done` follows what was submitted before.
    ///
    /// # Errors
    /// The failure that stopped the log; `done` gets it too.
    pub(crate) fn submit(
        &self,
        records: Vec<WalRecord>,
        done: Completion,
    ) -> Result<Lsn, StorageFailure> {
        self.shared.submit(records, done)
    }

    /// The last record submitted.
    pub(crate) fn last_submitted(&self) -> Lsn {
        self.shared.state.lock().last_submitted
    }

    /// The last record known to be durable.
    #[cfg(test)]
    pub(crate) fn flushed(&self) -> Lsn {
        self.shared.state.lock().flushed
    }

    /// Lets files go whose records are all at or below `upto`: the caller has made durable elsewhere what they say.
    pub(crate) fn recycle(&self, upto: Lsn) {
        self.shared.state.lock().recycle(upto);
        self.shared.wake_preparer();
    }

    /// Bytes above the last [`Wal::recycle`], those still queued included.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.shared.state.lock().live_bytes()
    }

    /// Whether records of `bytes` bytes can be submitted without waiting for a checkpoint or for space on the disk.
    pub(crate) fn has_room(&self, bytes: u64) -> Result<(), ReserveError> {
        self.shared.has_room(bytes)
    }

    /// The failure that stopped the log, once there was one.
    pub(crate) fn failure(&self) -> Option<StorageFailure> {
        self.shared.state.lock().failure.clone()
    }

    /// Calls `f` on the failing thread when the log fails; at once where it has failed already. That thread may hold a
    /// partition's lock: `f` must not call the store.
    pub(crate) fn on_failure(&self, f: Box<dyn FnOnce(StorageFailure) + Send>) {
        self.shared.on_failure(f);
    }

    /// Registers the log's metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
    }

    /// Latches a failure that was met outside the log; the first one stands, and is given back.
    pub(crate) fn fail(
        &self,
        operation: &'static str,
        path: &Path,
        error: std::io::Error,
    ) -> StorageFailure {
        self.shared.fail(operation, path, error)
    }

    /// Writes and syncs all that is queued and a last mark, and ends the threads. Blocks.
    ///
    /// # Errors
    /// The failure that stopped the log, now or before.
    pub(crate) fn close(&self) -> Result<(), StorageFailure> {
        self.shared.state.lock().closing = true;
        self.join();
        self.failure().map_or(Ok(()), Err)
    }

    /// Ends the threads without writing what is queued; its completions get an error. Blocks.
    pub(crate) fn abandon(&self) {
        self.shared.state.lock().abandoned = true;
        self.join();
    }

    fn start(shared: Arc<Shared>, workers: &dyn Workers) -> std::io::Result<Self> {
        let writer = writer::Writer::new(Arc::clone(&shared));
        let preparer = spares::Preparer {
            shared: Arc::clone(&shared),
        };
        let wal = Self { shared };
        // A first step comes before the first rest: neither misses what happens before the other can wake it.
        let writer = workers.start("wal-writer", Box::new(writer))?;
        wal.shared.writer.get_or_init(|| writer);
        let preparer = workers.start("wal-spares", Box::new(preparer))?;
        wal.shared.preparer.get_or_init(|| preparer);
        Ok(wal)
    }

    fn join(&self) {
        self.shared.wake_all();
        let (writer, preparer) = (&self.shared.writer, &self.shared.preparer);
        for worker in [writer.get(), preparer.get()].into_iter().flatten() {
            worker.join();
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.abandon();
    }
}

/// An open file of the log.
#[derive(Clone, Debug)]
struct WalFile {
    sequence: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    len: u64,
}

fn file_path(sequence: u64) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{sequence:020}.wal"))
}

fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    let valid = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
