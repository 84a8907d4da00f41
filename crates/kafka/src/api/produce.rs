//! Produce and InitProducerId.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use quipu_broker::{
    BrokerError, Reason,
    front::{Acks, Appended, Payload, Produce, Traffic},
};

use super::{metadata::endpoints, name_of, partition};
use crate::{
    dispatch::{Client, Outcome},
    error::ErrorCode,
    wire::{
        Text,
        messages::{
            init_producer_id_request::InitProducerIdRequest,
            init_producer_id_response::InitProducerIdResponse,
            produce_request::{PartitionProduceData, ProduceRequest, TopicProduceData},
            produce_response::{
                LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, ProduceResponse,
                TopicProduceResponse,
            },
        },
    },
};

/// From which version on topics are named by their ids.
const BY_ID_FROM: i16 = 13;
/// From which version on the client has its own error for records that make no batch.
const INVALID_RECORD_FROM: i16 = 8;

pub(crate) async fn produce(
    client: &Arc<Client>,
    request: ProduceRequest,
    version: i16,
) -> Outcome<ProduceResponse> {
    let acks = match request.acks {
        -1 => Ok(Acks::All),
        0 => Ok(Acks::None),
        1 => Ok(Acks::Leader),
        _ => Err(ErrorCode::InvalidRequiredAcks),
    };
    let acks = match request.transactional_id {
        Some(_) => Err(ErrorCode::TransactionalIdAuthorizationFailed),
        None => acks,
    };
    let timeout = u64::try_from(request.timeout_ms).ok();
    let wanted = Wanted {
        acks,
        timeout: timeout.map(Duration::from_millis),
        version,
    };
    let throttle_time_ms = client.charge(Traffic::Produce, bytes_of(&request));
    let topics = request.topic_data.into_iter();
    let responses = join_all(topics.map(|topic| produce_to(client, topic, wanted))).await;
    if request.acks == 0 {
        let failed = responses.iter().any(|topic| {
            topic
                .partition_responses
                .iter()
                .any(|partition| partition.error_code != 0)
        });
        // Nothing else makes the client look for another leader.
        return if failed {
            Outcome::Close
        } else {
            Outcome::Silent
        };
    }
    let moved = |topic: &TopicProduceResponse| {
        let mut partitions = topic.partition_responses.iter();
        partitions.any(|partition| partition.current_leader.leader_id >= 0)
    };
    let node_endpoints = if responses.iter().any(moved) {
        node_endpoints(client)
    } else {
        Vec::new()
    };
    Outcome::Response(ProduceResponse {
        responses,
        node_endpoints,
        throttle_time_ms,
    })
}

/// Bytes of all batches.
fn bytes_of(request: &ProduceRequest) -> usize {
    let topics = request.topic_data.iter();
    let batches = topics.flat_map(|topic| &topic.partition_data);
    let sizes = batches.map(|data| data.records.as_ref().map_or(0, Bytes::len));
    sizes.sum()
}

fn node_endpoints(client: &Arc<Client>) -> Vec<NodeEndpoint> {
    let endpoints = endpoints(&client.front.cluster()).into_iter();
    endpoints
        .map(|endpoint| NodeEndpoint {
            node_id: endpoint.id,
            host: endpoint.host,
            port: endpoint.port,
            rack: endpoint.rack,
        })
        .collect()
}

/// What holds for all of a request.
#[derive(Clone, Copy)]
struct Wanted {
    acks: Result<Acks, ErrorCode>,
    timeout: Option<Duration>,
    version: i16,
}

async fn produce_to(
    client: &Arc<Client>,
    topic: TopicProduceData,
    wanted: Wanted,
) -> TopicProduceResponse {
    let name = match wanted.version {
        BY_ID_FROM.. => name_of(&client.front, &topic.topic_id),
        _ => Ok(topic.name.clone()),
    };
    let partitions = topic.partition_data.into_iter();
    let appends = partitions.map(|data| {
        let name = name.clone();
        async move {
            let index = data.index;
            let appended = match name {
                Ok(name) => append(client, &name, data, wanted).await,
                Err(error) => Err(Refusal::from(error)),
            };
            response(client, index, appended, wanted.version)
        }
    });
    TopicProduceResponse {
        partition_responses: join_all(appends).await,
        name: topic.name,
        topic_id: topic.topic_id,
    }
}

/// Why a batch was not taken in.
struct Refusal {
    code: ErrorCode,
    error: Option<BrokerError>,
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self { code, error: None }
    }
}

impl From<BrokerError> for Refusal {
    fn from(error: BrokerError) -> Self {
        Self {
            code: ErrorCode::from(&error),
            error: Some(error),
        }
    }
}

async fn append(
    client: &Arc<Client>,
    topic: &str,
    data: PartitionProduceData,
    wanted: Wanted,
) -> Result<Appended, Refusal> {
    let acks = wanted.acks?;
    let partition = partition(data.index)?;
    let records = data.records.unwrap_or_default();
    // The connection holds the memory of the whole request.
    let prepared = client.front.prepare(Produce {
        topic,
        partition,
        acks,
        timeout: wanted.timeout,
        payload: Payload::Held(records),
    })?;
    Ok(prepared.append().await?)
}

fn response(
    client: &Arc<Client>,
    index: i32,
    appended: Result<Appended, Refusal>,
    version: i16,
) -> PartitionProduceResponse {
    let done = PartitionProduceResponse {
        index,
        base_offset: -1,
        log_append_time_ms: -1,
        log_start_offset: -1,
        ..PartitionProduceResponse::default()
    };
    match appended {
        Ok(appended) => PartitionProduceResponse {
            base_offset: appended
                .base_offset
                .map_or(-1, |offset| offset.get() as i64),
            log_start_offset: appended.log_start.get() as i64,
            ..done
        },
        Err(Refusal { code, error }) => {
            let invalid = error
                .as_ref()
                .is_some_and(|error| error.reason == Reason::InvalidBatch);
            let code = match code {
                ErrorCode::CorruptMessage if invalid && version >= INVALID_RECORD_FROM => {
                    ErrorCode::InvalidRecord
                }
                code => code,
            };
            tracing::debug!(peer = %client.peer, index, ?code, ?error, "a batch was refused");
            let leader = error.as_ref().and_then(|error| error.leader.as_ref());
            PartitionProduceResponse {
                error_code: code.code(),
                current_leader: leader.map_or_else(LeaderIdAndEpoch::default, |leader| {
                    LeaderIdAndEpoch {
                        leader_id: super::broker_id(leader.id),
                        ..LeaderIdAndEpoch::default()
                    }
                }),
                error_message: error.map(|error| Text::from(error.message)),
                ..done
            }
        }
    }
}

pub(crate) async fn init_producer_id(
    client: &Arc<Client>,
    request: InitProducerIdRequest,
    _version: i16,
) -> InitProducerIdResponse {
    let refused = |error: ErrorCode| InitProducerIdResponse {
        error_code: error.code(),
        producer_id: -1,
        producer_epoch: -1,
        ..InitProducerIdResponse::default()
    };
    if request.transactional_id.is_some() {
        return refused(ErrorCode::TransactionalIdAuthorizationFailed);
    }
    match client.front.next_producer_id().await {
        Ok(id) => InitProducerIdResponse {
            producer_id: id.get(),
            producer_epoch: 0,
            ..InitProducerIdResponse::default()
        },
        Err(error) => {
            tracing::info!(%error, "no producer id can be had now");
            refused(ErrorCode::CoordinatorNotAvailable)
        }
    }
}
