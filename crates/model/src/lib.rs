//! The nouns of a partitioned log, and the record-batch codec.
//!
//! Nothing here does I/O, waits or keeps time. Every number that can be confused with another is a type of its own with a
//! private field: an [`Offset`] (a record's place in a partition) is not a [`Position`] (a byte's place in a file), nor a
//! [`RaftIndex`] (an entry's place in the Raft log).
#![forbid(unsafe_code)]

pub mod batch;
mod ids;
mod numbers;
mod rfc3339;
mod topic_config;
mod topic_values;

pub use batch::RecordBatch;
pub use ids::{InvalidTopicName, NodeId, PartitionId, PartitionKey, TopicId, TopicName};
pub use numbers::{
    LeaderEpoch, LogId, Offset, Position, ProducerEpoch, ProducerId, RaftIndex, Sequence, Term,
    TimestampMs, Vote,
};
pub use topic_config::{ConfigError, TopicConfig};
pub use topic_values::{CleanupPolicy, Share, TimestampType};
