//! The bare disk limit: `pwrite` and `fdatasync`, one after the other, into a file whose blocks were written before.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use hdrhistogram::Histogram;

/// Bytes of the file that is written over and over.
const FILE_BYTES: u64 = 256 << 20;

/// A file to write into.
#[derive(Debug)]
pub struct Disk {
    file: File,
}

impl Disk {
    /// Writes the file once, whole.
    ///
    /// # Errors
    /// Where the directory has no room for it.
    pub fn prepare(directory: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(directory)?;
        let block = vec![0; 1 << 20];
        for position in (0..FILE_BYTES).step_by(block.len()) {
            file.write_all_at(&block, position)?;
        }
        file.sync_all()?;
        Ok(Self { file })
    }

    /// Writes and syncs `count` times `size` bytes; gives the total time and each one's, in microseconds.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn write_and_sync(&self, size: usize, count: u64) -> Result<(Duration, Histogram<u64>)> {
        let block = vec![0x5a; size];
        let slots = FILE_BYTES / size as u64;
        let mut times = Histogram::new(3)?;
        let start = Instant::now();
        for number in 0..count {
            let one = Instant::now();
            self.file
                .write_all_at(&block, number % slots * size as u64)?;
            self.file.sync_data()?;
            times.record(one.elapsed().as_micros() as u64)?;
        }
        Ok((start.elapsed(), times))
    }

    /// Gigabytes a second of synced writes of one size.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn gb_per_second(&self, size: usize, count: u64) -> Result<f64> {
        let (took, _) = self.write_and_sync(size, count)?;
        Ok(size as f64 * count as f64 / 1e9 / took.as_secs_f64())
    }
}
