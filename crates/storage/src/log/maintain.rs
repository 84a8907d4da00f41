//! What goes on beside appending and reading: checkpoints, retention, removal.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use quipu_model::{LogId, Offset, RaftIndex, TimestampMs};

use super::{
    AppendError, Inner, PartitionLog,
    core::ClosedSegment,
    segment::Segment,
    state::{PartitionState, SegmentState},
    types::RetentionPolicy,
};
use crate::io::DiskFile;

/// What a checkpoint takes from a partition.
#[derive(Debug)]
pub(crate) struct Captured {
    /// The encoded [`PartitionState`].
    pub(crate) state: Bytes,
    /// The files that must be durable before it is.
    pub(crate) unsynced: Vec<(PathBuf, Arc<dyn DiskFile>)>,
    /// The files that no state names any more once this one is durable.
    pub(crate) obsolete: Vec<PathBuf>,
}

impl PartitionLog {
    /// Seals what was closed since the last checkpoint. Blocks; holds no lock while it reads and writes.
    pub(crate) fn seal_closed(&self) -> std::io::Result<()> {
        let unsealed: Vec<ClosedSegment> = {
            let inner = self.inner.lock();
            inner
                .core
                .closed
                .iter()
                .filter(|closed| !closed.segment.is_sealed())
                .cloned()
                .collect()
        };
        for ClosedSegment { segment, producers } in unsealed {
            let dir = self.inner.lock().core.dir.clone();
            segment.seal(&*self.context.disk, &dir, &producers.unwrap_or_default())?;
            let mut inner = self.inner.lock();
            for closed in inner
                .core
                .closed
                .iter_mut()
                .filter(|closed| Arc::ptr_eq(&closed.segment, &segment))
            {
                closed.producers = None;
            }
            inner.captured = None;
        }
        Ok(())
    }

    /// The partition's state for a checkpoint; the one of the last checkpoint, where nothing has changed.
    pub(crate) fn capture(&self) -> Option<Captured> {
        let mut inner = self.inner.lock();
        if inner.removed {
            return None;
        }
        if let Some(state) = inner.captured.clone() {
            return Some(Captured {
                state,
                unsynced: Vec::new(),
                obsolete: Vec::new(),
            });
        }
        let mut encoded = Vec::new();
        inner.partition_state(self.key).encode(&mut encoded);
        let state = Bytes::from(encoded);
        inner.captured = Some(state.clone());
        let unsealed = inner.core.segments().filter(|segment| !segment.is_sealed());
        let unsynced = unsealed
            .map(|segment| (segment.path.clone(), Arc::clone(&segment.file)))
            .collect();
        let obsolete = inner.obsolete.clone();
        Some(Captured {
            state,
            unsynced,
            obsolete,
        })
    }

    /// The checkpoint that a capture was for is durable: the files that it no longer names may go.
    pub(crate) fn checkpointed(&self, captured: &Captured) {
        let mut inner = self.inner.lock();
        inner
            .obsolete
            .retain(|path| !captured.obsolete.contains(path));
        let in_use = |path: &&PathBuf| {
            inner
                .core
                .segments()
                .any(|segment| segment.path.with_extension("") == path.with_extension(""))
        };
        // Set aside under the lock, lest a new segment of that name be taken for it; removing can take a while.
        let aside: Vec<PathBuf> = captured
            .obsolete
            .iter()
            .filter(|path| !in_use(path))
            .filter_map(|path| {
                let aside = path.with_added_extension("gone");
                self.context.disk.rename(path, &aside).ok().map(|()| aside)
            })
            .collect();
        drop(inner);
        self.context.remove_files_now(&aside);
    }

    /// The checkpoint that a capture was for did not happen.
    pub(crate) fn discard_capture(&self) {
        self.inner.lock().captured = None;
    }

    /// Marks the partition removed: no checkpoint keeps it any more.
    pub(crate) fn mark_removed(&self) {
        self.inner.lock().removed = true;
    }

    /// Up to which offset the policy lets records go now: always the end of a closed segment.
    pub fn retention_point(&self, policy: RetentionPolicy, now: TimestampMs) -> Option<Offset> {
        let inner = self.inner.lock();
        let (mut bytes, mut records) = (
            inner.core.size_bytes(),
            inner.core.end_offset.since(inner.core.start_offset),
        );
        let mut point = None;
        for ClosedSegment { segment, .. } in &inner.core.closed {
            let age_ms = now.get().saturating_sub(segment.newest().get());
            let too_old = policy
                .max_age_ms
                .is_some_and(|most| age_ms > 0 && age_ms as u64 > most);
            let too_large = policy
                .max_bytes
                .is_some_and(|most| bytes - segment.len() >= most);
            let too_many = policy
                .max_records
                .is_some_and(|most| records.saturating_sub(segment.records()) >= most);
            if !(too_old || too_large || too_many) {
                break;
            }
            bytes -= segment.len();
            records = records.saturating_sub(segment.records());
            point = Some(segment.next_offset());
        }
        point
    }

    /// Closes the active segment where its first record was appended `segment.ms` ago or longer, so that retention can
    /// reach it.
    ///
    /// # Errors
    /// Where the partition or the store has failed.
    pub fn roll_if_due(&self, now: TimestampMs) -> Result<(), AppendError> {
        self.check_undamaged()?;
        let mut inner = self.inner.lock();
        let most = inner.core.config.segment_ms;
        let due = inner.core.active.as_ref().is_some_and(|active| {
            let age_ms = now.get().saturating_sub(active.segment.created.get());
            active.len() > 0 && age_ms > 0 && age_ms as u64 >= most
        });
        if due {
            inner
                .core
                .close_active()
                .map_err(|error| self.append_error(error))?;
            inner.captured = None;
        }
        Ok(())
    }

    /// Up to where Raft's log may be purged: the entry before the first segment's first batch, and the offset that
    /// follows it. `None` while nothing was trimmed.
    pub fn purge_point(&self) -> Option<(LogId, Offset)> {
        let inner = self.inner.lock();
        let first = inner.core.segments().next()?;
        let index = RaftIndex::new(first.first_index.get().checked_sub(1)?);
        let purged = inner.core.last_purged;
        let term = inner.core.raft.term_of(index)?;
        (first.base > Offset::ZERO && purged.is_none_or(|purged| purged.index < index))
            .then_some((LogId { term, index }, first.base))
    }
}

impl Inner {
    fn partition_state(&self, key: quipu_model::PartitionKey) -> PartitionState {
        let core = &self.core;
        let state_of = |segment: &Arc<Segment>| SegmentState {
            base: segment.base,
            next_offset: segment.next_offset(),
            first: LogId {
                term: segment.term,
                index: segment.first_index,
            },
            sealed: segment.is_sealed(),
            bytes: segment.len(),
            created: segment.created,
        };
        PartitionState {
            key,
            lsn: self.lsn,
            segment_bytes: core.config.segment_bytes,
            start_offset: core.start_offset,
            end_offset: core.end_offset,
            last_purged: core.last_purged,
            last: core.last,
            applied: self.applied.0,
            vote: core.vote,
            membership: self.applied.1.clone(),
            terms: core.raft.terms().to_vec(),
            controls: core.raft.controls().clone(),
            segments: core.segments().map(state_of).collect(),
        }
    }
}
