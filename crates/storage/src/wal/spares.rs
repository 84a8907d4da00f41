//! The thread that keeps a file ready, made from one whose records nobody needs, or new.

use std::{io, path::Path, sync::Arc, time::Duration};

use quipu_model::Position;

use super::{
    DIRECTORY, WalFile, file_path,
    format::encode_file_header,
    shared::{Shared, State},
};
use crate::io::{Disk, OpenMode};

/// How many used files are kept: a sync into blocks that were written before costs a third of one into fresh blocks.
const KEPT: usize = 4;
const ZEROS: usize = 1 << 20;
/// How often a full disk is looked at again.
const RETRY: Duration = Duration::from_millis(500);

enum Step {
    Recycle(WalFile, u64),
    Remove(WalFile),
    Create(u64),
    Stop,
}

/// Runs until the log stops.
pub(super) fn run(shared: &Shared) {
    loop {
        let (path, result) = match next_step(shared) {
            Step::Stop => return,
            Step::Remove(file) => {
                let result = shared.disk.remove_file(&file.path).map(|()| None);
                (file.path, result)
            }
            Step::Recycle(file, sequence) => {
                let result = recycle(shared, &file, sequence);
                (file.path, result)
            }
            Step::Create(sequence) => (file_path(sequence), create(shared, sequence)),
        };
        match result {
            Ok(spare) => offer(shared, spare),
            Err(error) if is_full(&error) => {
                tracing::warn!(path = %path.display(), %error, "no room for the next file of the write-ahead log");
                shared.state.lock().disk_full = Some(error.to_string());
                shared.work.notify_all();
            }
            Err(error) => {
                shared.fail("prepare", &path, error);
            }
        }
    }
}

fn next_step(shared: &Shared) -> Step {
    let mut state = shared.state.lock();
    loop {
        if state.abandoned || state.writer_ended || state.failure.is_some() {
            return Step::Stop;
        }
        if unwanted_while_closing(&state) {
            shared.spares_wanted.wait(&mut state);
            continue;
        }
        if let Some(file) = state.retired.pop() {
            if state.spares.len() >= KEPT {
                return Step::Remove(file);
            }
            let sequence = state.allocate_sequence();
            return Step::Recycle(file, sequence);
        }
        if !state.spares.is_empty() {
            shared.spares_wanted.wait(&mut state);
        } else if state.disk_full.is_none()
            || shared.spares_wanted.wait_for(&mut state, RETRY).timed_out()
        {
            let sequence = state.allocate_sequence();
            return Step::Create(sequence);
        }
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
    shared.work.notify_all();
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

/// A new file, every block written once; `None` where the log stops meanwhile.
fn create(shared: &Shared, sequence: u64) -> io::Result<Option<WalFile>> {
    let disk = shared.disk.as_ref();
    let spare = allocate(disk, sequence, shared.config.file_bytes)?;
    let result = fill_with_zeros(shared, &spare).and_then(|done| {
        if done {
            finish(disk, &spare)?;
        }
        Ok(done)
    });
    match result {
        Ok(true) => Ok(Some(spare)),
        unfinished => {
            remove_unused(disk, &spare.path);
            unfinished.map(|_| None)
        }
    }
}

/// Writes every block; false where the log stops meanwhile.
fn fill_with_zeros(shared: &Shared, spare: &WalFile) -> io::Result<bool> {
    let zeros = vec![0; ZEROS.min(spare.len as usize)];
    let mut position = 0;
    while position < spare.len {
        let state = shared.state.lock();
        if state.abandoned || unwanted_while_closing(&state) {
            return Ok(false);
        }
        drop(state);
        let step = (spare.len - position).min(ZEROS as u64);
        spare
            .file
            .write_at(Position::new(position), &[&zeros[..step as usize]])?;
        spare.file.sync()?;
        position += step;
    }
    Ok(true)
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
