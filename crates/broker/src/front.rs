//! The door for other fronts than gRPC: what the node does for its clients, in no protocol's terms.

mod groups;

use std::{collections::HashMap, sync::Arc, time::Duration};

use quipu_model::{LeaderEpoch, NodeId, Offset, PartitionId, ProducerId, TimestampMs, TopicId};
use quipu_proto::peer::v1::{Reassign, change_request::Change};

pub use self::groups::GroupFailure;
pub use crate::{
    core::{
        Appended, ClusterDescription, EpochEnd, Fetch, Fetched, ListedOffset, NodeDescription,
        OffsetQuery, PartitionDescription, Payload, Prepared, Produce,
    },
    groups::{
        Assignment as GroupAssignment, Assignor, ClassicDescription, ClassicJoin, ClassicMember,
        ClassicMemberView, ClassicSync, Committed, Committer, ConsumerHeartbeat, Description,
        GroupError, GroupId, GroupPartition, HeartbeatAnswer, Joined, JoinedMember, Listing,
        MemberId, MemberView, Place, Protocol, Spec, Synced,
    },
    memory::MemoryPermit,
    metadata::{Assignment, NewTopic, Topic, Traffic},
};
pub use quipu_proto::{
    internal::v1::StoredGroupKind as GroupKind,
    v1::{AlterQuotaRequest as QuotaChange, Quota},
};
pub use quipu_replication::Acks;

use crate::{core::Core, error::BrokerError, metadata::default_replication_factor};

/// A node as its clients use it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Front {
    core: Arc<Core>,
}

impl Front {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// This node's number.
    pub fn node(&self) -> NodeId {
        self.core.node
    }

    /// Whether the node has its place in the cluster and knows its topics.
    pub fn is_ready(&self) -> bool {
        *self.core.ready.borrow()
    }

    /// Resolves when the node stops: no more requests are to be taken in then.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.core.stop.clone().cancelled_owned()
    }

    /// The time by the node's clock.
    pub fn now(&self) -> TimestampMs {
        self.core.clock.now()
    }

    /// Waits for memory for a request from a producer.
    ///
    /// # Errors
    /// Where the node never has as much.
    pub async fn hold_produce(&self, bytes: usize) -> Result<MemoryPermit, BrokerError> {
        self.core.produce_memory.wait(bytes).await
    }

    /// Waits for memory for what a consumer is sent.
    ///
    /// # Errors
    /// Where the node never has as much.
    pub async fn hold_fetch(&self, bytes: usize) -> Result<MemoryPermit, BrokerError> {
        self.core.fetch_memory.wait(bytes).await
    }

    /// Counts bytes that a client sent or is sent, and says how long it is to wait before its next request of the kind: whole
    /// milliseconds, at most 30 s. What it sends before is not to be read.
    pub fn charge(&self, client: &str, traffic: Traffic, bytes: usize) -> Duration {
        self.core.quotas.charge(client, traffic, bytes)
    }

    /// How many bytes are to be sent to a client at once, as its quota and the node's memory would have it.
    pub fn most_to_fetch(&self, client: &str) -> usize {
        let quota = self.core.quotas.most_at_once(client, Traffic::Fetch);
        quota.min(self.core.fetch_memory.total())
    }

    /// All quotas: the default first, where there is one, then by client id.
    pub fn quotas(&self) -> Vec<Quota> {
        self.core.metadata.image().quotas.list()
    }

    /// Checks a change of a quota without making it.
    ///
    /// # Errors
    /// Where it would be refused.
    pub fn check_quota(&self, change: QuotaChange) -> Result<(), BrokerError> {
        let image = self.core.metadata.image();
        image.quotas.decide(change).map(drop)
    }

    /// Changes a client's quota, or the default.
    ///
    /// # Errors
    /// Where it is refused, or the cluster's metadata cannot be changed now.
    pub async fn alter_quota(&self, change: QuotaChange) -> Result<(), BrokerError> {
        self.core.controller()?.alter_quota(change).await.map(drop)
    }

    /// The cluster's id, controller and nodes.
    pub fn cluster(&self) -> ClusterDescription {
        self.core.describe_cluster()
    }

    /// How many replicas a new topic gets that says nothing.
    pub fn default_replication_factor(&self) -> usize {
        default_replication_factor(&self.core.metadata.image())
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// Where the node belongs to no cluster yet.
    pub fn topics(&self) -> Result<Vec<Arc<Topic>>, BrokerError> {
        self.core.list_topics(true)
    }

    /// The topic of an id.
    pub fn topic_by_id(&self, id: TopicId) -> Option<Arc<Topic>> {
        self.core.metadata.image().topic_by_id(id).cloned()
    }

    /// A topic and the state of its partitions.
    ///
    /// # Errors
    /// Where there is none.
    pub fn describe_topic(
        &self,
        name: &str,
    ) -> Result<(Arc<Topic>, Vec<PartitionDescription>), BrokerError> {
        self.core.describe_topic(name)
    }

    /// Checks a produce request: topic, partition, size, CRC and every record.
    ///
    /// # Errors
    /// Where any of them is refused, or the node has no memory for it now. Nothing was done then.
    pub fn prepare(&self, request: Produce<'_>) -> Result<Prepared, BrokerError> {
        self.core.prepare(request)
    }

    /// Answers with batches from an offset on, once there are enough or the wait is over.
    ///
    /// # Errors
    /// Where the partition is not served or does not hold the offset.
    pub async fn fetch(&self, request: Fetch<'_>) -> Result<Fetched, BrokerError> {
        self.core.fetch(request).await
    }

    /// Resolves once a partition's high watermark is no longer at `seen`, or it is not served here any more.
    pub async fn moved(&self, topic: &str, partition: PartitionId, seen: Offset) {
        self.core.moved(topic, partition, seen).await;
    }

    /// Looks up an offset. Where no record is as late as the time asked for, it is the latest offset.
    ///
    /// # Errors
    /// Where the partition is not served.
    pub async fn list_offset(
        &self,
        topic: &str,
        partition: PartitionId,
        query: OffsetQuery,
    ) -> Result<ListedOffset, BrokerError> {
        self.core.list_offset(topic, partition, query).await
    }

    /// Looks up where an epoch ends; `None` where it is newer than all that there were.
    ///
    /// # Errors
    /// Where the partition is not served.
    pub async fn end_of_epoch(
        &self,
        topic: &str,
        partition: PartitionId,
        epoch: LeaderEpoch,
    ) -> Result<Option<EpochEnd>, BrokerError> {
        self.core.end_of_epoch(topic, partition, epoch).await
    }

    /// Deletes the records before an offset, for good; `None`: all of them. Answers with the first offset then kept.
    ///
    /// # Errors
    /// Where the partition is not led here, the offset is past its end, or it is the cluster's own.
    pub async fn delete_records(
        &self,
        topic: &str,
        partition: PartitionId,
        before: Option<Offset>,
    ) -> Result<Offset, BrokerError> {
        self.core.delete_records(topic, partition, before).await
    }

    /// A producer id that was never handed out before, nor ever will be again.
    ///
    /// # Errors
    /// Where the cluster's metadata cannot be changed now.
    pub async fn next_producer_id(&self) -> Result<ProducerId, BrokerError> {
        self.core.controller()?.next_producer_id().await
    }

    /// Creates a topic and waits until its partitions here have started.
    ///
    /// # Errors
    /// Where it is refused, or the cluster's metadata cannot be changed now.
    pub async fn create_topic(&self, new: NewTopic) -> Result<Arc<Topic>, BrokerError> {
        self.core.create_topic(new).await
    }

    /// Changes a topic's settings: those of `set` get a value, those of `reset` their default.
    ///
    /// # Errors
    /// Where it is refused, or the cluster's metadata cannot be changed now.
    pub async fn alter_topic(
        &self,
        name: &str,
        set: HashMap<String, String>,
        reset: Vec<String>,
    ) -> Result<Arc<Topic>, BrokerError> {
        let controller = self.core.controller()?;
        controller.alter_topic(name, set, reset).await
    }

    /// Gives a topic more partitions: `partitions` in all.
    ///
    /// # Errors
    /// Where it is refused, or the cluster's metadata cannot be changed now.
    pub async fn add_partitions(
        &self,
        name: &str,
        partitions: u32,
    ) -> Result<Arc<Topic>, BrokerError> {
        self.core.add_partitions(name, partitions).await
    }

    /// Deletes a topic and waits until its files here are gone.
    ///
    /// # Errors
    /// Where it is refused, or the cluster's metadata cannot be changed now.
    pub async fn delete_topic(&self, name: &str) -> Result<(), BrokerError> {
        self.core.controller()?.delete_topic(name).await
    }

    /// Begins to move a partition to other nodes.
    ///
    /// # Errors
    /// Where it is refused, or the cluster's metadata cannot be changed now.
    pub async fn reassign(
        &self,
        topic: &str,
        partition: PartitionId,
        replicas: &[NodeId],
    ) -> Result<(), BrokerError> {
        let reassign = Change::Reassign(Reassign {
            name: topic.to_owned(),
            partition: partition.get(),
            replicas: replicas.iter().map(|node| node.get()).collect(),
        });
        self.core.controller()?.change_here(reassign).await
    }

    /// Lets another replica lead a partition that this node leads.
    ///
    /// # Errors
    /// Where this node does not lead it, or the other one cannot.
    pub async fn transfer_leader(
        &self,
        topic: &str,
        partition: PartitionId,
        to: NodeId,
    ) -> Result<(), BrokerError> {
        self.core.transfer_leader(topic, partition, to).await
    }
}
