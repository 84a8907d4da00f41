//! A replica that was removed takes part in nothing any more.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use quipu_model::{NodeId, PartitionKey};
use tokio::time::Instant;

use super::{Check, violated};

const NAME: &str = "removed";
/// What a replica said before it was removed may be heard so much later.
const LATE: Duration = Duration::from_secs(1);

/// Which replicas were removed, and when.
#[derive(Debug, Default)]
pub(super) struct Removed {
    since: BTreeMap<(PartitionKey, NodeId), Instant>,
}

impl Removed {
    pub(super) fn left(&mut self, key: PartitionKey, node: NodeId) {
        if let Entry::Vacant(entry) = self.since.entry((key, node)) {
            entry.insert(Instant::now());
        }
    }

    pub(super) fn joined(&mut self, key: PartitionKey, node: NodeId) {
        self.since.remove(&(key, node));
    }

    /// A node asked for a vote, gave one, took entries in or acknowledged records.
    pub(super) fn takes_part(&self, key: PartitionKey, node: NodeId) -> Check {
        match self.since.get(&(key, node)) {
            Some(since) if since.elapsed() > LATE => {
                let gone = since.elapsed().as_millis();
                let detail = format!("node {node} takes part in {key}, {gone} ms after it left");
                violated(NAME, detail)
            }
            _ => Ok(()),
        }
    }
}
