//! A group whose partitions the coordinator assigns.
//!
//! Each member owns some partitions. When the members or the topics change, the coordinator works out who should own what, asks
//! members to let go of what is to go to others, and gives each partition to its next owner when the one before has let go, has left or
//! was timed out. Nobody else hears of it.
//!
//! A member either has a session, and is told things as they happen, or it comes by heartbeats, and is told in answer to them. Both
//! can be in one group.

mod balance;
mod heartbeat;
mod member;
mod spec;
mod stored;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use quipu_model::{PartitionKey, TopicId};

pub(crate) use self::stored::StoredMember;
use self::{balance::Changes, member::Member};
pub use self::{
    heartbeat::{ConsumerHeartbeat, HeartbeatAnswer},
    member::{Assignment, MemberView},
    spec::Spec,
};
use super::{
    assign::Assignor,
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

/// What happens around an event.
pub(super) struct Scene<'a> {
    pub(super) group: &'a GroupId,
    pub(super) now: Moment,
    pub(super) topics: &'a TopicsView,
    pub(super) effects: &'a mut Effects,
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
        match self.members.values().any(Member::is_behind) {
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
        let mut targets = HashMap::<_, Vec<_>>::new();
        for (partition, id) in &self.target {
            targets.entry(id).or_default().push(*partition);
        }
        self.members.iter().map(move |(id, member)| MemberView {
            id: id.clone(),
            spec: member.spec.clone(),
            assignment: member.assignment(member.heard.map_or(self.epoch, |heard| heard.epoch)),
            target: targets.remove(id).unwrap_or_default(),
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
        if let Some(stored) = stored {
            self.add(id, Member::replayed(stored));
        }
    }

    /// Takes in the epoch that was stored.
    pub(super) fn replay_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// Begins after what was stored: all members have their whole time to be heard of.
    pub(super) fn begin(&mut self, scene: &mut Scene<'_>) {
        for member in self.members.values_mut() {
            member.begin(scene.now.elapsed);
            // What it was told last is known, and not whether that was all.
            member.news = self.epoch;
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
        if spec.topics.is_empty() && spec.pattern.is_none() {
            return Err(GroupError::Invalid(
                "the member subscribes to nothing: name topics or give a pattern".to_owned(),
            ));
        }
        let subscribed = spec.resolve(scene.topics)?;
        let known = self.members.get(&id);
        if known.is_some_and(|member| member.heard.is_some()) {
            return Err(GroupError::Invalid(format!(
                "member {id} is one that comes by heartbeats"
            )));
        }
        let goes_on = known.is_some_and(|member| !member.fenced) && epoch <= self.epoch;
        let mut changes = Changes::default();
        match epoch {
            0 => self.appear(scene, &id, &spec, &mut changes)?,
            _ if goes_on => {}
            _ => return Err(GroupError::UnknownMember(id)),
        }
        self.update(scene.now, &id, spec, subscribed, &mut changes);
        changes.told.insert(id);
        self.rebalance(scene, changes);
        Ok(())
    }

    /// A member comes that says of itself that it holds nothing.
    fn appear(
        &mut self,
        scene: &mut Scene<'_>,
        id: &MemberId,
        spec: &Spec,
        changes: &mut Changes,
    ) -> Result<(), GroupError> {
        if self.members.get(id).is_some_and(|member| member.fenced) {
            self.remove(scene, id, None);
        }
        match self.members.contains_key(id) {
            true => self.start_anew(id, changes),
            false => self.admit(scene, id, spec.clone(), changes)?,
        }
        Ok(())
    }

    /// Takes in what a member says of itself, and that it is heard of.
    fn update(
        &mut self,
        now: Moment,
        id: &MemberId,
        spec: Spec,
        subscribed: BTreeSet<TopicId>,
        changes: &mut Changes,
    ) {
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        member.expires = now.elapsed + spec.session_timeout;
        if member.spec != spec {
            changes.stored.insert(id.clone());
            self.bytes = (self.bytes + spec.size()).saturating_sub(member.spec.size());
            member.spec = spec;
        }
        member.subscribed = subscribed;
    }

    /// The member with an instance id.
    fn twin(&self, instance: &str) -> Option<&MemberId> {
        let mut members = self.members.iter();
        let twin = members.find(|(_, known)| known.spec.instance.as_deref() == Some(instance));
        twin.map(|(id, _)| id)
    }

    /// Makes it a member: a new one, or in the place of one with the same instance id.
    fn admit(
        &mut self,
        scene: &mut Scene<'_>,
        id: &MemberId,
        spec: Spec,
        changes: &mut Changes,
    ) -> Result<(), GroupError> {
        let twin = spec.instance.as_deref().and_then(|it| self.twin(it));
        let twin = twin.cloned();
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
        self.add(id.clone(), Member::new(spec, owned));
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
        let revoking = self.members.get(id).map(|member| &member.revoking);
        // One that is late speaks of an earlier time that it was asked.
        let asked = |partition: &&PartitionKey| {
            let revocation = revoking.and_then(|revoking| revoking.get(*partition));
            revocation.is_some_and(|revocation| revocation.told <= epoch)
        };
        let freed: Vec<_> = partitions.iter().filter(asked).copied().collect();
        let mut changes = Changes::default();
        self.let_go(id, &freed, &mut changes);
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
        let heard = member.heard.map(|heard| heard.epoch);
        if let Some(known) = heard
            && epoch > known
        {
            return Err(GroupError::OtherEpoch {
                given: epoch,
                known,
            });
        }
        match member.owned.get(&partition) {
            Some(since) if *since <= epoch => Ok(()),
            Some(since) => Err(GroupError::StaleEpoch {
                given: epoch,
                since: *since,
            }),
            // Kafka's clients may store offsets of what nobody subscribes to.
            None if heard == Some(epoch) && !self.has_owner(partition) => Ok(()),
            None => Err(GroupError::NotOwned(partition)),
        }
    }

    fn add(&mut self, id: MemberId, member: Member) {
        self.bytes += member.spec.size();
        for partition in member.owned.keys() {
            self.owners.insert(*partition, id.clone());
        }
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
}

#[cfg(test)]
mod tests;
