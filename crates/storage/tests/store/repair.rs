//! A damaged partition is made whole from what another replica holds: bit for bit what was written, whatever was damaged.

use std::sync::Arc;

use quipu_model::{Offset, TopicConfig};
use quipu_storage::{
    PartitionLog, RepairError, Store,
    inspect::verify,
    io::{Disk, FaultyDisk},
};

use super::support::*;

const RECORDS: u64 = 40;

/// A disk whose partition has several sealed segments and one that is not, and what the partition holds. A fork of it is
/// another replica.
pub(super) fn replica() -> (FaultyDisk, Vec<Vec<u8>>) {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    let values: Vec<_> = (0..RECORDS).map(|n| value(n, 500)).collect();
    for (value, n) in values.iter().zip(0..) {
        append(&log, 1 + n / 15, value);
    }
    assert!(log.state().segments > 4);
    store.checkpoint().unwrap();
    store.close().unwrap();
    (disk, values)
}

/// A file of a segment; the first is number 0.
pub(super) fn file(disk: &FaultyDisk, number: usize, ending: &str) -> String {
    let names = disk.list(dir(0).as_ref()).unwrap();
    let mut logs = names
        .iter()
        .filter(|name| name.contains('-') && name.ends_with(".log"));
    let log = logs.nth(number).unwrap().trim_end_matches(".log");
    format!("{}/{log}.{ending}", dir(0))
}

pub(super) fn segments(disk: &FaultyDisk) -> usize {
    open(&disk.fork(9))
        .partition(key(0))
        .unwrap()
        .state()
        .segments as usize
}

/// Repairs a partition from other replicas, asked in turn; how many bytes were fetched.
fn repair(log: &Arc<PartitionLog>, donors: &[&PartitionLog]) -> Result<u64, RepairError> {
    let mut damaged = log.damaged().expect("the partition is damaged");
    let mut fetched = 0;
    for _ in 0..20 {
        for mut mending in damaged.examine()? {
            let mut donors = donors.iter();
            let mut donor = donors.next();
            loop {
                while let Some((from, _)) = mending.wanted() {
                    let given = donor.map(|donor| donor.read_for_repair(from, 2000));
                    let given = given
                        .and_then(Result::ok)
                        .filter(|given| !given.bytes.is_empty());
                    match given.map(|given| mending.put(given.bytes)) {
                        Some(Ok(bytes)) => fetched += bytes,
                        Some(Err(RepairError::Unsound { .. })) | None if donor.is_some() => {
                            donor = donors.next();
                        }
                        Some(Err(error)) => return Err(error),
                        None => {
                            return Err(RepairError::Beyond {
                                damage: log.damage().unwrap(),
                            });
                        }
                    }
                }
                if mending.finish()? {
                    break;
                }
            }
        }
        match damaged.reopen()? {
            None => return Ok(fetched),
            Some(still) => damaged = still,
        }
    }
    panic!("it never ends: {}", damaged.damage());
}

pub(super) fn donor(disk: &FaultyDisk) -> (Store, Arc<PartitionLog>) {
    let store = open(&disk.fork(2));
    let log = store.partition(key(0)).unwrap();
    (store, log)
}

/// The partition holds what was written, can be written to, and all its files are as a check wants them.
fn assert_whole(store: Store, disk: &FaultyDisk, expected: &[Vec<u8>], what: &str) {
    let log = store.partition(key(0)).unwrap();
    assert!(log.damage().is_none(), "{what}");
    assert!(values(&log).unwrap() == expected, "{what}");
    append(&log, 5, b"more");
    store.close().unwrap();
    let problems = verify(&(Arc::new(disk.clone()) as _)).unwrap().problems;
    // An index is not synced: a crash may have taken it.
    let index = |path: &std::path::Path| path.extension().is_some_and(|end| end == "index");
    let problems: Vec<_> = problems
        .iter()
        .filter(|found| !index(&found.path))
        .collect();
    assert!(problems.is_empty(), "{what}: {problems:?}");
    let store = open(disk);
    let log = store.partition(key(0)).unwrap();
    assert_eq!(values(&log).unwrap().len(), expected.len() + 1, "{what}");
    store.close().unwrap();
}

/// Damages a replica, has that found by whoever opens and reads it, and repairs it; how many bytes were fetched.
fn damage_and_repair(
    original: &FaultyDisk,
    expected: &[Vec<u8>],
    damage: impl Fn(&FaultyDisk),
    while_open: bool,
    what: &str,
) -> (FaultyDisk, u64) {
    let (_donating, donor) = donor(original);
    let disk = original.fork(3);
    let store = if while_open {
        let store = open(&disk);
        damage(&disk);
        store
    } else {
        damage(&disk);
        try_open(&disk).unwrap().0
    };
    let log = store.partition(key(0)).unwrap();
    assert!(values(&log).is_err() && log.damage().is_some(), "{what}");
    let fetched = repair(&log, &[&donor]).unwrap();
    assert_whole(store, &disk, expected, what);
    (disk, fetched)
}

#[test]
fn any_flipped_byte_is_repaired_to_what_was_written() {
    let (original, expected) = replica();
    let newest = segments(&original) - 1;
    let unsealed = open(&original.fork(8));
    let log = unsealed.partition(key(0)).unwrap();
    let start = log.state().end_offset.get() - 3;
    let newest_bytes = log.read(Offset::new(start), 1 << 20, log.state().end_offset);
    let newest_bytes = newest_bytes.unwrap().bytes.len() as u64;
    for (number, bytes) in [(0, 3000), (1, 3000), (newest, newest_bytes)] {
        let path = file(&original, number, "log");
        let written = original.file_bytes(&path).unwrap();
        for byte in (0..bytes).step_by(89) {
            let what = format!("byte {byte} of segment {number}");
            let flip = |disk: &FaultyDisk| disk.flip_bit(&path, byte, (byte % 8) as u8);
            // Only a start checks what has no seal.
            for while_open in [false, true]
                .into_iter()
                .filter(|open| !open || number < newest)
            {
                let (disk, fetched) =
                    damage_and_repair(&original, &expected, flip, while_open, &what);
                assert!(fetched > 0 && fetched < 4096, "{what}: {fetched}");
                let mended = disk.file_bytes(&path).unwrap();
                let len = bytes as usize;
                assert!(mended[..len] == written[..len], "{what}");
                let aside = disk.file_bytes(format!("{path}.damaged")).unwrap();
                assert!(aside[..len] != written[..len], "{what}");
            }
        }
    }
}

#[test]
fn only_what_is_around_the_damage_is_fetched() {
    let original = FaultyDisk::new(4);
    let store = open(&original);
    let config = TopicConfig {
        segment_bytes: 400 << 10,
        index_interval_bytes: 4096,
        ..TopicConfig::default()
    };
    let log = store.create_partition(key(0), config).unwrap();
    let expected: Vec<_> = (0..500).map(|n| value(n, 1000)).collect();
    expected.iter().for_each(|value| append(&log, 1, value));
    store.close().unwrap();
    let newest = segments(&original) - 1;
    assert_eq!(newest, 1);
    for (number, most) in [(0, 2 * (80 << 10)), (1, 2 * 1200)] {
        let path = file(&original, number, "log");
        let flip = |disk: &FaultyDisk| {
            disk.flip_bit(&path, 5000, 1);
            disk.flip_bit(&path, 90_000, 1);
        };
        let (_, fetched) = damage_and_repair(&original, &expected, flip, false, "two flips");
        assert!(fetched <= most, "{fetched} of segment {number}");
    }
}

#[test]
fn a_seal_is_made_again_from_sound_bytes_without_any_other_replica() {
    let (original, expected) = replica();
    let path = file(&original, 1, "seal");
    for byte in 0..original.file_bytes(&path).unwrap().len() as u64 {
        let flip = |disk: &FaultyDisk| disk.flip_bit(&path, byte, (byte % 8) as u8);
        let what = format!("byte {byte} of a seal");
        let (_, fetched) = damage_and_repair(&original, &expected, flip, false, &what);
        assert_eq!(fetched, 0, "{what}");
    }
}

#[test]
fn a_segment_without_a_sound_seal_or_index_or_without_its_file_is_fetched() {
    let (original, expected) = replica();
    let newest = segments(&original) - 1;
    let (log, seal, index) = (
        file(&original, 1, "log"),
        file(&original, 1, "seal"),
        file(&original, 1, "index"),
    );
    let unsealed = file(&original, newest, "log");
    let flip_all = |paths: &[&str]| {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        move |disk: &FaultyDisk| paths.iter().for_each(|path| disk.flip_bit(path, 30, 2))
    };
    let remove = |path: &str| {
        let path = path.to_owned();
        move |disk: &FaultyDisk| disk.remove_file(path.as_ref()).unwrap()
    };
    type Damage = Box<dyn Fn(&FaultyDisk)>;
    let damages: [(&str, Damage); 5] = [
        ("log and seal", Box::new(flip_all(&[&log, &seal]))),
        ("log and index", Box::new(flip_all(&[&log, &index]))),
        ("all three", Box::new(flip_all(&[&log, &seal, &index]))),
        ("no log", Box::new(remove(&log))),
        ("no unsealed log", Box::new(remove(&unsealed))),
    ];
    for (what, damage) in damages {
        let (disk, fetched) = damage_and_repair(&original, &expected, damage, false, what);
        assert!(fetched > 0, "{what}");
        let data = 3000;
        assert!(
            disk.file_bytes(&log).unwrap()[..data] == original.file_bytes(&log).unwrap()[..data]
        );
    }
}

#[test]
fn damage_in_several_segments_is_repaired_from_replicas_that_are_damaged_elsewhere() {
    let (original, expected) = replica();
    let disks: Vec<_> = (0..3).map(|seed| original.fork(10 + seed)).collect();
    for (disk, places) in disks.iter().zip([[0, 1], [2, 3], [3, 4]]) {
        for number in places {
            disk.flip_bit(file(disk, number, "log"), 200, 2);
        }
    }
    let stores: Vec<_> = disks.iter().map(|disk| try_open(disk).unwrap().0).collect();
    let logs: Vec<_> = stores
        .iter()
        .map(|s| s.partition(key(0)).unwrap())
        .collect();
    for log in &logs {
        assert!(values(log).is_err());
    }
    for (at, log) in logs.iter().enumerate() {
        let others = logs.iter().enumerate().filter(|(other, _)| *other != at);
        let others: Vec<_> = others.map(|(_, log)| &**log).collect();
        while log.damage().is_some() {
            repair(log, &others).unwrap();
            drop(values(log));
        }
    }
    drop(logs);
    for (store, disk) in stores.into_iter().zip(&disks) {
        assert_whole(store, disk, &expected, "one of three");
    }
}

#[test]
fn damage_found_while_running_is_known_to_the_next_start_until_it_is_repaired() {
    let (original, expected) = replica();
    let (_donating, donor) = donor(&original);
    let disk = original.fork(5);
    let store = open(&disk);
    disk.flip_bit(file(&disk, 1, "log"), 700, 3);
    let log = store.partition(key(0)).unwrap();
    assert!(values(&log).is_err());
    let found = log.damage().unwrap();
    let mark = format!("{}/damaged", dir(0));
    eventually(|| disk.exists(mark.as_ref()));
    eventually(|| {
        let crashed = disk.fork(6);
        crashed.crash();
        crashed.exists(mark.as_ref())
    });
    drop(store);
    let crashed = disk.fork(6);
    crashed.crash();
    let problems = verify(&(Arc::new(crashed.clone()) as _)).unwrap().problems;
    assert!(
        problems
            .iter()
            .any(|problem| problem.detail.contains("not repaired yet")),
        "{problems:?}"
    );
    let (store, report) = try_open(&crashed).unwrap();
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(
        (&report.damaged[0].path, report.damaged[0].position),
        (&found.path, found.position)
    );
    let log = store.partition(key(0)).unwrap();
    assert!(values(&log).is_err() && submit(&log, 5, vec![batch(b"more")]).is_err());
    repair(&log, &[&donor]).unwrap();
    assert!(!crashed.exists(mark.as_ref()));
    assert_whole(store, &crashed, &expected, "after a start");
}

#[test]
fn a_crash_at_any_point_of_a_repair_leaves_it_undone_or_done() {
    let (original, expected) = replica();
    let (_donating, donor) = donor(&original);
    let newest = segments(&original) - 1;
    for number in [1, newest] {
        let path = file(&original, number, "log");
        for failing in 1.. {
            let disk = original.fork(failing);
            disk.flip_bit(&path, 300, 1);
            let (store, _) = try_open(&disk).unwrap();
            let log = store.partition(key(0)).unwrap();
            assert!(values(&log).is_err());
            disk.fail_sync_at(failing);
            let outcome = repair(&log, &[&donor]);
            drop(store);
            let crashed = disk.fork(failing + 1);
            crashed.crash();
            let (store, _) = try_open(&crashed).unwrap();
            let log = store.partition(key(0)).unwrap();
            let what = format!("sync {failing} of the repair of segment {number}");
            match values(&log) {
                Ok(_) => {}
                Err(_) => drop(repair(&log, &[&donor]).unwrap()),
            }
            assert_whole(store, &crashed, &expected, &what);
            if outcome.is_ok() {
                assert!(failing > 2);
                break;
            }
        }
    }
}

#[test]
fn what_no_other_replica_has_right_stays_damaged_and_as_it_was() {
    let (original, expected) = replica();
    // One that has other records at the same offsets, and one that has them from other terms.
    let others = [(500, 1, 1), (500, 0, 4)].map(|(len, shift, later)| {
        let store = open(&FaultyDisk::new(7));
        let log = store.create_partition(key(0), small_segments()).unwrap();
        for n in 0..RECORDS {
            append(&log, later + n / 15, &value(n + shift, len));
        }
        (store, log)
    });
    let newest = segments(&original) - 1;
    let (_donating, donor) = donor(&original);
    for (number, others) in [(1, &others[..]), (newest, &others[1..])] {
        let disk = original.fork(8);
        let path = file(&disk, number, "log");
        disk.flip_bit(&path, 300, 1);
        let before = disk.file_bytes(&path);
        let (store, _) = try_open(&disk).unwrap();
        let log = store.partition(key(0)).unwrap();
        assert!(values(&log).is_err());
        for (_, other) in others {
            assert!(repair(&log, &[other]).is_err());
        }
        assert!(repair(&log, &[]).is_err());
        assert!(log.damage().is_some() && values(&log).is_err());
        assert!(disk.file_bytes(&path) == before);
        repair(&log, &[&donor]).unwrap();
        assert_whole(store, &disk, &expected, "in the end");
    }
}

#[test]
fn damage_is_repaired_after_a_checkpoint_and_another_start_too() {
    let (original, expected) = replica();
    let (_donating, donor) = donor(&original);
    let newest = segments(&original) - 1;
    for (number, ending) in [(1, "log"), (1, "seal"), (newest, "log")] {
        let disk = original.fork(8);
        disk.flip_bit(file(&disk, number, ending), 60, 1);
        for _ in 0..2 {
            let (store, report) = try_open(&disk).unwrap();
            let log = store.partition(key(0)).unwrap();
            assert!(values(&log).is_err(), "{:?}", report.damaged);
            // What another partition needs of the write-ahead log goes on.
            let other = store.create_partition(key(1), small_segments()).unwrap();
            append(&other, 1, b"more");
            store.checkpoint().unwrap();
            store.close().unwrap();
        }
        let (store, _) = try_open(&disk).unwrap();
        let log = store.partition(key(0)).unwrap();
        repair(&log, &[&donor]).unwrap();
        assert_whole(store, &disk, &expected, ending);
    }
}
