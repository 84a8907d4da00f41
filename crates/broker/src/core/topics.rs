//! Describing topics and the cluster.

use std::sync::Arc;

use quipu_model::{LeaderEpoch, NodeId, Offset, PartitionId};

use super::Core;
use crate::{
    error::{BrokerError, NodeAddress},
    metadata::{METADATA_KEY, Topic},
    partitions::TopicPartitions,
};

/// A partition as its replica here sees it.
#[derive(Clone, Debug)]
pub(crate) struct PartitionDescription {
    pub(crate) partition: PartitionId,
    pub(crate) leader: Option<NodeAddress>,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) replicas: Box<[NodeId]>,
    pub(crate) log_start: Offset,
    pub(crate) high_watermark: Offset,
    pub(crate) size_bytes: u64,
    /// Why it is not served, where it is not.
    pub(crate) trouble: Option<String>,
}

/// The cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterDescription {
    pub(crate) cluster_id: String,
    pub(crate) controller: Option<NodeId>,
    pub(crate) nodes: Vec<NodeAddress>,
}

impl Core {
    /// All topics, by name.
    pub(crate) fn list_topics(&self, include_internal: bool) -> Vec<Arc<Topic>> {
        let image = self.metadata.image();
        let shown = |topic: &&Arc<Topic>| include_internal || !topic.name.is_internal();
        let mut topics: Vec<_> = image.topics().filter(shown).cloned().collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
    }

    /// A topic and the state of its partitions.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) fn describe_topic(
        &self,
        name: &str,
    ) -> Result<(Arc<Topic>, Vec<PartitionDescription>), BrokerError> {
        let entry = self.table.topic(name)?;
        let partitions = (0..)
            .zip(entry.topic.assignments.iter())
            .map(|(number, replicas)| {
                self.describe_partition(&entry, PartitionId::new(number), replicas)
            })
            .collect();
        Ok((Arc::clone(&entry.topic), partitions))
    }

    fn describe_partition(
        &self,
        entry: &TopicPartitions,
        partition: PartitionId,
        replicas: &[NodeId],
    ) -> PartitionDescription {
        let mut description = PartitionDescription {
            partition,
            leader: None,
            leader_epoch: LeaderEpoch::new(-1),
            replicas: replicas.into(),
            log_start: Offset::ZERO,
            high_watermark: Offset::ZERO,
            size_bytes: 0,
            trouble: None,
        };
        let replica = match entry.find(partition) {
            Ok(running) => &running.partition,
            Err(error) => {
                description.trouble = Some(error.message);
                return description;
            }
        };
        if let Some(damage) = replica.damage() {
            description.trouble = Some(damage.to_string());
            return description;
        }
        let (leader, epoch) = replica.leader();
        description.leader = leader.and_then(|id| self.address_of(id));
        description.leader_epoch = epoch;
        description.log_start = replica.start_offset();
        description.high_watermark = *replica.high_watermark().borrow();
        description.size_bytes = replica.size_bytes();
        description
    }

    /// The cluster's id, controller and nodes.
    pub(crate) fn describe_cluster(&self) -> ClusterDescription {
        let image = self.metadata.image();
        let mut nodes: Vec<_> = image
            .nodes
            .iter()
            .map(|(id, node)| NodeAddress {
                id: *id,
                address: node.address.clone(),
            })
            .collect();
        nodes.sort_by_key(|node| node.id);
        ClusterDescription {
            cluster_id: image
                .cluster_id
                .map(|id| id.to_string())
                .unwrap_or_default(),
            controller: self.metadata_leader(),
            nodes,
        }
    }

    /// The node that leads the metadata partition, where it is known.
    pub(crate) fn metadata_leader(&self) -> Option<NodeId> {
        let entry = self
            .table
            .topic(crate::metadata::MetadataImage::TOPIC)
            .ok()?;
        let running = entry.find(METADATA_KEY.partition).ok()?;
        running.partition.leader().0
    }
}
