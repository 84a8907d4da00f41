//! What members ask for, and what they are answered.

use bytes::Bytes;

use crate::groups::names::{GroupError, MemberId};

/// Names a request that is answered later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// The answer to a request that may have waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Joined(Joined),
    Synced(Synced),
    Refused(GroupError),
}

/// A member is in a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub generation: i32,
    pub protocol_type: Box<str>,
    pub protocol: Box<str>,
    pub leader: MemberId,
    pub member: MemberId,
    /// It leads, and is not to assign anything: all have what they had.
    pub skip_assignment: bool,
    /// For the leader: all members.
    pub members: Vec<JoinedMember>,
}

/// A member as its leader is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedMember {
    pub id: MemberId,
    pub instance: Option<Box<str>>,
    pub metadata: Bytes,
}

/// What a member is assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    pub protocol_type: Box<str>,
    pub protocol: Box<str>,
    pub assignment: Bytes,
}

/// Who a member says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassicMember {
    pub id: MemberId,
    pub instance: Option<Box<str>>,
    pub generation: i32,
}

/// A member asks for what it is assigned, and the leader says it.
#[derive(Clone, Debug)]
pub struct ClassicSync {
    pub member: ClassicMember,
    /// What it takes for the group's, where it says so.
    pub protocol_type: Option<Box<str>>,
    pub protocol: Option<Box<str>>,
    pub assignments: Vec<(Box<str>, Bytes)>,
}
