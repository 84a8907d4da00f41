//! Recovery of data directories in which something was changed: what is then served is what was written, or it is refused.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use anyhow::{Context, Result, bail, ensure};
use quipu_model::{
    LogId, Offset, PartitionId, PartitionKey, Position, TimestampMs, TopicConfig, TopicId,
    batch::Compression,
};
use quipu_storage::{
    LogEntry, PartitionLog, Payload, Store, StoreConfig, UnrecoveredStore,
    io::{Disk, FaultyDisk, ManualClock, OpenMode},
};

use crate::{
    Target,
    mutate::{Random, overwrite},
    samples::batch,
};

/// Which files are changed.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Part {
    /// The write-ahead log. What it held last may look as if it had never been written, so an earlier end is no error.
    Wal,
    /// Everything else: segments, indexes, raft-state. Nothing may lack.
    Segments,
}

pub(crate) struct Recovery {
    part: Part,
    disk: FaultyDisk,
    files: Vec<PathBuf>,
    /// Each partition's bytes, and the offset after them.
    written: Vec<(PartitionKey, Vec<u8>, Offset)>,
}

const WAL: &str = "wal";

impl Recovery {
    pub(crate) fn new(part: Part) -> Result<Self> {
        let disk = FaultyDisk::new(1);
        let store = open(&disk)?;
        let mut written = Vec::new();
        for number in 0..3 {
            let log = store.create_partition(key(number), config())?;
            append(&log, 0..=30)?;
            written.push(log);
        }
        // The last partition's newest entries stay in the write-ahead log only.
        store.checkpoint()?;
        append(&written[2], 31..=40)?;
        let written = written
            .iter()
            .map(|log| {
                let end = log.state().end_offset;
                Ok((log.key(), read_all(log, end)?, end))
            })
            .collect::<Result<_>>()?;
        let disk = disk.fork(2);
        let mut files = Vec::new();
        list(&disk, Path::new(""), &mut files)?;
        files.retain(|file| file.starts_with(WAL) == (part == Part::Wal));
        Ok(Self {
            part,
            disk,
            files,
            written,
        })
    }

    /// Changes up to 64 bytes of a file; gives their place.
    fn damage(&self, disk: &FaultyDisk, random: &mut Random) -> Result<String> {
        let path = &self.files[random.below(self.files.len())];
        let mut bytes = disk.file_bytes(path).context("a listed file")?;
        let content = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        if content == 0 {
            return Ok(format!("{} is empty", path.display()));
        }
        let at = random.below(content);
        let len = (1 + random.below(64)).min(content - at);
        overwrite(&mut bytes[at..at + len], random);
        let file = disk.open(path, OpenMode::Write)?;
        file.write_at(Position::new(at as u64), &[&bytes[at..at + len]])?;
        file.sync()?;
        Ok(format!("{} {at}..{}", path.display(), at + len))
    }

    fn check(&self, store: &Store) -> Result<()> {
        for (key, bytes, end) in &self.written {
            let Some(log) = store.partition(*key) else {
                ensure!(self.part == Part::Wal, "{key} is gone without a word");
                continue;
            };
            if log.damage().is_some() {
                continue;
            }
            let found_end = log.state().end_offset;
            ensure!(found_end <= *end, "{key} grew to {found_end}");
            ensure!(
                self.part == Part::Wal || found_end == *end,
                "{key} ends at {found_end}, not at {end}, without a word"
            );
            // A read that is refused is a word.
            if let Ok(found) = read_all(&log, found_end) {
                let same = bytes.iter().zip(&found).take_while(|(a, b)| a == b).count();
                ensure!(
                    same == found.len(),
                    "{key} serves other bytes at {same} of {}",
                    bytes.len()
                );
            }
        }
        Ok(())
    }
}

impl Target for Recovery {
    fn feed(&mut self, random: &mut Random) -> Result<()> {
        let disk = self.disk.fork(random.next());
        let places = (0..=random.below(3))
            .map(|_| self.damage(&disk, random))
            .collect::<Result<Vec<_>>>()?;
        match open(&disk) {
            Ok(store) => self
                .check(&store)
                .with_context(|| format!("changed: {}", places.join(", "))),
            // It was refused, with a reason.
            Err(_) => Ok(()),
        }
    }
}

fn open(disk: &FaultyDisk) -> Result<Store> {
    let clock = Arc::new(ManualClock::new(TimestampMs::new(1_700_000_000_000)));
    let config = StoreConfig {
        wal_file_bytes: 256 << 10,
        checkpoint_bytes: 1 << 20,
        wal_max_bytes: 4 << 20,
        ..StoreConfig::default()
    };
    let (store, _) = UnrecoveredStore::open(Arc::new(disk.clone()), clock, config)?.recover()?;
    Ok(store)
}

fn key(number: u8) -> PartitionKey {
    PartitionKey {
        topic: TopicId::from_bytes([number + 1; 16]),
        partition: PartitionId::new(number.into()),
    }
}

/// Segments of a few batches each.
fn config() -> TopicConfig {
    TopicConfig {
        segment_bytes: 8192,
        index_interval_bytes: 1024,
        ..TopicConfig::default()
    }
}

/// Appends a batch for each index, and waits until they are durable.
fn append(log: &Arc<PartitionLog>, indexes: std::ops::RangeInclusive<u64>) -> Result<()> {
    let entries = indexes
        .map(|index| {
            let batch = batch(Compression::None, 1 + (index * 7 % 20) as i64)?;
            Ok(LogEntry {
                id: LogId::new(1, index),
                payload: Payload::Batch(batch),
            })
        })
        .collect::<Result<_>>()?;
    let (done, wait) = mpsc::channel();
    log.append(
        entries,
        Box::new(move |result| {
            // The receiver waits until it has this.
            let _ = done.send(result);
        }),
    )?;
    wait.recv()??;
    Ok(())
}

fn read_all(log: &PartitionLog, end: Offset) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut offset = Offset::ZERO;
    while offset < end {
        let read = log.read(offset, 1 << 20, end)?;
        if read.next_offset <= offset {
            bail!("a read at {offset} goes nowhere");
        }
        bytes.extend_from_slice(&read.bytes);
        offset = read.next_offset;
    }
    Ok(bytes)
}

fn list(disk: &FaultyDisk, dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for name in disk.list(dir)? {
        let path = dir.join(name);
        if disk.file_bytes(&path).is_some() {
            found.push(path);
        } else {
            list(disk, &path, found)?;
        }
    }
    Ok(())
}
