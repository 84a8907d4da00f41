//! Members that behave, and some that do not, against a coordinator that fails over at any time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use quipu_model::{Offset, PartitionKey, TimestampMs, TopicId};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{Assignment, Join, Spec};
use crate::groups::{
    assign::Assignor,
    coordinator::{Commit, Committer, Coordinator, Effects, Limits, Notice},
    names::{GroupError, GroupId, MemberId, Moment},
    offsets::Committed,
    records::Stored,
    topics::{TopicView, TopicsView},
};

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(20);

fn topics(partitions: &[usize]) -> Arc<TopicsView> {
    let topics = (1..).zip(partitions).map(|(number, count)| {
        let view = TopicView {
            id: TopicId::from_bytes([number; 16]),
            racks: vec![[].into(); *count],
        };
        (format!("t{number}").into(), view)
    });
    Arc::new(TopicsView::new(topics))
}

/// A member as its client knows it.
#[derive(Default)]
struct Client {
    epoch: u64,
    /// What it processes.
    held: BTreeSet<PartitionKey>,
    /// What it has let go, and not said yet.
    letting_go: Vec<PartitionKey>,
    /// When the last sign of life that was taken in was sent.
    heard: Duration,
    /// The newest notice, which it has not seen yet.
    inbox: Option<Notice>,
    instance: Option<Box<str>>,
}

struct World {
    coordinator: Coordinator,
    group: GroupId,
    topics: Arc<TopicsView>,
    log: Vec<Stored>,
    now: Duration,
    clients: BTreeMap<MemberId, Client>,
    started: usize,
}

impl World {
    fn new(partitions: &[usize]) -> Self {
        let topics = topics(partitions);
        let mut coordinator = Coordinator::new(Limits::default());
        let mut effects = Effects::default();
        let now = Moment {
            elapsed: Duration::ZERO,
            wall: TimestampMs::new(0),
        };
        coordinator.begin(now, Arc::clone(&topics), &mut effects);
        Self {
            coordinator,
            group: GroupId::new("g").unwrap(),
            topics,
            log: Vec::new(),
            now: Duration::ZERO,
            clients: BTreeMap::new(),
            started: 0,
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            elapsed: self.now,
            wall: TimestampMs::new(self.now.as_millis() as i64),
        }
    }

    fn spec(instance: Option<Box<str>>) -> Spec {
        Spec {
            instance,
            client: "test".into(),
            client_host: "".into(),
            rack: "".into(),
            topics: BTreeSet::new(),
            pattern: Some("t.*".into()),
            assignor: Assignor::Uniform,
            session_timeout: SESSION,
            rebalance_timeout: REBALANCE,
        }
    }

    fn take(&mut self, effects: Effects) {
        self.log.extend(effects.records);
        for (_, member, notice) in effects.notices {
            if let Some(client) = self.clients.get_mut(&member) {
                client.inbox = Some(notice);
            }
        }
    }

    fn event<T>(
        &mut self,
        event: impl FnOnce(&mut Coordinator, &GroupId, Moment, &mut Effects) -> T,
    ) -> T {
        let mut effects = Effects::default();
        let (group, now) = (self.group.clone(), self.moment());
        let answer = event(&mut self.coordinator, &group, now, &mut effects);
        self.take(effects);
        answer
    }

    fn start(&mut self, instance: Option<&str>) -> MemberId {
        self.started += 1;
        // Names stand in no order: what is stored of members is, in that of their names.
        let number = match self.started % 2 {
            0 => self.started,
            _ => 9999 - self.started,
        };
        let id = MemberId::new(&format!("m{number:04}")).unwrap();
        let client = Client {
            heard: self.now,
            instance: instance.map(Box::from),
            ..Client::default()
        };
        self.clients.insert(id.clone(), client);
        self.join(&id).unwrap();
        id
    }

    /// Joins, or goes on after its connection broke.
    fn join(&mut self, id: &MemberId) -> Result<(), GroupError> {
        let client = &self.clients[id];
        let join = Join {
            member: id.clone(),
            epoch: client.epoch,
            spec: Self::spec(client.instance.clone()),
        };
        let joined = self
            .event(|coordinator, group, now, effects| coordinator.join(now, group, join, effects));
        let now = self.now;
        let client = self.clients.get_mut(id).unwrap();
        match &joined {
            Ok(()) => client.heard = now,
            // It has lost what it held.
            Err(_) => drop(self.clients.remove(id)),
        }
        joined
    }

    /// Looks at the newest notice.
    fn see(&mut self, id: &MemberId) {
        let client = self.clients.get_mut(id).unwrap();
        match client.inbox.take() {
            Some(Notice::Assigned(Assignment {
                epoch,
                owned,
                revoking,
            })) => {
                client.epoch = epoch;
                client.held = owned
                    .into_iter()
                    .filter(|p| !revoking.contains(p))
                    .collect();
                client.letting_go = revoking;
            }
            Some(Notice::Fenced(_)) => drop(self.clients.remove(id)),
            None => {}
        }
    }

    fn heartbeat(&mut self, id: &MemberId) {
        let heard = self.event(|coordinator, group, now, _| coordinator.heartbeat(now, group, id));
        let now = self.now;
        match heard {
            Ok(()) => self.clients.get_mut(id).unwrap().heard = now,
            Err(_) => drop(self.clients.remove(id)),
        }
    }

    fn let_go(&mut self, id: &MemberId) {
        let client = self.clients.get_mut(id).unwrap();
        let (epoch, partitions) = (client.epoch, std::mem::take(&mut client.letting_go));
        let _ = self.event(|coordinator, group, now, effects| {
            coordinator.release(now, group, (id, epoch), &partitions, effects)
        });
    }

    fn leave(&mut self, id: &MemberId) {
        self.clients.remove(id);
        let _ = self
            .event(|coordinator, group, now, effects| coordinator.leave(now, group, id, effects));
    }

    fn commit(&mut self, id: &MemberId, epoch: u64, partition: PartitionKey) -> bool {
        let value = Committed {
            offset: Offset::new(1),
            leader_epoch: None,
            metadata: "".into(),
            at: TimestampMs::NONE,
        };
        let commit = Commit {
            committer: Committer::Member {
                id: id.clone(),
                epoch,
            },
            offsets: vec![(partition, value)],
        };
        let refused = self.event(|coordinator, group, now, effects| {
            coordinator.commit(now, group, commit, effects)
        });
        refused.is_ok_and(|refused| refused.is_empty())
    }

    /// Lets time pass, up to a second at once. Who hears nothing lets go of everything by itself.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        self.clients
            .retain(|_, client| client.heard + SESSION > now);
        while self
            .coordinator
            .next_deadline()
            .is_some_and(|due| due <= now)
        {
            self.event(|coordinator, _, now, effects| coordinator.tick(now, effects));
        }
    }

    /// Another node coordinates from now on.
    fn fail_over(&mut self) {
        self.coordinator = Coordinator::new(Limits::default());
        for stored in self.log.clone() {
            self.coordinator.replay(stored);
        }
        for client in self.clients.values_mut() {
            // What was not delivered never will be.
            client.inbox = None;
        }
        let topics = Arc::clone(&self.topics);
        self.event(|coordinator, _, now, effects| coordinator.begin(now, topics, effects));
        for id in self.ids() {
            let _ = self.join(&id);
        }
    }

    fn ids(&self) -> Vec<MemberId> {
        self.clients.keys().cloned().collect()
    }

    /// All that is on its way arrives, until nothing more happens.
    fn settle(&mut self) {
        for _ in 0..20 {
            for id in self.ids() {
                self.see(&id);
                if self.clients.contains_key(&id) {
                    self.let_go(&id);
                }
            }
        }
    }

    fn check_single_owners(&self) {
        let mut owners = BTreeMap::new();
        for (id, client) in &self.clients {
            for partition in &client.held {
                let other = owners.insert(*partition, id);
                assert_eq!(other, None, "{partition} is processed by {id} too");
            }
        }
    }

    /// Every partition is processed, by as many members as there can be.
    fn check_balanced(&self) {
        let held: Vec<_> = self.clients.values().map(|c| c.held.len()).collect();
        let all: usize = self.topics.iter().map(|(_, topic)| topic.racks.len()).sum();
        assert_eq!(held.iter().sum::<usize>(), all, "{held:?}");
        let (most, fewest) = (held.iter().max().unwrap(), held.iter().min().unwrap());
        assert!(most - fewest <= 1, "{held:?}");
    }
}

#[test]
fn one_joins_or_leaves_a_hundred_and_nobody_else_hears_of_it() {
    let mut world = World::new(&[300]);
    for _ in 0..100 {
        world.start(None);
        world.settle();
    }
    world.check_balanced();
    let before: BTreeMap<_, _> = world
        .ids()
        .into_iter()
        .map(|id| (id.clone(), world.clients[&id].held.clone()))
        .collect();
    let new = world.start(None);
    let told = world.clients.values().filter(|c| c.inbox.is_some()).count();
    // The new one, and the two that give.
    assert_eq!(told, 3);
    world.settle();
    world.check_balanced();
    assert_eq!(world.clients[&new].held.len(), 2);
    for (id, held) in &before {
        let now = &world.clients[id].held;
        assert!(now.is_subset(held), "{id} was given something");
    }
    world.leave(&new);
    let told = world.clients.values().filter(|c| c.inbox.is_some()).count();
    assert_eq!(told, 2);
    world.settle();
    world.check_balanced();
}

#[test]
fn who_subscribes_to_nothing_is_refused() {
    let mut world = World::new(&[2]);
    let join = Join {
        member: MemberId::new("m").unwrap(),
        epoch: 0,
        spec: Spec {
            pattern: None,
            ..World::spec(None)
        },
    };
    let joined =
        world.event(|coordinator, group, now, effects| coordinator.join(now, group, join, effects));
    assert!(matches!(joined, Err(GroupError::Invalid(_))));
}

#[test]
fn a_partition_is_given_only_after_its_owner_let_go_or_was_timed_out() {
    let mut world = World::new(&[2]);
    let first = world.start(None);
    world.settle();
    let held: Vec<_> = world.clients[&first].held.iter().copied().collect();
    let second = world.start(None);
    world.see(&second);
    assert!(world.clients[&second].held.is_empty());
    world.see(&first);
    let gone = *held
        .iter()
        .find(|p| !world.clients[&first].held.contains(p))
        .unwrap();
    let epoch = world.clients[&first].epoch;
    // What it has read it may still say while it lets go.
    assert!(world.commit(&first, epoch, gone));
    assert!(!world.commit(&second, epoch, gone));
    world.let_go(&first);
    world.see(&second);
    assert!(world.clients[&second].held.contains(&gone));
    assert!(!world.commit(&first, epoch, gone));
    let epoch = world.clients[&second].epoch;
    assert!(world.commit(&second, epoch, gone));
    // The first is heard of no more.
    while world.clients.contains_key(&first) {
        world.heartbeat(&second);
        world.pass(Duration::from_secs(1));
        world.check_single_owners();
    }
    world.settle();
    assert_eq!(world.clients[&second].held.len(), 2);
}

#[test]
fn who_does_not_let_go_in_time_is_put_out() {
    let mut world = World::new(&[2]);
    let first = world.start(None);
    world.settle();
    let second = world.start(None);
    for _ in 0..REBALANCE.as_secs() {
        world.see(&second);
        for id in [&first, &second] {
            world.heartbeat(id);
        }
        assert!(world.clients[&second].held.is_empty());
        world.pass(Duration::from_secs(1));
    }
    assert!(matches!(
        world.clients[&first].inbox,
        Some(Notice::Fenced(_))
    ));
    // It may not have heard of it: until it must know by itself, nobody gets what it had.
    while world.clients.contains_key(&first) {
        assert!(world.clients[&second].held.is_empty());
        world.heartbeat(&second);
        world.pass(Duration::from_secs(1));
        world.see(&second);
        world.check_single_owners();
    }
    assert_eq!(world.clients[&second].held.len(), 2);
}

#[test]
fn a_commit_from_before_a_partition_was_given_away_and_back_is_refused() {
    let mut world = World::new(&[2]);
    let first = world.start(None);
    world.settle();
    let old = world.clients[&first].epoch;
    let held = world.clients[&first].held.clone();
    let second = world.start(None);
    world.settle();
    let moved = *world.clients[&second].held.first().unwrap();
    world.leave(&second);
    world.settle();
    assert_eq!(world.clients[&first].held, held);
    assert!(!world.commit(&first, old, moved));
    let kept = *held.iter().find(|p| **p != moved).unwrap();
    assert!(world.commit(&first, old, kept));
    let new = world.clients[&first].epoch;
    assert!(world.commit(&first, new, moved));
}

#[test]
fn one_with_an_instance_id_comes_back_to_what_it_had_and_its_other_self_is_put_out() {
    let mut world = World::new(&[8]);
    let old = world.start(Some("a"));
    let others = [world.start(None), world.start(None), world.start(None)];
    world.settle();
    let held = world.clients[&old].held.clone();
    let before: Vec<_> = others.iter().map(|id| world.clients[id].epoch).collect();
    let new = world.start(Some("a"));
    assert!(matches!(
        world.clients[&old].inbox,
        Some(Notice::Fenced(GroupError::Replaced(_)))
    ));
    world.settle();
    assert_eq!(world.clients[&new].held, held);
    let after: Vec<_> = others.iter().map(|id| world.clients[id].epoch).collect();
    assert_eq!(before, after);
}

#[test]
fn topics_and_partitions_that_come_later_are_given_out() {
    let mut world = World::new(&[2]);
    let (first, second) = (world.start(None), world.start(None));
    world.settle();
    for partitions in [&[4][..], &[4, 6]] {
        world.topics = topics(partitions);
        let topics = Arc::clone(&world.topics);
        world.event(|coordinator, _, now, effects| {
            coordinator.topics_changed(now, topics, effects);
        });
        world.settle();
        world.check_balanced();
    }
    assert_eq!(world.clients[&first].held.len(), 5);
    assert_eq!(world.clients[&second].held.len(), 5);
}

#[test]
fn a_failover_moves_nothing() {
    let mut world = World::new(&[20, 7]);
    for _ in 0..6 {
        world.start(None);
        world.settle();
    }
    let held = |world: &World| {
        let clients = world.clients.iter();
        let held: Vec<_> = clients
            .map(|(id, c)| (id.clone(), c.held.clone()))
            .collect();
        held
    };
    let before = held(&world);
    for _ in 0..3 {
        world.fail_over();
        world.settle();
        assert_eq!(held(&world), before);
    }
    let members = world.ids();
    for id in &members {
        let partition = *world.clients[id].held.first().unwrap();
        let epoch = world.clients[id].epoch;
        assert!(world.commit(id, epoch, partition));
    }
}

#[test]
fn under_any_churn_no_partition_is_processed_twice_and_in_the_end_all_are() {
    for seed in 0..40 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut world = World::new(&[5, 3]);
        for _ in 0..300 {
            let ids = world.ids();
            let chosen = (!ids.is_empty()).then(|| ids[random.random_range(0..ids.len())].clone());
            match (random.random_range(0..20), chosen) {
                (0, _) if ids.len() < 6 => drop(world.start(None)),
                (1, _) if ids.len() < 6 => drop(world.start(Some("static"))),
                (2, Some(id)) => world.leave(&id),
                // It dies without a word.
                (3, Some(id)) => drop(world.clients.remove(&id)),
                (4, Some(id)) => drop(world.join(&id)),
                (5, _) => world.fail_over(),
                (6, _) => {
                    world.topics = topics(&[random.random_range(3..8), random.random_range(0..5)]);
                    let topics = Arc::clone(&world.topics);
                    world.event(|coordinator, _, now, effects| {
                        coordinator.topics_changed(now, topics, effects);
                    });
                }
                (7..10, Some(id)) => world.heartbeat(&id),
                (10..14, Some(id)) => world.see(&id),
                (14..18, Some(id)) => world.let_go(&id),
                _ => world.pass(Duration::from_millis(random.random_range(0..1000))),
            }
            // One that takes another one's place knows that there is none.
            let fenced =
                |c: &Client| matches!(c.inbox, Some(Notice::Fenced(GroupError::Replaced(_))));
            world.clients.retain(|_, client| !fenced(client));
            world.check_single_owners();
        }
        for _ in 0..60 {
            for id in world.ids() {
                world.heartbeat(&id);
            }
            world.settle();
            world.pass(Duration::from_secs(1));
            world.check_single_owners();
        }
        if world.clients.is_empty() {
            world.start(None);
            world.settle();
        }
        world.check_balanced();
    }
}
