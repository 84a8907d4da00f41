//! Members and the coordinators that follow one another. What an event came to is stored a while later: answers, and what members
//! are told, wait for that, and another coordinator knows nothing of what was not stored.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use quipu_model::{Offset, PartitionKey, TimestampMs, TopicId};

use crate::groups::{
    assign::Assignor,
    consumer::{Assignment, Join, Spec},
    coordinator::{Commit, Committer, Coordinator, Effects, Limits, Notice},
    names::{GroupError, GroupId, MemberId, Moment},
    offsets::{Committed, Place},
    records::Stored,
    topics::{TopicView, TopicsView},
};

pub(super) const SESSION: Duration = Duration::from_secs(10);
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

/// A member as its client knows it.
#[derive(Default)]
pub(super) struct Client {
    pub(super) epoch: u64,
    /// What it processes.
    pub(super) held: BTreeSet<PartitionKey>,
    /// What it has let go, and not said yet.
    letting_go: Vec<PartitionKey>,
    /// When the last sign of life that was taken in was sent.
    heard: Duration,
    /// The newest notice, which it has not seen yet.
    pub(super) inbox: Option<Notice>,
    instance: Option<Box<str>>,
    /// Its join is not answered yet: it neither sees nor says anything.
    joins: bool,
    /// The next record of each partition that it holds.
    positions: BTreeMap<PartitionKey, u64>,
    /// It waits for the answer to a commit: it makes one at a time.
    commits: bool,
}

/// A commit on its way.
pub(super) struct Sent {
    member: MemberId,
    epoch: u64,
    partition: PartitionKey,
    offset: u64,
}

/// What is heard once what an event came to is stored.
pub(super) enum News {
    Told(MemberId, Notice),
    /// A join, or a sign of life, of this moment was taken in.
    Heard(MemberId, Duration),
    /// It is no member.
    Out(MemberId),
    /// A commit was answered; with its offset, where that was stored.
    Committed(MemberId, Option<(PartitionKey, u64)>),
}

pub(super) struct World {
    coordinator: Coordinator,
    group: GroupId,
    pub(super) topics: Arc<TopicsView>,
    log: Vec<Stored>,
    /// What is to be stored, one event after the other.
    waiting: VecDeque<(Vec<Stored>, Vec<News>)>,
    /// Only [`World::store`] stores.
    pub(super) is_slow: bool,
    now: Duration,
    pub(super) clients: BTreeMap<MemberId, Client>,
    started: usize,
    pub(super) sent: Vec<Sent>,
    /// The newest offset that is stored of each partition.
    offsets: BTreeMap<PartitionKey, u64>,
}

impl World {
    pub(super) fn new(partitions: &[usize]) -> Self {
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
            waiting: VecDeque::new(),
            is_slow: false,
            now: Duration::ZERO,
            clients: BTreeMap::new(),
            started: 0,
            sent: Vec::new(),
            offsets: BTreeMap::new(),
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            elapsed: self.now,
            wall: TimestampMs::new(self.now.as_millis() as i64),
        }
    }

    pub(super) fn spec(instance: Option<Box<str>>) -> Spec {
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

    pub(super) fn event<T>(
        &mut self,
        event: impl FnOnce(&mut Coordinator, &GroupId, Moment, &mut Effects) -> T,
        news: impl FnOnce(&T) -> Option<News>,
    ) -> T {
        let mut effects = Effects::default();
        let (group, now) = (self.group.clone(), self.moment());
        let answer = event(&mut self.coordinator, &group, now, &mut effects);
        let told = effects.notices.into_iter();
        let told = told.map(|(_, member, notice)| News::Told(member, notice));
        let news = news(&answer).into_iter().chain(told).collect();
        self.waiting.push_back((effects.records, news));
        if !self.is_slow {
            self.store(usize::MAX);
        }
        answer
    }

    /// Stores what so many events came to.
    pub(super) fn store(&mut self, events: usize) {
        for _ in 0..events.min(self.waiting.len()) {
            let (records, news) = self.waiting.pop_front().unwrap();
            for record in &records {
                self.check_forward(record);
            }
            self.log.extend(records);
            for news in news {
                self.hear(news);
            }
        }
    }

    /// No stored offset goes back.
    fn check_forward(&mut self, record: &Stored) {
        let Stored::Offset {
            partition, value, ..
        } = record
        else {
            return;
        };
        let offset = value.as_ref().unwrap().place.number() as u64;
        let before = self.offsets.insert(*partition, offset).unwrap_or_default();
        assert!(
            before <= offset,
            "{partition} goes back from {before} to {offset}"
        );
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Told(id, notice) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.inbox = Some(notice);
                }
            }
            News::Heard(id, at) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.heard = client.heard.max(at);
                    client.joins = false;
                }
            }
            News::Out(id) => drop(self.clients.remove(&id)),
            News::Committed(id, stored) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.commits = false;
                }
                if let Some((partition, offset)) = stored {
                    assert!(self.offsets[&partition] >= offset);
                }
            }
        }
    }

    pub(super) fn start(&mut self, instance: Option<&str>) -> MemberId {
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
    pub(super) fn join(&mut self, id: &MemberId) -> Result<(), GroupError> {
        let client = self.clients.get_mut(id).unwrap();
        // What the broken connection was to bring is lost.
        (client.inbox, client.joins) = (None, true);
        for (_, news) in &mut self.waiting {
            news.retain(|news| !matches!(news, News::Heard(of, _) | News::Out(of) if of == id));
        }
        let join = Join {
            member: id.clone(),
            epoch: client.epoch,
            spec: Self::spec(client.instance.clone()),
        };
        let (id, now) = (id.clone(), self.now);
        self.event(
            |coordinator, group, now, effects| coordinator.join(now, group, join, effects),
            |joined| {
                Some(match joined {
                    Ok(()) => News::Heard(id, now),
                    // It has lost what it held.
                    Err(_) => News::Out(id),
                })
            },
        )
    }

    /// Looks at the newest notice.
    pub(super) fn see(&mut self, id: &MemberId) {
        let client = self.clients.get_mut(id).unwrap();
        if client.joins {
            return;
        }
        match client.inbox.take() {
            Some(Notice::Assigned(Assignment {
                epoch,
                owned,
                revoking,
            })) => {
                let stays = |partition: &PartitionKey| !revoking.contains(partition);
                client.epoch = epoch;
                client.held = owned.into_iter().filter(stays).collect();
                client.letting_go = revoking;
                let held = &client.held;
                client
                    .positions
                    .retain(|partition, _| held.contains(partition));
                self.begin(id);
            }
            Some(Notice::Fenced(_)) => drop(self.clients.remove(id)),
            None => {}
        }
    }

    /// Begins to read what it was given where the group has got to.
    fn begin(&mut self, id: &MemberId) {
        // It is answered what is stored.
        self.store(usize::MAX);
        let Some(client) = self.clients.get_mut(id) else {
            return;
        };
        for partition in &client.held {
            let stored = self.coordinator.fetch(&self.group, Some(&[*partition]));
            let stored = stored.first().map(|(_, value)| value.place.number() as u64);
            let begin = stored.unwrap_or_default();
            client.positions.entry(*partition).or_insert(begin);
        }
    }

    pub(super) fn heartbeat(&mut self, id: &MemberId) {
        if self.clients[id].joins {
            return;
        }
        let (id, now) = (id.clone(), self.now);
        let _ = self.event(
            |coordinator, group, now, _| coordinator.heartbeat(now, group, &id),
            |heard| {
                Some(match heard {
                    Ok(()) => News::Heard(id.clone(), now),
                    Err(_) => News::Out(id.clone()),
                })
            },
        );
    }

    pub(super) fn let_go(&mut self, id: &MemberId) {
        let client = self.clients.get_mut(id).unwrap();
        if client.joins {
            return;
        }
        let (epoch, partitions) = (client.epoch, std::mem::take(&mut client.letting_go));
        let _ = self.event(
            |coordinator, group, now, effects| {
                coordinator.release(now, group, (id, epoch), &partitions, effects)
            },
            |_| None,
        );
    }

    pub(super) fn leave(&mut self, id: &MemberId) {
        self.clients.remove(id);
        let _ = self.event(
            |coordinator, group, now, effects| coordinator.leave(now, group, id, effects),
            |_| None,
        );
    }

    /// Processes records of what it holds, and sends how far it got with one of them, unless the answer to the commit before is still
    /// to come.
    pub(super) fn work(&mut self, id: &MemberId, records: u64) {
        let client = self.clients.get_mut(id).unwrap();
        for position in client.positions.values_mut() {
            *position += records;
        }
        let positions: Vec<_> = client.positions.iter().collect();
        if let Some((partition, offset)) = positions.get(records as usize % positions.len().max(1))
            && !client.commits
        {
            let sent = Sent {
                member: id.clone(),
                epoch: client.epoch,
                partition: **partition,
                offset: **offset,
            };
            client.commits = true;
            self.sent.push(sent);
        }
    }

    /// A commit arrives, whoever has the partition by now. Whether it is taken in.
    pub(super) fn arrive(&mut self, sent: usize) -> bool {
        let Sent {
            member,
            epoch,
            partition,
            offset,
        } = self.sent.swap_remove(sent);
        let stored = Some((partition, offset));
        self.commit(&member, epoch, partition, offset, |taken| {
            Some(News::Committed(member.clone(), stored.filter(|_| taken)))
        })
    }

    fn commit(
        &mut self,
        id: &MemberId,
        epoch: u64,
        partition: PartitionKey,
        offset: u64,
        news: impl FnOnce(bool) -> Option<News>,
    ) -> bool {
        let value = Committed {
            place: Place::At(Offset::new(offset)),
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
        self.event(
            |coordinator, group, now, effects| {
                let refused = coordinator.commit(now, group, commit, effects);
                refused.is_ok_and(|refused| refused.is_empty())
            },
            |taken| news(*taken),
        )
    }

    /// Whether a commit from an epoch is taken in.
    pub(super) fn commits(&mut self, id: &MemberId, epoch: u64, partition: PartitionKey) -> bool {
        self.commit(id, epoch, partition, 1, |_| None)
    }

    /// Lets time pass, up to a second at once. Who hears nothing lets go of everything by itself.
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
            self.event(
                |coordinator, _, now, effects| coordinator.tick(now, effects),
                |()| None,
            );
        }
    }

    /// Another node coordinates from now on. It knows what is stored, of which compaction has perhaps left only the newest.
    pub(super) fn fail_over(&mut self, is_compacted: bool) {
        for (_, news) in std::mem::take(&mut self.waiting) {
            for news in news {
                if let News::Committed(id, _) = news
                    && let Some(client) = self.clients.get_mut(&id)
                {
                    client.commits = false;
                }
            }
        }
        if is_compacted {
            let log = self.log.iter().enumerate();
            let newest: HashMap<_, _> = log.map(|(at, record)| (record.encode().0, at)).collect();
            let mut at = 0..;
            self.log
                .retain(|record| at.next() == Some(newest[&record.encode().0]));
        }
        self.coordinator = Coordinator::new(Limits::default());
        for stored in self.log.clone() {
            self.coordinator.replay(stored);
        }
        for client in self.clients.values_mut() {
            // What was not delivered never will be.
            client.inbox = None;
        }
        let topics = Arc::clone(&self.topics);
        self.event(
            |coordinator, _, now, effects| coordinator.begin(now, topics, effects),
            |()| None,
        );
        for id in self.ids() {
            let _ = self.join(&id);
        }
        self.check_kept();
    }

    pub(super) fn change_topics(&mut self, partitions: &[usize]) {
        self.topics = topics(partitions);
        let topics = Arc::clone(&self.topics);
        self.event(
            |coordinator, _, now, effects| coordinator.topics_changed(now, topics, effects),
            |()| None,
        );
    }

    pub(super) fn ids(&self) -> Vec<MemberId> {
        self.clients.keys().cloned().collect()
    }

    /// All that is on its way arrives, until nothing more happens.
    pub(super) fn settle(&mut self) {
        for _ in 0..20 {
            self.store(usize::MAX);
            for id in self.ids() {
                if self.clients.contains_key(&id) {
                    self.see(&id);
                }
                if self.clients.contains_key(&id) {
                    self.let_go(&id);
                }
            }
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

    /// The coordinator knows how far the group has got, as far as that was stored.
    fn check_kept(&self) {
        for (partition, offset) in &self.offsets {
            let found = self.coordinator.fetch(&self.group, Some(&[*partition]));
            let found = found.first().map(|(_, value)| value.place.number() as u64);
            assert_eq!(found, Some(*offset), "{partition}");
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
}
