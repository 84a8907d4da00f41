//! Consumer groups: what they store, who coordinates them, and how their members share partitions.
//!
//! A group's name decides its partition of the internal topic `__consumer_offsets`; who leads that partition coordinates the group.
//! [`coordinator`] is the state machine, [`shard`] loads it and drives it beside each replica, [`Groups`] finds the right one.

mod assign;
mod beside;
mod classic;
mod consumer;
mod coordinator;
mod names;
mod offsets;
mod records;
mod shard;
mod topics;
mod writer;

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::RwLock;
use quipu_model::{NodeId, PartitionId, PartitionKey, TopicId, TopicName};
use quipu_proto::peer::v1::{CreateOffsetsTopic, change_request::Change};
use quipu_storage::io::Clock;
use tokio::{sync::watch, time::Instant};

pub use self::{
    assign::Assignor,
    beside::GroupPartition,
    classic::{
        ClassicDescription, ClassicJoin, ClassicMember, ClassicMemberView, ClassicSync, Joined,
        JoinedMember, Protocol, Synced,
    },
    consumer::{Assignment, ConsumerHeartbeat, HeartbeatAnswer, MemberView, Spec},
    coordinator::{Committer, Description, Listing},
    names::{GroupError, GroupId, MemberId},
    offsets::{Committed, Place},
};
pub(crate) use self::{
    classic::Reply,
    consumer::Join,
    coordinator::{Commit, Coordinator, Effects, Limits, Notice},
    names::Moment,
    shard::{Session, not_coordinator},
};
use self::{
    classic::Ticket,
    shard::{Server, Shard},
    topics::TopicsView,
};
use crate::{
    core::{Core, certain_end},
    error::{BrokerError, NodeAddress, Reason},
    metadata::{Metadata, MetadataImage},
    partitions::Running,
};

/// The groups that this node coordinates.
pub(crate) struct Groups {
    node: NodeId,
    clock: Arc<dyn Clock>,
    limits: Limits,
    shards: RwLock<HashMap<PartitionId, Arc<Shard>>>,
    topics: watch::Sender<Arc<TopicsView>>,
    started: Instant,
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Groups").finish_non_exhaustive()
    }
}

impl Groups {
    pub(crate) fn new(node: NodeId, clock: Arc<dyn Clock>, limits: Limits) -> Self {
        Self {
            node,
            clock,
            limits,
            shards: RwLock::default(),
            topics: watch::Sender::default(),
            started: Instant::now(),
        }
    }

    /// A replica runs from now on: where it is one of the internal topic, its groups are served while it leads.
    pub(crate) fn started(&self, running: &Running) {
        let key = running.partition.key();
        if key.topic != MetadataImage::OFFSETS_TOPIC_ID {
            return;
        }
        let shard = Arc::new(Shard::new());
        self.shards
            .write()
            .insert(key.partition, Arc::clone(&shard));
        let server = Server {
            node: self.node,
            partition: running.partition.clone(),
            stopped: running.stopped.clone(),
            clock: Arc::clone(&self.clock),
            limits: self.limits.clone(),
            shard,
            topics: self.topics.subscribe(),
            started: self.started,
        };
        tokio::spawn(server.run());
    }

    /// Keeps the groups informed of the cluster's topics, until the node stops.
    pub(crate) async fn follow_topics(self: Arc<Self>, metadata: Arc<Metadata>) {
        let mut applied = metadata.applied();
        loop {
            applied.mark_unchanged();
            let view = TopicsView::of(&metadata.image());
            self.topics.send_if_modified(|known| {
                let news = **known != view;
                if news {
                    *known = Arc::new(view);
                }
                news
            });
            if applied.changed().await.is_err() {
                return;
            }
        }
    }

    fn shard(&self, partition: PartitionId) -> Option<Arc<Shard>> {
        self.shards.read().get(&partition).cloned()
    }
}

/// The partition of a group, of so many: FNV-1a of its name. It stands in no record, but what is stored rests on it.
fn partition_of(group: &GroupId, partitions: usize) -> PartitionId {
    let hash = group
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    // As many partitions as fit their 32-bit numbers.
    PartitionId::new((hash % partitions.max(1) as u64) as u32)
}

impl Core {
    /// The partition that holds a group. The topic is made where there is none yet.
    async fn group_partition(&self, group: &GroupId) -> Result<PartitionId, BrokerError> {
        let partitions = || {
            let image = self.metadata.image();
            let topic = image.topic_by_id(MetadataImage::OFFSETS_TOPIC_ID)?;
            Some(topic.assignments.len())
        };
        let count = match partitions() {
            Some(count) => count,
            None => {
                let create = Change::CreateOffsetsTopic(CreateOffsetsTopic {});
                self.controller()?.change_here(create).await?;
                partitions().ok_or_else(not_coordinator)?
            }
        };
        Ok(partition_of(group, count))
    }

    /// Which node coordinates a group.
    ///
    /// # Errors
    /// Where nobody does at present.
    pub(crate) async fn find_coordinator(
        &self,
        group: &GroupId,
    ) -> Result<NodeAddress, BrokerError> {
        let partition = self.group_partition(group).await?;
        self.coordinator_of(partition).ok_or_else(|| {
            BrokerError::new(
                Reason::CoordinatorLoading,
                format!(
                    "partition {partition} of {}, which holds group {group}, has no leader that is known here: retry shortly",
                    MetadataImage::OFFSETS_TOPIC
                ),
            )
        })
    }

    /// Who leads a partition of the internal topic, as far as it is known and reached.
    fn coordinator_of(&self, partition: PartitionId) -> Option<NodeAddress> {
        let key = PartitionKey {
            topic: MetadataImage::OFFSETS_TOPIC_ID,
            partition,
        };
        let replica = self.table.replica(key);
        let own = replica.as_ref().map(quipu_replication::Partition::leader);
        let (leader, _) = match (own, self.leaders.leader(key)) {
            (Some((Some(leader), epoch)), Some((_, heard))) if epoch >= heard => (leader, epoch),
            (_, Some(heard)) => heard,
            (Some((Some(leader), epoch)), None) => (leader, epoch),
            _ => return None,
        };
        let here = leader == self.node;
        let serves = match here {
            // One that no majority follows sends nobody to itself.
            true => replica.is_some_and(|replica| replica.is_followed()),
            false => self.linked.borrow().contains(&leader),
        };
        self.book.address_of(leader).filter(|_| serves)
    }

    /// Lets an event happen at the coordinator of a group, if that is this node.
    ///
    /// # Errors
    /// Where it is another one (then it is named, where it is known) or what came of it could not be stored.
    pub(crate) async fn at_coordinator<T: Send + 'static>(
        &self,
        group: GroupId,
        event: impl FnOnce(&mut Coordinator, &GroupId, Moment, &mut Effects) -> T + Send + 'static,
    ) -> Result<T, BrokerError> {
        if self.stop.is_cancelled() {
            return Err(BrokerError::shutting_down());
        }
        let partition = self.group_partition(&group).await?;
        let event = move |coordinator: &mut Coordinator, now, effects: &mut Effects| {
            event(coordinator, &group, now, effects)
        };
        let called = match self.groups.shard(partition) {
            Some(shard) => shard.call(event).await,
            None => Err(not_coordinator()),
        };
        called.map_err(|error| self.with_coordinator(error, partition))
    }

    /// Looks at what the coordinator of a group knows, if that is this node for certain.
    ///
    /// # Errors
    /// Where it is another one, or may be.
    pub(crate) async fn look_at_coordinator<T: Send + 'static>(
        &self,
        group: GroupId,
        look: impl FnOnce(&Coordinator, &GroupId) -> T + Send + 'static,
    ) -> Result<T, BrokerError> {
        if self.stop.is_cancelled() {
            return Err(BrokerError::shutting_down());
        }
        let partition = self.group_partition(&group).await?;
        let seen = match self.groups.shard(partition) {
            Some(shard) => {
                shard
                    .look(move |coordinator| look(coordinator, &group))
                    .await
            }
            None => Err(not_coordinator()),
        };
        seen.map_err(|error| self.with_coordinator(error, partition))
    }

    /// Lets an event happen at the coordinator of a group, if that is this node, and waits for the reply that comes now or later.
    ///
    /// # Errors
    /// As [`Core::at_coordinator`].
    pub(crate) async fn ask_coordinator(
        &self,
        group: GroupId,
        event: impl FnOnce(&mut Coordinator, &GroupId, Ticket, Moment, &mut Effects) + Send + 'static,
    ) -> Result<Reply, BrokerError> {
        if self.stop.is_cancelled() {
            return Err(BrokerError::shutting_down());
        }
        let partition = self.group_partition(&group).await?;
        let event = move |coordinator: &mut Coordinator, ticket, now, effects: &mut Effects| {
            event(coordinator, &group, ticket, now, effects);
        };
        let asked = match self.groups.shard(partition) {
            Some(shard) => tokio::select! {
                asked = shard.ask(event) => asked,
                // The node does not stop before all are answered.
                () = self.stop.cancelled() => Err(BrokerError::shutting_down()),
            },
            None => Err(not_coordinator()),
        };
        asked.map_err(|error| self.with_coordinator(error, partition))
    }

    /// Opens a member's session with the coordinator of its group, if that is this node.
    ///
    /// # Errors
    /// Where it is another one; it is named, where it is known.
    pub(crate) async fn open_session(
        &self,
        group: &GroupId,
        member: &MemberId,
    ) -> Result<Session, BrokerError> {
        let partition = self.group_partition(group).await?;
        let opened = match self.groups.shard(partition) {
            Some(shard) => shard.open(group, member),
            None => Err(not_coordinator()),
        };
        opened.map_err(|error| self.with_coordinator(error, partition))
    }

    /// What a session is answered whose coordinator is another node by now.
    pub(crate) async fn session_moved(&self, group: &GroupId) -> BrokerError {
        match self.group_partition(group).await {
            Ok(partition) => self.with_coordinator(not_coordinator(), partition),
            Err(error) => error,
        }
    }

    /// Adds who coordinates the partition's groups to an error that says this node does not.
    fn with_coordinator(&self, error: BrokerError, partition: PartitionId) -> BrokerError {
        if error.reason != Reason::NotCoordinator {
            return error;
        }
        let leader = self.coordinator_of(partition);
        BrokerError {
            leader: leader.filter(|leader| leader.id != self.node),
            ..error
        }
    }

    /// All groups that this node coordinates, and whether there are more that it is still loading.
    ///
    /// # Errors
    /// Where a coordinator has too much to do.
    pub(crate) async fn list_groups(&self) -> Result<(Vec<Listing>, bool), BrokerError> {
        let shards: Vec<_> = self.groups.shards.read().values().cloned().collect();
        let (mut groups, mut loading) = (Vec::new(), false);
        for shard in shards {
            match shard.call(|coordinator, _, _| coordinator.list()).await {
                Ok(list) => groups.extend(list),
                Err(error) if error.reason == Reason::NotCoordinator => {}
                Err(_) if shard.is_loading() => loading = true,
                Err(error) => return Err(error),
            }
        }
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        Ok((groups, loading))
    }

    /// A partition by its topic's name.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) fn partition_key(
        &self,
        topic: &str,
        partition: u32,
    ) -> Result<PartitionKey, BrokerError> {
        let image = self.metadata.image();
        let known = image.topic(&TopicName::new(topic)?);
        let known = known.ok_or_else(|| BrokerError::unknown_topic(topic))?;
        let count = known.assignments.len();
        if partition as usize >= count {
            return Err(BrokerError::new(
                Reason::UnknownPartition,
                format!("topic {topic} has {count} partitions, numbered from 0, not {partition}"),
            ));
        }
        Ok(PartitionKey {
            topic: known.id,
            partition: PartitionId::new(partition),
        })
    }

    /// A topic's name; `None` where it was deleted.
    pub(crate) fn topic_name(&self, topic: TopicId) -> Option<TopicName> {
        let image = self.metadata.image();
        image.topic_by_id(topic).map(|topic| topic.name.clone())
    }

    /// # Errors
    /// Where this node leads the partition and knows that it does not reach so far.
    pub(crate) async fn check_reached(
        &self,
        key: PartitionKey,
        offset: quipu_model::Offset,
    ) -> Result<(), BrokerError> {
        let Some(partition) = self.table.replica(key) else {
            return Ok(());
        };
        if offset <= *partition.high_watermark().borrow() {
            return Ok(());
        }
        match certain_end(&partition).await {
            Some(end) if offset > end => Err(BrokerError::new(
                Reason::OffsetOutOfRange,
                format!("offset {offset} is past the end of the partition, which is {end}"),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{GroupId, partition_of};

    #[test]
    fn a_groups_partition_never_changes() {
        for (group, partition) in [("g", 6), ("orders", 12), ("ä", 2)] {
            let found = partition_of(&GroupId::new(group).unwrap(), 16);
            assert_eq!(found.get(), partition, "{group}");
        }
    }
}
