//! Looking into a data directory without opening it as a store: nothing here changes anything.
//!
//! [`dump`] tells what one file holds, item by item, and may look at a directory that is in use. [`verify`] checks a whole
//! directory that is not.

mod dump;
mod item;
mod verify;

pub use dump::dump;
pub use item::DumpItem;
pub use verify::{Problem, VerifyReport, verify};

use std::path::Path;

use quipu_model::{Offset, Position, RecordBatch, batch::BatchHeader};

use crate::{
    OpenError,
    io::{Disk, DiskFile, OpenMode},
};

fn io_error(path: &Path, error: std::io::Error) -> OpenError {
    OpenError::Io {
        operation: "reading",
        path: path.to_owned(),
        error,
    }
}

fn damaged(path: &Path, position: u64, detail: impl Into<String>) -> OpenError {
    OpenError::Damaged {
        path: path.to_owned(),
        position,
        detail: detail.into(),
    }
}

/// Visits the batches of a segment's file, checksums compared, up to `end` bytes or, where that is not known, up to the zeros
/// of a file that is not full yet. Each must begin with the offset at which the one before it ended, or behind it where compaction
/// has written the file.
fn batches(
    disk: &dyn Disk,
    path: &Path,
    end: Option<u64>,
    mut each: impl FnMut(Position, &BatchHeader),
) -> Result<(), OpenError> {
    let file = disk
        .open(path, OpenMode::Read)
        .map_err(|error| io_error(path, error))?;
    let len = file.len().map_err(|error| io_error(path, error))?;
    if let Some(end) = end
        && len < end
    {
        return Err(damaged(
            path,
            len,
            format!("{end} bytes were written, the file has {len}"),
        ));
    }
    let (limit, mut position) = (end.unwrap_or(len), 0);
    let has_holes = may_have_holes(path);
    let mut due: Option<Offset> = None;
    while position < limit {
        let head = read(
            &*file,
            path,
            position,
            (BatchHeader::LEN as u64).min(limit - position),
        )?;
        if end.is_none() && head.iter().all(|byte| *byte == 0) {
            break;
        }
        let rot = |detail: String| damaged(path, position, detail);
        let header = BatchHeader::parse(&head).map_err(|error| rot(error.to_string()))?;
        let next = position + header.total_len() as u64;
        if next > limit {
            return Err(rot("a batch claims to go past the segment's end".to_owned()));
        }
        let fits = |due: &Offset| match has_holes {
            true => *due <= header.base_offset,
            false => *due == header.base_offset,
        };
        if let Some(due) = due.filter(|due| !fits(due)) {
            let found = header.base_offset;
            return Err(rot(format!(
                "a batch has base offset {found} where {due} was due"
            )));
        }
        let bytes = read(&*file, path, position, next - position)?;
        RecordBatch::from_bytes(bytes.into()).map_err(|error| rot(error.to_string()))?;
        each(Position::new(position), &header);
        (due, position) = (Some(header.next_offset()), next);
    }
    Ok(())
}

/// Whether a segment's file is named as those that compaction writes, or that came from a replica that may have compacted: with a
/// generation behind the term.
fn may_have_holes(path: &Path) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.is_some_and(|stem| stem.split('-').count() > 2)
}

/// Bytes that the file is known to have.
fn read(file: &dyn DiskFile, path: &Path, position: u64, len: u64) -> Result<Vec<u8>, OpenError> {
    let mut bytes = vec![0; len as usize];
    file.read_into(Position::new(position), &mut bytes)
        .map_err(|error| io_error(path, error))?;
    Ok(bytes)
}
