//! Raft per partition over the storage crate. The only crate that names openraft.
#![forbid(unsafe_code)]

use std::{sync::Arc, time::Duration};

use quipu_model::{
    LeaderEpoch, NodeId, Offset, PartitionKey, ProducerEpoch, ProducerId, RecordBatch, Sequence,
    TimestampMs, TopicConfig,
};
use quipu_storage::{
    PartitionDamage, ReadBatches, ReadError, RetentionPolicy, StorageFailure, Store,
    TimestampedOffset,
};
use tokio::sync::watch;

/// When an append is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// Durable on a majority.
    All,
    /// Appended by the leader.
    Leader,
    /// At once.
    None,
}

/// Where a batch went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// `None` with [`Acks::None`].
    pub base_offset: Option<Offset>,
    /// Whether it had been appended before.
    pub duplicate: bool,
}

/// Why a batch was not acknowledged. [`AppendError::is_definite`] tells whether it may be in the log all the same.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    #[error("this node does not lead {key}")]
    NotLeader {
        key: PartitionKey,
        leader: Option<NodeId>,
    },
    #[error(
        "producer {producer} is at epoch {current}; epoch {given} was fenced: init a new producer id"
    )]
    Fenced {
        producer: ProducerId,
        given: ProducerEpoch,
        current: ProducerEpoch,
    },
    #[error(
        "producer {producer} sent sequence {given} to {key} where {expected} was due: records between were lost on the way or are still to be retried"
    )]
    OutOfOrder {
        key: PartitionKey,
        producer: ProducerId,
        given: Sequence,
        expected: Sequence,
    },
    #[error(
        "producer {producer} sent sequence {given} to {key} again, but it is too old for its offset to be known"
    )]
    DuplicateTooOld {
        key: PartitionKey,
        producer: ProducerId,
        given: Sequence,
    },
    #[error(
        "the batch carries sequences of a producer without an id or epoch, or the other way round"
    )]
    BadProducerFields,
    #[error(transparent)]
    Reserve(#[from] quipu_storage::ReserveError),
    #[error("not acknowledged within {0:?}; it may still be appended")]
    TimedOut(Duration),
    #[error("the partition is shutting down")]
    ShuttingDown,
    #[error(transparent)]
    Failed(#[from] StorageFailure),
    #[error("the partition's replica failed: {0}")]
    Fatal(String),
}

/// A replica of a partition on this node: what the broker reads and writes through. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Partition {}

#[allow(unused_variables)]
impl Partition {
    pub fn key(&self) -> PartitionKey {
        unimplemented!()
    }
    /// Appends a checked batch through the partition's one ordered door. Calls made in order on one task are proposed in
    /// that order: the first poll of each future takes its place, so pipelining is `FuturesOrdered` over these.
    pub async fn append(
        &self,
        batch: RecordBatch,
        acks: Acks,
        timeout: Duration,
    ) -> Result<Appended, AppendError> {
        unimplemented!()
    }
    /// Committed batches from the one that holds `from` on. Cold bytes are brought in on a blocking thread first.
    pub async fn read(&self, from: Offset, max_bytes: usize) -> Result<ReadBatches, ReadError> {
        unimplemented!()
    }
    /// The offset after the last committed record, as it moves.
    pub fn high_watermark(&self) -> watch::Receiver<Offset> {
        unimplemented!()
    }
    pub fn start_offset(&self) -> Offset {
        unimplemented!()
    }
    pub fn size_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub async fn offset_for_timestamp(
        &self,
        timestamp: TimestampMs,
    ) -> Result<Option<TimestampedOffset>, ReadError> {
        unimplemented!()
    }
    /// Who leads, as far as this replica knows, and in which epoch.
    pub fn leader(&self) -> (Option<NodeId>, LeaderEpoch) {
        unimplemented!()
    }
    pub fn is_leader(&self) -> bool {
        unimplemented!()
    }
    /// Waits until this replica leads and has committed an entry of its own term.
    pub async fn wait_leader(&self, timeout: Duration) -> Result<(), AppendError> {
        unimplemented!()
    }
    pub fn damage(&self) -> Option<Arc<PartitionDamage>> {
        unimplemented!()
    }
    pub fn set_config(&self, config: TopicConfig) {
        unimplemented!()
    }
    /// On the leader: deletes what the policy lets go, through the log, so that all replicas start at the same offset.
    /// Answers with the start offset then in force.
    pub async fn enforce_retention(
        &self,
        policy: RetentionPolicy,
        now: TimestampMs,
    ) -> Result<Offset, AppendError> {
        unimplemented!()
    }
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}

/// Sends Raft messages between nodes. A cluster of one needs none: [`NoPeers`].
pub trait Transport: std::fmt::Debug + Send + Sync + 'static {}

/// The transport of a node without peers: whatever is sent is unreachable.
#[derive(Clone, Copy, Debug)]
pub struct NoPeers;
impl Transport for NoPeers {}

/// Starts partitions' replicas on this node.
#[derive(Clone, Debug)]
pub struct Replicator {}

#[allow(unused_variables)]
impl Replicator {
    pub fn new(node: NodeId, store: Arc<Store>, transport: Arc<dyn Transport>) -> Self {
        unimplemented!()
    }
    /// Starts the replica of a partition, creating its log where it is absent, and forms its group of `voters` where it
    /// never was. Where the partition is damaged, the handle answers with the damage.
    pub async fn start(
        &self,
        key: PartitionKey,
        voters: &[NodeId],
        config: TopicConfig,
    ) -> Result<Partition, AppendError> {
        unimplemented!()
    }
}
