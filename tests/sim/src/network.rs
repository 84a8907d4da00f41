//! The network: who reaches whom, how long it takes, and what gets lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use quipu_model::{NodeId, PartitionKey};
use quipu_replication::{Partition, TransportError};

use crate::luck::Luck;

/// How long a stalled node's messages are looked after again.
const STALL_STEP: Duration = Duration::from_millis(25);
/// Of a thousand messages, so many take long.
const LATE: u64 = 10;
/// Longer than any call waits.
const FOR_EVER: Duration = Duration::from_secs(24 * 60 * 60);

/// One network for all nodes. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    luck: Luck,
    up: BTreeMap<NodeId, Up>,
    /// Nothing gets from the first to the second.
    blocked: BTreeSet<(NodeId, NodeId)>,
    /// Nothing gets in or out for a while, and then all of it does.
    stalled: BTreeSet<NodeId>,
    /// Of a thousand messages.
    lost: u64,
    /// What every message takes longer, at most.
    delay_ms: u64,
    /// Counts replicas that were served.
    served: u64,
    /// Counts messages between nodes.
    messages: u64,
}

#[derive(Clone, Debug)]
struct Up {
    boot: u64,
    /// Each with its number among all that were ever served.
    partitions: BTreeMap<PartitionKey, (u64, Partition)>,
}

impl Network {
    pub(crate) fn new(luck: Luck) -> Self {
        let state = State {
            luck,
            up: BTreeMap::new(),
            blocked: BTreeSet::new(),
            stalled: BTreeSet::new(),
            lost: 0,
            delay_ms: 0,
            served: 0,
            messages: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// From now on the node is reached: in its `boot`-th life.
    pub(crate) fn join(&self, node: NodeId, boot: u64) {
        let partitions = BTreeMap::new();
        self.state.lock().up.insert(node, Up { boot, partitions });
    }

    pub(crate) fn serve(&self, node: NodeId, partition: Partition) {
        let mut state = self.state.lock();
        state.served += 1;
        let number = state.served;
        if let Some(up) = state.up.get_mut(&node) {
            up.partitions.insert(partition.key(), (number, partition));
        }
    }

    /// The node has no replica of that any more.
    pub(crate) fn unserve(&self, node: NodeId, key: PartitionKey) {
        if let Some(up) = self.state.lock().up.get_mut(&node) {
            up.partitions.remove(&key);
        }
    }

    pub(crate) fn leave(&self, node: NodeId) {
        self.state.lock().up.remove(&node);
    }

    /// A node's replica, where that is up.
    pub(crate) fn partition(&self, node: NodeId, key: PartitionKey) -> Option<Partition> {
        Some(self.served(node, key)?.1)
    }

    /// The same, with its number among all that were ever served.
    pub(crate) fn served(&self, node: NodeId, key: PartitionKey) -> Option<(u64, Partition)> {
        let state = self.state.lock();
        state.up.get(&node)?.partitions.get(&key).cloned()
    }

    /// Which life of a node is up.
    pub(crate) fn boot(&self, node: NodeId) -> Option<u64> {
        self.state.lock().up.get(&node).map(|up| up.boot)
    }

    pub(crate) fn block(&self, from: NodeId, to: NodeId) {
        self.state.lock().blocked.insert((from, to));
    }

    pub(crate) fn unblock(&self, from: NodeId, to: NodeId) {
        self.state.lock().blocked.remove(&(from, to));
    }

    pub(crate) fn stall(&self, node: NodeId) {
        self.state.lock().stalled.insert(node);
    }

    pub(crate) fn go_on(&self, node: NodeId) {
        self.state.lock().stalled.remove(&node);
    }

    pub(crate) fn lose(&self, per_mille: u64) {
        self.state.lock().lost = per_mille;
    }

    pub(crate) fn delay(&self, millis: u64) {
        self.state.lock().delay_ms = millis;
    }

    /// All is well again.
    pub(crate) fn heal(&self) {
        let mut state = self.state.lock();
        state.blocked.clear();
        state.stalled.clear();
        (state.lost, state.delay_ms) = (0, 0);
    }

    pub(crate) fn per_mille(&self, odds: u64) -> bool {
        self.state.lock().luck.per_mille(odds)
    }

    pub(crate) fn millis(&self, up_to: u64) -> Duration {
        self.state.lock().luck.millis(0..up_to)
    }

    /// How long a message is under way; `None` where it gets lost.
    fn send(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        let lost = state.lost;
        if state.luck.per_mille(lost) {
            return None;
        }
        let mut takes = state.luck.micros(100..2000);
        if state.luck.per_mille(LATE) {
            takes += state.luck.millis(0..400);
        }
        let more = state.delay_ms;
        Some(takes + state.luck.millis(0..more + 1))
    }

    /// How many messages went from one node to another so far.
    pub(crate) fn messages(&self) -> u64 {
        self.state.lock().messages
    }

    /// Takes as long as a message does; for ever, where it gets lost.
    pub(crate) async fn travel(&self, from: NodeId, to: NodeId) {
        self.state.lock().messages += 1;
        let takes = self.send();
        let Some(takes) = takes.filter(|_| !self.is_blocked(from, to)) else {
            return tokio::time::sleep(FOR_EVER).await;
        };
        tokio::time::sleep(takes).await;
        while self.is_stalled(from) || self.is_stalled(to) {
            tokio::time::sleep(STALL_STEP).await;
        }
        if self.is_blocked(from, to) {
            tokio::time::sleep(FOR_EVER).await;
        }
    }

    /// What a client's message takes; it is lost as any other.
    pub(crate) async fn travel_from_client(&self, to: NodeId) {
        let Some(takes) = self.send() else {
            return tokio::time::sleep(FOR_EVER).await;
        };
        tokio::time::sleep(takes).await;
        while self.is_stalled(to) {
            tokio::time::sleep(STALL_STEP).await;
        }
    }

    fn is_blocked(&self, from: NodeId, to: NodeId) -> bool {
        self.state.lock().blocked.contains(&(from, to))
    }

    /// Whether two nodes run and hear each other.
    pub(crate) fn talks(&self, one: NodeId, other: NodeId) -> bool {
        let state = self.state.lock();
        let blocked = |from, to| state.blocked.contains(&(from, to));
        [one, other]
            .iter()
            .all(|node| state.up.contains_key(node) && !state.stalled.contains(node))
            && !blocked(one, other)
            && !blocked(other, one)
    }

    /// Whether a node and those that it talks to are more than half of all.
    pub(crate) fn reaches_majority(&self, node: NodeId, all: &[NodeId]) -> bool {
        let reached = all.iter().filter(|other| self.talks(node, **other));
        reached.count() * 2 > all.len()
    }

    fn is_stalled(&self, node: NodeId) -> bool {
        self.state.lock().stalled.contains(&node)
    }
}

/// The way from one life of a node to another node.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) network: Network,
    pub(crate) from: NodeId,
    pub(crate) boot: u64,
    pub(crate) to: NodeId,
}

impl Link {
    pub(crate) async fn there(&self) {
        self.network.travel(self.from, self.to).await;
    }

    pub(crate) async fn back(&self) {
        self.network.travel(self.to, self.from).await;
    }

    /// The other node's replica.
    pub(crate) fn reach(&self, key: PartitionKey) -> Result<Partition, TransportError> {
        if self.network.boot(self.from) != Some(self.boot) {
            return Err(self.lost("the sender is no more"));
        }
        let partition = self.network.partition(self.to, key);
        partition.ok_or_else(|| self.lost("it is down"))
    }

    pub(crate) fn lost(&self, reason: &str) -> TransportError {
        TransportError {
            node: self.to,
            reason: reason.to_owned(),
        }
    }
}
