//! Taking entries in.

use std::{collections::VecDeque, io, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use quipu_model::{LogId, Offset, RaftIndex, RecordBatch, TimestampMs, Vote};

use super::{
    AppendError, Inner, PartitionLog, ReserveError,
    active::ActiveSegment,
    core::CoreError,
    types::{Control, EntryInfo, EntryKind, LogEntry, Payload},
};
use crate::wal::{Completion, RecordKind, StorageFailure, WalRecord};

/// Room for a batch, taken before it is proposed, so that appending it cannot meet a full disk. Drop it once the batch was
/// appended or given up.
#[derive(Debug)]
pub struct Reservation {
    log: Arc<PartitionLog>,
    bytes: u64,
}

impl Inner {
    pub(super) fn check_taking(&self) -> Result<(), StorageFailure> {
        self.ended.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.log.inner.lock().reserved_bytes -= self.bytes;
    }
}

impl PartitionLog {
    /// Checks for and takes room for a batch of `bytes` bytes.
    ///
    /// # Errors
    /// Nothing has happened then; all but damage and failure heal by themselves.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, ReserveError> {
        self.check_undamaged()?;
        self.context.wal.has_room(bytes).inspect_err(|error| {
            if matches!(error, ReserveError::Busy) {
                self.context.checkpoint_if_due();
            }
        })?;
        let mut inner = self.inner.lock();
        inner.check_taking()?;
        let wanted = inner.reserved_bytes.saturating_add(bytes);
        let core = &mut inner.core;
        let fits = |active: &ActiveSegment| {
            active.len() > 0 && active.len().saturating_add(wanted) <= active.most_bytes()
        };
        let room = if core.active.as_ref().is_some_and(fits) {
            core.active
                .as_mut()
                .map_or(Ok(()), |active| active.allocate(wanted))
        } else if wanted == bytes || wanted <= core.config.segment_bytes {
            // Some of what is on its way may still go to the active segment, the rest to the next: both have room for all.
            core.ensure_spare(wanted).and_then(|()| {
                core.active
                    .as_mut()
                    .map_or(Ok(()), |active| active.allocate(wanted))
            })
        } else {
            return Err(ReserveError::Busy);
        };
        match room {
            Ok(()) => {
                inner.reserved_bytes = wanted;
                drop(inner);
                Ok(Reservation {
                    log: Arc::clone(self),
                    bytes,
                })
            }
            Err(error) if is_full(&error) => Err(ReserveError::DiskFull {
                path: core.dir.clone(),
                bytes,
                detail: error.to_string(),
            }),
            Err(error) => {
                let path = core.dir.clone();
                Err(self.fail("allocate", path, error).into())
            }
        }
    }

    /// Appends entries that continue the log. They can be read at once; `done` is called when they are durable. Where the
    /// store fails meanwhile `done` gets the failure too; on any other error it is never called. What was not reserved may
    /// meet a full disk, and that fails the store.
    ///
    /// # Errors
    /// Where an entry does not continue the log, or the partition or the store has failed.
    pub fn append(&self, entries: Vec<LogEntry>, done: Completion) -> Result<(), AppendError> {
        self.check_undamaged()?;
        let now = self.context.clock.now();
        let mut inner = self.inner.lock();
        inner.check_taking()?;
        if let Some(failure) = self.context.wal.failure() {
            return Err(failure.into());
        }
        self.check_continues(&inner, &entries)?;
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            records.push(
                self.push(&mut inner, entry, now)
                    .map_err(|error| self.append_error(error))?,
            );
        }
        // First the queue, so that the segment is written while the write-ahead log is. Readers wait for both: they take the
        // lock to find the segment.
        self.submit(&mut inner, records, done)?;
        inner
            .core
            .write_pending()
            .map_err(|error| self.append_error(error))?;
        self.start_writeback(&mut inner);
        drop(inner);
        self.context.checkpoint_if_due();
        Ok(())
    }

    /// Stores a vote; `done` is called once it, and all that was submitted before it, is durable.
    ///
    /// # Errors
    /// Where the partition or the store has failed.
    pub fn save_vote(&self, vote: Vote, done: Completion) -> Result<(), AppendError> {
        self.check_undamaged()?;
        let mut inner = self.inner.lock();
        inner.check_taking()?;
        self.put_vote(&mut inner, vote, done)
    }

    /// Begins a log in which there is nothing yet as one that was left here before and comes back: it has `vote`, and is not
    /// to vote or stand before it reaches the entry `votes_from`. `done` is called once that is durable.
    ///
    /// # Errors
    /// Where the partition or the store has failed.
    pub fn begin_anew(
        &self,
        vote: Vote,
        votes_from: RaftIndex,
        done: Completion,
    ) -> Result<(), AppendError> {
        self.check_undamaged()?;
        let mut inner = self.inner.lock();
        inner.check_taking()?;
        inner.core.votes_from = votes_from;
        self.put_vote(&mut inner, vote, done)
    }

    /// Makes a leader's vote this log's, unless it has that or a later one. Also of a damaged log.
    pub(super) fn follow(&self, leader: Vote) -> Result<(), AppendError> {
        let mut inner = self.inner.lock();
        inner.check_taking()?;
        let follows =
            |vote: Vote| vote.term > leader.term || (vote.term == leader.term && vote.committed);
        if inner.core.vote.is_some_and(follows) {
            return Ok(());
        }
        self.put_vote(&mut inner, leader, Box::new(drop))
    }

    fn put_vote(&self, inner: &mut Inner, vote: Vote, done: Completion) -> Result<(), AppendError> {
        inner.core.vote = Some(vote);
        let mut payload = BytesMut::with_capacity(9);
        payload.put_u64_le(vote.node.get());
        payload.put_u8(u8::from(vote.committed));
        let id = LogId {
            term: vote.term,
            index: inner.core.votes_from,
        };
        let record = self.record(
            RecordKind::Vote,
            id,
            Offset::ZERO,
            [payload.freeze(), Bytes::new()],
        );
        self.submit(inner, vec![record], done)
    }

    pub(super) fn record(
        &self,
        kind: RecordKind,
        log_id: LogId,
        base_offset: Offset,
        payload: [Bytes; 2],
    ) -> WalRecord {
        WalRecord {
            key: self.key,
            kind,
            log_id,
            base_offset,
            payload,
        }
    }

    /// Queues records for the write-ahead log, in the order in which they changed this log.
    pub(super) fn submit(
        &self,
        inner: &mut Inner,
        records: Vec<WalRecord>,
        done: Completion,
    ) -> Result<(), AppendError> {
        inner.captured = None;
        inner.lsn = self.context.wal.submit(records, done)?;
        Ok(())
    }

    /// Everything is checked before anything is changed: a refused append leaves the log as it was.
    fn check_continues(&self, inner: &Inner, entries: &[LogEntry]) -> Result<(), AppendError> {
        let refuse = |id, detail: String| {
            Err(AppendError::Discontinuous {
                key: self.key,
                id,
                detail,
            })
        };
        let (mut index, mut end) = (inner.core.next_index(), inner.core.end_offset);
        let mut term = inner.core.last.map(|last| last.term).unwrap_or_default();
        for entry in entries {
            let id = entry.id;
            if id.index != index || id.term < term {
                return refuse(id, format!("index {index} in term {term} or later was due"));
            }
            if let Payload::Stamped(batch) = &entry.payload
                && batch.header().base_offset != end
            {
                return refuse(
                    id,
                    format!(
                        "it carries base offset {}, this log ends at {end}",
                        batch.header().base_offset
                    ),
                );
            }
            if let Payload::Stamped(batch) | Payload::Batch(batch) = &entry.payload {
                end = end.plus(u64::from(batch.header().last_offset_delta) + 1);
            }
            (index, term) = (index.next(), id.term);
        }
        Ok(())
    }

    fn push(
        &self,
        inner: &mut Inner,
        entry: LogEntry,
        now: TimestampMs,
    ) -> Result<WalRecord, CoreError> {
        match entry.payload {
            Payload::Batch(batch) | Payload::Stamped(batch) => {
                self.push_batch(inner, entry.id, &batch, now)
            }
            Payload::Control(control) => Ok(self.push_control(inner, entry.id, control)),
        }
    }

    fn push_batch(
        &self,
        inner: &mut Inner,
        id: LogId,
        batch: &RecordBatch,
        now: TimestampMs,
    ) -> Result<WalRecord, CoreError> {
        let stamped = inner.core.push_batch(id, batch, now)?;
        let kind = EntryKind::Batch {
            base: stamped.base_offset,
            next: stamped.next_offset(),
        };
        remember(&mut inner.recent, EntryInfo { id, kind });
        Ok(self.record(
            RecordKind::Batch,
            id,
            stamped.base_offset,
            [stamped.prefix, stamped.body],
        ))
    }

    fn push_control(&self, inner: &mut Inner, id: LogId, control: Control) -> WalRecord {
        let kind = Bytes::copy_from_slice(&[control.kind as u8]);
        let record = self.record(
            RecordKind::Control,
            id,
            inner.core.end_offset,
            [kind, control.bytes.clone()],
        );
        inner.core.push_control(id, control.clone());
        remember(
            &mut inner.recent,
            EntryInfo {
                id,
                kind: EntryKind::Control(control),
            },
        );
        record
    }

    fn start_writeback(&self, inner: &mut Inner) {
        if let Some(active) = &mut inner.core.active
            && let Some((position, len)) = active.take_writeback()
        {
            self.context
                .start_writeback(Arc::clone(&active.segment.file), position, len);
        }
    }
}

/// Entries that a stalled follower does not apply are read from the segments instead of piling up here.
const MOST_RECENT: usize = 4096;

fn remember(recent: &mut VecDeque<EntryInfo>, entry: EntryInfo) {
    if recent.len() == MOST_RECENT {
        recent.pop_front();
    }
    recent.push_back(entry);
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
