//! A disk whose syncs wait until they are let go.

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use quipu_model::Position;
use quipu_storage::io::{Disk, DiskFile, OpenMode};

#[derive(Debug, Default)]
pub(super) struct Gate {
    held: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(super) fn hold(&self) {
        *self.held.lock() = true;
    }

    pub(super) fn let_go(&self) {
        *self.held.lock() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut held = self.held.lock();
        while *held {
            self.opened.wait(&mut held);
        }
    }
}

#[derive(Debug)]
pub(super) struct GatedDisk {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) gate: Arc<Gate>,
}

#[derive(Debug)]
struct GatedFile {
    file: Arc<dyn DiskFile>,
    gate: Arc<Gate>,
}

impl Disk for GatedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, mode)?;
        let gate = Arc::clone(&self.gate);
        Ok(Arc::new(GatedFile { file, gate }))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.remove_dir_all(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn sync_all(&self) -> io::Result<()> {
        self.disk.sync_all()
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

impl DiskFile for GatedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn write_at(&self, position: Position, slices: &[&[u8]]) -> io::Result<()> {
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
        self.gate.pass();
        self.file.sync()
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
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
