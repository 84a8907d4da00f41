//! What a classic group takes, and from whom.

use super::{ClassicGroup, ClassicJoin, ClassicMember, Protocol};
use crate::groups::names::{GroupError, MemberId};

impl ClassicGroup {
    pub(super) fn twin(&self, instance: &str) -> Option<MemberId> {
        let mut members = self.members.iter();
        let twin = members.find(|(_, known)| known.instance.as_deref() == Some(instance));
        twin.map(|(id, _)| id.clone())
    }

    /// # Errors
    /// Where it is no member, or another one has its instance id.
    pub(super) fn check_identity(
        &self,
        id: &MemberId,
        instance: Option<&str>,
    ) -> Result<(), GroupError> {
        let known = self.members.get(id);
        match (known, instance) {
            (Some(_), None) => Ok(()),
            (Some(known), instance) if known.instance.as_deref() == instance => Ok(()),
            (_, Some(instance)) if self.twin(instance).is_some() => {
                Err(GroupError::FencedInstance(instance.into()))
            }
            _ => Err(GroupError::UnknownMember(id.clone())),
        }
    }

    /// # Errors
    /// Where it is no member of this generation.
    pub(super) fn check_member(&self, member: &ClassicMember) -> Result<(), GroupError> {
        self.check_identity(&member.id, member.instance.as_deref())?;
        match member.generation == self.number() {
            true => Ok(()),
            false => Err(GroupError::StaleGeneration {
                given: member.generation,
            }),
        }
    }

    /// # Errors
    /// Where there is no protocol that all others speak too.
    pub(super) fn check_protocols(
        &self,
        own: Option<&MemberId>,
        join: &ClassicJoin,
    ) -> Result<(), GroupError> {
        let others = || {
            let members = self.members.iter();
            members
                .filter(|(id, _)| Some(*id) != own)
                .map(|(_, other)| other)
        };
        let spoken = |protocol: &Protocol| others().all(|other| other.speaks(&protocol.name));
        let fits = others().next().is_none()
            || (join.protocol_type == self.protocol_type && join.protocols.iter().any(spoken));
        fits.then_some(()).ok_or(GroupError::OtherProtocol)
    }

    /// # Errors
    /// Where it has as many members as it may.
    pub(super) fn check_room(&self) -> Result<(), GroupError> {
        if self.members.len() + self.promised.len() < Self::MOST_MEMBERS {
            return Ok(());
        }
        Err(GroupError::Full {
            what: "the number of members of a group",
            most: Self::MOST_MEMBERS,
        })
    }

    /// # Errors
    /// Where so much more is not taken in.
    pub(super) fn check_bytes(&self, more: usize) -> Result<(), GroupError> {
        if self.bytes() + more <= Self::MOST_BYTES {
            return Ok(());
        }
        Err(GroupError::Full {
            what: "the bytes that a group's members say of themselves",
            most: Self::MOST_BYTES,
        })
    }
}
