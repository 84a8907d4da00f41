//! The nodes: real storage and real replicas, which start, die and start again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use quipu_model::{NodeId, PartitionId, PartitionKey, TopicConfig, TopicId};
use quipu_replication::{Partition, Replicator};
use quipu_storage::{Store, StoreConfig, UnrecoveredStore, io::FaultyDisk};
use tokio::{sync::Notify, time::Instant};

use crate::{
    clock::NodeClock,
    disk::NodeDisk,
    invariants::{Invariants, violated},
    luck::Luck,
    mutants::Mutant,
    network::Network,
    trace::{Trace, note},
    wire::Wire,
    workers::{NodeWorkers, Pace},
};

/// What all parts of a run share.
/// So few bytes that followers copy segments often.
const COPY_BEHIND: u64 = 48 << 10;

#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) keys: Vec<PartitionKey>,
    pub(crate) network: Network,
    pub(crate) invariants: Invariants,
    pub(crate) trace: Trace,
    pub(crate) mutant: Option<Mutant>,
    states: Arc<Mutex<BTreeMap<NodeId, Node>>>,
    luck: Arc<Mutex<Luck>>,
}

#[derive(Debug)]
struct Node {
    platter: FaultyDisk,
    clock: Arc<NodeClock>,
    /// Counts its lives.
    boot: u64,
    life: Life,
}

#[derive(Clone, Debug)]
enum Life {
    Down,
    Starting,
    Up(Up),
}

/// A node that runs.
#[derive(Clone, Debug)]
pub(crate) struct Up {
    pub(crate) disk: NodeDisk,
    pub(crate) store: Arc<Store>,
    pub(crate) pace: Arc<Pace>,
    partitions: Vec<Partition>,
}

/// How a node's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// With it goes what was not synced.
    PowerLoss,
    /// The process ends, and the system writes what it has.
    Kill,
}

impl Cluster {
    pub(crate) fn new(
        seed: u64,
        (nodes, partitions): (u64, u32),
        trace: Trace,
        mutant: Option<Mutant>,
    ) -> Self {
        let nodes: Vec<NodeId> = (1..=nodes).map(NodeId::new).collect();
        let topic = TopicId::from_bytes([7; 16]);
        let keys = (0..partitions).map(PartitionId::new);
        let keys = keys.map(|partition| PartitionKey { topic, partition });
        let start = Instant::now();
        let states = nodes.iter().map(|node| {
            let state = Node {
                platter: FaultyDisk::new(Luck::stream(seed, 100 + node.get()).next()),
                clock: Arc::new(NodeClock::new(start)),
                boot: 0,
                life: Life::Down,
            };
            (*node, state)
        });
        Self {
            states: Arc::new(Mutex::new(states.collect())),
            keys: keys.collect(),
            nodes,
            network: Network::new(Luck::stream(seed, 1)),
            invariants: Invariants::new(trace.clone()),
            trace,
            mutant,
            luck: Arc::new(Mutex::new(Luck::stream(seed, 2))),
        }
    }

    fn draw(&self) -> u64 {
        self.luck.lock().next()
    }

    pub(crate) fn up(&self, node: NodeId) -> Option<Up> {
        match &self.states.lock().get(&node)?.life {
            Life::Up(up) => Some(up.clone()),
            Life::Down | Life::Starting => None,
        }
    }

    pub(crate) fn all_up(&self) -> bool {
        self.nodes.iter().all(|node| self.up(*node).is_some())
    }

    pub(crate) fn step_clock(&self, node: NodeId, skew_ms: i64) {
        if let Some(state) = self.states.lock().get(&node) {
            state.clock.step_to(skew_ms);
        }
    }

    /// Starts a node that is down.
    pub(crate) async fn start(&self, node: NodeId) {
        let Some((boot, platter, clock)) = self.begin(node) else {
            return;
        };
        note!(self.trace, "node {node} starts its life {boot}");
        platter.set_capacity(u64::MAX);
        let forgets_names = self.mutant == Some(Mutant::SkipsNameSyncs);
        let disk = NodeDisk::new(platter.clone(), self.draw(), forgets_names);
        let pace = Arc::new(Pace::new(Luck::new(self.draw())));
        let workers = NodeWorkers::new(Arc::clone(&pace), platter);
        let opened = UnrecoveredStore::open(Arc::new(disk.clone()), clock, store_config())
            .and_then(|store| store.with_workers(Arc::new(workers)).recover());
        let store = match opened {
            Ok((store, report)) if report.damaged.is_empty() => Arc::new(store),
            Ok((_, report)) => return self.does_not_start(node, &report.damaged),
            Err(error) => return self.does_not_start(node, &error),
        };
        self.network.join(node, boot);
        let Some(partitions) = self.start_partitions(node, boot, &store).await else {
            return;
        };
        let up = Up {
            disk,
            store,
            pace,
            partitions,
        };
        if let Some(state) = self.states.lock().get_mut(&node) {
            state.life = Life::Up(up.clone());
        }
        if self.mutant == Some(Mutant::LosesSyncs) {
            up.disk.lie();
        }
        note!(self.trace, "node {node} is up");
        tokio::spawn(self.clone().watch(node, up));
    }

    fn begin(&self, node: NodeId) -> Option<(u64, FaultyDisk, Arc<NodeClock>)> {
        let mut states = self.states.lock();
        let state = states.get_mut(&node)?;
        if !matches!(state.life, Life::Down) {
            return None;
        }
        state.life = Life::Starting;
        state.boot += 1;
        if self.mutant == Some(Mutant::ForgetsItsDisk) && state.boot > 1 {
            state.platter = FaultyDisk::new(state.boot);
        }
        Some((state.boot, state.platter.clone(), Arc::clone(&state.clock)))
    }

    fn does_not_start(&self, node: NodeId, why: &dyn std::fmt::Debug) {
        let detail = format!("node {node} does not start: {why:?}");
        self.invariants.note(violated("recovery", detail));
    }

    async fn start_partitions(
        &self,
        node: NodeId,
        boot: u64,
        store: &Arc<Store>,
    ) -> Option<Vec<Partition>> {
        let wire = Wire {
            network: self.network.clone(),
            node,
            boot,
            trace: self.trace.clone(),
            invariants: self.invariants.clone(),
            mutant: self.mutant,
        };
        let replicator =
            Replicator::new(node, Arc::clone(store), Arc::new(wire)).copy_behind(COPY_BEHIND);
        let mut partitions = Vec::new();
        for key in &self.keys {
            match replicator.start(*key, &self.nodes, topic_config()).await {
                Ok(partition) => {
                    self.network.serve(node, partition.clone());
                    partitions.push(partition);
                }
                Err(error) => {
                    self.does_not_start(node, &error);
                    return None;
                }
            }
        }
        Some(partitions)
    }

    /// Ends a node's life when its disk does, and starts it again.
    fn watch(self, node: NodeId, up: Up) -> BoxFuture<'static, ()> {
        async move { self.watch_over(node, up).await }.boxed()
    }

    async fn watch_over(&self, node: NodeId, up: Up) {
        let failed = Arc::new(Notify::new());
        let tell = Arc::clone(&failed);
        up.store.on_failure(Box::new(move |_| tell.notify_one()));
        let Up { disk, store, .. } = up;
        drop(store);
        let death = tokio::select! {
            biased;
            () = disk.power_lost() => Death::PowerLoss,
            () = failed.notified() => Death::Kill,
        };
        let ours = self.up(node).is_some_and(|up| up.disk.is_same(&disk));
        if ours {
            let down = Duration::from_millis(100 + self.draw() % 5000);
            self.outage(node, death, down).await;
        }
    }

    /// Ends a node's life, and starts the next after a while.
    pub(crate) async fn outage(&self, node: NodeId, death: Death, down: Duration) {
        self.crash(node, death);
        tokio::time::sleep(down).await;
        self.start(node).await;
    }

    /// Ends a node's life.
    pub(crate) fn crash(&self, node: NodeId, death: Death) {
        let Some(up) = self.take(node) else { return };
        note!(self.trace, "node {node} ends: {death:?}");
        let left = match death {
            Death::PowerLoss => up.disk.lose_power(),
            Death::Kill => up.disk.kill(),
        };
        self.leave(node, left);
        // What still runs of it can neither write nor be heard.
        tokio::spawn(async move {
            for partition in up.partitions {
                partition.shutdown().await;
            }
            drop(up.store);
        });
    }

    /// Stops a node as an operator does.
    pub(crate) async fn stop(&self, node: NodeId) {
        let Some(up) = self.take(node) else { return };
        note!(self.trace, "node {node} stops");
        for partition in &up.partitions {
            partition.shutdown().await;
        }
        if let Err(failure) = up.store.close() {
            note!(self.trace, "node {node} stops badly: {failure}");
        }
        self.leave(node, up.disk.kill());
    }

    /// Whoever ends a life takes it first: nobody else does.
    fn take(&self, node: NodeId) -> Option<Up> {
        let mut states = self.states.lock();
        let state = states.get_mut(&node)?;
        match std::mem::replace(&mut state.life, Life::Starting) {
            Life::Up(up) => Some(up),
            other => {
                state.life = other;
                None
            }
        }
    }

    fn leave(&self, node: NodeId, left: FaultyDisk) {
        self.network.leave(node);
        if let Some(state) = self.states.lock().get_mut(&node) {
            (state.platter, state.life) = (left, Life::Down);
        }
    }

    /// The nodes that run.
    pub(crate) fn running(&self) -> BTreeSet<NodeId> {
        let nodes = self.nodes.iter().copied();
        nodes.filter(|node| self.up(*node).is_some()).collect()
    }

    /// What a partition's replicas show, for the report of a violation.
    pub(crate) fn describe(&self, key: PartitionKey) -> String {
        let mut all = Vec::new();
        for node in &self.nodes {
            all.push(match self.network.partition(*node, key) {
                None => format!("node {node} down"),
                Some(partition) => {
                    let mark = *partition.high_watermark().borrow();
                    let (leader, epoch) = partition.leader();
                    let start = partition.start_offset();
                    format!("node {node} from {start} to {mark}, term {epoch}, leader {leader:?}")
                }
            });
        }
        all.join("; ")
    }
}

/// Small, so that files roll and checkpoints come often.
fn store_config() -> StoreConfig {
    StoreConfig {
        wal_file_bytes: 64 << 10,
        checkpoint_bytes: 160 << 10,
        wal_max_bytes: 1 << 20,
        ..StoreConfig::default()
    }
}

fn topic_config() -> TopicConfig {
    TopicConfig {
        segment_bytes: 24 << 10,
        index_interval_bytes: 2048,
        ..TopicConfig::default()
    }
}
