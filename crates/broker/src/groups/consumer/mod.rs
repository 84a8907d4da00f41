//! A group whose partitions the coordinator assigns.
//!
//! Each member owns some partitions. When the members or the topics change, the coordinator works out who should own what, asks
//! members to let go of what is to go to others, and gives each partition to its next owner when the one before has let go, has left or
//! was timed out. Nobody else hears of it.

mod spec;
mod stored;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use quipu_model::{PartitionKey, TopicId};

pub(crate) use self::{spec::Spec, stored::StoredMember};
use super::{
    assign::{Assignor, Candidate, assign},
    coordinator::{Effects, Notice},
    names::{GroupError, GroupId, MemberId, Moment},
    records::Stored,
    topics::TopicsView,
};

/// A member's wish to join, or to go on after its connection broke.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    pub(crate) member: MemberId,
    /// 0: it holds nothing. Otherwise it goes on with what it held in this epoch.
    pub(crate) epoch: u64,
    pub(crate) spec: Spec,
}

/// What a member owns.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Assignment {
    pub(crate) epoch: u64,
    pub(crate) owned: Vec<PartitionKey>,
    /// What of that it is to let go.
    pub(crate) revoking: Vec<PartitionKey>,
}

/// What happens around an event.
pub(super) struct Scene<'a> {
    pub(super) group: &'a GroupId,
    pub(super) now: Moment,
    pub(super) topics: &'a TopicsView,
    pub(super) effects: &'a mut Effects,
}

/// A partition that a member is to let go.
#[derive(Clone, Copy, Debug)]
struct Revocation {
    /// When the member is timed out.
    by: Duration,
    /// The epoch in which it is told.
    told: u64,
}

#[derive(Debug)]
struct Member {
    spec: Spec,
    subscribed: BTreeSet<TopicId>,
    /// Since which epoch it owns each partition.
    owned: BTreeMap<PartitionKey, u64>,
    revoking: BTreeMap<PartitionKey, Revocation>,
    /// When it is timed out.
    expires: Duration,
    /// It is to be no member any more. Until it has heard of that, or has not been heard of for so long that it must know by
    /// itself, it may go on with what it holds: so nobody else gets that before.
    fenced: bool,
}

impl Member {
    fn assignment(&self, epoch: u64) -> Assignment {
        Assignment {
            epoch,
            owned: self.owned.keys().copied().collect(),
            revoking: self.revoking.keys().copied().collect(),
        }
    }

    fn deadline(&self) -> Duration {
        if self.fenced {
            return self.expires;
        }
        let revocations = self.revoking.values().map(|revocation| revocation.by);
        revocations.fold(self.expires, Duration::min)
    }
}

/// A member as it is shown.
#[derive(Clone, Debug)]
pub(crate) struct MemberView {
    pub(crate) id: MemberId,
    pub(crate) spec: Spec,
    pub(crate) assignment: Assignment,
}

/// Which members an event changed.
#[derive(Debug, Default)]
struct Changes {
    /// Those who are told what they own.
    told: BTreeSet<MemberId>,
    /// Those who own other partitions than before.
    stored: BTreeSet<MemberId>,
}

/// The members of a group and what they own.
#[derive(Debug, Default)]
pub(super) struct ConsumerGroup {
    epoch: u64,
    members: BTreeMap<MemberId, Member>,
    owners: HashMap<PartitionKey, MemberId>,
    /// Who is to own what.
    target: BTreeMap<PartitionKey, MemberId>,
    bytes: usize,
}

impl ConsumerGroup {
    /// The most members.
    const MOST_MEMBERS: usize = 1000;

    pub(super) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            ..Self::default()
        }
    }

    /// It changes whenever a member owns other partitions.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// About what its members take in memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn state(&self) -> &'static str {
        match self.members.values().any(|m| !m.revoking.is_empty()) {
            _ if self.members.is_empty() => "EMPTY",
            true => "RECONCILING",
            false => "STABLE",
        }
    }

    /// How partitions are assigned: as most members want.
    pub(super) fn assignor(&self) -> Assignor {
        let mut votes = BTreeMap::<Assignor, usize>::new();
        for member in self.members.values() {
            *votes.entry(member.spec.assignor).or_default() += 1;
        }
        let most = votes.values().max().copied();
        let chosen = votes.into_iter().find(|(_, votes)| Some(*votes) == most);
        chosen.map_or_else(Assignor::default, |(assignor, _)| assignor)
    }

    pub(super) fn members(&self) -> impl Iterator<Item = MemberView> {
        self.members.iter().map(|(id, member)| MemberView {
            id: id.clone(),
            spec: member.spec.clone(),
            assignment: member.assignment(self.epoch),
        })
    }

    pub(super) fn has_owner(&self, partition: PartitionKey) -> bool {
        self.owners.contains_key(&partition)
    }

    /// When [`ConsumerGroup::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.members.values().map(Member::deadline).min()
    }

    /// Takes in what was stored of a member.
    pub(super) fn replay_member(&mut self, id: MemberId, stored: Option<StoredMember>) {
        self.forget(&id);
        if let Some(StoredMember { spec, owned }) = stored {
            for partition in owned.keys() {
                self.owners.insert(*partition, id.clone());
            }
            self.add(id, spec, owned, Duration::ZERO);
        }
    }

    /// Takes in the epoch that was stored.
    pub(super) fn replay_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// Begins after what was stored: all members have their whole time to be heard of.
    pub(super) fn begin(&mut self, scene: &mut Scene<'_>) {
        for member in self.members.values_mut() {
            member.expires = scene.now.elapsed + member.spec.session_timeout;
        }
        self.topics_changed(scene, &HashSet::new());
    }

    /// A member joins, or goes on after its connection broke. What it owns is told in a notice.
    ///
    /// # Errors
    /// Where it wants what is not given, or wants to go on and is not known: then it has lost what it held.
    pub(super) fn join(&mut self, scene: &mut Scene<'_>, join: Join) -> Result<(), GroupError> {
        let Join {
            member: id,
            epoch,
            spec,
        } = join;
        let subscribed = spec.resolve(scene.topics)?;
        let fenced = self.members.get(&id).is_some_and(|member| member.fenced);
        if fenced && epoch == 0 {
            // It says itself that it holds nothing.
            self.remove(scene, &id, None);
        }
        let known = self.members.contains_key(&id);
        if (epoch > 0 && (fenced || !known)) || epoch > self.epoch {
            return Err(GroupError::UnknownMember(id));
        }
        let mut changes = Changes::default();
        if !known {
            self.admit(scene, &id, spec.clone(), &mut changes)?;
        } else if epoch == 0 {
            self.start_anew(&id, &mut changes);
        }
        let Some(member) = self.members.get_mut(&id) else {
            return Err(GroupError::UnknownMember(id));
        };
        member.expires = scene.now.elapsed + spec.session_timeout;
        if member.spec != spec {
            changes.stored.insert(id.clone());
            self.bytes = (self.bytes + spec.size()).saturating_sub(member.spec.size());
            member.spec = spec;
        }
        member.subscribed = subscribed;
        changes.told.insert(id);
        self.rebalance(scene, changes);
        Ok(())
    }

    /// Makes it a member: a new one, or in the place of one with the same instance id.
    fn admit(
        &mut self,
        scene: &mut Scene<'_>,
        id: &MemberId,
        spec: Spec,
        changes: &mut Changes,
    ) -> Result<(), GroupError> {
        let twin = spec.instance.as_ref().and_then(|instance| {
            let mut members = self.members.iter();
            let twin = members.find(|(_, known)| known.spec.instance.as_ref() == Some(instance));
            twin.map(|(id, _)| id.clone())
        });
        let mut owned = BTreeMap::new();
        match twin {
            Some(twin) => {
                let (group, error) = (scene.group.clone(), GroupError::Replaced(twin.clone()));
                owned = self.remove(scene, &twin, Some(error)).unwrap_or_default();
                tracing::debug!(%group, old = %twin, new = %id, "a member took another one's place");
            }
            None if self.members.len() >= Self::MOST_MEMBERS => {
                return Err(GroupError::Full {
                    what: "the number of members of a group",
                    most: Self::MOST_MEMBERS,
                });
            }
            None => {}
        }
        for since in owned.values_mut() {
            *since = self.epoch + 1;
        }
        for partition in owned.keys() {
            self.owners.insert(*partition, id.clone());
        }
        self.add(id.clone(), spec, owned, Duration::ZERO);
        changes.stored.insert(id.clone());
        Ok(())
    }

    /// A member says that it holds nothing, whatever it was told: it owns the same from now on, and lets go of what it was to.
    fn start_anew(&mut self, id: &MemberId, changes: &mut Changes) {
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        for partition in std::mem::take(&mut member.revoking).into_keys() {
            member.owned.remove(&partition);
            self.owners.remove(&partition);
        }
        for since in member.owned.values_mut() {
            *since = self.epoch + 1;
        }
        changes.stored.insert(id.clone());
    }

    /// A member gives a sign of life.
    ///
    /// # Errors
    /// Where it is not known.
    pub(super) fn heartbeat(&mut self, now: Moment, id: &MemberId) -> Result<(), GroupError> {
        let member = self.members.get_mut(id).filter(|member| !member.fenced);
        let member = member.ok_or_else(|| GroupError::UnknownMember(id.clone()))?;
        member.expires = now.elapsed + member.spec.session_timeout;
        Ok(())
    }

    /// A member has let go of partitions, as it was asked to in some epoch up to this one.
    ///
    /// # Errors
    /// Where it is not known.
    pub(super) fn release(
        &mut self,
        scene: &mut Scene<'_>,
        id: &MemberId,
        epoch: u64,
        partitions: &[PartitionKey],
    ) -> Result<(), GroupError> {
        self.heartbeat(scene.now, id)?;
        let mut freed = Vec::new();
        if let Some(member) = self.members.get_mut(id) {
            for partition in partitions {
                let revocation = member.revoking.get(partition);
                // One that is late speaks of an earlier time that it was asked.
                if revocation.is_some_and(|revocation| revocation.told <= epoch) {
                    member.revoking.remove(partition);
                    member.owned.remove(partition);
                    self.owners.remove(partition);
                    freed.push(*partition);
                }
            }
        }
        let mut changes = Changes::default();
        if !freed.is_empty() {
            changes.told.insert(id.clone());
            changes.stored.insert(id.clone());
        }
        self.grant(&freed, &mut changes);
        self.settle(scene, changes);
        Ok(())
    }

    /// A member leaves.
    ///
    /// # Errors
    /// Where it is not known.
    pub(super) fn leave(&mut self, scene: &mut Scene<'_>, id: &MemberId) -> Result<(), GroupError> {
        let left = self.remove(scene, id, None);
        left.ok_or_else(|| GroupError::UnknownMember(id.clone()))?;
        self.rebalance(scene, Changes::default());
        Ok(())
    }

    /// Times out members that were not heard of, or did not let go.
    pub(super) fn tick(&mut self, scene: &mut Scene<'_>) {
        let late = |member: &Member| member.deadline() <= scene.now.elapsed;
        let members = self.members.iter().filter(|(_, member)| late(member));
        let late: Vec<MemberId> = members.map(|(id, _)| id.clone()).collect();
        if late.is_empty() {
            return;
        }
        for id in late {
            let error = GroupError::TimedOut(id.clone());
            match self.members.get_mut(&id) {
                Some(member) if member.expires > scene.now.elapsed => {
                    tracing::info!(group = %scene.group, member = %id, "a member did not let go in time");
                    member.fenced = true;
                    scene
                        .effects
                        .notify(scene.group, &id, Notice::Fenced(error));
                }
                _ => {
                    tracing::info!(group = %scene.group, member = %id, "a member was timed out");
                    self.remove(scene, &id, Some(error));
                }
            }
        }
        self.rebalance(scene, Changes::default());
    }

    /// Topics came, went, or have more partitions. Of those that are gone nobody is asked to let go.
    pub(super) fn topics_changed(&mut self, scene: &mut Scene<'_>, gone: &HashSet<TopicId>) {
        let mut changes = Changes::default();
        for (id, member) in &mut self.members {
            let before = member.owned.len();
            member.owned.retain(|key, _| !gone.contains(&key.topic));
            member.revoking.retain(|key, _| !gone.contains(&key.topic));
            if member.owned.len() < before {
                changes.told.insert(id.clone());
                changes.stored.insert(id.clone());
            }
        }
        self.owners.retain(|key, _| !gone.contains(&key.topic));
        let mut patterns = HashMap::new();
        for member in self.members.values_mut() {
            // A pattern that was taken once is one.
            if let Ok(subscribed) = member.spec.resolve_with(scene.topics, &mut patterns) {
                member.subscribed = subscribed;
            }
        }
        self.rebalance(scene, changes);
    }

    /// Whether a member may store an offset of a partition.
    ///
    /// # Errors
    /// Where it may not.
    pub(super) fn check_commit(
        &self,
        id: &MemberId,
        epoch: u64,
        partition: PartitionKey,
    ) -> Result<(), GroupError> {
        let member = self.members.get(id).filter(|member| !member.fenced);
        let member = member.ok_or_else(|| GroupError::UnknownMember(id.clone()))?;
        match member.owned.get(&partition) {
            Some(since) if *since <= epoch => Ok(()),
            Some(since) => Err(GroupError::StaleEpoch {
                given: epoch,
                since: *since,
            }),
            None => Err(GroupError::NotOwned(partition)),
        }
    }

    fn add(
        &mut self,
        id: MemberId,
        spec: Spec,
        owned: BTreeMap<PartitionKey, u64>,
        expires: Duration,
    ) {
        self.bytes += spec.size();
        let member = Member {
            spec,
            subscribed: BTreeSet::new(),
            owned,
            revoking: BTreeMap::new(),
            expires,
            fenced: false,
        };
        self.members.insert(id, member);
    }

    fn forget(&mut self, id: &MemberId) -> Option<BTreeMap<PartitionKey, u64>> {
        let member = self.members.remove(id)?;
        self.bytes = self.bytes.saturating_sub(member.spec.size());
        for partition in member.owned.keys() {
            // When it is replayed, the next owner's record may stand before the one that says that this one let go.
            if self.owners.get(partition) == Some(id) {
                self.owners.remove(partition);
            }
        }
        Some(member.owned)
    }

    /// Removes a member, tells it why, and answers what it owned.
    fn remove(
        &mut self,
        scene: &mut Scene<'_>,
        id: &MemberId,
        why: Option<GroupError>,
    ) -> Option<BTreeMap<PartitionKey, u64>> {
        let owned = self.forget(id)?;
        scene.effects.records.push(Stored::Member {
            group: scene.group.clone(),
            member: id.clone(),
            value: None,
        });
        if let Some(why) = why {
            let notice = Notice::Fenced(why);
            scene.effects.notify(scene.group, id, notice);
        }
        Some(owned)
    }

    /// Works out who is to own what, and begins to bring it about.
    fn rebalance(&mut self, scene: &mut Scene<'_>, mut changes: Changes) {
        let candidates: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| !member.fenced)
            .map(|(id, member)| Candidate {
                id,
                name: member.spec.instance.as_deref().unwrap_or(id.as_str()),
                rack: &member.spec.rack,
                subscribed: &member.subscribed,
            })
            .collect();
        let owner = |partition| self.owners.get(&partition).cloned();
        self.target = assign(self.assignor(), &candidates, scene.topics, owner);
        self.revoke(scene, &mut changes);
        let wanted: Vec<_> = self.target.keys().copied().collect();
        self.grant(&wanted, &mut changes);
        self.settle(scene, changes);
    }

    /// Asks members to let go of what is not to be theirs.
    fn revoke(&mut self, scene: &Scene<'_>, changes: &mut Changes) {
        let told = self.epoch + 1;
        let members = self.members.iter_mut();
        for (id, member) in members.filter(|(_, member)| !member.fenced) {
            for partition in member.owned.keys() {
                // One that is not known may be newer than what is known here.
                let stays =
                    self.target.get(partition) == Some(id) || !scene.topics.exists(partition.topic);
                let asked = member.revoking.contains_key(partition);
                if stays && asked {
                    member.revoking.remove(partition);
                } else if !stays && !asked {
                    let by = scene.now.elapsed + member.spec.rebalance_timeout;
                    member.revoking.insert(*partition, Revocation { by, told });
                }
                if stays == asked {
                    changes.told.insert(id.clone());
                }
            }
        }
    }

    /// Gives those of these partitions that nobody owns to who is to own them.
    fn grant(&mut self, partitions: &[PartitionKey], changes: &mut Changes) {
        let since = self.epoch + 1;
        for partition in partitions {
            let Some(id) = self.target.get(partition) else {
                continue;
            };
            if self.owners.contains_key(partition) {
                continue;
            }
            if let Some(member) = self.members.get_mut(id) {
                member.owned.insert(*partition, since);
                self.owners.insert(*partition, id.clone());
                changes.told.insert(id.clone());
                changes.stored.insert(id.clone());
            }
        }
    }

    /// Stores what changed and tells those whom it concerns.
    fn settle(&mut self, scene: &mut Scene<'_>, changes: Changes) {
        if changes.told.is_empty() && changes.stored.is_empty() {
            return;
        }
        self.epoch += 1;
        let members = changes.stored.iter();
        let members = members.filter_map(|id| Some((id, self.members.get(id)?)));
        for (id, member) in members {
            scene.effects.records.push(Stored::Member {
                group: scene.group.clone(),
                member: id.clone(),
                value: Some(StoredMember {
                    spec: member.spec.clone(),
                    owned: member.owned.clone(),
                }),
            });
        }
        for id in &changes.told {
            if let Some(member) = self.members.get(id).filter(|member| !member.fenced) {
                let notice = Notice::Assigned(member.assignment(self.epoch));
                scene.effects.notify(scene.group, id, notice);
            }
        }
    }
}

#[cfg(test)]
mod tests;
