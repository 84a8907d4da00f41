//! How the node and what it leads stand, found out whenever somebody looks.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use quipu_model::{NodeId, PartitionKey, RaftIndex};
use quipu_replication::FollowerProgress;
use tokio::time::Instant;

use crate::{
    core::Core,
    metadata::{Assignment, METADATA_KEY},
    partitions::Running,
};

/// How many entries a replica may lack and still be about to lead or to vote.
const NEAR: u64 = 1000;

/// So long what the leader wrote may take to its followers before it is said that they lag.
const GRACE: Duration = Duration::from_secs(5);

/// How many entries a follower lacks; of one that was not heard yet, all.
fn missing(follower: &FollowerProgress) -> u64 {
    let next = |index: Option<RaftIndex>| index.map_or(0, |index| index.get() + 1);
    next(follower.last).saturating_sub(next(follower.matched))
}

/// Whether a follower has nearly all that its leader has.
pub(crate) fn is_near(follower: &FollowerProgress) -> bool {
    missing(follower) < NEAR
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FollowerLabels {
    node: u64,
}

/// Up to where a leader's log went when it was looked at.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    last: Option<RaftIndex>,
}

/// The gauges, and what it takes to set them.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    under_replicated: Gauge,
    asleep: Gauge,
    unreached: Gauge,
    disk_full: Gauge,
    disk_failed: Gauge,
    lag: Family<FollowerLabels, Gauge>,
    /// Counts when a replica here begins to lead.
    pub(crate) leaderships: Counter,
    /// Of each partition led, the newest look that is at least [`GRACE`] old, as long as there is one, and the one after it.
    looks: Mutex<HashMap<PartitionKey, [Look; 2]>>,
}

impl Standing {
    /// Registers everything.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let standing = Self::default();
        for (name, help, gauge) in [
            (
                "partitions_under_replicated",
                "Partitions led by this node of which a replica is not reached, or lacks what was written some seconds ago",
                &standing.under_replicated,
            ),
            (
                "partitions_asleep",
                "Replicas that run on this node and sleep since their group has no traffic",
                &standing.asleep,
            ),
            (
                "nodes_unreached",
                "Other nodes of the cluster that this node has no links to",
                &standing.unreached,
            ),
            (
                "disk_full",
                "Whether a batch found no room on the disk within the last minute",
                &standing.disk_full,
            ),
            (
                "disk_failed",
                "Whether a write or sync failed: the node takes nothing more and must be started again",
                &standing.disk_failed,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "follower_lag_entries",
            "The most entries that another node lacks of any partition that this node leads",
            standing.lag.clone(),
        );
        registry.register(
            "leader_changes",
            "How often a replica of this node began to lead",
            standing.leaderships.clone(),
        );
        standing
    }

    /// Sets the gauges to how things are now.
    pub(crate) fn look(&self, core: &Core) {
        let (mut under_replicated, mut asleep) = (0, 0);
        let mut lags: BTreeMap<NodeId, u64> = BTreeMap::new();
        let mut looks = self.looks.lock();
        let mut before = std::mem::take(&mut *looks);
        for entry in core.table.snapshot().values() {
            for (assignment, running) in entry.assigned() {
                asleep += i64::from(running.partition.is_asleep());
                if !running.partition.is_leader() {
                    continue;
                }
                let followers = running.partition.progress();
                for follower in &followers {
                    let lag = lags.entry(follower.node).or_default();
                    *lag = missing(follower).max(*lag);
                }
                let now = Look {
                    at: Instant::now(),
                    last: followers.first().and_then(|follower| follower.last),
                };
                let key = running.partition.key();
                let [old, newer] = before.remove(&key).unwrap_or([now, now]);
                let (old, newer) = if newer.at.elapsed() >= GRACE {
                    (newer, now)
                } else {
                    (old, newer)
                };
                looks.insert(key, [old, newer]);
                let is_late = |follower: &FollowerProgress| {
                    old.at.elapsed() >= GRACE && follower.matched < old.last
                };
                under_replicated += i64::from(
                    followers.iter().any(is_late)
                        || core.lagging(assignment, running).next().is_some(),
                );
            }
        }
        drop(looks);
        self.under_replicated.set(under_replicated);
        self.asleep.set(asleep);
        self.lag.clear();
        for (node, lag) in lags {
            let node = node.get();
            let lag = i64::try_from(lag).unwrap_or(i64::MAX);
            self.lag.get_or_create(&FollowerLabels { node }).set(lag);
        }
        let unreached = core.unreached();
        self.unreached
            .set(i64::try_from(unreached).unwrap_or(i64::MAX));
        self.disk_full
            .set(i64::from(core.replicator.no_room().is_some()));
        self.disk_failed
            .set(i64::from(core.store.failure().is_some()));
    }
}

impl Core {
    /// Of a partition that this node leads, the replicas that it does not reach or that are far behind.
    pub(crate) fn lagging(
        &self,
        assignment: &Assignment,
        running: &Running,
    ) -> impl Iterator<Item = NodeId> {
        let partition = &running.partition;
        let linked = self.linked.borrow().clone();
        let followers = partition.progress().into_iter();
        let near =
            followers.filter(|follower| is_near(follower) && linked.contains(&follower.node));
        let near: Vec<_> = near.map(|follower| follower.node).collect();
        let wanted = if partition.key() == METADATA_KEY {
            partition
                .members()
                .borrow()
                .voters
                .iter()
                .copied()
                .collect()
        } else {
            assignment.replicas.to_vec()
        };
        let node = self.node;
        wanted
            .into_iter()
            .filter(move |replica| *replica != node && !near.contains(replica))
    }

    /// How many other nodes of the cluster this node has no links to.
    fn unreached(&self) -> usize {
        let linked = self.linked.borrow();
        let image = self.metadata.image();
        let others = image.nodes.keys().filter(|node| **node != self.node);
        others.filter(|node| !linked.contains(node)).count()
    }

    /// What ails this node itself.
    pub(crate) fn own_trouble(&self) -> Option<String> {
        let failure = self.store.failure().map(|failure| failure.to_string());
        failure.or_else(|| self.replicator.no_room())
    }
}
