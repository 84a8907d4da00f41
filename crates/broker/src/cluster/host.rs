//! What the links to other nodes need of this one.

use std::{collections::HashSet, sync::Arc};

use futures::future::BoxFuture;
use quipu_model::{LeaderEpoch, NodeId, PartitionKey};
use quipu_replication::{Partition, Replicator};
use quipu_storage::Store;
use tokio::sync::watch;

use super::LeaderTable;
use crate::{
    metadata::{Metadata, other_directory, removed},
    partitions::PartitionTable,
    peer::{Host, Identity, Throttle},
};

/// This node, as its links see it.
#[derive(Debug)]
pub(crate) struct NodeHost {
    pub(crate) node: NodeId,
    /// The first voters on the metadata.
    pub(crate) founders: Box<[NodeId]>,
    pub(crate) store: Arc<Store>,
    pub(crate) table: Arc<PartitionTable>,
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) leaders: Arc<LeaderTable>,
    pub(crate) replicator: Replicator,
    /// The nodes that are linked to.
    pub(crate) linked: watch::Sender<HashSet<NodeId>>,
    /// How fast batches are given to replicas that lack them.
    pub(crate) copying: Throttle,
    /// Why another node refuses this one.
    pub(crate) refusal: watch::Sender<Option<String>>,
}

impl Host for NodeHost {
    fn identity(&self) -> Identity {
        Identity {
            node: self.node,
            directory_id: self.store.directory_id(),
            cluster_id: self.metadata.image().cluster_id,
        }
    }

    /// A node's first data directory is remembered durably before it is talked to: what it votes and acknowledges from then on
    /// counts, and another directory under its number would not know of it.
    fn admit(&self, peer: &Identity) -> Result<(), String> {
        let image = self.metadata.image();
        if image.removed_nodes.contains(&peer.node) {
            return Err(removed(peer.node).message);
        }
        let known = match image.nodes.get(&peer.node) {
            Some(registered) => registered.directory_id,
            // It votes on nothing before it is registered.
            None if !self.founders.contains(&peer.node) => return Ok(()),
            None => self
                .store
                .remember_peer(peer.node, peer.directory_id)
                .map_err(|error| error.to_string())?,
        };
        if known == peer.directory_id {
            Ok(())
        } else {
            Err(other_directory(peer.node).message)
        }
    }

    fn partition(&self, key: PartitionKey) -> Option<Partition> {
        self.table.replica(key)
    }

    fn copying(&self) -> &Throttle {
        &self.copying
    }

    fn led(&self) -> Vec<(PartitionKey, LeaderEpoch)> {
        let topics = self.table.snapshot();
        let running = topics.values().flat_map(|topic| topic.running());
        running
            .filter_map(|running| {
                let leadership = *running.partition.leadership().borrow();
                let leads = leadership.leader == Some(self.node) && leadership.ready;
                leads.then(|| (running.partition.key(), leadership.epoch))
            })
            .collect()
    }

    fn heard_led(&self, from: NodeId, led: Vec<(PartitionKey, LeaderEpoch)>) {
        self.leaders.heard(from, &led);
    }

    fn peer_up(&self, node: NodeId, up: bool) {
        self.linked.send_modify(|linked| {
            if up {
                linked.insert(node);
            } else {
                linked.remove(&node);
            }
        });
        if !up {
            self.replicator.node_lost(node);
        }
    }

    fn peer_gone(&self, node: NodeId) {
        self.replicator.node_gone(node);
    }

    fn removal_of(&self, node: NodeId) -> BoxFuture<'static, String> {
        let metadata = Arc::clone(&self.metadata);
        Box::pin(async move {
            metadata.removal_of(node).await;
            removed(node).message
        })
    }

    fn refused(&self, by: NodeId, reason: &str) {
        self.refusal
            .send_replace(Some(format!("node {by} refuses this one: {reason}")));
    }
}
