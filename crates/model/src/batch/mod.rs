//! Kafka's record batch v2 (magic 2), byte for byte.
//!
//! Format: <https://kafka.apache.org/documentation/#recordbatch>. All numbers are big-endian; record fields are zig-zag
//! varints. A [`RecordBatch`] is whole and undamaged by its type; its records are looked at only when asked for. Nothing
//! here takes memory on the word of a number that came with the bytes.

mod builder;
mod compression;
mod error;
mod header;
mod reader;
mod record;
mod retain;
mod snappy;
mod varint;

use bytes::Bytes;

use crate::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs};

pub use builder::BatchBuilder;
pub use compression::{Compression, UnknownCompression};
pub use error::{BatchError, RecordProblem};
pub use header::BatchHeader;
use reader::Keys;
pub use reader::RecordIter;
pub use record::{Record, RecordHeader};
pub use retain::{Kept, RecordView, Retained};

/// The most bytes that one batch's records may take uncompressed.
pub const MAX_UNCOMPRESSED_BYTES: usize = 64 << 20;

/// One whole record batch whose header and CRC were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordBatch {
    header: BatchHeader,
    bytes: Bytes,
}

impl RecordBatch {
    /// Takes exactly one batch; checks header and CRC-32C, not the records.
    ///
    /// # Errors
    /// Those of [`BatchHeader::parse`]; [`BatchError::Truncated`] and [`BatchError::TrailingBytes`] where the bytes are
    /// not as many as the header says; [`BatchError::CrcMismatch`] where they are damaged.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(&bytes)?;
        let needed = header.total_len();
        let found = bytes.len();
        if found < needed {
            return Err(BatchError::Truncated { needed, found });
        }
        if found > needed {
            let extra = found - needed;
            return Err(BatchError::TrailingBytes { extra });
        }
        let stored = header.crc;
        let computed = crc32c::crc32c(&bytes[BatchHeader::CRC_FROM..]);
        if stored != computed {
            return Err(BatchError::CrcMismatch { stored, computed });
        }
        Ok(Self { header, bytes })
    }

    /// Checks every record: what a broker does before it accepts a batch. Nothing is built, and compressed records are
    /// decompressed piece by piece. The base offset may be any.
    ///
    /// # Errors
    /// [`BatchError::NotServed`] for control and transactional batches and unknown attributes; [`BatchError::BadHeader`]
    /// for a producer id without epoch or sequence; [`BatchError::BadRecord`] and [`BatchError::BytesAfterRecords`] where
    /// the records are not what the header says; [`BatchError::TooLarge`] past [`MAX_UNCOMPRESSED_BYTES`];
    /// [`BatchError::Codec`] where they do not decompress.
    pub fn validate_records(&self) -> Result<(), BatchError> {
        self.validate(Keys::Optional)
    }

    /// The same, and that every record has a key: what a compacted topic takes.
    ///
    /// # Errors
    /// As for [`Self::validate_records`]; [`RecordProblem::NoKey`] for the first record without a key.
    pub fn validate_keyed_records(&self) -> Result<(), BatchError> {
        self.validate(Keys::Required)
    }

    fn validate(&self, keys: Keys) -> Result<(), BatchError> {
        self.header.check_producible()?;
        let records = &self.bytes[BatchHeader::LEN..];
        let count = self.header.record_count;
        match self.header.compression() {
            Compression::None => reader::check_plain(records, count, keys),
            codec => {
                let source =
                    compression::Decompressor::new(codec, records, MAX_UNCOMPRESSED_BYTES)?;
                reader::check_compressed(source, count, keys)
            }
        }
    }

    /// The records, decompressed at once and then read one by one.
    ///
    /// # Errors
    /// [`BatchError::TooLarge`] past [`MAX_UNCOMPRESSED_BYTES`]; [`BatchError::Codec`] where they do not decompress.
    pub fn records(&self) -> Result<RecordIter, BatchError> {
        let records = self.bytes.slice(BatchHeader::LEN..);
        let codec = self.header.compression();
        let plain = codec.decompress(&records, MAX_UNCOMPRESSED_BYTES)?;
        Ok(RecordIter::new(self.header, plain))
    }

    /// The header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch, header included.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The whole batch, header included.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
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

    /// A copy of the batch as another producer's, with its CRC made anew: what a client does with batches that were never
    /// stored, once the sequence they were numbered in is lost.
    pub fn with_producer(&self, id: ProducerId, epoch: ProducerEpoch, sequence: Sequence) -> Self {
        let header = BatchHeader {
            producer_id: id,
            producer_epoch: epoch,
            base_sequence: sequence,
            ..self.header
        };
        Self::sealed(header, self.bytes.to_vec())
    }

    /// A copy of the batch whose records all have one timestamp: when a log took it in. Its CRC is made anew.
    pub fn with_append_time(&self, now: TimestampMs) -> Self {
        let header = BatchHeader {
            attributes: self.header.attributes | header::TIMESTAMP_IS_LOG_APPEND,
            max_timestamp: now,
            ..self.header
        };
        Self::sealed(header, self.bytes.to_vec())
    }

    /// The batch of a header, whose CRC and place in `bytes` are filled in here, and the records behind it.
    fn sealed(mut header: BatchHeader, mut bytes: Vec<u8>) -> Self {
        header.write(&mut bytes);
        header.crc = crc32c::crc32c(&bytes[BatchHeader::CRC_FROM..]);
        header.write(&mut bytes);
        Self {
            header,
            bytes: bytes.into(),
        }
    }

    /// A copy of the batch with another base offset and leader epoch. For tools: a log writes
    /// [`Self::stamped_prefix`] and the rest, without a copy.
    pub fn stamped(&self, base_offset: Offset, epoch: LeaderEpoch) -> Self {
        let mut bytes = self.bytes.to_vec();
        bytes[..BatchHeader::STAMPED_LEN].copy_from_slice(&self.stamped_prefix(base_offset, epoch));
        Self {
            header: BatchHeader {
                base_offset,
                leader_epoch: epoch,
                ..self.header
            },
            bytes: bytes.into(),
        }
    }
}

/// The batches that stand one behind the other in `bytes`, in order, each checked as [`RecordBatch::from_bytes`] does. A
/// last batch that is cut short is an error ([`BatchError::Truncated`]), and the iterator ends after the first error.
pub fn split_batches(bytes: Bytes) -> BatchIter {
    BatchIter { rest: bytes }
}

/// See [`split_batches`].
#[derive(Clone, Debug)]
pub struct BatchIter {
    rest: Bytes,
}

impl Iterator for BatchIter {
    type Item = Result<RecordBatch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let batch = BatchHeader::parse(&self.rest).and_then(|header| {
            let length = header.total_len().min(self.rest.len());
            RecordBatch::from_bytes(self.rest.split_to(length))
        });
        if batch.is_err() {
            self.rest.clear();
        }
        Some(batch)
    }
}
