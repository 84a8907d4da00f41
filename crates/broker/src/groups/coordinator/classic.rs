//! What happens to classic groups.

use super::{Coordinator, Effects, Members};
use crate::groups::{
    classic::{
        ClassicDescription, ClassicGroup, ClassicJoin, ClassicMember, ClassicSync, Reply, Ticket,
    },
    consumer::Scene,
    names::{GroupError, GroupId, MemberId, Moment},
};

impl Coordinator {
    /// A member joins, or joins again. A reply comes now or later.
    pub(crate) fn join_classic(
        &mut self,
        now: Moment,
        group: &GroupId,
        (ticket, join): (Ticket, ClassicJoin),
        effects: &mut Effects,
    ) {
        let room = self.check_room(group);
        let ready = room.and_then(|()| self.group(group).classic(group).map(drop));
        let joined = ready.and_then(|()| {
            self.classic_event(now, group, effects, |members, scene| {
                members.join(scene, ticket, join);
            })
        });
        if let Err(error) = joined {
            effects.reply(ticket, Reply::Refused(error));
        }
    }

    /// A member asks for what it is assigned. A reply comes now or later.
    pub(crate) fn sync_classic(
        &mut self,
        now: Moment,
        group: &GroupId,
        (ticket, sync): (Ticket, ClassicSync),
        effects: &mut Effects,
    ) {
        let id = sync.member.id.clone();
        let synced = self.check_room(group).and_then(|()| {
            self.classic_event(now, group, effects, |members, scene| {
                members.sync(scene, ticket, sync);
            })
            .map_err(|_| GroupError::UnknownMember(id))
        });
        if let Err(error) = synced {
            effects.reply(ticket, Reply::Refused(error));
        }
    }

    /// A member gives a sign of life.
    ///
    /// # Errors
    /// Where it is not known in this generation, or is to join the next one.
    pub(crate) fn heartbeat_classic(
        &mut self,
        now: Moment,
        group: &GroupId,
        member: &ClassicMember,
    ) -> Result<(), GroupError> {
        match self.groups.get_mut(group).map(|group| &mut group.members) {
            Some(Members::Classic(members)) => members.heartbeat(now, member),
            _ => Err(GroupError::UnknownMember(member.id.clone())),
        }
    }

    /// A member leaves, named by either id or by both.
    ///
    /// # Errors
    /// Where it is not known.
    pub(crate) fn leave_classic(
        &mut self,
        now: Moment,
        group: &GroupId,
        (id, instance): (Option<&MemberId>, Option<&str>),
        effects: &mut Effects,
    ) -> Result<(), GroupError> {
        self.classic_event(now, group, effects, |members, scene| {
            members.leave(scene, id, instance)
        })?
    }

    /// All about a group, where it is one; one of which there are only offsets is one without members.
    ///
    /// # Errors
    /// Where there is none, or its partitions are assigned by the coordinator.
    pub(crate) fn describe_classic(
        &self,
        group: &GroupId,
    ) -> Result<ClassicDescription, GroupError> {
        match &self.existing(group)?.members {
            Members::None => Ok(ClassicGroup::new(0).describe()),
            Members::Classic(members) => Ok(members.describe()),
            Members::Consumer(_) => Err(GroupError::OtherKind(group.clone())),
        }
    }

    /// # Errors
    /// Where a member may not store offsets.
    pub(super) fn check_classic_commit(
        &mut self,
        now: Moment,
        group: &GroupId,
        member: &ClassicMember,
    ) -> Result<(), GroupError> {
        match self.groups.get_mut(group).map(|group| &mut group.members) {
            Some(Members::Classic(members)) => members.check_commit(now, member),
            // It gives a generation of a group that has none.
            _ => Err(GroupError::StaleGeneration {
                given: member.generation,
            }),
        }
    }

    /// Lets something happen to the members of a classic group.
    ///
    /// # Errors
    /// Where there are none of this kind.
    pub(super) fn classic_event<T>(
        &mut self,
        now: Moment,
        group: &GroupId,
        effects: &mut Effects,
        event: impl FnOnce(&mut ClassicGroup, &mut Scene<'_>) -> T,
    ) -> Result<T, GroupError> {
        let known = self.groups.get_mut(group);
        let known = known.ok_or_else(|| GroupError::UnknownGroup(group.clone()))?;
        let Members::Classic(members) = &mut known.members else {
            return Err(GroupError::OtherKind(group.clone()));
        };
        let (bytes, had) = (members.bytes(), members.len());
        let mut scene = Scene {
            group,
            now,
            topics: &self.topics,
            effects,
        };
        let answer = event(members, &mut scene);
        self.bytes = (self.bytes + members.bytes()).saturating_sub(bytes);
        let (stores, next) = (members.take_unstored(), members.deadline());
        let over = members.is_over();
        known.epoch = members.generation();
        match members.len() {
            0 if had > 0 => known.empty_since = Some(now.wall),
            0 => {}
            _ => known.empty_since = None,
        }
        if over {
            known.members = Members::None;
        }
        if stores {
            self.store_group(group, effects);
        }
        match over {
            true if stores => self.end_void(group, effects),
            true => self.drop_void(group),
            false => self.arm(group, next),
        }
        Ok(answer)
    }
}
