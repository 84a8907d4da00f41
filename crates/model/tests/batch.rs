//! What the codec promises about batches of any shape, and about bytes that are not batches.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use bytes::Bytes;
use proptest::{collection::vec, option, prelude::*};
use quipu_model::{
    LeaderEpoch, Offset, ProducerEpoch, ProducerId, RecordBatch, Sequence, TimestampMs,
    batch::{
        BatchBuilder, BatchError, BatchHeader, Compression, MAX_UNCOMPRESSED_BYTES, Record,
        RecordHeader, RecordProblem, split_batches,
    },
};

type Header = (String, Option<Vec<u8>>);

#[derive(Clone, Debug)]
struct Plain {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<Header>,
}

impl Plain {
    fn value(bytes: &[u8]) -> Self {
        Self {
            timestamp: 1_700_000_000_000,
            key: None,
            value: Some(bytes.to_vec()),
            headers: Vec::new(),
        }
    }

    fn headers(&self) -> Vec<(&str, Option<&[u8]>)> {
        let parts = self.headers.iter();
        parts.map(|(k, v)| (k.as_str(), v.as_deref())).collect()
    }

    fn expected(&self, offset: u64) -> Record {
        let bytes = |b: &Option<Vec<u8>>| b.clone().map(Bytes::from);
        let header = |(key, value): &Header| RecordHeader {
            key: key.clone().into(),
            value: bytes(value),
        };
        Record {
            offset: Offset::new(offset),
            timestamp: TimestampMs::new(self.timestamp),
            key: bytes(&self.key),
            value: bytes(&self.value),
            headers: self.headers.iter().map(header).collect(),
        }
    }
}

fn build(codec: Compression, records: &[Plain]) -> RecordBatch {
    let mut builder = BatchBuilder::new(codec);
    for r in records {
        let before = builder.len_bytes();
        builder.append(
            TimestampMs::new(r.timestamp),
            r.key.as_deref(),
            r.value.as_deref(),
            &r.headers(),
        );
        let bound = BatchBuilder::record_size(r.key.as_deref(), r.value.as_deref(), &r.headers());
        assert!(builder.len_bytes() - before <= bound);
    }
    builder.build().unwrap()
}

fn small(codec: Compression) -> RecordBatch {
    let mut record = Plain::value(&b"value value value value".repeat(8));
    record.key = Some(b"key".to_vec());
    record.headers = vec![
        ("h".into(), Some(b"1".to_vec())),
        ("h".into(), None),
        ("é".into(), Some(Vec::new())),
    ];
    build(codec, &[record.clone(), Plain::value(b""), record])
}

/// A batch whose header says `count` records and whose records section is `records`, with the right CRC.
fn forged(codec: Compression, count: u32, records: &[u8]) -> Bytes {
    let mut bytes = small(Compression::None).bytes()[..BatchHeader::LEN].to_vec();
    bytes.extend_from_slice(records);
    let length = bytes.len() as u32 - 12;
    bytes[8..12].copy_from_slice(&length.to_be_bytes());
    bytes[21..23].copy_from_slice(&codec.bits().to_be_bytes());
    bytes[23..27].copy_from_slice(&count.wrapping_sub(1).to_be_bytes());
    bytes[57..61].copy_from_slice(&count.to_be_bytes());
    sealed(bytes)
}

fn sealed(mut bytes: Vec<u8>) -> Bytes {
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

fn problem(records: &[u8]) -> RecordProblem {
    let batch = RecordBatch::from_bytes(forged(Compression::None, 1, records)).unwrap();
    let refused = batch.validate_records().unwrap_err();
    assert_eq!(batch.records().unwrap().next(), Some(Err(refused.clone())));
    match refused {
        BatchError::BadRecord { index: 0, problem } => problem,
        other => panic!("{other}"),
    }
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..most)
}

fn plain() -> impl Strategy<Value = Plain> {
    let headers = vec(("[a-zé]{0,3}", option::of(bytes(8))), 0..4);
    (
        any::<i64>(),
        option::of(bytes(40)),
        option::of(bytes(300)),
        headers,
    )
        .prop_map(|(timestamp, key, value, headers)| Plain {
            timestamp,
            key,
            value,
            headers,
        })
}

fn codec() -> impl Strategy<Value = Compression> {
    proptest::sample::select(Compression::ALL.to_vec())
}

proptest! {
    #[test]
    fn records_survive_a_round_trip(codec in codec(), records in vec(plain(), 1..40), base in 0..1u64 << 62) {
        let built = build(codec, &records);
        let stamped = built.stamped(Offset::new(base), LeaderEpoch::new(7));
        let batch = RecordBatch::from_bytes(stamped.bytes().clone()).unwrap();
        prop_assert_eq!(&batch, &stamped);
        batch.validate_records().unwrap();
        prop_assert_eq!(batch.header().compression(), codec);
        prop_assert_eq!(batch.header().next_offset(), Offset::new(base + records.len() as u64));
        let newest = records.iter().map(|r| r.timestamp).max();
        prop_assert_eq!(Some(batch.header().max_timestamp.get()), newest);
        let read: Vec<_> = batch.records().unwrap().map(Result::unwrap).collect();
        let expected: Vec<_> = records.iter().zip(base..).map(|(r, offset)| r.expected(offset)).collect();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn no_bytes_make_the_codec_panic(codec in codec(), count in 1u32..9, mut records in bytes(200), cut in 0..200usize) {
        if let Ok(batch) = RecordBatch::from_bytes(forged(codec, count, &records)) {
            let sound = batch.validate_records().is_ok();
            let read = batch.records().map(|mut r| r.all(|record| record.is_ok()));
            prop_assert_eq!(sound, read == Ok(true));
        }
        // The same behind a beginning that the codec accepts.
        let valid = small(codec).bytes().slice(BatchHeader::LEN..);
        records.splice(0..0, valid[..cut.min(valid.len())].iter().copied());
        if let Ok(batch) = RecordBatch::from_bytes(forged(codec, count, &records)) {
            let sound = batch.validate_records().is_ok();
            let read = batch.records().map(|mut r| r.all(|record| record.is_ok()));
            prop_assert_eq!(sound, read == Ok(true));
        }
    }
}

#[test]
fn large_compressed_batches_are_checked_piece_by_piece() {
    let value: Vec<u8> = (0..200_000u32)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    let mut records: Vec<_> = (0..2000)
        .map(|n| Plain::value(&value[n..n + 100]))
        .collect();
    records.insert(1000, Plain::value(&value));
    for codec in Compression::ALL {
        let batch = build(codec, &records);
        batch.validate_records().unwrap();
        assert_eq!(batch.records().unwrap().count(), records.len(), "{codec}");
    }
}

#[test]
fn any_flipped_bit_is_noticed() {
    for codec in Compression::ALL {
        let good = small(codec).into_bytes();
        for bit in 21 * 8..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                RecordBatch::from_bytes(bad.into()).is_err(),
                "{codec} bit {bit}"
            );
        }
    }
}

#[test]
fn a_batch_cut_anywhere_is_truncated() {
    for codec in Compression::ALL {
        let whole = small(codec).into_bytes();
        for length in 0..whole.len() {
            let cut = RecordBatch::from_bytes(whole.slice(..length));
            assert!(
                matches!(cut, Err(BatchError::Truncated { .. })),
                "{codec} {length}: {cut:?}"
            );
        }
    }
}

#[test]
fn records_cut_anywhere_are_refused() {
    for codec in Compression::ALL {
        let records = small(codec).into_bytes().slice(BatchHeader::LEN..);
        for length in 0..records.len() {
            let Ok(batch) = RecordBatch::from_bytes(forged(codec, 3, &records[..length])) else {
                continue;
            };
            let read = batch
                .records()
                .and_then(Iterator::collect::<Result<Vec<_>, _>>);
            // What follows the last record's bytes is the codec's own trailer, which some codecs do not insist on.
            let whole = small(codec)
                .records()
                .unwrap()
                .map(Result::unwrap)
                .collect::<Vec<_>>();
            assert!(read.is_err() || read == Ok(whole), "{codec} {length}");
            assert_eq!(
                batch.validate_records().is_ok(),
                read.is_ok(),
                "{codec} {length}"
            );
        }
    }
}

#[test]
fn lying_counts_are_refused() {
    let most = i32::MAX as u32;
    let ten = [0; 10];
    let plain = RecordBatch::from_bytes(forged(Compression::None, most, &ten));
    let refused = matches!(
        plain,
        Err(BatchError::BadHeader {
            field: "record count",
            ..
        })
    );
    assert!(refused, "{plain:?}");
    for codec in Compression::ALL {
        let records = small(codec).into_bytes().slice(BatchHeader::LEN..);
        for count in [1, 2, 4, 1000, most] {
            let Ok(batch) = RecordBatch::from_bytes(forged(codec, count, &records)) else {
                continue;
            };
            assert!(batch.validate_records().is_err(), "{codec} {count}");
            let mut read = batch.records().unwrap();
            assert!(read.by_ref().any(|r| r.is_err()), "{codec} {count}");
            assert!(
                read.next().is_none(),
                "an iterator ends after its first error"
            );
        }
    }
    for count in [0, most + 1, u32::MAX] {
        let refused = RecordBatch::from_bytes(forged(Compression::Gzip, count, &ten));
        assert!(
            matches!(refused, Err(BatchError::BadHeader { .. })),
            "{count}"
        );
    }
}

#[test]
fn malformed_records_are_named() {
    // Length 6: attributes, timestamp delta, offset delta, no key, no value, no headers.
    assert_eq!(
        problem(&[14, 0, 0, 0, 1, 1, 0, 9]),
        RecordProblem::TrailingBytes { extra: 1 }
    );
    assert_eq!(
        problem(&[12, 0, 0, 2, 1, 1, 0]),
        RecordProblem::OffsetDelta { found: 1 }
    );
    assert_eq!(
        problem(&[12, 0, 0, 0, 3, 1, 0]),
        RecordProblem::Negative {
            field: "key length",
            found: -2
        }
    );
    assert_eq!(
        problem(&[12, 0, 0, 0, 1, 1, 1]),
        RecordProblem::Negative {
            field: "header count",
            found: -1
        }
    );
    assert_eq!(
        problem(&[1, 0, 0, 0, 1, 1, 0]),
        RecordProblem::Negative {
            field: "length",
            found: -1
        }
    );
    // Lengths and counts of nearly 2^31 with nothing behind them.
    let huge = [0xfe, 0xff, 0xff, 0xff, 0x0f];
    assert_eq!(
        problem(&[&huge[..], &[0; 5]].concat()),
        RecordProblem::EndsEarly
    );
    assert_eq!(
        problem(&[&[18, 0, 0, 0], &huge[..], &[1]].concat()),
        RecordProblem::EndsEarly
    );
    assert_eq!(
        problem(&[&[20, 0, 0, 0, 1, 1], &huge[..]].concat()),
        RecordProblem::EndsEarly
    );
    assert_eq!(
        problem(&[18, 0, 0, 0, 1, 1, 2, 2, 0xff, 1]),
        RecordProblem::HeaderKeyNotUtf8
    );
}

#[test]
fn decompression_bombs_are_bounded() {
    let limit = MAX_UNCOMPRESSED_BYTES;
    // One record that is sound until it goes past the bound.
    let size = (limit + (1 << 20)) as i64;
    let mut head = Vec::new();
    let mut raw = size as u64 * 2;
    while raw >= 0x80 {
        head.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    head.push(raw as u8);
    head.resize(limit + (1 << 20), 0);
    for codec in Compression::ALL {
        let mut bomb = Vec::new();
        codec.compress(&head, &mut bomb).unwrap();
        let batch = RecordBatch::from_bytes(forged(codec, 1, &bomb)).unwrap();
        let too_large = BatchError::TooLarge { limit };
        assert_eq!(batch.records().unwrap_err(), too_large, "{codec}");
        assert_eq!(batch.validate_records(), Err(too_large), "{codec}");
    }
}

#[test]
fn what_producers_may_not_send_is_refused() {
    let with_attributes = |bits: u16| {
        let mut bytes = small(Compression::None).bytes().to_vec();
        bytes[21..23].copy_from_slice(&bits.to_be_bytes());
        RecordBatch::from_bytes(sealed(bytes)).unwrap()
    };
    for bits in [1 << 4, 1 << 5, 1 << 6, 1 << 15] {
        let refused = with_attributes(bits).validate_records();
        assert!(
            matches!(refused, Err(BatchError::NotServed { .. })),
            "{bits:#x}"
        );
    }
    let log_append = with_attributes(1 << 3);
    log_append.validate_records().unwrap();
    let newest = log_append.header().max_timestamp;
    assert!(
        log_append
            .records()
            .unwrap()
            .all(|r| r.unwrap().timestamp == newest)
    );

    let mut builder = BatchBuilder::new(Compression::None);
    builder.append(TimestampMs::new(0), None, None, &[]);
    builder.set_producer(ProducerId::new(5), ProducerEpoch::new(0), Sequence::new(-1));
    let refused = builder.build().unwrap().validate_records();
    assert!(
        matches!(refused, Err(BatchError::BadHeader { .. })),
        "{refused:?}"
    );
}

#[test]
fn headers_that_no_batch_has_are_refused() {
    let good = small(Compression::None).into_bytes();
    let refused = |at: usize, field: &[u8]| {
        let mut bytes = good.to_vec();
        bytes[at..at + field.len()].copy_from_slice(field);
        BatchHeader::parse(&bytes).unwrap_err()
    };
    assert_eq!(refused(16, &[1]), BatchError::BadMagic { found: 1 });
    assert_eq!(
        BatchHeader::parse(&[0; 17]),
        Err(BatchError::BadMagic { found: 0 }),
        "an older, shorter format is named as such"
    );
    let minus_two = [[0xff; 7].as_slice(), &[0xfe]].concat();
    for (at, field) in [
        (0, &(-1i64).to_be_bytes()[..]),
        (0, &i64::MAX.to_be_bytes()),
        (8, &48i32.to_be_bytes()),
        (8, &(-1i32).to_be_bytes()),
        (12, &(-2i32).to_be_bytes()),
        (21, &5u16.to_be_bytes()),
        (23, &1i32.to_be_bytes()),
        (43, &minus_two),
        (51, &(-2i16).to_be_bytes()),
        (53, &(-2i32).to_be_bytes()),
        (57, &4i32.to_be_bytes()),
    ] {
        let error = refused(at, field);
        assert!(
            matches!(error, BatchError::BadHeader { .. }),
            "byte {at}: {error}"
        );
    }
}

#[test]
fn a_producers_sequence_wraps_within_a_batch() {
    let mut builder = BatchBuilder::new(Compression::None);
    for _ in 0..3 {
        builder.append(TimestampMs::new(1), None, None, &[]);
    }
    builder.set_producer(
        ProducerId::new(9),
        ProducerEpoch::new(2),
        Sequence::new(i32::MAX - 1),
    );
    let batch = RecordBatch::from_bytes(builder.build().unwrap().into_bytes()).unwrap();
    batch.validate_records().unwrap();
    assert_eq!(batch.header().producer_id, ProducerId::new(9));
    assert_eq!(batch.header().producer_epoch, ProducerEpoch::new(2));
    assert_eq!(batch.header().last_sequence(), Sequence::new(0));
    assert_eq!(
        small(Compression::None).header().last_sequence(),
        Sequence::new(-1)
    );
}

#[test]
fn a_batch_of_no_records_is_not_built() {
    let builder = BatchBuilder::new(Compression::None);
    assert!(builder.is_empty());
    assert_eq!(builder.len_bytes(), BatchHeader::LEN);
    assert_eq!(builder.build(), Err(BatchError::Empty));
}

#[test]
fn concatenated_batches_are_told_apart() {
    let batches: Vec<_> = Compression::ALL.into_iter().map(small).collect();
    let all: Vec<u8> = batches.iter().flat_map(|b| b.bytes().to_vec()).collect();
    let all = Bytes::from(all);
    let split: Result<Vec<_>, _> = split_batches(all.clone()).collect();
    assert_eq!(split.as_ref(), Ok(&batches));

    let mut cut = split_batches(all.slice(..all.len() - 1));
    assert!(cut.by_ref().take(4).all(|batch| batch.is_ok()));
    assert!(matches!(
        cut.next(),
        Some(Err(BatchError::Truncated { .. }))
    ));
    assert_eq!(cut.next(), None);

    let two = RecordBatch::from_bytes(all);
    assert!(matches!(two, Err(BatchError::TrailingBytes { .. })));
}
