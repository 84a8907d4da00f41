//! ListOffsets.

use std::sync::Arc;

use quipu_broker::front::OffsetQuery;
use quipu_model::TimestampMs;

use super::partition;
use crate::{
    dispatch::Client,
    error::ErrorCode,
    wire::messages::{
        list_offsets_request::{ListOffsetsPartition, ListOffsetsRequest},
        list_offsets_response::{
            ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
        },
    },
};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
/// The first offset on the broker's own disk: here they all are.
const EARLIEST_LOCAL: i64 = -4;

pub(crate) async fn list_offsets(
    client: &Arc<Client>,
    request: ListOffsetsRequest,
    _version: i16,
) -> ListOffsetsResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            partitions.push(list(client, &topic.name, asked).await);
        }
        topics.push(ListOffsetsTopicResponse {
            name: topic.name,
            partitions,
        });
    }
    ListOffsetsResponse {
        topics,
        ..ListOffsetsResponse::default()
    }
}

async fn list(
    client: &Arc<Client>,
    topic: &str,
    asked: &ListOffsetsPartition,
) -> ListOffsetsPartitionResponse {
    let found = match query(asked.timestamp) {
        Some(query) => find(client, topic, asked.partition_index, query).await,
        None => Err(ErrorCode::InvalidRequest),
    };
    let (error, timestamp, offset) = match found {
        Ok((timestamp, offset)) => (ErrorCode::None, timestamp, offset),
        Err(error) => (error, -1, -1),
    };
    ListOffsetsPartitionResponse {
        partition_index: asked.partition_index,
        error_code: error.code(),
        timestamp,
        offset,
        leader_epoch: -1,
    }
}

fn query(timestamp: i64) -> Option<OffsetQuery> {
    match timestamp {
        LATEST => Some(OffsetQuery::Latest),
        EARLIEST | EARLIEST_LOCAL => Some(OffsetQuery::Earliest),
        0.. => Some(OffsetQuery::At(TimestampMs::new(timestamp))),
        _ => None,
    }
}

/// The timestamp and offset found; -1 where there is none.
async fn find(
    client: &Arc<Client>,
    topic: &str,
    index: i32,
    query: OffsetQuery,
) -> Result<(i64, i64), ErrorCode> {
    let partition = partition(index)?;
    let found = client.front.list_offset(topic, partition, query).await;
    let found = found.map_err(|error| ErrorCode::from(&error))?;
    let offset = found.offset.get() as i64;
    Ok(match (query, found.timestamp) {
        (OffsetQuery::At(_), None) => (-1, -1),
        (_, timestamp) => (timestamp.map_or(-1, TimestampMs::get), offset),
    })
}
