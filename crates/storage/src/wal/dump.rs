//! One file of the log, record by record.

use std::path::Path;

use quipu_model::Position;

use super::{
    ReplayedRecord, WalFile,
    format::{FILE_HEADER_LEN, FORMAT_VERSION, FileHeader, decode_file_header},
    scan::{Remains, Scan},
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
    let io = |error| OpenError::Io {
        operation: "reading",
        path: path.to_owned(),
        error,
    };
    let damaged = |position, detail: String| OpenError::Damaged {
        path: path.to_owned(),
        position,
        detail,
    };
    let file = disk.open(path, OpenMode::Read).map_err(io)?;
    let len = file.len().map_err(io)?;
    let mut header = [0; FILE_HEADER_LEN];
    file.read_into(Position::default(), &mut header)
        .map_err(io)?;
    let (sequence, first) = match decode_file_header(&header) {
        FileHeader::Known { sequence, first } => (sequence, first),
        FileHeader::Newer { version } => {
            return Err(OpenError::NewerFormat {
                path: path.to_owned(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        FileHeader::Invalid => return Err(damaged(0, "the header is not one".to_owned())),
    };
    each(FileItem::Header {
        sequence,
        first: first.map(super::Lsn::get),
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
        let record = ReplayedRecord {
            lsn: header.lsn,
            key: header.key,
            kind: header.kind,
            log_id: header.log_id,
            base_offset: header.base_offset,
            payload,
        };
        each(FileItem::Record(position, record));
        position += header.frame_len();
        due = due.next();
    }
    match scan.remains(position, due)? {
        Remains::Torn { .. } => Ok(()),
        Remains::Proof { position: at, lsn } => Err(damaged(
            position,
            format!(
                "record {due} can't be read, and record {lsn} at {at} was written after it was synced"
            ),
        )),
    }
}
