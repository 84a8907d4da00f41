//! What an append is answered with.

use std::time::Duration;

use quipu_model::{NodeId, Offset, PartitionKey, ProducerEpoch, ProducerId, Sequence};
use quipu_storage::{ReserveError, StorageFailure};

/// When an append is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acks {
    /// Durable on a majority.
    All,
    /// Appended by the leader; durable where there is no other replica.
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
    /// Ask `leader`, or, where it is not known, again in a moment.
    #[error("this node does not lead {key}")]
    NotLeader {
        /// The partition.
        key: PartitionKey,
        /// Who leads, where that is known.
        leader: Option<NodeId>,
    },
    /// It was appended here, then another leader took over.
    #[error(
        "leadership of {key} was lost before the batch was committed; it may still be in the log: send it again with the same sequence"
    )]
    LeadershipLost {
        /// The partition.
        key: PartitionKey,
    },
    /// A later incarnation of the producer has begun.
    #[error(
        "producer {producer} is at epoch {current}; epoch {given} was fenced: init a new producer id"
    )]
    Fenced {
        /// The producer.
        producer: ProducerId,
        /// The epoch it sent.
        given: ProducerEpoch,
        /// The newest epoch known.
        current: ProducerEpoch,
    },
    /// The batch does not follow the producer's last one.
    #[error(
        "producer {producer} sent sequence {given} to {key} where {expected} was due: records between were lost on the way or are still to be retried"
    )]
    OutOfOrder {
        /// The partition.
        key: PartitionKey,
        /// The producer.
        producer: ProducerId,
        /// The batch's first sequence.
        given: Sequence,
        /// The one that was due.
        expected: Sequence,
    },
    /// It was appended before the producer's last five batches.
    #[error(
        "producer {producer} sent sequence {given} to {key} again, but it is too old for its offset to be known"
    )]
    DuplicateTooOld {
        /// The partition.
        key: PartitionKey,
        /// The producer.
        producer: ProducerId,
        /// The batch's first sequence.
        given: Sequence,
    },
    /// A producer id comes with an epoch and a sequence.
    #[error("the batch carries a producer id without an epoch or a sequence")]
    BadProducerFields,
    /// There is no room for it now.
    #[error(transparent)]
    Reserve(#[from] ReserveError),
    /// The time given ran out.
    #[error("not acknowledged within {0:?}; it may still be appended")]
    TimedOut(Duration),
    /// What was asked of the group cannot be, as things are.
    #[error("{key} was left as it is: {reason}")]
    Refused {
        /// The partition.
        key: PartitionKey,
        /// What is in the way.
        reason: String,
    },
    /// [`crate::Partition::shutdown`] was called before.
    #[error("the partition is shutting down")]
    ShuttingDown,
    /// The node's disk failed: the node is to end.
    #[error(transparent)]
    Failed(#[from] StorageFailure),
    /// The replica stopped; it is started again unless it was shut down.
    #[error("the partition's replica failed: {0}")]
    Fatal(String),
}

impl AppendError {
    /// Whether it is certain that this call appended nothing. Where it is not, the batch may be in the log or still come to
    /// be: only an idempotent producer can send it again without risking that it is there twice.
    pub fn is_definite(&self) -> bool {
        match self {
            Self::NotLeader { .. }
            | Self::Fenced { .. }
            | Self::OutOfOrder { .. }
            | Self::DuplicateTooOld { .. }
            | Self::BadProducerFields
            | Self::Reserve(_)
            | Self::Refused { .. }
            | Self::ShuttingDown => true,
            Self::LeadershipLost { .. } | Self::TimedOut(_) | Self::Failed(_) | Self::Fatal(_) => {
                false
            }
        }
    }

    /// Whether the same batch, sent again as it is (to the leader), may be acknowledged.
    ///
    /// [`AppendError::OutOfOrder`] is not retryable by itself: only the producer knows whether an earlier batch of its own
    /// is still to be retried, and then sends both again in their order.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotLeader { .. }
            | Self::LeadershipLost { .. }
            | Self::Reserve(
                ReserveError::DiskFull { .. } | ReserveError::Busy | ReserveError::Failed(_),
            )
            | Self::TimedOut(_)
            | Self::ShuttingDown
            | Self::Failed(_)
            | Self::Fatal(_) => true,
            Self::Fenced { .. }
            | Self::OutOfOrder { .. }
            | Self::DuplicateTooOld { .. }
            | Self::BadProducerFields
            | Self::Refused { .. }
            | Self::Reserve(ReserveError::Damaged(_)) => false,
        }
    }
}
