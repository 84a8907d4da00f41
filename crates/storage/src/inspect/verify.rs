//! A whole directory, checked.

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use quipu_model::{Offset, PartitionKey};

use super::{batches, damaged, io_error, read};
use crate::{
    OpenError,
    io::{Disk, OpenMode, SystemClock, read_whole},
    log::{BLOCK_BYTES, PartitionState, Seal, SegmentState, read_mark, sound_index},
    store::{LOCK_FILE, partition_dir, read_format, read_peers, read_raft_state},
    wal::{Lsn, RecordKind, ReplayedRecord, UnrecoveredWal, WalConfig},
};

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub position: u64,
    /// What was found.
    pub detail: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, position, detail) = (self.path.display(), self.position, &self.detail);
        write!(f, "{path} at position {position}: {detail}")
    }
}

/// What was checked, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Partitions that the last checkpoint names.
    pub partitions: usize,
    /// Their segments.
    pub segments: usize,
    /// The batches in those.
    pub batches: u64,
    /// The bytes of those.
    pub bytes: u64,
    /// Records of the write-ahead log behind the checkpoint.
    pub wal_records: u64,
    /// Index files that are missing or not what their segments' seals say: none is synced, so that a power loss may leave them
    /// so. They hold nothing that the segments do not, and are made again from those when they are needed.
    pub stale_indexes: Vec<PathBuf>,
    /// All that is wrong; empty where nothing is.
    pub problems: Vec<Problem>,
}

/// Checks every file of a data directory that says something: changes none.
///
/// # Errors
/// Where the directory is in use. Everything else is in the report.
pub fn verify(disk: &Arc<dyn Disk>) -> Result<VerifyReport, OpenError> {
    let _lock = lock(&**disk)?;
    let mut report = VerifyReport::default();
    report.note(read_format(&**disk));
    report.note(read_peers(&**disk));
    let (after, states) = report.note(read_raft_state(&**disk)).unwrap_or_default();
    let mut cuts = Cuts::default();
    let wal = check_wal(disk, after, &mut cuts);
    if let Some(records) = report.note(wal) {
        report.wal_records = records;
    }
    report.partitions = states.len();
    for state in &states {
        report.check_partition(&**disk, state, &cuts);
    }
    Ok(report)
}

fn lock(disk: &dyn Disk) -> Result<Option<Box<dyn fmt::Debug + Send + Sync>>, OpenError> {
    let path = Path::new(LOCK_FILE);
    if !disk.exists(path) {
        return Ok(None);
    }
    disk.lock(path)
        .map(Some)
        .map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::InUse,
            _ => io_error(path, error),
        })
}

/// What the write-ahead log takes back of what the checkpoint names: a start does not look at it, and other bytes may stand
/// in its place.
#[derive(Default)]
struct Cuts(HashMap<PartitionKey, (Offset, Option<Offset>)>);

impl Cuts {
    fn note(&mut self, record: &ReplayedRecord) {
        let (start, end) = self.0.entry(record.key).or_default();
        match record.kind {
            RecordKind::Trim => *start = (*start).max(record.base_offset),
            RecordKind::Truncate => {
                *end = Some(end.map_or(record.base_offset, |end| end.min(record.base_offset)));
            }
            RecordKind::Removed | RecordKind::Install => *end = Some(Offset::ZERO),
            _ => {}
        }
    }

    /// Whether all of a segment stands.
    fn keep(&self, key: PartitionKey, segment: &SegmentState) -> bool {
        let (start, end) = self.0.get(&key).copied().unwrap_or_default();
        segment.next_offset > start && end.is_none_or(|end| segment.next_offset <= end)
    }
}

fn check_wal(disk: &Arc<dyn Disk>, after: Lsn, cuts: &mut Cuts) -> Result<u64, OpenError> {
    let clock = Arc::new(SystemClock::default());
    let config = WalConfig {
        file_bytes: 0,
        max_bytes: 0,
    };
    let wal = UnrecoveredWal::open(Arc::clone(disk), clock, config, OpenMode::Read)?;
    let report = wal.verify(after, &mut |record| {
        cuts.note(&record);
        Ok(())
    })?;
    Ok(report.records)
}

impl VerifyReport {
    fn problem(&mut self, path: PathBuf, position: u64, detail: String) {
        self.problems.push(Problem {
            path,
            position,
            detail,
        });
    }

    /// Takes a problem up where there is one.
    fn note<T>(&mut self, outcome: Result<T, OpenError>) -> Option<T> {
        let error = match outcome {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let whole = error.to_string();
        match error {
            OpenError::Damaged {
                path,
                position,
                detail,
            } => self.problem(path, position, detail),
            OpenError::NewerFormat { path, .. } => self.problem(path, 0, whole),
            OpenError::Io { path, error, .. } => self.problem(path, 0, error.to_string()),
            OpenError::InUse => self.problem(LOCK_FILE.into(), 0, whole),
        }
        None
    }

    fn check_partition(&mut self, disk: &dyn Disk, state: &PartitionState, cuts: &Cuts) {
        let dir = partition_dir(state.key);
        let marked = read_mark(disk, &dir, state.key).map_err(|error| io_error(&dir, error));
        if let Some(mark) = self.note(marked).flatten() {
            let detail = format!(
                "it was found damaged, and is not repaired yet: {}",
                mark.detail
            );
            self.problem(mark.path, mark.position, detail);
        }
        let mut due = None;
        for segment in &state.segments {
            let at = due.unwrap_or(segment.base);
            if segment.base != at {
                let detail = format!(
                    "the segment with offsets {at} to {} is missing",
                    segment.base
                );
                self.problem(dir.clone(), 0, detail);
            }
            due = Some(segment.next_offset);
            if cuts.keep(state.key, segment) {
                self.segments += 1;
                let checked = self.check_segment(disk, &dir, segment);
                self.note(checked);
            }
        }
        let end = due.unwrap_or(state.start_offset);
        if end != state.end_offset {
            let detail = format!("its segments end at {end}, the log at {}", state.end_offset);
            self.problem(dir, 0, detail);
        }
    }

    fn check_segment(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        segment: &SegmentState,
    ) -> Result<(), OpenError> {
        let path = segment.path(dir, "log");
        if segment.sealed {
            let seal = check_seal(disk, &path, segment)?;
            if sound_index(disk, &path, &seal).is_none() {
                self.stale_indexes.push(path.with_extension("index"));
            }
        }
        let (mut count, mut first, mut next) = (0, None, segment.base);
        batches(disk, &path, Some(segment.bytes), |_, header| {
            first.get_or_insert(header.base_offset);
            next = header.next_offset();
            count += 1;
        })?;
        self.batches += count;
        self.bytes += segment.bytes;
        // Compaction takes batches away, but never the one that reaches the end.
        let first = match segment.generation {
            0 => first.unwrap_or(segment.base),
            _ => segment.base,
        };
        if (first, next) == (segment.base, segment.next_offset) {
            return Ok(());
        }
        let (base, due) = (segment.base, segment.next_offset);
        let detail = format!("its batches end at {next}, and should go from {base} to {due}");
        Err(damaged(&path, 0, detail))
    }
}

/// Checks a sealed segment's seal and blocks.
fn check_seal(disk: &dyn Disk, log: &Path, segment: &SegmentState) -> Result<Seal, OpenError> {
    let whole = |path: &Path| read_whole(disk, path).map_err(|error| io_error(path, error));
    let path = log.with_extension("seal");
    let seal = Seal::decode(&whole(&path)?).map_err(|detail| damaged(&path, 0, detail))?;
    let named = (segment.base, segment.next_offset, segment.bytes);
    if (seal.base, seal.next_offset, seal.data_bytes) != named {
        return Err(damaged(&path, 0, "the seal is another segment's"));
    }
    let file = disk
        .open(log, OpenMode::Read)
        .map_err(|error| io_error(log, error))?;
    let mut position = 0;
    while position < seal.data_bytes {
        let len = BLOCK_BYTES.min(seal.data_bytes - position);
        seal.check(position, &read(&*file, log, position, len)?)
            .map_err(|at| damaged(log, at.get(), "a block does not match its checksum"))?;
        position += len;
    }
    Ok(seal)
}
