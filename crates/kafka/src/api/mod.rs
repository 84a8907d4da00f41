//! What is done for each request.

pub(crate) mod cluster;
pub(crate) mod configs;
pub(crate) mod consumer_groups;
pub(crate) mod coordinator;
pub(crate) mod fetch;
pub(crate) mod group_admin;
pub(crate) mod group_offsets;
pub(crate) mod groups;
pub(crate) mod metadata;
pub(crate) mod moves;
pub(crate) mod offsets;
pub(crate) mod operations;
pub(crate) mod produce;
pub(crate) mod quotas;
pub(crate) mod topics;
pub(crate) mod versions;

use quipu_broker::{BrokerError, front::Front};
use quipu_model::{PartitionId, TopicId};

use crate::{
    config::Refusal,
    error::ErrorCode,
    wire::{Text, Uuid},
};

/// The number by which clients know a node, where it has one: theirs have 31 bits.
pub(crate) fn broker_id(node: quipu_model::NodeId) -> i32 {
    i32::try_from(node.get()).unwrap_or(-1)
}

/// A refusal by the node, as clients are told.
pub(crate) fn refusal(error: BrokerError) -> Refusal {
    (ErrorCode::from(&error), error.message)
}

/// A partition as requests name it.
///
/// # Errors
/// Where no partition has such a number.
pub(crate) fn partition(index: i32) -> Result<PartitionId, ErrorCode> {
    u32::try_from(index)
        .map(PartitionId::new)
        .map_err(|_| ErrorCode::UnknownTopicOrPartition)
}

/// The name of a topic that a request names by its id.
///
/// # Errors
/// Where there is none.
pub(crate) fn name_of(front: &Front, id: &Uuid) -> Result<Text, ErrorCode> {
    let topic = front.topic_by_id(TopicId::from_bytes(*id));
    let topic = topic.ok_or(ErrorCode::UnknownTopicId)?;
    Ok(Text::from(topic.name.as_str()))
}
