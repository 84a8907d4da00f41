//! A member as the coordinator knows it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use quipu_model::{PartitionKey, TopicId};

use super::{Spec, StoredMember};
use crate::groups::names::MemberId;

/// What a member owns.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Assignment {
    pub epoch: u64,
    pub owned: Vec<PartitionKey>,
    /// What of that it is to let go.
    pub revoking: Vec<PartitionKey>,
}

/// A partition that a member is to let go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Revocation {
    /// When the member is timed out.
    pub(super) by: Duration,
    /// The epoch in which it is told.
    pub(super) told: u64,
}

impl Revocation {
    /// One that comes by heartbeats has its time from when it hears of it.
    pub(super) const UNTOLD: Duration = Duration::MAX;
}

/// What a member has heard that has no session: it is told things only in answer to its heartbeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The epoch of its newest answer.
    pub(crate) epoch: u64,
    /// The epoch that it named when it was answered so. If the answer was lost, it names that again.
    pub(crate) before: u64,
    /// It has let go of everything, and its instance is expected back under another id.
    pub(crate) away: bool,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) spec: Spec,
    pub(super) subscribed: BTreeSet<TopicId>,
    /// Since which epoch it owns each partition.
    pub(super) owned: BTreeMap<PartitionKey, u64>,
    pub(super) revoking: BTreeMap<PartitionKey, Revocation>,
    /// When it is timed out.
    pub(super) expires: Duration,
    /// It is to be no member any more. Until it has heard of that, or has not been heard of for so long that it must know by
    /// itself, it may go on with what it holds: so nobody else gets that before.
    pub(super) fenced: bool,
    /// The newest epoch in which there is something to tell it.
    pub(super) news: u64,
    /// `None`: it has a session.
    pub(super) heard: Option<Heard>,
}

impl Member {
    pub(super) fn new(spec: Spec, owned: BTreeMap<PartitionKey, u64>) -> Self {
        Self {
            spec,
            subscribed: BTreeSet::new(),
            owned,
            revoking: BTreeMap::new(),
            expires: Duration::ZERO,
            fenced: false,
            news: 0,
            heard: None,
        }
    }

    /// One of which this was stored. The times are set when the coordinator begins.
    pub(super) fn replayed(stored: StoredMember) -> Self {
        let revoking = stored.revoking.into_iter();
        let revoking = revoking.map(|(partition, told)| {
            let by = Revocation::UNTOLD;
            (partition, Revocation { by, told })
        });
        Self {
            revoking: revoking.collect(),
            heard: stored.heard,
            ..Self::new(stored.spec, stored.owned)
        }
    }

    pub(super) fn stored(&self) -> StoredMember {
        let revoking = self.revoking.iter();
        StoredMember {
            spec: self.spec.clone(),
            owned: self.owned.clone(),
            revoking: revoking
                .map(|(partition, revocation)| (*partition, revocation.told))
                .collect(),
            heard: self.heard,
        }
    }

    pub(super) fn assignment(&self, epoch: u64) -> Assignment {
        Assignment {
            epoch,
            owned: self.owned.keys().copied().collect(),
            revoking: self.revoking.keys().copied().collect(),
        }
    }

    /// What it is to own.
    pub(super) fn kept(&self) -> Vec<PartitionKey> {
        let owned = self.owned.keys();
        let kept = owned.filter(|partition| !self.revoking.contains_key(partition));
        kept.copied().collect()
    }

    /// Whether it is still to hear of something, or to let go of something.
    pub(super) fn is_behind(&self) -> bool {
        !self.revoking.is_empty() || self.heard.is_some_and(|heard| heard.epoch < self.news)
    }

    /// All times begin anew.
    pub(super) fn begin(&mut self, now: Duration) {
        self.expires = now + self.spec.session_timeout;
        let heard = self.heard.map_or(u64::MAX, |heard| heard.epoch);
        let revoking = self.revoking.values_mut();
        for revocation in revoking.filter(|revocation| revocation.told <= heard) {
            revocation.by = now + self.spec.rebalance_timeout;
        }
    }

    pub(super) fn deadline(&self) -> Duration {
        if self.fenced {
            return self.expires;
        }
        let revocations = self.revoking.values().map(|revocation| revocation.by);
        revocations.fold(self.expires, Duration::min)
    }
}

/// A member as it is shown.
#[derive(Clone, Debug)]
pub struct MemberView {
    pub id: MemberId,
    pub spec: Spec,
    pub assignment: Assignment,
    /// What it is to own once others have let go.
    pub target: Vec<PartitionKey>,
}
