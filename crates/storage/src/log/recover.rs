//! From what a start finds on disk to a log: load the checkpoint's state, replay the write-ahead log over it, check.

use std::{
    collections::{HashSet, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::{Buf, Bytes, TryGetError};
use parking_lot::Mutex;
use quipu_model::{
    LogId, NodeId, Offset, PartitionKey, Position, RaftIndex, RecordBatch, Term, TimestampMs,
    TopicConfig, Vote,
};

use super::{
    Applied, Inner, PartitionLog,
    active::ActiveSegment,
    check::check_unsealed,
    core::{ClosedSegment, CoreError, LogCore, SPARE_NAME, known_from},
    damage::{DamageLatch, MARK_FILE, read_mark},
    incoming::{INCOMING_DIR, remove_overtaken},
    mend,
    raft_map::RaftMap,
    seal::Seal,
    segment::{Segment, SegmentError},
    state::{PartitionState, SegmentState},
    types::{Control, ControlKind},
};
use crate::{
    PartitionDamage,
    io::{Disk, OpenMode, read_whole},
    store::Context,
    wal::{Lsn, RecordKind, ReplayedRecord},
};

/// What opening a log came to.
pub(super) struct Recovered {
    pub(super) inner: Inner,
    pub(super) damage: Option<PartitionDamage>,
    /// See [`PartitionLog::is_incomplete`].
    incomplete: bool,
}

/// A partition's log on its way up: not yet served, not yet checked.
#[derive(Debug)]
pub(crate) struct RecoveringLog {
    core: LogCore,
    applied: Applied,
    lsn: Lsn,
    damage: Option<PartitionDamage>,
    /// What an earlier life found, and did not get repaired.
    marked: Option<PartitionDamage>,
    /// Segments that the checkpoint names and that are not as it names them. That is damage, unless the write-ahead log
    /// goes on to cut or trim them: then another may stand in their place already.
    unloaded: Vec<(SegmentState, PathBuf, String)>,
    now: TimestampMs,
    removed: bool,
    /// There is no directory: right only where the write-ahead log ends with the partition's removal.
    missing: bool,
}

impl RecoveringLog {
    /// A partition without a past.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        key: PartitionKey,
        config: TopicConfig,
        now: TimestampMs,
    ) -> Self {
        let core = LogCore::new(disk, dir, key, config);
        Self {
            core,
            applied: (None, None),
            lsn: Lsn::default(),
            damage: None,
            marked: None,
            unloaded: Vec::new(),
            now,
            removed: false,
            missing: false,
        }
    }

    /// Takes up what a checkpoint knew.
    pub(crate) fn load(&mut self, state: PartitionState) {
        let core = &mut self.core;
        core.config.segment_bytes = state.segment_bytes;
        core.start_offset = state.start_offset;
        core.end_offset = state.end_offset;
        core.last_purged = state.last_purged;
        core.last = state.last;
        core.vote = state.vote;
        core.votes_from = state.votes_from;
        core.compacted_to = state.compacted_to;
        core.origin = state.origin;
        let mut raft = RaftMap::from_parts(state.terms, state.controls);
        let purged = state
            .last_purged
            .map_or(RaftIndex::default(), |id| id.index);
        let firsts = state.segments.iter().map(|segment| segment.first.index);
        raft.note_forgotten(known_from(purged, firsts));
        core.raft = Arc::new(raft);
        self.applied = (state.applied, state.membership);
        self.lsn = state.lsn;
        for segment in &state.segments {
            let loaded = if segment.sealed {
                self.load_sealed(segment)
            } else {
                self.load_unsealed(segment)
            };
            match loaded {
                Ok(segment) => self.core.closed.push(ClosedSegment {
                    segment: Arc::new(segment),
                    producers: None,
                    block_crcs: None,
                }),
                Err((path, detail)) => self.unloaded.push((*segment, path, detail)),
            }
        }
        // The last one goes on being written, where it is there.
        let open = |last: &mut ClosedSegment| {
            let newest = state.segments.last().map(|newest| newest.base);
            !last.segment.is_sealed() && Some(last.segment.base) == newest
        };
        if let Some(last) = self.core.closed.pop_if(open) {
            self.core.active = Some(self.go_on(last.segment));
        }
    }

    /// A segment to be written on. A checkpoint that did not end may have given the file's room back: only what is written
    /// counts as there.
    fn go_on(&self, segment: Arc<Segment>) -> ActiveSegment {
        let allocated = segment.len();
        ActiveSegment::new(segment, allocated, self.core.config.segment_bytes)
    }

    fn load_sealed(&self, state: &SegmentState) -> Result<Segment, (PathBuf, String)> {
        let disk = &*self.core.disk;
        let path = state.path(&self.core.dir, "seal");
        let seal = read_whole(disk, &path).map_err(|error| (path.clone(), error.to_string()))?;
        let seal = Seal::decode(&seal).map_err(|detail| (path.clone(), detail.to_owned()))?;
        if (seal.base, seal.next_offset, seal.data_bytes)
            != (state.base, state.next_offset, state.bytes)
        {
            return Err((path, "the seal is another segment's".to_owned()));
        }
        let log = path.with_extension("log");
        let segment =
            Segment::open_sealed(disk, log.clone(), (state.first.term, state.created), seal)
                .map_err(|error| (log, error.to_string()))?;
        segment.set_compacted(state.compacted);
        Ok(segment)
    }

    fn load_unsealed(&self, state: &SegmentState) -> Result<Segment, (PathBuf, String)> {
        let path = state.path(&self.core.dir, "log");
        let opened = self
            .core
            .disk
            .open(&path, OpenMode::Write)
            .and_then(|file| Ok((file.len()?, file)));
        let (len, file) = opened.map_err(|error| (path.clone(), error.to_string()))?;
        if len < state.bytes {
            return Err((
                path,
                format!(
                    "the file is cut short: it has {len} bytes, {} were written",
                    state.bytes
                ),
            ));
        }
        let segment = Segment::new((state.base, state.first), (path, file), state.created);
        segment.publish(state.bytes, state.next_offset, TimestampMs::NONE);
        Ok(segment)
    }

    fn note_damage(&mut self, path: PathBuf, position: u64, detail: String) {
        let damage = PartitionDamage {
            key: self.core.key,
            path,
            position,
            detail,
        };
        self.damage.get_or_insert(damage);
    }

    /// The checkpoint knew the partition, but its directory is gone: right only if the write-ahead log says that it was
    /// removed.
    pub(crate) fn note_missing(&mut self) {
        self.missing = true;
        self.note_damage(
            self.core.dir.clone(),
            0,
            "the partition's directory is missing".to_owned(),
        );
    }

    /// Repeats one record of the write-ahead log; those that the checkpoint reflects already are passed over.
    ///
    /// # Errors
    /// Where the disk fails, or the record is not one.
    pub(crate) fn replay(&mut self, record: ReplayedRecord) -> io::Result<()> {
        if record.lsn <= self.lsn {
            return Ok(());
        }
        if record.kind == RecordKind::Removed {
            self.remove(record.lsn);
            return Ok(());
        }
        if self.damage.is_some() && record.kind != RecordKind::Install {
            return Ok(());
        }
        self.lsn = record.lsn;
        // A partition that came back to this node begins anew.
        self.removed = false;
        if self.missing {
            self.note_missing();
            return Ok(());
        }
        if let Some(detail) = self.misfit(&record) {
            self.note_damage(self.core.dir.clone(), 0, detail);
            return Ok(());
        }
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut payload = record.payload;
        let id = record.log_id;
        let replayed = match record.kind {
            RecordKind::Batch => {
                let batch =
                    RecordBatch::from_bytes(payload).map_err(|error| bad(&error.to_string()))?;
                self.core
                    .push_batch(id, &batch, self.now)
                    .and_then(|_| self.core.write_pending())
            }
            RecordKind::Control => {
                let kind = payload.try_get_u8().ok().and_then(ControlKind::from_number);
                let kind = kind.ok_or_else(|| bad("a control record of an unknown kind"))?;
                self.core.push_control(
                    id,
                    Control {
                        kind,
                        bytes: payload,
                    },
                );
                Ok(())
            }
            RecordKind::Vote => {
                self.core.vote = Some(
                    decode_vote(id.term, payload).ok_or_else(|| bad("a vote record cut short"))?,
                );
                self.core.votes_from = id.index;
                Ok(())
            }
            RecordKind::Truncate => {
                let present = payload
                    .try_get_u8()
                    .map_err(|_| bad("a truncation record cut short"))?
                    == 1;
                let end = record.base_offset;
                self.unloaded.retain(|(segment, ..)| segment.base < end);
                self.core.cut_to(present.then_some(id), end).map(drop)
            }
            RecordKind::Purge => {
                if self.core.last.is_none_or(|last| last.index < id.index) {
                    self.unloaded.clear();
                }
                let membership =
                    purged_membership(&mut payload).map_err(|_| bad("a purge record cut short"))?;
                let purged = self.core.purge(id, record.base_offset, membership.as_ref());
                if membership.is_some() {
                    self.applied = (Some(id), membership);
                }
                purged.map(drop)
            }
            RecordKind::Trim => {
                let start = record.base_offset;
                self.unloaded
                    .retain(|(segment, ..)| segment.next_offset > start);
                self.trim(start)
            }
            RecordKind::Install => {
                let state = payload
                    .try_get_u32_le()
                    .and_then(|format| PartitionState::decode(&mut payload, format))
                    .map_err(|_| bad("an install record cut short"))?;
                self.install(state);
                Ok(())
            }
            RecordKind::Removed | RecordKind::Mark => Ok(()),
        };
        match replayed {
            Ok(()) => Ok(()),
            Err(CoreError::Io(_, _, error) | CoreError::Segment(_, SegmentError::Io(error))) => {
                Err(error)
            }
            Err(CoreError::Segment(path, SegmentError::Rot { position, detail })) => {
                self.note_damage(path, position.get(), detail);
                Ok(())
            }
        }
    }

    fn trim(&mut self, start: Offset) -> Result<(), CoreError> {
        self.core.forget_tables();
        let base = self.core.base_after_trim(start);
        let known = self.core.tables().at(base, self.now);
        let known =
            known.map_err(|(segment, error)| CoreError::Segment(segment.path.clone(), error))?;
        self.core.trim(start, (base, &known));
        Ok(())
    }

    /// Another replica's log stands in place of this one: what was loaded before is void, and whatever was damaged of it. The
    /// state says what was promised until then.
    fn install(&mut self, state: PartitionState) {
        self.damage = None;
        self.unloaded.clear();
        self.core.closed.clear();
        self.core.active = None;
        let here = (self.core.config.segment_bytes, self.lsn);
        self.load(state);
        (self.core.config.segment_bytes, self.lsn) = here;
    }

    /// Whatever stands before is void.
    fn remove(&mut self, lsn: Lsn) {
        let core = &self.core;
        let (disk, dir, config) = (
            Arc::clone(&core.disk),
            core.dir.clone(),
            core.config.clone(),
        );
        *self = Self {
            lsn,
            removed: true,
            missing: self.missing,
            ..Self::new(disk, dir, core.key, config, self.now)
        };
    }

    /// Why a record does not continue the log: then records before it are missing.
    fn misfit(&self, record: &ReplayedRecord) -> Option<String> {
        let (index, end) = (self.core.next_index(), self.core.end_offset);
        let entry = matches!(record.kind, RecordKind::Batch | RecordKind::Control);
        let fits = !entry || (record.log_id.index, record.base_offset) == (index, end);
        (!fits).then(|| {
            format!(
                "entry {} at offset {} of the write-ahead log does not continue the log, which goes on with index {index} at \
                 offset {end}",
                record.log_id, record.base_offset
            )
        })
    }

    /// Whether not even all of the log's records could be repeated: the write-ahead log must be kept then.
    fn is_incomplete(&self) -> bool {
        let end = self.core.end_offset;
        self.damage.is_some() || self.unloaded.iter().any(|(s, ..)| s.next_offset > end)
    }

    /// The records up to here are not the partition's: it is created behind them.
    pub(crate) fn begin_behind(&mut self, lsn: Lsn) {
        self.lsn = lsn;
    }

    /// Whether the partition was removed: its directory is to go.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed
    }

    /// Brings repairs to their end that a crash cut off, and takes up what they left to do.
    ///
    /// # Errors
    /// Where the disk fails.
    pub(crate) fn settle_repairs(&mut self) -> io::Result<()> {
        let (disk, dir) = (&*self.core.disk, &self.core.dir);
        mend::settle(disk, dir)?;
        self.marked = read_mark(disk, dir, self.core.key)?;
        Ok(())
    }

    /// Segments that the last checkpoint may still name as they were before they were cut.
    pub(super) fn note_newly_cut(&self, cut: &[PathBuf]) {
        let segments = self.core.segments();
        segments
            .filter(|segment| cut.contains(&segment.path))
            .for_each(|segment| segment.note_newly_cut());
    }

    /// Checks what was found, and gives the log, damaged or not.
    ///
    /// # Errors
    /// Where the disk fails.
    pub(crate) fn finish(self, context: Arc<Context>) -> io::Result<Arc<PartitionLog>> {
        let key = self.core.key;
        let Recovered {
            inner,
            damage,
            incomplete,
        } = self.check_all()?;
        if damage.is_none() {
            let core = &inner.core;
            let newest = core.segments().next_back().map(|segment| segment.base);
            remove_overtaken(&*core.disk, &core.dir, newest)?;
        }
        Ok(Arc::new(PartitionLog {
            key,
            context,
            damage: DamageLatch::new(damage),
            incomplete,
            on_sealed: OnceLock::new(),
            inner: Mutex::new(inner),
        }))
    }

    /// # Errors
    /// Where the disk fails.
    pub(super) fn check_all(mut self) -> io::Result<Recovered> {
        let incomplete = self.is_incomplete();
        let mut unopened = Vec::new();
        for (segment, path, detail) in std::mem::take(&mut self.unloaded) {
            unopened.push(segment);
            self.note_damage(path, 0, detail);
        }
        self.damage = self.damage.or(self.marked.take());
        if self.damage.is_none() {
            self.check()?;
        }
        let obsolete = match self.damage {
            Some(_) => Vec::new(),
            None => self.leftovers()?,
        };
        let end = self.core.last;
        self.applied.0 = self
            .applied
            .0
            .filter(|applied| end.is_some_and(|end| applied.index <= end.index));
        let inner = Inner {
            core: self.core,
            recent: VecDeque::new(),
            recovered_applied: self.applied.clone(),
            checkpointed_applied: self.applied.0,
            checkpointed_sealed: 0,
            applied: self.applied,
            lsn: self.lsn,
            reserved_bytes: 0,
            captured: None,
            ended: None,
            removed: false,
            obsolete,
            unopened,
        };
        Ok(Recovered {
            inner,
            damage: self.damage,
            incomplete,
        })
    }

    fn check(&mut self) -> io::Result<()> {
        self.core.forget_tables();
        let outcome = self.check_chain().and_then(|()| {
            for at in 0..self.core.closed.len() {
                let segment = Arc::clone(&self.core.closed[at].segment);
                if !segment.is_sealed() {
                    check_unsealed(&segment, &self.core.raft)
                        .map(|index| segment.set_index(index))
                        .map_err(|error| (segment.path.clone(), error))?;
                }
            }
            // Where it is damaged, it still is the log's: checkpoints name it.
            if let Some(active) = &self.core.active {
                let segment = Arc::clone(&active.segment);
                check_unsealed(&segment, &self.core.raft)
                    .map(|index| segment.set_index(index))
                    .map_err(|error| (segment.path.clone(), error))?;
                self.core.active = Some(self.go_on(segment));
            }
            self.core
                .rebuild_producers(self.now)
                .map_err(|error| match error {
                    CoreError::Segment(path, error) => (path, error),
                    CoreError::Io(_, path, error) => (path, error.into()),
                })
        });
        match outcome {
            Ok(()) => Ok(()),
            Err((path, SegmentError::Rot { position, detail })) => {
                self.note_damage(path, position.get(), detail);
                Ok(())
            }
            Err((_, SegmentError::Io(error))) => Err(error),
        }
    }

    /// Every offset from the start to the end stands in exactly one segment.
    fn check_chain(&self) -> Result<(), (PathBuf, SegmentError)> {
        let mut due = None;
        for segment in self.core.segments() {
            let due_here = due.unwrap_or(segment.base.min(self.core.start_offset));
            if segment.base != due_here {
                return Err(missing(&self.core.dir, due_here, segment.base));
            }
            due = Some(segment.next_offset());
        }
        let end = due.unwrap_or(self.core.start_offset);
        if end == self.core.end_offset {
            Ok(())
        } else {
            Err(missing(&self.core.dir, end, self.core.end_offset))
        }
    }

    /// Files that no segment stands in: of what was cut off, or written after the checkpoint and replayed into others since.
    /// They go with the next checkpoint, since the last one may still name them.
    fn leftovers(&self) -> io::Result<Vec<PathBuf>> {
        let mut kept = HashSet::new();
        for segment in self.core.segments() {
            let beside: &[&str] = if segment.is_sealed() {
                &["log", "index", "producers", "seal"]
            } else {
                &["log"]
            };
            kept.extend(
                beside
                    .iter()
                    .map(|ending| segment.path.with_extension(ending)),
            );
        }
        kept.insert(self.core.dir.join(SPARE_NAME));
        kept.insert(self.core.dir.join(MARK_FILE));
        kept.insert(self.core.dir.join(INCOMING_DIR));
        let names = self.core.disk.list(&self.core.dir)?;
        Ok(names
            .iter()
            .map(|name| self.core.dir.join(name))
            .filter(|path| !kept.contains(path) && !mend::is_kept(path))
            .collect())
    }
}

fn missing(dir: &Path, from: Offset, to: Offset) -> (PathBuf, SegmentError) {
    let detail = format!("the segment with offsets {from} to {to} is missing");
    (
        dir.to_owned(),
        SegmentError::Rot {
            position: Position::default(),
            detail,
        },
    )
}

/// Who votes where an emptied log goes on, with the entry that says so.
fn purged_membership(payload: &mut Bytes) -> Result<Option<(LogId, Bytes)>, TryGetError> {
    if payload.is_empty() {
        return Ok(None);
    }
    let id = LogId::new(payload.try_get_u64_le()?, payload.try_get_u64_le()?);
    Ok(Some((id, std::mem::take(payload))))
}

fn decode_vote(term: Term, mut payload: Bytes) -> Option<Vote> {
    let node = NodeId::new(payload.try_get_u64_le().ok()?);
    Some(Vote {
        term,
        node,
        committed: payload.try_get_u8().ok()? == 1,
    })
}
