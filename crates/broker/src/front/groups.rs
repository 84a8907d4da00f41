//! Consumer groups, for clients that speak Kafka's protocol.

use quipu_model::{NodeId, PartitionKey, TopicId, TopicName};

use super::Front;
use crate::{
    error::{BrokerError, Reason},
    groups::{
        ClassicDescription, ClassicJoin, ClassicMember, ClassicSync, Commit, Committed, Committer,
        ConsumerHeartbeat, Description, GroupError, GroupId, HeartbeatAnswer, Joined, Listing,
        MemberId, Reply, Synced,
    },
};

/// Why a group did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GroupFailure {
    /// Its coordinator refused.
    #[error(transparent)]
    Refused(#[from] GroupError),
    /// It was not asked, or what came of it could not be stored.
    #[error(transparent)]
    Node(#[from] BrokerError),
}

impl Front {
    /// Which node coordinates a group.
    ///
    /// # Errors
    /// Where nobody does at present.
    pub async fn find_coordinator(&self, group: &GroupId) -> Result<NodeId, BrokerError> {
        Ok(self.core.find_coordinator(group).await?.id)
    }

    /// A member joins a classic group, or joins again. Resolves when all have, or they are waited for no longer.
    ///
    /// # Errors
    /// Where it is refused, or this node does not coordinate the group.
    pub async fn join_group(
        &self,
        group: GroupId,
        join: ClassicJoin,
    ) -> Result<Joined, GroupFailure> {
        let asking = self
            .core
            .ask_coordinator(group, |groups, group, ticket, now, effects| {
                groups.join_classic(now, group, (ticket, join), effects);
            });
        match asking.await? {
            Reply::Joined(joined) => Ok(joined),
            Reply::Refused(error) => Err(error.into()),
            Reply::Synced(_) => Err(mixed_up().into()),
        }
    }

    /// A member of a classic group asks for what it is assigned. Resolves when the leader has said it.
    ///
    /// # Errors
    /// Where it is refused, or this node does not coordinate the group.
    pub async fn sync_group(
        &self,
        group: GroupId,
        sync: ClassicSync,
    ) -> Result<Synced, GroupFailure> {
        let asking = self
            .core
            .ask_coordinator(group, |groups, group, ticket, now, effects| {
                groups.sync_classic(now, group, (ticket, sync), effects);
            });
        match asking.await? {
            Reply::Synced(synced) => Ok(synced),
            Reply::Refused(error) => Err(error.into()),
            Reply::Joined(_) => Err(mixed_up().into()),
        }
    }

    /// A member of a classic group gives a sign of life.
    ///
    /// # Errors
    /// Where it is not known in this generation, is to join the next one, or this node does not coordinate the group.
    pub async fn heartbeat_group(
        &self,
        group: GroupId,
        member: ClassicMember,
    ) -> Result<(), GroupFailure> {
        let beating = self
            .core
            .at_coordinator(group, move |groups, group, now, _| {
                groups.heartbeat_classic(now, group, &member)
            });
        Ok(beating.await??)
    }

    /// A member leaves a classic group, named by either id or by both.
    ///
    /// # Errors
    /// Where it is not known, or this node does not coordinate the group.
    pub async fn leave_group(
        &self,
        group: GroupId,
        member: Option<MemberId>,
        instance: Option<Box<str>>,
    ) -> Result<(), GroupFailure> {
        let leaving = self
            .core
            .at_coordinator(group, move |groups, group, now, effects| {
                let member = (member.as_ref(), instance.as_deref());
                groups.leave_classic(now, group, member, effects)
            });
        Ok(leaving.await??)
    }

    /// A member that comes by heartbeats joins a group whose partitions the coordinator assigns, or gives a sign of life.
    ///
    /// # Errors
    /// Where it wants what is not given, is not known any more, or this node does not coordinate the group.
    pub async fn beat_group(
        &self,
        group: GroupId,
        beat: ConsumerHeartbeat,
    ) -> Result<HeartbeatAnswer, GroupFailure> {
        let beating = self
            .core
            .at_coordinator(group, move |groups, group, now, effects| {
                groups.beat(now, group, &beat, effects)
            });
        Ok(beating.await??)
    }

    /// A member that comes by heartbeats leaves. Where it comes back, what it owns is kept for its instance.
    ///
    /// # Errors
    /// Where it is not known, or this node does not coordinate the group.
    pub async fn depart_group(
        &self,
        group: GroupId,
        member: MemberId,
        instance: Option<Box<str>>,
        comes_back: bool,
    ) -> Result<(), GroupFailure> {
        let departing = self
            .core
            .at_coordinator(group, move |groups, group, now, effects| {
                let member = (&member, instance.as_deref());
                groups.depart(now, group, member, comes_back, effects)
            });
        Ok(departing.await??)
    }

    /// Stores offsets. Answers with those that were refused.
    ///
    /// # Errors
    /// Where none was stored.
    pub async fn commit_offsets(
        &self,
        group: GroupId,
        committer: Committer,
        offsets: Vec<(PartitionKey, Committed)>,
    ) -> Result<Vec<(PartitionKey, GroupError)>, GroupFailure> {
        let committing = self
            .core
            .at_coordinator(group, |groups, group, now, effects| {
                groups.commit(now, group, Commit { committer, offsets }, effects)
            });
        Ok(committing.await??)
    }

    /// The offsets stored for these partitions, or for all. Those that are not stored are left out. A member that asks may say so, and
    /// in which epoch.
    ///
    /// # Errors
    /// Where the member is not known or the epoch not its own, or this node does not coordinate the group.
    pub async fn fetch_offsets(
        &self,
        group: GroupId,
        member: Option<(MemberId, u64)>,
        partitions: Option<Vec<PartitionKey>>,
    ) -> Result<Vec<(PartitionKey, Committed)>, GroupFailure> {
        let fetching = self.core.look_at_coordinator(group, move |groups, group| {
            if let Some((member, epoch)) = member {
                groups.check_epoch(group, &member, epoch)?;
            }
            Ok::<_, GroupError>(groups.fetch(group, partitions.as_deref()))
        });
        Ok(fetching.await??)
    }

    /// Forgets offsets of a group without members.
    ///
    /// # Errors
    /// Where there is no such group, it has members, or this node does not coordinate it.
    pub async fn delete_offsets(
        &self,
        group: GroupId,
        partitions: Vec<PartitionKey>,
    ) -> Result<(), GroupFailure> {
        let deleting = self
            .core
            .at_coordinator(group, move |groups, group, _, effects| {
                groups.delete_offsets(group, &partitions, effects)
            });
        Ok(deleting.await??)
    }

    /// Forgets a group without members.
    ///
    /// # Errors
    /// Where there is no such group, it has members, or this node does not coordinate it.
    pub async fn delete_group(&self, group: GroupId) -> Result<(), GroupFailure> {
        let deleting = self
            .core
            .at_coordinator(group, |groups, group, _, effects| {
                groups.delete(group, effects)
            });
        Ok(deleting.await??)
    }

    /// The groups that this node coordinates, and whether there are more that it is still loading.
    ///
    /// # Errors
    /// Where it has too much to do.
    pub async fn list_groups(&self) -> Result<(Vec<Listing>, bool), BrokerError> {
        self.core.list_groups().await
    }

    /// All about a group, whatever its kind.
    ///
    /// # Errors
    /// Where there is none, or this node does not coordinate it.
    pub async fn describe_any_group(&self, group: GroupId) -> Result<Description, GroupFailure> {
        let describing = self
            .core
            .at_coordinator(group, |groups, group, _, _| groups.describe(group));
        Ok(describing.await??)
    }

    /// All about a classic group; one of which there are only offsets is one without members.
    ///
    /// # Errors
    /// Where there is none, it is of another kind, or this node does not coordinate it.
    pub async fn describe_group(&self, group: GroupId) -> Result<ClassicDescription, GroupFailure> {
        let describing = self
            .core
            .at_coordinator(group, |groups, group, _, _| groups.describe_classic(group));
        Ok(describing.await??)
    }

    /// A partition by its topic's name.
    ///
    /// # Errors
    /// Where there is none.
    pub fn partition_key(&self, topic: &str, partition: u32) -> Result<PartitionKey, BrokerError> {
        self.core.partition_key(topic, partition)
    }

    /// A topic's name; `None` where it was deleted.
    pub fn topic_name(&self, topic: TopicId) -> Option<TopicName> {
        self.core.topic_name(topic)
    }
}

/// A reply to another request than the one that was asked.
fn mixed_up() -> BrokerError {
    BrokerError::new(Reason::Internal, "the coordinator mixed replies up")
}
