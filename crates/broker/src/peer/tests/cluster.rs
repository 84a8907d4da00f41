//! Groups whose replicas reach each other by links.

use std::{collections::HashMap, time::Duration};

use quipu_model::{NodeId, Offset};
use quipu_replication::{Acks, CopyRequest, CopyResponse, Partition, SnapshotParts, Transport};
use quipu_storage::{Manifest, RetentionPolicy};

use super::{LONG, NOW, Node, batch, key, listen};

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
            partitions.push(node.take_part(&voters).await);
        }
        Self { nodes, partitions }
    }

    /// Who leads, other than node `but`.
    async fn leader(&self, but: Option<NodeId>) -> usize {
        let leads = async {
            loop {
                for (n, partition) in self.partitions.iter().enumerate() {
                    let soon = Duration::from_millis(20);
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

    /// A node neither hears nor is heard.
    async fn cut(&self, node: usize) {
        let cut = &self.nodes[node];
        cut.stop.cancel();
        cut.links.set_peers(HashMap::new());
        for other in self.nodes.iter().filter(|other| other.id != cut.id) {
            other.host.sees(cut.id.get(), false).await;
        }
    }

    async fn heal(&mut self, node: usize) {
        let addresses = self.nodes.iter();
        let addresses = addresses.map(|node| (node.id, node.address.to_string()));
        let addresses = addresses.collect();
        let cut = &mut self.nodes[node];
        cut.links.set_peers(addresses);
        (_, cut.stop) = listen(&cut.host, Some(cut.address)).await;
    }

    async fn all_reach(&self, end: u64) {
        for partition in &self.partitions {
            let mut mark = partition.high_watermark();
            let reached = mark.wait_for(|mark| mark.get() >= end);
            tokio::time::timeout(LONG, reached).await.unwrap().unwrap();
        }
    }

    async fn end(self) {
        let first = bytes_of(&self.partitions[0]).await;
        for partition in &self.partitions[1..] {
            assert!(bytes_of(partition).await == first, "replicas differ");
        }
        for node in &self.nodes {
            node.stop().await;
        }
    }
}

async fn bytes_of(partition: &Partition) -> Vec<u8> {
    let (mut next, mut all) = (partition.start_offset(), Vec::new());
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
    for bytes in [1, 100, 5_000, 1 << 20, 5 << 20, 3] {
        cluster.append(None, bytes).await;
    }
    cluster.all_reach(6).await;
    let old = cluster.leader(None).await;
    cluster.cut(old).await;
    let cut = cluster.nodes[old].id;
    for _ in 0..4 {
        cluster.append(Some(cut), 1 << 20).await;
    }
    cluster.heal(old).await;
    cluster.all_reach(10).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_behind_the_start_of_the_log_is_told_from_where_to_go_on() {
    let mut cluster = Cluster::start().await;
    cluster.append(None, 10).await;
    let leader = cluster.leader(None).await;
    let behind = (leader + 1) % 3;
    cluster.cut(behind).await;
    let cut = cluster.nodes[behind].id;
    for _ in 1..40 {
        cluster.append(Some(cut), 8 << 10).await;
    }
    let leader = cluster.leader(Some(cut)).await;
    let policy = RetentionPolicy {
        max_records: Some(10),
        ..RetentionPolicy::default()
    };
    let start = cluster.partitions[leader].enforce_retention(policy, NOW);
    let start = start.await.unwrap();
    assert!(start > Offset::new(20), "{start}");
    let log = cluster.nodes[leader].store.partition(key()).unwrap();
    let purged = async {
        while log.state().last_purged.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, purged).await.unwrap();
    cluster.heal(behind).await;
    cluster.append(None, 10).await;
    cluster.all_reach(41).await;
    let follower = &cluster.partitions[behind];
    let trimmed = async {
        while follower.start_offset() != start {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, trimmed).await.unwrap();
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_replica_gives_copies_of_what_it_knows_to_be_committed() {
    let cluster = Cluster::start().await;
    for bytes in [1, 100, 3 << 20, 5_000, 200_000, 900_000] {
        cluster.append(None, bytes).await;
    }
    cluster.all_reach(6).await;
    let links = &cluster.nodes[0].links;
    let copy = async |to: usize, from: u64, up_to: u64| {
        let request = CopyRequest {
            from: Offset::new(from),
            up_to: Offset::new(up_to),
            max_bytes: 1 << 20,
            uncommitted: false,
        };
        let target = cluster.nodes[to].id;
        // The lane need not stand yet.
        loop {
            match links.copy(target, key(), request, LONG).await {
                Ok(copied) => return copied,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let whole = bytes_of(&cluster.partitions[0]).await;
    for giver in [1, 2] {
        let (mut next, mut all) = (0, Vec::new());
        while next < 6 {
            let CopyResponse::Batches { bytes, next_offset } = copy(giver, next, 6).await else {
                panic!("node {giver} has it");
            };
            all.extend_from_slice(&bytes);
            next = next_offset.get();
        }
        assert!(all == whole, "not the bytes of the log");
    }
    let held = CopyResponse::OutOfRange {
        start: Offset::ZERO,
        end: Offset::new(6),
    };
    assert_eq!(copy(1, 5, 7).await, held);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_replica_gives_all_that_it_has_applied_to_one_that_asks_for_it() {
    let cluster = Cluster::start().await;
    for bytes in [100, 200_000] {
        cluster.append(None, bytes).await;
    }
    cluster.all_reach(2).await;
    let links = &cluster.nodes[0].links;
    for giver in [1, 2] {
        let target = cluster.nodes[giver].id;
        let all = loop {
            // The lane need not stand yet, and a replica says what is committed a moment before it has applied all of it.
            match links
                .take_over(target, key(), LONG)
                .await
                .map(SnapshotParts::from)
            {
                Ok(all) if all.next_offset == Offset::new(2) => break all,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let manifest = Manifest::decode(all.manifest).unwrap();
        assert_eq!(
            (all.last, manifest.end_offset),
            (Some(manifest.last), Offset::new(2))
        );
        assert!(all.leader.committed, "{:?}", all.leader);
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_far_behind_copies_segments_from_its_leader() {
    let mut cluster = Cluster::start().await;
    cluster.append(None, 10).await;
    let leader = cluster.leader(None).await;
    let behind = (leader + 1) % 3;
    cluster.cut(behind).await;
    let cut = cluster.nodes[behind].id;
    for _ in 1..100 {
        cluster.append(Some(cut), 8 << 10).await;
    }
    let leader = cluster.leader(Some(cut)).await;
    let store = &cluster.nodes[leader].store;
    store.checkpoint().unwrap();
    let log = store.partition(key()).unwrap();
    let purged = async {
        while log.state().last_purged.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, purged).await.unwrap();
    cluster.heal(behind).await;
    cluster.append(None, 10).await;
    cluster.all_reach(101).await;
    let log = cluster.nodes[behind].store.partition(key()).unwrap();
    let state = log.state();
    assert!(state.last_purged.is_some(), "it was sent all entries");
    assert_eq!(state.start_offset, Offset::ZERO);
    cluster.end().await;
}
