//! From a damaged partition back to one that is served: see [`DamagedLog`].

use std::{
    path::PathBuf,
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use quipu_model::{LogId, Offset, Vote};

use super::{
    Incoming, Manifest, Mending, PartitionLog, ReadBatches, ReadError, RepairError,
    damage::MARK_FILE,
    read::read_batches,
    recover::RecoveringLog,
    state::{PartitionState, SegmentState},
};
use crate::PartitionDamage;

/// A partition that is damaged: nothing is read from it or written to it until it was repaired.
///
/// A repair is a round, again and again, until [`DamagedLog::reopen`] finds no more: [`DamagedLog::examine`] the segment that is
/// damaged, put what other replicas give into what that answers with, and reopen.
#[derive(Debug)]
pub struct DamagedLog {
    log: Arc<PartitionLog>,
    damage: Arc<PartitionDamage>,
}

impl PartitionLog {
    /// The partition as one to be repaired; `None` where it is not damaged.
    pub fn damaged(self: &Arc<Self>) -> Option<DamagedLog> {
        Some(DamagedLog {
            damage: self.damage()?,
            log: Arc::clone(self),
        })
    }

    /// Whole batches from the one that holds `from` on, committed or not, for another replica's repair: at most `max_bytes`, but
    /// at least one batch where there is one. Of a damaged partition, what is sound. Blocks.
    ///
    /// # Errors
    /// Where there is no such offset, the bytes are damaged, or the disk does not give them.
    pub fn read_for_repair(
        &self,
        from: Offset,
        max_bytes: usize,
    ) -> Result<ReadBatches, ReadError> {
        let nothing = ReadBatches {
            bytes: Bytes::new(),
            next_offset: from,
        };
        let end = self.state().end_offset;
        let segment = self.segment_of(from, end)?;
        let Some(segment) = segment.filter(|segment| from < segment.next_offset()) else {
            return Ok(nothing);
        };
        self.prepare_index(&segment);
        let failed = |error| self.read_error(&segment, error);
        let start = segment.search_from(|entry| entry.offset <= from);
        let position = start.map_err(failed)?.position;
        segment
            .populate(position, max_bytes)
            .map_err(|error| ReadError::Io {
                path: segment.path.clone(),
                error,
            })?;
        read_batches(&segment, from, max_bytes, end).map_err(failed)
    }
}

impl DamagedLog {
    /// What is to be repaired first.
    pub fn damage(&self) -> &PartitionDamage {
        &self.damage
    }

    /// What it takes to repair the segment that is damaged, or, where the damage is in none, all that are. Blocks for as long as
    /// it takes to read and copy it.
    ///
    /// # Errors
    /// [`RepairError::Beyond`] where more than bytes of segments is missing; where the disk fails or is full.
    pub fn examine(&self) -> Result<Vec<Mending>, RepairError> {
        let log = &self.log;
        if log.is_incomplete() {
            return Err(RepairError::Beyond {
                damage: Arc::clone(&self.damage),
            });
        }
        let (dir, state, raft) = {
            let inner = log.inner.lock();
            let raft = Arc::clone(&inner.core.raft);
            (inner.core.dir.clone(), inner.partition_state(log.key), raft)
        };
        let path_of = |segment: &SegmentState| segment.path(&dir, "log");
        let is_named = |segment: &&SegmentState| {
            path_of(segment).with_extension("") == self.damage.path.with_extension("")
        };
        let mut segments: Vec<_> = state.segments.iter().filter(is_named).copied().collect();
        if segments.is_empty() {
            segments = state.segments;
        }
        let examined = segments
            .into_iter()
            .map(|segment| Mending::examine(&log.context.disk, &dir, segment, &raft));
        examined.filter_map(Result::transpose).collect()
    }

    /// Begins to copy another replica's log, which is to take this one's place: where no replica holds what stood here, since all
    /// others deleted it, or compacted it in another way. What of it stands here already, and is sound, is not copied. Blocks.
    ///
    /// # Errors
    /// [`RepairError::Behind`] where that log does not reach the end of this one; where the disk fails or is full.
    pub fn copy_of(&self, manifest: Manifest) -> Result<Incoming, RepairError> {
        self.check_covered(&manifest)?;
        Ok(Incoming::begin(Arc::clone(&self.log), manifest)?)
    }

    /// What this replica promised to hold must be in what replaces it, as far as it is committed or may be: that is so of a
    /// log that is committed up to an entry no older than this one's last.
    fn check_covered(&self, manifest: &Manifest) -> Result<(), RepairError> {
        if self.log.is_incomplete() {
            return Err(RepairError::Beyond {
                damage: Arc::clone(&self.damage),
            });
        }
        match self.log.state().last {
            Some(last) if manifest.last < last => Err(RepairError::Behind {
                reaches: manifest.last,
                last,
            }),
            _ => Ok(()),
        }
    }

    /// Puts a log that is all here in this one's place, as [`PartitionLog::install`] does, and [reopens](Self::reopen) it. What
    /// was promised stays: the vote becomes `leader`'s where it is older than the election that this one won. Blocks.
    ///
    /// # Errors
    /// As of [`Self::copy_of`] and [`Self::reopen`]; where something is missing of the other log.
    pub fn replace(
        self,
        incoming: &Incoming,
        members: Option<(LogId, Bytes)>,
        leader: Vote,
    ) -> Result<Option<Self>, RepairError> {
        self.check_covered(incoming.manifest())?;
        self.log.follow(leader)?;
        // Reopening waits until it is durable.
        self.log.put_in_place(incoming, members, Box::new(drop))?;
        self.reopen()
    }

    /// Opens and checks the log anew; `None`: it is sound, and served from now on. Otherwise, what is damaged now. Blocks for as
    /// long as it takes to read all that is not sealed.
    ///
    /// # Errors
    /// Where the disk fails, or the partition was removed or the store closed meanwhile.
    pub fn reopen(self) -> Result<Option<Self>, RepairError> {
        let log = self.log;
        log.wait_flushed()?;
        let context = &log.context;
        let _no_checkpoint = context.checkpointing.lock();
        let (state, config, cut, dir) = {
            let inner = log.inner.lock();
            inner.check_taking()?;
            let cut = inner.core.segments().filter(|s| s.is_newly_cut());
            let cut: Vec<PathBuf> = cut.map(|segment| segment.path.clone()).collect();
            let state: PartitionState = inner.partition_state(log.key);
            (
                state,
                inner.core.config.clone(),
                cut,
                inner.core.dir.clone(),
            )
        };
        let failed = |error| RepairError::io(&dir, error);
        let (disk, now) = (Arc::clone(&context.disk), context.clock.now());
        let mut recovering = RecoveringLog::new(disk, dir.clone(), log.key, config, now);
        recovering.load(state);
        recovering.note_newly_cut(&cut);
        let recovered = recovering.check_all().map_err(failed)?;
        if let Some(damage) = recovered.damage {
            log.damage.replace(Some(damage));
            return Ok(log.damaged());
        }
        let mark = dir.join(MARK_FILE);
        if context.disk.exists(&mark) {
            context.disk.remove_file(&mark).map_err(failed)?;
            context.disk.sync_dir(&dir).map_err(failed)?;
        }
        let mut inner = log.inner.lock();
        inner.check_taking()?;
        let mut sound = recovered.inner;
        sound.reserved_bytes = inner.reserved_bytes;
        *inner = sound;
        // Whoever holds the lock sees both.
        log.damage.replace(None);
        drop(inner);
        Ok(None)
    }
}

impl PartitionLog {
    /// Waits until all that was submitted is durable: what is opened anew counts as that.
    fn wait_flushed(&self) -> Result<(), RepairError> {
        let (sender, flushed) = mpsc::sync_channel(1);
        let done = move |result| {
            let _ = sender.send(result);
        };
        self.context.wal.submit(Vec::new(), Box::new(done))?;
        Ok(self.context.wait_flushed(&flushed)?)
    }
}
