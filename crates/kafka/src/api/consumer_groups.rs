//! ConsumerGroupHeartbeat and ConsumerGroupDescribe: groups whose partitions the coordinator assigns.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use quipu_broker::front::{
    ConsumerHeartbeat, Description, GroupError, GroupFailure, GroupKind, MemberId, MemberView,
};
use quipu_model::{PartitionId, PartitionKey, TopicId};

use super::{
    group_admin::state,
    groups::{group, own},
    operations::{OF_GROUP, if_asked},
};
use crate::{
    config::Refusal,
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            consumer_group_describe_request::ConsumerGroupDescribeRequest,
            consumer_group_describe_response::{
                self as described, ConsumerGroupDescribeResponse, DescribedGroup, Member,
            },
            consumer_group_heartbeat_request::{self as asked, ConsumerGroupHeartbeatRequest},
            consumer_group_heartbeat_response::{self as told, ConsumerGroupHeartbeatResponse},
        },
    },
};

/// Instead of an epoch: the member leaves, or leaves and comes back as the same instance.
const LEAVES: i32 = -1;
const LEAVES_FOR_A_WHILE: i32 = -2;
/// Instead of a timeout: it is as it was.
const UNCHANGED: i32 = -1;
/// The first version in which members bring an id of their own.
const OWN_IDS_FROM: i16 = 1;
/// A member's type.
const CONSUMER_MEMBER: i8 = 1;

/// An epoch as clients know it: theirs have 31 bits.
fn epoch(epoch: u64) -> i32 {
    i32::try_from(epoch).unwrap_or(i32::MAX)
}

pub(crate) async fn consumer_group_heartbeat(
    client: &Arc<Client>,
    request: ConsumerGroupHeartbeatRequest,
    version: i16,
) -> ConsumerGroupHeartbeatResponse {
    match beat(client, request, version).await {
        Ok(response) => response,
        Err((error, message)) => ConsumerGroupHeartbeatResponse {
            error_code: error.code(),
            error_message: Some(message.into()),
            ..ConsumerGroupHeartbeatResponse::default()
        },
    }
}

fn invalid(message: &str) -> Refusal {
    (ErrorCode::InvalidRequest, message.to_owned())
}

fn refusal(failure: GroupFailure) -> Refusal {
    let error = match &failure {
        // As Kafka tells who meets members of the classic protocol.
        GroupFailure::Refused(GroupError::OtherKind(_)) => ErrorCode::GroupIdNotFound,
        _ => ErrorCode::from(&failure),
    };
    (error, failure.to_string())
}

async fn beat(
    client: &Arc<Client>,
    request: ConsumerGroupHeartbeatRequest,
    version: i16,
) -> Result<ConsumerGroupHeartbeatResponse, Refusal> {
    let group = group(&request.group_id).map_err(|_| invalid("the group id has 1 to 255 bytes"))?;
    let member = member(client, &request, version)?;
    let answer = ConsumerGroupHeartbeatResponse {
        member_id: Some(member.as_str().into()),
        member_epoch: request.member_epoch,
        ..ConsumerGroupHeartbeatResponse::default()
    };
    if let LEAVES | LEAVES_FOR_A_WHILE = request.member_epoch {
        let comes_back = request.member_epoch == LEAVES_FOR_A_WHILE;
        let instance = own(&request.instance_id);
        let departing = client
            .front
            .depart_group(group, member, instance, comes_back);
        departing.await.map_err(refusal)?;
        return Ok(answer);
    }
    let beat = heartbeat(client, member, request)?;
    let heard = client.front.beat_group(group, beat).await;
    let heard = heard.map_err(refusal)?;
    // At most an hour.
    let interval = i32::try_from(heard.interval.as_millis()).unwrap_or(i32::MAX);
    Ok(ConsumerGroupHeartbeatResponse {
        member_epoch: epoch(heard.epoch),
        heartbeat_interval_ms: interval,
        assignment: heard.assignment.map(|kept| told::Assignment {
            topic_partitions: by_topic(&kept).map(told_topic).collect(),
        }),
        ..answer
    })
}

fn told_topic((topic, partitions): (TopicId, Vec<i32>)) -> told::TopicPartitions {
    told::TopicPartitions {
        topic_id: *topic.as_bytes(),
        partitions,
    }
}

/// Partitions by their topics.
fn by_topic(partitions: &[PartitionKey]) -> impl Iterator<Item = (TopicId, Vec<i32>)> + use<> {
    let mut topics = BTreeMap::<TopicId, Vec<i32>>::new();
    for key in partitions {
        let numbers = topics.entry(key.topic).or_default();
        numbers.push(key.partition.get() as i32);
    }
    topics.into_iter()
}

fn member(
    client: &Client,
    request: &ConsumerGroupHeartbeatRequest,
    version: i16,
) -> Result<MemberId, Refusal> {
    match &*request.member_id {
        "" if request.member_epoch == 0 && version < OWN_IDS_FROM => {
            Ok(MemberId::fresh(&client.name.lock()))
        }
        id => MemberId::new(id).map_err(|error| invalid(&error.to_string())),
    }
}

fn heartbeat(
    client: &Client,
    member: MemberId,
    request: ConsumerGroupHeartbeatRequest,
) -> Result<ConsumerHeartbeat, Refusal> {
    let epoch = u64::try_from(request.member_epoch);
    let beat = ConsumerHeartbeat {
        member,
        epoch: epoch.map_err(|_| invalid("no member has such an epoch"))?,
        instance: own(&request.instance_id),
        client: (&**client.name.lock()).into(),
        client_host: client.host(),
        rack: own(&request.rack_id),
        rebalance_timeout: match request.rebalance_timeout_ms {
            UNCHANGED => None,
            milliseconds => Some(Duration::from_millis(
                u64::try_from(milliseconds).map_err(|_| invalid("a timeout is not negative"))?,
            )),
        },
        topics: request
            .subscribed_topic_names
            .map(|names| names.iter().map(|name| (&**name).into()).collect()),
        pattern: own(&request.subscribed_topic_regex),
        assignor: own(&request.server_assignor),
        owned: request.topic_partitions.map(owned).transpose()?,
    };
    let empty = |text: &Option<Box<str>>| text.as_deref() == Some("");
    if empty(&beat.instance) || empty(&beat.rack) {
        return Err(invalid("an instance id or a rack is not empty"));
    }
    if beat.epoch == 0 {
        check_join(&beat)?;
    }
    Ok(beat)
}

/// # Errors
/// Where one that joins does not say all that there is to say.
fn check_join(beat: &ConsumerHeartbeat) -> Result<(), Refusal> {
    if beat.rebalance_timeout.is_none() {
        return Err(invalid("who joins says its rebalance timeout"));
    }
    if beat.topics.is_none() && beat.pattern.is_none() {
        return Err(invalid("who joins says what it subscribes to"));
    }
    match &beat.owned {
        Some(owned) if owned.is_empty() => Ok(()),
        _ => Err(invalid("who joins says that it holds no partitions")),
    }
}

fn owned(topics: Vec<asked::TopicPartitions>) -> Result<BTreeSet<PartitionKey>, Refusal> {
    let mut owned = BTreeSet::new();
    for topic in topics {
        for number in topic.partitions {
            let number = u32::try_from(number).map_err(|_| invalid("no partition is negative"))?;
            owned.insert(PartitionKey {
                topic: TopicId::from_bytes(topic.topic_id),
                partition: PartitionId::new(number),
            });
        }
    }
    Ok(owned)
}

pub(crate) async fn consumer_group_describe(
    client: &Arc<Client>,
    request: ConsumerGroupDescribeRequest,
    _version: i16,
) -> ConsumerGroupDescribeResponse {
    let mut groups = Vec::with_capacity(request.group_ids.len());
    for name in request.group_ids {
        let described = match describe(client, &name).await {
            Ok(described) => described_group(client, described),
            Err((error, message)) => DescribedGroup {
                error_code: error.code(),
                error_message: Some(message.into()),
                ..DescribedGroup::default()
            },
        };
        let asked = request.include_authorized_operations && described.error_code == 0;
        groups.push(DescribedGroup {
            group_id: name,
            authorized_operations: if_asked(asked, OF_GROUP),
            ..described
        });
    }
    ConsumerGroupDescribeResponse {
        groups,
        ..ConsumerGroupDescribeResponse::default()
    }
}

async fn describe(client: &Client, name: &str) -> Result<Description, Refusal> {
    let group = group(name).map_err(|error| (error, "no group has such a name".to_owned()))?;
    let described = client.front.describe_any_group(group).await;
    match described.map_err(refusal)? {
        described if described.listing.kind == GroupKind::ConsumerKind => Ok(described),
        described => {
            let other = GroupError::OtherKind(described.listing.group);
            // Clients ask by the classic protocol then.
            Err(refusal(other.into()))
        }
    }
}

fn described_group(client: &Client, group: Description) -> DescribedGroup {
    let members = group.members.iter();
    DescribedGroup {
        group_state: state(&group.listing).into(),
        group_epoch: epoch(group.epoch),
        assignment_epoch: epoch(group.epoch),
        assignor_name: (&*group.assignor).into(),
        members: members
            .map(|member| described_member(client, member))
            .collect(),
        ..DescribedGroup::default()
    }
}

fn described_member(client: &Client, member: &MemberView) -> Member {
    let text = |text: &str| Some(Text::from(text)).filter(|text| !text.is_empty());
    let spec = &member.spec;
    Member {
        member_id: member.id.as_str().into(),
        instance_id: spec.instance.as_deref().and_then(text),
        rack_id: text(&spec.rack),
        member_epoch: epoch(member.assignment.epoch),
        client_id: (&*spec.client).into(),
        client_host: (&*spec.client_host).into(),
        subscribed_topic_names: spec.topics.iter().map(|name| (&**name).into()).collect(),
        subscribed_topic_regex: spec.pattern.as_deref().and_then(text),
        assignment: assignment(client, &member.assignment.owned),
        target_assignment: assignment(client, &member.target),
        member_type: CONSUMER_MEMBER,
    }
}

/// Those partitions whose topics are there.
fn assignment(client: &Client, partitions: &[PartitionKey]) -> described::Assignment {
    let topics = by_topic(partitions).filter_map(|(topic, partitions)| {
        let name = client.front.topic_name(topic)?;
        Some(described::TopicPartitions {
            topic_id: *topic.as_bytes(),
            topic_name: name.as_str().into(),
            partitions,
        })
    });
    described::Assignment {
        topic_partitions: topics.collect(),
    }
}
