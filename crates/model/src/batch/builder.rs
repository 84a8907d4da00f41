//! Putting a batch together.

use super::{BatchError, BatchHeader, Compression, RecordBatch, record, varint};
use crate::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs};

/// Collects records and makes a batch of them. Without compression, a record's bytes are copied once: to where they stay.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    compression: Compression,
    /// Room for the header, then the records, uncompressed.
    buffer: Vec<u8>,
    count: u32,
    base_timestamp: TimestampMs,
    max_timestamp: TimestampMs,
    producer_id: ProducerId,
    producer_epoch: ProducerEpoch,
    base_sequence: Sequence,
}

impl BatchBuilder {
    /// An empty batch whose records are going to be compressed so.
    pub fn new(compression: Compression) -> Self {
        Self::with_capacity(compression, BatchHeader::LEN)
    }

    /// The same, with room for a batch of `bytes` bytes before it must grow.
    pub fn with_capacity(compression: Compression, bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(bytes.max(BatchHeader::LEN));
        buffer.resize(BatchHeader::LEN, 0);
        Self {
            compression,
            buffer,
            count: 0,
            base_timestamp: TimestampMs::NONE,
            max_timestamp: TimestampMs::NONE,
            producer_id: ProducerId::NONE,
            producer_epoch: ProducerEpoch::new(-1),
            base_sequence: Sequence::new(-1),
        }
    }

    /// The most bytes that such a record adds to [`Self::len_bytes`], wherever in a batch it stands.
    pub fn record_size(
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> usize {
        let body = record::body_len(i64::MIN, u32::MAX, key, value, headers);
        varint::len(body as i64) + body
    }

    /// Appends a record and returns its place in the batch, from 0: its offset less the batch's base offset.
    pub fn append(
        &mut self,
        timestamp: TimestampMs,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> u32 {
        let index = self.count;
        if index == 0 {
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        let delta = timestamp.get().wrapping_sub(self.base_timestamp.get());
        record::put(&mut self.buffer, delta, index, key, value, headers);
        self.count += 1;
        index
    }

    /// The batch's length in bytes as it stands, before compression, its header included.
    pub fn len_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// How many records there are.
    pub fn len_records(&self) -> u32 {
        self.count
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Makes the batch idempotent: `sequence` is its first record's.
    pub fn set_producer(&mut self, id: ProducerId, epoch: ProducerEpoch, sequence: Sequence) {
        self.producer_id = id;
        self.producer_epoch = epoch;
        self.base_sequence = sequence;
    }

    /// The finished batch, with base offset 0 and leader epoch -1: a log stamps both.
    ///
    /// # Errors
    /// [`BatchError::Empty`] without records; [`BatchError::TooLarge`] past 2 GiB, the bound of the format;
    /// [`BatchError::Codec`] where compression fails.
    pub fn build(self) -> Result<RecordBatch, BatchError> {
        let Some(last_offset_delta) = self.count.checked_sub(1) else {
            return Err(BatchError::Empty);
        };
        let mut batch = match self.compression {
            Compression::None => self.buffer,
            codec => {
                let mut compressed = vec![0; BatchHeader::LEN];
                codec.compress(&self.buffer[BatchHeader::LEN..], &mut compressed)?;
                compressed
            }
        };
        let limit = i32::MAX as usize;
        let mut header = BatchHeader {
            base_offset: Offset::ZERO,
            batch_length: BatchHeader::length_field(batch.len())
                .ok_or(BatchError::TooLarge { limit })?,
            leader_epoch: LeaderEpoch::new(-1),
            crc: 0,
            attributes: self.compression.bits(),
            last_offset_delta,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            record_count: self.count,
        };
        header.write(&mut batch);
        header.crc = crc32c::crc32c(&batch[BatchHeader::CRC_FROM..]);
        header.write(&mut batch);
        Ok(RecordBatch {
            header,
            bytes: batch.into(),
        })
    }
}
