//! Who is to own what, and how it comes about.

use std::{collections::BTreeSet, time::Duration};

use quipu_model::PartitionKey;

use super::{ConsumerGroup, Scene, member::Revocation};
use crate::groups::{
    assign::{Candidate, assign},
    coordinator::Notice,
    names::MemberId,
    records::Stored,
};

/// Which members an event changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Those who are told what they own.
    pub(super) told: BTreeSet<MemberId>,
    /// Those of whom something else is to be stored than before.
    pub(super) stored: BTreeSet<MemberId>,
    /// Who is answered with all that there is to tell it, and the epoch that it named.
    pub(super) asks: Option<(MemberId, u64)>,
}

impl ConsumerGroup {
    /// Works out who is to own what, and begins to bring it about.
    pub(super) fn rebalance(&mut self, scene: &mut Scene<'_>, mut changes: Changes) {
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

    /// Asks members to let go of what is not to be theirs. What one never heard of, it need not let go.
    fn revoke(&mut self, scene: &Scene<'_>, changes: &mut Changes) {
        let told = self.epoch + 1;
        let mut unheard = Vec::new();
        let members = self.members.iter_mut();
        for (id, member) in members.filter(|(_, member)| !member.fenced) {
            let heard = member.heard.map(|heard| heard.epoch);
            for (partition, since) in &member.owned {
                // One that is not known may be newer than what is known here.
                let stays =
                    self.target.get(partition) == Some(id) || !scene.topics.exists(partition.topic);
                let asked = member.revoking.get(partition);
                match asked.map(|revocation| revocation.told) {
                    // It may have let go by now. It gets it back when it says so.
                    Some(told) if stays && heard.is_some_and(|heard| told <= heard) => continue,
                    Some(_) if stays => drop(member.revoking.remove(partition)),
                    None if !stays && heard.is_some_and(|heard| heard < *since) => {
                        unheard.push((id.clone(), *partition));
                    }
                    None if !stays => {
                        let by = match heard {
                            Some(_) => Revocation::UNTOLD,
                            None => scene.now.elapsed + member.spec.rebalance_timeout,
                        };
                        member.revoking.insert(*partition, Revocation { by, told });
                    }
                    _ => continue,
                }
                changes.told.insert(id.clone());
                changes.stored.insert(id.clone());
            }
        }
        for (id, partition) in unheard {
            self.let_go(&id, &[partition], changes);
        }
    }

    /// A member has let go of these.
    pub(super) fn let_go(
        &mut self,
        id: &MemberId,
        partitions: &[PartitionKey],
        changes: &mut Changes,
    ) {
        let Some(member) = self.members.get_mut(id).filter(|_| !partitions.is_empty()) else {
            return;
        };
        for partition in partitions {
            member.revoking.remove(partition);
            member.owned.remove(partition);
            self.owners.remove(partition);
        }
        changes.told.insert(id.clone());
        changes.stored.insert(id.clone());
    }

    /// Gives those of these partitions that nobody owns to who is to own them.
    pub(super) fn grant(&mut self, partitions: &[PartitionKey], changes: &mut Changes) {
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
    pub(super) fn settle(&mut self, scene: &mut Scene<'_>, mut changes: Changes) {
        if !changes.told.is_empty() || !changes.stored.is_empty() {
            self.epoch += 1;
        }
        for id in &changes.told {
            if let Some(member) = self.members.get_mut(id) {
                member.news = self.epoch;
            }
        }
        if let Some((id, named)) = changes.asks.take()
            && self.hear(&id, named, scene.now.elapsed)
        {
            changes.stored.insert(id);
        }
        let members = changes.stored.iter();
        let members = members.filter_map(|id| Some((id, self.members.get(id)?)));
        for (id, member) in members {
            scene.effects.records.push(Stored::Member {
                group: scene.group.clone(),
                member: id.clone(),
                value: Some(member.stored()),
            });
        }
        for id in &changes.told {
            if let Some(member) = self.members.get(id).filter(|member| !member.fenced) {
                let notice = Notice::Assigned(member.assignment(self.epoch));
                scene.effects.notify(scene.group, id, notice);
            }
        }
    }

    /// A member that named an epoch hears all that there is to tell it. Answers whether there was something.
    fn hear(&mut self, id: &MemberId, named: u64, now: Duration) -> bool {
        let Some(member) = self.members.get_mut(id) else {
            return false;
        };
        match &mut member.heard {
            Some(heard) if heard.epoch < member.news => {
                heard.before = named;
                heard.epoch = member.news;
                let by = now + member.spec.rebalance_timeout;
                let revoking = member.revoking.values_mut();
                let untold = revoking.filter(|revocation| revocation.by == Revocation::UNTOLD);
                untold.for_each(|revocation| revocation.by = by);
                true
            }
            _ => false,
        }
    }
}
