//! Writes the data directory that `tests/store/golden.rs` reads: `golden_store DIRECTORY`.

use std::{error::Error, path::Path, sync::Arc};

use bytes::Bytes;
use quipu_model::{
    LogId, NodeId, Offset, PartitionId, PartitionKey, Term, TimestampMs, TopicConfig, TopicId,
    Vote,
    batch::{BatchBuilder, Compression},
};
use quipu_storage::{
    Control, ControlKind, LogEntry, PartitionLog, Payload, StoreConfig, UnrecoveredStore,
    io::{Disk, ManualClock, RealDisk},
};

const NOW: TimestampMs = TimestampMs::new(1_000_000);

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args()
        .nth(1)
        .ok_or("say where: golden_store DIRECTORY")?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(Path::new(&directory))?);
    let config = StoreConfig {
        wal_file_bytes: 16 << 10,
        ..StoreConfig::default()
    };
    let clock = Arc::new(ManualClock::new(NOW));
    let (store, _) = UnrecoveredStore::open(Arc::clone(&disk), clock, config)?.recover()?;
    let topic = TopicConfig {
        segment_bytes: 4096,
        index_interval_bytes: 512,
        ..TopicConfig::default()
    };
    let log = store.create_partition(key(0), topic.clone())?;
    for n in 0..5 {
        append(&log, LogId::new(1, n), batch(&value(n, 900))?)?;
    }
    let membership = Control {
        kind: ControlKind::Membership,
        bytes: Bytes::from_static(b"one voter"),
    };
    append(&log, LogId::new(2, 5), Payload::Control(membership))?;
    append(
        &*store.create_partition(key(1), topic)?,
        LogId::new(1, 0),
        batch(b"alone")?,
    )?;
    store.checkpoint()?;
    log.trim(Offset::new(1))?;
    for n in 5..7 {
        append(&log, LogId::new(2, n + 1), batch(&value(n, 900))?)?;
    }
    let vote = Vote {
        term: Term::new(2),
        node: NodeId::new(1),
        committed: true,
    };
    let (sender, done) = std::sync::mpsc::channel();
    log.save_vote(vote, Box::new(move |result| drop(sender.send(result))))?;
    done.recv()??;
    drop(store);
    // Of no use but its size.
    disk.remove_file(Path::new("ballast"))?;
    Ok(())
}

fn key(partition: u32) -> PartitionKey {
    PartitionKey {
        topic: TopicId::from_bytes([7; 16]),
        partition: PartitionId::new(partition),
    }
}

fn batch(value: &[u8]) -> Result<Payload, Box<dyn Error>> {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.append(NOW, None, Some(value), &[]);
    Ok(Payload::Batch(builder.build()?))
}

fn value(number: u64, len: usize) -> Vec<u8> {
    let mut value = number.to_le_bytes().to_vec();
    value.extend((8..len).map(|at| (at as u64 * 31 + number) as u8));
    value
}

fn append(log: &PartitionLog, id: LogId, payload: Payload) -> Result<(), Box<dyn Error>> {
    let (sender, done) = std::sync::mpsc::channel();
    let report = Box::new(move |result| drop(sender.send(result)));
    log.append(vec![LogEntry { id, payload }], report)?;
    done.recv()??;
    Ok(())
}
