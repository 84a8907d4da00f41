//! Starts replicas, and keeps them running.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::{
    EmptyNode, StorageHelper,
    errors::{InitializeError, RaftError},
};
use parking_lot::Mutex;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use quipu_model::{NodeId, PartitionKey, TopicConfig};
use quipu_storage::{OpenError, PartitionLog, ReserveError, Store};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    blocking::blocking,
    config::config,
    error::AppendError,
    group::Group,
    keeper::keep,
    log_store::LogStore,
    members::Settled,
    network::{Network, Transport},
    partition::{Inner, Partition, Replica},
    running::Running,
    sleep::Groups,
    state_machine::StateMachine,
    type_config::{Membership, Raft},
};

/// After how long without traffic a group sleeps, unless it is said otherwise.
const IDLE: Duration = Duration::from_secs(10);
/// No clock can be asked for a time that is too far away.
const MOST_IDLE: Duration = Duration::from_secs(365 * 24 * 3600);

/// For how long it is remembered that there was no room.
const LATELY: Duration = Duration::from_secs(60);

/// How far behind a follower may be before it copies segments, unless it is said otherwise.
const COPY_BEHIND: u64 = 64 << 20;

/// After how long each founder forms a group that the one before it did not: longer than a vote takes where all is well.
const FORMING_STEP: Duration = Duration::from_millis(150);

/// What each replica's keeper is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// After how long without traffic the group sleeps.
    pub(crate) idle: Duration,
    /// How many bytes of entries Raft's log keeps for followers, at least.
    pub(crate) copy_behind: u64,
}

/// What all replicas of a node count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) restarts: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) room_waits: Counter,
    no_room: Arc<Mutex<Option<(Instant, String)>>>,
    pub(crate) copied_bytes: Counter,
    pub(crate) copied_here_bytes: Counter,
    pub(crate) repairs: Counter,
    pub(crate) repaired_bytes: Counter,
}

impl Metrics {
    pub(crate) fn note_no_room(&self, error: &ReserveError) {
        *self.no_room.lock() = Some((Instant::now(), error.to_string()));
    }
}

/// Starts partitions' replicas on this node.
#[derive(Clone, Debug)]
pub struct Replicator {
    node: NodeId,
    store: Arc<Store>,
    transport: Arc<dyn Transport>,
    metrics: Metrics,
    groups: Arc<Groups>,
    habits: Habits,
}

impl Replicator {
    /// For the replicas of node `node`, whose logs are in `store`.
    pub fn new(node: NodeId, store: Arc<Store>, transport: Arc<dyn Transport>) -> Self {
        Self {
            node,
            store,
            transport,
            metrics: Metrics::default(),
            groups: Arc::default(),
            habits: Habits {
                idle: IDLE,
                copy_behind: COPY_BEHIND,
            },
        }
    }

    /// Lets groups sleep after this long without traffic, within twice that time; it is 10 s otherwise. A group that sleeps
    /// sends nothing until something wakes it: then the first append waits for a majority's answer first. More than a year is
    /// taken for a year.
    pub fn sleep_after(mut self, idle: Duration) -> Self {
        self.habits.idle = idle.min(MOST_IDLE);
        self
    }

    /// Lets followers copy segments that lack more than this many bytes of closed ones, and more than one of those, instead of
    /// sending them entry by entry; it is 64 MiB otherwise.
    pub fn copy_behind(mut self, bytes: u64) -> Self {
        self.habits.copy_behind = bytes;
        self
    }

    /// To be told of every node that is no longer heard of: nobody else notices while the groups that it leads sleep. Those
    /// wake, one after the other, and elect.
    ///
    /// Must be called within a runtime.
    pub fn node_lost(&self, node: NodeId) {
        self.groups.note_lost(node);
        tokio::spawn(Arc::clone(&self.groups).wake_led_by(node));
    }

    /// To be told of every node whose process is known to have ended: its groups need not wait for it in vain. Whom it led is
    /// awake or asleep, and elects at once where a majority was told the same.
    ///
    /// Must be called within a runtime.
    pub fn node_gone(&self, node: NodeId) {
        self.groups.note_lost(node);
        tokio::spawn(Arc::clone(&self.groups).replace_leaders_on(node));
    }

    /// What a batch was refused with that found no room on the disk, within the last minute: of a client, or of a leader that
    /// this node follows.
    pub fn no_room(&self) -> Option<String> {
        let last = self.metrics.no_room.lock();
        let lately = last.as_ref().filter(|(at, _)| at.elapsed() < LATELY);
        lately.map(|(_, error)| error.clone())
    }

    /// How many damaged replicas were made whole.
    #[cfg(test)]
    pub(crate) fn repairs(&self) -> u64 {
        self.metrics.repairs.get()
    }

    /// Adds what all replicas of this node count to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register(
            "replica_restarts",
            "Replicas started again after they failed",
            self.metrics.restarts.clone(),
        );
        registry.register(
            "duplicate_batches",
            "Batches of idempotent producers that had been appended before",
            self.metrics.duplicates.clone(),
        );
        registry.register(
            "append_room_waits",
            "Pauses of appends that waited for a checkpoint to make room",
            self.metrics.room_waits.clone(),
        );
        registry.register(
            "copied_bytes",
            "Bytes of batches given to other replicas, which lacked them",
            self.metrics.copied_bytes.clone(),
        );
        registry.register(
            "copied_here_bytes",
            "Bytes of batches that replicas here lacked and copied from others",
            self.metrics.copied_here_bytes.clone(),
        );
        registry.register(
            "replica_repairs",
            "Damaged replicas that were made whole from others",
            self.metrics.repairs.clone(),
        );
        registry.register(
            "repaired_bytes",
            "Bytes of batches that repairs got from other replicas",
            self.metrics.repaired_bytes.clone(),
        );
    }

    /// Starts the replica of a partition, creating its log where it is absent. Where the partition is damaged, it is
    /// repaired first, and nothing is served meanwhile.
    ///
    /// # Errors
    /// Where the log cannot be created or read.
    pub async fn start(
        &self,
        key: PartitionKey,
        origin: Origin<'_>,
        config: TopicConfig,
    ) -> Result<Partition, AppendError> {
        let store = Arc::clone(&self.store);
        let opening = blocking(&self.store, move || match store.partition(key) {
            Some(log) => {
                log.set_config(config);
                Ok(log)
            }
            None => store.create_partition(key, config),
        });
        let log = opening
            .await
            .map_err(|error| AppendError::Fatal(error.to_string()))?
            .map_err(|error: OpenError| self.not_opened(&error))?;
        let founders = match origin {
            Origin::Founder(founders) => founders,
            Origin::Joiner(settled) => {
                if let Some(settled) = settled {
                    begin_anew(&log, settled).await?;
                }
                &[]
            }
        };
        let starter = Starter {
            network: Network {
                log: Arc::clone(&log),
                transport: Arc::clone(&self.transport),
            },
            founders: founders.iter().map(|v| (v.get(), EmptyNode {})).collect(),
            turn: turn(self.node, founders),
        };
        let handle = |group, replica| {
            let reach = (Arc::clone(&self.store), Arc::clone(&self.transport));
            Inner::new(
                group,
                reach,
                self.metrics.clone(),
                Arc::clone(&self.groups),
                replica,
            )
        };
        let (inner, running) = match self.set_up(&starter, &log).await? {
            Some((group, running)) => {
                let inner = handle(group, Replica::Running(running.clone()));
                (inner, Some(running))
            }
            None => {
                let group = Group::unserved(self.node, Arc::clone(&self.store), log);
                let inner = handle(group, Replica::Damaged { why: None });
                inner.presume(founders);
                (inner, None)
            }
        };
        self.groups.add(&inner);
        tokio::spawn(keep(Arc::clone(&inner), starter, running, self.habits));
        Ok(Partition::new(inner))
    }

    /// Starts a replica from its log; `None` where that is damaged, which may be found only by what is read for it.
    async fn set_up(
        &self,
        starter: &Starter,
        log: &Arc<PartitionLog>,
    ) -> Result<Option<(Arc<Group>, Running)>, AppendError> {
        if log.damage().is_some() {
            return Ok(None);
        }
        let starting = async {
            let group = Group::load(self.node, Arc::clone(&self.store), Arc::clone(log));
            let group = group.map_err(|error| error.to_string())?;
            let running = starter.start(&group).await?;
            Ok((group, running))
        };
        match starting.await {
            Ok(started) => Ok(Some(started)),
            Err(_) if log.damage().is_some() => Ok(None),
            Err(error) => Err(AppendError::Fatal(error)),
        }
    }

    fn not_opened(&self, error: &OpenError) -> AppendError {
        match self.store.failure() {
            Some(failure) => failure.into(),
            None => AppendError::Fatal(error.to_string()),
        }
    }
}

/// How a replica that has no log yet comes to its group.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// It forms the group, of these, where it never was formed.
    Founder(&'a [NodeId]),
    /// It waits until a leader makes it a member. It may have been one before and have nothing left of that: what it promised
    /// and stored then is forgotten. So it follows no leader from before the group last settled without it, and has no vote until
    /// it has all up to there.
    Joiner(Option<Settled>),
}

/// A log in which there is nothing learns of what came before.
async fn begin_anew(log: &Arc<PartitionLog>, settled: Settled) -> Result<(), AppendError> {
    if log.vote().is_some() || log.state().last.is_some() || log.damage().is_some() {
        return Ok(());
    }
    let (tell, told) = oneshot::channel();
    let done = Box::new(move |result| drop(tell.send(result)));
    log.begin_anew(settled.leader, settled.index, done)
        .map_err(|error| AppendError::Fatal(error.to_string()))?;
    match told.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(failure)) => Err(failure.into()),
        Err(_) => Err(AppendError::Fatal("the store was closed".to_owned())),
    }
}

/// What it takes to start a group's replica, the first time and again.
#[derive(Debug)]
pub(crate) struct Starter {
    pub(crate) network: Network,
    /// Who votes where the group is formed; nobody where it is not to be formed here.
    pub(crate) founders: BTreeMap<u64, EmptyNode>,
    /// How long the others have to form it.
    pub(crate) turn: Duration,
}

impl Starter {
    pub(crate) async fn start(&self, group: &Arc<Group>) -> Result<Running, String> {
        let membership = newest_membership(group).await?;
        let own = group.node.get();
        let formed = membership.voter_ids().next().is_some();
        let to_form = !formed && !self.founders.is_empty();
        let voters: Vec<u64> = if formed {
            membership.voter_ids().collect()
        } else {
            self.founders.keys().copied().collect()
        };
        let alone = voters == [own];
        let may_vote = group.log.may_vote();
        let raft = Raft::new(
            own,
            // Who does not vote needs no clock, and neither does a group of one: nobody else could be elected, and it asks
            // for its election below.
            config(!alone && voters.contains(&own) && may_vote).map_err(|e| e.to_string())?,
            self.network.clone(),
            LogStore::new(Arc::clone(group), &membership),
            StateMachine::new(Arc::clone(group)),
        )
        .await
        .map_err(|e| e.to_string())?;
        if formed && alone && may_vote {
            let electing = raft.trigger().elect(false).await;
            electing.map_err(|e| e.to_string())?;
        }
        if to_form && self.turn.is_zero() {
            form(&raft, self.founders.clone()).await?;
        } else if to_form {
            let (raft, founders, turn) = (raft.clone(), self.founders.clone(), self.turn);
            tokio::spawn(async move {
                tokio::time::sleep(turn).await;
                // One that was shut down meanwhile forms nothing, and the keeper sees to one that failed.
                drop(form(&raft, founders).await);
            });
        }
        Ok(Running::new(raft))
    }
}

/// How long a founder leaves the others to form the group, which asks for votes: were all to ask at once, all would vote for
/// themselves. The first is to lead.
fn turn(node: NodeId, founders: &[NodeId]) -> Duration {
    let before = founders.iter().take_while(|founder| **founder != node);
    FORMING_STEP * u32::try_from(before.count()).unwrap_or_default()
}

/// Makes the group of its founders, and asks them for their votes.
async fn form(raft: &Raft, founders: BTreeMap<u64, EmptyNode>) -> Result<(), String> {
    match raft.initialize(founders).await {
        // A group that others formed meanwhile is as good.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

async fn newest_membership(group: &Arc<Group>) -> Result<Membership, String> {
    // Nobody is a voter to begin with: the store is only read.
    let nobody = Membership::default();
    let mut log_store = LogStore::new(Arc::clone(group), &nobody);
    let mut state_machine = StateMachine::new(Arc::clone(group));
    let mut helper = StorageHelper::new(&mut log_store, &mut state_machine);
    let state = helper.get_membership().await.map_err(|e| e.to_string())?;
    Ok(state.effective().membership().clone())
}
