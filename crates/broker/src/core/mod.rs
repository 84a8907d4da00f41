//! What a node does for its clients, whatever protocol they speak.

mod fetch;
mod offsets;
mod produce;
mod quotas;
mod topics;

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
};

use quipu_model::{NodeId, PartitionId, PartitionKey, TopicId};
use quipu_replication::{AppendError, Partition, Replicator};
use quipu_storage::{Store, io::Clock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use fetch::{CONFIRMATION, FetchStream, certain_end};
pub use fetch::{Fetch, Fetched};
pub use offsets::{EpochEnd, ListedOffset, OffsetQuery};
pub use produce::{Appended, Payload, Prepared, Produce};
pub(crate) use quotas::Quotas;
pub use topics::{ClusterDescription, NodeDescription, PartitionDescription};

use crate::{
    cluster::{AddressBook, LeaderTable},
    error::{BrokerError, Reason},
    groups::Groups,
    memory::MemoryBudget,
    metadata::{Controller, Metadata},
    metrics::Metrics,
    partitions::{PartitionTable, Running, TopicPartitions},
    standing::Standing,
};

/// Everything that serving a request needs.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) node: NodeId,
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) table: Arc<PartitionTable>,
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) leaders: Arc<LeaderTable>,
    pub(crate) book: Arc<AddressBook>,
    /// The groups that this node coordinates.
    pub(crate) groups: Arc<Groups>,
    /// The nodes that are linked to.
    pub(crate) linked: watch::Receiver<HashSet<NodeId>>,
    /// Empty until the node has its place in the cluster's metadata.
    pub(crate) controller: OnceLock<Controller>,
    /// Whether the node is registered and has all of the metadata as of then.
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) replicator: Replicator,
    pub(crate) metrics: Metrics,
    pub(crate) standing: Standing,
    /// Bounds what producers sent and is not answered yet.
    pub(crate) produce_memory: MemoryBudget,
    /// Bounds what consumers were sent and have not read yet.
    pub(crate) fetch_memory: MemoryBudget,
    pub(crate) quotas: Quotas,
    /// Whether the cluster removed the node.
    pub(crate) removed: watch::Sender<bool>,
    /// Cancelled when the node stops.
    pub(crate) stop: CancellationToken,
    /// Cancelled then, and when the node was removed.
    pub(crate) serving: CancellationToken,
}

/// A partition found for a request.
#[derive(Debug)]
struct Found {
    topic: Arc<TopicPartitions>,
    running: Running,
}

impl Core {
    /// The partition of a request.
    ///
    /// # Errors
    /// Where it does not exist, does not run here, or is damaged.
    fn find(&self, topic: &str, partition: PartitionId) -> Result<Found, BrokerError> {
        if self.stop.is_cancelled() {
            return Err(BrokerError::shutting_down());
        }
        let topic = self.topic(topic)?;
        let running = match topic.find(partition) {
            Ok(running) => running.clone(),
            Err(error) => return Err(self.with_leader(error, topic.topic.id, partition)),
        };
        if let Some(error) = self.unserved(&running.partition) {
            return Err(error);
        }
        Ok(Found { topic, running })
    }

    /// A topic by name.
    fn topic(&self, name: &str) -> Result<Arc<TopicPartitions>, BrokerError> {
        self.check_member()?;
        match self.table.topic(name) {
            // It may be there all the same.
            Err(_) if !*self.ready.borrow() => Err(starting()),
            found => found,
        }
    }

    /// Where the cluster's metadata is changed.
    ///
    /// # Errors
    /// Where the node has no place in it yet, or no longer.
    pub(crate) fn controller(&self) -> Result<&Controller, BrokerError> {
        self.check_member()?;
        self.controller.get().ok_or_else(starting)
    }

    /// # Errors
    /// Where the cluster removed the node: what it knows is out of date.
    fn check_member(&self) -> Result<(), BrokerError> {
        if *self.removed.borrow() {
            return Err(BrokerError::new(
                Reason::ShuttingDown,
                format!(
                    "node {} was removed from the cluster: ask another node",
                    self.node
                ),
            ));
        }
        Ok(())
    }

    /// Adds who leads the partition, as far as it is known, to an error that says this node does not.
    fn with_leader(
        &self,
        error: BrokerError,
        topic: TopicId,
        partition: PartitionId,
    ) -> BrokerError {
        if error.reason != Reason::NotLeader {
            return error;
        }
        let leader = self.leaders.leader(PartitionKey { topic, partition });
        BrokerError {
            leader: leader.and_then(|(node, _)| self.book.address_of(node)),
            ..error
        }
    }

    fn append_error(&self, error: AppendError) -> BrokerError {
        let leader = match &error {
            AppendError::NotLeader { leader, .. } => *leader,
            _ => None,
        };
        BrokerError {
            leader: leader.and_then(|node| self.book.address_of(node)),
            ..BrokerError::from(error)
        }
    }

    /// Why a reader is better served by another node, or later: whoever leads, and not this node, knows what was written last.
    /// `None`: this node leads, or the leader is not reached from here; it then serves what it knows to be committed.
    fn led_elsewhere(&self, partition: &Partition) -> Option<BrokerError> {
        if let Some(error) = self.unserved(partition) {
            return Some(error);
        }
        let leadership = *partition.leadership().borrow();
        let leader = leadership.leader?;
        let better = if leader == self.node {
            // It may not know yet of all that was acknowledged before it led.
            !leadership.ready
        } else {
            self.linked.borrow().contains(&leader)
        };
        better.then(|| {
            self.append_error(AppendError::NotLeader {
                key: partition.key(),
                leader: Some(leader).filter(|leader| *leader != self.node),
            })
        })
    }

    /// Why a reader that waits for new records waits in vain: this node takes itself for the leader, and no majority follows it.
    fn led_by_nobody(&self, partition: &Partition) -> Option<BrokerError> {
        (partition.is_leader() && !partition.is_followed()).then(|| {
            self.append_error(AppendError::NotLeader {
                key: partition.key(),
                leader: None,
            })
        })
    }

    /// Why this node's replica of a partition serves nobody, where that is so for its damage. Others go on where there are others.
    fn unserved(&self, partition: &Partition) -> Option<BrokerError> {
        let damage = partition.damage()?;
        let error = BrokerError::from(&*damage);
        if partition.is_alone() {
            return Some(error);
        }
        let PartitionKey { topic, partition } = partition.key();
        let elsewhere = BrokerError::new(Reason::NotLeader, error.message);
        Some(self.with_leader(elsewhere, topic, partition))
    }

    /// Why a request that waited on a partition was woken by its end.
    fn stopped_error(&self, topic: &str) -> BrokerError {
        if self.stop.is_cancelled() {
            return BrokerError::shutting_down();
        }
        match self.topic(topic) {
            Ok(_) => BrokerError::new(
                Reason::NotLeader,
                format!("this partition of {topic} has moved to other nodes: ask its leader"),
            ),
            Err(error) => error,
        }
    }
}

fn starting() -> BrokerError {
    BrokerError::new(
        Reason::NotLeader,
        "this broker is starting and does not know the cluster's topics yet: retry shortly, or at another node",
    )
}
