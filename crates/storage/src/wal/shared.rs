//! What the callers, the writer and the preparer of files share.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;

use super::{
    Completion, DIRECTORY, Lsn, StorageFailure, WalConfig, WalFile, WalRecord,
    format::{FILE_HEADER_LEN, FRAME_HEADER_LEN, frame_len, payload_len},
    metrics::WalMetrics,
};
use crate::{
    ReserveError,
    io::{Clock, Disk, Working},
};

/// A backlog entry takes up groups until it has this many bytes: what a checkpoint in the middle of it leaves counted.
const BACKLOG_STEP_BYTES: u64 = 64 << 10;

/// A place in the queue: a record, or the end of a submission without records.
pub(super) struct Item {
    pub(super) record: Option<WalRecord>,
    pub(super) lsn: Lsn,
    /// On a submission's last item.
    pub(super) done: Option<Completion>,
}

impl Item {
    pub(super) fn frame_len(&self) -> u64 {
        self.record
            .as_ref()
            .map_or(0, |record| frame_len(payload_len(record)))
    }
}

/// A file that holds records.
#[derive(Debug)]
pub(super) struct LiveFile {
    pub(super) file: WalFile,
    pub(super) first: Lsn,
}

/// The bytes that wait for a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// The last record of each run of groups, and the run's bytes.
    runs: VecDeque<(Lsn, u64)>,
    bytes: u64,
}

impl Backlog {
    pub(super) fn add(&mut self, last: Lsn, bytes: u64) {
        self.bytes += bytes;
        match self.runs.back_mut() {
            Some(run) if run.1 < BACKLOG_STEP_BYTES => {
                run.0 = last;
                run.1 += bytes;
            }
            _ => self.runs.push_back((last, bytes)),
        }
    }

    fn drop_through(&mut self, upto: Lsn) {
        while let Some((_, bytes)) = self.runs.pop_front_if(|(last, _)| *last <= upto) {
            self.bytes -= bytes;
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) queue: VecDeque<Item>,
    pub(super) queued_bytes: u64,
    /// The number that the next record gets.
    pub(super) next: Lsn,
    pub(super) last_submitted: Lsn,
    pub(super) flushed: Lsn,
    /// Files with records, oldest first; the last is written to.
    pub(super) live: VecDeque<LiveFile>,
    pub(super) backlog: Backlog,
    /// What the active file can still take.
    pub(super) active_room: u64,
    /// Files ready to be written, in the order of their sequence numbers.
    pub(super) spares: VecDeque<WalFile>,
    /// A spare whose blocks are still to be written once.
    pub(super) unfilled: Option<WalFile>,
    /// The sequence number of the spare that zeros are being written to: it can't be taken meanwhile.
    pub(super) filling: Option<u64>,
    /// Files whose records nobody needs.
    pub(super) retired: Vec<WalFile>,
    pub(super) next_sequence: u64,
    /// Why no spare could be made; cleared when one was.
    pub(super) disk_full: Option<String>,
    pub(super) failure: Option<StorageFailure>,
    pub(super) on_failure: Vec<Box<dyn FnOnce(StorageFailure) + Send>>,
    /// The writer ends once it has drained the queue.
    pub(super) closing: bool,
    /// The writer can't go on before there is a spare.
    pub(super) spare_awaited: bool,
    /// The threads end as soon as they can.
    pub(super) abandoned: bool,
    /// The writer has ended: nobody calls completions any more.
    pub(super) writer_ended: bool,
}

impl State {
    pub(super) fn recycle(&mut self, upto: Lsn) {
        self.backlog.drop_through(upto);
        // A file may only go once its successor holds a durable record: else a crash could leave none that tells how
        // far the log went.
        let flushed = self.flushed;
        let successor_vouches =
            |successor: &LiveFile| successor.first <= upto.next() && successor.first <= flushed;
        while self.live.get(1).is_some_and(successor_vouches) {
            self.retired
                .extend(self.live.pop_front().map(|live| live.file));
        }
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.backlog.bytes + self.queued_bytes
    }

    pub(super) fn allocate_sequence(&mut self) -> u64 {
        self.next_sequence += 1;
        self.next_sequence - 1
    }
}

pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) config: WalConfig,
    pub(super) metrics: WalMetrics,
    pub(super) state: Mutex<State>,
    pub(super) writer: OnceLock<Arc<dyn Working>>,
    /// Keeps a file ready.
    pub(super) preparer: OnceLock<Arc<dyn Working>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("config", &self.config).finish()
    }
}

impl Shared {
    pub(super) fn wake_writer(&self) {
        if let Some(writer) = self.writer.get() {
            writer.wake();
        }
    }

    pub(super) fn wake_preparer(&self) {
        if let Some(preparer) = self.preparer.get() {
            preparer.wake();
        }
    }

    pub(super) fn wake_all(&self) {
        self.wake_writer();
        self.wake_preparer();
    }

    pub(super) fn submit(
        &self,
        records: Vec<WalRecord>,
        done: Completion,
    ) -> Result<Lsn, StorageFailure> {
        let mut state = self.state.lock();
        if state.writer_ended {
            let failure = state.failure.clone().unwrap_or_else(stopped);
            drop(state);
            done(Err(failure.clone()));
            return Err(failure);
        }
        let first = state.next;
        let mut items: VecDeque<Item> = records
            .into_iter()
            .map(|record| {
                let lsn = state.next;
                state.next = lsn.next();
                Item {
                    record: Some(record),
                    lsn,
                    done: None,
                }
            })
            .collect();
        let last = state.next.previous();
        match items.back_mut() {
            Some(item) => {
                item.done = Some(done);
                state.last_submitted = last;
            }
            None => items.push_back(Item {
                record: None,
                lsn: first.previous(),
                done: Some(done),
            }),
        }
        state.queued_bytes += items.iter().map(Item::frame_len).sum::<u64>();
        state.queue.append(&mut items);
        let failed = state.failure.clone();
        let last = state.last_submitted;
        drop(state);
        self.wake_writer();
        failed.map_or(Ok(last), Err)
    }

    pub(super) fn has_room(&self, bytes: u64) -> Result<(), ReserveError> {
        let state = self.state.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone().into());
        }
        if state.live_bytes().saturating_add(bytes) > self.config.max_bytes {
            return Err(ReserveError::Busy);
        }
        let needed = state.queued_bytes.saturating_add(frame_len(bytes));
        if needed <= state.active_room || !state.spares.is_empty() {
            return Ok(());
        }
        match &state.disk_full {
            Some(detail) => Err(ReserveError::DiskFull {
                path: PathBuf::from(DIRECTORY),
                bytes,
                detail: detail.clone(),
            }),
            None => Err(ReserveError::Busy),
        }
    }

    pub(super) fn on_failure(&self, f: Box<dyn FnOnce(StorageFailure) + Send>) {
        let mut state = self.state.lock();
        match state.failure.clone() {
            Some(failure) => {
                drop(state);
                f(failure);
            }
            None => state.on_failure.push(f),
        }
    }

    /// Latches a failure; the first one stands.
    pub(super) fn fail(
        &self,
        operation: &'static str,
        path: &Path,
        error: io::Error,
    ) -> StorageFailure {
        let mut state = self.state.lock();
        if let Some(first) = &state.failure {
            return first.clone();
        }
        let failure = StorageFailure {
            operation,
            path: path.to_path_buf(),
            error: Arc::new(error),
        };
        tracing::error!(%failure, "the write-ahead log stops");
        state.failure = Some(failure.clone());
        let listeners = std::mem::take(&mut state.on_failure);
        drop(state);
        self.wake_all();
        for listener in listeners {
            listener(failure.clone());
        }
        failure
    }
}

/// What a record gets that is submitted to, or still queued in, a log that ends.
pub(crate) fn stopped() -> StorageFailure {
    StorageFailure {
        operation: "append",
        path: PathBuf::from(DIRECTORY),
        error: Arc::new(io::Error::other("the write-ahead log was stopped")),
    }
}

/// What a file of `len` bytes, written up to `position`, can still take, leaving room for the mark that follows.
pub(super) fn room(len: u64, position: u64) -> u64 {
    len.saturating_sub(position.max(FILE_HEADER_LEN as u64) + FRAME_HEADER_LEN as u64)
}
