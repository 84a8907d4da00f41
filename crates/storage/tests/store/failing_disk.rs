//! A disk on which one write or one sync fails: nothing that was acknowledged is lost, and nothing is acknowledged after.

use std::sync::mpsc;

use quipu_model::LogId;
use quipu_storage::{StorageFailure, Store, io::FaultyDisk};

use super::support::*;

const PARTITIONS: u32 = 2;

/// What became of each record, in the order in which they were submitted: `None` where the append was refused at once.
type Outcomes = Vec<Option<mpsc::Receiver<Result<(), StorageFailure>>>>;

/// Appends, seals, cuts and checkpoints, whatever fails.
fn work(store: &Store) -> Vec<Outcomes> {
    let mut outcomes = Vec::new();
    for partition in 0..PARTITIONS {
        let mut of_partition = Vec::new();
        if let Ok(log) = store.create_partition(key(partition), small_segments()) {
            for n in 0..14 {
                let submitted = submit(&log, 1, vec![batch(&value(n, 900))]);
                // One at a time, so that every run meets the same disk.
                let submitted = submitted.ok().inspect(|_| {
                    let (sender, flushed) = mpsc::channel();
                    let done = Box::new(move |result| drop(sender.send(result)));
                    if log.save_vote(Default::default(), done).is_ok() {
                        let _ = flushed.recv();
                    }
                });
                of_partition.push(submitted);
                if n % 5 == 4 {
                    let _ = store.checkpoint();
                }
            }
        }
        outcomes.push(of_partition);
    }
    outcomes
}

/// How many records of a partition were acknowledged. Those come first: nothing is acknowledged after a failure.
fn acknowledged(outcomes: Outcomes) -> usize {
    let answers: Vec<bool> = outcomes
        .into_iter()
        .map(|done| done.is_some_and(|done| matches!(done.recv(), Ok(Ok(())))))
        .collect();
    let count = answers.iter().take_while(|ok| **ok).count();
    assert!(
        !answers[count..].contains(&true),
        "acknowledged after a failure"
    );
    count
}

fn try_with(plan: impl FnOnce(&FaultyDisk)) -> Option<StorageFailure> {
    let disk = FaultyDisk::new(3);
    let store = open(&disk);
    plan(&disk);
    let outcomes = work(&store);
    let failure = store.failure();
    let acknowledged: Vec<usize> = outcomes.into_iter().map(acknowledged).collect();
    if failure.is_some() {
        assert!(store.checkpoint().is_err(), "a failure is final");
    }
    let fork = disk.fork(4);
    fork.crash();
    drop(store);
    let store = open(&fork);
    for (partition, acknowledged) in (0..).zip(acknowledged) {
        let Some(log) = store.partition(key(partition)) else {
            assert_eq!(acknowledged, 0);
            continue;
        };
        let found = values(&log).unwrap();
        assert!(
            found.len() >= acknowledged,
            "{acknowledged} acknowledged, {} found",
            found.len()
        );
        let expected: Vec<_> = (0..found.len() as u64).map(|n| value(n, 900)).collect();
        assert!(found == expected);
    }
    failure
}

#[test]
fn whichever_write_fails_nothing_acknowledged_is_lost() {
    let failures = (1..400)
        .step_by(3)
        .filter_map(|n| try_with(|disk| disk.fail_write_at(n)));
    assert!(failures.count() > 20);
}

#[test]
fn whichever_sync_fails_nothing_acknowledged_is_lost() {
    let failures = (1..200)
        .step_by(2)
        .filter_map(|n| try_with(|disk| disk.fail_sync_at(n)));
    assert!(failures.count() > 20);
}

#[test]
fn a_handle_that_outlives_its_store_writes_nothing_more() {
    let disk = FaultyDisk::new(1);
    let first = open(&disk);
    let log = first.create_partition(key(0), small_segments()).unwrap();
    append(&log, 1, b"kept");
    drop(first);
    let second = open(&disk);
    assert!(submit(&log, 1, vec![batch(b"late")]).is_err());
    assert!(log.truncate_after(Some(LogId::new(1, 0))).is_err());
    assert!(log.reserve(10).is_err());
    assert_eq!(
        values(&second.partition(key(0)).unwrap()).unwrap(),
        [b"kept"]
    );
}
