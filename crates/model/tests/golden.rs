//! Batches that a foreign implementation wrote: we read them as it meant them, and write the same bytes.

#[path = "golden/described.rs"]
mod described;

use bytes::Bytes;
use quipu_model::{
    LeaderEpoch, Offset, RecordBatch,
    batch::{Compression, Record, RecordHeader},
};

use described::Described;

fn foreign(codec: Compression) -> RecordBatch {
    let bytes: &[u8] = match codec {
        Compression::None => include_bytes!("../../../tests/golden/batch/none.batch"),
        Compression::Gzip => include_bytes!("../../../tests/golden/batch/gzip.batch"),
        Compression::Snappy => include_bytes!("../../../tests/golden/batch/snappy.batch"),
        Compression::Lz4 => include_bytes!("../../../tests/golden/batch/lz4.batch"),
        Compression::Zstd => include_bytes!("../../../tests/golden/batch/zstd.batch"),
    };
    RecordBatch::from_bytes(Bytes::from_static(bytes)).unwrap()
}

#[test]
fn foreign_batches_hold_what_was_put_in() {
    let described = Described::load();
    let expected: Vec<_> = (0..).zip(&described.records).map(expected).collect();
    for codec in Compression::ALL {
        let batch = foreign(codec);
        batch.validate_records().unwrap();
        let header = batch.header();
        assert_eq!(header.compression(), codec);
        let producer = (
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
        );
        assert_eq!(producer, described.producer, "{codec}");
        let records: Vec<_> = batch.records().unwrap().map(Result::unwrap).collect();
        assert_eq!(records, expected, "{codec}");
    }
}

#[test]
fn an_uncompressed_batch_is_the_foreign_one_byte_for_byte() {
    // The foreign writer leaves leader epoch 0 where we leave -1, for the log to stamp.
    let ours = Described::load()
        .build(Compression::None)
        .stamped(Offset::ZERO, LeaderEpoch::new(0));
    assert_eq!(ours.bytes(), foreign(Compression::None).bytes());
}

fn expected((offset, described): (u64, &described::Record)) -> Record {
    let bytes = |b: &Option<Vec<u8>>| b.clone().map(Bytes::from);
    Record {
        offset: Offset::new(offset),
        timestamp: described.timestamp,
        key: bytes(&described.key),
        value: bytes(&described.value),
        headers: described
            .headers
            .iter()
            .map(|(key, value)| RecordHeader {
                key: key.clone().into(),
                value: bytes(value),
            })
            .collect(),
    }
}
