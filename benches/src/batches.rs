//! Batches made ahead of the measurement.

use anyhow::Result;
use bytes::Bytes;
use quipu_model::{
    TimestampMs,
    batch::{BatchBuilder, BatchHeader, Compression},
};

/// When all measured records claim to have been made, in milliseconds since the epoch: far ahead, so that no retention by
/// age reaches them.
const TIMESTAMP: TimestampMs = TimestampMs::new(4_102_444_800_000);

/// The values of records: bytes that look random, `record_bytes` each.
pub fn values(record_bytes: usize, count: usize) -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let mut value = || (0..record_bytes).map(|_| byte()).collect();
    (0..count).map(|_| value()).collect()
}

/// A batch of keyless records.
///
/// # Errors
/// Where there are no values or too many.
pub fn batch(values: &[Vec<u8>], compression: Compression) -> Result<Bytes> {
    let mut builder = BatchBuilder::new(compression);
    for value in values {
        builder.append(TIMESTAMP, None, Some(value), &[]);
    }
    Ok(builder.build()?.into_bytes())
}

/// A batch of a number of keyless, uncompressed records.
///
/// # Errors
/// As [`batch`].
pub fn plain(record_bytes: usize, count: usize) -> Result<Bytes> {
    batch(&values(record_bytes, count), Compression::None)
}

/// The batch of most such records that is no longer than `limit` bytes.
///
/// # Errors
/// As [`batch`].
pub fn largest(record_bytes: usize, limit: usize) -> Result<Bytes> {
    let value = vec![0; record_bytes];
    let one = BatchBuilder::record_size(None, Some(&value), &[]);
    plain(record_bytes, (limit - BatchHeader::LEN) / one)
}
