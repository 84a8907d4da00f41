//! Taking entries and records away: truncation and purge for Raft, trim for retention.

use std::{path::PathBuf, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use quipu_model::{LogId, Offset};

use super::{AppendError, Inner, PartitionLog, core::CoreError, segment::Segment};
use crate::wal::{RecordKind, WalRecord};

impl PartitionLog {
    /// Drops all entries after `last`.
    ///
    /// # Errors
    /// Where the partition or the store has failed.
    pub fn truncate_after(&self, last: Option<LogId>) -> Result<(), AppendError> {
        self.check_undamaged()?;
        let mut inner = self.inner.lock();
        inner.check_taking()?;
        if inner.core.last == last {
            return Ok(());
        }
        self.check_within(&inner, last)?;
        let now = self.context.clock.now();
        let end = inner.core.end_after(last);
        let gone = end
            .and_then(|end| inner.core.cut_to(last, end))
            .map_err(|error| self.append_error(error))?;
        let rebuilt = inner.core.rebuild_producers(now);
        let keep = last.map_or(0, |last| last.index.get() + 1);
        inner.recent.retain(|entry| entry.id.index.get() < keep);
        let present = Bytes::copy_from_slice(&[u8::from(last.is_some())]);
        let record = self.record(
            RecordKind::Truncate,
            last.unwrap_or_default(),
            inner.core.end_offset,
            [present, Bytes::new()],
        );
        // The log is cut, whether or not what is left of it could be read.
        self.submit_cut(&mut inner, record, &gone)?;
        rebuilt.map_err(|error| self.append_error(error))
    }

    /// Only an entry that is there, or the last one purged, can become the last one.
    fn check_within(&self, inner: &Inner, last: Option<LogId>) -> Result<(), AppendError> {
        let core = &inner.core;
        let purged = core.last_purged;
        let known = match last {
            None => purged.is_none(),
            Some(id) => {
                last == purged
                    || (purged.is_none_or(|purged| purged.index < id.index)
                        && core.last.is_some_and(|end| id.index <= end.index)
                        && core.raft.term_of(id.index) == Some(id.term))
            }
        };
        if known {
            return Ok(());
        }
        let detail = "the log was to be cut behind an entry that it does not hold".to_owned();
        Err(AppendError::Discontinuous {
            key: self.key,
            id: last.unwrap_or_default(),
            detail,
        })
    }

    /// Forgets entries up to and including `upto` for Raft; their records stay until they are trimmed. Past the log's end,
    /// the log is emptied and goes on at `next_offset` (a snapshot was installed): with what was noted as applied, which a start
    /// then finds again.
    ///
    /// # Errors
    /// Where the partition or the store has failed.
    pub fn purge(&self, upto: LogId, next_offset: Offset) -> Result<(), AppendError> {
        self.check_undamaged()?;
        let mut inner = self.inner.lock();
        inner.check_taking()?;
        let emptied = inner.core.last.is_none_or(|last| last.index < upto.index);
        let membership = inner.applied.1.clone();
        let membership = membership.filter(|(id, _)| emptied && id.index <= upto.index);
        let gone = inner
            .core
            .purge(upto, next_offset, membership.as_ref())
            .map_err(|error| self.append_error(error))?;
        inner.recent.retain(|entry| entry.id.index > upto.index);
        let payload = membership.map_or_else(Default::default, |(id, bytes)| {
            let mut head = BytesMut::new();
            head.put_u64_le(id.term.get());
            head.put_u64_le(id.index.get());
            [head.freeze(), bytes]
        });
        let record = self.record(RecordKind::Purge, upto, next_offset, payload);
        self.submit_cut(&mut inner, record, &gone)?;
        if inner.core.config.cleanup.compact {
            self.context.wake_compactor();
        }
        Ok(())
    }

    /// Makes `before` the first offset served, and deletes the closed segments that lie wholly below it.
    ///
    /// # Errors
    /// Where the partition or the store has failed.
    pub fn trim(&self, before: Offset) -> Result<(), AppendError> {
        self.check_undamaged()?;
        let (base, tables) = {
            let inner = self.inner.lock();
            inner.check_taking()?;
            if before <= inner.core.start_offset {
                return Ok(());
            }
            (inner.core.base_after_trim(before), inner.core.tables())
        };
        let known = tables.at(base, self.context.clock.now());
        let known = known.map_err(|(segment, error)| {
            self.append_error(CoreError::Segment(segment.path.clone(), error))
        })?;
        let mut inner = self.inner.lock();
        inner.check_taking()?;
        let gone = inner.core.trim(before, (base, &known));
        let record = self.record(
            RecordKind::Trim,
            LogId::default(),
            inner.core.start_offset,
            Default::default(),
        );
        self.submit_cut(&mut inner, record, &gone)?;
        drop(inner);
        if !gone.is_empty() {
            self.context.request_checkpoint();
        }
        Ok(())
    }

    /// The files go with the next checkpoint: until then, a start reads the last one's state, which names them.
    fn submit_cut(
        &self,
        inner: &mut Inner,
        record: WalRecord,
        gone: &[Arc<Segment>],
    ) -> Result<(), AppendError> {
        inner.obsolete.extend(files_of(gone));
        self.submit(inner, vec![record], Box::new(|_| ()))
    }
}

/// A segment's file and those beside it.
pub(super) fn files_of(segments: &[Arc<Segment>]) -> Vec<PathBuf> {
    let beside = [
        "log",
        "index",
        "producers",
        "seal",
        "log.damaged",
        "seal.damaged",
    ];
    segments
        .iter()
        .flat_map(|segment| beside.map(|ending| segment.path.with_extension(ending)))
        .collect()
}
