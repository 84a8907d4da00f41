//! A partition's part of the `raft-state` file: what its segments do not tell.
//!
//! ```text
//! topic id 16 | partition u32 | last LSN u64 | segment.bytes u64 | start offset u64 | end offset u64
//! | last purged, last, applied: each 1 byte (0 or 1), term u64, index u64
//! | vote: 1 byte (0 or 1), term u64, node u64, committed u8, votes from u64
//! | membership: 1 byte (0 or 1), term u64, index u64, length u32, bytes
//! | terms: count u32, each term u64, first index u64
//! | controls: count u32, each index u64, kind u8, length u32, bytes
//! | segments: count u32, each base u64, next offset u64, first batch's term u64 and Raft index u64, sealed u8, bytes u64,
//!   created i64, generation u32, compacted: 1 byte (0 or 1), at i64, tombstones u64
//! | compacted up to u64 | origin: length u32, the bytes of a `.producers` file, or none
//! ```
//!
//! Format 4 had no origin, format 3 had nothing about compaction, format 2 no *votes from* either, format 1 no generation.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use bytes::{Buf, BufMut, Bytes, TryGetError};
use quipu_model::{
    LogId, NodeId, Offset, PartitionId, PartitionKey, RaftIndex, Term, TimestampMs, TopicId, Vote,
};

use super::{
    segment::segment_path,
    types::{Control, ControlKind},
};
use crate::wal::Lsn;

/// What compaction knows of a segment in which, and before which, it has left only the newest record of each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compacted {
    /// When that was first so: from then on, nobody who reads from the start needs the tombstones for longer than
    /// `delete.retention.ms`.
    pub(crate) at: TimestampMs,
    /// How many tombstones there are still.
    pub(crate) tombstones: u64,
}

/// A segment as a checkpoint found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentState {
    pub(crate) base: Offset,
    pub(crate) next_offset: Offset,
    /// The Raft entry of the first batch.
    pub(crate) first: LogId,
    pub(crate) sealed: bool,
    pub(crate) bytes: u64,
    pub(crate) created: TimestampMs,
    /// Told apart by it from others that begin at the same offset in the same term; 0 for what was appended here.
    pub(crate) generation: u32,
    pub(crate) compacted: Option<Compacted>,
}

impl SegmentState {
    /// Whether batches may be missing between others: where it was compacted, here or where it was copied from.
    pub(crate) fn may_have_holes(&self) -> bool {
        self.generation > 0
    }

    /// The path of its file with an ending: `log`, `index`, `seal`, `producers`.
    pub(crate) fn path(&self, dir: &Path, ending: &str) -> PathBuf {
        let path = segment_path(dir, self.base, self.first.term, ending);
        match self.generation {
            0 => path,
            generation => {
                let (base, term) = (self.base.get(), self.first.term);
                path.with_file_name(format!("{base:020}-{term}-{generation}.{ending}"))
            }
        }
    }
}

/// What [`PartitionState::encode`] writes. A state file and a record of the write-ahead log that hold states carry it.
pub(crate) const STATE_FORMAT: u32 = 5;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartitionState {
    pub(crate) key: PartitionKey,
    /// The last record of the write-ahead log that is reflected here.
    pub(crate) lsn: Lsn,
    pub(crate) segment_bytes: u64,
    pub(crate) start_offset: Offset,
    pub(crate) end_offset: Offset,
    pub(crate) last_purged: Option<LogId>,
    pub(crate) last: Option<LogId>,
    pub(crate) applied: Option<LogId>,
    pub(crate) vote: Option<Vote>,
    pub(crate) votes_from: RaftIndex,
    pub(crate) membership: Option<(LogId, Bytes)>,
    pub(crate) terms: Vec<(Term, RaftIndex)>,
    pub(crate) controls: BTreeMap<RaftIndex, Control>,
    pub(crate) segments: Vec<SegmentState>,
    /// See [`super::core::LogCore`].
    pub(crate) compacted_to: Offset,
    /// What was known of producers where the first segment begins.
    pub(crate) origin: Bytes,
}

impl PartitionState {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_slice(self.key.topic.as_bytes());
        out.put_u32_le(self.key.partition.get());
        out.put_u64_le(self.lsn.get());
        out.put_u64_le(self.segment_bytes);
        out.put_u64_le(self.start_offset.get());
        out.put_u64_le(self.end_offset.get());
        for id in [self.last_purged, self.last, self.applied] {
            put_log_id(out, id);
        }
        out.put_u8(u8::from(self.vote.is_some()));
        let vote = self.vote.unwrap_or_default();
        out.put_u64_le(vote.term.get());
        out.put_u64_le(vote.node.get());
        out.put_u8(u8::from(vote.committed));
        out.put_u64_le(self.votes_from.get());
        put_log_id(out, self.membership.as_ref().map(|(id, _)| *id));
        put_bytes(
            out,
            self.membership.as_ref().map_or(&[], |(_, bytes)| bytes),
        );
        out.put_u32_le(self.terms.len() as u32);
        for (term, first) in &self.terms {
            out.put_u64_le(term.get());
            out.put_u64_le(first.get());
        }
        out.put_u32_le(self.controls.len() as u32);
        for (index, control) in &self.controls {
            out.put_u64_le(index.get());
            out.put_u8(control.kind as u8);
            put_bytes(out, &control.bytes);
        }
        out.put_u32_le(self.segments.len() as u32);
        for segment in &self.segments {
            out.put_u64_le(segment.base.get());
            out.put_u64_le(segment.next_offset.get());
            out.put_u64_le(segment.first.term.get());
            out.put_u64_le(segment.first.index.get());
            out.put_u8(u8::from(segment.sealed));
            out.put_u64_le(segment.bytes);
            out.put_i64_le(segment.created.get());
            out.put_u32_le(segment.generation);
            out.put_u8(u8::from(segment.compacted.is_some()));
            let (at, tombstones) = segment.compacted.map_or((0, 0), |compacted| {
                (compacted.at.get(), compacted.tombstones)
            });
            out.put_i64_le(at);
            out.put_u64_le(tombstones);
        }
        out.put_u64_le(self.compacted_to.get());
        put_bytes(out, &self.origin);
    }

    /// Takes one state of a format up to the newest off the front of `bytes`, which a checksum has vouched for.
    pub(crate) fn decode(bytes: &mut Bytes, format: u32) -> Result<Self, TryGetError> {
        let mut topic = [0; 16];
        bytes.try_copy_to_slice(&mut topic)?;
        let partition = PartitionId::new(bytes.try_get_u32_le()?);
        let mut state = Self {
            key: PartitionKey {
                topic: TopicId::from_bytes(topic),
                partition,
            },
            lsn: Lsn::new(bytes.try_get_u64_le()?),
            segment_bytes: bytes.try_get_u64_le()?,
            start_offset: Offset::new(bytes.try_get_u64_le()?),
            end_offset: Offset::new(bytes.try_get_u64_le()?),
            last_purged: get_log_id(bytes)?,
            last: get_log_id(bytes)?,
            applied: get_log_id(bytes)?,
            ..Self::default()
        };
        let voted = bytes.try_get_u8()? == 1;
        let vote = Vote {
            term: Term::new(bytes.try_get_u64_le()?),
            node: NodeId::new(bytes.try_get_u64_le()?),
            committed: bytes.try_get_u8()? == 1,
        };
        state.vote = voted.then_some(vote);
        state.votes_from = match format {
            1 | 2 => RaftIndex::default(),
            _ => RaftIndex::new(bytes.try_get_u64_le()?),
        };
        let membership = get_log_id(bytes)?;
        let members = get_bytes(bytes)?;
        state.membership = membership.map(|id| (id, members));
        for _ in 0..bytes.try_get_u32_le()? {
            state.terms.push((
                Term::new(bytes.try_get_u64_le()?),
                RaftIndex::new(bytes.try_get_u64_le()?),
            ));
        }
        for _ in 0..bytes.try_get_u32_le()? {
            let index = RaftIndex::new(bytes.try_get_u64_le()?);
            let kind = ControlKind::from_number(bytes.try_get_u8()?).unwrap_or(ControlKind::Blank);
            state.controls.insert(
                index,
                Control {
                    kind,
                    bytes: get_bytes(bytes)?,
                },
            );
        }
        for _ in 0..bytes.try_get_u32_le()? {
            state.segments.push(get_segment(bytes, format)?);
        }
        if format > 3 {
            state.compacted_to = Offset::new(bytes.try_get_u64_le()?);
        }
        if format > 4 {
            state.origin = get_bytes(bytes)?;
        }
        Ok(state)
    }
}

fn get_segment(bytes: &mut Bytes, format: u32) -> Result<SegmentState, TryGetError> {
    Ok(SegmentState {
        base: Offset::new(bytes.try_get_u64_le()?),
        next_offset: Offset::new(bytes.try_get_u64_le()?),
        first: LogId::new(bytes.try_get_u64_le()?, bytes.try_get_u64_le()?),
        sealed: bytes.try_get_u8()? == 1,
        bytes: bytes.try_get_u64_le()?,
        created: TimestampMs::new(bytes.try_get_i64_le()?),
        generation: match format {
            1 => 0,
            _ => bytes.try_get_u32_le()?,
        },
        compacted: match format {
            1..=3 => None,
            _ => get_compacted(bytes)?,
        },
    })
}

fn get_compacted(bytes: &mut Bytes) -> Result<Option<Compacted>, TryGetError> {
    let present = bytes.try_get_u8()? == 1;
    let compacted = Compacted {
        at: TimestampMs::new(bytes.try_get_i64_le()?),
        tombstones: bytes.try_get_u64_le()?,
    };
    Ok(present.then_some(compacted))
}

pub(super) fn put_log_id(out: &mut Vec<u8>, id: Option<LogId>) {
    out.put_u8(u8::from(id.is_some()));
    let id = id.unwrap_or_default();
    out.put_u64_le(id.term.get());
    out.put_u64_le(id.index.get());
}

pub(super) fn get_log_id(bytes: &mut Bytes) -> Result<Option<LogId>, TryGetError> {
    let present = bytes.try_get_u8()? == 1;
    let id = LogId::new(bytes.try_get_u64_le()?, bytes.try_get_u64_le()?);
    Ok(present.then_some(id))
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

pub(super) fn get_bytes(bytes: &mut Bytes) -> Result<Bytes, TryGetError> {
    let len = bytes.try_get_u32_le()? as usize;
    if len > bytes.len() {
        return Err(TryGetError {
            requested: len,
            available: bytes.len(),
        });
    }
    Ok(bytes.split_to(len))
}
