//! The 61 bytes before a batch's records.

use bytes::{Buf, BufMut};

use super::{BatchError, Compression};
use crate::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs};

/// Where the magic byte stands: at the same place in every format version.
const MAGIC_AT: usize = 16;
const MAGIC: u8 = 2;
/// The bytes before those that `batch_length` counts: base offset and the length itself.
const UNCOUNTED_LEN: usize = 12;
/// The shortest record: length, attributes, two deltas, two absent lengths and a header count, of one byte each.
const MIN_RECORD_LEN: usize = 7;

pub(super) const TIMESTAMP_IS_LOG_APPEND: u16 = 1 << 3;
const TRANSACTIONAL: u16 = 1 << 4;
const CONTROL: u16 = 1 << 5;

/// The 61 bytes before a batch's records, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record; 0 in a batch that no log has stamped.
    pub base_offset: Offset,
    /// The length in bytes of all that follows this field: the whole batch less 12. At most `i32::MAX`.
    pub batch_length: u32,
    /// The term of the leader that stamped the batch. Not covered by the CRC, as the base offset and length are not.
    pub leader_epoch: LeaderEpoch,
    /// CRC-32C of all bytes from the attributes on.
    pub crc: u32,
    /// Bits 0 to 2: compression; 3: timestamps are the log's; 4: transactional; 5: control.
    pub attributes: u16,
    /// The last offset that the batch takes, less the base offset: one less than the number of records it was made of.
    pub last_offset_delta: u32,
    /// The timestamp that the records' are relative to: the first record's.
    pub base_timestamp: TimestampMs,
    /// The greatest timestamp of the records, as the producer says.
    pub max_timestamp: TimestampMs,
    /// The idempotent producer, or [`ProducerId::NONE`].
    pub producer_id: ProducerId,
    /// The producer's incarnation; -1 without a producer id.
    pub producer_epoch: ProducerEpoch,
    /// The first record's sequence number; -1 without a producer id.
    pub base_sequence: Sequence,
    /// How many records follow: 0 to `i32::MAX`, and fewer than the batch takes offsets where compaction took some away.
    pub record_count: u32,
}

impl BatchHeader {
    /// The header's length in bytes.
    pub const LEN: usize = 61;
    /// Bytes of a batch that the log stamps: base offset (8), batch length (4), leader epoch (4).
    pub const STAMPED_LEN: usize = 16;
    /// Where the bytes that the CRC covers begin: at the attributes.
    pub(super) const CRC_FROM: usize = 21;

    /// Parses and checks the structure of a header; `bytes` may go on behind it, or end before the batch does. The CRC is
    /// not checked.
    ///
    /// # Errors
    /// [`BatchError::Truncated`] where there are fewer than [`Self::LEN`] bytes; [`BatchError::BadMagic`] and
    /// [`BatchError::BadHeader`] where no batch looks so.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        if let Some(&found) = bytes.get(MAGIC_AT)
            && found != MAGIC
        {
            return Err(BatchError::BadMagic { found });
        }
        let Some(mut field) = bytes.get(..Self::LEN) else {
            return Err(BatchError::Truncated {
                needed: Self::LEN,
                found: bytes.len(),
            });
        };
        let base_offset = Offset::new(at_least(0, "base offset", field.get_i64())? as u64);
        let batch_length = at_least(49, "batch length", field.get_i32().into())? as u32;
        let leader_epoch =
            LeaderEpoch::new(at_least(-1, "leader epoch", field.get_i32().into())? as i32);
        field.advance(1);
        let header = Self {
            base_offset,
            batch_length,
            leader_epoch,
            crc: field.get_u32(),
            attributes: field.get_u16(),
            last_offset_delta: at_least(0, "last offset delta", field.get_i32().into())? as u32,
            base_timestamp: TimestampMs::new(field.get_i64()),
            max_timestamp: TimestampMs::new(field.get_i64()),
            producer_id: ProducerId::new(at_least(-1, "producer id", field.get_i64())?),
            producer_epoch: ProducerEpoch::new(at_least(
                -1,
                "producer epoch",
                field.get_i16().into(),
            )? as i16),
            base_sequence: Sequence::new(
                at_least(-1, "base sequence", field.get_i32().into())? as i32
            ),
            record_count: at_least(0, "record count", field.get_i32().into())? as u32,
        };
        header.check_consistent()?;
        Ok(header)
    }

    /// Checks what no single field can tell.
    fn check_consistent(&self) -> Result<(), BatchError> {
        let bad = |field, found, expected| {
            Err(BatchError::BadHeader {
                field,
                found,
                expected,
            })
        };
        if self.record_count > self.last_offset_delta + 1 {
            let found = self.record_count.into();
            return bad(
                "record count",
                found,
                "no more than the batch takes offsets",
            );
        }
        if self.next_offset().get() > i64::MAX as u64 {
            let found = self.base_offset.get() as i64;
            return bad(
                "base offset",
                found,
                "room for the records' offsets below 2^63",
            );
        }
        let Some(compression) = Compression::from_bits(self.attributes) else {
            let found = (self.attributes & Compression::BITS).into();
            return bad("compression", found, "0 (none) to 4 (zstd)");
        };
        let most_records = (self.total_len() - Self::LEN) / MIN_RECORD_LEN;
        if compression == Compression::None && self.record_count as usize > most_records {
            let found = self.record_count.into();
            return bad(
                "record count",
                found,
                "no more records than the batch has room for",
            );
        }
        Ok(())
    }

    /// Writes the header, as [`Self::parse`] reads it, over the first [`Self::LEN`] bytes of `batch`.
    pub(super) fn write(&self, mut batch: &mut [u8]) {
        batch.put_u64(self.base_offset.get());
        batch.put_u32(self.batch_length);
        batch.put_i32(self.leader_epoch.get());
        batch.put_u8(MAGIC);
        batch.put_u32(self.crc);
        batch.put_u16(self.attributes);
        batch.put_u32(self.last_offset_delta);
        batch.put_i64(self.base_timestamp.get());
        batch.put_i64(self.max_timestamp.get());
        batch.put_i64(self.producer_id.get());
        batch.put_i16(self.producer_epoch.get());
        batch.put_i32(self.base_sequence.get());
        batch.put_u32(self.record_count);
    }

    /// The value of `batch_length` in a batch of `total` bytes; `None` where the format has no room for so many.
    pub(super) fn length_field(total: usize) -> Option<u32> {
        let length = i32::try_from(total.checked_sub(UNCOUNTED_LEN)?).ok()?;
        u32::try_from(length).ok()
    }

    /// Refuses what a producer may not send, though a log may hold it.
    ///
    /// # Errors
    /// [`BatchError::NotServed`] for control and transactional batches and unknown attributes; [`BatchError::BadHeader`]
    /// for a batch that lacks records, or an idempotent one without epoch or sequence.
    pub(super) fn check_producible(&self) -> Result<(), BatchError> {
        let known = Compression::BITS | TIMESTAMP_IS_LOG_APPEND;
        let refused = if self.is_control() {
            Some("control batches from producers")
        } else if self.is_transactional() {
            Some("transactional batches")
        } else if self.attributes & !known != 0 {
            Some("batches with unknown attributes")
        } else {
            None
        };
        if let Some(what) = refused {
            return Err(BatchError::NotServed {
                what,
                attributes: self.attributes,
            });
        }
        if self.has_holes() {
            return Err(BatchError::BadHeader {
                field: "last offset delta",
                found: self.last_offset_delta.into(),
                expected: "one less than the record count",
            });
        }
        if self.producer_id.is_some() {
            at_least(
                0,
                "producer epoch of an idempotent batch",
                self.producer_epoch.get().into(),
            )?;
            at_least(
                0,
                "base sequence of an idempotent batch",
                self.base_sequence.get().into(),
            )?;
        }
        Ok(())
    }

    /// How the records are compressed.
    pub fn compression(&self) -> Compression {
        // `parse` refuses other bits; a header filled in by hand with such bits counts as uncompressed.
        Compression::from_bits(self.attributes).unwrap_or_default()
    }

    /// Whether the batch belongs to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the batch holds control records (transaction markers) instead of an application's.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether every record's timestamp is [`Self::max_timestamp`], the time at which a log took the batch in.
    pub fn timestamp_is_log_append(&self) -> bool {
        self.attributes & TIMESTAMP_IS_LOG_APPEND != 0
    }

    /// Whether the batch takes offsets at which it has no record: compaction took them away.
    pub fn has_holes(&self) -> bool {
        self.record_count != self.last_offset_delta + 1
    }

    /// The whole batch's length in bytes.
    pub fn total_len(&self) -> usize {
        self.batch_length as usize + UNCOUNTED_LEN
    }

    /// The last offset that the batch takes: of its last record, unless compaction took that away.
    pub fn last_offset(&self) -> Offset {
        self.base_offset.plus(u64::from(self.last_offset_delta))
    }

    /// The offset after the last one that the batch takes.
    pub fn next_offset(&self) -> Offset {
        self.last_offset().plus(1)
    }

    /// The sequence number of the batch's last record; -1 where the batch has none.
    pub fn last_sequence(&self) -> Sequence {
        if self.base_sequence.get() < 0 {
            return self.base_sequence;
        }
        self.base_sequence.plus(self.last_offset_delta)
    }
}

fn at_least(least: i64, field: &'static str, found: i64) -> Result<i64, BatchError> {
    if found >= least {
        return Ok(found);
    }
    Err(BatchError::BadHeader {
        field,
        found,
        expected: match least {
            -1 => "-1 (none) or more",
            0 => "0 or more",
            _ => "at least the rest of the header, 49 bytes",
        },
    })
}
