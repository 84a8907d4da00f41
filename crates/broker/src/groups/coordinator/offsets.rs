//! How far groups have read: stored, shown, and forgotten after a while.

use super::*;

impl Coordinator {
    /// Stores offsets. Answers with those that were refused.
    ///
    /// # Errors
    /// Where none was stored.
    pub(crate) fn commit(
        &mut self,
        now: Moment,
        group: &GroupId,
        commit: Commit,
        effects: &mut Effects,
    ) -> Result<Vec<(PartitionKey, GroupError)>, GroupError> {
        let committer = self.committer(group, commit.committer);
        match &committer {
            Committer::Outside if self.groups.get(group).is_some_and(Group::has_members) => {
                return Err(GroupError::HasMembers(group.clone()));
            }
            Committer::Outside => {}
            Committer::Member { id, .. } => self.heartbeat(now, group, id)?,
            Committer::Classic(member) => self.check_classic_commit(now, group, member)?,
        }
        self.check_room(group)?;
        let mut refused = Vec::new();
        for (partition, mut value) in commit.offsets {
            let checked = value.check();
            let checked = checked.and_then(|()| self.check_owned(group, &committer, partition));
            match checked {
                Ok(()) => {
                    value.at = now.wall;
                    self.store_offset(group, partition, Some(value), effects);
                }
                Err(error) => refused.push((partition, error)),
            }
        }
        Ok(refused)
    }

    /// Who stores offsets, by what the group's members speak: Kafka's clients say a generation or an epoch in the same place.
    fn committer(&self, group: &GroupId, committer: Committer) -> Committer {
        let known = self.groups.get(group);
        let members = known.map(|group| &group.members);
        match (members, committer) {
            // Kafka's clients that assign partitions to themselves may say who they are, but name no generation.
            (_, Committer::Classic(member))
                if member.generation < 0 && !known.is_some_and(Group::has_members) =>
            {
                Committer::Outside
            }
            (Some(Members::Consumer(_)), Committer::Classic(member)) => Committer::Member {
                id: member.id,
                epoch: u64::try_from(member.generation).unwrap_or_default(),
            },
            (_, committer) => committer,
        }
    }

    pub(super) fn check_owned(
        &self,
        group: &GroupId,
        committer: &Committer,
        partition: PartitionKey,
    ) -> Result<(), GroupError> {
        let Committer::Member { id, epoch } = committer else {
            return Ok(());
        };
        match self.groups.get(group).map(|group| &group.members) {
            Some(Members::Consumer(members)) => members.check_commit(id, *epoch, partition),
            _ => Err(GroupError::UnknownMember(id.clone())),
        }
    }

    /// The offsets stored for these partitions, or for all.
    pub(crate) fn fetch(
        &self,
        group: &GroupId,
        partitions: Option<&[PartitionKey]>,
    ) -> Vec<(PartitionKey, Committed)> {
        let Some(group) = self.groups.get(group) else {
            return Vec::new();
        };
        let found = |(partition, value): (PartitionKey, &Committed)| (partition, value.clone());
        match partitions {
            None => group.offsets.iter().map(found).collect(),
            Some(partitions) => partitions
                .iter()
                .filter_map(|partition| Some((*partition, group.offsets.get(*partition)?)))
                .map(found)
                .collect(),
        }
    }

    /// Forgets offsets of a group without members.
    ///
    /// # Errors
    /// Where there is no such group, or it has members.
    pub(crate) fn delete_offsets(
        &mut self,
        group: &GroupId,
        partitions: &[PartitionKey],
        effects: &mut Effects,
    ) -> Result<(), GroupError> {
        let known = self.without_members(group)?;
        let stored = partitions.iter().copied();
        let stored: Vec<_> = stored
            .filter(|partition| known.offsets.get(*partition).is_some())
            .collect();
        for partition in stored {
            self.store_offset(group, partition, None, effects);
        }
        Ok(())
    }

    pub(super) fn store_offset(
        &mut self,
        group: &GroupId,
        partition: PartitionKey,
        value: Option<Committed>,
        effects: &mut Effects,
    ) {
        effects.records.push(Stored::Offset {
            group: group.clone(),
            partition,
            value: value.clone(),
        });
        let known = self.groups.get(group);
        let epoch = known.map_or(0, |known| known.epoch);
        self.set_offset(group, partition, value);
        if epoch > 0 && !self.groups.contains_key(group) {
            effects.records.push(Stored::Group {
                group: group.clone(),
                value: None,
            });
        }
    }

    pub(super) fn set_offset(
        &mut self,
        group: &GroupId,
        partition: PartitionKey,
        value: Option<Committed>,
    ) {
        if value.is_none() && !self.groups.contains_key(group) {
            return;
        }
        let forgets = value.is_none();
        let (grown, shrunk) = self.group(group).offsets.set(partition, value);
        self.bytes = (self.bytes + grown).saturating_sub(shrunk);
        if forgets {
            self.drop_void(group);
        }
    }

    /// Forgets what is older than offsets are kept. Nothing grows old by a clock that is set ahead: no later is it than the newest
    /// time that was stored when this began, and as long after as this has gone on.
    pub(super) fn sweep(&mut self, now: Moment, effects: &mut Effects) {
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let (newest, began) = self.began;
        let passed = milliseconds(now.elapsed.saturating_sub(began));
        let now = now.wall.get().min(newest.get().saturating_add(passed));
        let oldest = now.saturating_sub(milliseconds(self.limits.offsets_retention));
        let oldest = TimestampMs::new(oldest);
        self.forget_offsets(effects, |group, partition, value| {
            !group.keeps(partition, value.at, oldest)
        });
    }

    pub(super) fn forget_offsets(
        &mut self,
        effects: &mut Effects,
        is_over: impl Fn(&Group, PartitionKey, &Committed) -> bool,
    ) {
        let mut over = Vec::new();
        for (name, group) in &self.groups {
            let stored = group.offsets.iter();
            let old = stored.filter(|(partition, value)| is_over(group, *partition, value));
            over.extend(old.map(|(partition, _)| (name.clone(), partition)));
        }
        for (group, partition) in over {
            self.store_offset(&group, partition, None, effects);
        }
    }
}
