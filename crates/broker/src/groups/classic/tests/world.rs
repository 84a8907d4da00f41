//! Clients as they stand, and the coordinator that they talk to.

use super::*;

/// How a client stands with its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Outside,
    Joins(Ticket),
    Syncs(Ticket),
    Member,
    Fenced,
}

/// A member as its client knows it.
pub(super) struct Client {
    pub(super) instance: Option<Box<str>>,
    pub(super) metadata: Bytes,
    pub(super) protocols: Vec<&'static str>,
    pub(super) id: Option<MemberId>,
    pub(super) generation: i32,
    pub(super) stage: Stage,
    pub(super) assigned: Bytes,
    pub(super) heard: Duration,
    /// It neither sends anything nor takes anything in.
    pub(super) silent: bool,
    pub(super) leads: bool,
}

pub(super) struct World {
    pub(super) coordinator: Coordinator,
    pub(super) group: GroupId,
    pub(super) now: Duration,
    pub(super) log: Vec<Stored>,
    pub(super) replies: HashMap<Ticket, Reply>,
    pub(super) tickets: u64,
    pub(super) clients: BTreeMap<&'static str, Client>,
    pub(super) fresh: u64,
    /// Who said in each generation what each is assigned.
    pub(super) leaders: HashMap<i32, Bytes>,
}

impl World {
    pub(super) fn new() -> Self {
        let mut world = Self {
            coordinator: Coordinator::new(Limits::default()),
            group: GroupId::new("g").unwrap(),
            now: Duration::ZERO,
            log: Vec::new(),
            replies: HashMap::new(),
            tickets: 0,
            clients: BTreeMap::new(),
            fresh: 0,
            leaders: HashMap::new(),
        };
        world.event(|coordinator, _, now, effects| {
            coordinator.begin(now, Arc::default(), effects);
        });
        world
    }

    pub(super) fn event<T>(
        &mut self,
        event: impl FnOnce(&mut Coordinator, &GroupId, Moment, &mut Effects) -> T,
    ) -> T {
        let now = Moment {
            elapsed: self.now,
            wall: TimestampMs::new(self.now.as_millis() as i64),
        };
        let (group, mut effects) = (self.group.clone(), Effects::default());
        let answer = event(&mut self.coordinator, &group, now, &mut effects);
        self.log.extend(effects.records);
        for (ticket, reply) in effects.replies {
            assert!(self.replies.insert(ticket, reply).is_none(), "two answers");
        }
        answer
    }

    /// Another node takes over: it knows what is stored, perhaps without what was stored anew.
    pub(super) fn fail_over(&mut self, compacted: bool) {
        if compacted {
            let mut newest = HashMap::new();
            for (at, record) in self.log.iter().enumerate() {
                newest.insert(record.encode().0, at);
            }
            let mut at = 0..;
            let log = self.log.iter();
            let kept = log.filter(|record| Some(newest[&record.encode().0]) == at.next());
            self.log = kept.cloned().collect();
        }
        self.coordinator = Coordinator::new(Limits::default());
        for record in &self.log {
            let (key, value) = record.encode();
            let read = Stored::decode(Some(&key), value.as_deref()).unwrap();
            assert_eq!(read.as_ref(), Some(record));
            self.coordinator.replay(read.unwrap());
        }
        self.event(|coordinator, _, now, effects| {
            coordinator.begin(now, Arc::default(), effects);
        });
        // Whoever waits is told that the coordinator is another one, and asks that one.
        for client in self.clients.values_mut() {
            let waits = matches!(client.stage, Stage::Joins(ticket) | Stage::Syncs(ticket) if !self.replies.contains_key(&ticket));
            if waits {
                client.stage = Stage::Outside;
            }
        }
    }

    pub(super) fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    pub(super) fn start(&mut self, name: &'static str, instance: Option<&str>) {
        let client = Client {
            instance: instance.map(Box::from),
            metadata: Bytes::from_static(b"m1"),
            protocols: vec!["range", "sticky"],
            id: None,
            generation: -1,
            stage: Stage::Outside,
            assigned: Bytes::new(),
            heard: self.now,
            silent: false,
            leads: false,
        };
        self.clients.insert(name, client);
    }

    pub(super) fn client(&mut self, name: &str) -> &mut Client {
        self.clients.get_mut(name).unwrap()
    }

    pub(super) fn member(&self, name: &str) -> ClassicMember {
        let client = &self.clients[name];
        ClassicMember {
            id: client.id.clone().unwrap(),
            instance: client.instance.clone(),
            generation: client.generation,
        }
    }

    pub(super) fn wish(&mut self, name: &str) -> ClassicJoin {
        self.fresh += 1;
        let client = &self.clients[name];
        let protocols = client.protocols.iter().map(|protocol| Protocol {
            name: (*protocol).into(),
            metadata: client.metadata.clone(),
        });
        ClassicJoin {
            member: client.id.clone(),
            fresh: MemberId::new(&format!("{name}-{}", self.fresh)).unwrap(),
            instance: client.instance.clone(),
            comes_again: true,
            may_skip_assignment: true,
            client: name.into(),
            client_host: "/127.0.0.1".into(),
            session_timeout: SESSION,
            rebalance_timeout: REBALANCE,
            protocol_type: "consumer".into(),
            protocols: protocols.collect(),
        }
    }

    pub(super) fn join(&mut self, name: &'static str) {
        let (ticket, join) = (self.ticket(), self.wish(name));
        self.event(|coordinator, group, now, effects| {
            coordinator.join_classic(now, group, (ticket, join), effects);
        });
        self.client(name).stage = Stage::Joins(ticket);
    }

    pub(super) fn sync(&mut self, name: &'static str, joined: &Joined) {
        let ticket = self.ticket();
        let word = format!("{} of {}", joined.generation, joined.leader);
        let members = joined.members.iter();
        let members = members.map(|member| (member.id.as_str().into(), word.clone().into()));
        let sync = ClassicSync {
            member: self.member(name),
            protocol_type: Some(joined.protocol_type.clone()),
            protocol: Some(joined.protocol.clone()),
            assignments: match joined.skip_assignment {
                true => Vec::new(),
                false => members.collect(),
            },
        };
        self.event(|coordinator, group, now, effects| {
            coordinator.sync_classic(now, group, (ticket, sync), effects);
        });
        self.client(name).stage = Stage::Syncs(ticket);
    }

    pub(super) fn heartbeat(&mut self, name: &str) -> Result<(), GroupError> {
        let member = self.member(name);
        self.event(|coordinator, group, now, _| coordinator.heartbeat_classic(now, group, &member))
    }

    pub(super) fn leave(&mut self, name: &str) -> Result<(), GroupError> {
        let client = self.clients.remove(name).unwrap();
        self.event(|coordinator, group, now, effects| {
            let member = (client.id.as_ref(), client.instance.as_deref());
            coordinator.leave_classic(now, group, member, effects)
        })
    }

    pub(super) fn commit(&mut self, member: ClassicMember) -> Result<(), GroupError> {
        let key = PartitionKey {
            topic: TopicId::from_bytes([7; 16]),
            partition: PartitionId::new(0),
        };
        let committed = Committed {
            place: Place::of(1),
            leader_epoch: None,
            metadata: "".into(),
            at: TimestampMs::NONE,
        };
        let commit = Commit {
            committer: Committer::Classic(member),
            offsets: vec![(key, committed)],
        };
        let committed = self.event(|coordinator, group, now, effects| {
            coordinator.commit(now, group, commit, effects)
        });
        committed.map(|refused| assert_eq!(refused, []))
    }

    /// What a client does now.
    pub(super) fn act(&mut self, name: &'static str) {
        let client = &self.clients[name];
        if client.silent {
            return;
        }
        match client.stage {
            Stage::Outside => self.join(name),
            Stage::Joins(ticket) | Stage::Syncs(ticket) => {
                if let Some(reply) = self.replies.remove(&ticket) {
                    self.hear(name, reply);
                }
            }
            Stage::Member if self.now >= client.heard + SESSION / 4 => {
                self.client(name).heard = self.now;
                if let Err(error) = self.heartbeat(name) {
                    self.hear(name, Reply::Refused(error));
                }
            }
            Stage::Member | Stage::Fenced => {}
        }
    }

    pub(super) fn hear(&mut self, name: &'static str, reply: Reply) {
        match reply {
            Reply::Joined(joined) => {
                let client = self.client(name);
                client.id = Some(joined.member.clone());
                client.generation = joined.generation;
                client.leads = joined.leader == joined.member;
                assert_eq!(client.leads, !joined.members.is_empty());
                self.sync(name, &joined);
            }
            Reply::Synced(Synced { assignment, .. }) => {
                let now = self.now;
                let client = self.client(name);
                client.stage = Stage::Member;
                client.heard = now;
                client.assigned = assignment.clone();
                let generation = client.generation;
                if !assignment.is_empty() {
                    let said = self.leaders.entry(generation).or_insert(assignment.clone());
                    assert_eq!(*said, assignment, "two leaders in generation {generation}");
                }
            }
            Reply::Refused(GroupError::MemberIdRequired(id)) => {
                self.client(name).id = Some(id);
                self.join(name);
            }
            Reply::Refused(GroupError::UnknownMember(_)) => {
                self.client(name).id = None;
                self.join(name);
            }
            Reply::Refused(GroupError::FencedInstance(_)) => {
                self.client(name).stage = Stage::Fenced;
            }
            Reply::Refused(
                GroupError::RebalanceInProgress | GroupError::StaleGeneration { .. },
            ) => {
                self.join(name);
            }
            Reply::Refused(other) => panic!("{name}: {other}"),
        }
    }

    pub(super) fn step(&mut self) {
        self.now += STEP;
        let due = self.coordinator.next_deadline();
        if due.is_some_and(|due| due <= self.now) {
            self.event(|coordinator, _, now, effects| coordinator.tick(now, effects));
            let next = self.coordinator.next_deadline();
            assert!(next.is_none_or(|next| next > self.now), "it stays due");
        }
        if self.state() == "Dead" {
            // Generations are counted anew, by members that nobody knows.
            self.leaders.clear();
        }
        for name in self.clients.keys().copied().collect::<Vec<_>>() {
            self.act(name);
        }
    }

    pub(super) fn run(&mut self, time: Duration) {
        for _ in 0..time.as_millis() / STEP.as_millis() {
            self.step();
        }
    }

    pub(super) fn state(&self) -> &'static str {
        let described = self.coordinator.describe_classic(&self.group);
        described.map_or("Dead", |described| described.state)
    }

    /// Goes on until the group is in a state, which must be soon.
    pub(super) fn run_to(&mut self, state: &str) {
        for _ in 0..600 {
            if self.state() == state {
                return;
            }
            self.step();
        }
        panic!("it is {}, not {state}", self.state());
    }

    /// All that are not silent are in one generation, and assigned something by one of them.
    pub(super) fn assert_settled(&self) {
        assert_eq!(self.state(), "Stable");
        let described = self.coordinator.describe_classic(&self.group).unwrap();
        let mut generations = Vec::new();
        for (name, client) in &self.clients {
            if client.silent || client.stage == Stage::Fenced {
                continue;
            }
            assert_eq!(client.stage, Stage::Member, "{name}");
            assert!(!client.assigned.is_empty(), "{name} is assigned nothing");
            let id = client.id.as_ref().unwrap();
            assert!(
                described.members.iter().any(|member| member.id == *id),
                "{name}"
            );
            generations.push(client.generation);
        }
        generations.dedup();
        assert_eq!(generations.len(), 1, "{generations:?}");
    }

    /// A group of three, settled.
    pub(super) fn with_three() -> Self {
        let mut world = Self::new();
        for name in ["a", "b", "c"] {
            world.start(name, None);
        }
        world.run(Duration::from_secs(3));
        world.assert_settled();
        assert_eq!(world.clients["a"].generation, 1);
        world
    }

    pub(super) fn leader(&self) -> &'static str {
        let mut clients = self.clients.iter();
        clients.find(|(_, client)| client.leads).unwrap().0
    }

    pub(super) fn follower(&self) -> &'static str {
        let mut clients = self.clients.iter();
        clients.find(|(_, client)| !client.leads).unwrap().0
    }
}
