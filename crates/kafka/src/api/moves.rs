//! ElectLeaders, AlterPartitionReassignments and ListPartitionReassignments.

use std::sync::Arc;

use quipu_broker::front::PartitionDescription;
use quipu_model::NodeId;

use super::{broker_id, partition, refusal};
use crate::{
    config::Refusal,
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            alter_partition_reassignments_request::{
                AlterPartitionReassignmentsRequest, ReassignablePartition,
            },
            alter_partition_reassignments_response::{
                AlterPartitionReassignmentsResponse, ReassignablePartitionResponse,
                ReassignableTopicResponse,
            },
            elect_leaders_request::ElectLeadersRequest,
            elect_leaders_response::{
                ElectLeadersResponse, PartitionResult, ReplicaElectionResult,
            },
            list_partition_reassignments_request::ListPartitionReassignmentsRequest,
            list_partition_reassignments_response::{
                ListPartitionReassignmentsResponse, OngoingPartitionReassignment,
                OngoingTopicReassignment,
            },
        },
    },
};

/// The election of the first replica; the other kind would lose records.
const PREFERRED: i8 = 0;

/// Every topic with the numbers of its partitions.
fn all_partitions(client: &Arc<Client>) -> Vec<(Text, Vec<i32>)> {
    let topics = client.front.topics().unwrap_or_default();
    topics
        .iter()
        .filter(|topic| !topic.name.is_internal())
        .map(|topic| {
            let numbers = 0..topic.assignments.len() as i32;
            (topic.name.as_str().into(), numbers.collect())
        })
        .collect()
}

fn describe(
    client: &Arc<Client>,
    topic: &str,
    index: i32,
) -> Result<PartitionDescription, Refusal> {
    let unknown = || {
        let line = format!("{topic} has no partition {index}");
        (ErrorCode::UnknownTopicOrPartition, line)
    };
    let number = partition(index).map_err(|_| unknown())?;
    let (_, partitions) = client.front.describe_topic(topic).map_err(refusal)?;
    let mut partitions = partitions.into_iter();
    partitions
        .find(|partition| partition.partition == number)
        .ok_or_else(unknown)
}

pub(crate) async fn elect_leaders(
    client: &Arc<Client>,
    request: ElectLeadersRequest,
    _version: i16,
) -> ElectLeadersResponse {
    let everywhere = request.topic_partitions.is_none();
    let wanted = match request.topic_partitions {
        Some(topics) => topics
            .into_iter()
            .map(|topic| (topic.topic, topic.partitions))
            .collect(),
        None => all_partitions(client),
    };
    let mut results = Vec::new();
    for (topic, partitions) in wanted {
        let mut partition_result = Vec::new();
        for index in partitions {
            let elected = match request.election_type {
                PREFERRED => elect(client, &topic, index).await,
                _ => Err((
                    ErrorCode::EligibleLeadersNotAvailable,
                    "a replica that lacks acknowledged records never leads".to_owned(),
                )),
            };
            let (error, message) = match elected {
                Ok(()) => (ErrorCode::None, None),
                // Who asks for all wants to hear of those that changed.
                Err((ErrorCode::ElectionNotNeeded, _)) if everywhere => continue,
                Err((error, message)) => (error, Some(message.into())),
            };
            partition_result.push(PartitionResult {
                partition_id: index,
                error_code: error.code(),
                error_message: message,
            });
        }
        results.push(ReplicaElectionResult {
            topic,
            partition_result,
        });
    }
    ElectLeadersResponse {
        replica_election_results: results,
        ..ElectLeadersResponse::default()
    }
}

/// Lets the first replica lead.
async fn elect(client: &Arc<Client>, topic: &str, index: i32) -> Result<(), Refusal> {
    let partition = describe(client, topic, index)?;
    let leader = partition.leader.as_ref().map(|leader| leader.id);
    let preferred = partition.replicas.first().copied();
    let Some(preferred) = preferred.filter(|preferred| Some(*preferred) != leader) else {
        let line = "the preferred replica leads already".to_owned();
        return Err((ErrorCode::ElectionNotNeeded, line));
    };
    if leader != Some(client.front.node()) {
        let line = match leader {
            Some(leader) => format!("broker {leader} leads it and can hand it over: ask that one"),
            None => "nobody leads it now".to_owned(),
        };
        return Err((ErrorCode::PreferredLeaderNotAvailable, line));
    }
    let transferring = client
        .front
        .transfer_leader(topic, partition.partition, preferred);
    transferring
        .await
        .map_err(|error| (ErrorCode::PreferredLeaderNotAvailable, error.message))
}

pub(crate) async fn alter_partition_reassignments(
    client: &Arc<Client>,
    request: AlterPartitionReassignmentsRequest,
    _version: i16,
) -> AlterPartitionReassignmentsResponse {
    let mut responses = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in topic.partitions {
            let index = asked.partition_index;
            let (error, message) = match reassign(client, &topic.name, asked).await {
                Ok(()) => (ErrorCode::None, None),
                Err((error, message)) => (error, Some(message.into())),
            };
            partitions.push(ReassignablePartitionResponse {
                partition_index: index,
                error_code: error.code(),
                error_message: message,
            });
        }
        responses.push(ReassignableTopicResponse {
            name: topic.name,
            partitions,
        });
    }
    AlterPartitionReassignmentsResponse {
        error_message: None,
        responses,
        ..AlterPartitionReassignmentsResponse::default()
    }
}

/// Moves a partition; without replicas, takes the move under way back.
async fn reassign(
    client: &Arc<Client>,
    topic: &str,
    asked: ReassignablePartition,
) -> Result<(), Refusal> {
    let partition = describe(client, topic, asked.partition_index)?;
    let replicas: Vec<NodeId> = match &asked.replicas {
        Some(replicas) => node_ids(replicas)?,
        None if partition.joining.is_empty() && partition.leaving.is_empty() => {
            let line = "it is not moving".to_owned();
            return Err((ErrorCode::NoReassignmentInProgress, line));
        }
        None => {
            let stay = |node: &&NodeId| !partition.joining.contains(node);
            let before = partition.replicas.iter().filter(stay);
            before.chain(&*partition.leaving).copied().collect()
        }
    };
    let moving = client.front.reassign(topic, partition.partition, &replicas);
    moving.await.map_err(|error| match ErrorCode::from(&error) {
        ErrorCode::InvalidRequest => (ErrorCode::InvalidReplicaAssignment, error.message),
        code => (code, error.message),
    })
}

/// # Errors
/// Where one is no node's number.
pub(crate) fn node_ids(brokers: &[i32]) -> Result<Vec<NodeId>, Refusal> {
    let number = |broker: &i32| {
        u64::try_from(*broker).map(NodeId::new).map_err(|_| {
            let line = format!("{broker} is no broker's number");
            (ErrorCode::InvalidReplicaAssignment, line)
        })
    };
    brokers.iter().map(number).collect()
}

pub(crate) async fn list_partition_reassignments(
    client: &Arc<Client>,
    request: ListPartitionReassignmentsRequest,
    _version: i16,
) -> ListPartitionReassignmentsResponse {
    let wanted = match request.topics {
        Some(topics) => topics
            .into_iter()
            .map(|topic| (topic.name, topic.partition_indexes))
            .collect(),
        None => all_partitions(client),
    };
    let mut topics = Vec::new();
    for (name, indexes) in wanted {
        let Ok((_, partitions)) = client.front.describe_topic(&name) else {
            continue;
        };
        let moving = partitions.iter().filter(|partition| {
            let moves = !partition.joining.is_empty() || !partition.leaving.is_empty();
            moves && indexes.contains(&(partition.partition.get() as i32))
        });
        let partitions: Vec<_> = moving.map(ongoing).collect();
        if !partitions.is_empty() {
            topics.push(OngoingTopicReassignment { name, partitions });
        }
    }
    ListPartitionReassignmentsResponse {
        error_message: None,
        topics,
        ..ListPartitionReassignmentsResponse::default()
    }
}

fn ongoing(partition: &PartitionDescription) -> OngoingPartitionReassignment {
    let numbers = |nodes: &[NodeId]| nodes.iter().copied().map(broker_id).collect::<Vec<_>>();
    let mut replicas = numbers(&partition.replicas);
    replicas.extend(numbers(&partition.leaving));
    OngoingPartitionReassignment {
        partition_index: partition.partition.get() as i32,
        replicas,
        adding_replicas: numbers(&partition.joining),
        removing_replicas: numbers(&partition.leaving),
    }
}
