//! A member of a classic group, and what it asks for.

use std::time::Duration;

use bytes::Bytes;

use super::Ticket;
use crate::groups::names::{GroupError, MOST_NAME_BYTES, MemberId};

/// A protocol that a member speaks, and what the member says of itself in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    pub name: Box<str>,
    pub metadata: Bytes,
}

/// A member's wish to take part in the next generation.
#[derive(Clone, Debug)]
pub struct ClassicJoin {
    /// `None`: it has none yet.
    pub member: Option<MemberId>,
    /// The id of a member that comes without one: nobody had it before.
    pub fresh: MemberId,
    /// Stays the same when the member starts anew.
    pub instance: Option<Box<str>>,
    /// Whether a member that comes without an id is first told one, and comes again with it: so one whose answers are lost leaves
    /// no members behind.
    pub comes_again: bool,
    /// Whether it can be told that it leads and is not to assign anything.
    pub may_skip_assignment: bool,
    /// For people.
    pub client: Box<str>,
    /// For people: where it is.
    pub client_host: Box<str>,
    pub session_timeout: Duration,
    /// How long the others wait for it when they join anew.
    pub rebalance_timeout: Duration,
    /// What kind of protocols it speaks.
    pub protocol_type: Box<str>,
    /// The best first.
    pub protocols: Vec<Protocol>,
}

impl ClassicJoin {
    const LEAST_SESSION_TIMEOUT: Duration = Duration::from_secs(1);
    /// Kafka's `group.max.session.timeout.ms`.
    const MOST_SESSION_TIMEOUT: Duration = Duration::from_secs(30 * 60);
    const MOST_PROTOCOLS: usize = 100;

    /// # Errors
    /// Where it wants what is not given.
    pub(super) fn check(&self) -> Result<(), GroupError> {
        let (least, most) = (Self::LEAST_SESSION_TIMEOUT, Self::MOST_SESSION_TIMEOUT);
        if !(least..=most).contains(&self.session_timeout) {
            return Err(GroupError::SessionTimeout {
                given: self.session_timeout,
                least,
                most,
            });
        }
        let instance = self.instance.as_deref().unwrap_or("-");
        let names = self.protocols.iter().map(|protocol| &*protocol.name);
        for name in names.chain([instance, &self.protocol_type]) {
            if !(1..=MOST_NAME_BYTES).contains(&name.len()) {
                return Err(GroupError::Invalid(format!(
                    "an instance id, a protocol or its type of {} bytes is refused: give 1 to {MOST_NAME_BYTES}",
                    name.len()
                )));
            }
        }
        if self.protocols.is_empty() || self.protocols.len() > Self::MOST_PROTOCOLS {
            return Err(GroupError::OtherProtocol);
        }
        Ok(())
    }
}

/// The answer that a member waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held {
    Join(Ticket),
    Sync(Ticket),
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) instance: Option<Box<str>>,
    pub(super) client: Box<str>,
    pub(super) client_host: Box<str>,
    pub(super) session_timeout: Duration,
    pub(super) rebalance_timeout: Duration,
    pub(super) protocols: Vec<Protocol>,
    pub(super) assignment: Bytes,
    /// When it is timed out, unless it waits for an answer.
    pub(super) expires: Duration,
    pub(super) held: Option<Held>,
    /// Whether it has asked for what this generation assigns to it.
    pub(super) synced: bool,
}

impl Member {
    /// About what a member takes in memory besides texts and metadata, in bytes.
    const SIZE: usize = 1024;

    /// One that waits for the next generation.
    pub(super) fn new(join: ClassicJoin, ticket: Ticket) -> Self {
        Self {
            instance: join.instance,
            client: join.client,
            client_host: join.client_host,
            session_timeout: join.session_timeout,
            rebalance_timeout: join.rebalance_timeout,
            protocols: join.protocols,
            assignment: Bytes::new(),
            expires: Duration::MAX,
            held: Some(Held::Join(ticket)),
            synced: false,
        }
    }

    /// It joins again, and waits for the next generation.
    pub(super) fn update(&mut self, join: ClassicJoin, ticket: Ticket) {
        *self = Self {
            instance: self.instance.take(),
            assignment: std::mem::take(&mut self.assignment),
            synced: self.synced,
            ..Self::new(join, ticket)
        };
    }

    pub(super) fn renew(&mut self, now: Duration) {
        self.expires = now + self.session_timeout;
    }

    pub(super) fn speaks(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|known| *known.name == *protocol)
    }

    /// What it says of itself in a protocol.
    pub(super) fn metadata(&self, protocol: &str) -> Bytes {
        let mut protocols = self.protocols.iter();
        let found = protocols.find(|known| *known.name == *protocol);
        found
            .map(|known| known.metadata.clone())
            .unwrap_or_default()
    }

    /// Whether it waits for the next generation.
    pub(super) fn has_joined(&self) -> bool {
        matches!(self.held, Some(Held::Join(_)))
    }

    /// About what it takes in memory, in bytes.
    pub(super) fn size(&self) -> usize {
        let texts = [
            &*self.client,
            &self.client_host,
            self.instance.as_deref().unwrap_or(""),
        ];
        let texts: usize = texts.iter().map(|text| text.len()).sum();
        Self::SIZE + texts + protocols_size(&self.protocols) + self.assignment.len()
    }
}

/// About what protocols take in memory, in bytes.
pub(super) fn protocols_size(protocols: &[Protocol]) -> usize {
    let sizes = protocols
        .iter()
        .map(|protocol| 64 + protocol.name.len() + protocol.metadata.len());
    sizes.sum()
}
