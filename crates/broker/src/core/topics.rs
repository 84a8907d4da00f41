//! Describing topics and the cluster.

use std::{sync::Arc, time::Duration};

use quipu_model::{LeaderEpoch, NodeId, Offset, PartitionId, PartitionKey};
use quipu_replication::AppendError;
use tokio::time::Instant;

use super::{Core, starting};
use crate::{
    error::{BrokerError, NodeAddress, Reason},
    metadata::{Assignment, METADATA_KEY, MetadataImage, NewTopic, RegisteredNode, Topic},
    partitions::TopicPartitions,
};

/// How long another replica may take to lead.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(10);

/// How long a new partition's first election is waited for.
const LED_PATIENCE: Duration = Duration::from_secs(2);
const LED_STEP: Duration = Duration::from_millis(10);

/// A partition as its replica here sees it.
#[derive(Clone, Debug)]
pub struct PartitionDescription {
    pub partition: PartitionId,
    pub leader: Option<NodeAddress>,
    pub leader_epoch: LeaderEpoch,
    pub replicas: Box<[NodeId]>,
    /// Who keeps it until the move under way is done.
    pub leaving: Box<[NodeId]>,
    /// Who joins by it.
    pub joining: Box<[NodeId]>,
    /// Which replicas are not reached or are far behind; only where this node leads.
    pub lagging: Box<[NodeId]>,
    pub log_start: Offset,
    pub high_watermark: Offset,
    pub size_bytes: u64,
    /// Why it is not served, where it is not.
    pub trouble: Option<String>,
}

/// The cluster.
#[derive(Clone, Debug)]
pub struct ClusterDescription {
    pub cluster_id: String,
    pub controller: Option<NodeId>,
    pub nodes: Vec<NodeDescription>,
}

/// A node of the cluster.
#[derive(Clone, Debug)]
pub struct NodeDescription {
    pub address: NodeAddress,
    /// `host:port` of its Kafka listener; empty: it has none.
    pub kafka_address: String,
    pub rack: String,
    /// Whether it is to hold no partition any more.
    pub draining: bool,
    /// Whether this node reaches it.
    pub reached: bool,
    /// Whether it votes on the metadata.
    pub voter: bool,
    /// How many replicas it has, by the metadata.
    pub replicas: u32,
    /// How many of them lead, by what nodes tell.
    pub leads: u32,
    /// What ails it, as far as this node knows: of itself only.
    pub trouble: Option<String>,
}

impl Core {
    /// All topics, by name.
    ///
    /// # Errors
    /// Where the node belongs to no cluster yet, or no longer.
    pub(crate) fn list_topics(
        &self,
        include_internal: bool,
    ) -> Result<Vec<Arc<Topic>>, BrokerError> {
        self.check_member()?;
        let image = self.metadata.image();
        if image.cluster_id.is_none() {
            return Err(starting());
        }
        let shown = |topic: &&Arc<Topic>| include_internal || !topic.name.is_internal();
        let mut topics: Vec<_> = image.topics().filter(shown).cloned().collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// Creates a topic. Its partitions are led by then, unless that takes long.
    ///
    /// # Errors
    /// Where it is refused, or the cluster's metadata cannot be changed now.
    pub(crate) async fn create_topic(&self, new: NewTopic) -> Result<Arc<Topic>, BrokerError> {
        let topic = self.controller()?.create_topic(new).await?;
        self.wait_led(&topic).await;
        Ok(topic)
    }

    /// Gives a topic more partitions: `partitions` in all. They are led by then, unless that takes long.
    ///
    /// # Errors
    /// Where it is refused, or the cluster's metadata cannot be changed now.
    pub(crate) async fn add_partitions(
        &self,
        name: &str,
        partitions: u32,
    ) -> Result<Arc<Topic>, BrokerError> {
        let topic = self.controller()?.add_partitions(name, partitions).await?;
        self.wait_led(&topic).await;
        Ok(topic)
    }

    /// Waits a while for leaders. Who asks for one in vain asks again, or gives up where it takes that for an error.
    async fn wait_led(&self, topic: &Topic) {
        let is_led = || {
            let described = self.describe_topic(topic.name.as_str());
            // One that is gone is not waited for.
            described.is_ok_and(|(_, all)| all.iter().all(|partition| partition.leader.is_some()))
        };
        let deadline = Instant::now() + LED_PATIENCE;
        while !is_led() && Instant::now() < deadline {
            tokio::time::sleep(LED_STEP).await;
        }
    }

    /// A topic and the state of its partitions.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) fn describe_topic(
        &self,
        name: &str,
    ) -> Result<(Arc<Topic>, Vec<PartitionDescription>), BrokerError> {
        let entry = self.topic(name)?;
        let partitions = (0..)
            .zip(entry.topic.assignments.iter())
            .map(|(number, assignment)| {
                self.describe_partition(&entry, PartitionId::new(number), assignment)
            })
            .collect();
        Ok((Arc::clone(&entry.topic), partitions))
    }

    fn describe_partition(
        &self,
        entry: &TopicPartitions,
        partition: PartitionId,
        assignment: &Assignment,
    ) -> PartitionDescription {
        let key = PartitionKey {
            topic: entry.topic.id,
            partition,
        };
        let reached =
            |leader: &NodeId| *leader == self.node || self.linked.borrow().contains(leader);
        let (leader, epoch) = match self.leaders.leader(key) {
            Some((leader, epoch)) => (Some(leader).filter(reached), epoch),
            None => (None, LeaderEpoch::new(-1)),
        };
        let mut description = PartitionDescription {
            partition,
            leader: leader.and_then(|id| self.book.address_of(id)),
            leader_epoch: epoch,
            replicas: assignment.replicas.clone(),
            leaving: assignment.leaving.clone(),
            joining: assignment.joining.clone(),
            lagging: Box::default(),
            log_start: Offset::ZERO,
            high_watermark: Offset::ZERO,
            size_bytes: 0,
            trouble: None,
        };
        let running = match entry.find(partition) {
            Ok(running) => running,
            // Other nodes have it.
            Err(error) if error.reason == Reason::NotLeader && leader.is_some() => {
                return description;
            }
            Err(error) => {
                description.trouble = Some(error.message);
                return description;
            }
        };
        let replica = &running.partition;
        if let Some(trouble) = replica.repair() {
            description.trouble = Some(trouble);
            return description;
        }
        let (leader, epoch) = replica.leader();
        if epoch >= description.leader_epoch {
            // One that no majority follows sends nobody to itself.
            let followed = |leader: &NodeId| *leader != self.node || replica.is_followed();
            let leader = leader.filter(reached).filter(followed);
            description.leader = leader.and_then(|id| self.book.address_of(id));
            description.leader_epoch = epoch;
        }
        if replica.is_leader() {
            description.lagging = self.lagging(assignment, running).collect();
        }
        description.log_start = replica.start_offset();
        description.high_watermark = *replica.high_watermark().borrow();
        description.size_bytes = replica.size_bytes();
        if entry.topic.is_everywhere() {
            let members = replica.members().borrow().clone();
            description.replicas = members.voters.into_iter().collect();
        }
        description
    }

    /// The cluster's id, controller and nodes.
    pub(crate) fn describe_cluster(&self) -> ClusterDescription {
        let image = self.metadata.image();
        let mut nodes: Vec<_> = image
            .nodes
            .iter()
            .map(|(id, node)| self.describe_node(&image, *id, node))
            .collect();
        nodes.sort_by_key(|node| node.address.id);
        ClusterDescription {
            cluster_id: image
                .cluster_id
                .map(|id| id.to_string())
                .unwrap_or_default(),
            controller: self.metadata_leader(),
            nodes,
        }
    }

    fn describe_node(
        &self,
        image: &MetadataImage,
        id: NodeId,
        node: &RegisteredNode,
    ) -> NodeDescription {
        let (mut replicas, mut leads) = (0, 0);
        for topic in image.topics().filter(|topic| !topic.is_everywhere()) {
            for (number, assignment) in (0..).zip(topic.assignments.iter()) {
                let key = PartitionKey {
                    topic: topic.id,
                    partition: PartitionId::new(number),
                };
                let leader = self.leaders.leader(key);
                replicas += u32::from(assignment.holds(id));
                leads += u32::from(leader.is_some_and(|(leader, _)| leader == id));
            }
        }
        let metadata = self.table.replica(METADATA_KEY);
        NodeDescription {
            address: NodeAddress {
                id,
                address: node.address.clone(),
            },
            kafka_address: node.kafka_address.clone(),
            rack: node.rack.clone(),
            draining: node.draining,
            reached: id == self.node || self.linked.borrow().contains(&id),
            voter: metadata
                .is_some_and(|partition| partition.members().borrow().voters.contains(&id)),
            replicas,
            leads,
            trouble: (id == self.node).then(|| self.own_trouble()).flatten(),
        }
    }

    /// Lets another replica lead a partition that this node leads.
    ///
    /// # Errors
    /// Where this node does not lead it, or the other one cannot.
    pub(crate) async fn transfer_leader(
        &self,
        topic: &str,
        partition: PartitionId,
        to: NodeId,
    ) -> Result<(), BrokerError> {
        let found = self.find(topic, partition)?;
        let transferring = found
            .running
            .partition
            .transfer_leader(to, TRANSFER_PATIENCE);
        transferring.await.map_err(|error| match error {
            AppendError::Refused { reason, .. } => BrokerError::new(
                Reason::InvalidRequest,
                format!("partition {partition} of {topic} was left as it is: {reason}"),
            ),
            error => self.append_error(error),
        })
    }

    /// The node that leads the metadata partition, where it is known.
    pub(crate) fn metadata_leader(&self) -> Option<NodeId> {
        self.table.replica(METADATA_KEY)?.leader().0
    }
}
