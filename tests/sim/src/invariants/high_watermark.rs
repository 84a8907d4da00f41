//! The high watermark never goes back in one life of a replica, and a leader's covers all that was acknowledged before its
//! term.

use std::collections::BTreeMap;

use quipu_model::{NodeId, Offset, Term};

use super::{Acknowledgement, Check, violated};

const NAME: &str = "high-watermark";

#[derive(Debug, Default)]
pub(super) struct Marks {
    seen: BTreeMap<(NodeId, u64), Offset>,
    /// Up to where each term acknowledged.
    acknowledged: BTreeMap<Term, Offset>,
}

impl Marks {
    pub(super) fn acknowledged(&mut self, told: &Acknowledgement) {
        let end = told.base.plus(told.records.into());
        let mark = self.acknowledged.entry(told.term).or_default();
        *mark = end.max(*mark);
    }

    /// The newest term in which anything was acknowledged.
    pub(super) fn newest(&self) -> Term {
        let newest = self.acknowledged.last_key_value();
        newest.map(|(term, _)| *term).unwrap_or_default()
    }

    pub(super) fn seen(&mut self, life: (NodeId, u64), mark: Offset, leads: Option<Term>) -> Check {
        let node = life.0;
        if let Some(before) = self.seen.insert(life, mark)
            && before > mark
        {
            return violated(NAME, format!("node {node}'s went from {before} to {mark}"));
        }
        let Some(term) = leads else { return Ok(()) };
        let before = self.acknowledged.range(..term);
        let acknowledged = before.map(|(_, end)| *end).max().unwrap_or_default();
        if mark >= acknowledged {
            return Ok(());
        }
        violated(
            NAME,
            format!(
                "node {node} leads term {term} and shows {mark}, though records up to {acknowledged} were acknowledged before it"
            ),
        )
    }
}
