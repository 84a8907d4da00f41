//! As many partitions to each member, with as few changes as possible.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use quipu_model::PartitionKey;

use super::Candidate;
use crate::groups::{names::MemberId, topics::TopicView};

struct Partition<'a> {
    key: PartitionKey,
    racks: &'a [Arc<str>],
    /// Who may have it: the place among [`Balance::takers`].
    topic: usize,
    /// The place of its member among the candidates.
    at: Option<usize>,
    /// Whether that member has it already.
    kept: bool,
}

struct Balance<'a> {
    candidates: &'a [Candidate<'a>],
    /// By topic: the places of the candidates that subscribe to it.
    takers: Vec<Vec<usize>>,
    /// How many partitions each candidate has.
    load: Vec<usize>,
    by_rack: bool,
}

/// Each partition and the place of its member among the candidates.
pub(super) fn assign(
    candidates: &[Candidate<'_>],
    topics: &[&TopicView],
    owner: impl Fn(PartitionKey) -> Option<MemberId>,
    by_rack: bool,
) -> Vec<(PartitionKey, usize)> {
    let takers = topics.iter().map(|topic| {
        let takers = 0..candidates.len();
        takers
            .filter(|at| candidates[*at].subscribed.contains(&topic.id))
            .collect()
    });
    let mut balance = Balance {
        candidates,
        takers: takers.collect(),
        load: vec![0; candidates.len()],
        by_rack,
    };
    let mut partitions: Vec<_> = topics
        .iter()
        .enumerate()
        .flat_map(|(at, topic)| {
            let partitions = topic.partitions().zip(&topic.racks);
            partitions.map(move |(key, racks)| Partition {
                key,
                racks,
                topic: at,
                at: None,
                kept: false,
            })
        })
        .collect();
    balance.keep(&mut partitions, owner);
    balance.give(&mut partitions);
    balance.even_out(&mut partitions);
    let assigned = partitions.into_iter();
    assigned
        .filter_map(|partition| Some((partition.key, partition.at?)))
        .collect()
}

impl Balance<'_> {
    /// Leaves partitions where they are.
    fn keep(
        &mut self,
        partitions: &mut [Partition<'_>],
        owner: impl Fn(PartitionKey) -> Option<MemberId>,
    ) {
        let places = self.candidates.iter().enumerate();
        let places: HashMap<&MemberId, usize> = places.map(|(at, c)| (c.id, at)).collect();
        for partition in partitions {
            let at = owner(partition.key).and_then(|owner| places.get(&owner).copied());
            let subscribes = |at: &usize| {
                let subscribed = self.candidates[*at].subscribed;
                subscribed.contains(&partition.key.topic)
            };
            if let Some(at) = at.filter(subscribes) {
                partition.at = Some(at);
                partition.kept = true;
                self.load[at] += 1;
            }
        }
    }

    /// Gives partitions that nobody has to who has fewest; first those that fewest could have.
    fn give(&mut self, partitions: &mut [Partition<'_>]) {
        let share = partitions.len() / self.candidates.len().max(1);
        let mut free: Vec<_> = partitions.iter_mut().filter(|p| p.at.is_none()).collect();
        free.sort_by_key(|partition| (self.takers[partition.topic].len(), partition.key));
        if self.by_rack {
            // To those near it, as long as nobody gets more than the fair share by that.
            for partition in &mut free {
                let near = self.least(partition, |at| {
                    self.load[at] < share && self.is_near(partition, at)
                });
                self.put(partition, near);
            }
        }
        for partition in free.into_iter().filter(|p| p.at.is_none()) {
            let least = self.least(partition, |_| true);
            self.put(partition, least);
        }
    }

    fn put(&mut self, partition: &mut Partition<'_>, at: Option<usize>) {
        let Some(at) = at else { return };
        if let Some(before) = partition.at.replace(at) {
            self.load[before] -= 1;
        }
        self.load[at] += 1;
    }

    /// The one with fewest partitions among those that may have this one.
    fn least(&self, partition: &Partition<'_>, may: impl Fn(usize) -> bool) -> Option<usize> {
        let takers = self.takers[partition.topic].iter().copied();
        takers
            .filter(|at| may(*at))
            .min_by_key(|at| (self.load[*at], !self.is_near(partition, *at), *at))
    }

    fn is_near(&self, partition: &Partition<'_>, at: usize) -> bool {
        let rack = self.candidates[at].rack;
        self.by_rack && partition.racks.iter().any(|near| **near == *rack)
    }

    /// Moves partitions from who has many to who has at least two fewer. Each move makes the loads more even, so it ends.
    fn even_out(&mut self, partitions: &mut [Partition<'_>]) {
        let mut held = vec![Vec::new(); self.candidates.len()];
        for (place, partition) in partitions.iter().enumerate() {
            if let Some(at) = partition.at {
                held[at].push(place);
            }
        }
        // Once more where something moved: who was passed over may have somebody to give to now.
        for _ in 0..self.candidates.len() {
            let mut order: Vec<usize> = (0..self.candidates.len()).collect();
            order.sort_by_key(|at| (Reverse(self.load[*at]), *at));
            let mut moved = false;
            for from in order {
                moved |= self.relieve(from, partitions, &mut held);
            }
            if !moved {
                return;
            }
        }
    }

    /// Moves partitions from one that has many; whether it did.
    fn relieve(
        &mut self,
        from: usize,
        partitions: &mut [Partition<'_>],
        held: &mut [Vec<usize>],
    ) -> bool {
        let fewest = self.load.iter().min().copied().unwrap_or_default();
        if self.load[from] <= fewest + 1 {
            return false;
        }
        // Those that it has only now go first: they change hands anyway.
        held[from].sort_by_key(|place| (partitions[*place].kept, partitions[*place].key));
        let mut left = Vec::new();
        let mut moved = false;
        for place in std::mem::take(&mut held[from]) {
            let partition = &mut partitions[place];
            let enough = self.load[from];
            match self.least(partition, |at| self.load[at] + 1 < enough) {
                Some(to) => {
                    self.put(partition, Some(to));
                    partition.kept = false;
                    held[to].push(place);
                    moved = true;
                }
                None => left.push(place),
            }
        }
        held[from] = left;
        moved
    }
}
