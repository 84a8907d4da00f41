//! ListOffsets and OffsetForLeaderEpoch.

use std::sync::Arc;

use quipu_broker::front::OffsetQuery;
use quipu_model::{LeaderEpoch, TimestampMs};

use super::partition;
use crate::{
    dispatch::Client,
    error::ErrorCode,
    wire::messages::{
        list_offsets_request::{ListOffsetsPartition, ListOffsetsRequest},
        list_offsets_response::{
            ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
        },
        offset_for_leader_epoch_request::{OffsetForLeaderEpochRequest, OffsetForLeaderPartition},
        offset_for_leader_epoch_response::{
            EpochEndOffset, OffsetForLeaderEpochResponse, OffsetForLeaderTopicResult,
        },
    },
};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
/// The record with the greatest timestamp.
const MAX_TIMESTAMP: i64 = -3;
/// The first offset on the broker's own disk: here they all are.
const EARLIEST_LOCAL: i64 = -4;
/// The last offset elsewhere, and the first one that is still to go there: there are none.
const TIERED: [i64; 2] = [-5, -6];

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
        None if TIERED.contains(&asked.timestamp) => Ok((-1, -1)),
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
        MAX_TIMESTAMP => Some(OffsetQuery::Newest),
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
        (OffsetQuery::At(_) | OffsetQuery::Newest, None) => (-1, -1),
        (_, timestamp) => (timestamp.map_or(-1, TimestampMs::get), offset),
    })
}

pub(crate) async fn offset_for_leader_epoch(
    client: &Arc<Client>,
    request: OffsetForLeaderEpochRequest,
    _version: i16,
) -> OffsetForLeaderEpochResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in topic.partitions {
            let found = end_of_epoch(client, &topic.topic, &asked).await;
            let (leader_epoch, end_offset) = found.unwrap_or((-1, -1));
            partitions.push(EpochEndOffset {
                error_code: found.err().unwrap_or(ErrorCode::None).code(),
                partition: asked.partition,
                leader_epoch,
                end_offset,
            });
        }
        topics.push(OffsetForLeaderTopicResult {
            topic: topic.topic,
            partitions,
        });
    }
    OffsetForLeaderEpochResponse {
        topics,
        ..OffsetForLeaderEpochResponse::default()
    }
}

/// The epoch found and the offset after its last record; -1 where there is none.
async fn end_of_epoch(
    client: &Arc<Client>,
    topic: &str,
    asked: &OffsetForLeaderPartition,
) -> Result<(i32, i64), ErrorCode> {
    let partition = partition(asked.partition)?;
    let epoch = LeaderEpoch::new(asked.leader_epoch);
    let found = client.front.end_of_epoch(topic, partition, epoch).await;
    let found = found.map_err(|error| ErrorCode::from(&error))?;
    Ok(found.map_or((-1, -1), |found| {
        (found.epoch.get(), found.end.get() as i64)
    }))
}
