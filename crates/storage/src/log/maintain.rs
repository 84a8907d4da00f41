//! What goes on beside appending and reading: checkpoints, retention, removal.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use quipu_model::{LogId, Offset, RaftIndex, TimestampMs};

use super::{
    AppendError, Inner, PartitionLog,
    append::is_full,
    check::check_unsealed,
    core::ClosedSegment,
    segment::{Segment, SegmentError},
    state::PartitionState,
    types::RetentionPolicy,
};
use crate::{
    io::DiskFile,
    wal::{Completion, RecordKind, StorageFailure, stopped},
};

/// Who is told that segments were sealed.
pub(super) struct SealedHook(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for SealedHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealedHook")
    }
}

/// What a checkpoint takes from a partition.
#[derive(Debug)]
pub(crate) struct Captured {
    /// The encoded [`PartitionState`].
    pub(crate) state: Bytes,
    /// The files that must be durable before it is.
    pub(crate) unsynced: Vec<(PathBuf, Arc<dyn DiskFile>)>,
    /// The files that no state names any more once this one is durable.
    pub(crate) obsolete: Vec<PathBuf>,
    /// The segments that it names as they were cut.
    cut: Vec<Arc<Segment>>,
    /// The last entry applied, as the state has it.
    applied: Option<LogId>,
    /// How many segments of it are sealed.
    sealed: usize,
}

impl PartitionLog {
    /// Seals what was closed since the last checkpoint, with the checksums taken when it was appended; where a start came in
    /// between, its batches are checked first, since a seal over rotten bytes would vouch for them. Blocks; holds no lock
    /// while it reads and writes.
    pub(crate) fn seal_closed(&self) -> std::io::Result<()> {
        let (raft, unsealed) = {
            let inner = self.inner.lock();
            if inner.removed {
                return Ok(());
            }
            let to_seal = |closed: &&ClosedSegment| {
                !closed.segment.is_sealed() && !closed.segment.is_newly_cut()
            };
            let unsealed: Vec<_> = inner.core.closed.iter().filter(to_seal).cloned().collect();
            (Arc::clone(&inner.core.raft), unsealed)
        };
        for closed in unsealed {
            if self.damage().is_some() {
                break;
            }
            let segment = &closed.segment;
            let checked = match &closed.block_crcs {
                Some(_) => Ok(()),
                None => check_unsealed(segment, &raft).map(drop),
            };
            match checked {
                Ok(()) => {}
                Err(SegmentError::Io(error)) => return Err(error),
                Err(rot) => {
                    self.read_error(segment, rot);
                    continue;
                }
            }
            let (producers, crcs) = (closed.producers.as_deref(), closed.block_crcs.as_deref());
            segment.seal(&*self.context.disk, producers, crcs)?;
            segment.note_scrubbed(self.context.clock.monotonic());
            let mut inner = self.inner.lock();
            for closed in inner
                .core
                .closed
                .iter_mut()
                .filter(|closed| Arc::ptr_eq(&closed.segment, segment))
            {
                closed.producers = None;
                closed.block_crcs = None;
            }
            inner.captured = None;
        }
        Ok(())
    }

    pub(crate) fn sealed_segments(&self) -> Vec<Arc<Segment>> {
        let inner = self.inner.lock();
        let sealed = inner.core.segments().filter(|segment| segment.is_sealed());
        sealed.cloned().collect()
    }

    /// Checks a piece of a sealed segment against its seal; how many bytes it had, `None` once there is nothing more to do.
    pub(crate) fn scrub(&self, segment: &Arc<Segment>, position: u64, len: usize) -> Option<usize> {
        if self.damage().is_some() {
            return None;
        }
        let read = segment.scrub(position, len);
        // Damage is latched by that.
        read.map_err(|error| self.read_error(segment, error)).ok()
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
                cut: Vec::new(),
                applied: inner.applied.0,
                sealed: inner.checkpointed_sealed,
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
        let cut = inner.core.segments().filter(|s| s.is_newly_cut());
        let cut = cut.cloned().collect();
        let sealed = inner.core.segments().filter(|s| s.is_sealed()).count();
        Some(Captured {
            state,
            unsynced,
            obsolete,
            cut,
            applied: inner.applied.0,
            sealed,
        })
    }

    /// The checkpoint that a capture was for is durable: the files that it no longer names may go.
    pub(crate) fn checkpointed(&self, captured: &Captured) {
        captured.cut.iter().for_each(|cut| cut.note_checkpointed());
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
        inner.checkpointed_applied = captured.applied;
        let sealed = std::mem::replace(&mut inner.checkpointed_sealed, captured.sealed);
        drop(inner);
        self.context.remove_files_now(&aside);
        if sealed != captured.sealed
            && let Some(SealedHook(tell)) = self.on_sealed.get()
        {
            tell();
        }
    }

    /// The checkpoint that a capture was for did not happen.
    pub(crate) fn discard_capture(&self) {
        self.inner.lock().captured = None;
    }

    /// Ends the partition's life on this node: nothing is written to it any more, and no checkpoint keeps it. `done` is
    /// called once that is durable.
    pub(crate) fn remove(&self, done: Completion) -> Result<(), StorageFailure> {
        let mut inner = self.inner.lock();
        let record = self.record(
            RecordKind::Removed,
            LogId::default(),
            Offset::ZERO,
            Default::default(),
        );
        inner.lsn = self.context.wal.submit(vec![record], done)?;
        let gone = std::io::Error::other("the partition was removed from this node");
        inner.ended = Some(StorageFailure {
            operation: "append",
            path: inner.core.dir.clone(),
            error: Arc::new(gone),
        });
        inner.removed = true;
        Ok(())
    }

    /// The store closes: whoever still holds a handle writes nothing more through it.
    pub(crate) fn end(&self) {
        self.inner.lock().ended.get_or_insert_with(stopped);
    }

    /// Up to which offset the policy lets records go now: always the end of a closed segment.
    pub fn retention_point(&self, policy: RetentionPolicy, now: TimestampMs) -> Option<Offset> {
        let inner = self.inner.lock();
        let (mut bytes, mut records) = (
            inner.core.size_bytes(),
            inner.core.end_offset.since(inner.core.start_offset),
        );
        let mut point = None;
        for (at, ClosedSegment { segment, .. }) in inner.core.closed.iter().enumerate() {
            let age_ms = now.get().saturating_sub(inner.core.newest_ms(at));
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

    /// Closes the active segment where its first record was appended `segment.ms` ago or longer (`max.compaction.lag.ms`, where
    /// that is less and the topic is compacted), so that retention and compaction can reach it.
    ///
    /// # Errors
    /// Where the partition or the store has failed.
    pub fn roll_if_due(&self, now: TimestampMs) -> Result<(), AppendError> {
        self.check_undamaged()?;
        let mut inner = self.inner.lock();
        inner.check_taking()?;
        let config = &inner.core.config;
        let most = match config.cleanup.compact {
            true => config.segment_ms.min(config.max_compaction_lag_ms),
            false => config.segment_ms,
        };
        let reserved = inner.reserved_bytes;
        let due = inner.core.active.as_ref().is_some_and(|active| {
            let age_ms = now.get().saturating_sub(active.segment.created.get());
            active.len() > 0 && age_ms > 0 && age_ms as u64 >= most
        });
        // What has room in this segment must have it in the next one: on a full disk, this one goes on.
        let ready = match due.then(|| inner.core.ensure_spare(reserved)) {
            None => false,
            Some(Ok(())) => true,
            Some(Err(error)) if is_full(&error) => false,
            Some(Err(error)) => {
                let path = inner.core.dir.clone();
                return Err(self.fail("allocate", path, error).into());
            }
        };
        if ready {
            inner
                .core
                .close_active()
                .map_err(|error| self.append_error(error))?;
            inner.captured = None;
        }
        Ok(())
    }

    /// Up to where Raft's log may forget what followers that are far behind copy by segments instead: the end of a sealed
    /// segment behind which another closed one and at least `keep_bytes` follow, where that was applied as of the last
    /// checkpoint. Its last entry, and the offset that follows it. `None` where it may forget nothing more.
    pub fn copied_point(&self, keep_bytes: u64) -> Option<(LogId, Offset)> {
        let inner = self.inner.lock();
        let core = &inner.core;
        let applied = inner.checkpointed_applied?;
        let mut kept = core.active.as_ref().map_or(0, |active| active.len());
        let mut at = core.closed.len();
        while at > 1 && (kept < keep_bytes || at == core.closed.len()) {
            at -= 1;
            kept += core.closed.get(at)?.segment.len();
        }
        let (before, next) = (core.closed.get(at.checked_sub(1)?)?, core.closed.get(at)?);
        let index = RaftIndex::new(next.segment.first_index.get().checked_sub(1)?);
        let purged = core.last_purged;
        let possible = kept >= keep_bytes
            && before.segment.is_sealed()
            && index <= applied.index
            && purged.is_none_or(|purged| purged.index < index);
        let term = core.raft.term_of(index)?;
        possible.then_some((LogId { term, index }, next.segment.base))
    }

    /// Calls `f`, on the thread that checkpoints, after each checkpoint that sealed segments of this log. It must not block.
    pub fn on_sealed(&self, f: Box<dyn Fn() + Send + Sync>) {
        // The first one stays.
        drop(self.on_sealed.set(SealedHook(f)));
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
    pub(super) fn partition_state(&self, key: quipu_model::PartitionKey) -> PartitionState {
        let core = &self.core;
        let mut segments: Vec<_> = core.segments().map(|segment| segment.state()).collect();
        segments.extend(&self.unopened);
        segments.sort_by_key(|segment| segment.base);
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
            votes_from: core.votes_from,
            membership: self.applied.1.clone(),
            terms: core.raft.terms().to_vec(),
            controls: core.raft.controls().clone(),
            segments,
            compacted_to: core.compacted_to,
            origin: core.origin.clone(),
        }
    }
}
