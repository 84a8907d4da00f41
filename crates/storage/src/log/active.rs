//! The segment that is written.

use std::sync::Arc;

use bytes::Bytes;
use quipu_model::{Offset, Position, RaftIndex, TimestampMs, batch::BatchHeader};

use super::{index::IndexEntry, seal::BlockCrcs, segment::Segment};

/// The least and the most that a file grows by at a time: a partition that hardly gets anything stays small, a busy one
/// does not ask the file system all the time.
const ALLOCATE_LEAST_BYTES: u64 = 64 << 10;
const ALLOCATE_MOST_BYTES: u64 = 32 << 20;

/// Writeback of a full stretch of this size is started early, so that a checkpoint's sync finds little left to do.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// A batch ready to be written: its stamped first bytes, and the rest as it came.
#[derive(Clone, Debug)]
pub(super) struct StampedBatch {
    pub(super) header: BatchHeader,
    pub(super) prefix: Bytes,
    pub(super) body: Bytes,
    pub(super) base_offset: Offset,
    pub(super) raft_index: RaftIndex,
}

impl StampedBatch {
    pub(super) fn next_offset(&self) -> Offset {
        self.base_offset
            .plus(u64::from(self.header.last_offset_delta) + 1)
    }

    pub(super) fn len(&self) -> u64 {
        (self.prefix.len() + self.body.len()) as u64
    }
}

#[derive(Debug)]
pub(super) struct ActiveSegment {
    pub(super) segment: Arc<Segment>,
    allocated: u64,
    /// Behind this many bytes the next segment begins: `segment.bytes` as it was when this one began, so that room which
    /// was reserved here stays here.
    most_bytes: u64,
    /// The position from which the next batch gets an index entry.
    next_index_at: u64,
    written_back: u64,
    /// Batches taken but not yet written, and where they begin.
    pending: Vec<StampedBatch>,
    len: u64,
    newest: TimestampMs,
    /// `None` where the segment held something before it was opened here.
    block_crcs: Option<BlockCrcs>,
}

impl ActiveSegment {
    /// Goes on behind what `segment` holds, in a file of `allocated` bytes.
    pub(super) fn new(segment: Arc<Segment>, allocated: u64, most_bytes: u64) -> Self {
        let len = segment.len();
        let newest = segment.newest();
        Self {
            segment,
            allocated,
            most_bytes,
            next_index_at: len,
            written_back: len,
            pending: Vec::new(),
            len,
            newest,
            block_crcs: (len == 0).then(BlockCrcs::default),
        }
    }

    /// The segment, and the checksums of its blocks where all of it was written here.
    pub(super) fn into_parts(self) -> (Arc<Segment>, Option<Arc<[u32]>>) {
        (
            self.segment,
            self.block_crcs.map(|crcs| crcs.finish().into()),
        )
    }

    /// The bytes of all batches taken, written or not.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn most_bytes(&self) -> u64 {
        self.most_bytes
    }

    /// Makes sure that the file holds `bytes` more than it has, growing it in steps.
    pub(super) fn allocate(&mut self, bytes: u64) -> std::io::Result<()> {
        let needed = self.len + bytes;
        if needed > self.allocated {
            let target = next_allocation(self.allocated, needed);
            self.segment.file.allocate(target)?;
            self.allocated = target;
        }
        Ok(())
    }

    /// Takes a batch: it is written by the next [`Self::write_pending`].
    pub(super) fn push(&mut self, batch: StampedBatch, index_interval: u64) {
        if self.len >= self.next_index_at {
            self.segment.push_index(IndexEntry {
                offset: batch.base_offset,
                raft_index: batch.raft_index,
                position: Position::new(self.len),
                newest_before: self.newest,
            });
            self.next_index_at = self.len + index_interval;
        }
        if let Some(crcs) = &mut self.block_crcs {
            crcs.update(&batch.prefix);
            crcs.update(&batch.body);
        }
        self.len += batch.len();
        self.newest = self.newest.max(batch.header.max_timestamp);
        self.pending.push(batch);
    }

    /// Writes what was taken and shows it to readers.
    pub(super) fn write_pending(&mut self) -> std::io::Result<()> {
        let Some(last) = self.pending.last() else {
            return Ok(());
        };
        let next_offset = last.next_offset();
        let slices: Vec<&[u8]> = self
            .pending
            .iter()
            .flat_map(|batch| [&batch.prefix[..], &batch.body[..]])
            .collect();
        self.segment
            .file
            .write_at(Position::new(self.segment.len()), &slices)?;
        self.segment.publish(self.len, next_offset, self.newest);
        self.pending.clear();
        Ok(())
    }

    /// A stretch that is full and whose writeback has not been started, if any.
    pub(super) fn take_writeback(&mut self) -> Option<(Position, u64)> {
        let full = (self.len - self.written_back) / WRITEBACK_BYTES * WRITEBACK_BYTES;
        let stretch = (full > 0).then_some((Position::new(self.written_back), full));
        self.written_back += full;
        stretch
    }
}

/// To how many bytes a file of `allocated` grows when `needed` are asked for.
pub(super) fn next_allocation(allocated: u64, needed: u64) -> u64 {
    let step = allocated.clamp(ALLOCATE_LEAST_BYTES, ALLOCATE_MOST_BYTES);
    needed.max(allocated + step).next_multiple_of(4096)
}
