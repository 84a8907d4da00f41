//! Errors as clients get them: a status with details, or a message in a stream.

use prost::Message;
use prost_types::Any;
use quipu_model::NodeId;
use quipu_proto::v1;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::error::{BrokerError, NodeAddress, Outcome, Reason};

/// The `domain` of the `ErrorInfo` detail.
const DOMAIN: &str = "quipu.dev";

impl From<Reason> for v1::ErrorReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::InvalidRequest => Self::InvalidRequest,
            Reason::InvalidBatch => Self::InvalidBatch,
            Reason::BatchTooLarge => Self::BatchTooLarge,
            Reason::UnknownTopic => Self::UnknownTopic,
            Reason::UnknownPartition => Self::UnknownPartition,
            Reason::TopicAlreadyExists => Self::TopicAlreadyExists,
            Reason::InvalidTopicName => Self::InvalidTopicName,
            Reason::InvalidConfig => Self::InvalidConfig,
            Reason::OffsetOutOfRange => Self::OffsetOutOfRange,
            Reason::NotLeader => Self::NotLeader,
            Reason::OutOfOrderSequence => Self::OutOfOrderSequence,
            Reason::ProducerFenced => Self::ProducerFenced,
            Reason::DuplicateSequence => Self::DuplicateSequence,
            Reason::DiskFull => Self::DiskFull,
            Reason::Overloaded => Self::Overloaded,
            Reason::ShuttingDown => Self::ShuttingDown,
            Reason::StorageFailed => Self::StorageFailed,
            Reason::PartitionDamaged => Self::PartitionDamaged,
            Reason::TimedOut => Self::TimedOut,
            Reason::InternalTopic => Self::InternalTopic,
            Reason::Internal => Self::Internal,
            Reason::NodeRemoved => Self::NodeRemoved,
        }
    }
}

/// An error that another node sent. A reason that this version does not know is not worth a retry.
impl From<v1::Error> for BrokerError {
    fn from(error: v1::Error) -> Self {
        let reason = match error.reason() {
            v1::ErrorReason::InvalidRequest => Reason::InvalidRequest,
            v1::ErrorReason::InvalidBatch => Reason::InvalidBatch,
            v1::ErrorReason::BatchTooLarge => Reason::BatchTooLarge,
            v1::ErrorReason::UnknownTopic => Reason::UnknownTopic,
            v1::ErrorReason::UnknownPartition => Reason::UnknownPartition,
            v1::ErrorReason::TopicAlreadyExists => Reason::TopicAlreadyExists,
            v1::ErrorReason::InvalidTopicName => Reason::InvalidTopicName,
            v1::ErrorReason::InvalidConfig => Reason::InvalidConfig,
            v1::ErrorReason::OffsetOutOfRange => Reason::OffsetOutOfRange,
            v1::ErrorReason::NotLeader => Reason::NotLeader,
            v1::ErrorReason::OutOfOrderSequence => Reason::OutOfOrderSequence,
            v1::ErrorReason::ProducerFenced => Reason::ProducerFenced,
            v1::ErrorReason::DuplicateSequence => Reason::DuplicateSequence,
            v1::ErrorReason::DiskFull => Reason::DiskFull,
            v1::ErrorReason::Overloaded => Reason::Overloaded,
            v1::ErrorReason::ShuttingDown => Reason::ShuttingDown,
            v1::ErrorReason::StorageFailed => Reason::StorageFailed,
            v1::ErrorReason::PartitionDamaged => Reason::PartitionDamaged,
            v1::ErrorReason::TimedOut => Reason::TimedOut,
            v1::ErrorReason::InternalTopic => Reason::InternalTopic,
            v1::ErrorReason::NodeRemoved => Reason::NodeRemoved,
            v1::ErrorReason::Internal | v1::ErrorReason::Unspecified => Reason::Internal,
        };
        let outcome = match error.outcome() {
            v1::Outcome::Definite => Outcome::Definite,
            v1::Outcome::Indefinite | v1::Outcome::Unspecified => Outcome::Indefinite,
        };
        Self {
            reason,
            message: error.message,
            outcome,
            leader: error.leader.map(|node| NodeAddress {
                id: NodeId::new(node.id),
                address: node.address,
            }),
        }
    }
}

fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidRequest
        | Reason::InvalidBatch
        | Reason::BatchTooLarge
        | Reason::InvalidTopicName
        | Reason::InvalidConfig => Code::InvalidArgument,
        Reason::UnknownTopic | Reason::UnknownPartition => Code::NotFound,
        Reason::TopicAlreadyExists | Reason::DuplicateSequence => Code::AlreadyExists,
        Reason::OffsetOutOfRange => Code::OutOfRange,
        Reason::OutOfOrderSequence | Reason::ProducerFenced | Reason::NodeRemoved => {
            Code::FailedPrecondition
        }
        Reason::DiskFull | Reason::Overloaded => Code::ResourceExhausted,
        Reason::NotLeader | Reason::ShuttingDown | Reason::StorageFailed => Code::Unavailable,
        Reason::PartitionDamaged => Code::DataLoss,
        Reason::TimedOut => Code::DeadlineExceeded,
        Reason::InternalTopic => Code::PermissionDenied,
        Reason::Internal => Code::Internal,
    }
}

impl From<NodeAddress> for v1::Node {
    fn from(node: NodeAddress) -> Self {
        Self {
            id: node.id.get(),
            address: node.address,
        }
    }
}

impl From<BrokerError> for v1::Error {
    fn from(error: BrokerError) -> Self {
        let outcome = match error.outcome {
            Outcome::Definite => v1::Outcome::Definite,
            Outcome::Indefinite => v1::Outcome::Indefinite,
        };
        Self {
            reason: v1::ErrorReason::from(error.reason).into(),
            retryable: error.reason.is_retryable(),
            outcome: outcome.into(),
            leader: error.leader.map(v1::Node::from),
            message: error.message,
        }
    }
}

/// The status of a call that failed, with a `google.rpc.ErrorInfo` and a `quipu.v1.Error` as details.
impl From<BrokerError> for Status {
    fn from(error: BrokerError) -> Self {
        let code = code(error.reason);
        let error = v1::Error::from(error);
        let message = error.message.clone();
        let mut metadata = std::collections::HashMap::from([
            ("retryable".to_owned(), error.retryable.to_string()),
            (
                "outcome".to_owned(),
                error.outcome().as_str_name().to_owned(),
            ),
        ]);
        if let Some(leader) = &error.leader {
            metadata.insert("leader_id".to_owned(), leader.id.to_string());
            metadata.insert("leader_address".to_owned(), leader.address.clone());
        }
        let info = pb::ErrorInfo {
            reason: error.reason().as_str_name().to_owned(),
            domain: DOMAIN.to_owned(),
            metadata,
        };
        let details = pb::Status {
            code: code.into(),
            message: message.clone(),
            details: vec![
                any("google.rpc.ErrorInfo", &info),
                any("quipu.v1.Error", &error),
            ],
        };
        Self::with_details(code, message, details.encode_to_vec().into())
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use quipu_model::NodeId;
    use quipu_proto::v1;
    use tonic::{Code, Status};
    use tonic_types::{StatusExt, pb};

    use crate::error::{BrokerError, NodeAddress, Reason};

    #[test]
    fn a_status_tells_machines_what_to_do() {
        let error = BrokerError {
            leader: Some(NodeAddress {
                id: NodeId::new(2),
                address: "b:9093".to_owned(),
            }),
            ..BrokerError::new(Reason::NotLeader, "ask node 2")
        };
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message(), "ask node 2");

        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "NOT_LEADER");
        assert_eq!(info.domain, "quipu.dev");
        assert_eq!(info.metadata["retryable"], "true");
        assert_eq!(info.metadata["outcome"], "DEFINITE");
        assert_eq!(info.metadata["leader_id"], "2");
        assert_eq!(info.metadata["leader_address"], "b:9093");

        let details = pb::Status::decode(status.details()).unwrap();
        let own = v1::Error::decode(&details.details[1].value[..]).unwrap();
        assert_eq!(own.reason(), v1::ErrorReason::NotLeader);
        assert_eq!(own.outcome(), v1::Outcome::Definite);
        assert!(own.retryable);
    }

    #[test]
    fn what_may_have_happened_is_said_to_be_indefinite() {
        let error = v1::Error::from(BrokerError::indefinite(Reason::TimedOut, "late"));
        assert_eq!(error.outcome(), v1::Outcome::Indefinite);
    }
}
