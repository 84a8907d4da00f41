//! The protocol's error codes.

use quipu_broker::{
    BrokerError, Outcome, Reason,
    front::{GroupError, GroupFailure},
};

/// An error as clients know it: <https://kafka.apache.org/protocol#protocol_error_codes>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i16)]
pub(crate) enum ErrorCode {
    UnknownServerError = -1,
    None = 0,
    OffsetOutOfRange = 1,
    CorruptMessage = 2,
    UnknownTopicOrPartition = 3,
    LeaderNotAvailable = 5,
    NotLeaderOrFollower = 6,
    RequestTimedOut = 7,
    MessageTooLarge = 10,
    OffsetMetadataTooLarge = 12,
    CoordinatorLoadInProgress = 14,
    CoordinatorNotAvailable = 15,
    NotCoordinator = 16,
    InvalidTopic = 17,
    NotEnoughReplicasAfterAppend = 20,
    InvalidRequiredAcks = 21,
    IllegalGeneration = 22,
    InconsistentGroupProtocol = 23,
    InvalidGroupId = 24,
    UnknownMemberId = 25,
    InvalidSessionTimeout = 26,
    RebalanceInProgress = 27,
    UnsupportedVersion = 35,
    TopicAlreadyExists = 36,
    InvalidPartitions = 37,
    InvalidReplicationFactor = 38,
    InvalidReplicaAssignment = 39,
    InvalidConfig = 40,
    InvalidRequest = 42,
    OutOfOrderSequenceNumber = 45,
    DuplicateSequenceNumber = 46,
    InvalidProducerEpoch = 47,
    TransactionalIdAuthorizationFailed = 53,
    KafkaStorageError = 56,
    NonEmptyGroup = 68,
    GroupIdNotFound = 69,
    FetchSessionIdNotFound = 70,
    InvalidFetchSessionEpoch = 71,
    FencedLeaderEpoch = 74,
    UnknownLeaderEpoch = 75,
    MemberIdRequired = 79,
    PreferredLeaderNotAvailable = 80,
    GroupMaxSizeReached = 81,
    FencedInstanceId = 82,
    EligibleLeadersNotAvailable = 83,
    ElectionNotNeeded = 84,
    NoReassignmentInProgress = 85,
    InvalidRecord = 87,
    UnknownTopicId = 100,
    FencedMemberEpoch = 110,
    UnreleasedInstanceId = 111,
    UnsupportedAssignor = 112,
    StaleMemberEpoch = 113,
    UnsupportedEndpointType = 115,
    InvalidRegularExpression = 128,
}

impl ErrorCode {
    /// The number on the wire.
    pub(crate) fn code(self) -> i16 {
        self as i16
    }
}

impl From<&BrokerError> for ErrorCode {
    fn from(error: &BrokerError) -> Self {
        match error.reason {
            Reason::InvalidRequest => Self::InvalidRequest,
            Reason::InvalidBatch => Self::CorruptMessage,
            Reason::BatchTooLarge => Self::MessageTooLarge,
            Reason::UnknownTopic | Reason::UnknownPartition => Self::UnknownTopicOrPartition,
            Reason::TopicAlreadyExists => Self::TopicAlreadyExists,
            Reason::InvalidTopicName | Reason::InternalTopic => Self::InvalidTopic,
            Reason::InvalidConfig => Self::InvalidConfig,
            Reason::OffsetOutOfRange => Self::OffsetOutOfRange,
            // Clients take it to mean that nothing was written: where it may have been, they are told so.
            Reason::NotLeader if error.outcome == Outcome::Indefinite => {
                Self::NotEnoughReplicasAfterAppend
            }
            Reason::NotLeader | Reason::ShuttingDown | Reason::NodeRemoved => {
                Self::NotLeaderOrFollower
            }
            Reason::OutOfOrderSequence => Self::OutOfOrderSequenceNumber,
            Reason::ProducerFenced => Self::InvalidProducerEpoch,
            Reason::DuplicateSequence => Self::DuplicateSequenceNumber,
            Reason::DiskFull | Reason::StorageFailed | Reason::PartitionDamaged => {
                Self::KafkaStorageError
            }
            Reason::Overloaded | Reason::TimedOut => Self::RequestTimedOut,
            Reason::NotCoordinator => Self::NotCoordinator,
            Reason::CoordinatorLoading => Self::CoordinatorLoadInProgress,
            Reason::UnknownGroup => Self::GroupIdNotFound,
            Reason::UnknownMember => Self::UnknownMemberId,
            Reason::MemberFenced => Self::FencedMemberEpoch,
            Reason::PartitionNotOwned => Self::StaleMemberEpoch,
            Reason::GroupNotEmpty => Self::NonEmptyGroup,
            Reason::OtherGroupKind => Self::InconsistentGroupProtocol,
            Reason::GroupLimit => Self::GroupMaxSizeReached,
            Reason::RebalanceInProgress => Self::RebalanceInProgress,
            Reason::Internal => Self::UnknownServerError,
        }
    }
}

impl From<&GroupError> for ErrorCode {
    fn from(error: &GroupError) -> Self {
        match error {
            GroupError::Invalid(_) => Self::InvalidRequest,
            GroupError::UnknownGroup(_) => Self::GroupIdNotFound,
            GroupError::HasMembers(_) => Self::NonEmptyGroup,
            GroupError::UnknownMember(_)
            | GroupError::TimedOut(_)
            | GroupError::UnknownInstance(_) => Self::UnknownMemberId,
            GroupError::Replaced(_) | GroupError::FencedInstance(_) => Self::FencedInstanceId,
            GroupError::StaleEpoch { .. } | GroupError::NotOwned(_) => Self::StaleMemberEpoch,
            GroupError::OtherEpoch { .. } => Self::FencedMemberEpoch,
            GroupError::UnreleasedInstance(_) => Self::UnreleasedInstanceId,
            GroupError::Pattern(_) => Self::InvalidRegularExpression,
            GroupError::UnknownAssignor(_) => Self::UnsupportedAssignor,
            GroupError::Full { .. } => Self::GroupMaxSizeReached,
            GroupError::OtherKind(_) | GroupError::OtherProtocol => Self::InconsistentGroupProtocol,
            GroupError::MemberIdRequired(_) => Self::MemberIdRequired,
            GroupError::StaleGeneration { .. } => Self::IllegalGeneration,
            GroupError::RebalanceInProgress => Self::RebalanceInProgress,
            GroupError::SessionTimeout { .. } => Self::InvalidSessionTimeout,
            GroupError::MetadataTooLong { .. } => Self::OffsetMetadataTooLarge,
        }
    }
}

impl From<&GroupFailure> for ErrorCode {
    fn from(failure: &GroupFailure) -> Self {
        match failure {
            GroupFailure::Refused(error) => error.into(),
            GroupFailure::Node(error) => Self::of_coordinator(error),
        }
    }
}

impl ErrorCode {
    /// Of a refusal of offsets: who names another epoch than its own learns the right one by its heartbeat, and comes again.
    pub(crate) fn of_offsets(failure: &GroupFailure) -> Self {
        match failure {
            // Who is no member does not commit for those that are.
            GroupFailure::Refused(GroupError::HasMembers(_)) => Self::UnknownMemberId,
            GroupFailure::Refused(GroupError::OtherEpoch { .. }) => Self::StaleMemberEpoch,
            failure => failure.into(),
        }
    }

    /// Of a failure to reach a group's coordinator: clients look for it anew, or come again.
    pub(crate) fn of_coordinator(error: &BrokerError) -> Self {
        match error.reason {
            Reason::NotLeader | Reason::ShuttingDown | Reason::NodeRemoved => Self::NotCoordinator,
            Reason::Overloaded | Reason::TimedOut => Self::CoordinatorLoadInProgress,
            _ => error.into(),
        }
    }
}
