//! A compacted partition, and what was ever appended to it.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, mpsc},
};

use quipu_model::{
    CleanupPolicy, LogId, Offset, PartitionId, PartitionKey, ProducerEpoch, ProducerId, RaftIndex,
    RecordBatch, Sequence, Share, Term, TimestampMs, TopicConfig, TopicId,
    batch::{BatchBuilder, Compression, Record, split_batches},
};
use quipu_storage::{
    Control, ControlKind, LogEntry, PartitionLog, Payload, Store, StoreConfig, UnrecoveredStore,
    io::{Disk, FaultyDisk, ManualClock},
};

use super::hand::Hand;

pub(crate) const KEY: PartitionKey = PartitionKey {
    topic: TopicId::from_bytes([7; 16]),
    partition: PartitionId::new(3),
};
pub(crate) const START_MS: i64 = 1_000_000_000;
/// `delete.retention.ms`.
pub(crate) const RETENTION_MS: i64 = 10_000;

/// What stands for a record to append: a key, none where it has none; a value, none for a tombstone.
pub(crate) type New = (Option<u8>, Option<Vec<u8>>);

pub(crate) fn config() -> TopicConfig {
    TopicConfig {
        segment_bytes: 4096,
        index_interval_bytes: 512,
        cleanup: CleanupPolicy {
            delete: false,
            compact: true,
        },
        delete_retention_ms: RETENTION_MS as u64,
        min_cleanable_dirty_ratio: Share::from_millionths(0),
        ..TopicConfig::default()
    }
}

/// Records of one producer, as its batch.
pub(crate) fn batch(
    records: &[New],
    codec: Compression,
    (producer, sequence): (i64, i32),
    now: i64,
) -> RecordBatch {
    let mut builder = BatchBuilder::new(codec);
    for (at, (key, value)) in (0..).zip(records) {
        let key = key.map(|key| [b'k', key]);
        let key = key.as_ref().map(|key| &key[..]);
        builder.append(TimestampMs::new(now + at), key, value.as_deref(), &[]);
    }
    if producer >= 0 {
        let (id, epoch) = (ProducerId::new(producer), ProducerEpoch::new(0));
        builder.set_producer(id, epoch, Sequence::new(sequence));
    }
    builder.build().unwrap()
}

pub(crate) struct Subject {
    pub(crate) disk: FaultyDisk,
    /// What the store is given: the disk itself, or what stands before it.
    through: Arc<dyn Disk>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) hand: Hand,
    pub(crate) store: Option<Store>,
    pub(crate) log: Arc<PartitionLog>,
    pub(crate) config: TopicConfig,
    memory_bytes: usize,
    /// Every record ever appended and not taken back, by offset.
    pub(crate) appended: Vec<Record>,
    /// The newest batch of each producer: where it begins, and the sequence after it.
    pub(crate) producers: BTreeMap<i64, (Offset, i32)>,
    term: u64,
    /// How far Raft's log was purged for compaction.
    reached: Cell<Offset>,
}

impl Subject {
    pub(crate) fn new(seed: u64, memory_bytes: usize) -> Self {
        let disk = FaultyDisk::new(seed);
        Self::on(disk.clone(), Arc::new(disk), memory_bytes)
    }

    pub(crate) fn on(disk: FaultyDisk, through: Arc<dyn Disk>, memory_bytes: usize) -> Self {
        let clock = Arc::new(ManualClock::new(TimestampMs::new(START_MS)));
        let (config, hand) = (config(), Hand::default());
        let (store, log) = open(&through, &clock, &hand, memory_bytes);
        log.set_config(config.clone());
        Self {
            disk,
            through,
            clock,
            hand,
            store: Some(store),
            log,
            config,
            memory_bytes,
            appended: Vec::new(),
            producers: BTreeMap::new(),
            term: 1,
            reached: Cell::new(Offset::ZERO),
        }
    }

    pub(crate) fn now(&self) -> i64 {
        use quipu_storage::io::Clock as _;
        self.clock.now().get()
    }

    pub(crate) fn start(&self) -> Offset {
        self.log.state().start_offset
    }

    fn next_id(&self) -> LogId {
        let last = self.log.state().last;
        LogId {
            term: Term::new(self.term),
            index: last.map_or(RaftIndex::default(), |last| last.index.next()),
        }
    }

    /// Appends a batch, commits and applies it.
    pub(crate) fn append(&mut self, records: &[New], codec: Compression, producer: i64) {
        let sequence = self.producers.get(&producer).map_or(0, |(_, next)| *next);
        let batch = batch(records, codec, (producer, sequence), self.now());
        let base = self.log.state().end_offset;
        let stamped = batch.stamped(base, quipu_model::LeaderEpoch::new(1));
        let read = stamped.records().unwrap().map(Result::unwrap);
        self.appended.extend(read);
        let next = sequence + records.len() as i32;
        self.producers.insert(producer, (base, next));
        self.submit(Payload::Batch(batch));
    }

    /// A new leader's entry: it has an index, and no offset.
    pub(crate) fn control(&mut self) {
        self.term += 1;
        self.submit(Payload::Control(Control {
            kind: ControlKind::Blank,
            bytes: Default::default(),
        }));
    }

    fn submit(&mut self, payload: Payload) {
        let id = self.next_id();
        let (sender, done) = mpsc::channel();
        let report = Box::new(move |result| drop(sender.send(result)));
        let entries = vec![LogEntry { id, payload }];
        if self.log.append(entries, report).is_ok() && done.recv().is_ok_and(|done| done.is_ok()) {
            self.log.set_applied(id, None);
        }
    }

    /// What replication does before compaction: all is sealed, and Raft's log purged as far as may be compacted.
    pub(crate) fn purge(&self) {
        let (end, now) = (self.log.state().end_offset, TimestampMs::new(self.now()));
        if let Some((upto, next)) = self.log.compaction_point(end, now) {
            let _ = self.store.as_ref().unwrap().checkpoint();
            let _ = self.log.purge(upto, next);
            self.reached.set(next);
        }
    }

    /// Compacts all that can be.
    pub(crate) fn compact(&self) {
        self.purge();
        let _ = self.store.as_ref().unwrap().checkpoint();
        self.hand.finish();
    }

    pub(crate) fn reopen(&mut self) {
        self.store.take().unwrap().close().unwrap();
        self.open_again();
    }

    /// Loses power. All that was appended was acknowledged.
    pub(crate) fn crash(&mut self, seed: u64) {
        let crashed = self.disk.fork(seed);
        crashed.crash();
        self.store = None;
        self.disk = crashed;
        self.through = Arc::new(self.disk.clone());
        self.open_again();
    }

    fn open_again(&mut self) {
        self.hand = Hand::default();
        let (store, log) = open(&self.through, &self.clock, &self.hand, self.memory_bytes);
        log.set_config(self.config.clone());
        if let Some(last) = log.state().last {
            log.set_applied(last, None);
        }
        self.store = Some(store);
        self.log = log;
    }

    /// All records from an offset on, read in pieces.
    pub(crate) fn read(&self, from: Offset, max_bytes: usize) -> Vec<Record> {
        let end = self.log.state().end_offset;
        let (mut at, mut records) = (from, Vec::new());
        while at < end {
            let read = self.log.read(at, max_bytes, end).unwrap();
            assert!(read.next_offset > at, "a read makes progress");
            assert!(
                !read.bytes.is_empty(),
                "a reader is led on by what it reads"
            );
            for batch in split_batches(read.bytes) {
                let batch = batch.unwrap();
                assert!(batch.header().next_offset() > at);
                records.extend(batch.records().unwrap().map(Result::unwrap));
            }
            at = read.next_offset;
        }
        records.retain(|record| record.offset >= from);
        records
    }

    /// Checks all that is promised of what a reader sees now.
    pub(crate) fn check(&self) {
        self.check_read(&self.read(self.start(), 1 << 20));
        for (producer, (base, next)) in self.producers.iter().filter(|(id, _)| **id >= 0) {
            if *base < self.start() {
                continue;
            }
            let tail = self.log.producer_tail(ProducerId::new(*producer)).unwrap();
            let newest = tail.batches.last().unwrap();
            assert_eq!(
                (newest.base_offset, newest.last.plus(1).get()),
                (*base, *next)
            );
        }
    }

    pub(crate) fn check_read(&self, read: &[Record]) {
        let start = self.start();
        let appended = &self.appended[start.get() as usize..];
        for record in read {
            assert_eq!(
                record,
                &self.appended[record.offset.get() as usize],
                "as it was appended"
            );
        }
        assert!(read.is_sorted_by_key(|record| record.offset));
        assert_eq!(newest(read), newest(appended), "the same comes of it");
        let purged = self.log.state().last_purged.is_some();
        let mut kept = read.iter().peekable();
        for record in appended {
            if kept.next_if(|kept| kept.offset == record.offset).is_some() {
                continue;
            }
            let later = |other: &&Record| other.key == record.key && other.offset > record.offset;
            assert!(purged && record.key.is_some(), "{record:?} may not go");
            if appended.iter().find(later).is_none() {
                assert!(
                    record.value.is_none(),
                    "{record:?} is the newest of its key"
                );
                let age = self.now() - record.timestamp.get();
                // A batch's records are a millisecond apart.
                assert!(
                    age >= RETENTION_MS - 20,
                    "a tombstone went early: {record:?}"
                );
            }
        }
    }

    /// Checks that nothing is left that may go.
    pub(crate) fn check_compact(&self) {
        let end = self.reached.get();
        let read = self.read(self.start(), 1 << 20);
        let below: Vec<_> = read.iter().filter(|record| record.offset < end).collect();
        for record in below.iter().filter(|record| record.key.is_some()) {
            let later = |other: &&&Record| other.key == record.key && other.offset > record.offset;
            assert!(
                below.iter().find(later).is_none(),
                "{record:?} should be gone"
            );
        }
    }
}

/// What a reader makes of records: the newest value of each key, and all records without one.
fn newest(records: &[Record]) -> (BTreeMap<&[u8], &[u8]>, Vec<&Record>) {
    let mut values = BTreeMap::new();
    let mut keyless = Vec::new();
    for record in records {
        match (&record.key, &record.value) {
            (None, _) => keyless.push(record),
            (Some(key), Some(value)) => drop(values.insert(&key[..], &value[..])),
            (Some(key), None) => drop(values.remove(&key[..])),
        }
    }
    (values, keyless)
}

fn open(
    disk: &Arc<dyn Disk>,
    clock: &Arc<ManualClock>,
    hand: &Hand,
    memory_bytes: usize,
) -> (Store, Arc<PartitionLog>) {
    let store_config = StoreConfig {
        wal_file_bytes: 64 << 10,
        checkpoint_bytes: 1 << 30,
        wal_max_bytes: 2 << 30,
        scrub_bytes_per_second: 0,
        compaction_bytes_per_second: u64::MAX,
        compaction_memory_bytes: memory_bytes,
        ..StoreConfig::default()
    };
    let (store, report) =
        UnrecoveredStore::open(Arc::clone(disk), Arc::clone(clock) as _, store_config)
            .unwrap()
            .with_workers(Arc::new(hand.clone()))
            .recover()
            .unwrap();
    assert!(report.damaged.is_empty(), "{:?}", report.damaged);
    let log = store.create_partition(KEY, config()).unwrap();
    (store, log)
}
