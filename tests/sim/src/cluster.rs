//! The nodes: real storage and real replicas, which start, die and start again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use parking_lot::Mutex;
use quipu_broker::front::GroupPartition;
use quipu_model::{CleanupPolicy, NodeId, PartitionId, PartitionKey, TopicConfig, TopicId};
use quipu_replication::{AppendError, Origin, Partition, Replicator};
use quipu_storage::{PartitionDamage, Store, StoreConfig, UnrecoveredStore, io::FaultyDisk};
use tokio::{sync::Notify, time::Instant};

use crate::{
    clock::NodeClock,
    disk::NodeDisk,
    groups,
    invariants::{Invariants, violated},
    luck::Luck,
    mutants::Mutant,
    network::Network,
    placement::Placement,
    replicas,
    rot::Rot,
    trace::{Trace, note},
    wire::Wire,
    workers::{NodeWorkers, Pace},
};

/// After how long without traffic groups sleep: soon, so that they do between faults.
pub(crate) const IDLE: Duration = Duration::from_secs(2);
/// How long a node that is stopped waits for others to lead.
const HAND_OVER: Duration = Duration::from_secs(2);

/// So few bytes that followers copy segments often.
const COPY_BEHIND: u64 = 48 << 10;

/// How many there are, and how the partitions are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: u64,
    pub(crate) partitions: u32,
    /// Of each partition.
    pub(crate) replicas: usize,
    pub(crate) compacts: bool,
    /// Another partition holds a consumer group.
    pub(crate) groups: bool,
}

/// Of what is produced.
const TOPIC: TopicId = TopicId::from_bytes([7; 16]);
/// Holds the group.
const GROUPS: PartitionKey = PartitionKey {
    topic: TopicId::from_bytes([8; 16]),
    partition: PartitionId::new(100),
};

/// What all parts of a run share.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<NodeId>,
    /// All partitions.
    pub(crate) keys: Vec<PartitionKey>,
    pub(crate) network: Network,
    pub(crate) invariants: Invariants,
    pub(crate) trace: Trace,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) placement: Placement,
    pub(crate) rot: Rot,
    /// What is produced is compacted.
    compacts: bool,
    /// Nobody produces.
    pub(crate) quiet: Arc<AtomicBool>,
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
    pub(crate) replicator: Replicator,
    /// The replicas that run.
    pub(crate) replicas: Replicas,
    /// What serves the group beside its replica, where there is one.
    pub(crate) groups: Arc<Mutex<Option<Arc<GroupPartition>>>>,
}

pub(crate) type Replicas = Arc<Mutex<BTreeMap<PartitionKey, Partition>>>;

impl Up {
    fn replicas(&self) -> Vec<Partition> {
        self.replicas.lock().values().cloned().collect()
    }
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
    pub(crate) fn new(seed: u64, shape: Shape, trace: Trace, mutant: Option<Mutant>) -> Self {
        let nodes: Vec<NodeId> = (1..=shape.nodes).map(NodeId::new).collect();
        let keys = (0..shape.partitions).map(PartitionId::new);
        let keys = keys.map(|partition| PartitionKey {
            topic: TOPIC,
            partition,
        });
        let keys: Vec<PartitionKey> = keys.chain(shape.groups.then_some(GROUPS)).collect();
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
            placement: Placement::new(&nodes, &keys, shape.replicas),
            rot: Rot::default(),
            compacts: shape.compacts,
            quiet: Arc::default(),
            keys,
            nodes,
            network: Network::new(Luck::stream(seed, 1)),
            invariants: Invariants::new(trace.clone(), shape.compacts),
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

    /// What a node's disk holds.
    pub(crate) fn platter(&self, node: NodeId) -> Option<FaultyDisk> {
        Some(self.states.lock().get(&node)?.platter.clone())
    }

    pub(crate) fn all_up(&self) -> bool {
        self.nodes.iter().all(|node| self.up(*node).is_some())
    }

    /// Whether operators leave a cluster alone that nobody produces to, as they mostly do.
    pub(crate) fn lets_sleep(&self, luck: &mut Luck) -> bool {
        self.quiet.load(Ordering::Relaxed) && luck.per_mille(900)
    }

    /// The partitions that producers send to.
    pub(crate) fn produced(&self) -> impl Iterator<Item = PartitionKey> + use<'_> {
        self.keys.iter().copied().filter(|key| *key != GROUPS)
    }

    pub(crate) fn is_compacted(&self, key: PartitionKey) -> bool {
        self.compacts || key == GROUPS
    }

    /// What serves the group beside a node's replica.
    pub(crate) fn groups(&self, node: NodeId) -> Option<Arc<GroupPartition>> {
        self.up(node)?.groups.lock().clone()
    }

    /// The node's replica ends.
    pub(crate) fn unserve_groups(&self, up: &Up, key: PartitionKey) {
        if key == GROUPS {
            up.groups.lock().take();
        }
    }

    pub(crate) fn clock(&self, node: NodeId) -> Option<Arc<NodeClock>> {
        Some(Arc::clone(&self.states.lock().get(&node)?.clock))
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
        let disk = NodeDisk::new(platter.clone(), self.draw(), self.mutant);
        let pace = Arc::new(Pace::new(Luck::new(self.draw())));
        let workers = NodeWorkers::new(Arc::clone(&pace), platter);
        let opened = UnrecoveredStore::open(Arc::new(disk.clone()), clock, store_config())
            .and_then(|store| store.with_workers(Arc::new(workers)).recover());
        let expected = |damage: &PartitionDamage| self.rot.struck(node, damage.key);
        let store = match opened {
            Ok((store, report)) if report.damaged.iter().all(expected) => Arc::new(store),
            Ok((_, report)) => return self.does_not_start(node, &report.damaged),
            Err(error) => return self.does_not_start(node, &error),
        };
        self.network.join(node, boot);
        let wire = Wire {
            node,
            boot,
            cluster: self.clone(),
        };
        let replicator = Replicator::new(node, Arc::clone(&store), Arc::new(wire));
        let up = Up {
            disk,
            store,
            pace,
            replicator: replicator.sleep_after(self.idle()).copy_behind(COPY_BEHIND),
            replicas: Replicas::default(),
            groups: Arc::default(),
        };
        for key in &self.keys {
            if let Err(error) = self.start_replica(node, &up, *key).await {
                return self.does_not_start(node, &error);
            }
        }
        if let Some(state) = self.states.lock().get_mut(&node) {
            state.life = Life::Up(up.clone());
        }
        if self.mutant == Some(Mutant::LosesSyncs) {
            up.disk.lie();
        }
        note!(self.trace, "node {node} is up");
        let luck = Luck::new(self.draw());
        tokio::spawn(replicas::keep(self.clone(), node, up.clone(), luck));
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

    /// After how long without traffic groups sleep.
    fn idle(&self) -> Duration {
        match self.mutant {
            Some(Mutant::StaysAwake) => Duration::from_secs(24 * 3600),
            _ => IDLE,
        }
    }

    /// Starts a replica where the node is to have one, as far as it knows.
    pub(crate) async fn start_replica(
        &self,
        node: NodeId,
        up: &Up,
        key: PartitionKey,
    ) -> Result<(), AppendError> {
        let assignment = self.placement.read_by(node, key);
        let Some(assignment) = assignment.filter(|known| known.holds(node)) else {
            return Ok(());
        };
        let origin = match self.mutant {
            _ if assignment.founders.contains(&node) => Origin::Founder(&assignment.founders),
            Some(Mutant::ReturnsAsBefore) => Origin::Joiner(None),
            // It learns of the group from its leader.
            _ => Origin::Joiner(assignment.settled),
        };
        self.invariants.joined(node, key);
        let starting = up
            .replicator
            .start(key, origin, topic_config(self.is_compacted(key)));
        let partition = starting.await?;
        if key == GROUPS {
            *up.groups.lock() = groups::serve(self, node, &partition);
        }
        self.network.serve(node, partition.clone());
        up.replicas.lock().insert(key, partition);
        Ok(())
    }

    /// Ends a node's life when its disk does, and starts it again.
    fn watch(self, node: NodeId, up: Up) -> BoxFuture<'static, ()> {
        async move { self.watch_over(node, up).await }.boxed()
    }

    async fn watch_over(&self, node: NodeId, up: Up) {
        let failed = Arc::new(Notify::new());
        let tell = Arc::clone(&failed);
        up.store.on_failure(Box::new(move |_| tell.notify_one()));
        let disk = up.disk.clone();
        drop(up);
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
            for partition in up.replicas() {
                partition.shutdown().await;
            }
            drop(up.store);
        });
    }

    /// The index of the last entry that a node has of a partition; `None` where the node is down.
    pub(crate) fn last_index(&self, node: NodeId, key: PartitionKey) -> Option<u64> {
        let log = self.up(node)?.store.partition(key);
        let last = log.and_then(|log| log.state().last);
        Some(last.map_or(0, |last| last.index.get()))
    }

    /// The replica that takes itself for a partition's leader, or one of those.
    pub(crate) fn leader(&self, key: PartitionKey) -> Option<(NodeId, Partition)> {
        let nodes = self.nodes.iter();
        nodes
            .filter_map(|node| Some((*node, self.network.partition(*node, key)?)))
            .find(|(_, partition)| partition.is_leader())
    }

    /// Stops a node as an operator does. Whether it ran, and ended well.
    pub(crate) async fn stop(&self, node: NodeId) -> bool {
        let Some(up) = self.take(node) else {
            return false;
        };
        note!(self.trace, "node {node} stops");
        let replicas = up.replicas();
        let handing = replicas.iter().filter(|replica| replica.is_leader());
        join_all(handing.map(|replica| replica.hand_over(HAND_OVER))).await;
        for partition in replicas {
            partition.shutdown().await;
        }
        let closed = up.store.close();
        if let Err(failure) = &closed {
            note!(self.trace, "node {node} stops badly: {failure}");
        }
        self.leave(node, up.disk.kill());
        closed.is_ok()
    }

    /// Whoever ends a life takes it first: nobody else does.
    fn take(&self, node: NodeId) -> Option<Up> {
        let mut states = self.states.lock();
        let state = states.get_mut(&node)?;
        match std::mem::replace(&mut state.life, Life::Starting) {
            Life::Up(up) => {
                up.groups.lock().take();
                Some(up)
            }
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
                None => format!("node {node} none"),
                Some(partition) => {
                    let mark = *partition.high_watermark().borrow();
                    let (leader, epoch) = partition.leader();
                    let start = partition.start_offset();
                    let members = partition.members().borrow().clone();
                    format!(
                        "node {node} from {start} to {mark}, term {epoch}, leader {leader:?}, {members:?}"
                    )
                }
            });
        }
        all.push(format!("wanted: {:?}", self.placement.latest(key)));
        all.join("; ")
    }
}

/// Small, so that files roll and checkpoints come often; and what is sealed is read again often.
fn store_config() -> StoreConfig {
    StoreConfig {
        wal_file_bytes: 64 << 10,
        checkpoint_bytes: 160 << 10,
        wal_max_bytes: 1 << 20,
        scrub_interval: Duration::from_secs(20),
        // Fewer than there are keys: most partitions take more than one pass.
        compaction_memory_bytes: 1000,
        ..StoreConfig::default()
    }
}

fn topic_config(compacts: bool) -> TopicConfig {
    TopicConfig {
        segment_bytes: 24 << 10,
        index_interval_bytes: 2048,
        cleanup: CleanupPolicy {
            delete: !compacts,
            compact: compacts,
        },
        delete_retention_ms: 20_000,
        ..TopicConfig::default()
    }
}
