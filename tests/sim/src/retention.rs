//! Lets old records go, as a topic's settings would: segments are deleted on every replica, Raft's log forgets what they held,
//! and a replica that was away goes on behind them.

use std::time::Duration;

use quipu_model::{PartitionKey, TimestampMs};
use quipu_storage::RetentionPolicy;
use tokio::time::timeout;

use crate::{clock::EPOCH_MS, cluster::Cluster, luck::Luck, trace::note};

/// How many records are kept at least.
const KEPT: u64 = 300;
/// Longer than a leader that is cut off is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn run(cluster: Cluster, key: PartitionKey, mut luck: Luck) {
    loop {
        tokio::time::sleep(luck.millis(2000..20_000)).await;
        let replicas = cluster.nodes.iter();
        let leader = replicas
            .filter_map(|node| cluster.network.partition(*node, key))
            .find(|partition| partition.is_leader());
        let Some(leader) = leader else { continue };
        // What no reader has seen could not be compared with what was acknowledged.
        let mark = *leader.high_watermark().borrow();
        let unread = mark.since(cluster.invariants.read_up_to(key));
        let policy = RetentionPolicy {
            max_records: Some(KEPT + unread),
            ..RetentionPolicy::default()
        };
        let now = TimestampMs::new(EPOCH_MS);
        let outcome = timeout(PATIENCE, leader.enforce_retention(policy, now)).await;
        note!(cluster.trace, "p{} starts at {outcome:?}", key.partition);
    }
}
