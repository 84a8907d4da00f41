//! Which Raft index is what: the table of terms, and the entries that are not batches.
//!
//! A segment holds batches only, one a Raft index; the indexes between them belong to the entries kept here.

use std::collections::BTreeMap;

use bytes::Bytes;
use quipu_model::{LogId, RaftIndex, Term};

use super::types::{Control, ControlKind};

/// The part of a partition's Raft log that its segments do not hold.
#[derive(Clone, Debug, Default)]
pub(super) struct RaftMap {
    /// Where each term begins, oldest first.
    terms: Vec<(Term, RaftIndex)>,
    controls: BTreeMap<RaftIndex, Control>,
    /// Before this index, controls may be forgotten: entries cannot be counted from there on.
    forgotten: RaftIndex,
}

impl RaftMap {
    pub(super) fn from_parts(
        terms: Vec<(Term, RaftIndex)>,
        controls: BTreeMap<RaftIndex, Control>,
    ) -> Self {
        Self {
            terms,
            controls,
            forgotten: RaftIndex::default(),
        }
    }

    /// What was loaded may lack controls before an index.
    pub(super) fn note_forgotten(&mut self, index: RaftIndex) {
        self.forgotten = self.forgotten.max(index);
    }

    /// Whether all entries from an index on are known, so that they can be counted.
    pub(super) fn counts_from(&self, index: RaftIndex) -> bool {
        index >= self.forgotten
    }

    pub(super) fn terms(&self) -> &[(Term, RaftIndex)] {
        &self.terms
    }

    pub(super) fn controls(&self) -> &BTreeMap<RaftIndex, Control> {
        &self.controls
    }

    pub(super) fn note_term(&mut self, id: LogId) {
        if self.terms.last().is_none_or(|(term, _)| *term < id.term) {
            self.terms.push((id.term, id.index));
        }
    }

    pub(super) fn add_control(&mut self, index: RaftIndex, control: Control) {
        self.controls.insert(index, control);
    }

    pub(super) fn control(&self, index: RaftIndex) -> Option<&Control> {
        self.controls.get(&index)
    }

    /// The term of an index at or behind the first one known here.
    pub(super) fn term_of(&self, index: RaftIndex) -> Option<Term> {
        let after = self.terms.partition_point(|(_, first)| *first <= index);
        self.terms.get(after.checked_sub(1)?).map(|(term, _)| *term)
    }

    /// The first index from `index` on that holds a batch.
    pub(super) fn batch_index_from(&self, mut index: RaftIndex) -> RaftIndex {
        while self.controls.contains_key(&index) {
            index = index.next();
        }
        index
    }

    /// The indexes at which terms begin within a range.
    pub(super) fn term_starts(
        &self,
        first: RaftIndex,
        last: RaftIndex,
    ) -> impl Iterator<Item = (Term, RaftIndex)> + '_ {
        self.terms
            .iter()
            .copied()
            .filter(move |(_, start)| *start > first && *start <= last)
    }

    /// Forgets all from `index` on.
    pub(super) fn truncate_from(&mut self, index: RaftIndex) {
        self.terms.retain(|(_, first)| *first < index);
        self.controls.split_off(&index);
    }

    /// The newest entry of a kind at or before `index`.
    pub(super) fn newest_control(
        &self,
        kind: ControlKind,
        index: RaftIndex,
    ) -> Option<(LogId, Bytes)> {
        let mut before = self.controls.range(..=index).rev();
        let (index, control) = before.find(|(_, control)| control.kind == kind)?;
        let (term, index) = (self.term_of(*index)?, *index);
        Some((LogId { term, index }, control.bytes.clone()))
    }

    /// Forgets what stands before `index`, but for the term that `index` itself may be in, and for who votes there: a replica
    /// that gets what comes after must be told.
    pub(super) fn forget_before(&mut self, index: RaftIndex) {
        let membership = self.newest_control(ControlKind::Membership, index);
        self.note_forgotten(index);
        self.controls = self.controls.split_off(&index);
        let mut from = index;
        if let Some((id, bytes)) = membership {
            let kind = ControlKind::Membership;
            self.controls.insert(id.index, Control { kind, bytes });
            from = from.min(id.index);
        }
        let keep = self
            .terms
            .partition_point(|(_, first)| *first <= from)
            .saturating_sub(1);
        self.terms.drain(..keep);
    }
}
