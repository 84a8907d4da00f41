//! `quipu.v1.Groups`.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, stream::BoxStream};
use quipu_model::{LeaderEpoch, Offset, PartitionKey, TimestampMs};
use quipu_proto::internal::v1::StoredGroupKind;
use quipu_proto::v1::{
    CommitOffsetsRequest, CommitOffsetsResponse, DeleteGroupRequest, DeleteGroupResponse,
    DeleteOffsetsRequest, DeleteOffsetsResponse, DescribeGroupRequest, DescribeGroupResponse,
    Error, FetchOffsetsRequest, FetchOffsetsResponse, FindCoordinatorRequest,
    FindCoordinatorResponse, GroupKind, GroupListing, GroupMember, ListGroupsRequest,
    ListGroupsResponse, MemberDescription, Node, PartitionOffset, RefusedOffset, SessionRequest,
    SessionResponse, TopicOffsets, TopicPartitions, groups_server,
};
use tonic::{Request, Response, Status, Streaming};

use super::sessions;

use crate::{
    core::Core,
    error::BrokerError,
    groups::{
        Commit, Committed, Committer, Description, GroupId, Listing, MemberId, MemberView, Place,
    },
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
            .look_at_coordinator(group, move |coordinator, group| {
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
        let described: Description = describing.await?.map_err(BrokerError::from)?;
        let members = described.members.iter();
        Ok(Response::new(DescribeGroupResponse {
            members: members.map(|member| self.member(member)).collect(),
            group: Some(described.listing.into()),
            epoch: described.epoch,
            assignor: described.assignor,
            coordinator: Some(coordinator.into()),
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

    type SessionStream = BoxStream<'static, Result<SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let session = sessions::serve(Arc::clone(&self.core), request.into_inner());
        Ok(Response::new(session.boxed()))
    }
}

impl GroupsService {
    async fn commit(
        &self,
        request: CommitOffsetsRequest,
    ) -> Result<Vec<RefusedOffset>, BrokerError> {
        let group = group_id(&request.group)?;
        let committer = committer(request.member)?;
        let (mut offsets, mut refused) = (Vec::new(), Vec::new());
        for topic in request.topics {
            for partition in topic.partitions {
                let number = partition.partition;
                match self.committed(&topic.topic, partition).await {
                    Ok(offset) => offsets.push(offset),
                    Err(error) => refused.push(refusal(&topic.topic, number, error)),
                }
            }
        }
        let committing =
            self.core
                .at_coordinator(group, move |coordinator, group, now, effects| {
                    let commit = Commit { committer, offsets };
                    coordinator.commit(now, group, commit, effects)
                });
        for (key, error) in committing.await?? {
            let name = self.core.topic_name(key.topic);
            let name = name.as_ref().map_or("", |name| name.as_str());
            refused.push(refusal(name, key.partition.get(), error.into()));
        }
        Ok(refused)
    }

    async fn committed(
        &self,
        topic: &str,
        partition: PartitionOffset,
    ) -> Result<(PartitionKey, Committed), BrokerError> {
        let key = self.core.partition_key(topic, partition.partition)?;
        let offset = Offset::new(partition.offset);
        self.core.check_reached(key, offset).await?;
        Ok((
            key,
            Committed {
                place: Place::At(offset),
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

    fn member(&self, member: &MemberView) -> MemberDescription {
        let spec = &member.spec;
        let text = |text: &Option<Box<str>>| text.as_deref().unwrap_or_default().to_owned();
        MemberDescription {
            id: member.id.to_string(),
            instance_id: text(&spec.instance),
            client_id: spec.client.to_string(),
            rack: spec.rack.to_string(),
            epoch: member.assignment.epoch,
            topics: spec.topics.iter().map(ToString::to_string).collect(),
            pattern: text(&spec.pattern),
            owned: sessions::by_topic(&self.core, &member.assignment.owned),
            revoking: sessions::by_topic(&self.core, &member.assignment.revoking),
        }
    }

    /// By topic; those of topics that were deleted are left out, and where a client of Kafka's stored that it has none.
    fn topic_offsets(&self, offsets: Vec<(PartitionKey, Committed)>) -> Vec<TopicOffsets> {
        let mut topics = BTreeMap::<_, Vec<PartitionOffset>>::new();
        for (key, value) in offsets {
            if let Some(name) = self.core.topic_name(key.topic)
                && let Place::At(offset) = value.place
            {
                let partition = PartitionOffset {
                    partition: key.partition.get(),
                    offset: offset.get(),
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

fn committer(member: Option<GroupMember>) -> Result<Committer, BrokerError> {
    Ok(match member {
        None => Committer::Outside,
        Some(GroupMember { id, epoch }) => Committer::Member {
            id: MemberId::new(&id)?,
            epoch,
        },
    })
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
        let kind = match listing.kind {
            StoredGroupKind::NoKind => GroupKind::Unspecified,
            StoredGroupKind::ConsumerKind => GroupKind::Consumer,
            StoredGroupKind::ClassicKind => GroupKind::Classic,
        };
        Self {
            group: listing.group.to_string(),
            kind: kind.into(),
            state: listing.state.to_owned(),
            members: u32::try_from(listing.members).unwrap_or(u32::MAX),
        }
    }
}
