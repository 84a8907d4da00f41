//! One file of the log, record by record.

use std::path::Path;

use super::{
    Lsn, ReplayedRecord, WalFile,
    format::{FILE_HEADER_LEN, FileHeader},
    reader::{open_file, remains},
    scan::Scan,
};
use crate::{
    OpenError,
    io::{Disk, OpenMode},
};

/// What a file holds.
pub(crate) enum FileItem {
    /// Its sequence number, and that of its first record where it has one.
    Header { sequence: u64, first: Option<u64> },
    /// A record, and its position.
    Record(u64, ReplayedRecord),
}

/// Visits a file's records up to where they end.
///
/// # Errors
/// Where the file can't be read, is of a newer version, or is damaged before its end.
pub(crate) fn dump_file(
    disk: &dyn Disk,
    path: &Path,
    each: &mut dyn FnMut(FileItem),
) -> Result<(), OpenError> {
    let (file, len, header) = open_file(disk, path, OpenMode::Read)?;
    let FileHeader::Known { sequence, first } = header else {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            position: 0,
            detail: "the header is not one".to_owned(),
        });
    };
    each(FileItem::Header {
        sequence,
        first: first.map(Lsn::get),
    });
    let Some(mut due) = first else { return Ok(()) };
    let file = WalFile {
        sequence,
        path: path.to_owned(),
        file,
        len,
    };
    let mut scan = Scan::new(&file);
    let mut position = FILE_HEADER_LEN as u64;
    while let Some((header, payload)) = scan.frame(position)?.filter(|(found, _)| found.lsn == due)
    {
        let record = ReplayedRecord::new(&header, payload);
        each(FileItem::Record(position, record));
        position += header.frame_len();
        due = due.next();
    }
    remains(&file, position, due).map(drop)
}
