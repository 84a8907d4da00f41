//! Compaction of a partition with 2.5 million distinct keys on the real disk: bytes a second of processor time, and peak memory.
//! `cargo bench -p quipu-benches --bench compaction -- [KEYS] [VALUE_BYTES]`
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot be set up has nothing to tell"
)]

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use quipu_model::{
    CleanupPolicy, LogId, Offset, PartitionId, PartitionKey, RecordBatch, TimestampMs, TopicConfig,
    TopicId,
    batch::{BatchBuilder, Compression, split_batches},
};
use quipu_storage::{
    LogEntry, PartitionLog, Payload, ReserveError, Store, StoreConfig, UnrecoveredStore,
    io::{Clock as _, RealDisk, Rest, SystemClock, Threads, Worker, Workers, Working},
};

/// How often each key is written: half of all that is read stays.
const ROUNDS: u64 = 2;
const RECORDS: u64 = 500;

/// Threads for all workers but the compactor, which is told when to take a step.
#[derive(Clone, Default)]
struct Hand(Arc<Mutex<Option<Box<dyn Worker>>>>);

impl std::fmt::Debug for Hand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hand")
    }
}

impl Workers for Hand {
    fn start(&self, name: &'static str, worker: Box<dyn Worker>) -> io::Result<Arc<dyn Working>> {
        if name != "quipu-compactor" {
            return Threads.start(name, worker);
        }
        *self.0.lock().unwrap() = Some(worker);
        Ok(Arc::new(self.clone()))
    }
}

impl Working for Hand {
    fn wake(&self) {}
    fn join(&self) {
        drop(self.0.lock().unwrap().take());
    }
}

fn open(directory: &Path, hand: &Hand) -> Store {
    let disk = Arc::new(RealDisk::new(directory).unwrap());
    let config = StoreConfig {
        compaction_bytes_per_second: u64::MAX,
        ..StoreConfig::default()
    };
    let store = UnrecoveredStore::open(disk, Arc::new(SystemClock::default()), config).unwrap();
    store
        .with_workers(Arc::new(hand.clone()))
        .recover()
        .unwrap()
        .0
}

/// A batch of the next keys; neighbours in the log are no neighbours in order.
fn batch(first: u64, keys: u64, value: &[u8]) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    for n in first..first + RECORDS {
        let key = (n % keys).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let key = format!("{key:016x}");
        builder.append(
            TimestampMs::new(n as i64),
            Some(key.as_bytes()),
            Some(value),
            &[],
        );
    }
    builder.build().unwrap()
}

fn fill(log: &Arc<PartitionLog>, keys: u64, value: &[u8]) {
    let mut waiting = mpsc::channel().1;
    for n in 0..keys * ROUNDS / RECORDS {
        let batch = batch(n * RECORDS, keys, value);
        let room = loop {
            match log.reserve(batch.bytes().len() as u64) {
                Ok(room) => break room,
                Err(ReserveError::Busy) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        let entry = LogEntry {
            id: LogId::new(1, n),
            payload: Payload::Batch(batch),
        };
        let (done, wait) = mpsc::channel();
        log.append(
            vec![entry],
            Box::new(move |result| done.send(result).unwrap_or(())),
        )
        .unwrap();
        drop(room);
        waiting = wait;
    }
    waiting.recv().unwrap().unwrap();
}

/// Bytes of this process's own memory, file maps excepted.
fn own_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() * 1024
}

/// Processor time of this thread, to a hundredth of a second.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn count(log: &PartitionLog) -> u64 {
    let end = log.state().end_offset;
    let (mut at, mut records) = (Offset::ZERO, 0);
    while at < end {
        let read = log.read(at, 1 << 20, end).unwrap();
        for batch in split_batches(read.bytes) {
            records += u64::from(batch.unwrap().header().record_count);
        }
        at = read.next_offset;
    }
    records
}

fn main() {
    let numbers: Vec<u64> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let keys = numbers.first().copied().unwrap_or(2_500_000) / RECORDS * RECORDS;
    let value = vec![b'v'; numbers.get(1).copied().unwrap_or(200) as usize];
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let hand = Hand::default();
    let store = open(directory.path(), &hand);
    let key = PartitionKey {
        topic: TopicId::from_bytes([1; 16]),
        partition: PartitionId::new(0),
    };
    let config = TopicConfig {
        cleanup: CleanupPolicy {
            delete: false,
            compact: true,
        },
        segment_bytes: 128 << 20,
        ..TopicConfig::default()
    };
    let log = store.create_partition(key, config).unwrap();
    fill(&log, keys, &value);
    let now = SystemClock::default().now();
    let far = TimestampMs::new(now.get() + TopicConfig::default().segment_ms as i64 + 1);
    log.roll_if_due(far).unwrap();
    let last = log.state().last.unwrap();
    log.set_applied(last, None);
    let end = log.state().end_offset;
    let (upto, next) = log.compaction_point(end, now).unwrap();
    store.checkpoint().unwrap();
    log.purge(upto, next).unwrap();
    let bytes = log.state().size_bytes;
    compact(&hand, bytes);
    let left = count(&log);
    println!(
        "records: {} before, {left} after, of {keys} keys",
        keys * ROUNDS
    );
    store.close().unwrap();
}

fn compact(hand: &Hand, bytes: u64) {
    let before = own_bytes();
    let clock = SystemClock::default();
    let (started, worked) = (clock.monotonic(), processor_time());
    let mut peak = 0;
    let mut slot = hand.0.lock().unwrap();
    let compactor = slot.as_mut().unwrap();
    while compactor.step(false) == Rest::No {
        peak = peak.max(own_bytes());
    }
    let (took, worked) = (clock.monotonic() - started, processor_time() - worked);
    let mb = bytes as f64 / 1e6;
    println!(
        "compaction: {mb:.0} MB in {:.2} s, {:.0} MB/s; {:.2} s of processor time, {:.0} MB/s a core; peak memory {:.1} MB over {:.1} MB before",
        took.as_secs_f64(),
        mb / took.as_secs_f64(),
        worked.as_secs_f64(),
        mb / worked.as_secs_f64(),
        (peak.saturating_sub(before)) as f64 / 1e6,
        before as f64 / 1e6,
    );
}
