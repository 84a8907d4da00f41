//! Reading segments from front to back, a chunk at a time.

use quipu_model::RecordBatch;

use crate::log::{
    check::whole_batches,
    segment::{Segment, SegmentError},
};

/// How much is read at a time: a step takes no longer than that needs, and keeps a core from producers for no longer.
const CHUNK_BYTES: usize = 256 << 10;

/// Where the reading of a segment stands.
#[derive(Debug, Default)]
pub(super) struct Source {
    position: u64,
}

impl Source {
    /// The next batches, and how many bytes were read for them; none at the segment's end. Checked against the seal, and
    /// copied: neither a bad sector nor a slow disk meets anyone but the caller.
    pub(super) fn chunk(
        &mut self,
        segment: &Segment,
    ) -> Result<(Vec<RecordBatch>, u64), SegmentError> {
        let mut wanted = CHUNK_BYTES;
        while self.position < segment.len() {
            let bytes = segment.copied(self.position, wanted)?;
            let (batches, needed) = whole_batches(&bytes, self.position)?;
            let taken: usize = batches.iter().map(|batch| batch.bytes().len()).sum();
            if taken > 0 {
                self.position += taken as u64;
                return Ok((batches, taken as u64));
            }
            if self.position + needed as u64 > segment.len() {
                return Err(SegmentError::Rot {
                    position: quipu_model::Position::new(self.position),
                    detail: "a batch claims to go past the segment's end".to_owned(),
                });
            }
            // One batch larger than a chunk.
            wanted = needed;
        }
        Ok((Vec::new(), 0))
    }
}
