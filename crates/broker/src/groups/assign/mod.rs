//! Who of a group's members gets which partition.

mod range;
mod uniform;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use quipu_model::{PartitionKey, TopicId};

use super::{
    names::{GroupError, MemberId},
    topics::TopicsView,
};

/// A way to assign partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Assignor {
    /// As many to each, and as few as possible change hands.
    #[default]
    Uniform,
    /// The same, and where it makes no difference, to a member in the rack of the partition's leader or of another replica.
    Rack,
    /// Of each topic a run of partitions to each, in the order of the members' names: partitions of the same number of
    /// several topics with as many partitions go to the same member.
    Range,
}

impl Assignor {
    const ALL: [Self; 3] = [Self::Uniform, Self::Rack, Self::Range];

    /// As members name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Rack => "rack",
            Self::Range => "range",
        }
    }
}

impl fmt::Display for Assignor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Assignor {
    type Err = GroupError;

    fn from_str(name: &str) -> Result<Self, GroupError> {
        let known = Self::ALL.into_iter().find(|known| known.name() == name);
        known.ok_or_else(|| {
            let name = name.chars().take(64).collect();
            GroupError::UnknownAssignor(name)
        })
    }
}

/// A member that partitions are assigned to.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub(super) id: &'a MemberId,
    /// What stands for the member where names are compared: one that stays the same when it starts anew, if it has one.
    pub(super) name: &'a str,
    pub(super) rack: &'a str,
    pub(super) subscribed: &'a BTreeSet<TopicId>,
}

/// The member of each partition that anyone subscribes to. `owners` are those who have them now. The same is always assigned to
/// the same members; what is assigned as it is owned stays so.
pub(super) fn assign(
    assignor: Assignor,
    candidates: &[Candidate<'_>],
    topics: &TopicsView,
    owner: impl Fn(PartitionKey) -> Option<MemberId>,
) -> BTreeMap<PartitionKey, MemberId> {
    let wanted: BTreeSet<TopicId> = candidates
        .iter()
        .flat_map(|candidate| candidate.subscribed.iter().copied())
        .collect();
    let wanted: Vec<_> = wanted
        .into_iter()
        .filter_map(|id| topics.by_id(id))
        .collect();
    let assigned = match assignor {
        Assignor::Range => range::assign(candidates, &wanted),
        Assignor::Uniform => uniform::assign(candidates, &wanted, owner, false),
        Assignor::Rack => uniform::assign(candidates, &wanted, owner, true),
    };
    let assigned = assigned.into_iter();
    assigned
        .map(|(partition, at)| (partition, candidates[at].id.clone()))
        .collect()
}

#[cfg(test)]
mod tests;
