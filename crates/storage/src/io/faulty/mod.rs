//! A disk in memory that loses, tears and refuses what a real one may, as a seed decides.

mod nodes;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use quipu_model::Position;

use self::nodes::{NodeId, State};
use super::{Disk, DiskFile, OpenMode};

/// A disk in memory for tests and simulations. The same seed and the same calls give the same outcome.
///
/// Clones share one state; [`FaultyDisk::fork`] makes an independent copy. What is not synced survives a
/// [`FaultyDisk::crash`] wholly, in part (torn between sectors of 512 bytes) or not at all; a name survives only if
/// its directory was synced, or by luck.
#[derive(Clone)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for FaultyDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyDisk")
    }
}

impl FaultyDisk {
    /// An empty disk without a limit.
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::new(seed))),
        }
    }

    /// Loses power and comes back. Open files and locks of before are dead: every call on them is an error. Threads
    /// that still hold the disk itself must be gone, or work on the original while a [`FaultyDisk::fork`] of it crashes.
    pub fn crash(&self) {
        self.state.lock().crash();
    }

    /// A copy of this moment, open files excepted, whose luck follows another seed. Planned faults are not copied.
    pub fn fork(&self, seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(self.state.lock().fork(seed))),
        }
    }

    /// Lets the `n`-th sync from now on (1 is the next; files and directories count) fail with EIO. As on Linux, what it
    /// should have made durable is then lost or not by luck, and later syncs succeed without it.
    pub fn fail_sync_at(&self, n: u64) {
        let mut state = self.state.lock();
        state.failing_sync = Some(state.syncs + n);
    }

    /// Lets the `n`-th write or allocation from now on (1 is the next) fail with EIO, having changed nothing.
    pub fn fail_write_at(&self, n: u64) {
        let mut state = self.state.lock();
        state.failing_write = Some(state.writes + n);
    }

    /// Bounds the sum of all files' lengths.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity = bytes;
    }

    /// Flips one bit (0 to 7) of a byte of a file, on the platter.
    ///
    /// # Panics
    /// Where there is no such file or byte.
    pub fn flip_bit(&self, path: impl AsRef<Path>, byte: u64, bit: u8) {
        self.state.lock().flip_bit(path.as_ref(), byte, bit);
    }

    /// A file's bytes as a reader sees them; `None` where there is no such file.
    pub fn file_bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        self.state.lock().file_bytes(path.as_ref())
    }

    /// Writes and allocations so far.
    pub fn writes(&self) -> u64 {
        self.state.lock().writes
    }

    /// Syncs of files and directories so far.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        let node = match mode {
            OpenMode::CreateNew => state.create(path)?,
            OpenMode::Read | OpenMode::Write => state.file(path)?,
        };
        Ok(Arc::new(FaultyFile {
            state: Arc::clone(&self.state),
            node,
            boot: state.boot,
            writable: mode != OpenMode::Read,
        }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.state.lock().list(dir)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.state.lock().create_dir_all(dir)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.file(path)?;
        state.unlink(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        match self.state.lock().unlink(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.state.lock().rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.state.lock().sync_dir(dir)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.state.lock().sync_all()
    }

    fn exists(&self, path: &Path) -> bool {
        self.state.lock().exists(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn fmt::Debug + Send + Sync>> {
        let mut state = self.state.lock();
        if !state.exists(path) {
            state.create(path)?;
        }
        if !state.locked.insert(path.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(FileLock {
            state: Arc::clone(&self.state),
            path: path.to_path_buf(),
            boot: state.boot,
        }))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.state.lock();
        Ok(state.capacity.saturating_sub(state.used()))
    }
}

struct FileLock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    boot: u64,
}

impl fmt::Debug for FileLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileLock").field(&self.path).finish()
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.boot == self.boot {
            state.locked.remove(&self.path);
        }
    }
}

struct FaultyFile {
    state: Arc<Mutex<State>>,
    node: NodeId,
    /// The disk's count of crashes when the file was opened.
    boot: u64,
    writable: bool,
}

impl fmt::Debug for FaultyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultyFile").field(&self.node).finish()
    }
}

impl FaultyFile {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        if state.boot != self.boot {
            return Err(io::Error::other("the machine crashed since"));
        }
        f(&mut state)
    }

    fn with_writable(&self, f: impl FnOnce(&mut State) -> io::Result<()>) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.with(f)
    }
}

impl DiskFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.bytes(self.node).len() as u64))
    }

    fn write_at(&self, position: Position, slices: &[&[u8]]) -> io::Result<()> {
        self.with_writable(|state| state.write(self.node, position.get(), slices.concat()))
    }

    fn read(&self, position: Position, len: usize) -> io::Result<Bytes> {
        let mut buffer = Vec::new();
        self.with(|state| {
            buffer.extend_from_slice(state.range(self.node, position.get(), len)?);
            Ok(Bytes::from(buffer))
        })
    }

    fn read_into(&self, position: Position, buffer: &mut [u8]) -> io::Result<()> {
        self.with(|state| {
            buffer.copy_from_slice(state.range(self.node, position.get(), buffer.len())?);
            Ok(())
        })
    }

    fn populate(&self, position: Position, len: usize) -> io::Result<()> {
        self.with(|state| state.range(self.node, position.get(), len).map(|_| ()))
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| state.sync(self.node))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with_writable(|state| state.allocate(self.node, len))
    }

    fn start_writeback(&self, _position: Position, _len: u64) {}

    fn forget(&self, _position: Position, _len: u64) {}

    fn release_from(&self, position: Position) {
        // A hint: an error (the machine crashed) is not the caller's to handle.
        let _taken = self.with_writable(|state| {
            state.release(self.node, position.get());
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests;
