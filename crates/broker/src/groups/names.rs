//! Names, times and refusals of groups.

use std::{fmt, sync::Arc, time::Duration};

use quipu_model::{PartitionKey, TimestampMs};
use uuid::Uuid;

use crate::error::{BrokerError, Reason};

/// The longest name of a group or a member, in bytes.
pub(crate) const MOST_NAME_BYTES: usize = 255;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// Where it is empty or too long.
            pub fn new(name: &str) -> Result<Self, GroupError> {
                match name.len() {
                    1..=MOST_NAME_BYTES => Ok(Self(name.into())),
                    length => Err(GroupError::Invalid(format!(
                        concat!("a ", $what, " of {length} bytes is refused: give 1 to {most}"),
                        length = length,
                        most = MOST_NAME_BYTES
                    ))),
                }
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A group's name: 1 to 255 bytes.
    GroupId, "group name"
}

name! {
    /// A member's name: 1 to 255 bytes.
    MemberId, "member id"
}

impl MemberId {
    /// One that nobody had before. It begins with what is given, as far as there is room.
    pub fn fresh(prefix: &str) -> Self {
        let prefix = &prefix[..prefix.floor_char_boundary(200)];
        Self(format!("{prefix}-{}", Uuid::new_v4()).into())
    }
}

/// When something happens: by the time since some moment, which never jumps, and by the clock on the wall, which may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) elapsed: Duration,
    pub(crate) wall: TimestampMs,
}

/// Why a group did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error("{0}")]
    Invalid(String),
    #[error("group {0:?} does not exist")]
    UnknownGroup(GroupId),
    #[error("group {0} has members: stop them first")]
    HasMembers(GroupId),
    #[error("the group does not know member {0}, or no longer: it must join anew")]
    UnknownMember(MemberId),
    #[error(
        "member {0} was not heard of in time, or did not let go in time, and is out of the group"
    )]
    TimedOut(MemberId),
    #[error("another member took the place of {0}: it came with the same instance id")]
    Replaced(MemberId),
    #[error("what comes from epoch {given} is refused: the member has the partition since {since}")]
    StaleEpoch { given: u64, since: u64 },
    #[error("epoch {given} is not the member's, which is {known}")]
    OtherEpoch { given: u64, known: u64 },
    #[error("partition {0} is not the member's")]
    NotOwned(PartitionKey),
    #[error("{what}: {most} are as many as a coordinator keeps")]
    Full { what: &'static str, most: usize },
    #[error(
        "group {0} has members that speak another protocol: stop them first, or take another group"
    )]
    OtherKind(GroupId),
    #[error("the member is to come again, with the id {0}")]
    MemberIdRequired(MemberId),
    #[error("no member of the group has the instance id {0:?}")]
    UnknownInstance(Box<str>),
    #[error("another member has the instance id {0:?} by now")]
    FencedInstance(Box<str>),
    #[error("another member has the instance id {0:?}: it must leave first, or time out")]
    UnreleasedInstance(Box<str>),
    #[error("{0}")]
    Pattern(String),
    #[error("assignor {0:?} is unknown: give uniform, rack or range")]
    UnknownAssignor(String),
    #[error("generation {given} is over: the member must join again")]
    StaleGeneration { given: i32 },
    #[error("the members of the group are joining anew, and so must this one")]
    RebalanceInProgress,
    #[error("the member offers no protocol that all others speak")]
    OtherProtocol,
    #[error("a session timeout of {given:?} is refused: give {least:?} to {most:?}")]
    SessionTimeout {
        given: Duration,
        least: Duration,
        most: Duration,
    },
    #[error("metadata of {length} bytes is refused: give at most {most}")]
    MetadataTooLong { length: usize, most: usize },
}

impl From<GroupError> for BrokerError {
    fn from(error: GroupError) -> Self {
        let reason = match &error {
            GroupError::Invalid(_)
            | GroupError::Pattern(_)
            | GroupError::UnknownAssignor(_)
            | GroupError::SessionTimeout { .. }
            | GroupError::MetadataTooLong { .. } => Reason::InvalidRequest,
            GroupError::UnknownGroup(_) => Reason::UnknownGroup,
            GroupError::HasMembers(_) => Reason::GroupNotEmpty,
            GroupError::UnknownMember(_)
            | GroupError::TimedOut(_)
            | GroupError::MemberIdRequired(_)
            | GroupError::UnknownInstance(_) => Reason::UnknownMember,
            GroupError::Replaced(_)
            | GroupError::StaleEpoch { .. }
            | GroupError::OtherEpoch { .. }
            | GroupError::FencedInstance(_)
            | GroupError::UnreleasedInstance(_)
            | GroupError::StaleGeneration { .. } => Reason::MemberFenced,
            GroupError::NotOwned(_) => Reason::PartitionNotOwned,
            GroupError::Full { .. } => Reason::GroupLimit,
            GroupError::OtherKind(_) | GroupError::OtherProtocol => Reason::OtherGroupKind,
            GroupError::RebalanceInProgress => Reason::RebalanceInProgress,
        };
        Self::new(reason, error.to_string())
    }
}
