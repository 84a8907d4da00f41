//! What ends: memberships, and waits.

use super::*;

impl ClassicGroup {
    /// A member leaves, named by either id or by both.
    ///
    /// # Errors
    /// Where it is not known.
    pub(in crate::groups) fn leave(
        &mut self,
        scene: &mut Scene<'_>,
        id: Option<&MemberId>,
        instance: Option<&str>,
    ) -> Result<(), GroupError> {
        let id = match (id, instance) {
            (Some(id), _) if self.promised.remove(id).is_some() => {
                self.advance(scene);
                return Ok(());
            }
            (Some(id), instance) => {
                self.check_identity(id, instance)?;
                id.clone()
            }
            (None, instance) => {
                let instance = instance.unwrap_or_default();
                let twin = self.twin(instance);
                twin.ok_or_else(|| GroupError::UnknownInstance(instance.into()))?
            }
        };
        self.remove(scene, &id);
        self.go_on(scene);
        Ok(())
    }

    pub(super) fn remove(&mut self, scene: &mut Scene<'_>, id: &MemberId) {
        if let Some(member) = self.members.remove(id) {
            refuse(scene, member.held, GroupError::UnknownMember(id.clone()));
        }
        if self.leader.as_ref() == Some(id) {
            self.leader = None;
        }
    }

    /// Goes on without those that were removed.
    pub(super) fn go_on(&mut self, scene: &mut Scene<'_>) {
        match self.phase {
            Phase::Empty => {}
            Phase::Joining { .. } => self.advance(scene),
            Phase::Syncing { .. } | Phase::Stable { .. } => self.rebalance(scene),
        }
    }

    /// Does what is due.
    pub(in crate::groups) fn tick(&mut self, scene: &mut Scene<'_>) {
        let now = scene.now.elapsed;
        self.promised.retain(|_, until| *until > now);
        let unsynced = match self.phase {
            Phase::Syncing { by } | Phase::Stable { by } => by <= now,
            Phase::Empty | Phase::Joining { .. } => false,
        };
        let late = |member: &Member| {
            (member.held.is_none() && member.expires <= now) || (unsynced && !member.synced)
        };
        let late = self.members.iter().filter(|(_, member)| late(member));
        let late: Vec<MemberId> = late.map(|(id, _)| id.clone()).collect();
        for id in &late {
            tracing::info!(group = %scene.group, member = %id, "a member was timed out");
            self.remove(scene, id);
        }
        if late.is_empty() {
            self.advance(scene);
        } else {
            self.go_on(scene);
        }
        self.end_wait(scene);
    }

    /// Waits no longer for others to join than it has to.
    pub(super) fn end_wait(&mut self, scene: &mut Scene<'_>) {
        let now = scene.now.elapsed;
        let Phase::Joining { by, gathering } = &mut self.phase else {
            return;
        };
        let over = match gathering {
            Some(gathering) if gathering.until <= now && gathering.grew && *by > now => {
                gathering.until = now + Self::GATHERING;
                gathering.grew = false;
                false
            }
            Some(gathering) => gathering.until.min(*by) <= now,
            None => *by <= now,
        };
        if over {
            self.begin_generation(scene);
        }
    }

    pub(super) fn renew(&mut self, now: Moment, id: &MemberId) {
        if let Some(member) = self.members.get_mut(id) {
            member.renew(now.elapsed);
        }
    }
}
