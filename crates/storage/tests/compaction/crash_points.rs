//! A compaction that is cut off between any two operations of its disk.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use quipu_model::{Position, batch::Compression};
use quipu_storage::io::{Disk, DiskFile, FaultyDisk, OpenMode};

use super::subject::{RETENTION_MS, Subject};

/// Keeps the disk as it was before each change.
#[derive(Clone, Debug)]
struct Recorded {
    disk: FaultyDisk,
    before: Arc<Mutex<Option<Vec<FaultyDisk>>>>,
}

impl Recorded {
    fn note(&self) {
        let mut before = self.before.lock().unwrap();
        if let Some(before) = before.as_mut() {
            before.push(self.disk.fork(before.len() as u64));
        }
    }

    fn noted<T>(&self, act: impl FnOnce(&FaultyDisk) -> T) -> T {
        self.note();
        act(&self.disk)
    }
}

impl Disk for Recorded {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = match mode {
            OpenMode::CreateNew => self.noted(|disk| disk.open(path, mode)),
            _ => self.disk.open(path, mode),
        };
        let recorded = self.clone();
        file.map(|file| Arc::new(RecordedFile { file, recorded }) as _)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.noted(|disk| disk.remove_file(path))
    }
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.remove_dir_all(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.noted(|disk| disk.rename(from, to))
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.noted(|disk| disk.sync_dir(dir))
    }
    fn sync_all(&self) -> io::Result<()> {
        self.noted(|disk| disk.sync_all())
    }
    fn exists(&self, path: &Path) -> bool {
        self.disk.exists(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn std::fmt::Debug + Send + Sync>> {
        self.disk.lock(path)
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}

#[derive(Debug)]
struct RecordedFile {
    file: Arc<dyn DiskFile>,
    recorded: Recorded,
}

impl DiskFile for RecordedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn write_at(&self, position: Position, slices: &[&[u8]]) -> io::Result<()> {
        self.recorded.note();
        self.file.write_at(position, slices)
    }
    fn read(&self, position: Position, len: usize) -> io::Result<Bytes> {
        self.file.read(position, len)
    }
    fn read_into(&self, position: Position, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_into(position, buffer)
    }
    fn populate(&self, position: Position, len: usize) -> io::Result<()> {
        self.file.populate(position, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.recorded.note();
        self.file.sync()
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.recorded.note();
        self.file.allocate(len)
    }
    fn start_writeback(&self, position: Position, len: u64) {
        self.file.start_writeback(position, len);
    }
    fn forget(&self, position: Position, len: u64) {
        self.file.forget(position, len);
    }
    fn release_from(&self, position: Position) {
        self.file.release_from(position);
    }
}

/// Records of few keys, some of them tombstones, in several segments and from several producers.
pub(crate) fn fill(subject: &mut Subject, rounds: u8) {
    // From then on a start knows how large segments are.
    subject.store.as_ref().unwrap().checkpoint().unwrap();
    for n in 0..rounds {
        let value =
            |at: u8| (!(n + at).is_multiple_of(5)).then(|| vec![n ^ at; 100 + usize::from(at)]);
        let records: Vec<_> = (0..8)
            .map(|at| (Some((n * 3 + at) % 10), value(at)))
            .collect();
        let codec = Compression::ALL[usize::from(n % 5)];
        subject.append(&records, codec, i64::from(n % 3));
        if n % 7 == 6 {
            subject.control();
        }
    }
}

/// Two compactions, between which time passes, and the checkpoints behind them. Nothing is appended, so that every moment has the
/// same records.
pub(crate) fn compact_twice(subject: &mut Subject) {
    for _ in 0..2 {
        subject.compact();
        let _ = subject.store.as_ref().unwrap().checkpoint();
        let wait = std::time::Duration::from_millis(RETENTION_MS as u64);
        subject.clock.advance(wait);
    }
}

#[test]
fn whenever_the_power_goes_what_is_read_comes_to_the_same() {
    let disk = FaultyDisk::new(1);
    let before = Arc::new(Mutex::new(None));
    let recorded = Recorded {
        disk: disk.clone(),
        before: Arc::clone(&before),
    };
    let mut subject = Subject::on(disk, Arc::new(recorded), 1 << 20);
    fill(&mut subject, 40);
    *before.lock().unwrap() = Some(Vec::new());
    compact_twice(&mut subject);
    let moments = before.lock().unwrap().take().unwrap();
    assert!(moments.len() > 60, "{} moments", moments.len());
    subject.check();
    for (seed, moment) in (0..).zip(moments) {
        subject.disk = moment;
        subject.crash(seed);
        subject.check();
        subject.compact();
        subject.check();
        subject.check_compact();
    }
}

fn with_fault(plan: impl FnOnce(&FaultyDisk)) -> bool {
    let mut subject = Subject::new(2, 1 << 20);
    fill(&mut subject, 40);
    plan(&subject.disk);
    compact_twice(&mut subject);
    let failed = subject.store.as_ref().unwrap().failure().is_some();
    subject.crash(3);
    subject.check();
    compact_twice(&mut subject);
    subject.check();
    subject.check_compact();
    failed
}

#[test]
fn whichever_write_fails_nothing_is_lost() {
    let failed = (1..120)
        .step_by(2)
        .filter(|n| with_fault(|disk| disk.fail_write_at(*n)));
    assert!(failed.count() > 10);
}

#[test]
fn whichever_sync_fails_nothing_is_lost() {
    let failed = (1..100)
        .step_by(3)
        .filter(|n| with_fault(|disk| disk.fail_sync_at(*n)));
    assert!(failed.count() > 10);
}
