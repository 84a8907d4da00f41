//! A consumer group whose coordinator is beside the replicas of a partition: its members come by heartbeats, share the partitions
//! of a topic that is only imagined, and now and then are silent for long, or die.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use quipu_broker::{
    Outcome,
    front::{
        Committed, Committer, ConsumerHeartbeat, GroupFailure, GroupId, GroupPartition, MemberId,
        Place,
    },
};
use quipu_model::{NodeId, Offset, PartitionKey, TimestampMs, TopicId};
use quipu_replication::Partition;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    cluster::Cluster,
    invariants::progress::{self, GROUP_GOES_ON},
    luck::Luck,
    mutants::Mutant,
    trace::note,
};

const GROUP: &str = "workers";
/// What members share.
const TOPIC: (&str, TopicId) = ("work", TopicId::from_bytes([9; 16]));
const PARTITIONS: usize = 5;
const MEMBERS: u64 = 4;
/// How long a member is waited for that is not heard of (Kafka's `group.consumer.session.timeout.ms`), or that does not let go.
const SESSION: Duration = Duration::from_secs(45);
/// For so long a member takes for its own what it had when it was last answered: a little less, since a leader that has handed
/// over may answer until it hears of its successor.
const OWNED: Duration = Duration::from_secs(43);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves the group beside a replica of its partition.
pub(crate) fn serve(
    cluster: &Cluster,
    node: NodeId,
    partition: &Partition,
) -> Option<Arc<GroupPartition>> {
    let clock = cluster.clock(node)?;
    let (name, id) = TOPIC;
    let topic = (name, id, PARTITIONS);
    let groups = GroupPartition::beside(node, partition.clone(), clock, topic);
    Some(Arc::new(groups))
}

/// The members at work, and how to end that.
pub(crate) struct Members {
    cluster: Cluster,
    tasks: Vec<JoinHandle<()>>,
    state: Arc<State>,
}

/// What all members share.
#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    /// None is silent, or dies.
    healthy: AtomicBool,
    /// Counts what was stored, for each partition.
    commits: [AtomicU64; PARTITIONS],
}

impl Members {
    /// Starts them.
    pub(crate) fn start(cluster: &Cluster, seed: u64) -> Self {
        let state = Arc::<State>::default();
        let tasks = (0..MEMBERS).map(|number| {
            let luck = Luck::stream(seed, 60_000 + number);
            let member = Member {
                cluster: cluster.clone(),
                state: Arc::clone(&state),
                luck,
                id: MemberId::fresh(&format!("member-{number}")),
                epoch: 0,
                heard: Instant::now(),
                held: BTreeMap::new(),
                wanted: Vec::new(),
            };
            tokio::spawn(member.run())
        });
        Self {
            cluster: cluster.clone(),
            tasks: tasks.collect(),
            state,
        }
    }

    /// From here on all members are well: each partition is processed again within a bound.
    pub(crate) async fn go_on(&self) {
        self.state.healthy.store(true, Ordering::Relaxed);
        let counts = || {
            self.state
                .commits
                .each_ref()
                .map(|n| n.load(Ordering::Relaxed))
        };
        let before = counts();
        let behind = || {
            before
                .iter()
                .zip(counts())
                .any(|(before, now)| *before == now)
        };
        let deadline = Instant::now() + GROUP_GOES_ON;
        while behind() && Instant::now() < deadline {
            sleep(Duration::from_millis(50)).await;
        }
        let check = progress::group_goes_on(!behind(), &format!("{before:?}, then {:?}", counts()));
        self.cluster.invariants.note(check);
    }

    /// All leave.
    pub(crate) async fn stop(self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let left = timeout(GROUP_GOES_ON, task).await.is_ok();
            let check = progress::group_goes_on(left, "a member does not get away");
            self.cluster.invariants.note(check);
        }
    }
}

struct Member {
    cluster: Cluster,
    state: Arc<State>,
    luck: Luck,
    /// Of its present life: each is a member of its own.
    id: MemberId,
    /// 0: it is to join.
    epoch: u64,
    /// When it sent the last sign of life that was answered.
    heard: Instant,
    /// What it processes, and the next offset of each.
    held: BTreeMap<PartitionKey, Offset>,
    /// What it was told to own.
    wanted: Vec<PartitionKey>,
}

impl Member {
    async fn run(mut self) {
        while !self.state.stop.load(Ordering::Relaxed) {
            sleep(self.luck.millis(50..1500)).await;
            if self.cluster.lets_sleep(&mut self.luck) {
                continue;
            }
            if !self.state.healthy.load(Ordering::Relaxed) {
                self.suffer().await;
            }
            self.beat().await;
            self.take_over().await;
            self.process();
            self.commit().await;
        }
        self.leave().await;
    }

    /// Now and then it is silent, for longer than it is waited for too, or dies.
    async fn suffer(&mut self) {
        if self.luck.per_mille(20) {
            let silent = self.luck.millis(1000..90_000);
            note!(self.cluster.trace, "{} is silent for {silent:?}", self.id);
            sleep(silent).await;
        }
        if self.luck.per_mille(10) {
            note!(self.cluster.trace, "{} dies", self.id);
            self.lose_all();
            self.id = MemberId::fresh(GROUP);
            sleep(self.luck.millis(0..30_000)).await;
        }
    }

    async fn beat(&mut self) {
        if self.heard.elapsed() > OWNED {
            self.lose_all();
        }
        let owned = self.held.keys().copied();
        let beat = ConsumerHeartbeat {
            member: self.id.clone(),
            epoch: self.epoch,
            instance: None,
            client: "".into(),
            client_host: "".into(),
            rack: None,
            rebalance_timeout: Some(SESSION),
            topics: Some([TOPIC.0.into()].into()),
            pattern: None,
            assignor: None,
            owned: Some(owned.collect()),
        };
        let sent = Instant::now();
        let answer = self.ask(move |groups, group| {
            let beat = beat.clone();
            async move { groups.beat(group, beat).await }
        });
        match answer.await {
            Some(Ok(answer)) => {
                if answer.epoch != self.epoch {
                    let (from, to) = (self.epoch, answer.epoch);
                    let wanted = answer.assignment.iter().flatten();
                    let wanted: Vec<_> = wanted.map(|key| key.partition.get()).collect();
                    note!(
                        self.cluster.trace,
                        "{} goes from epoch {from} to {to}, {wanted:?}",
                        self.id
                    );
                }
                self.heard = sent;
                self.epoch = answer.epoch;
                if let Some(assignment) = answer.assignment {
                    self.obey(assignment);
                }
            }
            Some(Err(GroupFailure::Refused(error))) => {
                note!(self.cluster.trace, "{} is out: {error}", self.id);
                self.lose_all();
            }
            Some(Err(GroupFailure::Node(_))) | None => {}
        }
    }

    /// Lets go of what is not its own any more.
    fn obey(&mut self, assignment: Vec<PartitionKey>) {
        let id = self.id.clone();
        for partition in self.held.keys().filter(|held| !assignment.contains(held)) {
            // What keeps it says that it does not.
            if self.cluster.mutant != Some(Mutant::KeepsWhatItGave) {
                self.cluster.invariants.lets_go((&id, *partition));
            }
        }
        self.held.retain(|held, _| assignment.contains(held));
        self.wanted = assignment;
    }

    /// Asks where to go on with what is new.
    async fn take_over(&mut self) {
        let new = |partition: &PartitionKey| !self.held.contains_key(partition);
        let new: Vec<_> = self.wanted.iter().copied().filter(new).collect();
        if new.is_empty() {
            return;
        }
        let stored = new.iter().map(|key| self.cluster.invariants.stored(*key));
        let stored: Vec<_> = stored.collect();
        let asked = self.ask(|groups, group| async move { groups.fetch(group).await });
        let Some(Ok(offsets)) = asked.await else {
            return;
        };
        let id = self.id.clone();
        for (partition, stored) in new.into_iter().zip(stored) {
            let known = offsets.iter().find(|(key, _)| *key == partition);
            let at = match known.map(|(_, committed)| committed.place) {
                Some(Place::At(offset)) => offset,
                _ => Offset::ZERO,
            };
            let invariants = &self.cluster.invariants;
            invariants.begins((&id, partition), at, stored);
            note!(
                self.cluster.trace,
                "{id} takes over {} at {at}",
                partition.partition
            );
            self.held.insert(partition, at);
        }
    }

    fn process(&mut self) {
        let until = self.heard + OWNED;
        if Instant::now() >= until {
            return;
        }
        let id = self.id.clone();
        for (partition, next) in &mut self.held {
            *next = next.plus(self.luck.within(0..20));
            let invariants = &self.cluster.invariants;
            invariants.processes((&id, *partition), *next, until);
        }
    }

    async fn commit(&mut self) {
        let processed: Vec<_> = self.held.iter().map(|(key, next)| (*key, *next)).collect();
        if processed.is_empty() || !self.luck.per_mille(500) {
            return;
        }
        let committed = |offset| Committed {
            place: Place::At(offset),
            leader_epoch: None,
            metadata: "".into(),
            at: TimestampMs::NONE,
        };
        let offsets = processed.iter().map(|(key, next)| (*key, committed(*next)));
        let offsets: Vec<_> = offsets.collect();
        let (id, epoch) = (self.id.clone(), self.epoch);
        let answer = self.ask(move |groups, group| {
            let committer = Committer::Member {
                id: id.clone(),
                epoch,
            };
            let offsets = offsets.clone();
            async move { groups.commit(group, committer, offsets).await }
        });
        let refused = match answer.await {
            Some(Ok(refused)) => refused,
            // Who does not look at answers.
            _ if self.cluster.mutant == Some(Mutant::CommitsBlindly) => Vec::new(),
            _ => return,
        };
        for (partition, next) in processed {
            if !refused.iter().any(|(key, _)| *key == partition) {
                self.cluster.invariants.committed(partition, next);
                let number = partition.partition.get() as usize;
                self.state.commits[number].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn leave(&mut self) {
        // Before the others may have it.
        self.let_go_of_all();
        while self.epoch > 0 {
            let id = self.id.clone();
            let left = self.ask(move |groups, group| {
                let id = id.clone();
                async move { groups.depart(group, id).await }
            });
            match left.await {
                Some(Ok(()) | Err(GroupFailure::Refused(_))) => self.epoch = 0,
                Some(Err(GroupFailure::Node(_))) | None => sleep(PATIENCE / 50).await,
            }
        }
    }

    /// Asks whoever coordinates the group; `None` where nobody does, or the answer is lost.
    async fn ask<T, F>(
        &mut self,
        ask: impl Fn(Arc<GroupPartition>, GroupId) -> F,
    ) -> Option<Result<T, GroupFailure>>
    where
        F: Future<Output = Result<T, GroupFailure>>,
    {
        let group = GroupId::new(GROUP).ok()?;
        let first = self.luck.within(0..self.cluster.nodes.len() as u64) as usize;
        let nodes = self.cluster.nodes.clone();
        for node in nodes.iter().cycle().skip(first).take(nodes.len()) {
            let Some(groups) = self.cluster.groups(*node) else {
                continue;
            };
            match timeout(PATIENCE, ask(groups, group.clone())).await {
                Ok(Err(GroupFailure::Node(error))) if error.outcome == Outcome::Definite => {}
                Ok(_) if self.luck.per_mille(20) => return None,
                Ok(answer) => return Some(answer),
                Err(_) => return None,
            }
        }
        None
    }

    /// It is no member any more.
    fn lose_all(&mut self) {
        self.let_go_of_all();
        self.epoch = 0;
    }

    fn let_go_of_all(&mut self) {
        for partition in self.held.keys() {
            self.cluster.invariants.lets_go((&self.id, *partition));
        }
        self.held.clear();
        self.wanted.clear();
    }
}
