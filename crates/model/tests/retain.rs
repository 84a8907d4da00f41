//! What compaction does to a batch: records go, and all that stays is as it was.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use quipu_model::{
    LeaderEpoch, Offset, ProducerEpoch, ProducerId, RecordBatch, Sequence, TimestampMs,
    batch::{
        BatchBuilder, BatchError, Compression, Kept, Record, RecordProblem, Retained, split_batches,
    },
};

const BASE: u64 = 1000;

fn batch(codec: Compression, records: u32) -> RecordBatch {
    let mut builder = BatchBuilder::new(codec);
    for at in 0..records {
        let (key, value) = (format!("key {}", at % 5), vec![at as u8; at as usize % 90]);
        let value = (at % 7 != 3).then_some(&value[..]);
        let header: &[(&str, Option<&[u8]>)] = &[("h", Some(b"v"))];
        let time = TimestampMs::new(5000 + i64::from(at * 37 % 11));
        builder.append(time, Some(key.as_bytes()), value, header);
    }
    builder.set_producer(
        ProducerId::new(4),
        ProducerEpoch::new(2),
        Sequence::new(i32::MAX - 1),
    );
    let batch = builder.build().unwrap();
    batch.stamped(Offset::new(BASE), LeaderEpoch::new(3))
}

fn records(batch: &RecordBatch) -> Vec<Record> {
    batch.records().unwrap().map(Result::unwrap).collect()
}

proptest! {
    #[test]
    fn what_stays_is_as_it_was_and_again(
        codec in prop::sample::select(&Compression::ALL[..]),
        stays in prop::collection::vec(any::<bool>(), 1..60),
        again in prop::collection::vec(any::<bool>(), 60),
    ) {
        let before = batch(codec, stays.len() as u32);
        let place = |offset: Offset| (offset.get() - BASE) as usize;
        let wanted: Vec<_> = records(&before).into_iter().filter(|r| stays[place(r.offset)]).collect();
        let mut after = before.clone();
        match before.retain(|record| stays[place(record.offset)]).unwrap() {
            Retained::All(kept) => assert_eq!(kept.records as usize, stays.len()),
            Retained::None => assert!(wanted.is_empty()),
            Retained::Some(batch, kept) => {
                let tombstones = wanted.iter().filter(|r| r.value.is_none()).count() as u32;
                assert_eq!(kept, Kept { records: wanted.len() as u32, tombstones });
                assert_eq!(records(&batch), wanted);
                let newest = wanted.iter().map(|r| r.timestamp).max();
                assert_eq!(Some(batch.header().max_timestamp), newest);
                after = batch;
            }
        }
        let (old, new) = (before.header(), after.header());
        assert_eq!((old.base_offset, old.next_offset(), old.leader_epoch), (new.base_offset, new.next_offset(), new.leader_epoch));
        assert_eq!((old.base_sequence, old.last_sequence(), old.producer_id), (new.base_sequence, new.last_sequence(), new.producer_id));
        assert_eq!(old.compression(), new.compression());
        // What was read back is a batch like any other, and more may go of it.
        let read = split_batches(after.bytes().clone()).next().unwrap().unwrap();
        assert_eq!(&read, &after);
        let left: Vec<_> = records(&read).into_iter().filter(|r| again[place(r.offset)]).collect();
        if let Retained::Some(batch, _) = read.retain(|record| again[place(record.offset)]).unwrap() {
            assert_eq!(records(&batch), left);
        }
    }
}

#[test]
fn an_emptied_batch_still_tells_its_offsets_and_its_producer() {
    for codec in Compression::ALL {
        let before = batch(codec, 9);
        let empty = before.emptied().unwrap();
        let read = RecordBatch::from_bytes(empty.bytes().clone()).unwrap();
        assert_eq!(read.header().next_offset(), before.header().next_offset());
        assert_eq!(
            read.header().last_sequence(),
            before.header().last_sequence()
        );
        assert_eq!(records(&read), []);
        assert_eq!(
            read.retain(|_| true).unwrap(),
            Retained::All(Kept::default())
        );
        read.visit(|_| panic!("it has no record")).unwrap();
        assert!(read.bytes().len() < 62);
    }
}

#[test]
fn producers_may_not_send_holes() {
    let Retained::Some(holes, _) = batch(Compression::None, 5)
        .retain(|record| record.offset.get() != BASE + 2)
        .unwrap()
    else {
        panic!("one record of five was to go")
    };
    for refused in [holes.clone(), holes.emptied().unwrap()] {
        let refused = refused.validate_records();
        assert!(
            matches!(refused, Err(BatchError::BadHeader { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn where_keys_are_required_a_record_without_one_is_named() {
    for codec in Compression::ALL {
        let mut builder = BatchBuilder::new(codec);
        builder.append(TimestampMs::new(1), Some(b""), Some(b"x"), &[]);
        builder.append(TimestampMs::new(1), None, Some(b"x"), &[]);
        let batch = builder.build().unwrap();
        batch.validate_records().unwrap();
        let refused = batch.validate_keyed_records().unwrap_err();
        let problem = RecordProblem::NoKey;
        assert_eq!(refused, BatchError::BadRecord { index: 1, problem });
        assert!(refused.to_string().contains("compacted"), "{refused}");
    }
}

#[test]
fn a_log_that_stamps_the_time_stamps_every_record() {
    let stamped = batch(Compression::Zstd, 4).with_append_time(TimestampMs::new(77));
    let read = RecordBatch::from_bytes(stamped.into_bytes()).unwrap();
    assert!(read.header().timestamp_is_log_append());
    assert!(records(&read).iter().all(|r| r.timestamp.get() == 77));
}
