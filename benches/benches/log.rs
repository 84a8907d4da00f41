//! One partition's log on the real disk: durable appends, reads, lookups by offset and by time.
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot be set up has nothing to tell"
)]

use std::{
    hint::black_box,
    path::Path,
    sync::{Arc, mpsc},
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use quipu_benches::batches;
use quipu_model::{
    LogId, Offset, PartitionId, PartitionKey, RecordBatch, TimestampMs, TopicConfig, TopicId,
};
use quipu_storage::{
    LogEntry, PartitionLog, Payload, Store, StoreConfig, UnrecoveredStore,
    io::{RealDisk, SystemClock},
};

/// Records of 1 KiB in a batch.
const RECORDS: usize = 16;

fn open(directory: &Path) -> Store {
    let disk = Arc::new(RealDisk::new(directory).unwrap());
    let clock = Arc::new(SystemClock::default());
    let store = UnrecoveredStore::open(disk, clock, StoreConfig::default()).unwrap();
    store.recover().unwrap().0
}

/// Appends a group of entries behind the log's end and waits until they are durable.
fn append(log: &Arc<PartitionLog>, group: Vec<RecordBatch>) {
    let first = log.state().last.map_or(0, |id| id.index.get() + 1);
    let room: Vec<_> = group
        .iter()
        .map(|batch| reserve(log, batch.bytes().len() as u64))
        .collect();
    let entries = (first..)
        .zip(group)
        .map(|(index, batch)| LogEntry {
            id: LogId::new(1, index),
            payload: Payload::Batch(batch),
        })
        .collect();
    let (done, wait) = mpsc::channel();
    log.append(entries, Box::new(move |result| done.send(result).unwrap()))
        .unwrap();
    wait.recv().unwrap().unwrap();
    drop(room);
}

/// Waits while a checkpoint runs.
fn reserve(log: &Arc<PartitionLog>, bytes: u64) -> quipu_storage::Reservation {
    loop {
        match log.reserve(bytes) {
            Ok(room) => return room,
            Err(quipu_storage::ReserveError::Busy) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn log(c: &mut Criterion) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = open(directory.path());
    let key = PartitionKey {
        topic: TopicId::from_bytes([1; 16]),
        partition: PartitionId::new(0),
    };
    let log = store.create_partition(key, TopicConfig::default()).unwrap();
    let batch = RecordBatch::from_bytes(batches::plain(1024, RECORDS).unwrap()).unwrap();
    let batch_bytes = batch.bytes().len() as u64;

    let mut group = c.benchmark_group("log");
    for size in [1, 64] {
        group.throughput(Throughput::Bytes(batch_bytes * size as u64));
        group.bench_function(format!("append, durable, {size} × 16 KiB"), |b| {
            b.iter_batched(
                || vec![batch.clone(); size],
                |entries| append(&log, entries),
                BatchSize::PerIteration,
            );
        });
    }
    let end = log.state().end_offset;
    let mut number = 0_u64;
    // Strides that visit the whole log without a pattern.
    let mut place = || {
        number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
        Offset::new(number % end.get())
    };
    group.throughput(Throughput::Bytes(1 << 20));
    group.bench_function("read, 1 MiB", |b| {
        b.iter(|| black_box(log.read(place(), 1 << 20, end).unwrap()));
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("lookup by offset", |b| {
        b.iter(|| black_box(log.read(place(), 1, end).unwrap()));
    });
    group.bench_function("lookup by time", |b| {
        let timestamp = TimestampMs::new(1_700_000_000_000);
        b.iter(|| black_box(log.offset_for_timestamp(timestamp, end).unwrap()));
    });
    group.finish();
    store.close().unwrap();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = log
}
criterion_main!(benches);
