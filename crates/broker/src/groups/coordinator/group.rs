//! One group, whatever its members speak.

use super::*;

/// The members of a group, by the protocol that they speak.
#[derive(Debug, Default)]
pub(super) enum Members {
    #[default]
    None,
    Consumer(ConsumerGroup),
    Classic(ClassicGroup),
}

impl Members {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Consumer(members) => members.bytes(),
            Self::Classic(members) => members.bytes(),
        }
    }

    /// Takes in that they are of a kind, if they were not.
    pub(super) fn replay_kind(&mut self, kind: StoredGroupKind, epoch: u64) {
        match (&self, kind) {
            (Self::None, StoredGroupKind::NoKind)
            | (Self::Consumer(_), StoredGroupKind::ConsumerKind)
            | (Self::Classic(_), StoredGroupKind::ClassicKind) => {}
            (_, StoredGroupKind::NoKind) => *self = Self::None,
            (_, StoredGroupKind::ConsumerKind) => *self = Self::Consumer(ConsumerGroup::new(epoch)),
            (_, StoredGroupKind::ClassicKind) => *self = Self::Classic(ClassicGroup::new(epoch)),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) offsets: Offsets,
    pub(super) members: Members,
    /// The epoch when the last of its members left.
    pub(super) epoch: u64,
    pub(super) empty_since: Option<TimestampMs>,
    /// When it is to be looked at.
    pub(super) due: Option<Duration>,
}

impl Group {
    /// About what a group takes in memory besides its offsets and members, in bytes.
    pub(super) const SIZE: usize = 512;

    pub(super) fn is_void(&self) -> bool {
        self.offsets.is_empty() && matches!(self.members, Members::None)
    }

    /// The newest time that is stored of it.
    pub(super) fn newest(&self) -> Option<TimestampMs> {
        let offsets = self.offsets.iter();
        let committed = offsets.map(|(_, value)| value.at);
        committed.chain(self.empty_since).max()
    }

    pub(super) fn has_members(&self) -> bool {
        match &self.members {
            Members::None => false,
            Members::Consumer(_) => true,
            Members::Classic(members) => members.len() > 0,
        }
    }

    pub(super) fn listing(&self, group: &GroupId) -> Listing {
        let protocol_type = match &self.members {
            Members::None => "",
            Members::Consumer(_) => "consumer",
            Members::Classic(members) => members.protocol_type(),
        };
        let (kind, state, members) = match &self.members {
            Members::None => (StoredGroupKind::NoKind, "EMPTY", 0),
            Members::Consumer(members) => {
                let kind = StoredGroupKind::ConsumerKind;
                (kind, members.state(), members.len())
            }
            Members::Classic(members) => {
                let kind = match members.len() {
                    0 => StoredGroupKind::NoKind,
                    _ => StoredGroupKind::ClassicKind,
                };
                (kind, members.state(), members.len())
            }
        };
        Listing {
            group: group.clone(),
            kind,
            protocol_type: protocol_type.into(),
            state,
            members,
        }
    }

    /// Makes its members such whose partitions the coordinator assigns. One without members may have been anything.
    ///
    /// # Errors
    /// Where it has members of another kind.
    pub(super) fn be_consumer(&mut self, group: &GroupId) -> Result<(), GroupError> {
        match &self.members {
            Members::Consumer(_) => Ok(()),
            _ if self.has_members() => Err(GroupError::OtherKind(group.clone())),
            _ => {
                self.members = Members::Consumer(ConsumerGroup::new(self.epoch));
                Ok(())
            }
        }
    }

    /// # Errors
    /// Where its members are of another kind.
    pub(super) fn classic(&mut self, group: &GroupId) -> Result<&mut ClassicGroup, GroupError> {
        if let Members::None = self.members {
            self.members = Members::Classic(ClassicGroup::new(self.epoch));
        }
        match &mut self.members {
            Members::Classic(members) => Ok(members),
            _ => Err(GroupError::OtherKind(group.clone())),
        }
    }

    /// Whether it still uses an offset that was stored then.
    pub(super) fn keeps(
        &self,
        partition: PartitionKey,
        at: TimestampMs,
        oldest: TimestampMs,
    ) -> bool {
        let used = match &self.members {
            Members::Consumer(members) => members.has_owner(partition),
            Members::Classic(members) if members.len() > 0 => true,
            _ => self.empty_since.is_some_and(|since| since >= oldest),
        };
        used || at >= oldest
    }
}
