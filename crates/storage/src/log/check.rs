//! Checking a segment that has no seal: its batches themselves tell whether they are what was written.

use bytes::Bytes;
use quipu_model::{Position, RecordBatch, Term, TimestampMs, batch::BatchHeader};

use super::{
    index::{IndexEntry, SparseIndex, UNKNOWN_RAFT_INDEX},
    raft_map::RaftMap,
    segment::{Segment, SegmentError},
};

/// How many bytes of a segment are checked at a time.
const CHECK_BYTES: usize = 4 << 20;

/// Checks every batch of a segment that has no seal yet; gives an index of it, made on the way. One that compaction may have
/// written, here or elsewhere, may lack offsets, and Raft asks nothing of it any more; and of one from before what Raft's log still knows, entries are not
/// counted.
pub(super) fn check_unsealed(
    segment: &Segment,
    raft: &RaftMap,
) -> Result<SparseIndex, SegmentError> {
    let has_holes = segment.generation() != 0;
    let counts = !has_holes && raft.counts_from(segment.first_index);
    let mut index = SparseIndex::Growing(Vec::new());
    let (mut newest, mut raft_index, mut due) =
        (TimestampMs::NONE, segment.first_index, segment.base);
    if !counts {
        raft_index = UNKNOWN_RAFT_INDEX;
    }
    let (mut position, mut next_entry_at, mut wanted) = (0, 0, CHECK_BYTES);
    while position < segment.len() {
        segment.populate(Position::new(position), wanted)?;
        let window = segment.window(Position::new(position), wanted)?;
        let (batches, taken) = whole_batches(&window, position)?;
        if batches.is_empty() {
            if position + taken as u64 > segment.len() {
                let detail = "a batch is cut short by the segment's end".to_owned();
                return Err(SegmentError::Rot {
                    position: Position::new(position),
                    detail,
                });
            }
            // One batch larger than the window: look again with room for it.
            wanted = taken;
            continue;
        }
        for batch in batches {
            let (header, at) = (*batch.header(), Position::new(position));
            let fits = match has_holes {
                true => header.base_offset >= due,
                false => header.base_offset == due,
            };
            if !fits {
                let detail = format!(
                    "a batch has base offset {} where {due} was due",
                    header.base_offset
                );
                return Err(SegmentError::Rot {
                    position: at,
                    detail,
                });
            }
            // The epoch stands outside the batch's checksum.
            let term = raft.term_of(raft_index).filter(|_| counts);
            let epoch = term.map(Term::leader_epoch);
            if let Some(epoch) = epoch.filter(|epoch| *epoch != header.leader_epoch) {
                let detail = format!(
                    "a batch has leader epoch {} where {epoch} was due",
                    header.leader_epoch
                );
                return Err(SegmentError::Rot {
                    position: at,
                    detail,
                });
            }
            if position >= next_entry_at {
                index.push(IndexEntry {
                    offset: header.base_offset,
                    raft_index,
                    position: at,
                    newest_before: newest,
                });
                next_entry_at = position + CHECK_INDEX_INTERVAL;
            }
            newest = newest.max(header.max_timestamp);
            if counts {
                raft_index = raft.batch_index_from(raft_index.next());
            }
            due = header.next_offset();
            position += header.total_len() as u64;
        }
        wanted = CHECK_BYTES;
    }
    if due != segment.next_offset() {
        let detail = format!(
            "its batches end at offset {due}, not at {}",
            segment.next_offset()
        );
        return Err(SegmentError::Rot {
            position: Position::new(position),
            detail,
        });
    }
    segment.publish(segment.len(), due, newest);
    Ok(index)
}

/// The bytes between index entries that a check makes.
const CHECK_INDEX_INTERVAL: u64 = 16 << 10;

/// The whole batches at the front of a window, CRC checked; where there is none, the bytes that the first one needs.
pub(super) fn whole_batches(
    window: &Bytes,
    position: u64,
) -> Result<(Vec<RecordBatch>, usize), SegmentError> {
    let (mut batches, mut at) = (Vec::new(), 0);
    let rot = |at: usize, detail: String| SegmentError::Rot {
        position: Position::new(position + at as u64),
        detail,
    };
    while at < window.len() {
        if window.len() - at < BatchHeader::LEN {
            return Ok((batches, BatchHeader::LEN));
        }
        let header =
            BatchHeader::parse(&window[at..]).map_err(|error| rot(at, error.to_string()))?;
        let end = at + header.total_len();
        if end > window.len() {
            return Ok((batches, header.total_len()));
        }
        batches.push(
            RecordBatch::from_bytes(window.slice(at..end))
                .map_err(|error| rot(at, error.to_string()))?,
        );
        at = end;
    }
    Ok((batches, at))
}
