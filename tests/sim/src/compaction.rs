//! Lets Raft's log forget what is to be compacted, as nodes do from time to time: each replica when it likes. The stores compact then.

use std::time::Duration;

use quipu_model::{PartitionKey, TimestampMs};
use tokio::time::timeout;

use crate::{clock::EPOCH_MS, cluster::Cluster, luck::Luck, trace::note};

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn run(cluster: Cluster, key: PartitionKey, mut luck: Luck) {
    loop {
        tokio::time::sleep(luck.millis(500..3000)).await;
        let node = *luck.pick(&cluster.nodes);
        let Some(partition) = cluster.network.partition(node, key) else {
            continue;
        };
        let now = TimestampMs::new(EPOCH_MS);
        let prepared = timeout(PATIENCE, partition.prepare_compaction(now)).await;
        if !matches!(prepared, Ok(Ok(()))) {
            let part = key.partition;
            note!(cluster.trace, "node {node} p{part} compacts: {prepared:?}");
        }
    }
}
