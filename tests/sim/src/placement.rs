//! Who holds which partition, as the cluster's metadata would say, and what each node has read of that.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use quipu_model::{NodeId, PartitionKey};
use quipu_replication::Settled;

/// Who holds a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assignment {
    /// Who holds it, or is to.
    pub(crate) replicas: Vec<NodeId>,
    /// Who keeps it until the move under way is done.
    pub(crate) leaving: Vec<NodeId>,
    pub(crate) moving: bool,
    /// Who may form the group by themselves, until the first move is done.
    pub(crate) founders: Vec<NodeId>,
    /// Where its group stood when the last move was done.
    pub(crate) settled: Option<Settled>,
}

impl Assignment {
    /// Whether a node is to have a replica.
    pub(crate) fn holds(&self, node: NodeId) -> bool {
        self.replicas.contains(&node) || self.leaving.contains(&node)
    }
}

type Assignments = BTreeMap<PartitionKey, Assignment>;

/// The metadata. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    latest: Assignments,
    /// What each node has read, which outlives its crashes.
    read: BTreeMap<NodeId, Assignments>,
}

impl Placement {
    /// Puts `replicas` of each partition on the nodes, beginning with another one for each.
    pub(crate) fn new(nodes: &[NodeId], keys: &[PartitionKey], replicas: usize) -> Self {
        let latest: Assignments = keys
            .iter()
            .enumerate()
            .map(|(first, key)| {
                let from = nodes.iter().cycle().skip(first).take(replicas);
                let replicas: Vec<_> = from.copied().collect();
                let assignment = Assignment {
                    founders: replicas.clone(),
                    replicas,
                    leaving: Vec::new(),
                    moving: false,
                    settled: None,
                };
                (*key, assignment)
            })
            .collect();
        let read = nodes.iter().map(|node| (*node, latest.clone())).collect();
        Self {
            state: Arc::new(Mutex::new(State { latest, read })),
        }
    }

    /// What was last decided.
    pub(crate) fn latest(&self, key: PartitionKey) -> Option<Assignment> {
        self.state.lock().latest.get(&key).cloned()
    }

    /// Who holds a partition, or is to.
    pub(crate) fn replicas(&self, key: PartitionKey) -> Vec<NodeId> {
        self.latest(key).map_or_else(Vec::new, |now| now.replicas)
    }

    /// What a node has read.
    pub(crate) fn read_by(&self, node: NodeId, key: PartitionKey) -> Option<Assignment> {
        self.state.lock().read.get(&node)?.get(&key).cloned()
    }

    /// A node reads what was last decided.
    pub(crate) fn refresh(&self, node: NodeId) {
        let mut state = self.state.lock();
        let latest = state.latest.clone();
        state.read.insert(node, latest);
    }

    /// Begins a move. Who was to join by one that it replaces may be a member already, and leaves.
    pub(crate) fn begin(&self, key: PartitionKey, replicas: Vec<NodeId>) {
        let mut state = self.state.lock();
        if let Some(now) = state.latest.get_mut(&key) {
            let mut leaving = std::mem::take(&mut now.leaving);
            leaving.extend(&now.replicas);
            leaving.retain(|node| !replicas.contains(node));
            *now = Assignment {
                replicas,
                leaving,
                moving: true,
                founders: std::mem::take(&mut now.founders),
                settled: now.settled,
            };
        }
    }

    /// Ends the move to `replicas`, where others are not wanted by now and the group has not settled later.
    pub(crate) fn finish(&self, key: PartitionKey, replicas: &[NodeId], settled: Settled) {
        let mut state = self.state.lock();
        if let Some(now) = state.latest.get_mut(&key)
            && now.replicas == replicas
            && now
                .settled
                .is_none_or(|before| before.index <= settled.index)
        {
            now.leaving.clear();
            now.founders.clear();
            now.moving = false;
            now.settled = Some(settled);
        }
    }
}
