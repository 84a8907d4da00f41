//! Many partitions in one store: they come, go and come back, through crashes.

use std::{collections::HashMap, sync::Arc};

use quipu_model::Offset;
use quipu_storage::{PartitionLog, Store, io::FaultyDisk};

use super::support::*;

/// A generator of choices: the same seed gives the same run.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What a partition should hold.
#[derive(Default)]
struct Expected {
    /// The numbers of all records submitted since the partition was last created.
    records: Vec<u64>,
    acknowledged: usize,
    start: u64,
}

struct Run {
    disk: FaultyDisk,
    store: Store,
    choices: Choices,
    expected: HashMap<u32, Expected>,
    next: u64,
    term: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let disk = FaultyDisk::new(seed);
        let (store, expected) = (open(&disk), HashMap::new());
        let choices = Choices(seed);
        Self {
            disk,
            store,
            choices,
            expected,
            next: 0,
            term: 1,
        }
    }

    fn step(&mut self) {
        let partition = self.choices.below(5) as u32;
        match self.choices.below(24) {
            0..=13 => self.append(partition),
            14..=15 => self.settle(partition),
            16 => self.store.checkpoint().unwrap(),
            17 => self.trim(partition),
            18..=19 => {
                self.store.remove_partition(key(partition)).unwrap();
                self.expected.remove(&partition);
            }
            20 => self.truncate(partition),
            _ => self.crash(),
        }
    }

    fn log(&mut self, partition: u32) -> Arc<PartitionLog> {
        self.expected.entry(partition).or_default();
        self.store
            .create_partition(key(partition), small_segments())
            .unwrap()
    }

    fn append(&mut self, partition: u32) {
        let log = self.log(partition);
        let count = 1 + self.choices.below(3);
        let numbers: Vec<u64> = (self.next..self.next + count).collect();
        self.next += count;
        let batches = numbers.iter().map(|n| batch(&value(*n, 300))).collect();
        submit(&log, self.term, batches).unwrap();
        self.expected
            .get_mut(&partition)
            .unwrap()
            .records
            .extend(numbers);
    }

    fn settle(&mut self, partition: u32) {
        flush(&self.log(partition));
        let expected = self.expected.get_mut(&partition).unwrap();
        expected.acknowledged = expected.records.len();
    }

    fn trim(&mut self, partition: u32) {
        self.settle(partition);
        let log = self.log(partition);
        let end = self.expected[&partition].records.len() as u64;
        let start = self.choices.below(end + 1);
        log.trim(Offset::new(start)).unwrap();
        flush(&log);
        let expected = self.expected.get_mut(&partition).unwrap();
        expected.start = expected.start.max(start);
    }

    fn truncate(&mut self, partition: u32) {
        let log = self.log(partition);
        let expected = self.expected.get_mut(&partition).unwrap();
        let least = expected.start.max(1) as usize;
        if expected.records.len() > least {
            let keep = least + self.choices.below((expected.records.len() - least) as u64) as usize;
            expected.records.truncate(keep);
            let index = quipu_model::RaftIndex::new(keep as u64 - 1);
            let term = log.term_of(index).unwrap();
            log.truncate_after(Some(quipu_model::LogId { term, index }))
                .unwrap();
            self.term += 1;
            self.settle(partition);
        }
    }

    fn crash(&mut self) {
        let fork = self.disk.fork(self.choices.below(1 << 30));
        fork.crash();
        self.store = open(&fork);
        self.disk = fork;
        self.term += 1;
        for (partition, expected) in &mut self.expected {
            let Some(log) = self.store.partition(key(*partition)) else {
                assert_eq!(expected.acknowledged, 0, "partition {partition} is gone");
                *expected = Expected::default();
                continue;
            };
            let kept = log.state().end_offset.get() as usize;
            assert!(
                kept >= expected.acknowledged,
                "{kept} of {}",
                expected.acknowledged
            );
            expected.records.truncate(kept);
            expected.acknowledged = kept;
        }
        self.check();
    }

    fn check(&self) {
        for (partition, expected) in &self.expected {
            let Some(log) = self.store.partition(key(*partition)) else {
                continue;
            };
            assert_eq!(log.state().start_offset, Offset::new(expected.start));
            let records = &expected.records[expected.start as usize..];
            let wanted: Vec<_> = records.iter().map(|n| value(*n, 300)).collect();
            assert!(values(&log).unwrap() == wanted, "partition {partition}");
        }
        for key in self.store.partitions() {
            let log = self.store.partition(key).unwrap();
            let known = self.expected.contains_key(&key.partition.get());
            assert!(known || log.state().last.is_none(), "{key} came back");
        }
    }
}

#[test]
fn partitions_that_come_go_and_come_back_keep_what_they_acknowledged_through_crashes() {
    for seed in 0..60 {
        let mut run = Run::new(seed);
        for _ in 0..120 {
            run.step();
        }
        run.check();
    }
}

#[test]
fn a_partition_that_was_removed_can_be_created_again_at_once() {
    let disk = FaultyDisk::new(1);
    let store = open(&disk);
    for round in 0..20 {
        let log = store.create_partition(key(0), small_segments()).unwrap();
        assert_eq!(log.state().last, None, "{round}");
        append(&log, round + 1, &value(round, 500));
        if round % 3 == 0 {
            store.checkpoint().unwrap();
        }
        if round < 19 {
            store.remove_partition(key(0)).unwrap();
            assert!(submit(&log, round + 1, vec![batch(b"late")]).is_err());
        }
    }
    let fork = disk.fork(1);
    fork.crash();
    drop(store);
    let store = open(&fork);
    assert_eq!(
        values(&store.partition(key(0)).unwrap()).unwrap(),
        [value(19, 500)]
    );
}
