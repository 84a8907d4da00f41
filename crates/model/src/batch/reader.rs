//! Reading a batch's records: one by one for whoever wants them, or only to know that they are sound.

use bytes::{Buf, Bytes};

use super::{
    BatchError, BatchHeader, MAX_UNCOMPRESSED_BYTES, Record, RecordHeader, RecordProblem,
    compression::Decompressor,
    record::{RawRecord, take_body},
    varint,
};
use crate::TimestampMs;

/// How many decompressed bytes are looked at together while records are checked.
const WINDOW_BYTES: usize = 64 << 10;

/// The records of one batch, in order. It ends after the first error.
#[derive(Clone, Debug)]
pub struct RecordIter {
    header: BatchHeader,
    /// The decompressed records that are yet to be read.
    rest: Bytes,
    next: u32,
    /// The least offset delta that the next record may have.
    due: u32,
    failed: bool,
}

impl RecordIter {
    /// Reads `records`, the decompressed records of a batch with this header.
    pub(super) fn new(header: BatchHeader, records: Bytes) -> Self {
        Self {
            header,
            rest: records,
            next: 0,
            due: 0,
            failed: false,
        }
    }

    fn read(&mut self) -> Result<Record, RecordProblem> {
        let mut rest: &[u8] = &self.rest;
        let body = take_body(&mut rest)?;
        let raw = RawRecord::parse(body)?;
        let (last, holes) = (self.header.last_offset_delta, self.header.has_holes());
        let delta = raw.check_delta(self.due, last, holes)?;
        let slice = |bytes: &[u8]| self.rest.slice_ref(bytes);
        let timestamp = if self.header.timestamp_is_log_append() {
            self.header.max_timestamp
        } else {
            // Wrapping, as the writer's subtraction does: every pair of timestamps survives.
            let base = self.header.base_timestamp.get();
            TimestampMs::new(base.wrapping_add(raw.timestamp_delta))
        };
        let mut record = Record {
            offset: self.header.base_offset.plus(delta.into()),
            timestamp,
            key: raw.key.map(slice),
            value: raw.value.map(slice),
            headers: Vec::new(),
        };
        raw.visit_headers(|key, value| {
            record.headers.push(RecordHeader {
                key: slice(key),
                value: value.map(slice),
            });
        })?;
        let read = self.rest.len() - rest.len();
        self.rest.advance(read);
        self.next += 1;
        self.due = delta + 1;
        Ok(record)
    }
}

impl Iterator for RecordIter {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let count = self.header.record_count;
        let read = if self.next < count {
            let index = self.next;
            self.read()
                .map_err(|problem| BatchError::BadRecord { index, problem })
        } else if self.rest.is_empty() {
            return None;
        } else {
            Err(BatchError::BytesAfterRecords { count })
        };
        self.failed = read.is_err();
        Some(read)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // The lower bound is what callers set memory aside for: nothing, on the word of a count alone.
        (0, Some((self.header.record_count - self.next) as usize + 1))
    }
}

/// Whether a record must have a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// It may.
    Optional,
    /// It must: its topic is compacted.
    Required,
}

/// Checks `count` records that fill `records`.
pub(super) fn check_plain(mut records: &[u8], count: u32, keys: Keys) -> Result<(), BatchError> {
    let limit = MAX_UNCOMPRESSED_BYTES;
    if records.len() > limit {
        return Err(BatchError::TooLarge { limit });
    }
    for index in 0..count {
        take_body(&mut records)
            .and_then(|body| check_body(body, index, keys))
            .map_err(|problem| BatchError::BadRecord { index, problem })?;
    }
    if records.is_empty() {
        Ok(())
    } else {
        Err(BatchError::BytesAfterRecords { count })
    }
}

/// Checks `count` records as they come out of `source`, holding no more of them than the window or the largest record.
pub(super) fn check_compressed(
    source: Decompressor<'_>,
    count: u32,
    keys: Keys,
) -> Result<(), BatchError> {
    let mut window = Window::new(source);
    for index in 0..count {
        let bad = |problem| BatchError::BadRecord { index, problem };
        window.fill(varint::MAX_LEN_32)?;
        let mut ahead = window.bytes();
        let length = varint::take_i32(&mut ahead).map_err(bad)?;
        let prefix = window.bytes().len() - ahead.len();
        // A negative length asks for nothing more, and is refused below.
        let needed = prefix + usize::try_from(length).unwrap_or(0);
        if needed > MAX_UNCOMPRESSED_BYTES {
            let limit = MAX_UNCOMPRESSED_BYTES;
            return Err(BatchError::TooLarge { limit });
        }
        window.fill(needed)?;
        let mut rest = window.bytes();
        take_body(&mut rest)
            .and_then(|body| check_body(body, index, keys))
            .map_err(bad)?;
        window.consume(needed);
    }
    window.fill(1)?;
    if window.bytes().is_empty() {
        Ok(())
    } else {
        Err(BatchError::BytesAfterRecords { count })
    }
}

#[inline(always)]
fn check_body(body: &[u8], index: u32, keys: Keys) -> Result<(), RecordProblem> {
    let raw = RawRecord::parse(body)?;
    raw.check_delta(index, index, false)?;
    if keys == Keys::Required && raw.key.is_none() {
        return Err(RecordProblem::NoKey);
    }
    raw.visit_headers(|_, _| ())
}

/// The part of a decompressed stream that is being looked at.
struct Window<'a> {
    source: Decompressor<'a>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'a> Window<'a> {
    fn new(source: Decompressor<'a>) -> Self {
        Self {
            source,
            buffer: vec![0; WINDOW_BYTES],
            start: 0,
            end: 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Reads on until `count` bytes are in sight or the stream ends. The buffer grows only as bytes arrive.
    #[inline]
    fn fill(&mut self, count: usize) -> Result<(), BatchError> {
        if self.end - self.start < count {
            self.read_up_to(count)?;
        }
        Ok(())
    }

    fn read_up_to(&mut self, count: usize) -> Result<(), BatchError> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < count {
            if self.end == self.buffer.len() {
                let room = count.min(self.end * 2);
                self.buffer.reserve_exact(room - self.end);
                self.buffer.resize(room, 0);
            }
            let read = self.source.read(&mut self.buffer[self.end..])?;
            if read == 0 {
                break;
            }
            self.end += read;
        }
        Ok(())
    }
}
