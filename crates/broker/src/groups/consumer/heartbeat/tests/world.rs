//! Members that come by heartbeats, as their clients know them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use quipu_model::{PartitionId, PartitionKey, TimestampMs, TopicId};

use crate::groups::{
    consumer::{ConsumerHeartbeat, HeartbeatAnswer, Spec},
    coordinator::{Commit, Committer, Coordinator, Effects, Limits},
    names::{GroupError, GroupId, MemberId, Moment},
    offsets::{Committed, Place},
    records::Stored,
    topics::{TopicView, TopicsView},
};

pub(super) const SESSION: Duration = Duration::from_secs(45);
pub(super) const REBALANCE: Duration = Duration::from_secs(20);

pub(super) fn topics(partitions: &[usize]) -> Arc<TopicsView> {
    let topics = (1..).zip(partitions).map(|(number, count)| {
        let view = TopicView {
            id: TopicId::from_bytes([number; 16]),
            racks: vec![[].into(); *count],
        };
        (format!("t{number}").into(), view)
    });
    Arc::new(TopicsView::new(topics))
}

/// A partition of the first topic.
pub(super) fn partition(number: u32) -> PartitionKey {
    PartitionKey {
        topic: TopicId::from_bytes([1; 16]),
        partition: PartitionId::new(number),
    }
}

#[derive(Default)]
pub(super) struct Client {
    pub(super) epoch: u64,
    /// What it processes.
    pub(super) held: BTreeSet<PartitionKey>,
    /// What it is to process.
    pub(super) target: BTreeSet<PartitionKey>,
    /// It has changed what it processes, and not said so yet.
    changed: bool,
    /// It may have missed an answer.
    unsure: bool,
    pub(super) instance: Option<Box<str>>,
    heard: Duration,
}

pub(super) struct World {
    pub(super) coordinator: Coordinator,
    pub(super) group: GroupId,
    pub(super) topics: Arc<TopicsView>,
    pub(super) clients: BTreeMap<MemberId, Client>,
    log: Vec<Stored>,
    now: Duration,
    started: usize,
}

impl World {
    pub(super) fn new(partitions: &[usize]) -> Self {
        let mut world = Self {
            coordinator: Coordinator::new(Limits::default()),
            group: GroupId::new("g").unwrap(),
            topics: topics(partitions),
            clients: BTreeMap::new(),
            log: Vec::new(),
            now: Duration::ZERO,
            started: 0,
        };
        let topics = Arc::clone(&world.topics);
        world.event(|coordinator, _, now, effects| coordinator.begin(now, topics, effects));
        world
    }

    pub(super) fn event<T>(
        &mut self,
        event: impl FnOnce(&mut Coordinator, &GroupId, Moment, &mut Effects) -> T,
    ) -> T {
        let mut effects = Effects::default();
        let (group, now) = (self.group.clone(), self.moment());
        let answer = event(&mut self.coordinator, &group, now, &mut effects);
        self.log.extend(effects.records);
        answer
    }

    fn moment(&self) -> Moment {
        Moment {
            elapsed: self.now,
            wall: TimestampMs::new(self.now.as_millis() as i64),
        }
    }

    /// A heartbeat that says nothing new.
    pub(super) fn quiet(id: &MemberId, epoch: u64) -> ConsumerHeartbeat {
        ConsumerHeartbeat {
            member: id.clone(),
            epoch,
            instance: None,
            client: "test".into(),
            client_host: "/127.0.0.1".into(),
            rack: None,
            rebalance_timeout: None,
            topics: None,
            pattern: None,
            assignor: None,
            owned: None,
        }
    }

    /// One that says all.
    pub(super) fn full(id: &MemberId, epoch: u64, owned: &[PartitionKey]) -> ConsumerHeartbeat {
        ConsumerHeartbeat {
            rebalance_timeout: Some(REBALANCE),
            pattern: Some("t.*".into()),
            owned: Some(owned.iter().copied().collect()),
            ..Self::quiet(id, epoch)
        }
    }

    pub(super) fn send(&mut self, beat: &ConsumerHeartbeat) -> Result<HeartbeatAnswer, GroupError> {
        self.event(|coordinator, group, now, effects| coordinator.beat(now, group, beat, effects))
    }

    pub(super) fn start(&mut self, instance: Option<&str>) -> MemberId {
        self.started += 1;
        let number = match self.started % 2 {
            0 => self.started,
            _ => 9999 - self.started,
        };
        let id = MemberId::new(&format!("m{number:04}")).unwrap();
        let client = Client {
            instance: instance.map(Box::from),
            heard: self.now,
            ..Client::default()
        };
        self.clients.insert(id.clone(), client);
        self.beat(&id, false);
        id
    }

    /// A member sends a heartbeat, whose answer it gets or not.
    pub(super) fn beat(&mut self, id: &MemberId, is_lost: bool) {
        let client = &self.clients[id];
        let held: Vec<_> = client.held.iter().copied().collect();
        let mut beat = match client.epoch == 0 || client.unsure {
            true => Self::full(id, client.epoch, &held),
            false => Self::quiet(id, client.epoch),
        };
        beat.instance = client.instance.clone();
        if client.changed {
            beat.owned = Some(client.held.clone());
        }
        let answer = self.send(&beat);
        let now = self.now;
        let client = self.clients.get_mut(id).unwrap();
        match answer {
            _ if is_lost => client.unsure = true,
            Ok(answer) => {
                client.heard = now;
                client.epoch = answer.epoch;
                client.changed = false;
                client.unsure = false;
                if let Some(assignment) = answer.assignment {
                    client.take(assignment);
                }
            }
            // It loses all that it has, and comes again, or another one has taken its place.
            Err(GroupError::UnknownMember(_) | GroupError::OtherEpoch { .. }) => {
                *client = Client {
                    instance: client.instance.take(),
                    heard: now,
                    ..Client::default()
                };
            }
            Err(_) => drop(self.clients.remove(id)),
        }
    }

    pub(super) fn reconcile(&mut self, id: &MemberId) {
        let client = self.clients.get_mut(id).unwrap();
        client.held = client.target.clone();
    }

    pub(super) fn depart(&mut self, id: &MemberId, comes_back: bool) -> Result<(), GroupError> {
        let client = self.clients.remove(id).unwrap_or_default();
        let instance = client.instance.as_deref();
        self.event(|coordinator, group, now, effects| {
            coordinator.depart(now, group, (id, instance), comes_back, effects)
        })
    }

    /// Stores an offset of a partition of the first topic, as a Kafka client does.
    pub(super) fn commit(&mut self, id: &MemberId, epoch: u64, number: u32) -> Option<GroupError> {
        let value = Committed {
            place: Place::of(1),
            leader_epoch: None,
            metadata: "".into(),
            at: TimestampMs::NONE,
        };
        let commit = Commit {
            committer: Committer::Classic(crate::groups::ClassicMember {
                id: id.clone(),
                instance: None,
                generation: epoch as i32,
            }),
            offsets: vec![(partition(number), value)],
        };
        let refused = self.event(|coordinator, group, now, effects| {
            coordinator.commit(now, group, commit, effects)
        });
        match refused {
            Ok(refused) => refused.into_iter().next().map(|(_, error)| error),
            Err(error) => Some(error),
        }
    }

    /// Lets time pass. Who hears nothing for a session lets go by itself.
    pub(super) fn pass(&mut self, time: Duration) {
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

    /// Another node coordinates from now on. Clients do not know what of their last heartbeats arrived.
    pub(super) fn fail_over(&mut self) {
        self.coordinator = Coordinator::new(Limits::default());
        for stored in self.log.clone() {
            self.coordinator.replay(stored);
        }
        let topics = Arc::clone(&self.topics);
        self.event(|coordinator, _, now, effects| coordinator.begin(now, topics, effects));
        for client in self.clients.values_mut() {
            client.unsure = true;
        }
    }

    pub(super) fn ids(&self) -> Vec<MemberId> {
        self.clients.keys().cloned().collect()
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..8 {
            for id in self.ids() {
                self.beat(&id, false);
                if self.clients.contains_key(&id) {
                    self.reconcile(&id);
                }
            }
            self.check_single_owners();
        }
    }

    pub(super) fn check_single_owners(&self) {
        let mut owners = BTreeMap::new();
        for (id, client) in &self.clients {
            for partition in &client.held {
                let other = owners.insert(*partition, id);
                assert_eq!(other, None, "{partition} is processed by {id} too");
            }
        }
    }

    /// Every partition is processed, by as many members as there can be.
    pub(super) fn check_balanced(&self) {
        let held: Vec<_> = self.clients.values().map(|c| c.held.len()).collect();
        let all: usize = self.topics.iter().map(|(_, topic)| topic.racks.len()).sum();
        assert_eq!(held.iter().sum::<usize>(), all, "{held:?}");
        let (most, fewest) = (held.iter().max().unwrap(), held.iter().min().unwrap());
        assert!(most - fewest <= 1, "{held:?}");
    }

    pub(super) fn spec(&self, id: &MemberId) -> Spec {
        let described = self.coordinator.describe(&self.group).unwrap();
        let mut members = described.members.into_iter();
        members.find(|member| member.id == *id).unwrap().spec
    }
}

impl Client {
    /// Hears what it is to process. It says what it processes once it has heard of anything else than before.
    fn take(&mut self, assignment: Vec<PartitionKey>) {
        let target = assignment.into_iter().collect();
        self.changed |= self.target != target;
        self.target = target;
    }
}
