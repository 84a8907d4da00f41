//! A log that is far behind takes over another's segments: whole or not at all, and a copy that was cut off goes on.

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use quipu_model::{LogId, Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs};
use quipu_storage::{
    Incoming, IncomingError, Manifest, PartitionLog, ReadError, StorageFailure, Store,
    io::{Disk, FaultyDisk},
};

use super::support::*;

/// So many records stand in the log that is taken over.
const RECORDS: u64 = 23;

/// A log of several segments, most of them sealed.
fn source() -> (Store, Arc<PartitionLog>) {
    let store = open(&FaultyDisk::new(1));
    let log = store.create_partition(key(0), small_segments()).unwrap();
    for n in 0..RECORDS {
        let producer = (ProducerId::new(5), ProducerEpoch::new(0));
        let batch = batch(&value(n, 900));
        let batch = batch.with_producer(producer.0, producer.1, Sequence::new(n as i32));
        let done = submit(&log, 2, vec![batch]).unwrap();
        done.recv().unwrap().unwrap();
        if n == RECORDS - 4 {
            store.checkpoint().unwrap();
        }
    }
    assert!(log.state().segments > 4);
    (store, log)
}

pub(super) fn all_of(log: &PartitionLog) -> Manifest {
    let state = log.state();
    log.manifest(state.last.unwrap(), state.end_offset).unwrap()
}

/// Copies at most so many pieces of what is wanted; how many bytes that were.
fn copy(from: &PartitionLog, to: &mut Incoming, pieces: usize) -> Result<usize, IncomingError> {
    let mut bytes = 0;
    for _ in 0..pieces {
        let Some((next, up_to)) = to.wanted() else {
            break;
        };
        let read = from.copy(next, 1500, up_to).unwrap();
        to.take(&read.bytes)?;
        bytes += read.bytes.len();
    }
    Ok(bytes)
}

fn install(log: &PartitionLog, incoming: &Incoming) -> Option<Result<(), StorageFailure>> {
    let (sender, done) = mpsc::channel();
    let members = Some((LogId::new(2, 0), Bytes::from_static(b"members")));
    let done_with = Box::new(move |result| drop(sender.send(result)));
    log.install(incoming, members, done_with).ok()?;
    done.recv().ok()
}

/// A log with a little of the same, and something of its own that was never committed.
fn behind(disk: &FaultyDisk, source: &PartitionLog) -> (Store, Arc<PartitionLog>) {
    let store = open(disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    let mine = values(source).unwrap();
    for value in &mine[..2] {
        append(&log, 2, value);
    }
    append(&log, 3, b"mine alone");
    store.checkpoint().unwrap();
    append(&log, 3, b"and this");
    (store, log)
}

#[test]
fn a_log_is_taken_over_with_all_that_was_in_it_and_goes_on() {
    let (_source_store, from) = source();
    let disk = FaultyDisk::new(2);
    let (store, log) = behind(&disk, &from);
    let manifest = Manifest::decode(all_of(&from).encode()).unwrap();
    assert_eq!(manifest, all_of(&from));
    let mut incoming = Incoming::open(Arc::clone(&log), manifest).unwrap();
    copy(&from, &mut incoming, usize::MAX).unwrap();
    install(&log, &incoming).unwrap().unwrap();
    let check = |log: &PartitionLog| {
        assert_eq!(values(log).unwrap(), values(&from).unwrap());
        let (here, there) = (log.state(), from.state());
        assert_eq!((here.last, here.end_offset), (there.last, there.end_offset));
        assert_eq!(here.last_purged, here.last);
        let producer = ProducerId::new(5);
        assert_eq!(log.producer_tail(producer), from.producer_tail(producer));
    };
    check(&log);
    for (reopened, checkpointed) in [(false, false), (true, false), (true, true)] {
        let fork = disk.fork(9);
        if checkpointed {
            store.checkpoint().unwrap();
        }
        if reopened {
            fork.crash();
            let store = open(&fork);
            check(&store.partition(key(0)).unwrap());
        }
    }
    append(&log, 4, b"later");
    store.close().unwrap();
    let store = open(&disk);
    let log = store.partition(key(0)).unwrap();
    let mut all = values(&from).unwrap();
    all.push(b"later".to_vec());
    assert_eq!(values(&log).unwrap(), all);
    assert_eq!(log.state().segments, from.state().segments + 1);
    drop((store, log));
    let disk: Arc<dyn quipu_storage::io::Disk> = Arc::new(disk);
    let report = quipu_storage::inspect::verify(&disk).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[test]
fn a_log_may_be_taken_over_up_to_the_middle_of_a_segment_and_from_a_trimmed_start_on() {
    let (_source_store, from) = source();
    from.trim(Offset::new(6)).unwrap();
    for end in [7, 11, 21, RECORDS] {
        let last = LogId::new(2, end - 1);
        let manifest = from.manifest(last, Offset::new(end)).unwrap();
        let (_store, log) = behind(&FaultyDisk::new(2), &from);
        let mut incoming = Incoming::open(Arc::clone(&log), manifest).unwrap();
        copy(&from, &mut incoming, usize::MAX).unwrap();
        install(&log, &incoming).unwrap().unwrap();
        let state = log.state();
        assert_eq!(
            (state.start_offset, state.end_offset),
            (Offset::new(6), Offset::new(end))
        );
        assert_eq!(
            values(&log).unwrap(),
            values(&from).unwrap()[..end as usize - 6]
        );
        let tail = log.producer_tail(ProducerId::new(5)).unwrap();
        let newest = tail.batches.last().unwrap().base_offset;
        assert_eq!(newest, Offset::new(end - 1));
    }
    let past = from.manifest(LogId::new(2, 4), Offset::new(5));
    assert!(
        matches!(past, Err(ReadError::OutOfRange { .. })),
        "it was trimmed"
    );
}

/// Its batches may all have been deleted where the log comes from.
#[test]
fn what_a_producer_sent_comes_with_the_log() {
    let store = open(&FaultyDisk::new(1));
    let from = store.create_partition(key(0), small_segments()).unwrap();
    let gone =
        batch(b"gone").with_producer(ProducerId::new(7), ProducerEpoch::new(0), Sequence::new(0));
    submit(&from, 2, vec![gone])
        .unwrap()
        .recv()
        .unwrap()
        .unwrap();
    (1..14).for_each(|n| append(&from, 2, &value(n, 900)));
    store.checkpoint().unwrap();
    let tail = from.producer_tail(ProducerId::new(7));
    for trimmed_to in [6, 14] {
        from.roll_if_due(TimestampMs::new(i64::MAX)).unwrap();
        from.trim(Offset::new(trimmed_to)).unwrap();
        let disk = FaultyDisk::new(2);
        let store = open(&disk);
        let log = store.create_partition(key(0), small_segments()).unwrap();
        let mut incoming = Incoming::open(Arc::clone(&log), all_of(&from)).unwrap();
        copy(&from, &mut incoming, usize::MAX).unwrap();
        install(&log, &incoming).unwrap().unwrap();
        for checkpointed in [false, true] {
            if checkpointed {
                store.checkpoint().unwrap();
            }
            let fork = disk.fork(9);
            fork.crash();
            let store = open(&fork);
            let log = store.partition(key(0)).unwrap();
            assert_eq!(
                log.producer_tail(ProducerId::new(7)),
                tail,
                "{trimmed_to} {checkpointed}"
            );
            log.trim(Offset::new(10)).unwrap();
            append(&log, 3, b"mine alone");
            log.truncate_after(Some(LogId::new(2, 13))).unwrap();
            assert_eq!(
                log.producer_tail(ProducerId::new(7)),
                tail,
                "cut, {trimmed_to} {checkpointed}"
            );
        }
    }
    assert_eq!(from.state().segments, 0);
}

#[test]
fn segments_that_are_here_are_not_copied_again() {
    let (_source_store, from) = source();
    let disk = FaultyDisk::new(2);
    let (store, log) = behind(&disk, &from);
    let mut incoming = Incoming::open(Arc::clone(&log), all_of(&from)).unwrap();
    copy(&from, &mut incoming, usize::MAX).unwrap();
    install(&log, &incoming).unwrap().unwrap();
    store.checkpoint().unwrap();
    append(&from, 5, &value(77, 900));
    let manifest = all_of(&from);
    let unsealed = manifest.segments.iter().filter(|s| s.checksum.is_none());
    let unsealed: u64 = unsealed.map(|segment| segment.bytes).sum();
    let mut incoming = Incoming::open(Arc::clone(&log), manifest).unwrap();
    let again = copy(&from, &mut incoming, usize::MAX).unwrap();
    assert_eq!(again as u64, unsealed);
    install(&log, &incoming).unwrap().unwrap();
    assert_eq!(values(&log).unwrap(), values(&from).unwrap());
}

#[test]
fn a_copy_that_was_cut_off_at_any_point_goes_on_from_there() {
    let (_source_store, from) = source();
    let whole = from.state().size_bytes as usize;
    let pieces = whole.div_ceil(1000) + 5;
    for stop in 0..pieces {
        for power_lost in [false, true] {
            let disk = FaultyDisk::new(stop as u64);
            let (store, log) = behind(&disk, &from);
            let mut incoming = Incoming::open(Arc::clone(&log), all_of(&from)).unwrap();
            let first = copy(&from, &mut incoming, stop).unwrap();
            drop((incoming, log));
            let disk = if power_lost {
                let fork = disk.fork(stop as u64);
                fork.crash();
                fork
            } else {
                store.close().unwrap();
                disk
            };
            let store = open(&disk);
            let log = store.partition(key(0)).unwrap();
            assert_eq!(
                log.state().end_offset,
                Offset::new(4),
                "not before all is here"
            );
            let mut incoming = Incoming::open(Arc::clone(&log), all_of(&from)).unwrap();
            let second = copy(&from, &mut incoming, usize::MAX).unwrap();
            // Without power, what of one segment was not synced may be gone.
            let lost = if power_lost { 4096 } else { 0 };
            assert!(
                first + second <= whole + lost,
                "{stop}: {first} + {second} of {whole}"
            );
            install(&log, &incoming).unwrap().unwrap();
            assert_eq!(values(&log).unwrap(), values(&from).unwrap());
        }
    }
}

/// A node that ended with the first pieces of a copy beside its log.
fn cut_off(from: &PartitionLog, pieces: usize) -> FaultyDisk {
    let disk = FaultyDisk::new(3);
    let (store, log) = behind(&disk, from);
    let mut incoming = Incoming::open(Arc::clone(&log), all_of(from)).unwrap();
    copy(from, &mut incoming, pieces).unwrap();
    store.close().unwrap();
    disk
}

/// The files of a copy, with an ending.
fn copied(disk: &FaultyDisk, ending: &str) -> Vec<String> {
    let dir = format!("{}/incoming", dir(0));
    let names = disk.list(dir.as_ref()).unwrap_or_default();
    let ending = format!(".{ending}");
    let named = names.iter().filter(|name| name.ends_with(&ending));
    named.map(|name| format!("{dir}/{name}")).collect()
}

#[test]
fn rot_in_what_was_copied_is_never_installed_but_copied_again() {
    let (_source_store, from) = source();
    let place = |ending: &str, of: usize| {
        let disk = cut_off(&from, 8);
        let path = copied(&disk, ending).swap_remove(of);
        (disk, path)
    };
    let segments = copied(&place("log", 0).0, "seal").len();
    assert!(segments >= 2, "{segments} were whole");
    for (ending, of) in [
        ("log", 0),
        ("log", 1),
        ("log", segments),
        ("seal", 0),
        ("index", 0),
    ] {
        for byte in [0, 11, 15, 60, 500] {
            let (disk, path) = place(ending, of);
            if byte >= disk.file_bytes(&path).unwrap().len() as u64 {
                continue;
            }
            disk.flip_bit(&path, byte, 1);
            let store = open(&disk);
            let log = store.partition(key(0)).unwrap();
            let mut incoming = Incoming::open(Arc::clone(&log), all_of(&from)).unwrap();
            // What was found out only once all was there.
            if copy(&from, &mut incoming, usize::MAX).is_err() {
                copy(&from, &mut incoming, usize::MAX).unwrap();
            }
            install(&log, &incoming).unwrap().unwrap();
            assert_eq!(values(&log).unwrap(), values(&from).unwrap());
            store.close().unwrap();
            let disk: Arc<dyn Disk> = Arc::new(disk);
            let report = quipu_storage::inspect::verify(&disk).unwrap();
            assert!(
                report.problems.is_empty(),
                "{path} {byte}: {:?}",
                report.problems
            );
        }
    }
}

#[test]
fn a_start_removes_a_copy_that_the_log_has_gone_past_and_keeps_one_that_goes_on() {
    let (_source_store, from) = source();
    let disk = cut_off(&from, 8);
    let store = open(&disk);
    let kept = copied(&disk, "log").len();
    assert!(kept > 1, "it may go on");
    // The leader had what was missing, after all.
    let log = store.partition(key(0)).unwrap();
    for n in 0..RECORDS {
        append(&log, 4, &value(n, 900));
    }
    assert_eq!(copied(&disk, "log").len(), kept);
    store.close().unwrap();
    let store = open(&disk);
    assert!(!disk.exists(format!("{}/incoming", dir(0)).as_ref()));
    let log = store.partition(key(0)).unwrap();
    let mut incoming = Incoming::open(Arc::clone(&log), all_of(&from)).unwrap();
    copy(&from, &mut incoming, usize::MAX).unwrap();
    install(&log, &incoming).unwrap().unwrap();
    assert_eq!(values(&log).unwrap(), values(&from).unwrap());
}

/// Takes the log over on a disk with a planned fault; what is there after the power was lost.
fn after_fault(plan: impl Fn(&FaultyDisk), from: &PartitionLog) -> (bool, u64) {
    let disk = FaultyDisk::new(4);
    let (_store, log) = behind(&disk, from);
    let incoming = Incoming::open(Arc::clone(&log), all_of(from)).and_then(|mut incoming| {
        plan(&disk);
        copy(from, &mut incoming, usize::MAX).map(|_| incoming)
    });
    let installed = incoming.is_ok_and(|incoming| matches!(install(&log, &incoming), Some(Ok(()))));
    let fork = disk.fork(11);
    fork.crash();
    let store = open(&fork);
    let log = store.partition(key(0)).unwrap();
    let end = log.state().end_offset.get();
    let found = values(&log).unwrap();
    let all = values(from).unwrap();
    match end {
        4 => assert_eq!(found[..2], all[..2]),
        _ => assert_eq!(found, all),
    }
    (installed, end)
}

#[test]
fn a_disk_that_fails_at_any_write_or_sync_leaves_the_old_log_or_the_new() {
    let (_source_store, from) = source();
    let mut ends = BTreeSet::new();
    for plan in [FaultyDisk::fail_write_at, FaultyDisk::fail_sync_at] {
        for n in 1.. {
            let (installed, end) = after_fault(|disk| plan(disk, n), &from);
            assert!(!installed || end == RECORDS, "installed, and gone");
            ends.insert((installed, end));
            if installed {
                break;
            }
        }
    }
    assert!(
        ends.contains(&(false, 4)) && ends.contains(&(true, RECORDS)),
        "{ends:?}"
    );
}

#[test]
fn what_a_failed_sync_left_of_a_copy_is_not_taken_for_durable() {
    let (_source_store, from) = source();
    let mut failed = 0;
    for n in 1.. {
        let disk = FaultyDisk::new(n);
        let (store, log) = behind(&disk, &from);
        let mut incoming = Incoming::open(Arc::clone(&log), all_of(&from)).unwrap();
        disk.fail_sync_at(n);
        if copy(&from, &mut incoming, usize::MAX).is_ok() {
            break;
        }
        failed += 1;
        // The process ends, and another one goes on with what the system shows it.
        drop((incoming, log, store));
        let store = open(&disk);
        let log = store.partition(key(0)).unwrap();
        let mut incoming = Incoming::open(Arc::clone(&log), all_of(&from)).unwrap();
        copy(&from, &mut incoming, usize::MAX).unwrap();
        install(&log, &incoming).unwrap().unwrap();
        drop((incoming, log, store));
        let fork = disk.fork(n);
        fork.crash();
        let log = open(&fork).partition(key(0)).unwrap();
        assert_eq!(values(&log).unwrap(), values(&from).unwrap(), "sync {n}");
    }
    assert!(failed > 10, "{failed}");
}

#[test]
fn a_full_disk_stops_a_copy_which_is_whole_only_once_all_is_here() {
    let (_source_store, from) = source();
    let mut stopped = 0;
    for room in (0..).step_by(700) {
        let disk = FaultyDisk::new(2);
        let (_store, log) = behind(&disk, &from);
        let used = u64::MAX - disk.free_bytes().unwrap();
        disk.set_capacity(used + room);
        let copied = Incoming::open(Arc::clone(&log), all_of(&from)).and_then(|mut incoming| {
            let copied = copy(&from, &mut incoming, usize::MAX);
            assert_eq!(incoming.is_whole(), copied.is_ok(), "with room for {room}");
            copied
        });
        match copied {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, IncomingError::DiskFull { .. }), "{error}"),
        }
        stopped += 1;
        disk.set_capacity(u64::MAX);
        let mut incoming = Incoming::open(Arc::clone(&log), all_of(&from)).unwrap();
        copy(&from, &mut incoming, usize::MAX).unwrap();
        install(&log, &incoming).unwrap().unwrap();
        assert_eq!(values(&log).unwrap(), values(&from).unwrap());
    }
    assert!(stopped > 10, "{stopped}");
}

#[test]
fn what_was_changed_on_its_way_is_refused_and_copied_again() {
    let (_source_store, from) = source();
    let (_store, log) = behind(&FaultyDisk::new(2), &from);
    let mut manifest = all_of(&from);
    let checksum = manifest.segments[1].checksum.as_mut().unwrap();
    *checksum ^= 1;
    let mut incoming = Incoming::open(Arc::clone(&log), manifest).unwrap();
    let (next, up_to) = incoming.wanted().unwrap();
    let mut bytes = from.read(next, 1500, up_to).unwrap().bytes.to_vec();
    bytes[100] ^= 1;
    let refused = incoming.take(&bytes.into());
    assert!(matches!(refused, Err(IncomingError::Bad(_))), "{refused:?}");
    assert_eq!(incoming.wanted(), Some((next, up_to)));
    let refused = copy(&from, &mut incoming, usize::MAX);
    assert!(
        matches!(refused, Err(IncomingError::Checksum { .. })),
        "{refused:?}"
    );
    assert!(install(&log, &incoming).is_none(), "not all is here");
    let mut incoming = Incoming::open(Arc::clone(&log), all_of(&from)).unwrap();
    copy(&from, &mut incoming, usize::MAX).unwrap();
    install(&log, &incoming).unwrap().unwrap();
    assert_eq!(values(&log).unwrap(), values(&from).unwrap());
}

#[test]
fn a_manifest_that_lies_or_is_cut_short_is_refused() {
    let (_source_store, from) = source();
    let manifest = all_of(&from);
    let bytes = manifest.encode();
    for len in 0..bytes.len() {
        assert!(Manifest::decode(bytes.slice(..len)).is_err(), "{len}");
    }
    let mut gap = manifest.clone();
    gap.segments.remove(1);
    let mut early = manifest.clone();
    early.start_offset = Offset::new(RECORDS + 1);
    let mut term = manifest;
    term.last = LogId::new(7, 3);
    for lie in [gap, early, term] {
        assert!(Manifest::decode(lie.encode()).is_err());
    }
}
