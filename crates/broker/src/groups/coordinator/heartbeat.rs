//! What happens to members that come by heartbeats.

use super::{Coordinator, Effects, Members};
use crate::groups::{
    consumer::{ConsumerHeartbeat, HeartbeatAnswer},
    names::{GroupError, GroupId, MemberId, Moment},
};

impl Coordinator {
    /// A member joins, or gives a sign of life.
    ///
    /// # Errors
    /// Where it wants what is not given, or is not known any more.
    pub(crate) fn beat(
        &mut self,
        now: Moment,
        group: &GroupId,
        beat: &ConsumerHeartbeat,
        effects: &mut Effects,
    ) -> Result<HeartbeatAnswer, GroupError> {
        let room = self.check_room(group);
        if beat.epoch == 0 {
            room.clone()?;
            self.change_members(group, |known| known.be_consumer(group))?;
        }
        self.check_kind(group, &beat.member)?;
        self.consumer_event(now, group, effects, |members, scene| {
            members.beat(scene, room, beat)
        })
    }

    /// A member that comes by heartbeats leaves. Where it comes back, what it owns is kept for its instance.
    ///
    /// # Errors
    /// Where it is not known.
    pub(crate) fn depart(
        &mut self,
        now: Moment,
        group: &GroupId,
        (member, instance): (&MemberId, Option<&str>),
        comes_back: bool,
        effects: &mut Effects,
    ) -> Result<(), GroupError> {
        self.check_kind(group, member)?;
        self.consumer_event(now, group, effects, |members, scene| {
            members.depart(scene, member, instance, comes_back)
        })
    }

    /// Whether a member may ask in an epoch for what its group has stored.
    ///
    /// # Errors
    /// Where it may not.
    pub(crate) fn check_epoch(
        &self,
        group: &GroupId,
        member: &MemberId,
        epoch: u64,
    ) -> Result<(), GroupError> {
        match self.groups.get(group).map(|group| &group.members) {
            Some(Members::Consumer(members)) => members.check_epoch(member, epoch),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// Where the group's members are of another kind, or there are none.
    fn check_kind(&self, group: &GroupId, member: &MemberId) -> Result<(), GroupError> {
        match self.groups.get(group) {
            Some(known) if matches!(known.members, Members::Consumer(_)) => Ok(()),
            Some(known) if known.has_members() => Err(GroupError::OtherKind(group.clone())),
            _ => Err(GroupError::UnknownMember(member.clone())),
        }
    }
}
