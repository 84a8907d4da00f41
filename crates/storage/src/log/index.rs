//! A segment's sparse index: from an offset, a Raft index or a time to a position nearby.
//!
//! An entry is 32 bytes, little-endian: the offset of a batch's first record, the batch's Raft index, its position, and
//! the newest timestamp of all batches before it in the segment (-1 where there is none). It is a hint: it carries no
//! checksum of its own, is checked against the seal's, and is rebuilt from the segment whenever in doubt.

use bytes::{BufMut, Bytes};
use quipu_model::{Offset, Position, RaftIndex, TimestampMs};

pub(crate) const ENTRY_LEN: usize = 32;

/// What stands for the Raft index in an entry rebuilt from the segment alone, which does not tell it: no search by Raft
/// index ever begins there.
pub(super) const UNKNOWN_RAFT_INDEX: RaftIndex = RaftIndex::new(u64::MAX);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) offset: Offset,
    pub(crate) raft_index: RaftIndex,
    pub(crate) position: Position,
    pub(crate) newest_before: TimestampMs,
}

/// Entries in ascending order: collected in memory for the active segment, read through a map for a sealed one.
#[derive(Clone, Debug)]
pub(crate) enum SparseIndex {
    Growing(Vec<IndexEntry>),
    Mapped(Bytes),
}

impl SparseIndex {
    pub(super) fn push(&mut self, entry: IndexEntry) {
        if let Self::Growing(entries) = self {
            entries.push(entry);
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Growing(entries) => entries.len(),
            Self::Mapped(bytes) => bytes.len() / ENTRY_LEN,
        }
    }

    fn get(&self, at: usize) -> Option<IndexEntry> {
        match self {
            Self::Growing(entries) => entries.get(at).copied(),
            Self::Mapped(bytes) => bytes.get(at * ENTRY_LEN..(at + 1) * ENTRY_LEN).map(decode),
        }
    }

    /// The last entry for which `before` holds; it must hold for a prefix of the entries.
    pub(super) fn last_where(&self, before: impl Fn(&IndexEntry) -> bool) -> Option<IndexEntry> {
        self.get(self.count_where(before).checked_sub(1)?)
    }

    /// The first entry for which `before` does not hold; it must hold for a prefix of the entries.
    pub(super) fn first_not(&self, before: impl Fn(&IndexEntry) -> bool) -> Option<IndexEntry> {
        self.get(self.count_where(before))
    }

    fn count_where(&self, before: impl Fn(&IndexEntry) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(middle).is_some_and(|entry| before(&entry)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Drops the entries at or behind a position (the segment was cut there).
    pub(super) fn truncate_at(&mut self, position: Position) {
        let kept = (0..self.len())
            .filter_map(|at| self.get(at))
            .take_while(|entry| entry.position < position)
            .collect();
        *self = Self::Growing(kept);
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len() * ENTRY_LEN);
        for entry in (0..self.len()).filter_map(|at| self.get(at)) {
            out.put_u64_le(entry.offset.get());
            out.put_u64_le(entry.raft_index.get());
            out.put_u64_le(entry.position.get());
            out.put_i64_le(entry.newest_before.get());
        }
        out
    }
}

/// An entry of [`ENTRY_LEN`] bytes.
pub(crate) fn decode(bytes: &[u8]) -> IndexEntry {
    let number = |at: usize| {
        let mut eight = [0; 8];
        eight.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(eight)
    };
    IndexEntry {
        offset: Offset::new(number(0)),
        raft_index: RaftIndex::new(number(8)),
        position: Position::new(number(16)),
        newest_before: TimestampMs::new(number(24) as i64),
    }
}
