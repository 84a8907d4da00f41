//! A compacted partition that rots is made whole from a replica that compacted the same, also where batches are missing.

use std::sync::Arc;

use quipu_model::TimestampMs;
use quipu_storage::{
    PartitionLog, ReadError, Store, StoreConfig, UnrecoveredStore,
    io::{Disk, FaultyDisk, ManualClock},
};

use super::{
    crash_points::{compact_twice, fill},
    subject::{KEY, START_MS, Subject},
};

const DIR: &str = "topics/07070707-0707-0707-0707-070707070707/3";

/// The log files of compacted segments: their names carry a generation.
fn compacted(disk: &FaultyDisk) -> Vec<String> {
    let names = disk.list(DIR.as_ref()).unwrap();
    let is_compacted = |name: &String| {
        let stem = name.strip_suffix(".log");
        stem.is_some_and(|stem| stem.split('-').nth(2).is_some())
    };
    let files = names.into_iter().filter(is_compacted);
    files.map(|name| format!("{DIR}/{name}")).collect()
}

fn open(disk: &FaultyDisk) -> (Store, Arc<PartitionLog>) {
    let clock = Arc::new(ManualClock::new(TimestampMs::new(START_MS)));
    let config = StoreConfig {
        wal_file_bytes: 64 << 10,
        scrub_bytes_per_second: 0,
        compaction_bytes_per_second: 0,
        ..StoreConfig::default()
    };
    let disk = Arc::new(disk.clone()) as Arc<dyn Disk>;
    let opened = UnrecoveredStore::open(disk, clock, config).unwrap();
    let store = opened.recover().unwrap().0;
    let log = store.partition(KEY).unwrap();
    (store, log)
}

fn bytes_of(log: &PartitionLog) -> Result<Vec<u8>, ReadError> {
    let (mut at, end) = (log.state().start_offset, log.state().end_offset);
    let mut bytes = Vec::new();
    while at < end {
        let read = log.read(at, 1 << 20, end)?;
        bytes.extend_from_slice(&read.bytes);
        at = read.next_offset;
    }
    Ok(bytes)
}

/// Repairs a partition from another replica, in small pieces.
fn repair(log: &Arc<PartitionLog>, donor: &PartitionLog) {
    let mut damaged = log.damaged().unwrap();
    loop {
        for mut mending in damaged.examine().unwrap() {
            loop {
                while let Some((from, _)) = mending.wanted() {
                    let given = donor.read_for_repair(from, 500).unwrap();
                    mending.put(given.bytes).unwrap();
                }
                if mending.finish().unwrap() {
                    break;
                }
            }
        }
        match damaged.reopen().unwrap() {
            None => return,
            Some(still) => damaged = still,
        }
    }
}

#[test]
fn rot_in_compacted_segments_is_mended_from_a_replica_that_compacted_the_same() {
    let mut subject = Subject::new(1, 1 << 20);
    fill(&mut subject, 60);
    compact_twice(&mut subject);
    subject.reopen();
    let expected = bytes_of(&subject.log).unwrap();
    let logs = compacted(&subject.disk);
    let mut repaired = 0;
    for log in &logs {
        let len = subject.disk.file_bytes(log).unwrap().len() as u64;
        for (n, at) in (0..len).step_by(700).enumerate() {
            let disk = subject.disk.fork(at + 2);
            disk.flip_bit(log, at, 3);
            // Of every other one the seal too: then its batches say what is damaged.
            if n % 2 == 1 {
                disk.flip_bit(log.replace(".log", ".seal"), 40, 1);
            }
            let (store, rotten) = open(&disk);
            if rotten.damage().is_none() && bytes_of(&rotten).is_ok() {
                continue;
            }
            repair(&rotten, &subject.log);
            assert!(bytes_of(&rotten).unwrap() == expected, "{log} at {at}");
            repaired += 1;
            store.close().unwrap();
        }
    }
    assert!(repaired > logs.len(), "{repaired} of {logs:?}");
}
