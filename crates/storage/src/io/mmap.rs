//! What the kernel offers without a safe wrapper: read-only maps of files, and the start of a write-back.
#![allow(
    unsafe_code,
    reason = "mapping a file and sync_file_range have no safe interface; nothing else in the workspace is unsafe"
)]

use std::{fs::File, io, os::fd::AsRawFd, sync::Arc};

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapOptions};

/// A file's first bytes, mapped read-only. Clones share the map; it is unmapped when the last of them, and the last
/// [`Bytes`] cut from them, is gone.
#[derive(Clone, Debug)]
pub(super) struct Map {
    map: Arc<Mmap>,
    bytes: Bytes,
}

struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Map {
    /// Maps the first `len` bytes of a file that is at least that long.
    pub(super) fn new(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: a map is unsound where its file shrinks (a touch past the end is a signal) or where bytes behind a
        // live reference change. The caller checked the length and no file behind `Disk` is ever shortened;
        // `DiskFile::read` is only asked for bytes that never change again, and `Map` hands out nothing else.
        let map = Arc::new(unsafe { MmapOptions::new().len(len).map(file)? });
        let bytes = Bytes::from_owner(Owner(Arc::clone(&map)));
        Ok(Self { map, bytes })
    }

    /// The mapped bytes.
    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Reads a range into memory; a bad sector is an error.
    pub(super) fn populate(&self, start: usize, len: usize) -> io::Result<()> {
        self.map.advise_range(Advice::PopulateRead, start, len)
    }
}

/// Asks the kernel to start writing a range back, without waiting for it. A hint: errors are dropped, a later sync
/// reports them.
pub(super) fn start_writeback(file: &File, position: u64, len: u64) {
    let (Ok(position), Ok(len)) = (i64::try_from(position), i64::try_from(len)) else {
        return;
    };
    // SAFETY: the call takes numbers only and touches no memory of this process; the descriptor is open while `file` is.
    let _hint = unsafe {
        libc::sync_file_range(file.as_raw_fd(), position, len, libc::SYNC_FILE_RANGE_WRITE)
    };
}
