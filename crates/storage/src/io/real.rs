//! The machine's own disk and clock.
#![allow(
    clippy::disallowed_methods,
    reason = "this is the one place that reaches the file system and the clock; all else goes through the traits"
)]

use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, IoSlice},
    num::NonZeroU64,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::Mutex;
use quipu_model::{Position, TimestampMs};
use rustix::{
    fs::{Advice, FallocateFlags, fadvise, fallocate, fdatasync, statvfs},
    io::{Errno, pwritev},
};

use super::{
    Clock, Disk, DiskFile, OpenMode,
    mmap::{Map, start_writeback},
};

/// Linux takes at most this many slices in one call.
const MAX_SLICES: usize = 1024;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A directory of the machine's file system.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
    /// The root, open since before the first write: the kernel tells of failed writes only from then on.
    root_dir: File,
}

impl RealDisk {
    /// A disk whose paths begin at `root`, which is created where it is absent. From then on the process gets an error
    /// where a file would pass its size limit (RLIMIT_FSIZE), no longer a deadly signal.
    ///
    /// # Errors
    /// Where `root` can't be created.
    pub fn new(root: &Path) -> io::Result<Self> {
        survive_file_size_limit()?;
        create_dirs_durably(root)?;
        Ok(Self {
            root: root.to_path_buf(),
            root_dir: File::open(root)?,
        })
    }
}

fn survive_file_size_limit() -> io::Result<()> {
    static CAUGHT: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    let caught = Arc::clone(CAUGHT.get_or_init(Arc::default));
    // Registering again is harmless, and the flag tells whether it was done.
    if !caught.swap(true, Ordering::Relaxed) {
        signal_hook::flag::register(signal_hook::consts::SIGXFSZ, caught)?;
    }
    Ok(())
}

fn create_dirs_durably(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir
        .ancestors()
        .filter(|path| !path.as_os_str().is_empty())
        .take_while(|path| !path.exists())
        .collect();
    fs::create_dir_all(dir)?;
    for created in missing {
        match created.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all()?,
            _ => File::open(".")?.sync_all()?,
        }
    }
    Ok(())
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(mode != OpenMode::Read)
            .create_new(mode == OpenMode::CreateNew)
            .open(self.root.join(path))?;
        let len = AtomicU64::new(file.metadata()?.len());
        Ok(Arc::new(RealFile {
            file,
            len,
            map: Mutex::new(None),
        }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(self.root.join(dir))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(self.root.join(dir))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(self.root.join(path))
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        match fs::remove_dir_all(self.root.join(dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(self.root.join(dir))?.sync_all()
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root_dir)?)
    }

    fn exists(&self, path: &Path) -> bool {
        self.root.join(path).exists()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn fmt::Debug + Send + Sync>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.root.join(path))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

struct RealFile {
    file: File,
    /// A length that the file is known to have reached; it only grows.
    len: AtomicU64,
    map: Mutex<Option<Map>>,
}

impl fmt::Debug for RealFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl RealFile {
    /// A map that covers `end` bytes, remade where the file has grown.
    fn map_to(&self, end: u64) -> io::Result<Map> {
        let mut current = self.map.lock();
        match &*current {
            Some(map) if map.bytes().len() as u64 >= end => Ok(map.clone()),
            _ => {
                // Only a length that is there to stay is mapped: an allocation under way may be given back.
                let mut len = self.len.load(Ordering::Acquire);
                if len < end {
                    len = self.len()?;
                }
                if len < end {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
                let map = Map::new(&self.file, len)?;
                *current = Some(map.clone());
                Ok(map)
            }
        }
    }

    fn read_through(&self, mut position: u64, end: u64) -> io::Result<()> {
        let mut scratch = vec![0; ZEROS.len()];
        while position < end {
            let step = scratch.len().min((end - position) as usize);
            self.file.read_exact_at(&mut scratch[..step], position)?;
            position += step as u64;
        }
        Ok(())
    }

    fn fill_with_zeros(&self, mut position: u64, end: u64) -> io::Result<()> {
        while position < end {
            let step = ZEROS.len().min((end - position) as usize);
            self.file.write_all_at(&ZEROS[..step], position)?;
            position += step as u64;
        }
        Ok(())
    }
}

/// The exclusive end of a range, as a file position and as indexes.
fn range(position: Position, len: usize) -> io::Result<(usize, u64)> {
    let start = usize::try_from(position.get()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let end = position
        .get()
        .checked_add(len as u64)
        .ok_or(io::ErrorKind::InvalidInput)?;
    Ok((start, end))
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        let len = self.file.metadata()?.len();
        self.len.fetch_max(len, Ordering::Release);
        Ok(len)
    }

    fn write_at(&self, position: Position, slices: &[&[u8]]) -> io::Result<()> {
        let mut position = position.get();
        for group in slices.chunks(MAX_SLICES) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|s| IoSlice::new(s)).collect();
            let mut rest = slices.as_mut_slice();
            // Empty slices at the front would look like a write of nothing.
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match pwritev(&self.file, rest, position) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        position += written as u64;
                        IoSlice::advance_slices(&mut rest, written);
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.len.fetch_max(position, Ordering::Release);
        Ok(())
    }

    fn read(&self, position: Position, len: usize) -> io::Result<Bytes> {
        let (start, end) = range(position, len)?;
        if len == 0 {
            return Ok(Bytes::new());
        }
        Ok(self.map_to(end)?.bytes().slice(start..start + len))
    }

    fn read_into(&self, position: Position, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, position.get())
    }

    fn populate(&self, position: Position, len: usize) -> io::Result<()> {
        let (start, end) = range(position, len)?;
        if len == 0 {
            return Ok(());
        }
        match self.map_to(end)?.populate(start, len) {
            // Kernels before 5.14 do not know the advice; reading does the same, at the price of a copy.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.read_through(position.get(), end)
            }
            result => result,
        }
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let current = self.file.metadata()?.len();
        let Some(more) = len.checked_sub(current).filter(|more| *more > 0) else {
            return Ok(());
        };
        let result = loop {
            match fallocate(&self.file, FallocateFlags::empty(), current, more) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    break self.fill_with_zeros(current, len);
                }
                result => break result.map_err(io::Error::from),
            }
        };
        if let Err(error) = result {
            // What was added before the room ran out was never shown to anybody: give it back.
            if let Err(trim) = self.file.set_len(current) {
                tracing::warn!(%trim, "giving back the room of a failed allocation");
            }
            return Err(error);
        }
        self.len.fetch_max(len, Ordering::Release);
        Ok(())
    }

    fn start_writeback(&self, position: Position, len: u64) {
        start_writeback(&self.file, position.get(), len);
    }

    fn forget(&self, position: Position, len: u64) {
        let len = NonZeroU64::new(len);
        // A hint: where it is not taken, the system keeps what it likes.
        let _taken = fadvise(&self.file, position.get(), len, Advice::DontNeed);
    }

    fn release_from(&self, position: Position) {
        let Ok(len) = self.len() else { return };
        let Some(count) = len.checked_sub(position.get()).filter(|count| *count > 0) else {
            return;
        };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = fallocate(&self.file, flags, position.get(), count) {
            tracing::debug!(%error, "the file system keeps the unused end of a file");
        }
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> TimestampMs {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        TimestampMs::new(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (tempfile::TempDir, RealDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(&dir.path().join("a/b")).unwrap();
        (dir, disk)
    }

    #[test]
    fn bytes_written_in_many_slices_are_read_back_by_map_and_by_call() {
        let (_dir, disk) = disk();
        let file = disk.open(Path::new("f"), OpenMode::CreateNew).unwrap();
        let bytes: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
        let mut slices: Vec<&[u8]> = bytes.chunks(7).collect();
        slices.insert(0, &[]);
        file.write_at(Position::new(3), &slices).unwrap();
        file.sync().unwrap();
        file.populate(Position::new(5000), 20_000).unwrap();
        assert_eq!(file.read(Position::new(3), bytes.len()).unwrap(), bytes);
        let mut buffer = vec![0; 4];
        file.read_into(Position::new(7), &mut buffer).unwrap();
        assert_eq!(buffer, 1u32.to_le_bytes());

        let lent = file.read(Position::new(3), 8).unwrap();
        file.allocate(1 << 20).unwrap();
        assert_eq!(file.len().unwrap(), 1 << 20);
        assert_eq!(
            file.read(Position::new((1 << 20) - 4), 4).unwrap(),
            [0; 4][..]
        );
        file.release_from(Position::new(4096));
        assert_eq!(file.len().unwrap(), 1 << 20);
        assert_eq!(lent, bytes[..8]);
    }

    #[test]
    fn reading_past_the_end_is_an_error() {
        let (_dir, disk) = disk();
        let file = disk.open(Path::new("f"), OpenMode::CreateNew).unwrap();
        file.write_at(Position::new(0), &[b"1234"]).unwrap();
        for (position, len) in [(0, 5), (4, 1), (u64::MAX, 1), (9, usize::MAX)] {
            assert!(file.read(Position::new(position), len).is_err());
            assert!(file.populate(Position::new(position), len).is_err());
        }
        assert!(file.read(Position::new(4), 0).unwrap().is_empty());
    }

    #[test]
    fn names_follow_the_disk_contract() {
        let (_dir, disk) = disk();
        let missing = disk.open(Path::new("f"), OpenMode::Read).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        disk.create_dir_all(Path::new("x/y")).unwrap();
        disk.open(Path::new("x/2"), OpenMode::CreateNew).unwrap();
        disk.open(Path::new("x/1"), OpenMode::CreateNew).unwrap();
        assert!(disk.open(Path::new("x/1"), OpenMode::CreateNew).is_err());
        disk.rename(Path::new("x/1"), Path::new("x/2")).unwrap();
        assert_eq!(disk.list(Path::new("x")).unwrap(), ["2", "y"]);
        disk.sync_dir(Path::new("x")).unwrap();
        disk.remove_dir_all(Path::new("x")).unwrap();
        disk.remove_dir_all(Path::new("x")).unwrap();
        assert!(!disk.exists(Path::new("x")));
        assert!(disk.free_bytes().unwrap() > 0);
        let lock = disk.lock(Path::new("lock")).unwrap();
        let held = disk.lock(Path::new("lock")).unwrap_err();
        assert_eq!(held.kind(), io::ErrorKind::WouldBlock);
        drop(lock);
        disk.lock(Path::new("lock")).unwrap();
    }
}
