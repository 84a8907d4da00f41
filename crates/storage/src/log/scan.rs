//! Walking a segment's batches in order.

use bytes::Bytes;
use quipu_model::{Position, batch::BatchHeader};

use super::segment::{Segment, SegmentError};

/// How many bytes a scan reads at a time.
const WINDOW_BYTES: usize = 256 << 10;

/// A walk over the headers of a segment's batches.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    segment: &'a Segment,
    window: Bytes,
    /// Where the window begins in the segment.
    window_at: u64,
    next: u64,
}

impl<'a> Scan<'a> {
    pub(super) fn new(segment: &'a Segment, from: Position) -> Self {
        Self {
            segment,
            window: Bytes::new(),
            window_at: from.get(),
            next: from.get(),
        }
    }

    /// The next batch's header and position; `None` at the end of the segment.
    pub(super) fn next_header(&mut self) -> Result<Option<(BatchHeader, Position)>, SegmentError> {
        if self.next >= self.segment.len() {
            return Ok(None);
        }
        let position = Position::new(self.next);
        let mut at = self.next - self.window_at;
        if at + BatchHeader::LEN as u64 > self.window.len() as u64 {
            self.window = self.segment.window(position, WINDOW_BYTES)?;
            self.window_at = self.next;
            at = 0;
        }
        let rest = self.window.get(at as usize..).unwrap_or_default();
        let header = BatchHeader::parse(rest).map_err(|error| SegmentError::Rot {
            position,
            detail: error.to_string(),
        })?;
        self.next += header.total_len() as u64;
        if self.next > self.segment.len() {
            return Err(SegmentError::Rot {
                position,
                detail: "a batch claims to go past the segment's end".to_owned(),
            });
        }
        Ok(Some((header, position)))
    }
}
