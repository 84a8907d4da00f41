//! The groups of one partition of the internal topic, as a state machine: what happens, and when, decides what is stored and what is
//! answered. It does no I/O and reads no clock.
//!
//! The state runs ahead of the log: whoever drives it holds back an answer until all that was to be stored before it is, and
//! drops the whole state where storing failed.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use quipu_model::{PartitionKey, TimestampMs, TopicId};
use quipu_proto::internal::v1::StoredGroupKind;

use self::group::{Group, Members};
use super::{
    classic::{ClassicGroup, ClassicMember, Reply, Ticket},
    consumer::{Assignment, ConsumerGroup, Join, MemberView, Scene},
    names::{GroupError, GroupId, MemberId, Moment},
    offsets::{Committed, Offsets},
    records::{Stored, StoredClassic, StoredGroup},
    topics::TopicsView,
};

/// How much a coordinator keeps, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// The most groups of one partition.
    pub(crate) groups: usize,
    /// About how many bytes the groups of one partition may take in memory.
    pub(crate) bytes: usize,
    /// How long offsets are kept that nobody renews, of a group without members or of partitions that no member has.
    pub(crate) offsets_retention: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            groups: 10_000,
            bytes: 64 << 20,
            offsets_retention: Duration::from_secs(7 * 24 * 60 * 60),
        }
    }
}

/// What comes of an event beside its answer.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// To be stored, in this order, all or none.
    pub(crate) records: Vec<Stored>,
    /// To be told to members once that is stored. A later notice to a member says all that those before it did.
    pub(crate) notices: Vec<(GroupId, MemberId, Notice)>,
    /// Answers to requests that waited, to be given once that is stored.
    pub(crate) replies: Vec<(Ticket, Reply)>,
}

impl Effects {
    pub(super) fn notify(&mut self, group: &GroupId, member: &MemberId, notice: Notice) {
        self.notices.push((group.clone(), member.clone(), notice));
    }

    pub(super) fn reply(&mut self, ticket: Ticket, reply: Reply) {
        self.replies.push((ticket, reply));
    }
}

/// What a member is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// All that it owns.
    Assigned(Assignment),
    /// It is no member any more.
    Fenced(GroupError),
}

/// Who stores offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committer {
    /// Somebody outside the group.
    Outside,
    /// A member, in the epoch of the newest assignment that it knows of.
    Member { id: MemberId, epoch: u64 },
    /// A member of a classic group.
    Classic(ClassicMember),
}

/// Offsets to be stored.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) committer: Committer,
    pub(crate) offsets: Vec<(PartitionKey, Committed)>,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub group: GroupId,
    pub kind: StoredGroupKind,
    /// What kind of protocols its members speak among themselves: as Kafka names it; empty where it has none.
    pub protocol_type: Box<str>,
    pub state: &'static str,
    pub members: usize,
}

/// All about a group but its offsets.
#[derive(Clone, Debug)]
pub struct Description {
    pub listing: Listing,
    pub epoch: u64,
    pub assignor: String,
    pub members: Vec<MemberView>,
}

/// The groups of one partition.
#[derive(Debug)]
pub(crate) struct Coordinator {
    limits: Limits,
    topics: Arc<TopicsView>,
    groups: HashMap<GroupId, Group>,
    /// About what they take in memory.
    bytes: usize,
    /// When groups are to be looked at.
    due: BTreeSet<(Duration, GroupId)>,
    next_sweep: Duration,
    /// The newest time that was stored when this began, and when that was.
    began: (TimestampMs, Duration),
}

impl Coordinator {
    /// How often it looks for what has expired.
    const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            topics: Arc::default(),
            groups: HashMap::new(),
            bytes: 0,
            due: BTreeSet::new(),
            next_sweep: Duration::MAX,
            began: (TimestampMs::NONE, Duration::ZERO),
        }
    }

    /// Takes in what was stored before, in its order, or in any in which the newest record of each key stands.
    pub(crate) fn replay(&mut self, stored: Stored) {
        match stored {
            Stored::Offset {
                group,
                partition,
                value,
            } => self.set_offset(&group, partition, value),
            Stored::Group { group, value } => {
                let Some(value) = value else {
                    self.drop_void(&group);
                    return;
                };
                self.change_members(&group, |known| {
                    known.epoch = value.epoch;
                    known.empty_since = value.empty_since;
                    known.members.replay_kind(value.kind, value.epoch);
                    match (&mut known.members, value.classic) {
                        (Members::Consumer(members), _) => members.replay_epoch(value.epoch),
                        (Members::Classic(members), Some(classic)) => {
                            let protocol = (classic.protocol_type, classic.protocol);
                            members.replay_group(value.epoch, protocol, classic.leader);
                        }
                        _ => {}
                    }
                });
            }
            Stored::Member {
                group,
                member,
                value: None,
            } => {
                if self.groups.contains_key(&group) {
                    self.change_members(&group, |known| match &mut known.members {
                        Members::None => {}
                        Members::Consumer(members) => members.replay_member(member, None),
                        Members::Classic(members) => members.replay_member(member, None),
                    });
                }
            }
            Stored::Member {
                group,
                member,
                value,
            } => self.change_members(&group, |known| {
                let kind = StoredGroupKind::ConsumerKind;
                known.members.replay_kind(kind, known.epoch);
                if let Members::Consumer(members) = &mut known.members {
                    members.replay_member(member, value);
                }
            }),
            Stored::ClassicMember {
                group,
                member,
                value,
            } => self.change_members(&group, |known| {
                let kind = StoredGroupKind::ClassicKind;
                known.members.replay_kind(kind, known.epoch);
                if let Members::Classic(members) = &mut known.members {
                    members.replay_member(member, Some(value));
                }
            }),
        }
    }

    /// Changes a group's members, whatever they are.
    fn change_members<T>(&mut self, group: &GroupId, change: impl FnOnce(&mut Group) -> T) -> T {
        let known = self.group(group);
        let before = known.members.bytes();
        let changed = change(known);
        let after = known.members.bytes();
        self.bytes = (self.bytes + after).saturating_sub(before);
        changed
    }

    /// Begins after the last of what was stored before.
    pub(crate) fn begin(&mut self, now: Moment, topics: Arc<TopicsView>, effects: &mut Effects) {
        self.topics = topics;
        self.next_sweep = now.elapsed + Self::SWEEP_INTERVAL;
        let newest = self.groups.values().filter_map(Group::newest).max();
        self.began = (newest.unwrap_or(now.wall), now.elapsed);
        for group in self.groups.keys().cloned().collect::<Vec<_>>() {
            // It is of one of the kinds, and nothing is wrong with those of another.
            let _ = self.consumer_event(now, &group, effects, |members, scene| {
                members.begin(scene);
                Ok(())
            });
            let _ = self.classic_event(now, &group, effects, ClassicGroup::begin);
        }
    }

    /// When [`Coordinator::tick`] is due next.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let sweep = (!self.groups.is_empty()).then_some(self.next_sweep);
        let first = self.due.first().map(|(due, _)| *due);
        sweep.into_iter().chain(first).min()
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Moment, effects: &mut Effects) {
        let mut late = Vec::new();
        while let Some((due, _)) = self.due.first()
            && *due <= now.elapsed
        {
            late.extend(self.due.pop_first());
        }
        for (_, group) in late {
            if let Some(known) = self.groups.get_mut(&group) {
                known.due = None;
            }
            let _ = self.consumer_event(now, &group, effects, |members, scene| {
                members.tick(scene);
                Ok(())
            });
            let _ = self.classic_event(now, &group, effects, ClassicGroup::tick);
        }
        if self.next_sweep <= now.elapsed {
            self.next_sweep = now.elapsed + Self::SWEEP_INTERVAL;
            self.sweep(now, effects);
        }
    }

    /// Topics came, went, or have more partitions.
    pub(crate) fn topics_changed(
        &mut self,
        now: Moment,
        topics: Arc<TopicsView>,
        effects: &mut Effects,
    ) {
        let before = std::mem::replace(&mut self.topics, topics);
        let gone = before.iter().map(|(_, topic)| topic.id);
        let gone: HashSet<TopicId> = gone.filter(|id| !self.topics.exists(*id)).collect();
        for group in self.groups.keys().cloned().collect::<Vec<_>>() {
            let _ = self.consumer_event(now, &group, effects, |members, scene| {
                members.topics_changed(scene, &gone);
                Ok(())
            });
        }
        if !gone.is_empty() {
            self.forget_offsets(effects, |_, partition, _| gone.contains(&partition.topic));
        }
    }

    /// A member joins a group, or goes on after its connection broke. A notice tells what it owns.
    ///
    /// # Errors
    /// Where it wants what is not given, or is not known any more.
    pub(crate) fn join(
        &mut self,
        now: Moment,
        group: &GroupId,
        join: Join,
        effects: &mut Effects,
    ) -> Result<(), GroupError> {
        if join.epoch > 0 && !self.groups.contains_key(group) {
            return Err(GroupError::UnknownMember(join.member));
        }
        self.check_room(group)?;
        self.change_members(group, |known| known.be_consumer(group))?;
        self.consumer_event(now, group, effects, |members, scene| {
            members.join(scene, join)
        })
    }

    /// A member gives a sign of life.
    ///
    /// # Errors
    /// Where it is not known.
    pub(crate) fn heartbeat(
        &mut self,
        now: Moment,
        group: &GroupId,
        member: &MemberId,
    ) -> Result<(), GroupError> {
        match self.groups.get_mut(group).map(|group| &mut group.members) {
            Some(Members::Consumer(members)) => members.heartbeat(now, member),
            _ => Err(GroupError::UnknownMember(member.clone())),
        }
    }

    /// A member has let go of partitions, as it was asked to in some epoch up to this one.
    ///
    /// # Errors
    /// Where it is not known.
    pub(crate) fn release(
        &mut self,
        now: Moment,
        group: &GroupId,
        (member, epoch): (&MemberId, u64),
        partitions: &[PartitionKey],
        effects: &mut Effects,
    ) -> Result<(), GroupError> {
        self.consumer_event(now, group, effects, |members, scene| {
            members.release(scene, member, epoch, partitions)
        })
    }

    /// A member leaves.
    ///
    /// # Errors
    /// Where it is not known.
    pub(crate) fn leave(
        &mut self,
        now: Moment,
        group: &GroupId,
        member: &MemberId,
        effects: &mut Effects,
    ) -> Result<(), GroupError> {
        self.consumer_event(now, group, effects, |members, scene| {
            members.leave(scene, member)
        })
    }

    /// Forgets a group without members.
    ///
    /// # Errors
    /// Where there is no such group, or it has members.
    pub(crate) fn delete(
        &mut self,
        group: &GroupId,
        effects: &mut Effects,
    ) -> Result<(), GroupError> {
        let offsets = self.without_members(group)?.offsets.iter();
        let stored: Vec<_> = offsets.map(|(partition, _)| partition).collect();
        for partition in stored {
            self.store_offset(group, partition, None, effects);
        }
        Ok(())
    }

    /// All groups.
    pub(crate) fn list(&self) -> Vec<Listing> {
        let groups = self.groups.iter();
        groups.map(|(name, group)| group.listing(name)).collect()
    }

    /// # Errors
    /// Where there is no such group.
    pub(crate) fn describe(&self, group: &GroupId) -> Result<Description, GroupError> {
        let known = self.existing(group)?;
        let (epoch, assignor, members) = match &known.members {
            Members::None => (known.epoch, String::new(), Vec::new()),
            Members::Consumer(members) => {
                let assignor = members.assignor().to_string();
                (members.epoch(), assignor, members.members().collect())
            }
            Members::Classic(members) => {
                let protocol = members.protocol().to_owned();
                (
                    members.generation(),
                    protocol,
                    members.members(&self.topics),
                )
            }
        };
        Ok(Description {
            listing: known.listing(group),
            epoch,
            assignor,
            members,
        })
    }

    fn existing(&self, group: &GroupId) -> Result<&Group, GroupError> {
        let known = self.groups.get(group);
        known.ok_or_else(|| GroupError::UnknownGroup(group.clone()))
    }

    fn without_members(&self, group: &GroupId) -> Result<&Group, GroupError> {
        match self.existing(group)? {
            known if known.has_members() => Err(GroupError::HasMembers(group.clone())),
            known => Ok(known),
        }
    }

    /// # Errors
    /// Where nothing more is taken in of a group.
    fn check_room(&self, group: &GroupId) -> Result<(), GroupError> {
        let known = self.groups.contains_key(group);
        if !known && self.groups.len() >= self.limits.groups {
            return Err(GroupError::Full {
                what: "the number of groups",
                most: self.limits.groups,
            });
        }
        if self.bytes >= self.limits.bytes {
            return Err(GroupError::Full {
                what: "the bytes of groups",
                most: self.limits.bytes,
            });
        }
        Ok(())
    }

    /// The group of a name, which begins where there is none.
    fn group(&mut self, group: &GroupId) -> &mut Group {
        self.groups.entry(group.clone()).or_insert_with(|| {
            self.bytes += Group::SIZE;
            Group::default()
        })
    }

    /// Lets something happen to the members of a group.
    ///
    /// # Errors
    /// Where there are none of this kind, or what happens is refused.
    fn consumer_event<T>(
        &mut self,
        now: Moment,
        group: &GroupId,
        effects: &mut Effects,
        event: impl FnOnce(&mut ConsumerGroup, &mut Scene<'_>) -> Result<T, GroupError>,
    ) -> Result<T, GroupError> {
        let known = self.groups.get_mut(group);
        let known = known.ok_or_else(|| GroupError::UnknownGroup(group.clone()))?;
        let Members::Consumer(members) = &mut known.members else {
            return Err(GroupError::UnknownGroup(group.clone()));
        };
        let (epoch, bytes, had) = (members.epoch(), members.bytes(), members.len());
        let mut scene = Scene {
            group,
            now,
            topics: &self.topics,
            effects,
        };
        let answer = event(members, &mut scene);
        self.bytes = (self.bytes + members.bytes()).saturating_sub(bytes);
        let (changed, next) = (members.epoch() != epoch, members.deadline());
        known.epoch = members.epoch();
        if members.len() == 0 {
            known.members = Members::None;
            if had > 0 {
                known.empty_since = Some(now.wall);
                self.store_group(group, effects);
                self.end_void(group, effects);
            } else {
                self.drop_void(group);
            }
        } else {
            if changed {
                known.empty_since = None;
                self.store_group(group, effects);
            }
            self.arm(group, next);
        }
        answer
    }

    /// Sees to it that the group is looked at then, or before.
    fn arm(&mut self, group: &GroupId, next: Option<Duration>) {
        let (Some(known), Some(next)) = (self.groups.get_mut(group), next) else {
            return;
        };
        if known.due.is_none_or(|due| next < due) {
            if let Some(due) = known.due.replace(next) {
                self.due.remove(&(due, group.clone()));
            }
            self.due.insert((next, group.clone()));
        }
    }

    fn store_group(&mut self, group: &GroupId, effects: &mut Effects) {
        let Some(known) = self.groups.get(group) else {
            return;
        };
        effects.records.push(Stored::Group {
            group: group.clone(),
            value: Some(StoredGroup {
                kind: known.listing(group).kind,
                epoch: known.epoch,
                empty_since: known.empty_since,
                classic: match &known.members {
                    Members::Classic(members) if members.len() > 0 => Some(StoredClassic {
                        protocol_type: members.protocol_type().into(),
                        protocol: members.protocol().into(),
                        leader: members.leader().cloned(),
                    }),
                    _ => None,
                },
            }),
        });
    }

    /// Forgets a group of which nothing is left, in what is stored too.
    fn end_void(&mut self, group: &GroupId, effects: &mut Effects) {
        self.drop_void(group);
        if !self.groups.contains_key(group) {
            effects.records.push(Stored::Group {
                group: group.clone(),
                value: None,
            });
        }
    }

    fn drop_void(&mut self, group: &GroupId) {
        if self.groups.get(group).is_some_and(Group::is_void)
            && let Some(gone) = self.groups.remove(group)
        {
            self.bytes = self.bytes.saturating_sub(Group::SIZE);
            if let Some(due) = gone.due {
                self.due.remove(&(due, group.clone()));
            }
        }
    }
}

mod classic;
mod group;
mod heartbeat;
mod offsets;
#[cfg(test)]
mod tests;
