//! Groups whose replicas reach each other by links.

use std::collections::HashMap;

use quipu_model::{NodeId, Offset};
use quipu_replication::{Acks, Partition};

use super::{LONG, Node, batch, listen};

struct Cluster {
    nodes: Vec<Node>,
    partitions: Vec<Partition>,
}

impl Cluster {
    async fn start() -> Self {
        let mut nodes = Vec::new();
        for node in 1..=3 {
            nodes.push(Node::start(node).await);
        }
        let voters: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
        let addresses = nodes.iter().map(|node| (node.id, node.address.to_string()));
        let addresses: HashMap<_, _> = addresses.collect();
        let mut partitions = Vec::new();
        for node in &nodes {
            node.links.set_peers(addresses.clone());
            partitions.push(node.lead_or_follow(&voters).await);
        }
        Self { nodes, partitions }
    }

    /// Who leads, other than node `but`.
    async fn leader(&self, but: Option<NodeId>) -> usize {
        let leads = async {
            loop {
                for (n, partition) in self.partitions.iter().enumerate() {
                    let soon = std::time::Duration::from_millis(20);
                    if Some(self.nodes[n].id) != but && partition.wait_leader(soon).await.is_ok() {
                        return n;
                    }
                }
            }
        };
        tokio::time::timeout(LONG, leads).await.unwrap()
    }

    async fn append(&self, but: Option<NodeId>, bytes: usize) {
        loop {
            let leader = &self.partitions[self.leader(but).await];
            match leader.append(batch(bytes), Acks::All, LONG).await {
                Ok(_) => return,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    }

    async fn all_reach(&self, end: u64) {
        for partition in &self.partitions {
            let mut mark = partition.high_watermark();
            let reached = mark.wait_for(|mark| mark.get() >= end);
            tokio::time::timeout(LONG, reached).await.unwrap().unwrap();
        }
    }
}

async fn bytes_of(partition: &Partition) -> Vec<u8> {
    let (mut next, mut all) = (Offset::ZERO, Vec::new());
    loop {
        let read = partition.read(next, 1 << 20).await.unwrap();
        if read.bytes.is_empty() {
            return all;
        }
        all.extend_from_slice(&read.bytes);
        next = read.next_offset;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_elect_a_leader_replicate_large_batches_and_heal_after_a_cut() {
    let mut cluster = Cluster::start().await;
    for bytes in [1, 100, 5_000, 1 << 20, 9 << 20, 3] {
        cluster.append(None, bytes).await;
    }
    cluster.all_reach(6).await;

    // The leader neither hears nor is heard.
    let old = cluster.leader(None).await;
    let cut = cluster.nodes[old].id;
    cluster.nodes[old].stop.cancel();
    cluster.nodes[old].links.set_peers(HashMap::new());
    for node in cluster.nodes.iter().filter(|node| node.id != cut) {
        node.host.sees(cut.get(), false).await;
    }
    for _ in 0..4 {
        cluster.append(Some(cut), 2 << 20).await;
    }

    let addresses = cluster
        .nodes
        .iter()
        .map(|node| (node.id, node.address.to_string()));
    cluster.nodes[old].links.set_peers(addresses.collect());
    let (host, address) = (&cluster.nodes[old].host, cluster.nodes[old].address);
    let (_, stop) = listen(host, Some(address)).await;
    cluster.nodes[old].stop = stop;
    cluster.all_reach(10).await;
    let first = bytes_of(&cluster.partitions[0]).await;
    for partition in &cluster.partitions[1..] {
        assert!(bytes_of(partition).await == first, "replicas differ");
    }
    for node in &cluster.nodes {
        node.stop().await;
    }
}
