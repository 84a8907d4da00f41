//! The directory's `FORMAT` file and the `raft-state` file of its last checkpoint.
//!
//! `FORMAT` is text, so that a person can read it: `quipu <format>`, `directory <uuid>`, `crc <CRC-32 of the lines before, in
//! hexadecimal>`. `raft-state` is binary:
//!
//! ```text
//! "QUIPURST" | format u32 | LSN u64 | partitions u32 | each partition's state … | CRC-32 of all before it u32
//! ```

use std::path::Path;

use bytes::{Buf, BufMut, Bytes};
use uuid::Uuid;

use super::OpenError;
use crate::{
    io::{Disk, read_whole, replace_file},
    log::{PartitionState, STATE_FORMAT},
    wal::Lsn,
};

pub(crate) const FORMAT_FILE: &str = "FORMAT";
pub(crate) const RAFT_STATE_FILE: &str = "raft-state";
const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"QUIPURST";

/// Writes a new directory's format file; gives the directory's id.
pub(super) fn create_format(disk: &dyn Disk) -> Result<[u8; 16], OpenError> {
    let id = Uuid::new_v4();
    let lines = format!("quipu {FORMAT}\ndirectory {id}\n");
    let text = lines.clone() + &crc_line(&lines);
    replace_file(disk, Path::new(FORMAT_FILE), text.as_bytes())
        .map_err(|error| io_error("writing", FORMAT_FILE, error))?;
    Ok(id.into_bytes())
}

/// The last line of a text file whose other lines are these.
pub(crate) fn crc_line(lines: &str) -> String {
    format!("crc {:08x}\n", crc32fast::hash(lines.as_bytes()))
}

/// The directory's id, once its format is known to be one that this version reads.
pub(crate) fn read_format(disk: &dyn Disk) -> Result<[u8; 16], OpenError> {
    let bytes = read_whole(disk, Path::new(FORMAT_FILE))
        .map_err(|error| io_error("reading", FORMAT_FILE, error))?;
    let damaged = |detail: &str| OpenError::Damaged {
        path: FORMAT_FILE.into(),
        position: 0,
        detail: detail.to_owned(),
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is not text"))?;
    let (lines, crc) = text
        .split_at_checked(text.rfind("crc ").unwrap_or(0))
        .unwrap_or_default();
    if crc != crc_line(lines) {
        return Err(damaged("its checksum does not match"));
    }
    let field = |name: &str| lines.lines().find_map(|line| line.strip_prefix(name));
    let found = field("quipu ")
        .and_then(|format| format.parse().ok())
        .ok_or_else(|| damaged("it names no format"))?;
    if found > FORMAT {
        return Err(OpenError::NewerFormat {
            path: FORMAT_FILE.into(),
            found,
            supported: FORMAT,
        });
    }
    let id = field("directory ")
        .and_then(|id| Uuid::parse_str(id).ok())
        .ok_or_else(|| damaged("it names no directory id"))?;
    Ok(id.into_bytes())
}

/// Replaces the state file.
pub(super) fn write_raft_state(disk: &dyn Disk, lsn: Lsn, states: &[Bytes]) -> std::io::Result<()> {
    let mut out = Vec::with_capacity(28 + states.iter().map(Bytes::len).sum::<usize>());
    out.put_slice(MAGIC);
    out.put_u32_le(STATE_FORMAT);
    out.put_u64_le(lsn.get());
    out.put_u32_le(states.len() as u32);
    for state in states {
        out.put_slice(state);
    }
    let crc = crc32fast::hash(&out);
    out.put_u32_le(crc);
    replace_file(disk, Path::new(RAFT_STATE_FILE), &out)
}

/// The last checkpoint: the LSN from which the write-ahead log goes on, and each partition's state.
pub(crate) fn read_raft_state(disk: &dyn Disk) -> Result<(Lsn, Vec<PartitionState>), OpenError> {
    read_raft_state_at(disk, Path::new(RAFT_STATE_FILE))
}

/// The same of a state file that may stand anywhere.
pub(crate) fn read_raft_state_at(
    disk: &dyn Disk,
    file: &Path,
) -> Result<(Lsn, Vec<PartitionState>), OpenError> {
    let damaged = |detail: &str| OpenError::Damaged {
        path: file.into(),
        position: 0,
        detail: detail.to_owned(),
    };
    let bytes = read_whole(disk, file).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => damaged("the file is missing"),
        _ => io_error("reading", file, error),
    })?;
    let bytes = Bytes::from(bytes);
    let body_len = bytes
        .len()
        .checked_sub(4)
        .ok_or_else(|| damaged("it is cut short"))?;
    let crc = bytes.slice(body_len..).get_u32_le();
    let mut rest = bytes.slice(..body_len);
    if crc32fast::hash(&rest) != crc {
        return Err(damaged("its checksum does not match"));
    }
    if rest.len() < 24 || rest.split_to(8) != MAGIC.as_slice() {
        return Err(damaged("it is not a state file"));
    }
    let found = rest.get_u32_le();
    if found > STATE_FORMAT {
        return Err(OpenError::NewerFormat {
            path: file.into(),
            found,
            supported: STATE_FORMAT,
        });
    }
    let lsn = Lsn::new(rest.get_u64_le());
    let count = rest.get_u32_le();
    let states = (0..count)
        .map(|_| PartitionState::decode(&mut rest, found))
        .collect::<Result<_, _>>();
    Ok((
        lsn,
        states.map_err(|_| damaged("a partition's state is cut short"))?,
    ))
}

pub(super) fn io_error(
    operation: &'static str,
    path: impl AsRef<Path>,
    error: std::io::Error,
) -> OpenError {
    OpenError::Io {
        operation,
        path: path.as_ref().to_owned(),
        error,
    }
}
