//! Cutting the log: truncation, trim and purge, and crashes in the middle of the checkpoints that follow.

use std::sync::mpsc;

use bytes::Bytes;
use quipu_model::{
    LogId, Offset, ProducerEpoch, ProducerId, RaftIndex, Sequence, TimestampMs, TopicConfig,
};
use quipu_storage::{
    AppendError, Control, ControlKind, LogEntry, PartitionLog, Payload, RetentionPolicy, Store,
    io::FaultyDisk,
};

use super::support::*;

/// Eight records in segments of about four each, acknowledged and checkpointed.
fn filled(disk: &FaultyDisk) -> (Store, std::sync::Arc<PartitionLog>) {
    let store = open(disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    for n in 0..8 {
        append(&log, 1, &value(n, 900));
    }
    store.checkpoint().unwrap();
    (store, log)
}

/// Runs `act` with the n-th sync or write failing, for every n, and opens what a crash then leaves: it must hold what
/// `expect` says.
fn at_every_step(act: impl Fn(&Store, &PartitionLog), expect: impl Fn(&PartitionLog)) {
    for seed in 0..3 {
        for step in 1.. {
            let disk = FaultyDisk::new(seed);
            let (store, log) = filled(&disk);
            act(&store, &log);
            let (before, syncs) = (disk.writes(), disk.syncs());
            let crashing = step % 2 == 0;
            if crashing {
                disk.fail_sync_at(step / 2);
            } else {
                disk.fail_write_at(step / 2 + 1);
            }
            let _ = store.checkpoint().and_then(|()| store.checkpoint());
            let done = disk.writes() - before < step / 2 && disk.syncs() - syncs < step / 2;
            let fork = disk.fork(seed * 1000 + step);
            fork.crash();
            drop(store);
            let store = open(&fork);
            let log = store.partition(key(0)).unwrap();
            expect(&log);
            if done {
                break;
            }
        }
    }
}

#[test]
fn a_crash_anywhere_in_the_checkpoints_after_a_truncation_loses_nothing() {
    at_every_step(
        |_, log| {
            // Into the sealed first segment.
            log.truncate_after(Some(LogId::new(1, 1))).unwrap();
            append(log, 2, &value(100, 900));
        },
        |log| {
            let expected: Vec<_> = [0, 1, 100].iter().map(|n| value(*n, 900)).collect();
            assert_eq!(values(log).unwrap(), expected);
        },
    );
}

#[test]
fn the_same_entries_may_come_back_after_a_truncation() {
    at_every_step(
        |_, log| {
            log.truncate_after(None).unwrap();
            // In a segment of the same name that ends earlier.
            append(log, 1, &value(0, 900));
            append(log, 1, &value(1, 900));
            log.roll_if_due(TimestampMs::new(i64::MAX)).unwrap();
            append(log, 1, &value(2, 900));
        },
        |log| {
            let expected: Vec<_> = (0..3).map(|n| value(n, 900)).collect();
            assert_eq!(values(log).unwrap(), expected);
        },
    );
}

#[test]
fn a_crash_anywhere_in_the_checkpoints_after_a_trim_and_a_purge_past_the_end_loses_nothing() {
    at_every_step(
        |_, log| {
            log.trim(Offset::new(5)).unwrap();
            log.set_applied(LogId::new(3, 50), Some(voters()));
            log.purge(LogId::new(3, 50), Offset::new(70)).unwrap();
            append(log, 3, &value(7, 20));
        },
        |log| {
            let state = log.state();
            assert_eq!(
                (state.start_offset, state.end_offset),
                (Offset::new(70), Offset::new(71))
            );
            assert_eq!(state.last, Some(LogId::new(3, 51)));
            assert_eq!(values(log).unwrap(), vec![value(7, 20)]);
            assert_eq!(
                log.newest_control(ControlKind::Membership, RaftIndex::new(50)),
                Some(voters())
            );
            assert_eq!(
                log.newest_control(ControlKind::Membership, RaftIndex::new(48)),
                None
            );
        },
    );
}

#[test]
fn what_a_purge_forgot_is_not_missed_where_a_start_checks_what_was_not_sealed() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let log = store.create_partition(key(0), small_segments()).unwrap();
    // A batch a term, each behind three entries that are not batches: whoever counts without those is soon in a wrong term.
    for term in 1..=12 {
        for nth in 0..3 {
            // Who votes is remembered, and with it all terms since.
            let kind = match (term, nth) {
                (1, 0) => ControlKind::Membership,
                _ => ControlKind::Blank,
            };
            append_control(&log, term, kind);
        }
        append(&log, term, &value(term, 900));
    }
    assert!(log.state().segments >= 3, "and none of them is sealed");
    // Into the last segment.
    let purged = LogId::new(10, 39);
    log.set_applied(purged, None);
    log.purge(purged, Offset::new(10)).unwrap();
    let all = values(&log).unwrap();
    assert_eq!(all.len(), 12);
    let left = |log: &PartitionLog| {
        let entries = log.entries(RaftIndex::new(40), RaftIndex::new(48), 1 << 20);
        let entries = entries.unwrap();
        entries.iter().map(|entry| entry.id).collect::<Vec<_>>()
    };
    let expected = left(&log);
    assert_eq!(expected.len(), 8);
    for checkpointed in [false, true] {
        if checkpointed {
            store.checkpoint().unwrap();
        }
        let fork = disk.fork(3);
        fork.crash();
        let store = open(&fork);
        let log = store.partition(key(0)).unwrap();
        assert_eq!(values(&log).unwrap(), all);
        assert_eq!(left(&log), expected);
    }
}

fn append_control(log: &PartitionLog, term: u64, kind: ControlKind) {
    let bytes = Bytes::new();
    let payload = Payload::Control(Control { kind, bytes });
    let id = next_id(log, term);
    let (tell, told) = mpsc::channel();
    let done = Box::new(move |result| drop(tell.send(result)));
    log.append(vec![LogEntry { id, payload }], done).unwrap();
    told.recv().unwrap().unwrap();
}

/// Who votes where the log goes on, with the entry that says so.
fn voters() -> (LogId, Bytes) {
    (LogId::new(2, 49), Bytes::from_static(b"voters"))
}

#[test]
fn an_entry_that_the_log_does_not_hold_is_nothing_to_cut_behind() {
    let disk = FaultyDisk::new(1);
    let (_store, log) = filled(&disk);
    for id in [LogId::new(1, 99), LogId::new(2, 3)] {
        let refused = log.truncate_after(Some(id));
        assert!(
            matches!(refused, Err(AppendError::Discontinuous { .. })),
            "{id}"
        );
    }
    assert_eq!(values(&log).unwrap().len(), 8);
}

#[test]
fn what_was_trimmed_reads_as_empty_until_it_is_known_again_to_be_committed() {
    let disk = FaultyDisk::new(1);
    let (_store, log) = filled(&disk);
    log.trim(Offset::new(6)).unwrap();
    let read = log.read(Offset::new(6), 100, Offset::new(2)).unwrap();
    assert!(read.bytes.is_empty());
    assert!(log.read(Offset::new(5), 100, Offset::new(8)).is_err());
    log.populate(Offset::new(6), usize::MAX, Offset::new(8))
        .unwrap();
}

#[test]
fn a_segment_is_closed_by_age_and_goes_by_retention() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    let config = TopicConfig {
        segment_ms: 1000,
        ..TopicConfig::default()
    };
    let log = store.create_partition(key(0), config).unwrap();
    let at = |ms: i64| TimestampMs::new(NOW.get() + ms);
    append(&log, 1, b"a");
    log.roll_if_due(at(999)).unwrap();
    append(&log, 1, b"b");
    assert_eq!(log.state().segments, 1);
    log.roll_if_due(at(1000)).unwrap();
    append(&log, 1, b"c");
    assert_eq!(log.state().segments, 2);
    let by = |policy| log.retention_point(policy, at(5000));
    let none = RetentionPolicy::default();
    assert_eq!(by(none), None);
    let age = |ms| RetentionPolicy {
        max_age_ms: Some(ms),
        ..none
    };
    assert_eq!((by(age(5000)), by(age(4999))), (None, Some(Offset::new(2))));
    let records = |most| RetentionPolicy {
        max_records: Some(most),
        ..none
    };
    assert_eq!(
        (by(records(2)), by(records(1))),
        (None, Some(Offset::new(2)))
    );
    let bytes = |most| RetentionPolicy {
        max_bytes: Some(most),
        ..none
    };
    let all = log.state().size_bytes;
    assert_eq!((by(bytes(all)), by(bytes(1))), (None, Some(Offset::new(2))));
}

/// What was acknowledged to a producer is known when retention deleted it: sent again, it must not be appended twice.
#[test]
fn what_a_producer_sent_is_not_forgotten_when_it_is_trimmed() {
    let tails = |log: &PartitionLog| [7, 8].map(|id| log.producer_tail(ProducerId::new(id)));
    let trims: [(u64, bool); 3] = [(5, false), (8, false), (8, true)];
    for (trimmed_to, rolled) in trims {
        let disk = FaultyDisk::new(1);
        let store = open(&disk);
        let log = store.create_partition(key(0), small_segments()).unwrap();
        for n in 0..8 {
            // One of them sends nothing that stays.
            let producer = ProducerId::new(if n < 3 { 7 } else { 8 });
            let batch = batch(&value(n, 900));
            let batch =
                batch.with_producer(producer, ProducerEpoch::new(0), Sequence::new(n as i32));
            let done = submit(&log, 1, vec![batch]).unwrap();
            done.recv().unwrap().unwrap();
        }
        let known = tails(&log);
        if rolled {
            log.roll_if_due(TimestampMs::new(i64::MAX)).unwrap();
        }
        store.checkpoint().unwrap();
        log.trim(Offset::new(trimmed_to)).unwrap();
        assert_eq!(log.state().segments == 0, rolled);
        flush(&log);
        let reopened = |checkpoints: u32| {
            (0..checkpoints).for_each(|_| store.checkpoint().unwrap());
            let fork = disk.fork(7);
            fork.crash();
            let store = open(&fork);
            let log = store.partition(key(0)).unwrap();
            assert_eq!(tails(&log), known, "{trimmed_to} {checkpoints}");
            // Nor when what is left is cut.
            append(&log, 2, b"mine alone");
            log.truncate_after(Some(LogId::new(1, 7))).unwrap();
            assert_eq!(tails(&log), known, "cut, {trimmed_to} {checkpoints}");
        };
        (0..3).for_each(reopened);
    }
}
