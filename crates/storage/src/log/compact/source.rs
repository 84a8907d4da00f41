//! Reading segments from front to back, a chunk at a time.

use std::collections::VecDeque;

use quipu_model::RecordBatch;

use crate::log::{
    check::whole_batches,
    segment::{Segment, SegmentError},
};

/// How much is read at a time.
const READ_BYTES: usize = 256 << 10;

/// How much of it is handed out at a time: a step keeps a core from producers for no longer than that needs.
const CHUNK_BYTES: usize = 32 << 10;

/// Where the reading of a segment stands.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// Of what is read next.
    position: u64,
    /// What was read and not handed out.
    ahead: VecDeque<RecordBatch>,
}

impl Source {
    /// The next batches, and how many bytes they have; none at the segment's end.
    pub(super) fn chunk(
        &mut self,
        segment: &Segment,
    ) -> Result<(Vec<RecordBatch>, u64), SegmentError> {
        if self.ahead.is_empty() {
            self.read(segment)?;
        }
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while bytes < CHUNK_BYTES
            && let Some(batch) = self.ahead.pop_front()
        {
            bytes += batch.bytes().len();
            batches.push(batch);
        }
        Ok((batches, bytes as u64))
    }

    /// Reads on, where the segment has not ended. Checked against the seal, and copied: neither a bad sector nor a slow disk meets
    /// anyone but the caller.
    fn read(&mut self, segment: &Segment) -> Result<(), SegmentError> {
        let mut wanted = READ_BYTES;
        while self.position < segment.len() {
            let bytes = segment.copied(self.position, wanted)?;
            let (batches, needed) = whole_batches(&bytes, self.position)?;
            let taken: usize = batches.iter().map(|batch| batch.bytes().len()).sum();
            if taken > 0 {
                self.position += taken as u64;
                self.ahead = batches.into();
                return Ok(());
            }
            if self.position + needed as u64 > segment.len() {
                return Err(SegmentError::Rot {
                    position: quipu_model::Position::new(self.position),
                    detail: "a batch claims to go past the segment's end".to_owned(),
                });
            }
            // One batch larger than that.
            wanted = needed;
        }
        Ok(())
    }
}
