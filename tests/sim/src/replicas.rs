//! A node starts the replicas that it is to have and removes those that it is not, as it reads the metadata.

use quipu_model::{NodeId, PartitionKey};

use crate::{
    cluster::{Cluster, Up},
    luck::Luck,
    mutants::Mutant,
    trace::note,
};

/// Runs for one life of a node.
pub(crate) async fn keep(cluster: Cluster, node: NodeId, up: Up, mut luck: Luck) {
    loop {
        tokio::time::sleep(luck.millis(100..1000)).await;
        let lives = || {
            cluster
                .up(node)
                .is_some_and(|now| now.disk.is_same(&up.disk))
        };
        if !lives() {
            return;
        }
        // What it read last may be older than its files.
        if !cluster.network.reaches_majority(node, &cluster.nodes) {
            continue;
        }
        cluster.placement.refresh(node);
        for key in &cluster.keys {
            let wanted = cluster.placement.read_by(node, *key);
            let wanted = wanted.is_some_and(|known| known.holds(node));
            let runs = up.replicas.lock().contains_key(key);
            if wanted && runs {
                cluster.invariants.joined(node, *key);
            } else if wanted {
                note!(cluster.trace, "node {node} joins p{}", key.partition);
                // A disk that is full, or lost its power.
                if let Err(error) = cluster.start_replica(node, &up, *key).await {
                    note!(cluster.trace, "node {node} does not join: {error}");
                }
            } else if runs || up.store.partition(*key).is_some() {
                remove(&cluster, node, &up, *key).await;
            }
            if !lives() {
                return;
            }
        }
    }
}

async fn remove(cluster: &Cluster, node: NodeId, up: &Up, key: PartitionKey) {
    note!(cluster.trace, "node {node} leaves p{}", key.partition);
    if cluster.mutant == Some(Mutant::StaysBehind) {
        return cluster.invariants.left(node, key);
    }
    cluster.network.unserve(node, key);
    let replica = up.replicas.lock().remove(&key);
    if let Some(replica) = replica {
        cluster.unserve_groups(up, key);
        replica.shutdown().await;
    }
    match up.store.remove_partition(key) {
        Ok(()) => cluster.invariants.left(node, key),
        Err(error) => note!(cluster.trace, "node {node} does not leave: {error}"),
    }
}
