//! A partition's log without its write-ahead log: what both appending and replay do to it.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use quipu_model::{
    LogId, Offset, PartitionKey, RaftIndex, RecordBatch, TimestampMs, TopicConfig, Vote,
    batch::BatchHeader,
};

use super::{
    active::{ActiveSegment, StampedBatch, next_allocation},
    manifest::Manifest,
    producers::ProducerTable,
    raft_map::RaftMap,
    scan::Scan,
    segment::{Segment, SegmentError, segment_path},
    types::{Control, ControlKind},
};
use crate::io::{Disk, DiskFile, OpenMode};

/// A closed segment, and what was known of producers at its end until it is sealed.
#[derive(Clone, Debug)]
pub(super) struct ClosedSegment {
    pub(super) segment: Arc<Segment>,
    /// Encoded; `None` once it stands in a file.
    pub(super) producers: Option<Bytes>,
    /// The checksums of its blocks, where all of it was written since the start.
    pub(super) block_crcs: Option<Arc<[u32]>>,
}

/// A file made ready to become the next segment, so that closing one cannot meet a full disk.
#[derive(Debug)]
pub(super) struct SpareFile {
    file: Arc<dyn DiskFile>,
    pub(super) allocated: u64,
}

/// How long a record may have been under way before it was appended, in milliseconds, for its timestamp to count.
const LATE_MS: i64 = 60 * 60 * 1000;

pub(super) const SPARE_NAME: &str = "next.log";

#[derive(Debug)]
pub(super) struct LogCore {
    pub(super) key: PartitionKey,
    pub(super) dir: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) config: TopicConfig,
    pub(super) closed: Vec<ClosedSegment>,
    pub(super) active: Option<ActiveSegment>,
    pub(super) spare: Option<SpareFile>,
    pub(super) start_offset: Offset,
    pub(super) end_offset: Offset,
    pub(super) last_purged: Option<LogId>,
    pub(super) last: Option<LogId>,
    pub(super) vote: Option<Vote>,
    /// The entry that the log must reach before the replica votes: see [`PartitionLog::begin_anew`](super::PartitionLog::begin_anew).
    pub(super) votes_from: RaftIndex,
    /// Shared with the reads that walk it.
    pub(super) raft: Arc<RaftMap>,
    pub(super) producers: ProducerTable,
    /// What was known of producers where the first segment begins: see [`tables`](super::tables). Encoded; empty where that is
    /// nothing.
    pub(super) origin: Bytes,
    /// Below this offset only the newest record of each key is left, of those below it.
    pub(super) compacted_to: Offset,
    /// How often another replica's log was put in this one's place.
    pub(super) installs: u64,
    /// The newest generation of a file that was named since the start.
    pub(super) newest_generation: u32,
}

/// Why a truncation or the search it needs did not work.
#[derive(Debug)]
pub(super) enum CoreError {
    Segment(PathBuf, SegmentError),
    Io(&'static str, PathBuf, io::Error),
}

/// From where on all entries are known, of a log that is purged up to an entry and whose segments begin at these: from the
/// beginning of the segment that the entry is in. Nobody walks those before.
pub(super) fn known_from(
    purged: RaftIndex,
    firsts: impl DoubleEndedIterator<Item = RaftIndex>,
) -> RaftIndex {
    firsts
        .rev()
        .find(|first| *first <= purged)
        .unwrap_or(purged)
}

impl LogCore {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        key: PartitionKey,
        config: TopicConfig,
    ) -> Self {
        Self {
            key,
            dir,
            disk,
            config,
            closed: Vec::new(),
            active: None,
            spare: None,
            start_offset: Offset::ZERO,
            end_offset: Offset::ZERO,
            last_purged: None,
            last: None,
            vote: None,
            votes_from: RaftIndex::default(),
            raft: Arc::default(),
            producers: ProducerTable::default(),
            origin: Bytes::new(),
            compacted_to: Offset::ZERO,
            installs: 0,
            newest_generation: 0,
        }
    }

    /// All segments, oldest first.
    pub(super) fn segments(&self) -> impl DoubleEndedIterator<Item = &Arc<Segment>> {
        self.closed
            .iter()
            .map(|closed| &closed.segment)
            .chain(self.active.as_ref().map(|active| &active.segment))
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.segments().map(|segment| segment.len()).sum()
    }

    /// When a closed segment's newest record was made, in milliseconds since the epoch. A timestamp is the producer's word: it
    /// counts where it lies between the segment's first append and its close, by this node's clock; a little before counts as
    /// the first append, and anything else, or none, as the close. So no bad clock keeps a segment for ever, or lets it go early.
    pub(super) fn newest_ms(&self, at: usize) -> i64 {
        let Some(ClosedSegment { segment, .. }) = self.closed.get(at) else {
            return i64::MAX;
        };
        let next = match self.closed.get(at + 1) {
            Some(next) => Some(&next.segment),
            None => self.active.as_ref().map(|active| &active.segment),
        };
        let created_ms = segment.created.get();
        let closed_ms = match next {
            Some(next) => next.created.get(),
            None => created_ms.saturating_add_unsigned(self.config.segment_ms),
        };
        let newest_ms = segment.newest().get();
        let trusted = created_ms.saturating_sub(LATE_MS)..=closed_ms;
        if trusted.contains(&newest_ms) {
            newest_ms.max(created_ms)
        } else {
            closed_ms
        }
    }

    pub(super) fn next_index(&self) -> RaftIndex {
        self.last
            .map_or(RaftIndex::default(), |last| last.index.next())
    }

    /// Takes a batch as entry `id`, closing the active segment first where it would grow too large.
    pub(super) fn push_batch(
        &mut self,
        id: LogId,
        batch: &RecordBatch,
        now: TimestampMs,
    ) -> Result<StampedBatch, CoreError> {
        let stamped = StampedBatch {
            header: *batch.header(),
            prefix: Bytes::copy_from_slice(
                &batch.stamped_prefix(self.end_offset, id.term.leader_epoch()),
            ),
            body: batch.bytes().slice(BatchHeader::STAMPED_LEN..),
            base_offset: self.end_offset,
            raft_index: id.index,
        };
        let full = |active: &ActiveSegment| {
            active.len() > 0 && active.len() + stamped.len() > active.most_bytes()
        };
        if self.active.as_ref().is_some_and(full) {
            self.close_active()?;
        }
        let interval = u64::from(self.config.index_interval_bytes);
        let path = self.dir.clone();
        let active = self.open_active(id, stamped.len(), now)?;
        active
            .allocate(stamped.len())
            .map_err(|error| CoreError::Io("allocate", path, error))?;
        active.push(stamped.clone(), interval);
        self.producers
            .note(&stamped.header, stamped.base_offset, now);
        self.end_offset = stamped.next_offset();
        self.note_entry(id);
        Ok(stamped)
    }

    pub(super) fn push_control(&mut self, id: LogId, control: Control) {
        Arc::make_mut(&mut self.raft).add_control(id.index, control);
        self.note_entry(id);
    }

    fn note_entry(&mut self, id: LogId) {
        Arc::make_mut(&mut self.raft).note_term(id);
        self.last = Some(id);
    }

    pub(super) fn write_pending(&mut self) -> Result<(), CoreError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        active
            .write_pending()
            .map_err(|error| CoreError::Io("write", active.segment.path.clone(), error))
    }

    fn open_active(
        &mut self,
        first: LogId,
        bytes: u64,
        now: TimestampMs,
    ) -> Result<&mut ActiveSegment, CoreError> {
        if self.active.is_none() {
            let path = segment_path(&self.dir, self.end_offset, first.term, "log");
            let spare = match self.spare.take() {
                Some(spare) => spare,
                None => self
                    .make_spare(bytes)
                    .map_err(|error| CoreError::Io("create", path.clone(), error))?,
            };
            self.disk
                .rename(&self.dir.join(SPARE_NAME), &path)
                .map_err(|error| CoreError::Io("rename", path.clone(), error))?;
            let segment = Segment::new((self.end_offset, first), (path, spare.file), now);
            self.active = Some(ActiveSegment::new(
                Arc::new(segment),
                spare.allocated,
                self.config.segment_bytes,
            ));
        }
        // Just filled, where it was empty.
        self.active
            .as_mut()
            .ok_or_else(|| CoreError::Io("open", self.dir.clone(), io::ErrorKind::NotFound.into()))
    }

    /// Creates the file for a next segment with room for `bytes`.
    pub(super) fn make_spare(&self, bytes: u64) -> io::Result<SpareFile> {
        let path = self.dir.join(SPARE_NAME);
        if self.disk.exists(&path) {
            self.disk.remove_file(&path)?;
        }
        let file = self.disk.open(&path, OpenMode::CreateNew)?;
        let allocated = next_allocation(0, bytes);
        file.allocate(allocated)?;
        Ok(SpareFile { file, allocated })
    }

    /// Grows the spare to hold `bytes`, creating it where there is none.
    pub(super) fn ensure_spare(&mut self, bytes: u64) -> io::Result<()> {
        match &mut self.spare {
            Some(spare) if spare.allocated >= bytes => {}
            Some(spare) => {
                let target = next_allocation(spare.allocated, bytes);
                spare.file.allocate(target)?;
                spare.allocated = target;
            }
            None => self.spare = Some(self.make_spare(bytes)?),
        }
        Ok(())
    }

    /// Closes the active segment; the next batch begins another.
    pub(super) fn close_active(&mut self) -> Result<(), CoreError> {
        self.write_pending()?;
        if let Some(active) = self.active.take() {
            self.producers.expire();
            let producers = Some(Bytes::from(self.producers.encode()));
            let (segment, block_crcs) = active.into_parts();
            self.closed.push(ClosedSegment {
                segment,
                producers,
                block_crcs,
            });
        }
        Ok(())
    }

    /// Where the log's records end once all entries after `last` are gone.
    pub(super) fn end_after(&self, last: Option<LogId>) -> Result<Offset, CoreError> {
        let index = self.raft.batch_index_from(first_after(last));
        let holding = self
            .segments()
            .rev()
            .find(|segment| segment.first_index <= index);
        let Some(segment) = holding.or_else(|| self.segments().next()) else {
            return Ok(self.end_offset);
        };
        let error = |error| CoreError::Segment(segment.path.clone(), error);
        let from = segment.search_from_raft(index).map_err(error)?;
        let mut raft_index = from.raft_index;
        let mut scan = Scan::new(segment, from.position);
        while let Some((header, _)) = scan.next_header().map_err(error)? {
            if raft_index >= index {
                return Ok(header.base_offset);
            }
            raft_index = self.raft.batch_index_from(raft_index.next());
        }
        Ok(self.end_offset)
    }

    /// Drops all entries after `last` and all records from `end` on; gives back the segments that went whole. Producers are
    /// to be rebuilt then. Reads nothing at or behind `end`: a replay may find other bytes there.
    pub(super) fn cut_to(
        &mut self,
        last: Option<LogId>,
        end: Offset,
    ) -> Result<Vec<Arc<Segment>>, CoreError> {
        self.write_pending()?;
        let split = self
            .segments()
            .find(|segment| segment.base < end && end < segment.next_offset());
        let shorter = split
            .map(|segment| {
                segment
                    .cut(end)
                    .map_err(|error| CoreError::Segment(segment.path.clone(), error))
            })
            .transpose()?;
        let mut gone = Vec::new();
        if end < self.end_offset {
            let mut all = std::mem::take(&mut self.closed);
            all.extend(self.active.take().map(|active| ClosedSegment {
                segment: active.segment,
                producers: None,
                block_crcs: None,
            }));
            for closed in all {
                if closed.segment.base >= end {
                    gone.push(closed.segment);
                } else if closed.segment.next_offset() <= end {
                    self.closed.push(closed);
                }
            }
            self.closed.extend(shorter.map(|segment| ClosedSegment {
                segment: Arc::new(segment),
                producers: None,
                block_crcs: None,
            }));
            self.end_offset = end;
        }
        Arc::make_mut(&mut self.raft).truncate_from(first_after(last));
        self.last = last.or(self.last_purged);
        Ok(gone)
    }

    /// Moves Raft's purge pointer; past the log's end, the log is emptied and goes on at `next_offset`. Gives back the
    /// segments that went.
    pub(super) fn purge(
        &mut self,
        upto: LogId,
        next_offset: Offset,
        membership: Option<&(LogId, Bytes)>,
    ) -> Result<Vec<Arc<Segment>>, CoreError> {
        self.write_pending()?;
        let mut gone = Vec::new();
        if self.last.is_none_or(|last| last.index < upto.index) {
            gone.extend(self.segments().cloned());
            self.closed.clear();
            self.active = None;
            self.raft = Arc::default();
            self.producers = ProducerTable::default();
            self.origin = Bytes::new();
            self.start_offset = next_offset;
            self.end_offset = next_offset;
            self.compacted_to = Offset::ZERO;
            if let Some((id, bytes)) = membership.cloned() {
                let kind = ControlKind::Membership;
                self.push_control(id, Control { kind, bytes });
            }
            self.note_entry(upto);
        }
        if self
            .last_purged
            .is_none_or(|purged| purged.index < upto.index)
        {
            self.last_purged = Some(upto);
        }
        self.forget_raft();
        Ok(gone)
    }

    /// Puts another replica's log in place of this one, up to an entry that Raft then asks for nothing before, and as of which
    /// these are the members; gives back the segments that went.
    pub(super) fn install(
        &mut self,
        manifest: &Manifest,
        segments: Vec<Arc<Segment>>,
        members: Option<&(LogId, Bytes)>,
    ) -> Result<Vec<Arc<Segment>>, CoreError> {
        self.write_pending()?;
        let stays = |old: &&Arc<Segment>| !segments.iter().any(|new| Arc::ptr_eq(old, new));
        let gone = self.segments().filter(stays).cloned().collect();
        let closed = segments.into_iter().map(|segment| {
            // Kept segments too: what stands before them is another one's now, and may hold what they replace.
            segment.set_compacted(None);
            ClosedSegment {
                segment,
                producers: None,
                block_crcs: None,
            }
        });
        self.closed = closed.collect();
        self.active = None;
        self.installs += 1;
        self.compacted_to = Offset::ZERO;
        self.start_offset = manifest.start_offset;
        self.end_offset = manifest.end_offset;
        self.last_purged = Some(manifest.last);
        self.last = Some(manifest.last);
        let terms = manifest.terms.clone();
        let controls = members.map(|(id, bytes)| {
            let (kind, bytes) = (ControlKind::Membership, bytes.clone());
            (id.index, Control { kind, bytes })
        });
        let mut raft = RaftMap::from_parts(terms, controls.into_iter().collect());
        raft.note_forgotten(manifest.last.index);
        self.raft = Arc::new(raft);
        self.producers = ProducerTable::decode(&manifest.producers).unwrap_or_default();
        self.origin = manifest.origin.clone();
        Ok(gone)
    }

    /// Forgets terms and controls that neither Raft nor the walk of a segment can still ask for.
    fn forget_raft(&mut self) {
        let purged = self.last_purged.map_or(RaftIndex::default(), |id| id.index);
        let known_from = known_from(purged, self.segments().map(|segment| segment.first_index));
        Arc::make_mut(&mut self.raft).forget_before(known_from);
    }
}

fn first_after(last: Option<LogId>) -> RaftIndex {
    last.map_or(RaftIndex::default(), |last| last.index.next())
}
