//! Timestamps are the producer's word: out of order, absent, or from the far future.

use quipu_model::{
    Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs,
    batch::{BatchBuilder, Compression},
};
use quipu_storage::{RetentionPolicy, io::FaultyDisk};

use super::support::*;

#[test]
fn the_first_record_at_or_after_a_time_is_found_among_timestamps_out_of_order() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    let times: Vec<i64> = (0..60).map(|n| 1000 + (n * 37) % 50 * 10 + n).collect();
    for time in &times {
        let batch = stamped_at(&value(0, 300), TimestampMs::new(*time));
        let done = submit(&log, 1, vec![batch]).unwrap();
        done.recv().unwrap().unwrap();
    }
    let check = |log: &quipu_storage::PartitionLog| {
        for wanted in 990..1600 {
            let expected = times.iter().position(|time| *time >= wanted);
            let found = log
                .offset_for_timestamp(TimestampMs::new(wanted), Offset::new(60))
                .unwrap();
            assert_eq!(
                found.map(|found| found.offset.get() as usize),
                expected,
                "{wanted}"
            );
        }
    };
    check(&log);
    store.checkpoint().unwrap();
    check(&log);
    store.close().unwrap();
    check(&open(&disk).partition(key(0)).unwrap());
}

#[test]
fn a_timestamp_from_the_future_keeps_nothing_for_ever_and_none_deletes_nothing_early() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    for (partition, timestamp) in [(0, i64::MAX), (1, -1)] {
        let log = store
            .create_partition(key(partition), small_segments())
            .unwrap();
        for _ in 0..8 {
            let batch = stamped_at(&value(0, 900), TimestampMs::new(timestamp));
            let done = submit(&log, 1, vec![batch]).unwrap();
            done.recv().unwrap().unwrap();
        }
        let policy = RetentionPolicy {
            max_age_ms: Some(1000),
            ..RetentionPolicy::default()
        };
        let at = |ms: i64| log.retention_point(policy, TimestampMs::new(NOW.get() + ms));
        assert_eq!(at(1000), None, "{timestamp}");
        assert!(at(1001).is_some(), "{timestamp}");
    }
}

#[test]
fn a_producer_that_lies_about_the_time_makes_no_other_forgotten() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    for (producer, timestamp) in [(1, NOW.get()), (2, i64::MAX), (3, -1)] {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.append(TimestampMs::new(timestamp), None, Some(b"x"), &[]);
        builder.set_producer(
            ProducerId::new(producer),
            ProducerEpoch::new(0),
            Sequence::new(0),
        );
        let done = submit(&log, 1, vec![builder.build().unwrap()]).unwrap();
        done.recv().unwrap().unwrap();
    }
    for n in 0..12 {
        append(&log, 1, &value(n, 900));
    }
    store.close().unwrap();
    let store = open(&disk);
    let log = store.partition(key(0)).unwrap();
    for producer in 1..4 {
        assert!(
            log.producer_tail(ProducerId::new(producer)).is_some(),
            "{producer}"
        );
    }
}
