//! What a dump shows: one line an item.

use std::fmt;

use quipu_model::{
    LogId, Offset, PartitionKey, Position, ProducerId, RaftIndex, TimestampMs, Vote,
    batch::BatchHeader,
};

use crate::ProducerTail;

/// A piece of a file. Its `Display` is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DumpItem {
    /// A segment's batch.
    Batch {
        /// Where it begins.
        position: Position,
        /// Its header.
        header: BatchHeader,
    },
    /// An entry of a segment's index.
    Index {
        /// A batch's first offset.
        offset: Offset,
        /// Its Raft index; `None` where the index was rebuilt from the segment alone.
        raft_index: Option<RaftIndex>,
        /// Where it begins in the segment.
        position: Position,
        /// The newest timestamp of the batches before it.
        newest_before: TimestampMs,
    },
    /// A segment's seal.
    Seal {
        /// The segment's first offset.
        base: Offset,
        /// The offset after its last one.
        next_offset: Offset,
        /// The Raft index of its first batch.
        first_index: RaftIndex,
        /// Its newest timestamp.
        newest: TimestampMs,
        /// Its bytes.
        data_bytes: u64,
        /// How many blocks have a checksum.
        blocks: usize,
    },
    /// What a log remembered of a producer at a segment's end; in a `raft-state` file, where a partition's first segment begins.
    Producer {
        /// The producer.
        id: ProducerId,
        /// Its newest batches.
        tail: ProducerTail,
    },
    /// The head of a `raft-state` file.
    Checkpoint {
        /// The record of the write-ahead log up to which it reflects everything.
        lsn: u64,
        /// How many partitions it holds.
        partitions: usize,
    },
    /// A partition in a `raft-state` file.
    Partition {
        /// The partition.
        key: PartitionKey,
        /// The first offset kept.
        start_offset: Offset,
        /// The offset after the last record.
        end_offset: Offset,
        /// The last entry that Raft can no longer ask for.
        last_purged: Option<LogId>,
        /// The last entry.
        last: Option<LogId>,
        /// The last entry applied.
        applied: Option<LogId>,
        /// The vote.
        vote: Option<Vote>,
        /// How many entries are not batches.
        controls: usize,
    },
    /// A segment in a `raft-state` file.
    Segment {
        /// Its first offset.
        base: Offset,
        /// The offset after its last one.
        next_offset: Offset,
        /// The Raft entry of its first batch.
        first: LogId,
        /// Its bytes.
        bytes: u64,
        /// Whether it is sealed.
        sealed: bool,
    },
    /// The head of a write-ahead log file.
    WalFile {
        /// Its sequence number.
        sequence: u64,
        /// Its first record; `None` in a file made ready for later.
        first: Option<u64>,
    },
    /// A record of the write-ahead log.
    WalRecord {
        /// Where it begins.
        position: Position,
        /// Its log sequence number.
        lsn: u64,
        /// What it says.
        kind: String,
        /// The partition.
        key: PartitionKey,
        /// The Raft entry it holds or names.
        log_id: LogId,
        /// The offset it holds or names.
        base_offset: Offset,
        /// The bytes it carries.
        payload_bytes: usize,
    },
}

impl fmt::Display for DumpItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch { position, header } => write!(
                f,
                "position {position} offsets {}..{} records {} bytes {} epoch {} newest {} attributes {:#06x} producer {} \
                 epoch {} sequence {} crc {:08x}",
                header.base_offset,
                header.next_offset(),
                header.record_count,
                header.total_len(),
                header.leader_epoch,
                header.max_timestamp,
                header.attributes,
                header.producer_id,
                header.producer_epoch,
                header.base_sequence,
                header.crc,
            ),
            Self::Index {
                offset,
                raft_index,
                position,
                newest_before,
            } => write!(
                f,
                "offset {offset} raft-index {} position {position} newest-before {newest_before}",
                or_dash(*raft_index)
            ),
            Self::Seal {
                base,
                next_offset,
                first_index,
                newest,
                data_bytes,
                blocks,
            } => write!(
                f,
                "seal offsets {base}..{next_offset} first-raft-index {first_index} newest {newest} bytes {data_bytes} blocks {blocks}"
            ),
            Self::Producer { id, tail } => {
                write!(f, "producer {id} epoch {}", tail.epoch)?;
                tail.batches.iter().try_for_each(|batch| {
                    write!(
                        f,
                        " [{}..={} at {}]",
                        batch.first, batch.last, batch.base_offset
                    )
                })
            }
            Self::Checkpoint { lsn, partitions } => {
                write!(f, "checkpoint lsn {lsn} partitions {partitions}")
            }
            Self::Partition { .. } | Self::Segment { .. } => self.fmt_state(f),
            Self::WalFile { sequence, first } => {
                write!(f, "file {sequence} first-lsn {}", or_dash(*first))
            }
            Self::WalRecord {
                position,
                lsn,
                kind,
                key,
                log_id,
                base_offset,
                payload_bytes,
            } => write!(
                f,
                "position {position} lsn {lsn} {kind} partition {key} entry {log_id} offset {base_offset} bytes {payload_bytes}"
            ),
        }
    }
}

impl DumpItem {
    fn fmt_state(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partition {
                key,
                start_offset,
                end_offset,
                last_purged,
                last,
                applied,
                vote,
                controls,
            } => {
                write!(
                    f,
                    "partition {key} offsets {start_offset}..{end_offset} purged {} last {} applied {} controls {controls}",
                    or_dash(*last_purged),
                    or_dash(*last),
                    or_dash(*applied)
                )?;
                match vote {
                    Some(vote) => write!(
                        f,
                        " vote term {} node {} committed {}",
                        vote.term, vote.node, vote.committed
                    ),
                    None => f.write_str(" vote -"),
                }
            }
            Self::Segment {
                base,
                next_offset,
                first,
                bytes,
                sealed,
            } => write!(
                f,
                "  segment offsets {base}..{next_offset} first-entry {first} bytes {bytes} sealed {sealed}"
            ),
            _ => Ok(()),
        }
    }
}

fn or_dash(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
