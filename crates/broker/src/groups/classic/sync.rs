//! Members get their parts of a generation, which its leader cut.

use super::*;

impl ClassicGroup {
    /// A member asks for what it is assigned. It is answered when the leader has said it.
    pub(in crate::groups) fn sync(
        &mut self,
        scene: &mut Scene<'_>,
        ticket: Ticket,
        sync: ClassicSync,
    ) {
        if let Err(error) = self.take_sync(scene, ticket, sync) {
            scene.effects.reply(ticket, Reply::Refused(error));
        }
    }

    pub(super) fn take_sync(
        &mut self,
        scene: &mut Scene<'_>,
        ticket: Ticket,
        sync: ClassicSync,
    ) -> Result<(), GroupError> {
        self.check_member(&sync.member)?;
        let other = |said: &Option<Box<str>>, known: &str| {
            said.as_deref().is_some_and(|said| said != known)
        };
        if other(&sync.protocol_type, &self.protocol_type) || other(&sync.protocol, &self.protocol)
        {
            return Err(GroupError::OtherProtocol);
        }
        let leads = self.leader.as_ref() == Some(&sync.member.id);
        let assigns = leads && matches!(self.phase, Phase::Syncing { .. });
        if assigns {
            let assignments = sync.assignments.iter();
            self.check_bytes(assignments.map(|(_, assignment)| assignment.len()).sum())?;
        }
        let Some(member) = self.members.get_mut(&sync.member.id) else {
            return Err(GroupError::UnknownMember(sync.member.id));
        };
        match self.phase {
            Phase::Empty | Phase::Joining { .. } => return Err(GroupError::RebalanceInProgress),
            Phase::Syncing { .. } => {
                let old = member.held.replace(Held::Sync(ticket));
                member.synced = true;
                refuse(scene, old, GroupError::RebalanceInProgress);
            }
            Phase::Stable { .. } => {
                member.synced = true;
                member.renew(scene.now.elapsed);
                let synced = self.synced(&sync.member.id);
                scene.effects.reply(ticket, Reply::Synced(synced));
            }
        }
        if assigns {
            self.assign(scene, sync.assignments);
        }
        Ok(())
    }

    /// The leader said what each is assigned.
    pub(super) fn assign(&mut self, scene: &mut Scene<'_>, assignments: Vec<(Box<str>, Bytes)>) {
        let mut by_member: BTreeMap<Box<str>, Bytes> = assignments.into_iter().collect();
        let mut answers = Vec::new();
        for (id, member) in &mut self.members {
            member.assignment = by_member.remove(id.as_str()).unwrap_or_default();
            if let Some(Held::Sync(ticket)) =
                member.held.take_if(|held| matches!(held, Held::Sync(_)))
            {
                member.renew(scene.now.elapsed);
                answers.push((ticket, id.clone()));
            }
        }
        if let Phase::Syncing { by } = self.phase {
            self.phase = Phase::Stable { by };
        }
        for (ticket, id) in answers {
            let synced = self.synced(&id);
            scene.effects.reply(ticket, Reply::Synced(synced));
        }
        self.store(scene);
    }

    pub(super) fn synced(&self, id: &MemberId) -> Synced {
        let member = self.members.get(id);
        Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment: member
                .map(|member| member.assignment.clone())
                .unwrap_or_default(),
        }
    }
}
