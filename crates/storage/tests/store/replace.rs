//! A damaged log that no other replica can mend, since none holds what stood there, is replaced by another's: whole or not at
//! all, and only by one in which is all that this one acknowledged.

use std::sync::{Arc, mpsc};

use bytes::Bytes;
use quipu_model::{LogId, NodeId, Offset, Term, Vote};
use quipu_storage::{
    PartitionLog, RepairError, Store,
    inspect::verify,
    io::{Disk, FaultyDisk},
};

use super::{
    repair::{donor, file, replica, segments},
    support::*,
    take_over::all_of,
};

const LEADER: Vote = Vote {
    term: Term::new(6),
    node: NodeId::new(2),
    committed: true,
};

/// Replaces a damaged log by another; how many bytes were copied.
fn replace(log: &Arc<PartitionLog>, other: &PartitionLog) -> Result<u64, RepairError> {
    let damaged = log.damaged().expect("the partition is damaged");
    let mut incoming = damaged.copy_of(all_of(other))?;
    let mut copied = 0;
    while let Some((next, up_to)) = incoming.wanted() {
        let read = other.copy(next, 1500, up_to).unwrap();
        incoming.take(&read.bytes)?;
        copied += read.bytes.len() as u64;
    }
    let members = Some((LogId::new(1, 0), Bytes::from_static(b"members")));
    let still = damaged.replace(&incoming, members, LEADER)?;
    assert!(still.is_none(), "{still:?}");
    Ok(copied)
}

/// Opens a replica with rot that was found.
fn open_rotten(disk: &FaultyDisk) -> (Store, Arc<PartitionLog>) {
    let (store, _) = try_open(disk).unwrap();
    let log = store.partition(key(0)).unwrap();
    assert!(values(&log).is_err() && log.damage().is_some());
    (store, log)
}

/// Another replica, which let go all records before the third segment.
fn trimmed(original: &FaultyDisk) -> (Store, Arc<PartitionLog>) {
    let (store, log) = donor(original);
    let third = file(original, 2, "log");
    let base = third.rsplit('/').next().unwrap()[..20].parse().unwrap();
    log.trim(Offset::new(base)).unwrap();
    (store, log)
}

fn assert_replaced(store: Store, disk: &FaultyDisk, other: &PartitionLog, what: &str) {
    let log = store.partition(key(0)).unwrap();
    assert!(log.damage().is_none(), "{what}");
    assert_eq!(values(&log).unwrap(), values(other).unwrap(), "{what}");
    let (here, there) = (log.state(), other.state());
    assert_eq!(
        (here.start_offset, here.end_offset, here.last),
        (there.start_offset, there.end_offset, there.last),
        "{what}"
    );
    append(&log, 7, b"more");
    store.checkpoint().unwrap();
    store.close().unwrap();
    let problems = verify(&(Arc::new(disk.clone()) as _)).unwrap().problems;
    assert!(problems.is_empty(), "{what}: {problems:?}");
    let store = open(disk);
    let log = store.partition(key(0)).unwrap();
    let expected = values(other).unwrap().len() + 1;
    assert_eq!(values(&log).unwrap().len(), expected, "{what}");
    store.close().unwrap();
}

#[test]
fn what_all_others_let_go_is_let_go_and_what_is_sound_is_not_copied() {
    let (original, _) = replica();
    let (_trimming, other) = trimmed(&original);
    let newest = segments(&original) - 1;
    let (begins, end) = {
        let base = file(&original, newest, "log");
        let base = base.rsplit('/').next().unwrap()[..20].parse().unwrap();
        (Offset::new(base), other.state().end_offset)
    };
    let unsealed = other.copy(begins, 1 << 20, end).unwrap().bytes.len() as u64;
    let flip = |numbers: &'static [usize], ending: &'static str| {
        move |disk: &FaultyDisk| {
            for number in numbers {
                disk.flip_bit(file(disk, *number, ending), 60, 1);
            }
        }
    };
    let remove = |disk: &FaultyDisk| {
        let log = file(disk, 0, "log");
        disk.remove_file(log.as_ref()).unwrap();
    };
    type Damage = Box<dyn Fn(&FaultyDisk)>;
    let damages: [(&str, Damage, u64); 4] = [
        ("gone elsewhere", Box::new(flip(&[0], "log")), 0),
        ("a seal", Box::new(flip(&[1], "seal")), 0),
        ("no file", Box::new(remove), 0),
        // The second of these is not gone: nobody has found it yet, and it is copied all the same.
        ("two", Box::new(flip(&[0, 3], "log")), 4096),
    ];
    for (what, damage, more) in damages {
        let disk = original.fork(3);
        damage(&disk);
        let (store, log) = open_rotten(&disk);
        let copied = replace(&log, &other).unwrap();
        assert!(
            copied >= unsealed && copied <= unsealed + more,
            "{what}: {copied} of {unsealed}"
        );
        drop(log);
        assert_replaced(store, &disk, &other, what);
    }
}

#[test]
fn a_crash_at_any_point_leaves_the_damaged_log_or_the_new_one() {
    let (original, _) = replica();
    let (_trimming, other) = trimmed(&original);
    for failing in 1.. {
        let disk = original.fork(failing);
        disk.flip_bit(file(&disk, 0, "log"), 300, 1);
        disk.flip_bit(file(&disk, 3, "log"), 300, 1);
        let (store, log) = open_rotten(&disk);
        disk.fail_sync_at(failing);
        let outcome = replace(&log, &other);
        drop((store, log));
        let crashed = disk.fork(failing + 1);
        crashed.crash();
        let (store, _) = try_open(&crashed).unwrap();
        let log = store.partition(key(0)).unwrap();
        let what = format!("sync {failing}");
        match values(&log) {
            Ok(_) => assert_eq!(log.state().start_offset, other.state().start_offset),
            Err(_) => drop(replace(&log, &other).unwrap()),
        }
        drop(log);
        assert_replaced(store, &crashed, &other, &what);
        if outcome.is_ok() {
            assert!(failing > 3);
            break;
        }
    }
}

#[test]
fn a_log_that_may_lack_what_this_one_acknowledged_does_not_replace_it() {
    let (original, _) = replica();
    let (_trimming, other) = trimmed(&original);
    let disk = original.fork(3);
    let (store, log) = {
        let store = open(&disk);
        let log = store.partition(key(0)).unwrap();
        for n in 0..3 {
            append(&log, 3, &value(100 + n, 500));
        }
        store.close().unwrap();
        disk.flip_bit(file(&disk, 0, "log"), 300, 1);
        open_rotten(&disk)
    };
    let behind = |refused: Result<u64, RepairError>| {
        assert!(
            matches!(refused, Err(RepairError::Behind { .. })),
            "{refused:?}"
        );
        assert!(log.damage().is_some());
    };
    behind(replace(&log, &other));
    append(&other, 3, &value(100, 500));
    behind(replace(&log, &other));
    // What is committed in a later term was begun by a leader that has all that this one's acknowledgement let be committed.
    append(&other, 4, &value(200, 500));
    replace(&log, &other).unwrap();
    drop(log);
    assert_replaced(store, &disk, &other, "a later term");
}

#[test]
fn a_replaced_log_keeps_what_its_replica_promised() {
    let (original, _) = replica();
    let (_trimming, other) = trimmed(&original);
    let of = |term, node, committed| Vote {
        term: Term::new(term),
        node: NodeId::new(node),
        committed,
    };
    for (promised, then) in [
        (of(5, 1, true), LEADER),
        (of(6, 3, false), LEADER),
        (LEADER, LEADER),
        (of(7, 3, false), of(7, 3, false)),
    ] {
        let disk = original.fork(3);
        let store = open(&disk);
        let (sender, done) = mpsc::channel();
        let told = Box::new(move |result| drop(sender.send(result)));
        let log = store.partition(key(0)).unwrap();
        log.save_vote(promised, told).unwrap();
        done.recv().unwrap().unwrap();
        disk.flip_bit(file(&disk, 0, "log"), 300, 1);
        assert!(values(&log).is_err());
        replace(&log, &other).unwrap();
        assert_eq!(log.vote(), Some(then));
        drop((log, store));
        let crashed = disk.fork(4);
        crashed.crash();
        let store = open(&crashed);
        let log = store.partition(key(0)).unwrap();
        assert_eq!(log.vote(), Some(then));
        assert_eq!(values(&log).unwrap(), values(&other).unwrap());
    }
}
