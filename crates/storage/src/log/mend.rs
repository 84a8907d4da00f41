//! A segment put together anew: what is sound of its file, and what other replicas gave for the rest.
//!
//! The new file is `….log.mending` until every byte of it is vouched for and synced, then `….log.mended`, and takes the segment's
//! place after the damaged file was set aside as `….log.damaged`. A start brings to an end what stands between the last two
//! steps. A seal that is damaged is made again once the segment's bytes are sound.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use quipu_model::{Offset, Position, TimestampMs, batch::split_batches};

use super::{
    check::check_unsealed,
    error::RepairError,
    producers::ProducerTable,
    raft_map::RaftMap,
    seal::{BLOCK_BYTES, Seal},
    segment::{Segment, SegmentError},
    state::SegmentState,
    wounds::{Voucher, Wound, by_batches, by_seal, open_whole, sound_index},
};
use crate::io::{Disk, DiskFile, OpenMode, read_whole};

const MENDING: &str = "mending";
const MENDED: &str = "mended";
const DAMAGED: &str = "damaged";
/// So many damaged files of a partition are kept; the oldest segments' go first.
const KEPT: usize = 4;
const COPY_BYTES: usize = 1 << 20;

/// A damaged segment on its way to be whole again: [`Mending::put`] what is [`wanted`](Mending::wanted), then
/// [`finish`](Mending::finish).
#[derive(Debug)]
pub struct Mending {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment: SegmentState,
    raft: Arc<RaftMap>,
    voucher: Voucher,
    /// The new file, where the old one has wounds.
    new: Option<Arc<dyn DiskFile>>,
    wounds: VecDeque<Wound>,
    /// How far the first wound is filled.
    position: u64,
    due: Offset,
    /// Whether all of it is fetched, since less did not do.
    all: bool,
    reseal: bool,
}

impl Mending {
    /// Looks for a segment's wounds; `None`: it has none. Blocks.
    pub(super) fn examine(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        segment: SegmentState,
        raft: &Arc<RaftMap>,
    ) -> Result<Option<Self>, RepairError> {
        let path = segment.path(dir, "log");
        let failed = |error| RepairError::io(&path, error);
        let old = open_whole(&**disk, &path, &segment).map_err(failed)?;
        let seal = segment.sealed.then(|| read_seal(&**disk, &path, &segment));
        let (voucher, wounds, reseal) = match seal {
            Some(Some(seal)) => {
                let index = sound_index(&**disk, &path, &seal);
                let wounds = by_seal(old.as_deref(), &segment, &seal, index.as_ref());
                let reseal = index.is_none() && !wounds.is_empty();
                (Voucher::Seal(Arc::new(seal)), wounds, reseal)
            }
            unsealed => {
                let wounds = by_batches(old.as_deref(), &segment, raft).map_err(failed)?;
                let reseal = unsealed.is_some();
                (Voucher::Batches(Arc::clone(raft)), wounds, reseal)
            }
        };
        if wounds.is_empty() && !reseal {
            return Ok(None);
        }
        let mut mending = Self {
            disk: Arc::clone(disk),
            dir: dir.to_owned(),
            segment,
            raft: Arc::clone(raft),
            voucher,
            new: None,
            wounds: wounds.into(),
            position: 0,
            due: segment.base,
            all: false,
            reseal,
        };
        if !mending.wounds.is_empty() {
            mending.begin(old.as_deref()).map_err(failed)?;
        }
        mending.rewind();
        Ok(Some(mending))
    }

    /// Makes the new file, with what is sound of the old one.
    fn begin(&mut self, old: Option<&dyn DiskFile>) -> io::Result<()> {
        let path = self.path().with_added_extension(MENDING);
        if self.disk.exists(&path) {
            self.disk.remove_file(&path)?;
        }
        let new = self.disk.open(&path, OpenMode::CreateNew)?;
        new.allocate(self.segment.bytes)?;
        if let Some(old) = old {
            let mut from = 0;
            for wound in &self.wounds {
                copy(old, &*new, from, wound.positions.start)?;
                from = wound.positions.end;
            }
            copy(old, &*new, from, self.segment.bytes)?;
        }
        self.new = Some(new);
        Ok(())
    }

    /// The segment's file.
    pub fn path(&self) -> PathBuf {
        self.segment.path(&self.dir, "log")
    }

    /// What is to be [`put`](Self::put) next: batches from the first offset on, up to, not including, the second. `None`:
    /// nothing any more.
    pub fn wanted(&self) -> Option<(Offset, Offset)> {
        let wound = self.wounds.front()?;
        Some((self.due, wound.offsets.end))
    }

    /// Takes batches as another replica holds them, which begin at the first offset wanted; those past the last are passed
    /// over. How many bytes were taken. Blocks.
    ///
    /// # Errors
    /// [`RepairError::Unsound`] where they cannot be what stood here: all of this stretch is wanted again then, from another
    /// replica.
    pub fn put(&mut self, batches: Bytes) -> Result<u64, RepairError> {
        let before = self.position;
        let taken = self.take(batches);
        if let Err(RepairError::Unsound { .. }) = taken {
            self.rewind();
        }
        taken.map(|position| position.saturating_sub(before))
    }

    /// How far the first wound is filled then.
    fn take(&mut self, batches: Bytes) -> Result<u64, RepairError> {
        let path = self.path();
        let (Some(wound), Some(new)) = (self.wounds.front(), &self.new) else {
            return Ok(self.position);
        };
        let end = wound.offsets.end;
        let holes = self.segment.may_have_holes();
        let mut past = false;
        let unsound = |position, detail: String| {
            let path = path.clone();
            Err(RepairError::Unsound {
                path,
                position,
                detail,
            })
        };
        for batch in split_batches(batches) {
            if self.due >= end {
                break;
            }
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => return unsound(self.position, error.to_string()),
            };
            let (header, len) = (batch.header(), batch.bytes().len() as u64);
            past = holes && header.base_offset >= end;
            if past {
                break;
            }
            let follows =
                header.base_offset == self.due || (holes && header.base_offset > self.due);
            if !follows {
                let found = header.base_offset;
                return unsound(
                    self.position,
                    format!("a batch has base offset {found} where {} was due", self.due),
                );
            }
            if self.position + len > wound.positions.end || header.next_offset() > end {
                return unsound(
                    self.position,
                    "the batches are not those that stood here".to_owned(),
                );
            }
            new.write_at(Position::new(self.position), &[batch.bytes()])
                .map_err(|error| RepairError::io(&path, error))?;
            self.position += len;
            self.due = header.next_offset();
        }
        let reached = self.position;
        if self.due >= end || past || (holes && reached == wound.positions.end) {
            if reached != wound.positions.end {
                return unsound(
                    reached,
                    "the batches have fewer bytes than stood here".to_owned(),
                );
            }
            self.wounds.pop_front();
            self.rewind();
        }
        Ok(reached)
    }

    /// Forgets what was put of a stretch that is not whole yet: all of it is wanted again.
    pub fn rewind(&mut self) {
        if let Some(wound) = self.wounds.front() {
            (self.position, self.due) = (wound.positions.start, wound.offsets.start);
        }
    }

    /// Checks all that was put together, makes it durable, and lets it take the segment's place. `false`: it is not what was
    /// written, and all of the segment is wanted. Blocks.
    ///
    /// # Errors
    /// [`RepairError::Unsound`] where all of it was fetched and still it is not what was written.
    pub fn finish(&mut self) -> Result<bool, RepairError> {
        let path = self.path();
        if let Some(new) = &self.new {
            let failed = |error| RepairError::io(&path, error);
            new.sync().map_err(failed)?;
            match self.check(new) {
                Ok(()) => {}
                Err(SegmentError::Io(error)) => return Err(failed(error)),
                Err(SegmentError::Rot { position, detail }) if self.all => {
                    return Err(RepairError::Unsound {
                        path,
                        position: position.get(),
                        detail,
                    });
                }
                Err(SegmentError::Rot { .. }) => {
                    self.all = true;
                    self.wounds = VecDeque::from([Wound::whole(&self.segment)]);
                    self.rewind();
                    return Ok(false);
                }
            }
            let mending = path.with_added_extension(MENDING);
            let mended = path.with_added_extension(MENDED);
            self.disk.rename(&mending, &mended).map_err(failed)?;
            self.disk.sync_dir(&self.dir).map_err(failed)?;
            settle(&*self.disk, &self.dir).map_err(failed)?;
        }
        if self.reseal {
            self.make_seal()?;
        }
        Ok(true)
    }

    fn check(&self, new: &Arc<dyn DiskFile>) -> Result<(), SegmentError> {
        match &self.voucher {
            Voucher::Seal(seal) => check_blocks(&**new, seal),
            Voucher::Batches(raft) => check_unsealed(&self.as_segment(new), raft).map(drop),
        }
    }

    fn as_segment(&self, file: &Arc<dyn DiskFile>) -> Segment {
        let state = &self.segment;
        let file = (self.path(), Arc::clone(file));
        let segment = Segment::new((state.base, state.first), file, state.created);
        segment.publish(state.bytes, state.next_offset, TimestampMs::NONE);
        segment
    }

    /// Seals the segment again, whose batches are all sound.
    fn make_seal(&self) -> Result<(), RepairError> {
        let (disk, path) = (&*self.disk, self.path());
        let failed = |error| RepairError::io(&path, error);
        let file = disk.open(&path, OpenMode::Write).map_err(failed)?;
        let segment = self.as_segment(&file);
        let index = check_unsealed(&segment, &self.raft).map_err(|error| match error {
            SegmentError::Io(error) => failed(error),
            SegmentError::Rot { position, detail } => RepairError::Unsound {
                path: path.clone(),
                position: position.get(),
                detail,
            },
        })?;
        segment.set_index(index);
        let producers = read_whole(disk, &path.with_extension("producers")).ok();
        let producers = producers.filter(|bytes| ProducerTable::decode(bytes).is_some());
        let seal = path.with_extension("seal");
        if disk.exists(&seal) {
            let aside = seal.with_added_extension(DAMAGED);
            disk.rename(&seal, &aside).map_err(failed)?;
        }
        segment
            .seal(disk, producers.as_deref(), None)
            .map_err(failed)
    }
}

/// The seal, where it is one and this segment's.
fn read_seal(disk: &dyn Disk, log: &Path, segment: &SegmentState) -> Option<Seal> {
    let seal = read_whole(disk, &log.with_extension("seal")).ok()?;
    let seal = Seal::decode(&seal).ok()?;
    let named = (segment.base, segment.next_offset, segment.bytes);
    ((seal.base, seal.next_offset, seal.data_bytes) == named).then_some(seal)
}

pub(super) fn check_blocks(file: &dyn DiskFile, seal: &Seal) -> Result<(), SegmentError> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    for start in (0..seal.data_bytes).step_by(BLOCK_BYTES as usize) {
        let len = BLOCK_BYTES.min(seal.data_bytes - start) as usize;
        file.read_into(Position::new(start), &mut block[..len])?;
        let checked = seal.check(start, &block[..len]);
        checked.map_err(|position| SegmentError::Rot {
            position,
            detail: "what other replicas gave does not match the seal".to_owned(),
        })?;
    }
    Ok(())
}

fn copy(from: &dyn DiskFile, to: &dyn DiskFile, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES.min(end.saturating_sub(start) as usize)];
    let mut at = start;
    while at < end {
        let len = COPY_BYTES.min((end - at) as usize);
        from.read_into(Position::new(at), &mut buffer[..len])?;
        to.write_at(Position::new(at), &[&buffer[..len]])?;
        at += len as u64;
    }
    Ok(())
}

/// Whether a file holds what was damaged once. It is kept for whoever wants to know, as long as its segment, and nobody reads it.
pub(super) fn is_kept(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == DAMAGED)
}

/// Lets mended files take their segments' places, and bounds how many damaged ones are kept.
///
/// # Errors
/// Where the disk fails.
pub(super) fn settle(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let names = disk.list(dir)?;
    let mut switched = false;
    for mended in names.iter().map(|name| dir.join(name)) {
        if mended.extension().is_none_or(|ending| ending != MENDED) {
            continue;
        }
        let log = mended.with_extension("");
        let aside = log.with_added_extension(DAMAGED);
        if disk.exists(&log) {
            disk.rename(&log, &aside)?;
        }
        disk.rename(&mended, &log)?;
        switched = true;
    }
    if !switched {
        return Ok(());
    }
    disk.sync_dir(dir)?;
    let names = disk.list(dir)?.into_iter().map(|name| dir.join(name));
    let kept: Vec<_> = names.filter(|path| is_kept(path)).collect();
    for old in &kept[..kept.len().saturating_sub(KEPT)] {
        disk.remove_file(old)?;
    }
    Ok(())
}
