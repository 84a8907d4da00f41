//! A compacted partition that rots is made whole from a replica that compacted the same, also where batches are missing; or it
//! takes the log of one that compacted it in another way.

use std::sync::Arc;

use quipu_model::{NodeId, Term, TimestampMs, Vote};
use quipu_storage::{
    PartitionLog, ReadError, RepairError, Store, StoreConfig, UnrecoveredStore,
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

/// Repairs a partition from another replica batch by batch, as far as that goes.
fn try_mend(log: &Arc<PartitionLog>, donor: &PartitionLog) -> Result<(), RepairError> {
    let damaged = log.damaged().unwrap();
    for mut mending in damaged.examine()? {
        loop {
            while let Some((from, _)) = mending.wanted() {
                let given = donor.read_for_repair(from, 1 << 20).unwrap();
                mending.put(given.bytes)?;
            }
            if mending.finish()? {
                break;
            }
        }
    }
    Ok(())
}

fn take_over(log: &Arc<PartitionLog>, donor: &PartitionLog) {
    let (damaged, state) = (log.damaged().unwrap(), donor.state());
    let all = donor.manifest(state.last.unwrap(), state.end_offset);
    let mut incoming = damaged.copy_of(all.unwrap()).unwrap();
    while let Some((from, up_to)) = incoming.wanted() {
        let given = donor.copy(from, 500, up_to).unwrap();
        incoming.take(&given.bytes).unwrap();
    }
    let leader = Vote {
        term: Term::new(9),
        node: NodeId::new(2),
        committed: true,
    };
    let still = damaged.replace(&incoming, None, leader).unwrap();
    assert!(still.is_none(), "{still:?}");
}

#[test]
fn rot_in_segments_that_no_other_compacted_the_same_gives_way_to_another_replicas() {
    let mut subject = Subject::new(1, 1 << 20);
    fill(&mut subject, 60);
    subject.store.as_ref().unwrap().checkpoint().unwrap();
    let before = subject.disk.fork(7);
    compact_twice(&mut subject);
    subject.reopen();
    let other = bytes_of(&subject.log).unwrap();
    let names = before.list(DIR.as_ref()).unwrap();
    let logs = names
        .iter()
        .filter(|name| name.contains('-') && name.ends_with(".log"));
    // One that has not compacted.
    let mut taken = 0;
    for log in logs {
        let disk = before.fork(taken + 2);
        disk.flip_bit(format!("{DIR}/{log}"), 200, 3);
        let (store, rotten) = open(&disk);
        let is_found = rotten.damage().is_some() || bytes_of(&rotten).is_err();
        // The newest the other has not compacted either.
        if !is_found || try_mend(&rotten, &subject.log).is_ok() {
            continue;
        }
        take_over(&rotten, &subject.log);
        assert!(bytes_of(&rotten).unwrap() == other, "{log}");
        store.close().unwrap();
        let (store, rotten) = open(&disk);
        assert!(bytes_of(&rotten).unwrap() == other, "{log} after a start");
        store.close().unwrap();
        taken += 1;
    }
    assert!(taken > 2, "{taken}");
}
