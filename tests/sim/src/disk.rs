//! A node's disk: it can lose its power between any two operations, and lie where a mutant wants it to.

use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use quipu_model::Position;
use quipu_storage::io::{Disk, DiskFile, FaultyDisk, OpenMode};
use tokio::sync::Notify;

use crate::mutants::Mutant;

/// What one life of a node sees of its disk. Once that life is over every call is an error.
#[derive(Clone, Debug)]
pub(crate) struct NodeDisk {
    platter: FaultyDisk,
    power: Arc<Power>,
}

#[derive(Debug)]
struct Power {
    lost: AtomicBool,
    heard: Notify,
    operations: AtomicU64,
    /// The operation before which the power goes; 0 for none.
    goes_at: AtomicU64,
    /// What the disk holds after it.
    left: Mutex<Option<FaultyDisk>>,
    seed: u64,
    /// Syncs are answered and not done.
    lies: AtomicBool,
    mutant: Option<Mutant>,
}

impl NodeDisk {
    pub(crate) fn new(platter: FaultyDisk, seed: u64, mutant: Option<Mutant>) -> Self {
        let power = Arc::new(Power {
            lost: AtomicBool::new(false),
            heard: Notify::new(),
            operations: AtomicU64::new(0),
            goes_at: AtomicU64::new(0),
            left: Mutex::new(None),
            seed,
            lies: AtomicBool::new(false),
            mutant,
        });
        Self { platter, power }
    }

    /// Whether both are of one life.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.power, &other.power)
    }

    pub(crate) fn platter(&self) -> &FaultyDisk {
        &self.platter
    }

    /// Ends this life now. What was not synced is lost, torn or kept by luck.
    pub(crate) fn lose_power(&self) -> FaultyDisk {
        self.end(true)
    }

    /// Ends this life now, and the operating system goes on: all that was written is there.
    pub(crate) fn kill(&self) -> FaultyDisk {
        self.end(false)
    }

    fn end(&self, crash: bool) -> FaultyDisk {
        self.power.lost.store(true, Ordering::Relaxed);
        let mut left = self.power.left.lock();
        let left = left.get_or_insert_with(|| {
            let left = self.platter.fork(self.power.seed);
            if crash {
                left.crash();
            }
            left
        });
        left.clone()
    }

    /// Lets the power go before the `n`-th operation from now.
    pub(crate) fn lose_power_in(&self, n: u64) {
        let now = self.power.operations.load(Ordering::Relaxed);
        self.power.goes_at.store(now + n, Ordering::Relaxed);
    }

    /// From now on syncs are answered and not done.
    pub(crate) fn lie(&self) {
        self.power.lies.store(true, Ordering::Relaxed);
    }

    /// The power does not go by itself any more.
    pub(crate) fn stay_on(&self) {
        self.power.goes_at.store(0, Ordering::Relaxed);
    }

    /// Waits until the power went by itself.
    pub(crate) async fn power_lost(&self) {
        self.power.heard.notified().await;
    }

    fn operate(&self) -> io::Result<&FaultyDisk> {
        let operation = self.power.operations.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.power.lost.load(Ordering::Relaxed)
            && operation == self.power.goes_at.load(Ordering::Relaxed)
        {
            self.lose_power();
            self.power.heard.notify_one();
        }
        self.alive()
    }

    fn alive(&self) -> io::Result<&FaultyDisk> {
        if self.power.lost.load(Ordering::Relaxed) {
            return Err(io::Error::other("the power is gone"));
        }
        Ok(&self.platter)
    }
}

impl Disk for NodeDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.operate()?.open(path, mode)?;
        let disk = self.clone();
        Ok(Arc::new(NodeFile { file, disk }))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.alive()?.list(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.operate()?.create_dir_all(dir)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.operate()?.remove_file(path)
    }
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.operate()?.remove_dir_all(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let disk = self.operate()?;
        let mended = to.extension().is_some_and(|ending| ending == "mended");
        if mended && self.power.mutant == Some(Mutant::LeavesRot) {
            return Ok(());
        }
        disk.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let disk = self.operate()?;
        if self.power.mutant == Some(Mutant::SkipsNameSyncs) {
            return Ok(());
        }
        disk.sync_dir(dir)
    }
    fn sync_all(&self) -> io::Result<()> {
        let disk = self.operate()?;
        if self.power.lies.load(Ordering::Relaxed) {
            return Ok(());
        }
        disk.sync_all()
    }
    fn exists(&self, path: &Path) -> bool {
        self.platter.exists(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn fmt::Debug + Send + Sync>> {
        self.operate()?.lock(path)
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.alive()?.free_bytes()
    }
}

#[derive(Debug)]
struct NodeFile {
    file: Arc<dyn DiskFile>,
    disk: NodeDisk,
}

impl DiskFile for NodeFile {
    fn len(&self) -> io::Result<u64> {
        self.disk.alive()?;
        self.file.len()
    }
    fn write_at(&self, position: Position, slices: &[&[u8]]) -> io::Result<()> {
        self.disk.operate()?;
        self.file.write_at(position, slices)
    }
    fn read(&self, position: Position, len: usize) -> io::Result<Bytes> {
        self.disk.alive()?;
        self.file.read(position, len)
    }
    fn read_into(&self, position: Position, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.alive()?;
        self.file.read_into(position, buffer)
    }
    fn populate(&self, position: Position, len: usize) -> io::Result<()> {
        self.disk.alive()?;
        self.file.populate(position, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.operate()?;
        if self.disk.power.lies.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.file.sync()
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.disk.operate()?;
        self.file.allocate(len)
    }
    fn start_writeback(&self, position: Position, len: u64) {
        self.file.start_writeback(position, len);
    }
    fn forget(&self, position: Position, len: u64) {
        self.file.forget(position, len);
    }
    fn release_from(&self, position: Position) {
        if self.disk.operate().is_ok() {
            self.file.release_from(position);
        }
    }
}
