//! Groups and their offsets, seen from outside.

use std::collections::{BTreeMap, HashSet};

use quipu_model::{LeaderEpoch, Offset, TimestampMs};
use quipu_proto::v1::{
    CommitOffsetsRequest, DeleteGroupRequest, DeleteOffsetsRequest, DescribeGroupRequest,
    FetchOffsetsRequest, GroupMember, ListGroupsRequest, PartitionOffset, TopicOffsets,
};
pub use quipu_proto::v1::{
    DescribeGroupResponse as GroupDescription, GroupListing, MemberDescription, TopicPartitions,
};
use tokio::time::{Instant, sleep};

use super::coordinator;
use crate::{
    Admin, Result,
    cluster::{Cluster, ELECTION, LAST_PAUSE, groups_client},
    error::{Error, node_address},
};

/// How far a group has read a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The offset of the next record to read.
    pub offset: Offset,
    /// The epoch of the leader that the record before it came from, where that is known.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Whatever was stored with it, up to 4096 bytes.
    pub metadata: String,
    /// When it was stored. [`TimestampMs::NONE`] in what is to be stored.
    pub committed_at: TimestampMs,
}

impl GroupOffset {
    /// An offset without more.
    pub fn new(topic: impl Into<String>, partition: u32, offset: Offset) -> Self {
        Self {
            topic: topic.into(),
            partition,
            offset,
            leader_epoch: None,
            metadata: String::new(),
            committed_at: TimestampMs::NONE,
        }
    }
}

/// One unary call of the groups' service, on a group's coordinator: the one that is known, where one is given.
macro_rules! at_coordinator {
    ($cluster:expr, $group:expr, $method:ident, $request:expr) => {
        at_coordinator!($cluster, $group, None, $method, $request)
    };
    ($cluster:expr, $group:expr, $known:expr, $method:ident, $request:expr) => {{
        let request = $request;
        coordinator::call($cluster, $group, $known, |channel| {
            let request = request.clone();
            async move { groups_client(channel).$method(request).await }
        })
        .await
    }};
}

impl Admin {
    /// All groups of the cluster, by name.
    ///
    /// # Errors
    /// Where a node does not answer: groups that it coordinates would be missing.
    pub async fn list_groups(&self) -> Result<Vec<GroupListing>> {
        let cluster = self.describe_cluster().await?;
        let reached = cluster.states.iter().filter(|node| node.reached);
        // What a node that is down coordinated, another one does by now.
        let reached: HashSet<u64> = reached.map(|node| node.id).collect();
        let nodes = cluster.nodes.into_iter();
        let nodes = nodes.filter(|node| reached.contains(&node.id));
        let mut groups = BTreeMap::new();
        for address in nodes.filter_map(node_address) {
            for group in list_at(self.cluster(), &address).await? {
                groups.insert(group.group.clone(), group);
            }
        }
        Ok(groups.into_values().collect())
    }

    /// A group and its members.
    ///
    /// # Errors
    /// Where there is no such group.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription> {
        let request = DescribeGroupRequest {
            group: group.to_owned(),
        };
        at_coordinator!(self.cluster(), group, describe_group, request)
    }

    /// How far a group has read, wherever it has.
    ///
    /// # Errors
    /// Where its coordinator does not answer.
    pub async fn group_offsets(&self, group: &str) -> Result<Vec<GroupOffset>> {
        fetch_offsets(self.cluster(), group, None, &[]).await
    }

    /// Sets how far a group has read. The group must have no members.
    ///
    /// # Errors
    /// Where it has members, or an offset is refused; others may be stored then.
    pub async fn set_group_offsets(&self, group: &str, offsets: &[GroupOffset]) -> Result<()> {
        commit_offsets(self.cluster(), group, None, None, offsets).await
    }

    /// Forgets how far a group has read these partitions. The group must have no members.
    ///
    /// # Errors
    /// Where there is no such group, or it has members.
    pub async fn delete_group_offsets(
        &self,
        group: &str,
        partitions: &[(&str, u32)],
    ) -> Result<()> {
        let request = DeleteOffsetsRequest {
            group: group.to_owned(),
            topics: by_topic(partitions),
        };
        at_coordinator!(self.cluster(), group, delete_offsets, request).map(drop)
    }

    /// Forgets a group. It must have no members.
    ///
    /// # Errors
    /// Where there is no such group, or it has members.
    pub async fn delete_group(&self, group: &str) -> Result<()> {
        let request = DeleteGroupRequest {
            group: group.to_owned(),
        };
        at_coordinator!(self.cluster(), group, delete_group, request).map(drop)
    }
}

/// The groups that a node coordinates, once it has loaded all of them.
async fn list_at(cluster: &Cluster, address: &str) -> Result<Vec<GroupListing>> {
    let give_up_at = Instant::now() + ELECTION;
    loop {
        let listed = cluster
            .call_at(address, |channel| async move {
                groups_client(channel)
                    .list_groups(ListGroupsRequest {})
                    .await
            })
            .await?;
        if !listed.loading || Instant::now() > give_up_at {
            return Ok(listed.groups);
        }
        sleep(LAST_PAUSE).await;
    }
}

/// How far a group has read these partitions; all, where none is named.
pub(super) async fn fetch_offsets(
    cluster: &Cluster,
    group: &str,
    coordinator: Option<Box<str>>,
    partitions: &[(&str, u32)],
) -> Result<Vec<GroupOffset>> {
    let request = FetchOffsetsRequest {
        group: group.to_owned(),
        topics: by_topic(partitions),
    };
    let fetched = at_coordinator!(cluster, group, coordinator, fetch_offsets, request)?;
    let mut offsets = Vec::new();
    for TopicOffsets { topic, partitions } in fetched.topics {
        offsets.extend(partitions.into_iter().map(|found| GroupOffset {
            topic: topic.clone(),
            partition: found.partition,
            offset: Offset::new(found.offset),
            leader_epoch: found.leader_epoch.map(LeaderEpoch::new),
            metadata: found.metadata,
            committed_at: TimestampMs::new(found.committed_at_ms),
        }));
    }
    Ok(offsets)
}

/// Stores how far a group has read.
pub(super) async fn commit_offsets(
    cluster: &Cluster,
    group: &str,
    coordinator: Option<Box<str>>,
    member: Option<GroupMember>,
    offsets: &[GroupOffset],
) -> Result<()> {
    let mut topics = BTreeMap::<&str, Vec<PartitionOffset>>::new();
    for offset in offsets {
        let partition = PartitionOffset {
            partition: offset.partition,
            offset: offset.offset.get(),
            leader_epoch: offset.leader_epoch.map(LeaderEpoch::get),
            metadata: offset.metadata.clone(),
            committed_at_ms: 0,
        };
        topics.entry(&offset.topic).or_default().push(partition);
    }
    let topics = topics.into_iter().map(|(topic, partitions)| TopicOffsets {
        topic: topic.to_owned(),
        partitions,
    });
    let request = CommitOffsetsRequest {
        group: group.to_owned(),
        member,
        topics: topics.collect(),
    };
    let answer = at_coordinator!(cluster, group, coordinator, commit_offsets, request)?;
    let refused = answer.refused.into_iter().find_map(|refused| refused.error);
    match refused {
        None => Ok(()),
        Some(error) => Err(Error::from_proto(error)),
    }
}

fn by_topic(partitions: &[(&str, u32)]) -> Vec<TopicPartitions> {
    let topics: HashSet<&str> = partitions.iter().map(|(topic, _)| *topic).collect();
    let of = |topic: &str| {
        let partitions = partitions.iter().filter(|(named, _)| *named == topic);
        partitions.map(|(_, partition)| *partition).collect()
    };
    let topics = topics.into_iter().map(|topic| TopicPartitions {
        topic: topic.to_owned(),
        partitions: of(topic),
    });
    topics.collect()
}
