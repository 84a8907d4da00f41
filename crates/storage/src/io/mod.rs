//! The seam to the outside: disk, clock and threads stand behind traits, so that a whole node runs on a faulty in-memory disk
//! under a virtual clock, in one thread.

mod clock;
mod faulty;
mod mmap;
mod real;
mod threads;
mod whole;
mod workers;

pub use clock::ManualClock;
pub use faulty::FaultyDisk;
pub use real::{RealDisk, SystemClock};
pub use threads::Threads;
pub(crate) use whole::{read_whole, replace_file, write_whole};
pub use workers::{Rest, Worker, Workers, Working};

use std::{fmt, io, path::Path, sync::Arc};

use bytes::Bytes;
use quipu_model::{Position, TimestampMs};

/// How [`Disk::open`] treats the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// The file must exist; it is only read.
    Read,
    /// The file must exist; it is read and written.
    Write,
    /// The file must not exist; it is created empty, for reading and writing.
    CreateNew,
}

/// A file system, as far as a log needs one. Paths are relative to a root that the implementation holds.
///
/// Nothing is durable before [`DiskFile::sync`] (a file's bytes and length) and [`Disk::sync_dir`] (its name).
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// The names of a directory's entries, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates a directory and its parents; no error where it exists.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all that is in it; no error where it does not exist.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Renames a file or directory, replacing a file of the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes creations, removals and renames in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes all that was written so far durable, bytes and names of every file: cheaper than syncing many one by one.
    fn sync_all(&self) -> io::Result<()>;
    /// Whether a file or directory exists.
    fn exists(&self, path: &Path) -> bool;
    /// Takes the exclusive lock of a file, creating it if needed, until the guard is dropped or the process ends.
    ///
    /// # Errors
    /// `WouldBlock` where another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn fmt::Debug + Send + Sync>>;
    /// The bytes that an unprivileged writer could still write.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file.
#[allow(
    clippy::len_without_is_empty,
    reason = "nobody asks whether a file is empty"
)]
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Writes all slices, one after the other, from `position` on. May extend the file.
    fn write_at(&self, position: Position, slices: &[&[u8]]) -> io::Result<()>;
    /// Exactly `len` bytes from `position` on. On a real disk they are lent from a read-only map, not copied: the caller
    /// only asks for bytes that will never change again.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file is shorter.
    fn read(&self, position: Position, len: usize) -> io::Result<Bytes>;
    /// Like [`DiskFile::read`] but copies into `buffer` by a system call: for bytes that may change later, and for scans
    /// that must not fault.
    fn read_into(&self, position: Position, buffer: &mut [u8]) -> io::Result<()>;
    /// Brings a range into memory, so that reading it neither faults nor waits; a bad sector is an error here and would be
    /// a signal there. Blocks for as long as the disk takes.
    fn populate(&self, position: Position, len: usize) -> io::Result<()>;
    /// Makes the bytes written so far, and the length, durable.
    fn sync(&self) -> io::Result<()>;
    /// Extends the file to `len` bytes with blocks allocated, reading as zeros. Never shrinks it.
    ///
    /// # Errors
    /// `StorageFull`, `QuotaExceeded` or `FileTooLarge` where there is no room; the file is then as before.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Starts writing a range back to the disk without waiting: a hint that keeps a later sync short.
    fn start_writeback(&self, position: Position, len: u64);
    /// Lets the system drop its cached copy of a range that has been written back: a hint.
    fn forget(&self, position: Position, len: u64);
    /// Gives the blocks from `position` to the end of the file back to the file system. The length stays: a mapped file
    /// never shrinks. A hint; the bytes read as zeros if it was taken.
    fn release_from(&self, position: Position);
}

/// The time of day.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Milliseconds since the Unix epoch.
    fn now(&self) -> TimestampMs;
    /// A point that never goes back, from an arbitrary start, for measuring how long things take.
    fn monotonic(&self) -> std::time::Duration;
}
