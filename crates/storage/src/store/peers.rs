//! The `peers` file: which data directory each of the cluster's first nodes came with.
//!
//! Text like `FORMAT`: `peers 1`, `<node> <directory uuid>` for each node, `crc <CRC-32 of the lines before, in hexadecimal>`.

use std::{collections::BTreeMap, fmt::Write as _, io, path::Path};

use parking_lot::Mutex;
use quipu_model::NodeId;
use uuid::Uuid;

use super::{OpenError, format::crc_line, format::io_error};
use crate::io::{Disk, read_whole, replace_file};

const PEERS_FILE: &str = "peers";
const HEADER: &str = "peers 1";

type Directories = BTreeMap<NodeId, [u8; 16]>;

/// The directories as the file has them; `None`: not read yet.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<Option<Directories>>);

impl Peers {
    /// The directory that a node was first met with, which is `met` where it never was before. Durable on return. Blocks.
    pub(super) fn remember(
        &self,
        disk: &dyn Disk,
        node: NodeId,
        met: [u8; 16],
    ) -> Result<[u8; 16], OpenError> {
        let mut known = self.0.lock();
        let directories = match &mut *known {
            Some(directories) => directories,
            none => none.insert(read(disk)?),
        };
        if let Some(first) = directories.get(&node) {
            return Ok(*first);
        }
        let mut next = directories.clone();
        next.insert(node, met);
        replace_file(disk, Path::new(PEERS_FILE), to_text(&next).as_bytes())
            .map_err(|error| io_error("writing", PEERS_FILE, error))?;
        *directories = next;
        Ok(met)
    }
}

fn to_text(directories: &Directories) -> String {
    let mut lines = format!("{HEADER}\n");
    for (node, directory) in directories {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "{node} {}", Uuid::from_bytes(*directory));
    }
    let crc = crc_line(&lines);
    lines + &crc
}

/// What the file says; nothing where there is none.
pub(crate) fn read(disk: &dyn Disk) -> Result<Directories, OpenError> {
    let damaged = || OpenError::Damaged {
        path: PEERS_FILE.into(),
        position: 0,
        detail: "it is not what this version writes, or its checksum does not match".to_owned(),
    };
    let bytes = match read_whole(disk, Path::new(PEERS_FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Directories::new()),
        Err(error) => return Err(io_error("reading", PEERS_FILE, error)),
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged())?;
    let (lines, crc) = text
        .split_at_checked(text.rfind("crc ").unwrap_or(0))
        .unwrap_or_default();
    let body = lines
        .strip_prefix(HEADER)
        .and_then(|b| b.strip_prefix('\n'));
    match body {
        Some(body) if crc == crc_line(lines) => body
            .lines()
            .map(line)
            .collect::<Option<_>>()
            .ok_or_else(damaged),
        _ => Err(damaged()),
    }
}

fn line(line: &str) -> Option<(NodeId, [u8; 16])> {
    let (node, directory) = line.split_once(' ')?;
    let directory = Uuid::parse_str(directory).ok()?;
    Some((NodeId::new(node.parse().ok()?), directory.into_bytes()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use quipu_model::{NodeId, Position};

    use super::{PEERS_FILE, Peers, read};
    use crate::io::{Disk, FaultyDisk, OpenMode};

    fn node(id: u64) -> NodeId {
        NodeId::new(id)
    }

    #[test]
    fn the_first_directory_of_a_node_stays() {
        let disk = FaultyDisk::new(1);
        let peers = Peers::default();
        assert_eq!(peers.remember(&disk, node(2), [2; 16]).unwrap(), [2; 16]);
        assert_eq!(peers.remember(&disk, node(3), [3; 16]).unwrap(), [3; 16]);
        assert_eq!(peers.remember(&disk, node(2), [9; 16]).unwrap(), [2; 16]);
        // Another process finds the same, after a crash too.
        disk.crash();
        let peers = Peers::default();
        assert_eq!(peers.remember(&disk, node(2), [9; 16]).unwrap(), [2; 16]);
        assert_eq!(read(&disk).unwrap().len(), 2);
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let disk = FaultyDisk::new(1);
        Peers::default().remember(&disk, node(2), [2; 16]).unwrap();
        let file = disk.open(Path::new(PEERS_FILE), OpenMode::Write).unwrap();
        file.write_at(Position::new(8), &[b"3"]).unwrap();
        assert!(Peers::default().remember(&disk, node(2), [2; 16]).is_err());
    }
}
