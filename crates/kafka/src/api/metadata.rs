//! Metadata.

use std::{collections::HashMap, sync::Arc};

use quipu_broker::{
    Reason,
    front::{ClusterDescription, NewTopic, NodeDescription, PartitionDescription},
};
use quipu_model::{NodeId, TopicName};

use super::{
    broker_id, name_of,
    operations::{OF_CLUSTER, OF_TOPIC, if_asked},
};
use crate::{
    dispatch::Client,
    error::ErrorCode,
    wire::{
        Text, Uuid,
        messages::{
            metadata_request::{MetadataRequest, MetadataRequestTopic},
            metadata_response::{
                MetadataResponse, MetadataResponseBroker, MetadataResponsePartition,
                MetadataResponseTopic,
            },
        },
    },
};

/// A broker as clients reach it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: i32,
    pub(crate) host: Text,
    pub(crate) port: i32,
    pub(crate) rack: Option<Text>,
}

impl Endpoint {
    /// `None` where Kafka clients cannot reach the node.
    fn of(node: &NodeDescription) -> Option<Self> {
        let (host, port) = node.kafka_address.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some(Self {
            id: i32::try_from(node.address.id.get()).ok()?,
            host: host.into(),
            port: port.parse::<u16>().ok()?.into(),
            rack: Some(&*node.rack)
                .filter(|rack| !rack.is_empty())
                .map(Text::from),
        })
    }
}

/// The brokers that are up.
pub(crate) fn endpoints(cluster: &ClusterDescription) -> Vec<Endpoint> {
    let up = cluster.nodes.iter().filter(|node| node.reached);
    up.filter_map(Endpoint::of).collect()
}

/// The broker to send changes to: any passes them on.
pub(crate) fn controller(cluster: &ClusterDescription, up: &[Endpoint], here: NodeId) -> i32 {
    let leader = cluster.controller.map(broker_id);
    leader
        .filter(|leader| up.iter().any(|broker| broker.id == *leader))
        .unwrap_or(broker_id(here))
}

pub(crate) async fn metadata(
    client: &Arc<Client>,
    request: MetadataRequest,
    version: i16,
) -> MetadataResponse {
    let front = &client.front;
    let cluster = front.cluster();
    let up = endpoints(&cluster);
    let creates =
        client.config.auto_create_topics && (version < 4 || request.allow_auto_topic_creation);
    let mut topics = Vec::new();
    match request.topics {
        // What says all topics in the first version says none in the others.
        Some(named) if version > 0 || !named.is_empty() => {
            for topic in named {
                topics.push(named_topic(client, topic, creates).await);
            }
        }
        _ => {
            let all = front.topics().unwrap_or_default();
            let names = all.iter().map(|topic| Text::from(topic.name.as_str()));
            topics.extend(names.map(|name| describe(client, name)));
        }
    }
    for topic in &mut topics {
        // Of what is not known by its id there is nothing to say.
        let asked = request.include_topic_authorized_operations && topic.name.is_some();
        topic.topic_authorized_operations = if_asked(asked, OF_TOPIC);
    }
    MetadataResponse {
        controller_id: controller(&cluster, &up, front.node()),
        brokers: up.into_iter().map(broker).collect(),
        cluster_id: Some(cluster.cluster_id.into()),
        topics,
        cluster_authorized_operations: if_asked(
            request.include_cluster_authorized_operations,
            OF_CLUSTER,
        ),
        ..MetadataResponse::default()
    }
}

fn broker(endpoint: Endpoint) -> MetadataResponseBroker {
    MetadataResponseBroker {
        node_id: endpoint.id,
        host: endpoint.host,
        port: endpoint.port,
        rack: endpoint.rack,
    }
}

async fn named_topic(
    client: &Arc<Client>,
    topic: MetadataRequestTopic,
    creates: bool,
) -> MetadataResponseTopic {
    let is_id = topic.topic_id != Uuid::default();
    let name = match topic.name {
        // Java's client asks by an id beside an empty name.
        Some(name) if !name.is_empty() || !is_id => name,
        _ => match name_of(&client.front, &topic.topic_id) {
            Ok(name) => name,
            Err(error) => {
                return MetadataResponseTopic {
                    topic_id: topic.topic_id,
                    ..refused(None, error)
                };
            }
        },
    };
    if TopicName::new(&name).is_err() {
        return refused(Some(name), ErrorCode::InvalidTopic);
    }
    let found = describe(client, name.clone());
    if found.error_code != ErrorCode::UnknownTopicOrPartition.code() || !creates {
        return found;
    }
    let new = NewTopic {
        name: name.to_string(),
        partitions: None,
        replication_factor: None,
        placement: Vec::new(),
        settings: HashMap::new(),
    };
    match client.front.create_topic(new).await {
        Ok(_) => describe(client, name),
        // Somebody else was faster.
        Err(error) if error.reason == Reason::TopicAlreadyExists => describe(client, name),
        Err(error) => {
            tracing::info!(topic = &*name, %error, "a topic that was asked for was not created");
            let code = match ErrorCode::from(&error) {
                ErrorCode::InvalidTopic => ErrorCode::InvalidTopic,
                // To be asked for again.
                _ => ErrorCode::LeaderNotAvailable,
            };
            refused(Some(name), code)
        }
    }
}

fn refused(name: Option<Text>, error: ErrorCode) -> MetadataResponseTopic {
    MetadataResponseTopic {
        error_code: error.code(),
        name,
        ..MetadataResponseTopic::default()
    }
}

fn describe(client: &Arc<Client>, name: Text) -> MetadataResponseTopic {
    match client.front.describe_topic(&name) {
        Ok((topic, partitions)) => MetadataResponseTopic {
            topic_id: *topic.id.as_bytes(),
            is_internal: topic.name.is_internal(),
            partitions: partitions.iter().map(describe_partition).collect(),
            ..refused(Some(name), ErrorCode::None)
        },
        Err(error) => {
            let code = match error.reason {
                Reason::UnknownTopic => ErrorCode::UnknownTopicOrPartition,
                // The node is starting.
                _ => ErrorCode::LeaderNotAvailable,
            };
            refused(Some(name), code)
        }
    }
}

pub(crate) fn describe_partition(partition: &PartitionDescription) -> MetadataResponsePartition {
    let leader = partition.leader.as_ref().map(|leader| broker_id(leader.id));
    let replicas: Vec<i32> = partition.replicas.iter().copied().map(broker_id).collect();
    MetadataResponsePartition {
        error_code: match leader {
            Some(_) => ErrorCode::None.code(),
            None => ErrorCode::LeaderNotAvailable.code(),
        },
        partition_index: partition.partition.get() as i32,
        leader_id: leader.unwrap_or(-1),
        leader_epoch: partition.leader_epoch.get(),
        isr_nodes: replicas.clone(),
        replica_nodes: replicas,
        offline_replicas: Vec::new(),
    }
}
