//! Small files, read and written whole.

use std::{io, path::Path};

use quipu_model::Position;

use super::{Disk, OpenMode};

/// A file's bytes, copied.
pub(crate) fn read_whole(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let mut bytes = vec![0; file.len()? as usize];
    file.read_into(Position::default(), &mut bytes)?;
    Ok(bytes)
}

/// Writes a file anew, not durably: for what can be rebuilt.
pub(crate) fn write_whole(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    if disk.exists(path) {
        disk.remove_file(path)?;
    }
    disk.open(path, OpenMode::CreateNew)?
        .write_at(Position::default(), &[bytes])
}

/// Replaces a file atomically and durably: whoever opens it later, after a crash too, finds the old bytes or the new ones.
pub(crate) fn replace_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    if disk.exists(&temporary) {
        disk.remove_file(&temporary)?;
    }
    let file = disk.open(&temporary, OpenMode::CreateNew)?;
    file.write_at(Position::default(), &[bytes])?;
    file.sync()?;
    disk.rename(&temporary, path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new("")))
}
