//! In the end a partition's replicas are those that were last asked for, they say so, and nobody else keeps its files.

use std::{collections::BTreeSet, time::Duration};

use quipu_model::{NodeId, PartitionKey};
use quipu_replication::Members;

use super::{Check, violated};

const NAME: &str = "agreed";
/// How long a cluster that is whole may take to finish a move.
pub(crate) const MOVES: Duration = Duration::from_secs(60);

/// What a node has of a partition.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) node: NodeId,
    /// What its replica knows, where it runs.
    pub(crate) members: Option<Members>,
    pub(crate) has_files: bool,
}

/// Whether all is as it was asked for.
pub(crate) fn is_agreed(wanted: &[NodeId], held: &[Held]) -> bool {
    let voters: BTreeSet<NodeId> = wanted.iter().copied().collect();
    let agreed = Members {
        voters,
        ..Members::default()
    };
    held.iter().all(|held| {
        if wanted.contains(&held.node) {
            held.members.as_ref() == Some(&agreed)
        } else {
            held.members.is_none() && !held.has_files
        }
    })
}

pub(crate) fn check(key: PartitionKey, moving: bool, wanted: &[NodeId], held: &[Held]) -> Check {
    if !moving && is_agreed(wanted, held) {
        return Ok(());
    }
    let seconds = MOVES.as_secs();
    violated(
        NAME,
        format!("{key} is to be on {wanted:?}, and {seconds} s later (moving: {moving}) {held:?}"),
    )
}
