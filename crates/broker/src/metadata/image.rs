//! What the metadata records say, taken together.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use quipu_model::{
    ConfigError, InvalidTopicName, NodeId, PartitionId, PartitionKey, TopicConfig, TopicId,
    TopicName,
};
use quipu_proto::internal::v1::{
    ClusterFormed, MetadataRecord, NodeRegistered, PartitionsAdded, ProducerIdsReserved,
    ReassignmentBegun, ReassignmentDone, TopicConfigChanged, TopicCreated, TopicDeleted,
    metadata_record::Record,
};
use uuid::Uuid;

use super::{
    assignment::{self, Assignment},
    quotas::ClientQuotas,
};

/// A topic as the cluster knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    pub name: TopicName,
    pub id: TopicId,
    /// By partition number.
    pub assignments: Arc<[Assignment]>,
    /// The settings that differ from the defaults, as text.
    pub settings: Arc<HashMap<String, String>>,
    /// All settings.
    pub config: TopicConfig,
}

impl Topic {
    /// The topic that holds the metadata itself: it stands in no record, since it is where records stand.
    fn cluster_metadata(voters: &[NodeId]) -> Self {
        let config = TopicConfig {
            retention_ms: None,
            ..TopicConfig::default()
        };
        Self {
            name: TopicName::new(MetadataImage::TOPIC).unwrap_or_else(|error| panic!("{error}")),
            id: MetadataImage::TOPIC_ID,
            assignments: Arc::new([Assignment::original(Box::from(voters))]),
            settings: Arc::default(),
            config,
        }
    }

    /// Whether every node has a replica: those that do not vote learn what was decided.
    pub fn is_everywhere(&self) -> bool {
        self.id == MetadataImage::TOPIC_ID
    }

    /// How many nodes hold each partition.
    pub fn replication_factor(&self) -> usize {
        self.assignments
            .first()
            .map_or(0, |assignment| assignment.replicas.len())
    }
}

/// A registered node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegisteredNode {
    pub(crate) address: String,
    /// Where Kafka clients reach it; empty: nowhere.
    pub(crate) kafka_address: String,
    /// The identity of its data directory.
    pub(crate) directory_id: [u8; 16],
    /// Where it stands; empty: not said.
    pub(crate) rack: String,
    /// Whether it is to hold no partition any more.
    pub(crate) draining: bool,
}

/// Everything that the records up to some offset say. Cloning shares the topics.
#[derive(Clone, Debug)]
pub(crate) struct MetadataImage {
    pub(crate) cluster_id: Option<Uuid>,
    pub(crate) nodes: HashMap<NodeId, RegisteredNode>,
    /// The numbers of nodes that are no longer part of the cluster.
    pub(crate) removed_nodes: BTreeSet<NodeId>,
    /// The first producer id that no block holds yet.
    pub(crate) next_producer_id: i64,
    pub(crate) quotas: Arc<ClientQuotas>,
    by_name: HashMap<TopicName, Arc<Topic>>,
    by_id: HashMap<TopicId, Arc<Topic>>,
}

/// Why a record was not taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("{field} of a {record} record is not 16 bytes long")]
    NotAnId {
        record: &'static str,
        field: &'static str,
    },
    #[error(
        "a metadata record of a kind that this version does not know: run the newer version that wrote it"
    )]
    UnknownKind,
    #[error("topic {name} is created twice")]
    CreatedTwice { name: TopicName },
    #[error("topic {id} is changed or deleted, but does not exist")]
    NoSuchTopic { id: TopicId },
    #[error("topic {id} has no partition {partition}")]
    NoSuchPartition { id: TopicId, partition: PartitionId },
    #[error("node {node} is not registered")]
    NoSuchNode { node: NodeId },
    #[error("node {node} was removed: its number is not used again")]
    NodeWasRemoved { node: NodeId },
    #[error("a move of partition {partition} of topic {id} is done that is no longer wanted")]
    OtherMove { id: TopicId, partition: PartitionId },
    #[error("producer ids from {next} on are reserved after ids from {reserved} on were")]
    ProducerIdsGoBack { next: i64, reserved: i64 },
    #[error(transparent)]
    Name(#[from] InvalidTopicName),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl ImageError {
    /// Whether the record is void rather than unreadable: every node skips it alike. A write whose outcome its
    /// controller did not learn of may be followed by another of the same kind.
    pub(crate) fn is_void(&self) -> bool {
        matches!(
            self,
            Self::CreatedTwice { .. }
                | Self::NoSuchTopic { .. }
                | Self::NoSuchPartition { .. }
                | Self::NoSuchNode { .. }
                | Self::NodeWasRemoved { .. }
                | Self::OtherMove { .. }
                | Self::ProducerIdsGoBack { .. }
        )
    }
}

impl MetadataImage {
    /// The name of the topic that holds the metadata.
    pub(crate) const TOPIC: &'static str = "__cluster_metadata";
    /// Its id, the same in every cluster.
    pub(crate) const TOPIC_ID: TopicId =
        TopicId::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// The name of the topic that holds what consumer groups store.
    pub(crate) const OFFSETS_TOPIC: &'static str = "__consumer_offsets";
    /// Its id, the same in every cluster.
    pub(crate) const OFFSETS_TOPIC_ID: TopicId =
        TopicId::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);

    /// The image before the first record: nothing but the metadata topic.
    pub(crate) fn empty(metadata_voters: &[NodeId]) -> Self {
        let topic = Arc::new(Topic::cluster_metadata(metadata_voters));
        Self {
            cluster_id: None,
            nodes: HashMap::new(),
            removed_nodes: BTreeSet::new(),
            next_producer_id: 0,
            quotas: Arc::default(),
            by_name: HashMap::from([(topic.name.clone(), Arc::clone(&topic))]),
            by_id: HashMap::from([(topic.id, topic)]),
        }
    }

    pub(crate) fn topic(&self, name: &TopicName) -> Option<&Arc<Topic>> {
        self.by_name.get(name)
    }

    pub(crate) fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_id.values()
    }

    pub(crate) fn topic_by_id(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.by_id.get(&id)
    }

    /// Which nodes hold a partition.
    pub(crate) fn assignment(&self, key: PartitionKey) -> Option<&Assignment> {
        let topic = self.by_id.get(&key.topic)?;
        topic.assignments.get(key.partition.get() as usize)
    }

    /// Whether a partition is assigned, and not to this node. The metadata is on every node, also on those that joined later.
    pub(crate) fn is_elsewhere(&self, key: PartitionKey, node: NodeId) -> bool {
        let assignment = self.assignment(key);
        key != METADATA_KEY && assignment.is_some_and(|assignment| !assignment.holds(node))
    }

    /// Takes in one more record.
    ///
    /// # Errors
    /// Where the record contradicts those before it; the image is then as before.
    pub(crate) fn apply(&mut self, record: MetadataRecord) -> Result<(), ImageError> {
        match record.record.ok_or(ImageError::UnknownKind)? {
            Record::Node(node) => self.register_node(&node),
            Record::TopicCreated(topic) => self.create_topic(topic),
            Record::TopicConfigChanged(change) => self.change_config(change),
            Record::TopicDeleted(topic) => self.delete_topic(&topic),
            Record::ProducerIdsReserved(block) => self.reserve_producer_ids(&block),
            Record::ClusterFormed(cluster) => self.form_cluster(&cluster),
            Record::PartitionsAdded(added) => self.add_partitions(&added),
            Record::ReassignmentBegun(begun) => self.begin_reassignment(&begun),
            Record::ReassignmentDone(done) => self.end_reassignment(&done),
            Record::NodeDraining(node) => self.drain_node(NodeId::new(node.node_id)),
            Record::NodeRemoved(node) => self.remove_node(NodeId::new(node.node_id)),
            Record::ClientQuotaChanged(changed) => {
                Arc::make_mut(&mut self.quotas).apply(changed);
                Ok(())
            }
        }
    }

    fn form_cluster(&mut self, cluster: &ClusterFormed) -> Result<(), ImageError> {
        let id = id_bytes(&cluster.cluster_id, "ClusterFormed", "cluster_id")?;
        self.cluster_id = Some(Uuid::from_bytes(id));
        Ok(())
    }

    fn register_node(&mut self, node: &NodeRegistered) -> Result<(), ImageError> {
        let id = NodeId::new(node.node_id);
        if self.removed_nodes.contains(&id) {
            return Err(ImageError::NodeWasRemoved { node: id });
        }
        let directory_id = id_bytes(&node.directory_id, "NodeRegistered", "directory_id")?;
        let registered = RegisteredNode {
            address: node.address.clone(),
            kafka_address: node.kafka_address.clone(),
            directory_id,
            rack: node.rack.clone(),
            draining: self.nodes.get(&id).is_some_and(|known| known.draining),
        };
        self.nodes.insert(id, registered);
        Ok(())
    }

    fn drain_node(&mut self, node: NodeId) -> Result<(), ImageError> {
        let known = self.nodes.get_mut(&node);
        known.ok_or(ImageError::NoSuchNode { node })?.draining = true;
        Ok(())
    }

    fn remove_node(&mut self, node: NodeId) -> Result<(), ImageError> {
        let known = self.nodes.remove(&node);
        known.ok_or(ImageError::NoSuchNode { node })?;
        self.removed_nodes.insert(node);
        Ok(())
    }

    fn add_partitions(&mut self, added: &PartitionsAdded) -> Result<(), ImageError> {
        let id = topic_id(&added.topic_id, "PartitionsAdded")?;
        let old = self.by_id.get(&id).ok_or(ImageError::NoSuchTopic { id })?;
        let new = added.partitions.iter().map(Assignment::from);
        let topic = Topic {
            assignments: old.assignments.iter().cloned().chain(new).collect(),
            ..Topic::clone(old)
        };
        self.put(topic);
        Ok(())
    }

    fn begin_reassignment(&mut self, begun: &ReassignmentBegun) -> Result<(), ImageError> {
        let id = topic_id(&begun.topic_id, "ReassignmentBegun")?;
        let replicas = assignment::node_ids(&begun.replicas);
        self.change_assignment(id, begun.partition, |assignment| {
            assignment.move_to(replicas);
            true
        })
    }

    fn end_reassignment(&mut self, done: &ReassignmentDone) -> Result<(), ImageError> {
        let id = topic_id(&done.topic_id, "ReassignmentDone")?;
        let replicas = assignment::node_ids(&done.replicas);
        self.change_assignment(id, done.partition, |assignment| {
            assignment.moved_to(&replicas, assignment::settled(done))
        })
    }

    fn change_assignment(
        &mut self,
        id: TopicId,
        partition: u32,
        change: impl FnOnce(&mut Assignment) -> bool,
    ) -> Result<(), ImageError> {
        let old = self.by_id.get(&id).ok_or(ImageError::NoSuchTopic { id })?;
        let mut assignments = old.assignments.to_vec();
        let partition_id = PartitionId::new(partition);
        let assignment =
            assignments
                .get_mut(partition as usize)
                .ok_or(ImageError::NoSuchPartition {
                    id,
                    partition: partition_id,
                })?;
        if !change(assignment) {
            return Err(ImageError::OtherMove {
                id,
                partition: partition_id,
            });
        }
        let topic = Topic {
            assignments: assignments.into(),
            ..Topic::clone(old)
        };
        self.put(topic);
        Ok(())
    }

    fn create_topic(&mut self, created: TopicCreated) -> Result<(), ImageError> {
        let name = TopicName::new(&created.name)?;
        let id = topic_id(&created.topic_id, "TopicCreated")?;
        if self.by_name.contains_key(&name) || self.by_id.contains_key(&id) {
            return Err(ImageError::CreatedTwice { name });
        }
        let topic = Topic {
            name,
            id,
            assignments: created.partitions.iter().map(Assignment::from).collect(),
            config: config_of(&created.config)?,
            settings: Arc::new(created.config),
        };
        self.put(topic);
        Ok(())
    }

    fn change_config(&mut self, change: TopicConfigChanged) -> Result<(), ImageError> {
        let id = topic_id(&change.topic_id, "TopicConfigChanged")?;
        let old = self.by_id.get(&id).ok_or(ImageError::NoSuchTopic { id })?;
        let topic = Topic {
            config: config_of(&change.config)?,
            settings: Arc::new(change.config),
            ..Topic::clone(old)
        };
        self.put(topic);
        Ok(())
    }

    fn delete_topic(&mut self, deleted: &TopicDeleted) -> Result<(), ImageError> {
        let id = topic_id(&deleted.topic_id, "TopicDeleted")?;
        let topic = self
            .by_id
            .remove(&id)
            .ok_or(ImageError::NoSuchTopic { id })?;
        self.by_name.remove(&topic.name);
        Ok(())
    }

    fn reserve_producer_ids(&mut self, block: &ProducerIdsReserved) -> Result<(), ImageError> {
        if block.next_id <= self.next_producer_id {
            return Err(ImageError::ProducerIdsGoBack {
                next: block.next_id,
                reserved: self.next_producer_id,
            });
        }
        self.next_producer_id = block.next_id;
        Ok(())
    }

    fn put(&mut self, topic: Topic) {
        let topic = Arc::new(topic);
        self.by_name.insert(topic.name.clone(), Arc::clone(&topic));
        self.by_id.insert(topic.id, topic);
    }
}

/// The partition that holds the metadata.
pub(crate) const METADATA_KEY: PartitionKey = PartitionKey {
    topic: MetadataImage::TOPIC_ID,
    partition: quipu_model::PartitionId::new(0),
};

/// All settings of a topic with these settings.
pub(crate) fn config_of(settings: &HashMap<String, String>) -> Result<TopicConfig, ConfigError> {
    TopicConfig::from_settings(settings.iter().map(|(k, v)| (k.as_str(), v.as_str())))
}

fn topic_id(bytes: &[u8], record: &'static str) -> Result<TopicId, ImageError> {
    id_bytes(bytes, record, "topic_id").map(TopicId::from_bytes)
}

fn id_bytes(
    bytes: &[u8],
    record: &'static str,
    field: &'static str,
) -> Result<[u8; 16], ImageError> {
    bytes
        .try_into()
        .map_err(|_| ImageError::NotAnId { record, field })
}

#[cfg(test)]
mod tests;
