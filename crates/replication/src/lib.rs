//! Raft per partition over the storage crate. The only crate that names openraft.
//!
//! A [`Replicator`] starts the replica of a partition and hands out a [`Partition`]: what the broker reads and writes
//! through. A partition's log is its Raft log, and its segments are the state: nothing is kept twice.
#![forbid(unsafe_code)]

mod blocking;
mod catch_up;
mod config;
mod conflicts;
mod copy;
mod door;
mod error;
mod flight;
mod gone;
mod group;
mod keeper;
mod log_store;
mod members;
mod network;
mod partition;
mod parts;
mod receive;
mod repair;
mod replicator;
mod running;
mod sequencer;
mod sleep;
mod state_machine;
mod transfer;
mod type_config;

#[cfg(test)]
mod tests;

pub use error::{Acks, AppendError, Appended};
pub use members::{FollowerProgress, Leadership, Members, Settled};
pub use network::{
    AppendAnswers, AppendRequest, AppendResponse, Called, CopyRequest, CopyResponse, NoPeers,
    SleepRequest, SleepResponse, SnapshotRequest, SnapshotResponse, TransferRequest,
    TransferResponse, Transport, TransportError, VoteRequest, VoteResponse,
};
pub use partition::Partition;
pub use parts::{
    AppendOutcome, AppendParts, BadMessage, SleepOutcome, SleepParts, SnapshotParts,
    TransferOutcome, TransferParts, VoteOutcome, VoteParts,
};
pub use replicator::{Origin, Replicator};
