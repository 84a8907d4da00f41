//! Which bytes of a segment are not what was written, widened to whole batches: what must be had from another replica.

use std::{io, ops::Range, path::Path, sync::Arc};

use quipu_model::{Offset, Position, RaftIndex, RecordBatch, Term, batch::BatchHeader};

use super::{
    index::SparseIndex,
    raft_map::RaftMap,
    seal::{BLOCK_BYTES, Seal},
    state::SegmentState,
};
use crate::io::{Disk, DiskFile, OpenMode, read_whole};

/// How many bytes the search for a sound batch looks at at a time.
const SEARCH_BYTES: usize = 1 << 20;

/// A stretch of a segment that is to be written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wound {
    pub(super) positions: Range<u64>,
    /// Of the records that stand there.
    pub(super) offsets: Range<Offset>,
}

impl Wound {
    pub(super) fn whole(segment: &SegmentState) -> Self {
        Self {
            positions: 0..segment.bytes,
            offsets: segment.base..segment.next_offset,
        }
    }
}

/// What tells whether a segment's bytes are what was written.
#[derive(Clone, Debug)]
pub(super) enum Voucher {
    /// A checksum for each block.
    Seal(Arc<Seal>),
    /// Each batch's own checksum, its offset, and the term of its Raft entry.
    Batches(Arc<RaftMap>),
}

/// The wounds of a sealed segment, in order.
pub(super) fn by_seal(
    file: Option<&dyn DiskFile>,
    segment: &SegmentState,
    seal: &Seal,
    index: Option<&SparseIndex>,
) -> Vec<Wound> {
    let Some(file) = file else {
        return vec![Wound::whole(segment)];
    };
    let mut wounds: Vec<Wound> = Vec::new();
    let mut block = vec![0; BLOCK_BYTES as usize];
    for start in (0..seal.data_bytes).step_by(BLOCK_BYTES as usize) {
        let len = BLOCK_BYTES.min(seal.data_bytes - start) as usize;
        let read = file.read_into(Position::new(start), &mut block[..len]);
        if read.is_ok() && seal.check(start, &block[..len]).is_ok() {
            continue;
        }
        let wound = widen(segment, start..start + len as u64, index);
        match wounds.last_mut() {
            Some(last) if wound.positions.start <= last.positions.end => {
                last.positions.end = last.positions.end.max(wound.positions.end);
                last.offsets.end = last.offsets.end.max(wound.offsets.end);
            }
            _ => wounds.push(wound),
        }
    }
    wounds
}

/// The whole batches around a range, as far as the index tells.
fn widen(segment: &SegmentState, range: Range<u64>, index: Option<&SparseIndex>) -> Wound {
    let mut wound = Wound::whole(segment);
    let Some(index) = index else { return wound };
    if let Some(entry) = index.last_where(|entry| entry.position.get() <= range.start) {
        wound.positions.start = entry.position.get();
        wound.offsets.start = entry.offset;
    }
    if let Some(entry) = index.first_not(|entry| entry.position.get() < range.end) {
        wound.positions.end = entry.position.get();
        wound.offsets.end = entry.offset;
    }
    wound
}

/// A sealed segment's index, where it is what the seal says.
pub(crate) fn sound_index(disk: &dyn Disk, log: &Path, seal: &Seal) -> Option<SparseIndex> {
    let bytes = read_whole(disk, &log.with_extension("index")).ok()?;
    (crc32fast::hash(&bytes) == seal.index_crc).then(|| SparseIndex::Mapped(bytes.into()))
}

/// The segment's file, where it is there and long enough.
pub(super) fn open_whole(
    disk: &dyn Disk,
    log: &Path,
    segment: &SegmentState,
) -> io::Result<Option<Arc<dyn DiskFile>>> {
    match disk.open(log, OpenMode::Read) {
        Ok(file) => Ok((file.len()? >= segment.bytes).then_some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The wounds of a segment without a seal, in order: its batches are looked at one by one, and where one is not sound, the next
/// that is ends the wound.
///
/// # Errors
/// Where the disk does not give the bytes.
pub(super) fn by_batches(
    file: Option<&dyn DiskFile>,
    segment: &SegmentState,
    raft: &RaftMap,
) -> io::Result<Vec<Wound>> {
    let Some(file) = file else {
        return Ok(vec![Wound::whole(segment)]);
    };
    let mut wounds = Vec::new();
    let (mut position, mut due) = (0, segment.base);
    let holes = segment.may_have_holes();
    // Unknown behind a wound or a hole: how many entries were in it is not.
    let counts = !holes && raft.counts_from(segment.first.index);
    let mut index = counts.then_some(segment.first.index);
    while position < segment.bytes || due < segment.next_offset {
        if let Some(header) = batch_at(file, segment, position)?
            && (header.base_offset == due || (holes && header.base_offset > due))
            && index.is_none_or(|index| is_of_term(&header, raft, index))
        {
            position += header.total_len() as u64;
            due = header.next_offset();
            index = index.map(|index| raft.batch_index_from(index.next()));
            continue;
        }
        let (end, next) = match next_sound(file, segment, position, due)? {
            Some((end, header)) => (end, header.base_offset),
            None => (segment.bytes, segment.next_offset),
        };
        wounds.push(Wound {
            positions: position..end,
            offsets: due..next,
        });
        (position, due, index) = (end, next, None);
    }
    Ok(wounds)
}

fn is_of_term(header: &BatchHeader, raft: &RaftMap, index: RaftIndex) -> bool {
    let epoch = raft.term_of(index).map(Term::leader_epoch);
    epoch.is_none_or(|epoch| epoch == header.leader_epoch)
}

/// The header of the batch at a position, where a sound one stands there.
fn batch_at(
    file: &dyn DiskFile,
    segment: &SegmentState,
    position: u64,
) -> io::Result<Option<BatchHeader>> {
    let left = segment.bytes.saturating_sub(position);
    let mut header = [0; BatchHeader::LEN];
    if left < header.len() as u64 {
        return Ok(None);
    }
    file.read_into(Position::new(position), &mut header)?;
    let Ok(header) = BatchHeader::parse(&header) else {
        return Ok(None);
    };
    if header.total_len() as u64 > left || header.next_offset() > segment.next_offset {
        return Ok(None);
    }
    file.populate(Position::new(position), header.total_len())?;
    let bytes = file.read(Position::new(position), header.total_len())?;
    Ok(RecordBatch::from_bytes(bytes)
        .ok()
        .map(|batch| *batch.header()))
}

/// The first sound batch behind a position at which none stands.
fn next_sound(
    file: &dyn DiskFile,
    segment: &SegmentState,
    position: u64,
    due: Offset,
) -> io::Result<Option<(u64, BatchHeader)>> {
    let mut window = vec![0; SEARCH_BYTES];
    let mut from = position + 1;
    while from + (BatchHeader::LEN as u64) <= segment.bytes {
        let len = SEARCH_BYTES.min((segment.bytes - from) as usize);
        file.read_into(Position::new(from), &mut window[..len])?;
        let starts = len + 1 - BatchHeader::LEN;
        for at in 0..starts {
            let header = BatchHeader::parse(&window[at..len]);
            let likely = header.is_ok_and(|header| {
                header.base_offset > due && header.next_offset() <= segment.next_offset
            });
            if likely && let Some(header) = batch_at(file, segment, from + at as u64)? {
                return Ok(Some((from + at as u64, header)));
            }
        }
        from += starts as u64;
    }
    Ok(None)
}
