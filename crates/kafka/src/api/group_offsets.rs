//! OffsetCommit, OffsetFetch and OffsetDelete.

use std::{collections::HashMap, sync::Arc};

use quipu_broker::front::{Committed, Committer, MemberId, Place};
use quipu_model::{LeaderEpoch, PartitionKey, TimestampMs, TopicId};

use super::{
    groups::{group, member},
    name_of,
};
use crate::{
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text, Uuid,
        messages::{
            offset_commit_request::{OffsetCommitRequest, OffsetCommitRequestPartition},
            offset_commit_response::{
                OffsetCommitResponse, OffsetCommitResponsePartition, OffsetCommitResponseTopic,
            },
            offset_delete_request::OffsetDeleteRequest,
            offset_delete_response::{
                OffsetDeleteResponse, OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
            },
            offset_fetch_request::{OffsetFetchRequest, OffsetFetchRequestTopics},
            offset_fetch_response::{
                OffsetFetchResponse, OffsetFetchResponseGroup, OffsetFetchResponsePartition,
                OffsetFetchResponsePartitions, OffsetFetchResponseTopic, OffsetFetchResponseTopics,
            },
        },
    },
};

/// The first version that names topics by their ids.
const COMMIT_IDS_FROM: i16 = 10;
const FETCH_IDS_FROM: i16 = 10;
/// The first version that asks for several groups.
const FETCH_BATCHED_FROM: i16 = 8;
/// The first version with an error of the whole request.
const FETCH_ERROR_FROM: i16 = 2;

/// A partition by its topic's name.
fn key(client: &Client, topic: &str, index: i32) -> Result<PartitionKey, ErrorCode> {
    let number = super::partition(index)?.get();
    let key = client.front.partition_key(topic, number);
    key.map_err(|_| ErrorCode::UnknownTopicOrPartition)
}

pub(crate) async fn offset_commit(
    client: &Arc<Client>,
    request: OffsetCommitRequest,
    version: i16,
) -> OffsetCommitResponse {
    let mut offsets = Vec::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let name = match version < COMMIT_IDS_FROM {
            true => Ok(topic.name.clone()),
            false => name_of(&client.front, &topic.topic_id),
        };
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let wanted = name.as_ref().map_err(|error| *error);
            let wanted = wanted.and_then(|name| committed(client, name, asked));
            partitions.push((
                asked.partition_index,
                wanted.as_ref().map(|it| it.0).map_err(|e| *e),
            ));
            offsets.extend(wanted);
        }
        topics.push(partitions);
    }
    let refused = commit(client, &request, offsets).await;
    let error = |key: Result<PartitionKey, ErrorCode>| match (key, &refused) {
        (Err(error), _) => error,
        (Ok(_), Err(error)) => *error,
        (Ok(key), Ok(refused)) => refused.get(&key).copied().unwrap_or(ErrorCode::None),
    };
    let answered = topics.into_iter().zip(request.topics);
    let answered = answered.map(|(partitions, topic)| OffsetCommitResponseTopic {
        name: topic.name,
        topic_id: topic.topic_id,
        partitions: partitions
            .into_iter()
            .map(|(partition_index, key)| OffsetCommitResponsePartition {
                partition_index,
                error_code: error(key).code(),
            })
            .collect(),
    });
    OffsetCommitResponse {
        topics: answered.collect(),
        ..OffsetCommitResponse::default()
    }
}

fn committed(
    client: &Client,
    topic: &str,
    asked: &OffsetCommitRequestPartition,
) -> Result<(PartitionKey, Committed), ErrorCode> {
    let key = key(client, topic, asked.partition_index)?;
    let epoch = asked.committed_leader_epoch;
    Ok((
        key,
        Committed {
            place: Place::of(asked.committed_offset),
            leader_epoch: (epoch >= 0).then(|| LeaderEpoch::new(epoch)),
            metadata: asked
                .committed_metadata
                .as_deref()
                .unwrap_or_default()
                .into(),
            // Set when it is stored.
            at: TimestampMs::NONE,
        },
    ))
}

/// Which offsets were refused, and why.
async fn commit(
    client: &Client,
    request: &OffsetCommitRequest,
    offsets: Vec<(PartitionKey, Committed)>,
) -> Result<HashMap<PartitionKey, ErrorCode>, ErrorCode> {
    let group = group(&request.group_id)?;
    let (id, instance) = (&request.member_id, &request.group_instance_id);
    let generation = request.generation_id_or_member_epoch;
    let committer = match generation < 0 && id.is_empty() && instance.is_none() {
        true => Committer::Outside,
        false => Committer::Classic(member(id, instance, generation)?),
    };
    match client.front.commit_offsets(group, committer, offsets).await {
        Ok(refused) => {
            let refused = refused.iter();
            Ok(refused
                .map(|(key, error)| (*key, ErrorCode::of_offsets(&error.clone().into())))
                .collect())
        }
        Err(failure) => Err(ErrorCode::of_offsets(&failure)),
    }
}

/// A topic's offsets, by partition.
struct Fetched {
    name: Text,
    id: Uuid,
    partitions: Vec<(i32, Result<Option<Committed>, ErrorCode>)>,
}

pub(crate) async fn offset_fetch(
    client: &Arc<Client>,
    request: OffsetFetchRequest,
    version: i16,
) -> OffsetFetchResponse {
    if version < FETCH_BATCHED_FROM {
        let topics = request.topics.map(|topics| {
            let topics = topics.into_iter();
            let topics = topics.map(|topic| OffsetFetchRequestTopics {
                name: topic.name,
                partition_indexes: topic.partition_indexes,
                ..OffsetFetchRequestTopics::default()
            });
            topics.collect()
        });
        let fetched = fetch(client, &request.group_id, Ok(None), topics, version);
        return only_group(fetched.await, version);
    }
    let mut groups = Vec::with_capacity(request.groups.len());
    for asked in request.groups {
        let member = asking(asked.member_id.as_deref(), asked.member_epoch);
        let (topics, error) = fetch(client, &asked.group_id, member, asked.topics, version).await;
        let topics = match error {
            ErrorCode::None => topics,
            _ => Vec::new(),
        };
        groups.push(OffsetFetchResponseGroup {
            group_id: asked.group_id,
            topics: topics.into_iter().map(topic_response).collect(),
            error_code: error.code(),
        });
    }
    OffsetFetchResponse {
        groups,
        ..OffsetFetchResponse::default()
    }
}

fn only_group((topics, error): (Vec<Fetched>, ErrorCode), version: i16) -> OffsetFetchResponse {
    let topics = match error {
        ErrorCode::None => topics,
        _ if version < FETCH_ERROR_FROM => topics,
        _ => Vec::new(),
    };
    let topics = topics.into_iter().map(|topic| {
        let topic = topic_response(topic);
        let partitions = topic.partitions.into_iter();
        let partitions = partitions.map(|partition| OffsetFetchResponsePartition {
            partition_index: partition.partition_index,
            committed_offset: partition.committed_offset,
            committed_leader_epoch: partition.committed_leader_epoch,
            metadata: partition.metadata,
            error_code: partition.error_code,
        });
        OffsetFetchResponseTopic {
            name: topic.name,
            partitions: partitions.collect(),
        }
    });
    OffsetFetchResponse {
        topics: topics.collect(),
        error_code: error.code(),
        ..OffsetFetchResponse::default()
    }
}

fn topic_response(topic: Fetched) -> OffsetFetchResponseTopics {
    let partitions = topic.partitions.into_iter();
    let partitions = partitions.map(|(partition_index, found)| {
        let error = found.as_ref().err().copied().unwrap_or(ErrorCode::None);
        let found = found.ok().flatten();
        let epoch = found.as_ref().and_then(|found| found.leader_epoch);
        OffsetFetchResponsePartitions {
            partition_index,
            committed_offset: found.as_ref().map_or(-1, |found| found.place.number()),
            committed_leader_epoch: epoch.map_or(-1, LeaderEpoch::get),
            metadata: Some(found.map_or_else(Text::default, |found| (&*found.metadata).into())),
            error_code: error.code(),
        }
    });
    OffsetFetchResponseTopics {
        name: topic.name,
        topic_id: topic.id,
        partitions: partitions.collect(),
    }
}

/// The member that asks, and its epoch, where it says so.
fn asking(id: Option<&str>, epoch: i32) -> Result<Option<(MemberId, u64)>, ErrorCode> {
    let id = id.unwrap_or_default();
    if id.is_empty() && epoch < 0 {
        return Ok(None);
    }
    let id = MemberId::new(id).map_err(|_| ErrorCode::UnknownMemberId)?;
    let epoch = u64::try_from(epoch).map_err(|_| ErrorCode::StaleMemberEpoch)?;
    Ok(Some((id, epoch)))
}

/// A group's offsets of what is asked for, or all; each has the error, if there is one.
async fn fetch(
    client: &Client,
    group_id: &str,
    member: Result<Option<(MemberId, u64)>, ErrorCode>,
    asked: Option<Vec<OffsetFetchRequestTopics>>,
    version: i16,
) -> (Vec<Fetched>, ErrorCode) {
    let topics: Option<Vec<_>> = asked.map(|asked| {
        let named = asked
            .into_iter()
            .map(|topic| match version < FETCH_IDS_FROM {
                true => (Ok(topic.name.clone()), topic),
                false => (name_of(&client.front, &topic.topic_id), topic),
            });
        named.collect()
    });
    let keys = topics.as_ref().map(|topics| keys(client, topics));
    let fetched = match group(group_id).and_then(|group| Ok((group, member?))) {
        Ok((group, member)) => {
            let fetched = client.front.fetch_offsets(group, member, keys).await;
            fetched.map_err(|failure| ErrorCode::of_offsets(&failure))
        }
        Err(error) => Err(error),
    };
    let error = fetched.as_ref().err().copied().unwrap_or(ErrorCode::None);
    let offsets = fetched.unwrap_or_default().into_iter().collect();
    let Some(topics) = topics else {
        return (all(client, offsets), error);
    };
    let topics = topics.into_iter().map(|(name, topic)| {
        let partitions = topic.partition_indexes.iter().map(|index| {
            let found = match (&name, error) {
                (Err(error), _) => Err(*error),
                (Ok(name), ErrorCode::None) => {
                    // Of a partition that is not there, nothing is stored.
                    let key = key(client, name, *index).ok();
                    Ok(key.and_then(|key| offsets.get(&key).cloned()))
                }
                (Ok(_), error) => Err(error),
            };
            (*index, found)
        });
        Fetched {
            partitions: partitions.collect(),
            name: topic.name,
            id: topic.topic_id,
        }
    });
    (topics.collect(), error)
}

/// The partitions that are there of those that are asked for.
fn keys(
    client: &Client,
    topics: &[(Result<Text, ErrorCode>, OffsetFetchRequestTopics)],
) -> Vec<PartitionKey> {
    let mut keys = Vec::new();
    for (name, topic) in topics {
        if let Ok(name) = name {
            let there = topic.partition_indexes.iter();
            keys.extend(there.filter_map(|index| key(client, name, *index).ok()));
        }
    }
    keys
}

/// All offsets, by topic.
fn all(client: &Client, offsets: HashMap<PartitionKey, Committed>) -> Vec<Fetched> {
    let mut topics = HashMap::<TopicId, Vec<_>>::new();
    for (key, value) in offsets {
        let partition = (key.partition.get() as i32, Ok(Some(value)));
        topics.entry(key.topic).or_default().push(partition);
    }
    let topics = topics.into_iter().filter_map(|(id, partitions)| {
        let name = client.front.topic_name(id)?;
        Some(Fetched {
            name: name.as_str().into(),
            id: *id.as_bytes(),
            partitions,
        })
    });
    topics.collect()
}

pub(crate) async fn offset_delete(
    client: &Arc<Client>,
    request: OffsetDeleteRequest,
    _version: i16,
) -> OffsetDeleteResponse {
    let mut known = Vec::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let partitions = topic.partitions.iter().map(|asked| {
            let key = key(client, &topic.name, asked.partition_index);
            known.extend(key.ok());
            OffsetDeleteResponsePartition {
                partition_index: asked.partition_index,
                error_code: key.err().unwrap_or(ErrorCode::None).code(),
            }
        });
        let partitions = partitions.collect();
        topics.push(OffsetDeleteResponseTopic {
            name: topic.name,
            partitions,
        });
    }
    let deleted = match group(&request.group_id) {
        Ok(group) => {
            let deleted = client.front.delete_offsets(group, known).await;
            deleted.map_err(|failure| ErrorCode::from(&failure))
        }
        Err(error) => Err(error),
    };
    let error = deleted.err().unwrap_or(ErrorCode::None);
    OffsetDeleteResponse {
        error_code: error.code(),
        topics: match error {
            ErrorCode::None => topics,
            _ => Vec::new(),
        },
        ..OffsetDeleteResponse::default()
    }
}
