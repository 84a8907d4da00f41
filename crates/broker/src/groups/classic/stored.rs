//! A classic group's members as they are stored.

use std::time::Duration;

use bytes::Bytes;
use quipu_proto::internal::v1::{self, MemberValue};

/// What is stored of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredClassicMember {
    pub(crate) instance: Option<Box<str>>,
    pub(crate) client: Box<str>,
    pub(crate) client_host: Box<str>,
    pub(crate) session_timeout: Duration,
    pub(crate) rebalance_timeout: Duration,
    /// What it says of itself in the group's protocol.
    pub(crate) metadata: Bytes,
    pub(crate) assignment: Bytes,
}

fn milliseconds(duration: Duration) -> u32 {
    // Requests give them in 31 bits.
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

impl From<&StoredClassicMember> for MemberValue {
    fn from(member: &StoredClassicMember) -> Self {
        Self {
            instance_id: member.instance.as_deref().unwrap_or_default().to_owned(),
            client_id: member.client.to_string(),
            session_timeout_ms: milliseconds(member.session_timeout),
            rebalance_timeout_ms: milliseconds(member.rebalance_timeout),
            classic: Some(v1::ClassicMember {
                client_host: member.client_host.to_string(),
                metadata: member.metadata.clone(),
                assignment: member.assignment.clone(),
            }),
            ..Self::default()
        }
    }
}

impl StoredClassicMember {
    /// Takes a value apart that says it is one.
    pub(crate) fn new(value: MemberValue, classic: v1::ClassicMember) -> Self {
        let instance = value.instance_id;
        Self {
            instance: (!instance.is_empty()).then(|| instance.into()),
            client: value.client_id.into(),
            client_host: classic.client_host.into(),
            session_timeout: Duration::from_millis(value.session_timeout_ms.into()),
            rebalance_timeout: Duration::from_millis(value.rebalance_timeout_ms.into()),
            metadata: classic.metadata,
            assignment: classic.assignment,
        }
    }
}
