//! How brokers reach each other: `proto/quipu/peer/v1`.
//!
//! A node keeps three streams to every other one, a lane each: `control` for what must not wait behind records, `data` for
//! records, and `copies` for what a replica lacks of the older ones. All groups' messages share them; whatever is queued goes
//! out in one message. The node that opened a stream asks on it, the other answers, so between two nodes stand six streams.

mod append;
mod caller;
mod convert;
mod dial;
mod frame;
mod hello;
mod link;
mod links;
mod serve;
mod throttle;

#[cfg(test)]
mod tests;

use std::{error::Error, fmt::Debug};

use futures::future::BoxFuture;
use quipu_model::{LeaderEpoch, NodeId, PartitionKey};
use quipu_proto::peer::v1::{Request, request::Kind};
use quipu_replication::Partition;
use uuid::Uuid;

pub(crate) use links::PeerLinks;
pub(crate) use serve::service;
pub(crate) use throttle::Throttle;

/// About how many bytes are put into one message; a single larger request goes alone.
const TARGET_BYTES: usize = 1 << 20;
/// The most bytes of requests, queued or unanswered, of one lane of whatever node.
const LANE_BYTES: usize = 64 << 20;
/// The most calls open on one lane.
const LANE_CALLS: usize = 1 << 16;
/// What a request takes beside its entries, and an entry beside its bytes, in the reckoning of `LANE_BYTES`.
const REQUEST_COST: usize = 256;
const ENTRY_COST: usize = 64;

/// How many bytes of requests, queued or unanswered, one lane holds at a node whose requests in flight may hold
/// `memory_bytes`. With six lanes between two nodes, an eighth of it for each other node; a larger request goes alone.
pub(crate) fn lane_bytes(memory_bytes: usize) -> usize {
    (memory_bytes / 48).clamp(TARGET_BYTES, LANE_BYTES)
}

/// Who a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    /// Of its data directory.
    pub(crate) directory_id: [u8; 16],
    /// `None` as long as the node does not know it.
    pub(crate) cluster_id: Option<Uuid>,
}

/// What the links need of the node that they belong to.
pub(crate) trait Host: Debug + Send + Sync + 'static {
    /// Who this node is, as of now.
    fn identity(&self) -> Identity;
    /// Checks who calls, or who answered a call, and may remember it.
    ///
    /// # Errors
    /// One line for a person, that says what to do.
    fn admit(&self, peer: &Identity) -> Result<(), String>;
    /// This node's replica of a partition.
    fn partition(&self, key: PartitionKey) -> Option<Partition>;
    /// How fast this node gives batches to replicas that lack them.
    fn copying(&self) -> &Throttle;
    /// The groups that this node leads now.
    fn led(&self) -> Vec<(PartitionKey, LeaderEpoch)>;
    /// Another node says that it leads these groups.
    fn heard_led(&self, from: NodeId, led: Vec<(PartitionKey, LeaderEpoch)>);
    /// Whether this node's link to another stands: its lanes for control and data. Called when that changes, with a lock held: it must not
    /// call the links.
    fn peer_up(&self, node: NodeId, up: bool);
    /// Another node's process has ended: it was linked to, and now nobody listens at its address.
    fn peer_gone(&self, node: NodeId);
    /// Waits until a node is no longer to be spoken with; why.
    fn removal_of(&self, node: NodeId) -> BoxFuture<'static, String>;
    /// Another node does not want to speak with this one.
    fn refused(&self, by: NodeId, reason: &str);
}

/// What a request counts for against `LANE_BYTES`. Both ends reckon alike.
fn cost(request: &Request) -> usize {
    let entries = match &request.kind {
        Some(Kind::Append(append)) => &append.entries[..],
        Some(Kind::Snapshot(snapshot)) => return REQUEST_COST + snapshot.members.len(),
        // It stands for its answer.
        Some(Kind::Copy(copy)) => return REQUEST_COST + copy.max_bytes as usize,
        _ => &[],
    };
    let bytes = entries.iter().map(|entry| ENTRY_COST + entry.data.len());
    REQUEST_COST + bytes.sum::<usize>()
}

/// An error and what caused it, in one line.
fn causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_line = cause.to_string();
        // Some print their cause themselves.
        if !line.contains(&cause_line) {
            line = format!("{line}: {cause_line}");
        }
        next = cause.source();
    }
    line
}
