use std::path::Path;

use super::*;

fn file(disk: &FaultyDisk, name: &str, mode: OpenMode) -> Arc<dyn DiskFile> {
    disk.open(Path::new(name), mode).unwrap()
}

#[test]
fn what_was_synced_survives_every_crash() {
    let disk = FaultyDisk::new(1);
    let written = file(&disk, "a", OpenMode::CreateNew);
    written.write_at(Position::new(0), &[b"kept"]).unwrap();
    written.sync().unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    written.write_at(Position::new(4), &[&[7; 4096]]).unwrap();
    let mut outcomes = std::collections::HashSet::new();
    for seed in 0..200 {
        let crashed = disk.fork(seed);
        crashed.crash();
        let bytes = crashed.file_bytes("a").unwrap();
        assert_eq!(&bytes[..4], b"kept");
        assert!(bytes[4..].iter().all(|byte| *byte == 0 || *byte == 7));
        outcomes.insert(bytes);
        assert!(written.len().is_ok(), "the original goes on");
    }
    assert!(outcomes.len() > 20, "tears in many ways");
}

#[test]
fn a_name_that_was_not_synced_may_vanish_and_old_handles_die() {
    let mut vanished = 0;
    for seed in 0..100 {
        let disk = FaultyDisk::new(seed);
        let handle = file(&disk, "a", OpenMode::CreateNew);
        handle.sync().unwrap();
        disk.crash();
        assert!(handle.len().is_err());
        vanished += u32::from(!disk.exists(Path::new("a")));
    }
    assert!(0 < vanished && vanished < 100);
}

#[test]
fn faults_come_when_planned() {
    let disk = FaultyDisk::new(1);
    let handle = file(&disk, "a", OpenMode::CreateNew);
    disk.fail_write_at(2);
    handle.write_at(Position::new(0), &[b"1"]).unwrap();
    assert!(handle.write_at(Position::new(1), &[b"2"]).is_err());
    handle.write_at(Position::new(1), &[b"2"]).unwrap();
    disk.fail_sync_at(1);
    assert!(handle.sync().is_err());
    handle.sync().unwrap();
    disk.set_capacity(3);
    let full = handle.allocate(4).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    assert_eq!(handle.len().unwrap(), 2);
    handle.allocate(3).unwrap();
    assert_eq!(disk.free_bytes().unwrap(), 0);
    handle.release_from(Position::new(1));
    assert_eq!(disk.free_bytes().unwrap(), 2);
    disk.flip_bit("a", 0, 0);
    assert_eq!(disk.file_bytes("a").unwrap(), b"0\0\0");
}

#[test]
fn locks_exclude_until_dropped() {
    let disk = FaultyDisk::new(1);
    let lock = disk.lock(Path::new("lock")).unwrap();
    assert!(disk.lock(Path::new("lock")).is_err());
    drop(lock);
    disk.lock(Path::new("lock")).unwrap();
}
