//! Looking into a directory from outside.

use std::sync::Arc;

use quipu_storage::{
    OpenError,
    inspect::{DumpItem, dump, verify},
    io::{Disk, FaultyDisk},
};

use super::support::*;

/// A closed directory with a sealed segment, an unsealed one, and records in the write-ahead log only.
fn filled() -> FaultyDisk {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    for n in 0..6 {
        append(&log, 1, &value(n, 900));
    }
    store.checkpoint().unwrap();
    append(&log, 1, &value(6, 900));
    disk
}

fn file(ending: &str) -> String {
    format!("{}/{:020}-1.{ending}", dir(0), 0)
}

fn shown(disk: &FaultyDisk, path: &str) -> (Vec<DumpItem>, Result<(), OpenError>) {
    let mut items = Vec::new();
    let outcome = dump(disk, path.as_ref(), &mut |item| {
        assert_eq!(item.to_string().lines().count(), 1);
        items.push(item);
    });
    (items, outcome)
}

#[test]
fn every_kind_of_file_is_shown() {
    let disk = filled();
    let wal: Vec<_> = disk.list("wal".as_ref()).unwrap();
    let wal = format!("wal/{}", wal[0]);
    let counts = [
        (file("log"), 4),
        (format!("{}/{:020}-1.log", dir(0), 4), 3),
        (file("index"), 4),
        (file("seal"), 1),
        (file("producers"), 0),
        ("raft-state".to_owned(), 4),
    ];
    for (path, count) in counts {
        let (items, outcome) = shown(&disk, &path);
        outcome.unwrap();
        assert_eq!(items.len(), count, "{path}: {items:?}");
    }
    let (items, outcome) = shown(&disk, &wal);
    outcome.unwrap();
    let batches = items
        .iter()
        .filter(|item| item.to_string().contains(" batch "));
    assert_eq!(batches.count(), 7);
    assert!(shown(&disk, "LOCK").1.is_err());
}

#[test]
fn a_dump_stops_at_damage_and_says_where() {
    let disk = filled();
    disk.flip_bit(file("log"), 1500, 1);
    let (items, outcome) = shown(&disk, &file("log"));
    assert_eq!(items.len(), 1);
    let error = outcome.unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Damaged {
                position: 900..1500,
                ..
            }
        ),
        "{error}"
    );
}

/// The files that a check finds fault with.
fn faults(disk: &FaultyDisk) -> Vec<String> {
    let before = (disk.writes(), disk.syncs());
    let report = verify(&(Arc::new(disk.clone()) as Arc<dyn Disk>)).unwrap();
    assert_eq!((disk.writes(), disk.syncs()), before, "nothing is changed");
    let path = |problem: &quipu_storage::inspect::Problem| problem.path.display().to_string();
    report.problems.iter().map(path).collect()
}

#[test]
fn a_sound_directory_has_no_faults() {
    let disk = filled();
    let report = verify(&(Arc::new(disk.clone()) as Arc<dyn Disk>)).unwrap();
    assert_eq!(report.problems, []);
    assert_eq!(
        (report.partitions, report.segments, report.batches),
        (1, 2, 6)
    );
    assert!(report.wal_records >= 1);
    let store = open(&disk);
    let refused = verify(&(Arc::new(disk.clone()) as Arc<dyn Disk>));
    assert!(matches!(refused, Err(OpenError::InUse)));
    drop(store);
    assert!(
        faults(&disk).is_empty(),
        "a start without a checkpoint leaves it sound"
    );
}

#[test]
fn each_fault_is_listed_with_its_file() {
    let wal = |disk: &FaultyDisk| format!("wal/{}", disk.list("wal".as_ref()).unwrap()[0]);
    let paths = [
        "FORMAT".to_owned(),
        "raft-state".to_owned(),
        file("log"),
        file("seal"),
        format!("{}/{:020}-1.log", dir(0), 4),
        wal(&filled()),
    ];
    for path in paths {
        let disk = filled();
        disk.flip_bit(&path, 10, 2);
        assert!(faults(&disk).contains(&path), "{path}: {:?}", faults(&disk));
        let disk = filled();
        disk.remove_file(path.as_ref()).unwrap();
        let named = |fault: &String| *fault == path || path.starts_with(fault.as_str());
        assert!(
            faults(&disk).iter().any(named),
            "{path}: {:?}",
            faults(&disk)
        );
    }
}

#[test]
fn an_index_that_is_lost_or_changed_is_no_fault_but_is_named() {
    let index = file("index");
    for lost in [false, true] {
        let disk = filled();
        match lost {
            true => disk.remove_file(index.as_ref()).unwrap(),
            false => disk.flip_bit(&index, 10, 2),
        }
        let report = verify(&(Arc::new(disk.clone()) as Arc<dyn Disk>)).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(report.stale_indexes, [std::path::PathBuf::from(&index)]);
        // A start serves all the same.
        let log = open(&disk).partition(key(0)).unwrap();
        assert_eq!(values(&log).unwrap().len(), 7);
    }
}

#[test]
fn a_directory_that_lost_its_power_at_any_moment_has_no_faults() {
    for seed in 0..50 {
        let disk = filled().fork(seed);
        disk.crash();
        assert_eq!(faults(&disk), Vec::<String>::new(), "seed {seed}");
    }
}
