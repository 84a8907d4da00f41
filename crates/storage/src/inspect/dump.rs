//! One file, item by item.

use std::path::Path;

use quipu_model::Position;

use super::{DumpItem, batches, damaged, io_error};
use crate::{
    OpenError,
    io::{Disk, read_whole},
    log::{ENTRY_LEN, PartitionState, ProducerTable, Seal, decode_index_entry},
    store::{RAFT_STATE_FILE, read_raft_state_at},
    wal::{FileItem, dump_file},
};

/// Tells what a file of a data directory holds: a segment (`.log`), its `.index`, `.seal` or `.producers`, a `.wal` file or
/// `raft-state`. Ends where the data ends, in a file that is not full yet. Takes no lock: a file that is being written is shown
/// as it is met.
///
/// # Errors
/// Where the file can't be read, is none of these, or is damaged; what stands before the damage was shown then.
pub fn dump(disk: &dyn Disk, path: &Path, each: &mut dyn FnMut(DumpItem)) -> Result<(), OpenError> {
    if path.file_name().is_some_and(|name| name == RAFT_STATE_FILE) {
        return raft_state(disk, path, each);
    }
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("log") => batches(disk, path, None, |position, header| {
            let header = *header;
            each(DumpItem::Batch { position, header });
        }),
        Some("index") => index(disk, path, each),
        Some("seal") => seal(disk, path, each),
        Some("producers") => producers(disk, path, each),
        Some("wal") => dump_file(disk, path, &mut |item| each(wal_item(item))),
        _ => {
            let detail =
                "only .log, .index, .seal, .producers and .wal files and raft-state can be shown";
            let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, detail);
            Err(io_error(path, error))
        }
    }
}

fn whole(disk: &dyn Disk, path: &Path) -> Result<Vec<u8>, OpenError> {
    read_whole(disk, path).map_err(|error| io_error(path, error))
}

fn index(disk: &dyn Disk, path: &Path, each: &mut dyn FnMut(DumpItem)) -> Result<(), OpenError> {
    let bytes = whole(disk, path)?;
    let entries = bytes.chunks_exact(ENTRY_LEN);
    let rest = entries.remainder().len();
    for entry in entries.map(decode_index_entry) {
        each(DumpItem::Index {
            offset: entry.offset,
            raft_index: Some(entry.raft_index).filter(|index| index.get() != u64::MAX),
            position: entry.position,
            newest_before: entry.newest_before,
        });
    }
    if rest == 0 {
        return Ok(());
    }
    let detail = "the file ends in the middle of an entry";
    Err(damaged(path, (bytes.len() - rest) as u64, detail))
}

fn seal(disk: &dyn Disk, path: &Path, each: &mut dyn FnMut(DumpItem)) -> Result<(), OpenError> {
    let seal = Seal::decode(&whole(disk, path)?).map_err(|detail| damaged(path, 0, detail))?;
    each(DumpItem::Seal {
        base: seal.base,
        next_offset: seal.next_offset,
        first_index: seal.first_index,
        newest: seal.newest,
        data_bytes: seal.data_bytes,
        blocks: seal.block_crcs.len(),
    });
    Ok(())
}

fn producers(
    disk: &dyn Disk,
    path: &Path,
    each: &mut dyn FnMut(DumpItem),
) -> Result<(), OpenError> {
    let table = ProducerTable::decode(&whole(disk, path)?)
        .ok_or_else(|| damaged(path, 0, "its checksum does not match"))?;
    each_producer(&table, each);
    Ok(())
}

fn each_producer(table: &ProducerTable, each: &mut dyn FnMut(DumpItem)) {
    for (id, tail) in table.tails() {
        each(DumpItem::Producer { id, tail });
    }
}

fn raft_state(
    disk: &dyn Disk,
    path: &Path,
    each: &mut dyn FnMut(DumpItem),
) -> Result<(), OpenError> {
    let (lsn, states) = read_raft_state_at(disk, path)?;
    each(DumpItem::Checkpoint {
        lsn: lsn.get(),
        partitions: states.len(),
    });
    for state in &states {
        each(partition(state));
        each_producer(
            &ProducerTable::decode(&state.origin).unwrap_or_default(),
            each,
        );
        for segment in &state.segments {
            each(DumpItem::Segment {
                base: segment.base,
                next_offset: segment.next_offset,
                first: segment.first,
                bytes: segment.bytes,
                sealed: segment.sealed,
            });
        }
    }
    Ok(())
}

fn partition(state: &PartitionState) -> DumpItem {
    DumpItem::Partition {
        key: state.key,
        start_offset: state.start_offset,
        end_offset: state.end_offset,
        last_purged: state.last_purged,
        last: state.last,
        applied: state.applied,
        vote: state.vote,
        controls: state.controls.len(),
    }
}

fn wal_item(item: FileItem) -> DumpItem {
    match item {
        FileItem::Header { sequence, first } => DumpItem::WalFile { sequence, first },
        FileItem::Record(position, record) => DumpItem::WalRecord {
            position: Position::new(position),
            lsn: record.lsn.get(),
            kind: format!("{:?}", record.kind).to_lowercase(),
            key: record.key,
            log_id: record.log_id,
            base_offset: record.base_offset,
            payload_bytes: record.payload.len(),
        },
    }
}
