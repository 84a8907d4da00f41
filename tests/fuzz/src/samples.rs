//! Sound batches to start from.

use anyhow::Result;
use quipu_model::{
    ProducerEpoch, ProducerId, RecordBatch, Sequence, TimestampMs,
    batch::{BatchBuilder, Compression},
};

use crate::mutate::{Random, mutate};

/// Where a batch's length, its CRC, and what the CRC covers begin.
const LENGTH_AT: usize = 8;
const CRC_AT: usize = 17;
const CRC_FROM: usize = 21;

/// Batches of every codec, with and without keys, headers and a producer.
pub(crate) fn batches() -> Result<Vec<Vec<u8>>> {
    let codecs = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];
    let mut found = Vec::new();
    for codec in codecs {
        for count in [1, 3, 40] {
            found.push(batch(codec, count)?.into_bytes().to_vec());
        }
    }
    Ok(found)
}

/// A batch of so many records, each unlike the others.
pub(crate) fn batch(codec: Compression, count: i64) -> Result<RecordBatch> {
    let mut builder = BatchBuilder::new(codec);
    for number in 0..count {
        let text = format!("record {number} ").repeat(1 + number as usize % 5);
        let key = (number % 3 != 0).then(|| &text.as_bytes()[..4]);
        let value = (number % 7 != 6).then_some(text.as_bytes());
        let headers = [("trace", Some(&b"1"[..])), ("trace", None), ("", Some(b""))];
        let timestamp = TimestampMs::new(1_700_000_000_000 + number * number);
        builder.append(timestamp, key, value, &headers[..number as usize % 4]);
    }
    if count == 3 {
        builder.set_producer(ProducerId::new(7), ProducerEpoch::new(0), Sequence::new(0));
    }
    Ok(builder.build()?)
}

/// One of the batches, mutated; mostly with length and CRC put right again, so that what lies behind them is reached.
pub(crate) fn mutated(samples: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = samples[random.below(samples.len())].clone();
    mutate(&mut bytes, random);
    if bytes.len() > CRC_FROM && !random.chance(4) {
        let length = (bytes.len() - LENGTH_AT - 4) as u32;
        bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length.to_be_bytes());
        let crc = crc32c::crc32c(&bytes[CRC_FROM..]);
        bytes[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_be_bytes());
    }
    bytes
}
