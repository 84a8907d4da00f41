//! Batches that foreign implementations wrote: we read them as they meant them, and write the same bytes.

#[path = "golden/described.rs"]
mod described;

use bytes::Bytes;
use quipu_model::{
    LeaderEpoch, Offset, RecordBatch,
    batch::{Compression, Record, RecordHeader},
};

use described::Described;

/// The batches that each foreign implementation wrote with this codec.
fn foreign(codec: Compression) -> [RecordBatch; 2] {
    macro_rules! golden {
        ($file:literal) => {
            include_bytes!(concat!("../../../tests/golden/batch/", $file)).as_slice()
        };
    }
    let both = match codec {
        // The Java client's uncompressed batch differs from the other one only in the leader epoch.
        Compression::None => [golden!("none.batch"); 2],
        Compression::Gzip => [golden!("gzip.batch"), golden!("java/gzip.batch")],
        Compression::Snappy => [golden!("snappy.batch"), golden!("java/snappy.batch")],
        Compression::Lz4 => [golden!("lz4.batch"), golden!("java/lz4.batch")],
        Compression::Zstd => [golden!("zstd.batch"), golden!("java/zstd.batch")],
    };
    both.map(|bytes| {
        RecordBatch::from_bytes(Bytes::from_static(bytes)).expect("a foreign batch is a batch")
    })
}

#[test]
fn foreign_batches_hold_what_was_put_in() {
    let described = Described::load();
    let expected: Vec<_> = (0..).zip(&described.records).map(expected).collect();
    for (codec, batch) in Compression::ALL
        .into_iter()
        .flat_map(|codec| foreign(codec).map(|batch| (codec, batch)))
    {
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
    assert_eq!(ours.bytes(), foreign(Compression::None)[0].bytes());
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
