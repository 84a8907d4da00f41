//! What the tests have in common: small stores, and batches that tell who they are.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use quipu_model::{
    LogId, NodeId, Offset, PartitionId, PartitionKey, RaftIndex, RecordBatch, Term, TimestampMs,
    TopicConfig, TopicId, Vote,
    batch::{BatchBuilder, Compression, split_batches},
};
use quipu_storage::{
    AppendError, LogEntry, OpenError, PartitionLog, Payload, RecoveryReport, StorageFailure, Store,
    StoreConfig, UnrecoveredStore,
    io::{FaultyDisk, ManualClock},
};

pub(crate) const NOW: TimestampMs = TimestampMs::new(1_000_000);

pub(crate) fn key(partition: u32) -> PartitionKey {
    PartitionKey {
        topic: TopicId::from_bytes([7; 16]),
        partition: PartitionId::new(partition),
    }
}

/// The directory of [`key`].
pub(crate) fn dir(partition: u32) -> String {
    format!("topics/{}/{partition}", key(partition).topic)
}

pub(crate) fn small_segments() -> TopicConfig {
    TopicConfig {
        segment_bytes: 4096,
        index_interval_bytes: 512,
        ..TopicConfig::default()
    }
}

pub(crate) fn small_store() -> StoreConfig {
    StoreConfig {
        wal_file_bytes: 16 << 10,
        checkpoint_bytes: 1 << 20,
        wal_max_bytes: 1 << 30,
        scrub_bytes_per_second: 0,
        ..StoreConfig::default()
    }
}

pub(crate) fn try_open(disk: &FaultyDisk) -> Result<(Store, RecoveryReport), OpenError> {
    let clock = Arc::new(ManualClock::new(NOW));
    UnrecoveredStore::open(Arc::new(disk.clone()), clock, small_store())?.recover()
}

/// Opens a store in which nothing is damaged.
pub(crate) fn open(disk: &FaultyDisk) -> Store {
    let (store, report) = try_open(disk).unwrap();
    assert!(report.damaged.is_empty(), "{:?}", report.damaged);
    store
}

/// A batch of one record.
pub(crate) fn batch(value: &[u8]) -> RecordBatch {
    stamped_at(value, NOW)
}

pub(crate) fn stamped_at(value: &[u8], timestamp: TimestampMs) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.append(timestamp, None, Some(value), &[]);
    builder.build().unwrap()
}

/// Values of `len` bytes that differ.
pub(crate) fn value(number: u64, len: usize) -> Vec<u8> {
    let mut value = number.to_le_bytes().to_vec();
    value.extend((8..len).map(|at| (at as u64 * 31 + number) as u8));
    value
}

pub(crate) fn next_id(log: &PartitionLog, term: u64) -> LogId {
    LogId {
        term: Term::new(term),
        index: log
            .state()
            .last
            .map_or(RaftIndex::default(), |last| last.index.next()),
    }
}

/// Appends batches in one go; tells when they are durable.
pub(crate) fn submit(
    log: &PartitionLog,
    term: u64,
    batches: Vec<RecordBatch>,
) -> Result<mpsc::Receiver<Result<(), StorageFailure>>, AppendError> {
    let mut id = next_id(log, term);
    let mut entries = Vec::new();
    for batch in batches {
        let payload = Payload::Batch(batch);
        entries.push(LogEntry { id, payload });
        id.index = id.index.next();
    }
    let (sender, done) = mpsc::channel();
    let report = move |result| {
        let _ = sender.send(result);
    };
    log.append(entries, Box::new(report)).map(|()| done)
}

/// Appends one record and waits until it is acknowledged.
pub(crate) fn append(log: &PartitionLog, term: u64, value: &[u8]) {
    let done = submit(log, term, vec![batch(value)]).unwrap();
    done.recv().unwrap().unwrap();
}

/// Waits until all that was submitted before is durable.
pub(crate) fn flush(log: &PartitionLog) {
    let vote = Vote {
        term: Term::new(1),
        node: NodeId::new(1),
        committed: true,
    };
    let (sender, done) = mpsc::channel();
    log.save_vote(vote, Box::new(move |result| sender.send(result).unwrap()))
        .unwrap();
    done.recv().unwrap().unwrap();
}

/// The values of all records from the log's start on.
pub(crate) fn values(log: &PartitionLog) -> Result<Vec<Vec<u8>>, quipu_storage::ReadError> {
    let state = log.state();
    let mut at = state.start_offset;
    let mut found = Vec::new();
    while at < state.end_offset {
        let read = log.read(at, 1 << 20, state.end_offset)?;
        assert!(read.next_offset > at, "a read makes progress");
        found.extend(values_of(read.bytes, at));
        at = read.next_offset;
    }
    Ok(found)
}

/// The values of a run of batches, whose offsets must begin at `first`.
fn values_of(bytes: Bytes, first: Offset) -> Vec<Vec<u8>> {
    let mut due = first;
    let mut values = Vec::new();
    for batch in split_batches(bytes) {
        let batch = batch.unwrap();
        assert_eq!(batch.header().base_offset, due);
        due = batch.header().next_offset();
        for record in batch.records().unwrap() {
            values.push(record.unwrap().value.unwrap().to_vec());
        }
    }
    values
}

/// Waits for what another thread does shortly.
#[allow(
    clippy::disallowed_methods,
    reason = "between two looks at what another thread has done there is nothing to wait on"
)]
pub(crate) fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it did not come about within ten seconds");
}
