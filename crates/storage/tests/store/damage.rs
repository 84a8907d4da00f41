//! Rot: whatever byte it is in, it is found or does no harm.

use quipu_model::{Offset, TopicConfig};
use quipu_storage::{
    Store, StoreConfig, UnrecoveredStore,
    io::{Disk, FaultyDisk, ManualClock},
};

use super::support::*;

/// As many flips are tried at a time, each in a partition of its own.
const AT_ONCE: u32 = 64;

/// A disk with partitions of one sealed segment of about `bytes` bytes each, and what they hold.
fn sealed(bytes: usize) -> (FaultyDisk, Vec<Vec<u8>>) {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let records: Vec<_> = (0..bytes / 1024).map(|n| value(n as u64, 950)).collect();
    for partition in 0..AT_ONCE {
        let config = TopicConfig {
            segment_bytes: bytes as u64,
            segment_ms: 1,
            ..TopicConfig::default()
        };
        let log = store.create_partition(key(partition), config).unwrap();
        let batches = records.iter().map(|value| batch(value)).collect();
        let done = submit(&log, 1, batches).unwrap();
        done.recv().unwrap().unwrap();
        log.roll_if_due((NOW.get() + 1000).into_timestamp())
            .unwrap();
        assert_eq!(log.state().segments, 1);
    }
    store.checkpoint().unwrap();
    store.close().unwrap();
    (disk, records)
}

trait IntoTimestamp {
    fn into_timestamp(self) -> quipu_model::TimestampMs;
}

impl IntoTimestamp for i64 {
    fn into_timestamp(self) -> quipu_model::TimestampMs {
        quipu_model::TimestampMs::new(self)
    }
}

/// Reads what a partition holds: right, or not at all. Whether damage was found.
fn check(store: &Store, partition: u32, expected: &[Vec<u8>], what: &str) -> bool {
    let log = store.partition(key(partition)).unwrap();
    match values(&log) {
        Ok(found) => {
            assert!(found == expected, "{what}: wrong bytes were served");
            false
        }
        Err(error) => {
            let damage = log.damage();
            assert!(damage.is_some(), "{what}: {error}");
            true
        }
    }
}

/// Flips a bit of every byte of a file of each partition, once while the store is open and once while it is not; how many
/// flips were found.
fn flip_every_byte(ending: &str, bytes: usize) -> (u64, u64) {
    let (disk, expected) = sealed(bytes);
    let path = |partition| format!("{}/{:020}-1.{ending}", dir(partition), 0);
    let len = disk.file_bytes(path(0)).unwrap().len() as u64;
    let len = if ending == "log" {
        data_bytes(&disk)
    } else {
        len
    };
    let mut found = 0;
    for start in (0..len).step_by(AT_ONCE as usize) {
        let flips: Vec<(u32, u64)> = (0..AT_ONCE)
            .map(|partition| (partition, start + u64::from(partition)))
            .filter(|(_, byte)| *byte < len)
            .collect();
        let flip = || {
            for (partition, byte) in &flips {
                disk.flip_bit(path(*partition), *byte, (byte % 8) as u8);
            }
        };
        let store = open(&disk);
        flip();
        let what = |byte: u64| format!("byte {byte} of .{ending}");
        for (partition, byte) in &flips {
            check(&store, *partition, &expected, &what(*byte));
        }
        drop(store);
        let (store, _) = try_open(&disk).unwrap();
        for (partition, byte) in &flips {
            found += u64::from(check(&store, *partition, &expected, &what(*byte)));
        }
        drop(store);
        flip();
        // What was found is remembered, though it is mended now.
        for (partition, _) in &flips {
            let mark = format!("{}/damaged", dir(*partition));
            if disk.exists(mark.as_ref()) {
                disk.remove_file(mark.as_ref()).unwrap();
            }
        }
    }
    (found, len)
}

fn data_bytes(disk: &FaultyDisk) -> u64 {
    let store = open(disk);
    store.partition(key(0)).unwrap().state().size_bytes
}

#[test]
fn every_flipped_byte_of_a_sealed_segment_is_found() {
    let (found, len) = flip_every_byte("log", 64 << 10);
    assert_eq!(found, len);
    assert!(len > 60 << 10, "{len}");
}

#[test]
fn every_flipped_byte_of_a_seal_is_found() {
    let (found, len) = flip_every_byte("seal", 64 << 10);
    assert_eq!(found, len);
}

#[test]
fn a_flipped_byte_of_an_index_or_a_snapshot_of_producers_does_no_harm() {
    for ending in ["index", "producers"] {
        assert_eq!(flip_every_byte(ending, 16 << 10).0, 0, "{ending}");
    }
}

#[test]
fn a_seal_tells_of_rot_that_came_before_it() {
    let disk = FaultyDisk::new(2);
    let store = open(&disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    for n in 0..8 {
        append(&log, 1, &value(n, 1000));
    }
    // In the base offset of the second batch, which the batch's own checksum does not cover.
    let second = log
        .read(Offset::ZERO, 1, Offset::new(8))
        .unwrap()
        .bytes
        .len() as u64;
    disk.flip_bit(format!("{}/{:020}-1.log", dir(0), 0), second + 7, 0);
    store.checkpoint().unwrap();
    assert!(disk.exists(format!("{}/{:020}-1.seal", dir(0), 0).as_ref()));
    // The seal holds the checksums of what was appended, not of what the disk has made of it.
    assert!(log.read(Offset::ZERO, 1, Offset::new(8)).is_err());
    assert!(log.damage().is_some());
}

#[test]
fn a_sealed_segment_that_was_cut_short_or_is_missing_is_damage_to_its_partition_alone() {
    let (disk, expected) = sealed(16 << 10);
    disk.remove_file(format!("{}/{:020}-1.log", dir(1), 0).as_ref())
        .unwrap();
    let (store, report) = try_open(&disk).unwrap();
    assert_eq!(report.damaged.len(), 1);
    assert!(report.damaged[0].to_string().contains("-1.log"));
    assert!(check(&store, 1, &expected, "missing"));
    assert!(!check(&store, 2, &expected, "another"));
    // A write-ahead log that a damaged partition may need is kept until that partition is removed.
    store.remove_partition(key(1)).unwrap();
    store.close().unwrap();
    open(&disk);
}

/// A disk whose checkpoint names an unsealed segment with three batches of two terms, and where each of them begins.
fn unsealed() -> (FaultyDisk, Vec<u64>) {
    let disk = FaultyDisk::new(3);
    let store = open(&disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    let mut starts = Vec::new();
    for (n, term) in [1, 1, 2].into_iter().enumerate() {
        starts.push(log.state().size_bytes);
        append(&log, term, &value(n as u64, 100));
    }
    starts.push(log.state().size_bytes);
    store.close().unwrap();
    assert!(!disk.exists(format!("{}/{:020}-1.seal", dir(0), 0).as_ref()));
    (disk, starts)
}

/// Where recovery finds damage, and what, once a bit of the unsealed segment was flipped.
fn damage_of_flip(disk: &FaultyDisk, byte: u64, bit: u8) -> (u64, String) {
    let disk = disk.fork(1);
    let path = format!("{}/{:020}-1.log", dir(0), 0);
    disk.flip_bit(&path, byte, bit);
    let (store, report) = try_open(&disk).unwrap();
    let [damage] = &report.damaged[..] else {
        panic!("byte {byte}: {:?}", report.damaged);
    };
    assert_eq!(
        (damage.key, damage.path.to_str()),
        (key(0), Some(&path[..]))
    );
    let log = store.partition(key(0)).unwrap();
    assert!(values(&log).is_err(), "byte {byte} was served");
    assert!(submit(&log, 2, vec![batch(b"more")]).is_err());
    (damage.position, damage.detail.clone())
}

#[test]
fn every_flipped_byte_of_an_unsealed_segment_is_found_by_a_start() {
    let (disk, starts) = unsealed();
    for batch in starts.windows(2) {
        for byte in batch[0]..batch[1] {
            let (position, detail) = damage_of_flip(&disk, byte, (byte % 8) as u8);
            assert_eq!(position, batch[0], "byte {byte}: {detail}");
        }
    }
}

#[test]
fn a_leader_epoch_that_is_not_its_entrys_term_is_damage() {
    let (disk, starts) = unsealed();
    // The epoch stands in bytes 12 to 15 of a batch, which the batch's own checksum does not cover. All but its sign bit: a
    // negative one makes no header.
    for (start, due) in starts.iter().zip([1i32, 1, 2]) {
        for bit in 0..31 {
            let (byte, epoch) = (start + 15 - bit / 8, due ^ (1 << bit));
            let (position, detail) = damage_of_flip(&disk, byte, (bit % 8) as u8);
            assert_eq!(position, *start);
            assert_eq!(
                detail,
                format!("a batch has leader epoch {epoch} where {due} was due")
            );
        }
    }
}

#[test]
fn the_scrub_finds_rot_that_nobody_reads() {
    let (disk, _) = sealed(64 << 10);
    disk.flip_bit(format!("{}/{:020}-1.log", dir(5), 0), 40_000, 3);
    let config = StoreConfig {
        scrub_bytes_per_second: 1 << 30,
        ..small_store()
    };
    let clock = std::sync::Arc::new(ManualClock::new(NOW));
    let unrecovered = UnrecoveredStore::open(std::sync::Arc::new(disk), clock, config).unwrap();
    let (store, report) = unrecovered.recover().unwrap();
    assert!(
        report.damaged.is_empty(),
        "a start does not read what is sealed"
    );
    let log = store.partition(key(5)).unwrap();
    eventually(|| log.damage().is_some());
    assert!(store.partition(key(4)).unwrap().damage().is_none());
}
