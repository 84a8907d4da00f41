//! A full disk is seen before the write, hurts nobody who reads, and is over once there is room.

use std::sync::Arc;

use quipu_model::Offset;
use quipu_storage::{
    PartitionLog, ReserveError, Store,
    io::{Disk, FaultyDisk},
};

use super::support::*;

/// Appends until there is no room left; how many records that were.
fn fill(log: &Arc<PartitionLog>, from: u64) -> u64 {
    for n in from.. {
        let record = value(n, 900);
        match reserve(log, batch(&record).bytes().len() as u64) {
            Ok(_room) => append(log, 1, &record),
            Err(ReserveError::DiskFull { .. }) => return n,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("a disk has an end");
}

/// Room is there, or is not: a write-ahead log that still makes its next file is waited for.
fn reserve(
    log: &Arc<PartitionLog>,
    bytes: u64,
) -> Result<quipu_storage::Reservation, ReserveError> {
    let mut outcome = Err(ReserveError::Busy);
    eventually(|| {
        outcome = log.reserve(bytes);
        !matches!(outcome, Err(ReserveError::Busy))
    });
    outcome
}

fn full() -> (FaultyDisk, Store, Arc<PartitionLog>, u64) {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    append(&log, 1, &value(0, 900));
    store.checkpoint().unwrap();
    let used = u64::MAX - disk.free_bytes().unwrap();
    disk.set_capacity(used + (200 << 10));
    let count = fill(&log, 1);
    assert!(count > 10, "{count}");
    (disk, store, log, count)
}

fn expect(log: &PartitionLog, count: u64) {
    let expected: Vec<_> = (0..count).map(|n| value(n, 900)).collect();
    assert!(values(log).unwrap() == expected);
}

#[test]
fn reads_go_on_and_nothing_acknowledged_is_lost() {
    let (disk, store, log, count) = full();
    expect(&log, count);
    store.checkpoint().unwrap();
    assert!(store.failure().is_none(), "a full disk is no failure");
    let fork = disk.fork(5);
    fork.crash();
    drop((store, log));
    expect(&open(&fork).partition(key(0)).unwrap(), count);
}

#[test]
fn it_heals_when_room_comes_back() {
    let (disk, store, log, count) = full();
    disk.set_capacity(u64::MAX);
    eventually(|| log.reserve(1000).is_ok());
    append(&log, 1, &value(count, 900));
    expect(&log, count + 1);
    store.close().unwrap();
}

#[test]
fn it_heals_when_old_records_go() {
    let (_disk, store, log, count) = full();
    log.trim(Offset::new(count - 2)).unwrap();
    store.checkpoint().unwrap();
    eventually(|| log.reserve(1000).is_ok());
    append(&log, 1, &value(count, 900));
    assert_eq!(values(&log).unwrap().last(), Some(&value(count, 900)));
    assert!(store.failure().is_none());
}

#[test]
fn room_that_was_reserved_stays_when_the_segment_is_closed_or_its_size_changed() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    append(&log, 1, &value(0, 900));
    let room: Vec<_> = (0..3).map(|_| reserve(&log, 1000).unwrap()).collect();
    let used = u64::MAX - disk.free_bytes().unwrap();
    disk.set_capacity(used);
    let config = quipu_model::TopicConfig {
        segment_bytes: 100,
        ..small_segments()
    };
    log.set_config(config);
    log.roll_if_due(quipu_model::TimestampMs::new(i64::MAX))
        .unwrap();
    for n in 1..4 {
        append(&log, 1, &value(n, 900));
    }
    drop(room);
    assert!(store.failure().is_none());
    expect(&log, 4);
}
