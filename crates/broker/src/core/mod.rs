//! What a node does for its clients, whatever protocol they speak.

mod fetch;
mod offsets;
mod produce;
mod topics;

use std::sync::Arc;

use quipu_model::{NodeId, PartitionId};
use quipu_replication::AppendError;
use quipu_storage::{Store, io::Clock};
use tokio_util::sync::CancellationToken;

pub(crate) use fetch::{Fetch, FetchStream, Fetched};
pub(crate) use offsets::{ListedOffset, OffsetQuery};
pub(crate) use produce::{Payload, Prepared, Produce};
pub(crate) use topics::PartitionDescription;

use crate::{
    error::{BrokerError, NodeAddress},
    memory::MemoryBudget,
    metadata::{Controller, Metadata},
    metrics::Metrics,
    partitions::{PartitionTable, Running, TopicPartitions},
};

/// Everything that serving a request needs.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) node: NodeId,
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) table: Arc<PartitionTable>,
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) controller: Controller,
    pub(crate) metrics: Metrics,
    /// Bounds what producers sent and is not answered yet.
    pub(crate) produce_memory: MemoryBudget,
    /// Bounds what consumers were sent and have not read yet.
    pub(crate) fetch_memory: MemoryBudget,
    /// Cancelled when the node stops.
    pub(crate) stop: CancellationToken,
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
        let topic = self.table.topic(topic)?;
        let running = topic.find(partition)?.clone();
        if let Some(damage) = running.partition.damage() {
            return Err(BrokerError::from(&*damage));
        }
        Ok(Found { topic, running })
    }

    fn append_error(&self, error: AppendError) -> BrokerError {
        let leader = match &error {
            AppendError::NotLeader { leader, .. } => *leader,
            _ => None,
        };
        BrokerError {
            leader: leader.and_then(|node| self.address_of(node)),
            ..BrokerError::from(error)
        }
    }

    fn address_of(&self, id: NodeId) -> Option<NodeAddress> {
        let image = self.metadata.image();
        let address = image.nodes.get(&id)?.address.clone();
        Some(NodeAddress { id, address })
    }

    /// Why a request that waited on a partition was woken by its end.
    fn stopped_error(&self, topic: &str) -> BrokerError {
        if self.stop.is_cancelled() {
            BrokerError::shutting_down()
        } else {
            BrokerError::unknown_topic(topic)
        }
    }
}
