//! CreateTopics and DeleteTopics.

use std::{collections::HashMap, sync::Arc};

use quipu_broker::{
    BrokerError,
    front::{NewTopic, Topic},
};

use super::name_of;
use crate::{
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            create_topics_request::{CreatableTopic, CreateTopicsRequest},
            create_topics_response::{CreatableTopicResult, CreateTopicsResponse},
            delete_topics_request::{DeleteTopicState, DeleteTopicsRequest},
            delete_topics_response::{DeletableTopicResult, DeleteTopicsResponse},
        },
    },
};

/// From which version on topics to be deleted have their own entries.
const ENTRIES_FROM: i16 = 6;

/// An error for the client, and a line for who sits before it.
type Refusal = (ErrorCode, String);

fn refusal(error: BrokerError) -> Refusal {
    (ErrorCode::from(&error), error.message)
}

pub(crate) async fn create_topics(
    client: &Arc<Client>,
    request: CreateTopicsRequest,
    _version: i16,
) -> CreateTopicsResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let name = topic.name.clone();
        topics.push(match create(client, topic).await {
            Ok(topic) => created(name, &topic),
            Err((error, message)) => CreatableTopicResult {
                name,
                error_code: error.code(),
                error_message: Some(message.into()),
                ..CreatableTopicResult::default()
            },
        });
    }
    CreateTopicsResponse {
        topics,
        ..CreateTopicsResponse::default()
    }
}

fn created(name: Text, topic: &Topic) -> CreatableTopicResult {
    CreatableTopicResult {
        name,
        topic_id: *topic.id.as_bytes(),
        num_partitions: topic.assignments.len() as i32,
        replication_factor: topic.replication_factor() as i16,
        ..CreatableTopicResult::default()
    }
}

async fn create(client: &Arc<Client>, topic: CreatableTopic) -> Result<Arc<Topic>, Refusal> {
    let partitions = match topic.num_partitions {
        -1 => None,
        1.. => Some(topic.num_partitions as u32),
        _ => {
            return Err((
                ErrorCode::InvalidPartitions,
                "give at least one partition, or -1 for the default".to_owned(),
            ));
        }
    };
    let replication_factor = match topic.replication_factor {
        -1 => None,
        1.. => Some(topic.replication_factor as u32),
        _ => {
            return Err((
                ErrorCode::InvalidReplicationFactor,
                "give at least one replica, or -1 for the default".to_owned(),
            ));
        }
    };
    let settings: HashMap<String, String> = topic
        .configs
        .into_iter()
        .filter_map(|config| Some((config.name.to_string(), config.value?.to_string())))
        .collect();
    let new = NewTopic {
        name: topic.name.to_string(),
        partitions,
        replication_factor,
        settings,
    };
    client.front.create_topic(new).await.map_err(refusal)
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
    for topic in topics {
        responses.push(delete(client, topic).await);
    }
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
