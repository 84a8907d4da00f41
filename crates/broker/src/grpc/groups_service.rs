//! `quipu.v1.Groups`.

use std::{collections::BTreeMap, sync::Arc};

use quipu_model::{LeaderEpoch, Offset, PartitionKey, TimestampMs};
use quipu_proto::v1::{
    CommitOffsetsRequest, CommitOffsetsResponse, DeleteGroupRequest, DeleteGroupResponse,
    DeleteOffsetsRequest, DeleteOffsetsResponse, DescribeGroupRequest, DescribeGroupResponse,
    Error, FetchOffsetsRequest, FetchOffsetsResponse, FindCoordinatorRequest,
    FindCoordinatorResponse, GroupListing, ListGroupsRequest, ListGroupsResponse, Node,
    PartitionOffset, RefusedOffset, TopicOffsets, TopicPartitions, groups_server,
};
use tonic::{Request, Response, Status};

use crate::{
    core::Core,
    error::BrokerError,
    groups::{Commit, Committed, GroupId, Listing},
};

/// Serves the groups' API over the core.
#[derive(Clone, Debug)]
pub(super) struct GroupsService {
    pub(super) core: Arc<Core>,
}

fn group_id(name: &str) -> Result<GroupId, BrokerError> {
    Ok(GroupId::new(name)?)
}

#[tonic::async_trait]
impl groups_server::Groups for GroupsService {
    async fn find_coordinator(
        &self,
        request: Request<FindCoordinatorRequest>,
    ) -> Result<Response<FindCoordinatorResponse>, Status> {
        let group = group_id(&request.into_inner().group)?;
        let coordinator = self.core.find_coordinator(&group).await?;
        Ok(Response::new(FindCoordinatorResponse {
            coordinator: Some(Node::from(coordinator)),
        }))
    }

    async fn commit_offsets(
        &self,
        request: Request<CommitOffsetsRequest>,
    ) -> Result<Response<CommitOffsetsResponse>, Status> {
        let refused = self.commit(request.into_inner()).await?;
        Ok(Response::new(CommitOffsetsResponse { refused }))
    }

    async fn fetch_offsets(
        &self,
        request: Request<FetchOffsetsRequest>,
    ) -> Result<Response<FetchOffsetsResponse>, Status> {
        let request = request.into_inner();
        let group = group_id(&request.group)?;
        let wanted = match request.topics.is_empty() {
            true => None,
            false => Some(self.partition_keys(&request.topics)?),
        };
        let fetch = self
            .core
            .at_coordinator(group, move |coordinator, group, _, _| {
                coordinator.fetch(group, wanted.as_deref())
            });
        let topics = self.topic_offsets(fetch.await?);
        Ok(Response::new(FetchOffsetsResponse { topics }))
    }

    async fn delete_offsets(
        &self,
        request: Request<DeleteOffsetsRequest>,
    ) -> Result<Response<DeleteOffsetsResponse>, Status> {
        let request = request.into_inner();
        let group = group_id(&request.group)?;
        let partitions = self.partition_keys(&request.topics)?;
        let deleting = self
            .core
            .at_coordinator(group, move |coordinator, group, _, effects| {
                coordinator.delete_offsets(group, &partitions, effects)
            });
        deleting.await?.map_err(BrokerError::from)?;
        Ok(Response::new(DeleteOffsetsResponse {}))
    }

    async fn list_groups(
        &self,
        _request: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        let (groups, loading) = self.core.list_groups().await?;
        Ok(Response::new(ListGroupsResponse {
            groups: groups.into_iter().map(GroupListing::from).collect(),
            loading,
        }))
    }

    async fn describe_group(
        &self,
        request: Request<DescribeGroupRequest>,
    ) -> Result<Response<DescribeGroupResponse>, Status> {
        let group = group_id(&request.into_inner().group)?;
        let coordinator = self.core.find_coordinator(&group).await?;
        let describing = self.core.at_coordinator(group, |coordinator, group, _, _| {
            coordinator.describe(group)
        });
        let described = describing.await?.map_err(BrokerError::from)?;
        Ok(Response::new(DescribeGroupResponse {
            group: Some(described.into()),
            coordinator: Some(coordinator.into()),
            ..DescribeGroupResponse::default()
        }))
    }

    async fn delete_group(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        let group = group_id(&request.into_inner().group)?;
        let deleting = self
            .core
            .at_coordinator(group, |coordinator, group, _, effects| {
                coordinator.delete(group, effects)
            });
        deleting.await?.map_err(BrokerError::from)?;
        Ok(Response::new(DeleteGroupResponse {}))
    }
}

impl GroupsService {
    async fn commit(
        &self,
        request: CommitOffsetsRequest,
    ) -> Result<Vec<RefusedOffset>, BrokerError> {
        let group = group_id(&request.group)?;
        let (mut offsets, mut refused) = (Vec::new(), Vec::new());
        for topic in request.topics {
            for partition in topic.partitions {
                let number = partition.partition;
                match self.committed(&topic.topic, partition) {
                    Ok(offset) => offsets.push(offset),
                    Err(error) => refused.push(refusal(&topic.topic, number, error)),
                }
            }
        }
        let committing =
            self.core
                .at_coordinator(group, move |coordinator, group, now, effects| {
                    coordinator.commit(now, group, Commit { offsets }, effects)
                });
        for (key, error) in committing.await?? {
            let name = self.core.topic_name(key);
            let name = name.as_ref().map_or("", |name| name.as_str());
            refused.push(refusal(name, key.partition.get(), error.into()));
        }
        Ok(refused)
    }

    fn committed(
        &self,
        topic: &str,
        partition: PartitionOffset,
    ) -> Result<(PartitionKey, Committed), BrokerError> {
        let key = self.core.partition_key(topic, partition.partition)?;
        let offset = Offset::new(partition.offset);
        self.core.check_reached(key, offset)?;
        Ok((
            key,
            Committed {
                offset,
                leader_epoch: partition.leader_epoch.map(LeaderEpoch::new),
                metadata: partition.metadata.into(),
                // Set when it is stored.
                at: TimestampMs::NONE,
            },
        ))
    }

    fn partition_keys(&self, topics: &[TopicPartitions]) -> Result<Vec<PartitionKey>, BrokerError> {
        let named = topics.iter().flat_map(|topic| {
            let partitions = topic.partitions.iter();
            partitions.map(|partition| (topic.topic.as_str(), *partition))
        });
        named
            .map(|(topic, partition)| self.core.partition_key(topic, partition))
            .collect()
    }

    /// By topic; those of topics that were deleted are left out.
    fn topic_offsets(&self, offsets: Vec<(PartitionKey, Committed)>) -> Vec<TopicOffsets> {
        let mut topics = BTreeMap::<_, Vec<PartitionOffset>>::new();
        for (key, value) in offsets {
            if let Some(name) = self.core.topic_name(key) {
                let partition = PartitionOffset {
                    partition: key.partition.get(),
                    offset: value.offset.get(),
                    leader_epoch: value.leader_epoch.map(LeaderEpoch::get),
                    metadata: value.metadata.into(),
                    committed_at_ms: value.at.get(),
                };
                topics.entry(name).or_default().push(partition);
            }
        }
        let topics = topics.into_iter();
        topics
            .map(|(topic, partitions)| TopicOffsets {
                topic: topic.to_string(),
                partitions,
            })
            .collect()
    }
}

fn refusal(topic: &str, partition: u32, error: BrokerError) -> RefusedOffset {
    RefusedOffset {
        topic: topic.to_owned(),
        partition,
        error: Some(Error::from(error)),
    }
}

impl From<Listing> for GroupListing {
    fn from(listing: Listing) -> Self {
        Self {
            group: listing.group.to_string(),
            state: listing.state.to_owned(),
            members: u32::try_from(listing.members).unwrap_or(u32::MAX),
            ..Self::default()
        }
    }
}
