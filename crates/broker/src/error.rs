//! Why a request was refused: one type for every front.

use quipu_model::{ConfigError, InvalidTopicName, NodeId, PartitionKey, batch::BatchError};
use quipu_replication::AppendError;
use quipu_storage::{PartitionDamage, ReadError, ReserveError, StorageFailure};

/// The kind of a refusal. The gRPC API's `ErrorReason` has the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    InvalidRequest,
    InvalidBatch,
    BatchTooLarge,
    UnknownTopic,
    UnknownPartition,
    TopicAlreadyExists,
    InvalidTopicName,
    InvalidConfig,
    OffsetOutOfRange,
    NotLeader,
    OutOfOrderSequence,
    ProducerFenced,
    DuplicateSequence,
    DiskFull,
    Overloaded,
    ShuttingDown,
    StorageFailed,
    PartitionDamaged,
    TimedOut,
    InternalTopic,
    Internal,
    NodeRemoved,
}

impl Reason {
    /// Whether the same request may succeed later, here or at another node.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::NotLeader
                | Self::DiskFull
                | Self::Overloaded
                | Self::ShuttingDown
                | Self::StorageFailed
                | Self::TimedOut
        )
    }
}

/// Whether what was asked for may have happened all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not happen.
    Definite,
    /// It may have happened, or may still.
    Indefinite,
}

/// A node and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    pub id: NodeId,
    /// `host:port` of its gRPC listener.
    pub address: String,
}

/// Why a request was refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct BrokerError {
    pub reason: Reason,
    /// One line for a person: what failed where, and what to do.
    pub message: String,
    pub outcome: Outcome,
    /// The node to ask instead, where it is known.
    pub leader: Option<NodeAddress>,
}

impl BrokerError {
    /// A refusal before anything was done.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            outcome: Outcome::Definite,
            leader: None,
        }
    }

    /// A failure after which nobody knows whether it happened.
    pub fn indefinite(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Indefinite,
            ..Self::new(reason, message)
        }
    }

    /// The refusal of everything that comes while the node stops.
    pub fn shutting_down() -> Self {
        Self::new(
            Reason::ShuttingDown,
            "the broker is shutting down: retry once it is back, or at another node",
        )
    }

    /// A topic that is not there. The name is the caller's: what of it is repeated is bounded.
    pub fn unknown_topic(name: &str) -> Self {
        let name: String = name.chars().take(64).collect();
        Self::new(
            Reason::UnknownTopic,
            format!("unknown topic {name:?}: create it first"),
        )
    }
}

impl From<BatchError> for BrokerError {
    fn from(error: BatchError) -> Self {
        Self::new(
            Reason::InvalidBatch,
            format!("the record batch is refused: {error}"),
        )
    }
}

impl From<InvalidTopicName> for BrokerError {
    fn from(error: InvalidTopicName) -> Self {
        Self::new(Reason::InvalidTopicName, error.to_string())
    }
}

impl From<ConfigError> for BrokerError {
    fn from(error: ConfigError) -> Self {
        Self::new(Reason::InvalidConfig, error.to_string())
    }
}

impl From<&PartitionDamage> for BrokerError {
    fn from(damage: &PartitionDamage) -> Self {
        Self::new(Reason::PartitionDamaged, damage.to_string())
    }
}

impl From<StorageFailure> for BrokerError {
    fn from(failure: StorageFailure) -> Self {
        Self::indefinite(Reason::StorageFailed, failure.to_string())
    }
}

impl From<ReadError> for BrokerError {
    fn from(error: ReadError) -> Self {
        let reason = match &error {
            ReadError::OutOfRange { .. } => Reason::OffsetOutOfRange,
            ReadError::Damaged(_) => Reason::PartitionDamaged,
            _ => Reason::StorageFailed,
        };
        Self::new(reason, error.to_string())
    }
}

impl From<ReserveError> for BrokerError {
    fn from(error: ReserveError) -> Self {
        match error {
            ReserveError::DiskFull { .. } => Self::new(Reason::DiskFull, error.to_string()),
            ReserveError::Busy => Self::new(Reason::Overloaded, error.to_string()),
            ReserveError::Damaged(damage) => Self::from(&*damage),
            ReserveError::Failed(failure) => Self::from(failure),
        }
    }
}

impl From<AppendError> for BrokerError {
    fn from(error: AppendError) -> Self {
        let reason = match &error {
            AppendError::NotLeader { .. } | AppendError::LeadershipLost { .. } => Reason::NotLeader,
            AppendError::Fenced { .. } => Reason::ProducerFenced,
            AppendError::OutOfOrder { .. } => Reason::OutOfOrderSequence,
            AppendError::DuplicateTooOld { .. } => Reason::DuplicateSequence,
            AppendError::BadProducerFields => Reason::InvalidBatch,
            AppendError::TimedOut(_) => Reason::TimedOut,
            AppendError::ShuttingDown => Reason::ShuttingDown,
            AppendError::Failed(_) => Reason::StorageFailed,
            AppendError::Refused { .. } => Reason::InvalidRequest,
            AppendError::Reserve(_) | AppendError::Fatal(_) => Reason::Internal,
        };
        let outcome = if error.is_definite() {
            Outcome::Definite
        } else {
            Outcome::Indefinite
        };
        match error {
            AppendError::Reserve(reserve) => Self::from(reserve),
            other => Self {
                outcome,
                ..Self::new(reason, other.to_string())
            },
        }
    }
}

/// Why the node must end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NodeFailure {
    /// The first failed write or sync.
    #[error(transparent)]
    Storage(#[from] StorageFailure),
    /// It did not find its place in its cluster.
    #[error("{0}")]
    Start(String),
    /// The cluster's metadata cannot be followed any further.
    #[error("the cluster metadata in {key} cannot be followed: {detail}")]
    Metadata { key: PartitionKey, detail: String },
}
