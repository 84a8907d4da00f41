//! The worker that keeps a file ready, made from one whose records nobody needs, or new.

use std::{io, path::Path, sync::Arc, time::Duration};

use quipu_model::Position;

use super::{
    DIRECTORY, WalConfig, WalFile, file_path,
    format::encode_file_header,
    shared::{Shared, State},
};
use crate::io::{Disk, OpenMode, Rest, Worker};

const ZEROS: usize = 1 << 20;
/// Where filling begins: behind the header.
const FILL_FROM: u64 = 4096;
/// How often a full disk is looked at again.
const RETRY: Duration = Duration::from_millis(500);

enum Step {
    Recycle(WalFile, u64),
    Remove(WalFile),
    Create(u64),
    /// Write every block of a spare that was only allocated.
    Fill(WalFile),
    Rest(Rest),
}

/// Works until the log stops.
pub(super) struct Preparer {
    pub(super) shared: Arc<Shared>,
}

impl Worker for Preparer {
    fn step(&mut self, rested: bool) -> Rest {
        let shared = &*self.shared;
        let (path, result) = match next_step(shared, rested) {
            Step::Rest(rest) => return rest,
            Step::Remove(file) => {
                let result = shared.disk.remove_file(&file.path).map(|()| None);
                (file.path, result)
            }
            Step::Recycle(file, sequence) => {
                let result = recycle(shared, &file, sequence);
                (file.path, result)
            }
            Step::Create(sequence) => (file_path(sequence), create(shared, sequence).map(Some)),
            Step::Fill(file) => {
                let result = fill_with_zeros(shared, &file).map(|()| None);
                (file.path, result)
            }
        };
        match result {
            Ok(spare) => offer(shared, spare),
            Err(error) if is_full(&error) => {
                tracing::warn!(path = %path.display(), %error, "no room for the next file of the write-ahead log");
                shared.state.lock().disk_full = Some(error.to_string());
                shared.wake_writer();
            }
            Err(error) => {
                shared.fail("prepare", &path, error);
            }
        }
        Rest::No
    }
}

fn next_step(shared: &Shared, rested: bool) -> Step {
    let mut state = shared.state.lock();
    if state.abandoned || state.writer_ended || state.failure.is_some() {
        return Step::Rest(Rest::Ended);
    }
    if unwanted_while_closing(&state) {
        return Step::Rest(Rest::UntilWoken);
    }
    if let Some(file) = state.retired.pop() {
        if state.spares.len() >= kept(&shared.config) {
            return Step::Remove(file);
        }
        let sequence = state.allocate_sequence();
        return Step::Recycle(file, sequence);
    }
    if let Some(file) = state.unfilled.take() {
        return Step::Fill(file);
    }
    if !state.spares.is_empty() {
        Step::Rest(Rest::UntilWoken)
    } else if state.disk_full.is_none() || rested {
        Step::Create(state.allocate_sequence())
    } else {
        Step::Rest(Rest::For(RETRY))
    }
}

fn unwanted_while_closing(state: &State) -> bool {
    state.closing && !state.spare_awaited
}

fn offer(shared: &Shared, spare: Option<WalFile>) {
    let mut state = shared.state.lock();
    if let Some(spare) = spare {
        state.disk_full = None;
        state.spares.push_back(spare);
    }
    drop(state);
    shared.wake_writer();
}

/// Whether an error only says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Makes a used file ready for another life; `None` where it is not of the size that is wanted, and removed.
fn recycle(shared: &Shared, file: &WalFile, sequence: u64) -> io::Result<Option<WalFile>> {
    let disk = shared.disk.as_ref();
    let len = shared.config.file_bytes;
    if file.file.len()? != len {
        disk.remove_file(&file.path)?;
        return Ok(None);
    }
    let spare = WalFile {
        sequence,
        path: file_path(sequence),
        file: Arc::clone(&file.file),
        len,
    };
    disk.rename(&file.path, &spare.path)?;
    finish(disk, &spare)?;
    Ok(Some(spare))
}

/// How many used files are kept: all that the log fills between two checkpoints, since a sync into blocks that were written
/// before costs a third of one into fresh blocks.
fn kept(config: &WalConfig) -> usize {
    (config.max_bytes / 2 / config.file_bytes.max(1)).max(4) as usize
}

/// A new file, ready at once; its blocks are written while nobody needs it.
fn create(shared: &Shared, sequence: u64) -> io::Result<WalFile> {
    let disk = shared.disk.as_ref();
    let spare = allocate(disk, sequence, shared.config.file_bytes)?;
    finish(disk, &spare).inspect_err(|_| remove_unused(disk, &spare.path))?;
    shared.state.lock().unfilled = Some(spare.clone());
    Ok(spare)
}

/// Writes every block of a spare, for as long as nobody takes it, and no used file waits.
fn fill_with_zeros(shared: &Shared, spare: &WalFile) -> io::Result<()> {
    let zeros = vec![0; ZEROS.min(spare.len as usize)];
    let mut position = FILL_FROM;
    while position < spare.len {
        let mut state = shared.state.lock();
        let there = state
            .spares
            .iter()
            .any(|file| file.sequence == spare.sequence);
        if !there || !state.retired.is_empty() || state.abandoned || state.closing {
            break;
        }
        state.filling = Some(spare.sequence);
        drop(state);
        let step = (spare.len - position).min(ZEROS as u64);
        let filled = spare
            .file
            .write_at(Position::new(position), &[&zeros[..step as usize]])
            .and_then(|()| spare.file.sync());
        shared.state.lock().filling = None;
        shared.wake_writer();
        filled?;
        position += step;
    }
    Ok(())
}

/// A new file whose blocks are only reserved: quick to make, slower to sync.
pub(super) fn allocate(disk: &dyn Disk, sequence: u64, len: u64) -> io::Result<WalFile> {
    let path = file_path(sequence);
    let file = disk.open(&path, OpenMode::CreateNew)?;
    if let Err(error) = file.allocate(len) {
        remove_unused(disk, &path);
        return Err(error);
    }
    Ok(WalFile {
        sequence,
        path,
        file,
        len,
    })
}

/// Gives a file the header of a prepared one, and makes it and its name durable.
pub(super) fn finish(disk: &dyn Disk, spare: &WalFile) -> io::Result<()> {
    let header = encode_file_header(spare.sequence, None);
    spare.file.write_at(Position::new(0), &[&header])?;
    spare.file.sync()?;
    disk.sync_dir(Path::new(DIRECTORY))
}

/// Removes a file that holds nothing. Where that fails it is only in the way of space: the next start tries again.
pub(super) fn remove_unused(disk: &dyn Disk, path: &Path) {
    if let Err(error) = disk.remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "an unused file of the write-ahead log stays");
    }
}
