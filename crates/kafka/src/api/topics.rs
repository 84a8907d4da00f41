//! CreateTopics, DeleteTopics, CreatePartitions and DeleteRecords.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use futures::{StreamExt, stream};
use quipu_broker::{
    Reason,
    front::{NewTopic, Topic},
};
use quipu_model::{NodeId, Offset, TopicConfig, TopicName};

use super::{moves::node_ids, name_of, partition, refusal};
use crate::{
    config::{Refusal, settings_of, to_keep},
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            create_partitions_request::{CreatePartitionsRequest, CreatePartitionsTopic},
            create_partitions_response::{CreatePartitionsResponse, CreatePartitionsTopicResult},
            create_topics_request::{CreatableTopic, CreateTopicsRequest},
            create_topics_response::{
                CreatableTopicConfigs, CreatableTopicResult, CreateTopicsResponse,
            },
            delete_records_request::DeleteRecordsRequest,
            delete_records_response::{
                DeleteRecordsPartitionResult, DeleteRecordsResponse, DeleteRecordsTopicResult,
            },
            delete_topics_request::{DeleteTopicState, DeleteTopicsRequest},
            delete_topics_response::{DeletableTopicResult, DeleteTopicsResponse},
        },
    },
};

/// How many topics of one request are made side by side.
const CREATED_AT_A_TIME: usize = 64;

/// From which version on topics to be deleted have their own entries.
const ENTRIES_FROM: i16 = 6;

pub(crate) async fn create_topics(
    client: &Arc<Client>,
    request: CreateTopicsRequest,
    _version: i16,
) -> CreateTopicsResponse {
    let refused = |name: Text, (error, message): Refusal| CreatableTopicResult {
        name,
        error_code: error.code(),
        error_message: Some(message.into()),
        ..CreatableTopicResult::default()
    };
    let (wanted, repeated) = once_each(request.topics, |topic| topic.name.clone());
    // Side by side: each waits for its partitions' first elections.
    let created = stream::iter(wanted).map(async |topic| {
        let name = topic.name.clone();
        let created = create(client, topic, request.validate_only).await;
        created.unwrap_or_else(|refusal| refused(name, refusal))
    });
    let mut topics: Vec<_> = created.buffered(CREATED_AT_A_TIME).collect().await;
    let repeated = repeated.into_iter();
    topics.extend(repeated.map(|name| refused(name, named_twice())));
    CreateTopicsResponse {
        topics,
        ..CreateTopicsResponse::default()
    }
}

/// The topics that a request names once, and the names of the others: as in Kafka, nothing is done to those, and each gets one answer.
fn once_each<T, N: Clone + Ord>(topics: Vec<T>, name: impl Fn(&T) -> N) -> (Vec<T>, BTreeSet<N>) {
    let mut seen = BTreeSet::new();
    let names = topics.iter().map(&name);
    let repeated: BTreeSet<N> = names.filter(|name| !seen.insert(name.clone())).collect();
    let once = topics.into_iter();
    let once = once.filter(|topic| !repeated.contains(&name(topic)));
    (once.collect(), repeated)
}

fn named_twice() -> Refusal {
    let line = "the request names it more than once".to_owned();
    (ErrorCode::InvalidRequest, line)
}

fn created(topic: &Topic) -> CreatableTopicResult {
    let settings = settings_of(topic).into_iter();
    let settings = settings.map(|setting| CreatableTopicConfigs {
        name: setting.name.into(),
        value: Some(setting.value.into()),
        read_only: setting.read_only,
        config_source: setting.source as i8,
        is_sensitive: false,
    });
    CreatableTopicResult {
        name: topic.name.as_str().into(),
        topic_id: *topic.id.as_bytes(),
        num_partitions: topic.assignments.len() as i32,
        replication_factor: topic.replication_factor() as i16,
        error_message: None,
        configs: Some(settings.collect()),
        ..CreatableTopicResult::default()
    }
}

/// The number of partitions and replicas that a new topic is to have; `None`: the default.
struct Shape {
    partitions: Option<u32>,
    replicas: Option<u32>,
}

impl Shape {
    /// # Errors
    /// Where there can be no such topic.
    fn of(client: &Arc<Client>, topic: &CreatableTopic) -> Result<Self, Refusal> {
        if let Some(first) = topic.assignments.first() {
            return Ok(Self {
                partitions: Some(topic.assignments.len() as u32),
                replicas: Some(first.broker_ids.len() as u32),
            });
        }
        let given = |number: i32| match number {
            -1 => Ok(None),
            1.. => Ok(Some(number as u32)),
            _ => Err(()),
        };
        let partitions = given(topic.num_partitions).map_err(|()| {
            let line = "give at least one partition, or -1 for the default".to_owned();
            (ErrorCode::InvalidPartitions, line)
        })?;
        let cluster = client.front.cluster();
        let nodes = cluster.nodes.iter().filter(|node| !node.draining).count();
        let replicas = given(topic.replication_factor.into())
            .ok()
            .filter(|replicas| replicas.is_none_or(|wanted| wanted as usize <= nodes));
        let replicas = replicas.ok_or_else(|| {
            let line = format!(
                "there are {nodes} brokers: give 1 to {nodes} replicas, or -1 for the default"
            );
            (ErrorCode::InvalidReplicationFactor, line)
        })?;
        Ok(Self {
            partitions,
            replicas,
        })
    }
}

async fn create(
    client: &Arc<Client>,
    topic: CreatableTopic,
    validate_only: bool,
) -> Result<CreatableTopicResult, Refusal> {
    let shape = Shape::of(client, &topic)?;
    let placement = placement(&topic)?;
    let is_placed = !placement.is_empty();
    let given = topic.configs.iter();
    let given = given.filter_map(|config| {
        let value = config.value.as_ref()?;
        Some((config.name.to_string(), value.to_string()))
    });
    let settings = to_keep(given, shape.replicas.unwrap_or(1) as usize)?;
    if validate_only {
        validate(client, &topic, &settings)?;
        return Ok(CreatableTopicResult {
            num_partitions: shape.partitions.unwrap_or(1) as i32,
            replication_factor: shape.replicas.unwrap_or(1) as i16,
            name: topic.name,
            error_message: None,
            ..CreatableTopicResult::default()
        });
    }
    let new = NewTopic {
        name: topic.name.to_string(),
        partitions: shape.partitions,
        replication_factor: shape.replicas,
        placement,
        settings,
    };
    let made = client.front.create_topic(new).await;
    let made = made.map_err(|error| match error.reason {
        Reason::InvalidRequest if is_placed => (ErrorCode::InvalidReplicaAssignment, error.message),
        Reason::InvalidRequest => (ErrorCode::InvalidPartitions, error.message),
        _ => refusal(error),
    })?;
    Ok(created(&made))
}

fn validate(
    client: &Arc<Client>,
    topic: &CreatableTopic,
    settings: &HashMap<String, String>,
) -> Result<(), Refusal> {
    let name = TopicName::new(&topic.name);
    name.map_err(|error| (ErrorCode::InvalidTopic, error.to_string()))?;
    if client.front.describe_topic(&topic.name).is_ok() {
        let line = format!("topic {} already exists", &*topic.name);
        return Err((ErrorCode::TopicAlreadyExists, line));
    }
    let settings = settings
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let config = TopicConfig::from_settings(settings);
    config.map_err(|error| (ErrorCode::InvalidConfig, error.to_string()))?;
    Ok(())
}

/// Where each partition is wanted, in the order of their numbers.
///
/// # Errors
/// Where they are not numbered from 0 on.
fn placement(topic: &CreatableTopic) -> Result<Vec<Box<[NodeId]>>, Refusal> {
    let mut wanted: Vec<_> = topic.assignments.iter().collect();
    wanted.sort_by_key(|assignment| assignment.partition_index);
    let numbers = wanted.iter().map(|assignment| assignment.partition_index);
    if !numbers.eq(0..wanted.len() as i32) {
        let line = "name each partition once, from 0 on".to_owned();
        return Err((ErrorCode::InvalidReplicaAssignment, line));
    }
    let nodes = wanted
        .iter()
        .map(|assignment| node_ids(&assignment.broker_ids));
    nodes.map(|nodes| Ok(nodes?.into())).collect()
}

pub(crate) async fn delete_topics(
    client: &Arc<Client>,
    request: DeleteTopicsRequest,
    version: i16,
) -> DeleteTopicsResponse {
    let named = |name: Text| DeleteTopicState {
        name: Some(name),
        ..DeleteTopicState::default()
    };
    let topics = match version {
        ENTRIES_FROM.. => request.topics,
        _ => request.topic_names.into_iter().map(named).collect(),
    };
    let mut responses = Vec::with_capacity(topics.len());
    let (wanted, repeated) = once_each(topics, |topic| (topic.name.clone(), topic.topic_id));
    for topic in wanted {
        responses.push(delete(client, topic).await);
    }
    let repeated = repeated.into_iter();
    responses.extend(repeated.map(|(name, topic_id)| {
        let (error, message) = named_twice();
        DeletableTopicResult {
            name,
            topic_id,
            error_code: error.code(),
            error_message: Some(message.into()),
        }
    }));
    DeleteTopicsResponse {
        responses,
        ..DeleteTopicsResponse::default()
    }
}

async fn delete(client: &Arc<Client>, topic: DeleteTopicState) -> DeletableTopicResult {
    let name = match topic.name {
        Some(name) => Ok(name),
        None => name_of(&client.front, &topic.topic_id),
    };
    let (name, result) = match name {
        Ok(name) => {
            let deleted = client.front.delete_topic(&name).await;
            (Some(name), deleted.map_err(refusal))
        }
        Err(error) => (None, Err((error, "no topic has this id".to_owned()))),
    };
    let (error, message) = match result {
        Ok(()) => (ErrorCode::None, None),
        Err((error, message)) => (error, Some(Text::from(message))),
    };
    DeletableTopicResult {
        name,
        topic_id: topic.topic_id,
        error_code: error.code(),
        error_message: message,
    }
}

pub(crate) async fn create_partitions(
    client: &Arc<Client>,
    request: CreatePartitionsRequest,
    _version: i16,
) -> CreatePartitionsResponse {
    let mut results = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let (error, message) = match add(client, &topic, request.validate_only).await {
            Ok(()) => (ErrorCode::None, None),
            Err((error, message)) => (error, Some(Text::from(message))),
        };
        results.push(CreatePartitionsTopicResult {
            name: topic.name,
            error_code: error.code(),
            error_message: message,
        });
    }
    CreatePartitionsResponse {
        results,
        ..CreatePartitionsResponse::default()
    }
}

async fn add(
    client: &Arc<Client>,
    topic: &CreatePartitionsTopic,
    validate_only: bool,
) -> Result<(), Refusal> {
    let (known, _) = client.front.describe_topic(&topic.name).map_err(refusal)?;
    let count = u32::try_from(topic.count).unwrap_or(0);
    if (count as usize) <= known.assignments.len() {
        let line = format!(
            "{} has {} partitions: give a larger number",
            known.name,
            known.assignments.len()
        );
        return Err((ErrorCode::InvalidPartitions, line));
    }
    if topic.assignments.is_some() {
        let line = "partitions are placed by the cluster: reassign them later".to_owned();
        return Err((ErrorCode::InvalidReplicaAssignment, line));
    }
    if validate_only {
        return Ok(());
    }
    let added = client.front.add_partitions(&topic.name, count).await;
    added.map(|_| ()).map_err(|error| match error.reason {
        Reason::InvalidRequest => (ErrorCode::InvalidPartitions, error.message),
        _ => refusal(error),
    })
}

/// All records up to the high watermark.
const ALL_RECORDS: i64 = -1;

pub(crate) async fn delete_records(
    client: &Arc<Client>,
    request: DeleteRecordsRequest,
    _version: i16,
) -> DeleteRecordsResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in topic.partitions {
            let deleted =
                delete_before(client, &topic.name, asked.partition_index, asked.offset).await;
            partitions.push(DeleteRecordsPartitionResult {
                partition_index: asked.partition_index,
                low_watermark: deleted.map_or(-1, |start| start.get() as i64),
                error_code: deleted.err().unwrap_or(ErrorCode::None).code(),
            });
        }
        topics.push(DeleteRecordsTopicResult {
            name: topic.name,
            partitions,
        });
    }
    DeleteRecordsResponse {
        topics,
        ..DeleteRecordsResponse::default()
    }
}

async fn delete_before(
    client: &Arc<Client>,
    topic: &str,
    index: i32,
    offset: i64,
) -> Result<Offset, ErrorCode> {
    let partition = partition(index)?;
    let before = match offset {
        ALL_RECORDS => None,
        offset => {
            let offset = u64::try_from(offset).map_err(|_| ErrorCode::OffsetOutOfRange)?;
            Some(Offset::new(offset))
        }
    };
    let deleting = client.front.delete_records(topic, partition, before);
    deleting.await.map_err(|error| ErrorCode::from(&error))
}
