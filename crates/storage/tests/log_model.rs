//! The log against a plain vector: whatever happens, what was acknowledged is there, byte for byte, and nothing else is.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
    mpsc,
};

use bytes::Bytes;
use proptest::prelude::*;
use quipu_model::{
    LogId, NodeId, Offset, PartitionId, PartitionKey, ProducerEpoch, ProducerId, RaftIndex,
    RecordBatch, Sequence, Term, TimestampMs, TopicConfig, TopicId, Vote,
    batch::{BatchBuilder, Compression, split_batches},
};
use quipu_storage::{
    Control, ControlKind, LogEntry, MAX_PRODUCER_BATCHES, PartitionLog, Payload, RetentionPolicy,
    Store, StoreConfig, UnrecoveredStore,
    io::{FaultyDisk, ManualClock},
};

const KEY: PartitionKey = PartitionKey {
    topic: TopicId::from_bytes([7; 16]),
    partition: PartitionId::new(3),
};

#[derive(Clone, Debug)]
enum Op {
    Append { records: u32, value_bytes: usize },
    AppendMany { batches: u32 },
    Control,
    Read { from: u64, max_bytes: usize },
    Truncate { back: u64 },
    Trim { segments: usize },
    Flush,
    Checkpoint,
    Reopen,
    Crash { seed: u64, flush_first: bool },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1..20u32, 0..300usize).prop_map(|(records, value_bytes)| Op::Append { records, value_bytes }),
        2 => (1..12u32).prop_map(|batches| Op::AppendMany { batches }),
        2 => Just(Op::Control),
        4 => (0..400u64, 0..5000usize).prop_map(|(from, max_bytes)| Op::Read { from, max_bytes }),
        2 => (0..8u64).prop_map(|back| Op::Truncate { back }),
        1 => (1..3usize).prop_map(|segments| Op::Trim { segments }),
        1 => Just(Op::Flush),
        2 => Just(Op::Checkpoint),
        1 => Just(Op::Reopen),
        2 => (any::<u64>(), any::<bool>()).prop_map(|(seed, flush_first)| Op::Crash { seed, flush_first }),
    ]
}

/// One entry that should be in the log: a batch's bytes as the log stamps them, or a control's.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    id: LogId,
    base: Offset,
    next: Offset,
    batch: Option<Bytes>,
    control: Option<Bytes>,
}

struct Subject {
    disk: FaultyDisk,
    clock: Arc<ManualClock>,
    store: Option<Store>,
    log: Arc<PartitionLog>,
    model: Vec<Expected>,
    start: Offset,
    term: u64,
    /// How many entries were acknowledged.
    acked: Arc<AtomicU64>,
    sequence: u32,
    salt: u64,
}

fn config() -> TopicConfig {
    TopicConfig {
        segment_bytes: 4096,
        index_interval_bytes: 512,
        ..TopicConfig::default()
    }
}

fn open(disk: &FaultyDisk, clock: &Arc<ManualClock>) -> (Store, Arc<PartitionLog>) {
    let store_config = StoreConfig {
        wal_file_bytes: 64 << 10,
        checkpoint_bytes: 48 << 10,
        wal_max_bytes: 1 << 30,
        ..StoreConfig::default()
    };
    let unrecovered =
        UnrecoveredStore::open(Arc::new(disk.clone()), Arc::clone(clock) as _, store_config)
            .unwrap();
    let (store, report) = unrecovered.recover().unwrap();
    assert!(report.damaged.is_empty(), "{:?}", report.damaged);
    let log = store.create_partition(KEY, config()).unwrap();
    (store, log)
}

impl Subject {
    fn new(seed: u64) -> Self {
        let disk = FaultyDisk::new(seed);
        let clock = Arc::new(ManualClock::new(TimestampMs::new(1_000_000)));
        let (store, log) = open(&disk, &clock);
        let acked = Arc::new(AtomicU64::new(0));
        let (model, start, store) = (vec![], Offset::ZERO, Some(store));
        Self {
            disk,
            clock,
            store,
            log,
            model,
            start,
            term: 1,
            acked,
            sequence: 0,
            salt: 0,
        }
    }

    fn end(&self) -> Offset {
        self.model.last().map_or(Offset::ZERO, |entry| entry.next)
    }

    fn next_id(&self) -> LogId {
        LogId::new(
            self.term,
            self.model
                .last()
                .map_or(0, |entry| entry.id.index.get() + 1),
        )
    }

    fn batch(&mut self, records: u32, value_bytes: usize) -> RecordBatch {
        self.salt += 1;
        let mut builder = BatchBuilder::new(Compression::None);
        for at in 0..records {
            let byte = |byte: usize| (byte as u64 * 31 + u64::from(at) + self.salt) as u8;
            let value: Vec<u8> = (0..value_bytes).map(byte).collect();
            builder.append(
                TimestampMs::new(1_000_000 + self.salt as i64),
                Some(b"key"),
                Some(&value),
                &[],
            );
        }
        builder.set_producer(
            ProducerId::new(9),
            ProducerEpoch::new(0),
            Sequence::new(self.sequence as i32),
        );
        self.sequence += records;
        builder.build().unwrap()
    }

    fn append(&mut self, batches: Vec<RecordBatch>) {
        let mut entries = Vec::new();
        for batch in batches {
            let (id, base) = (self.next_id(), self.end());
            let stamped = batch.stamped(base, id.term.leader_epoch());
            let next = stamped.header().next_offset();
            self.model.push(Expected {
                id,
                base,
                next,
                batch: Some(stamped.into_bytes()),
                control: None,
            });
            entries.push(LogEntry {
                id,
                payload: Payload::Batch(batch),
            });
        }
        self.submit(entries);
    }

    fn submit(&mut self, entries: Vec<LogEntry>) {
        let (last, acked) = (
            entries.last().unwrap().id.index.get(),
            Arc::clone(&self.acked),
        );
        let done = move |result: Result<(), _>| {
            if result.is_ok() {
                acked.fetch_max(last + 1, Ordering::SeqCst);
            }
        };
        self.log.append(entries, Box::new(done)).unwrap();
    }

    /// Waits until all that was submitted is durable.
    fn flush(&self) {
        let (sender, receiver) = mpsc::channel();
        let vote = Vote {
            term: Term::new(self.term),
            node: NodeId::new(1),
            committed: true,
        };
        self.log
            .save_vote(vote, Box::new(move |result| sender.send(result).unwrap()))
            .unwrap();
        receiver.recv().unwrap().unwrap();
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Append {
                records,
                value_bytes,
            } => {
                let batch = self.batch(records, value_bytes);
                let _room = self.log.reserve(batch.bytes().len() as u64);
                self.append(vec![batch]);
            }
            Op::AppendMany { batches } => {
                let batches = (0..batches).map(|at| self.batch(1 + at % 3, 40)).collect();
                self.append(batches);
            }
            Op::Control => self.control(),
            Op::Read { from, max_bytes } => {
                self.check_read(Offset::new(from % (self.end().get() + 1)), max_bytes)
            }
            Op::Truncate { back } => self.truncate(back),
            Op::Trim { segments } => self.trim(segments),
            Op::Flush => self.flush(),
            Op::Checkpoint => self.store.as_ref().unwrap().checkpoint().unwrap(),
            Op::Reopen => {
                self.store.take().unwrap().close().unwrap();
                self.reopen();
                self.check();
            }
            Op::Crash { seed, flush_first } => self.crash(seed, flush_first),
        }
    }

    fn control(&mut self) {
        self.term += 1;
        let (id, bytes) = (
            self.next_id(),
            Bytes::from(format!("control {}", self.salt)),
        );
        let (base, next) = (self.end(), self.end());
        self.model.push(Expected {
            id,
            base,
            next,
            batch: None,
            control: Some(bytes.clone()),
        });
        let payload = Payload::Control(Control {
            kind: ControlKind::Blank,
            bytes,
        });
        self.submit(vec![LogEntry { id, payload }]);
    }

    fn truncate(&mut self, back: u64) {
        let purged = self
            .log
            .state()
            .last_purged
            .map_or(0, |id| id.index.get() as usize + 1);
        // Raft never takes back what was trimmed: it was committed.
        let trimmed = self
            .model
            .iter()
            .filter(|entry| entry.next <= self.start)
            .count();
        let keep = self
            .model
            .len()
            .saturating_sub(back as usize)
            .max(purged)
            .max(trimmed);
        self.model.truncate(keep);
        self.log
            .truncate_after(self.model.last().map(|entry| entry.id))
            .unwrap();
        self.term += 1;
        self.settle();
    }

    fn trim(&mut self, segments: usize) {
        let bytes = self
            .log
            .state()
            .size_bytes
            .saturating_sub(segments as u64 * 4096);
        let policy = RetentionPolicy {
            max_bytes: Some(bytes.max(4096)),
            ..RetentionPolicy::default()
        };
        if let Some(point) = self
            .log
            .retention_point(policy, TimestampMs::new(2_000_000))
        {
            self.start = point;
            self.log.trim(point).unwrap();
            if let Some((purge, next)) = self.log.purge_point() {
                self.log.purge(purge, next).unwrap();
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        self.flush();
        self.acked.store(self.model.len() as u64, Ordering::SeqCst);
        self.sequence = self.expected_sequence();
    }

    fn crash(&mut self, seed: u64, flush_first: bool) {
        if flush_first {
            self.flush();
        }
        let acked = self.acked.load(Ordering::SeqCst) as usize;
        let crashed = self.disk.fork(seed);
        crashed.crash();
        self.store = None;
        self.disk = crashed;
        self.reopen();
        let kept = self
            .log
            .state()
            .last
            .map_or(0, |last| last.index.get() as usize + 1);
        assert!(
            kept >= acked,
            "{acked} entries were acknowledged, {kept} are there"
        );
        assert!(
            kept <= self.model.len(),
            "{kept} entries, only {} were ever appended",
            self.model.len()
        );
        self.model.truncate(kept);
        self.acked.store(kept as u64, Ordering::SeqCst);
        self.term += 1;
        self.sequence = self.expected_sequence();
        self.check();
    }

    fn reopen(&mut self) {
        let (store, log) = open(&self.disk, &self.clock);
        self.store = Some(store);
        self.log = log;
    }

    fn expected_sequence(&self) -> u32 {
        let last = self
            .model
            .iter()
            .rev()
            .find_map(|entry| entry.batch.clone());
        last.map_or(0, |bytes| {
            RecordBatch::from_bytes(bytes)
                .unwrap()
                .header()
                .last_sequence()
                .get() as u32
                + 1
        })
    }

    fn check(&self) {
        let state = self.log.state();
        assert_eq!(
            state.last,
            self.model
                .last()
                .map(|entry| entry.id)
                .or(state.last_purged)
        );
        assert_eq!(
            (state.start_offset, state.end_offset),
            (self.start, self.end())
        );
        self.check_read(self.start, usize::MAX >> 1);
        self.check_entries(state.last_purged.map_or(0, |id| id.index.get() + 1));
        // Those that were trimmed too.
        let batches = self.model.iter().filter(|entry| entry.batch.is_some());
        let bases: Vec<_> = batches.map(|entry| entry.base).collect();
        let newest = &bases[bases.len().saturating_sub(MAX_PRODUCER_BATCHES)..];
        let tail = self.log.producer_tail(ProducerId::new(9));
        let known = tail.map_or(Vec::new(), |tail| tail.batches);
        let known: Vec<_> = known.iter().map(|batch| batch.base_offset).collect();
        assert_eq!(known, newest, "what is known of the producer");
    }

    fn check_entries(&self, first: u64) {
        let (from, end) = (RaftIndex::new(first), self.next_id().index);
        let entries = self.log.entries(from, end, usize::MAX).unwrap();
        let expected = &self.model[first as usize..];
        assert_eq!(entries.len(), expected.len());
        for (entry, expected) in entries.into_iter().zip(expected) {
            assert_eq!(entry.id, expected.id);
            match entry.payload {
                Payload::Control(control) => assert_eq!(Some(control.bytes), expected.control),
                Payload::Batch(batch) | Payload::Stamped(batch) => {
                    assert_eq!(Some(batch.into_bytes()), expected.batch)
                }
            }
        }
        let infos = self.log.entry_infos(from, end).unwrap();
        assert!(
            infos
                .iter()
                .map(|info| info.id)
                .eq(expected.iter().map(|expected| expected.id))
        );
    }

    /// Reads from `from` to the end in steps, and compares every byte.
    fn check_read(&self, from: Offset, max_bytes: usize) {
        if from < self.start {
            assert!(self.log.read(from, max_bytes, self.end()).is_err());
            return;
        }
        let mut at = from;
        let mut got = Vec::new();
        while at < self.end() {
            let read = self.log.read(at, max_bytes, self.end()).unwrap();
            assert!(read.next_offset > at, "a read makes progress");
            got.extend(split_batches(read.bytes).map(|batch| batch.unwrap().into_bytes()));
            at = read.next_offset;
        }
        let later = self.model.iter().filter(|expected| expected.next > from);
        let wanted: Vec<_> = later
            .filter_map(|expected| expected.batch.clone())
            .collect();
        assert_eq!(got.len(), wanted.len());
        assert!(got == wanted, "bytes differ");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn the_log_agrees_with_its_model(seed in any::<u64>(), ops in proptest::collection::vec(op(), 1..60)) {
        let mut subject = Subject::new(seed);
        for op in ops {
            subject.run(op);
        }
        subject.check();
    }
}
