//! Leadership is handed over on purpose.

use std::time::Duration;

use quipu_model::{NodeId, PartitionKey};

use crate::{cluster::Cluster, luck::Luck, trace::note};

const PATIENCE: Duration = Duration::from_secs(5);

/// An operator who wants another node to lead, again and again, also one that is down, cut off or no replica.
pub(crate) async fn run(cluster: Cluster, key: PartitionKey, mut luck: Luck) {
    loop {
        tokio::time::sleep(luck.millis(1000..15_000)).await;
        if cluster.lets_sleep(&mut luck) {
            continue;
        }
        let Some((_, leader)) = cluster.leader(key) else {
            continue;
        };
        let part = key.partition;
        if luck.per_mille(300) {
            let handed = leader.hand_over(PATIENCE).await;
            note!(cluster.trace, "p{part} handed over: {handed:?}");
        } else {
            let to: NodeId = *luck.pick(&cluster.nodes);
            let handed = leader.transfer_leader(to, PATIENCE).await;
            note!(cluster.trace, "p{part} handed over to {to}: {handed:?}");
        }
    }
}
