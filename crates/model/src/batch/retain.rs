//! Taking records out of a batch, as compaction does: what stays keeps its bytes, its offset and its timestamp.

use bytes::Bytes;

use super::{
    BatchError, BatchHeader, Compression, MAX_UNCOMPRESSED_BYTES, RecordBatch,
    record::{RawRecord, take_body},
};
use crate::{Offset, TimestampMs};

/// What decides whether a record stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// Its place in the partition.
    pub offset: Offset,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Whether it says that there is nothing of its key any more: a key without a value.
    pub is_tombstone: bool,
}

/// How many records of a batch stayed, and how many of these are tombstones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// All that stayed.
    pub records: u32,
    /// Those that say so of their key.
    pub tombstones: u32,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retained {
    /// Every record stays: the batch as it is.
    All(Kept),
    /// Some do: the batch without the others. It takes the same offsets.
    Some(RecordBatch, Kept),
    /// None does.
    None,
}

impl RecordBatch {
    /// Gives every record to `visit`, in order, as far as it is needed to decide about it. Nothing is copied but to decompress.
    ///
    /// # Errors
    /// As for [`RecordBatch::records`], and where the records are not what the header says.
    pub fn visit(&self, mut visit: impl FnMut(RecordView<'_>)) -> Result<(), BatchError> {
        let plain = self.plain()?;
        self.walk(&plain, |view, _, _| visit(view))
    }

    /// The batch with those records that `keep` wants. Bytes are kept as they are where all stay; compressed records are
    /// compressed again by the same codec where some go. Control batches stay whole.
    ///
    /// # Errors
    /// As for [`Self::visit`], and where the codec fails.
    pub fn retain(
        &self,
        mut keep: impl FnMut(RecordView<'_>) -> bool,
    ) -> Result<Retained, BatchError> {
        if self.header.is_control() {
            let records = self.header.record_count;
            return Ok(Retained::All(Kept {
                records,
                tombstones: 0,
            }));
        }
        let plain = self.plain()?;
        let mut kept = Kept::default();
        let mut newest = TimestampMs::NONE;
        // Runs of records that stay, so that a batch with few that go is copied in few pieces.
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        self.walk(&plain, |view, timestamp, range| {
            if !keep(view) {
                return;
            }
            kept.records += 1;
            kept.tombstones += u32::from(view.is_tombstone);
            newest = newest.max(timestamp);
            match runs.last_mut() {
                Some(run) if run.end == range.start => run.end = range.end,
                _ => runs.push(range),
            }
        })?;
        if kept.records == self.header.record_count {
            return Ok(Retained::All(kept));
        }
        if kept.records == 0 {
            return Ok(Retained::None);
        }
        let mut bytes = vec![0; BatchHeader::LEN];
        match self.header.compression() {
            Compression::None => {
                for run in runs {
                    bytes.extend_from_slice(&plain[run]);
                }
            }
            codec => {
                let slices: Vec<&[u8]> = runs.into_iter().map(|run| &plain[run]).collect();
                codec.compress(&slices.concat(), &mut bytes)?;
            }
        }
        let batch = self.rewritten(bytes, kept.records, newest)?;
        Ok(Retained::Some(batch, kept))
    }

    /// The batch without any record: it still takes its offsets, and says what its producer's sequence was.
    ///
    /// # Errors
    /// None that a batch which was parsed can give.
    pub fn emptied(&self) -> Result<Self, BatchError> {
        let newest = self.header.max_timestamp;
        self.rewritten(vec![0; BatchHeader::LEN], 0, newest)
    }

    fn rewritten(
        &self,
        bytes: Vec<u8>,
        record_count: u32,
        newest: TimestampMs,
    ) -> Result<Self, BatchError> {
        let limit = i32::MAX as usize;
        let codec = match record_count {
            0 => self.header.attributes & !Compression::BITS,
            _ => self.header.attributes,
        };
        let header = BatchHeader {
            batch_length: BatchHeader::length_field(bytes.len())
                .ok_or(BatchError::TooLarge { limit })?,
            attributes: codec,
            max_timestamp: newest,
            record_count,
            ..self.header
        };
        Ok(Self::sealed(header, bytes))
    }

    fn plain(&self) -> Result<Bytes, BatchError> {
        // An emptied batch has no stream of its codec.
        if self.header.record_count == 0 {
            return Ok(self.bytes.slice(BatchHeader::LEN..));
        }
        let records = self.bytes.slice(BatchHeader::LEN..);
        let codec = self.header.compression();
        codec.decompress(&records, MAX_UNCOMPRESSED_BYTES)
    }

    /// Visits the records, each with its timestamp and the place of its bytes.
    #[inline(always)]
    fn walk(
        &self,
        plain: &[u8],
        mut visit: impl FnMut(RecordView<'_>, TimestampMs, std::ops::Range<usize>),
    ) -> Result<(), BatchError> {
        let header = &self.header;
        let (count, last, holes) = (
            header.record_count,
            header.last_offset_delta,
            header.has_holes(),
        );
        let mut rest = plain;
        let mut due = 0;
        for index in 0..count {
            let start = plain.len() - rest.len();
            let parsed = take_body(&mut rest).and_then(|body| {
                let raw = RawRecord::parse(body)?;
                let delta = raw.check_delta(due, last, holes)?;
                Ok((raw, delta))
            });
            let (raw, delta) =
                parsed.map_err(|problem| BatchError::BadRecord { index, problem })?;
            due = delta + 1;
            let timestamp = if header.timestamp_is_log_append() {
                header.max_timestamp
            } else {
                let base = header.base_timestamp.get();
                TimestampMs::new(base.wrapping_add(raw.timestamp_delta))
            };
            let view = RecordView {
                offset: header.base_offset.plus(delta.into()),
                key: raw.key,
                is_tombstone: raw.key.is_some() && raw.value.is_none(),
            };
            visit(view, timestamp, start..plain.len() - rest.len());
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(BatchError::BytesAfterRecords { count })
        }
    }
}
