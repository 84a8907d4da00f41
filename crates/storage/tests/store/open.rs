//! Opening a directory: what is refused, and what a start says of it.

use quipu_model::Position;
use quipu_storage::{
    OpenError,
    io::{Disk, DiskFile, FaultyDisk, OpenMode},
};

use super::support::*;

fn with_records(count: u64) -> FaultyDisk {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    for n in 0..count {
        append(&log, 1, &value(n, 900));
    }
    drop(store);
    disk
}

/// Replaces a file, whatever it was.
fn put(disk: &FaultyDisk, path: &str, bytes: &[u8]) {
    disk.remove_file(path.as_ref()).unwrap();
    let file: std::sync::Arc<dyn DiskFile> = disk.open(path.as_ref(), OpenMode::CreateNew).unwrap();
    file.write_at(Position::default(), &[bytes]).unwrap();
}

#[test]
fn a_directory_that_is_open_is_not_opened_again() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    assert!(matches!(try_open(&disk), Err(OpenError::InUse)));
    store.close().unwrap();
    open(&disk);
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let disk = with_records(1);
    let lines = "quipu 2\ndirectory 00000000-0000-4000-8000-000000000000\n";
    let text = format!("{lines}crc {:08x}\n", crc32fast::hash(lines.as_bytes()));
    put(&disk, "FORMAT", text.as_bytes());
    let error = try_open(&disk).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::NewerFormat {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().starts_with("FORMAT has format 2"),
        "{error}"
    );
}

#[test]
fn every_flipped_byte_of_the_format_and_state_files_is_found() {
    let disk = with_records(3);
    open(&disk).close().unwrap();
    for path in ["FORMAT", "raft-state"] {
        for byte in 0..disk.file_bytes(path).unwrap().len() as u64 {
            disk.flip_bit(path, byte, (byte % 8) as u8);
            let opened = try_open(&disk);
            assert!(
                matches!(&opened, Err(OpenError::Damaged { path: named, .. }) if named.to_str() == Some(path)),
                "byte {byte} of {path}: {opened:?}"
            );
            disk.flip_bit(path, byte, (byte % 8) as u8);
        }
    }
    open(&disk);
}

#[test]
fn a_missing_file_is_named() {
    for path in ["FORMAT", "raft-state"] {
        let disk = with_records(1);
        disk.remove_file(path.as_ref()).unwrap();
        let error = try_open(&disk).unwrap_err();
        assert!(error.to_string().starts_with(path), "{error}");
    }
    let disk = with_records(1);
    open(&disk).close().unwrap();
    for name in disk.list("wal".as_ref()).unwrap() {
        disk.remove_file(format!("wal/{name}").as_ref()).unwrap();
    }
    let error = try_open(&disk).unwrap_err();
    assert!(error.to_string().starts_with("wal is damaged"), "{error}");
}

#[test]
fn a_partition_whose_directory_is_missing_is_damaged_not_empty() {
    for checkpointed in [false, true] {
        let disk = with_records(2);
        if checkpointed {
            open(&disk).close().unwrap();
        }
        disk.remove_dir_all(dir(0).as_ref()).unwrap();
        let (store, report) = try_open(&disk).unwrap();
        assert_eq!(report.damaged.len(), 1, "{checkpointed}");
        assert!(store.partition(key(0)).unwrap().damage().is_some());
    }
}

/// Where the last record's value begins in the write-ahead log.
fn find_in_wal(disk: &FaultyDisk, record: &[u8]) -> (String, u64) {
    let names = disk.list("wal".as_ref()).unwrap();
    let paths = names.iter().map(|name| format!("wal/{name}"));
    paths
        .filter_map(|path| {
            let bytes = disk.file_bytes(&path)?;
            let at = bytes
                .windows(record.len())
                .position(|window| window == record)?;
            Some((path, at as u64))
        })
        .next()
        .unwrap()
}

#[test]
fn a_torn_end_of_the_write_ahead_log_is_cut_and_rot_before_it_is_not() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    for n in 0..3 {
        append(&log, 1, &value(n, 900));
    }
    // No time for a mark: nothing says that the last record was ever durable.
    let fork = disk.fork(1);
    drop(store);
    let (path, at) = find_in_wal(&fork, &value(2, 900));
    let rotten = fork.fork(1);
    fork.flip_bit(&path, at, 0);
    match try_open(&fork) {
        Ok((store, report)) => {
            assert!(report.torn_bytes > 900);
            let log = store.partition(key(0)).unwrap();
            assert_eq!(values(&log).unwrap(), [value(0, 900), value(1, 900)]);
        }
        // The log had been idle long enough for a mark on a slow machine: then it is rot.
        Err(error) => assert!(matches!(error, OpenError::Damaged { .. }), "{error}"),
    }
    let (path, at) = find_in_wal(&rotten, &value(0, 900));
    rotten.flip_bit(&path, at, 0);
    let error = try_open(&rotten).unwrap_err();
    assert!(error.to_string().starts_with("wal/"), "{error}");
    assert!(
        error.to_string().contains("nothing was changed or deleted"),
        "{error}"
    );
}
