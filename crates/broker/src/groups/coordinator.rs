//! The groups of one partition of the internal topic, as a state machine: what happens, and when, decides what is stored and what is
//! answered. It does no I/O and reads no clock.
//!
//! The state runs ahead of the log: whoever drives it holds back an answer until all that was to be stored before it is, and
//! drops the whole state where storing failed.

use std::{collections::HashMap, time::Duration};

use quipu_model::PartitionKey;

use super::{
    names::{GroupError, GroupId, Moment},
    offsets::{Committed, Offsets},
    records::Stored,
};

/// How much a coordinator keeps, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// The most groups of one partition.
    pub(crate) groups: usize,
    /// About how many bytes the groups of one partition may take in memory.
    pub(crate) bytes: usize,
    /// How long offsets are kept of a group without members.
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
}

/// Offsets to be stored.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) offsets: Vec<(PartitionKey, Committed)>,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) group: GroupId,
    pub(crate) state: &'static str,
    pub(crate) members: usize,
}

#[derive(Debug, Default)]
struct Group {
    offsets: Offsets,
}

impl Group {
    /// About what a group takes in memory besides its offsets, in bytes.
    const SIZE: usize = 512;

    fn is_void(&self) -> bool {
        self.offsets.is_empty()
    }

    fn listing(&self, group: &GroupId) -> Listing {
        Listing {
            group: group.clone(),
            state: "EMPTY",
            members: 0,
        }
    }
}

/// The groups of one partition.
#[derive(Debug)]
pub(crate) struct Coordinator {
    limits: Limits,
    groups: HashMap<GroupId, Group>,
    /// About what they take in memory.
    bytes: usize,
    next_sweep: Option<Duration>,
}

impl Coordinator {
    /// How often it looks for what has expired.
    const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            groups: HashMap::new(),
            bytes: 0,
            next_sweep: None,
        }
    }

    /// Takes in what was stored before, in its order.
    pub(crate) fn replay(&mut self, stored: Stored) {
        match stored {
            Stored::Offset {
                group,
                partition,
                value,
            } => self.set_offset(&group, partition, value),
        }
    }

    /// Begins after the last of what was stored before.
    pub(crate) fn begin(&mut self, now: Moment) {
        self.next_sweep = Some(now.elapsed + Self::SWEEP_INTERVAL);
    }

    /// When [`Coordinator::tick`] is due next.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.next_sweep.filter(|_| !self.groups.is_empty())
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Moment, effects: &mut Effects) {
        if self.next_sweep.is_some_and(|due| due <= now.elapsed) {
            self.next_sweep = Some(now.elapsed + Self::SWEEP_INTERVAL);
            self.sweep(now, effects);
        }
    }

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
        self.check_room(group)?;
        let mut refused = Vec::new();
        for (partition, mut value) in commit.offsets {
            match value.check() {
                Ok(()) => {
                    value.at = now.wall;
                    self.store_offset(group, partition, Some(value), effects);
                }
                Err(error) => refused.push((partition, error)),
            }
        }
        Ok(refused)
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
        let known = self.existing(group)?;
        let stored = partitions.iter().copied();
        let stored: Vec<_> = stored
            .filter(|partition| known.offsets.get(*partition).is_some())
            .collect();
        for partition in stored {
            self.store_offset(group, partition, None, effects);
        }
        Ok(())
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
        let offsets = self.existing(group)?.offsets.iter();
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
    pub(crate) fn describe(&self, group: &GroupId) -> Result<Listing, GroupError> {
        Ok(self.existing(group)?.listing(group))
    }

    fn existing(&self, group: &GroupId) -> Result<&Group, GroupError> {
        let known = self.groups.get(group);
        known.ok_or_else(|| GroupError::UnknownGroup(group.clone()))
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

    fn store_offset(
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
        self.set_offset(group, partition, value);
    }

    fn set_offset(&mut self, group: &GroupId, partition: PartitionKey, value: Option<Committed>) {
        if value.is_none() && !self.groups.contains_key(group) {
            return;
        }
        let known = self.groups.entry(group.clone()).or_insert_with(|| {
            self.bytes += Group::SIZE;
            Group::default()
        });
        let (grown, shrunk) = known.offsets.set(partition, value);
        self.bytes = (self.bytes + grown).saturating_sub(shrunk);
        self.drop_void(group);
    }

    fn drop_void(&mut self, group: &GroupId) {
        if self.groups.get(group).is_some_and(Group::is_void) {
            self.groups.remove(group);
            self.bytes = self.bytes.saturating_sub(Group::SIZE);
        }
    }

    /// Forgets what is older than offsets are kept.
    fn sweep(&mut self, now: Moment, effects: &mut Effects) {
        let retention = i64::try_from(self.limits.offsets_retention.as_millis());
        let oldest = now.wall.get().saturating_sub(retention.unwrap_or(i64::MAX));
        let mut expired = Vec::new();
        for (name, group) in &self.groups {
            let stored = group.offsets.iter();
            let old = stored.filter(|(_, value)| value.at.get() < oldest);
            expired.extend(old.map(|(partition, _)| (name.clone(), partition)));
        }
        for (group, partition) in expired {
            self.store_offset(&group, partition, None, effects);
        }
    }
}

#[cfg(test)]
mod tests;
