//! A term has one leader.

use std::collections::BTreeMap;

use quipu_model::{NodeId, PartitionKey, Term, Vote};

use super::{Check, violated};

const NAME: &str = "one-leader";

/// Who leads which term, by what leaders say.
#[derive(Debug, Default)]
pub(super) struct Leaders {
    of: BTreeMap<(PartitionKey, Term), NodeId>,
}

impl Leaders {
    pub(super) fn spoke(&mut self, key: PartitionKey, vote: Vote) -> Check {
        let leader = *self.of.entry((key, vote.term)).or_insert(vote.node);
        if leader == vote.node {
            return Ok(());
        }
        violated(
            NAME,
            format!(
                "nodes {leader} and {} both lead {key} in term {}",
                vote.node, vote.term
            ),
        )
    }
}
