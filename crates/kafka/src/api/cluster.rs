//! DescribeCluster, DescribeTopicPartitions and DescribeLogDirs.

use std::sync::Arc;

use quipu_broker::front::PartitionDescription;

use super::{
    metadata::{self, controller, endpoints},
    operations::{OF_CLUSTER, OF_TOPIC, if_asked},
};
use crate::{
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            describe_cluster_request::DescribeClusterRequest,
            describe_cluster_response::{DescribeClusterBroker, DescribeClusterResponse},
            describe_log_dirs_request::DescribeLogDirsRequest,
            describe_log_dirs_response::{
                DescribeLogDirsPartition, DescribeLogDirsResponse, DescribeLogDirsResult,
                DescribeLogDirsTopic,
            },
            describe_topic_partitions_request::DescribeTopicPartitionsRequest,
            describe_topic_partitions_response::{
                Cursor, DescribeTopicPartitionsResponse, DescribeTopicPartitionsResponsePartition,
                DescribeTopicPartitionsResponseTopic,
            },
        },
    },
};

/// The endpoints of brokers; controllers have none of their own.
const BROKERS: i8 = 1;
/// The most partitions in one description.
const MOST_PARTITIONS: usize = 2000;

pub(crate) async fn describe_cluster(
    client: &Arc<Client>,
    request: DescribeClusterRequest,
    _version: i16,
) -> DescribeClusterResponse {
    if request.endpoint_type != BROKERS {
        return DescribeClusterResponse {
            error_code: ErrorCode::UnsupportedEndpointType.code(),
            error_message: Some("every node is a broker: ask for brokers".into()),
            endpoint_type: request.endpoint_type,
            ..DescribeClusterResponse::default()
        };
    }
    let cluster = client.front.cluster();
    let up = endpoints(&cluster);
    let controller_id = controller(&cluster, &up, client.front.node());
    let brokers = up.into_iter().map(|endpoint| DescribeClusterBroker {
        broker_id: endpoint.id,
        host: endpoint.host,
        port: endpoint.port,
        rack: endpoint.rack,
        is_fenced: false,
    });
    DescribeClusterResponse {
        cluster_id: cluster.cluster_id.into(),
        controller_id,
        brokers: brokers.collect(),
        cluster_authorized_operations: if_asked(
            request.include_cluster_authorized_operations,
            OF_CLUSTER,
        ),
        ..DescribeClusterResponse::default()
    }
}

pub(crate) async fn describe_topic_partitions(
    client: &Arc<Client>,
    request: DescribeTopicPartitionsRequest,
    _version: i16,
) -> DescribeTopicPartitionsResponse {
    let mut names: Vec<Text> = match request.topics.is_empty() {
        true => {
            let all = client.front.topics().unwrap_or_default();
            all.iter().map(|topic| topic.name.as_str().into()).collect()
        }
        false => request.topics.into_iter().map(|topic| topic.name).collect(),
    };
    names.sort();
    names.dedup();
    let limit = usize::try_from(request.response_partition_limit).unwrap_or(1);
    let mut left = limit.clamp(1, MOST_PARTITIONS);
    let from = request.cursor;
    let mut response = DescribeTopicPartitionsResponse::default();
    for name in names {
        let first = match &from {
            Some(cursor) if *name < *cursor.topic_name => continue,
            Some(cursor) if name == cursor.topic_name => cursor.partition_index.max(0) as usize,
            _ => 0,
        };
        if left == 0 {
            response.next_cursor = Some(cursor(name, first));
            break;
        }
        let (topic, more) = describe_topic(client, name.clone(), first, left);
        left -= topic.partitions.len();
        response.topics.push(topic);
        if more {
            response.next_cursor = Some(cursor(name, first + limit.clamp(1, MOST_PARTITIONS)));
            break;
        }
    }
    response
}

fn cursor(topic_name: Text, partition: usize) -> Cursor {
    Cursor {
        topic_name,
        partition_index: partition as i32,
    }
}

/// A topic's partitions from `first` on, and whether there are more than `most`.
fn describe_topic(
    client: &Arc<Client>,
    name: Text,
    first: usize,
    most: usize,
) -> (DescribeTopicPartitionsResponseTopic, bool) {
    let (error, topic, partitions) = match client.front.describe_topic(&name) {
        Ok((topic, partitions)) => (ErrorCode::None, Some(topic), partitions),
        Err(error) => (ErrorCode::from(&error), None, Vec::new()),
    };
    let shown = partitions.iter().skip(first).take(most);
    let described = DescribeTopicPartitionsResponseTopic {
        error_code: error.code(),
        topic_id: topic.as_ref().map_or([0; 16], |topic| *topic.id.as_bytes()),
        is_internal: topic.is_some_and(|topic| topic.name.is_internal()),
        partitions: shown.map(describe_partition).collect(),
        name: Some(name),
        // The request has no way not to ask.
        topic_authorized_operations: OF_TOPIC,
    };
    (described, partitions.len() > first + most)
}

fn describe_partition(
    partition: &PartitionDescription,
) -> DescribeTopicPartitionsResponsePartition {
    let described = metadata::describe_partition(partition);
    DescribeTopicPartitionsResponsePartition {
        error_code: described.error_code,
        partition_index: described.partition_index,
        leader_id: described.leader_id,
        leader_epoch: described.leader_epoch,
        replica_nodes: described.replica_nodes,
        isr_nodes: described.isr_nodes,
        offline_replicas: described.offline_replicas,
        // None, which is not the same as null: Java's client takes them to be there.
        eligible_leader_replicas: Some(Vec::new()),
        last_known_elr: Some(Vec::new()),
    }
}

pub(crate) async fn describe_log_dirs(
    client: &Arc<Client>,
    request: DescribeLogDirsRequest,
    _version: i16,
) -> DescribeLogDirsResponse {
    let all = client.front.topics().unwrap_or_default();
    let mut topics = Vec::new();
    for topic in all {
        let name = topic.name.as_str();
        let wanted = match &request.topics {
            None => None,
            Some(wanted) => match wanted.iter().find(|wanted| *wanted.topic == *name) {
                Some(wanted) => Some(&wanted.partitions),
                None => continue,
            },
        };
        let Ok((_, partitions)) = client.front.describe_topic(name) else {
            continue;
        };
        let here = partitions.iter().filter(|partition| {
            let number = partition.partition.get() as i32;
            partition.replicas.contains(&client.front.node())
                && wanted.is_none_or(|wanted| wanted.contains(&number))
        });
        topics.push(DescribeLogDirsTopic {
            name: name.into(),
            partitions: here.map(size_of_partition).collect(),
        });
    }
    topics.retain(|topic| !topic.partitions.is_empty());
    DescribeLogDirsResponse {
        results: vec![DescribeLogDirsResult {
            // A node has one data directory: where it is on the node's disk is nobody else's business.
            log_dir: "data".into(),
            topics,
            ..DescribeLogDirsResult::default()
        }],
        ..DescribeLogDirsResponse::default()
    }
}

fn size_of_partition(partition: &PartitionDescription) -> DescribeLogDirsPartition {
    DescribeLogDirsPartition {
        partition_index: partition.partition.get() as i32,
        partition_size: i64::try_from(partition.size_bytes).unwrap_or(i64::MAX),
        offset_lag: 0,
        is_future_key: false,
    }
}
