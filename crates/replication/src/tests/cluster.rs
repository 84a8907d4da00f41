//! A group of three voters in one process: what one node alone cannot show. Every message is taken into its parts and made of
//! them again on its way, as a transport between processes does.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::ready, stream::BoxStream};
use parking_lot::Mutex;
use quipu_model::{NodeId, Offset, PartitionKey, TopicConfig, Vote};
use quipu_storage::{RetentionPolicy, Store, io::FaultyDisk};

use super::{LONG, NOW, at, key, numbered, open};
use crate::{
    Acks, AppendAnswers, AppendError, AppendOutcome, AppendRequest, Called, Partition, Replicator,
    SnapshotRequest, SnapshotResponse, TransferOutcome, TransferParts, TransferRequest,
    TransferResponse, Transport, TransportError, VoteOutcome, VoteParts, VoteRequest, VoteResponse,
};

/// Carries messages within the process, except to and from nodes that are cut off.
#[derive(Debug, Default)]
struct Wires {
    partitions: Mutex<HashMap<NodeId, Partition>>,
    cut: Mutex<HashSet<NodeId>>,
}

#[derive(Debug)]
struct Wire {
    from: NodeId,
    wires: Arc<Wires>,
}

impl Wire {
    fn reach(&self, node: NodeId) -> Result<Partition, TransportError> {
        let cut = self.wires.cut.lock();
        let partition = self.wires.partitions.lock().get(&node).cloned();
        match partition {
            Some(partition) if !cut.contains(&node) && !cut.contains(&self.from) => Ok(partition),
            _ => Err(lost(node, "cut off")),
        }
    }

    fn call<T: Send + 'static, F: Future<Output = Result<T, AppendError>> + Send + 'static>(
        &self,
        node: NodeId,
        timeout: Duration,
        call: impl FnOnce(Partition) -> F,
    ) -> Called<'_, T> {
        let called = self.reach(node).map(call);
        async move {
            let answer = tokio::time::timeout(timeout, called?).await;
            match answer {
                Ok(answer) => answer.map_err(|error| lost(node, &error.to_string())),
                Err(_) => Err(lost(node, "timed out")),
            }
        }
        .boxed()
    }
}

fn lost(node: NodeId, reason: &str) -> TransportError {
    let reason = reason.to_owned();
    TransportError { node, reason }
}

impl Transport for Wire {
    fn append(
        &self,
        target: NodeId,
        _: PartitionKey,
        requests: BoxStream<'static, AppendRequest>,
        _: Duration,
    ) -> Called<'_, AppendAnswers> {
        let reached = self.reach(target);
        let whole = |wires: &Arc<Wires>, from| {
            let wires = Arc::clone(wires);
            move || {
                let cut = wires.cut.lock();
                !cut.contains(&target) && !cut.contains(&from)
            }
        };
        let (there, back) = (whole(&self.wires, self.from), whole(&self.wires, self.from));
        async move {
            let requests = requests
                .take_while(move |_| ready(there()))
                .map(|request| AppendRequest::from_parts(request.into_parts().unwrap()).unwrap())
                .boxed();
            let answers = reached?.receive_appends(requests).map(move |answer| {
                let answer = answer
                    .map(|answer| AppendOutcome::from(answer).into())
                    .map_err(|error| lost(target, &error.to_string()));
                if back() {
                    answer
                } else {
                    Err(lost(target, "cut off"))
                }
            });
            Ok(answers.boxed())
        }
        .boxed()
    }
    fn vote(
        &self,
        target: NodeId,
        _: PartitionKey,
        request: VoteRequest,
        timeout: Duration,
    ) -> Called<'_, VoteResponse> {
        let request = VoteParts::from(request).into();
        self.call(target, timeout, |p| async move {
            let answer = p.receive_vote(request).await?;
            Ok(VoteOutcome::from(answer).into())
        })
    }
    fn pre_vote(
        &self,
        target: NodeId,
        _: PartitionKey,
        request: VoteRequest,
        timeout: Duration,
    ) -> Called<'_, VoteResponse> {
        let request = VoteParts::from(request).into();
        self.call(target, timeout, |p| async move {
            let answer = p.receive_pre_vote(request).await?;
            Ok(VoteOutcome::from(answer).into())
        })
    }
    fn snapshot(
        &self,
        target: NodeId,
        _: PartitionKey,
        request: SnapshotRequest,
        timeout: Duration,
    ) -> Called<'_, SnapshotResponse> {
        let request = SnapshotRequest::from_parts(&request.into()).unwrap();
        self.call(target, timeout, |p| async move {
            let answer = p.receive_snapshot(request).await?;
            Ok(Vote::from(answer).into())
        })
    }
    fn transfer_leader(
        &self,
        target: NodeId,
        _: PartitionKey,
        request: TransferRequest,
        timeout: Duration,
    ) -> Called<'_, TransferResponse> {
        let request = TransferParts::from(request).into();
        self.call(target, timeout, |p| async move {
            let answer = p.receive_transfer(request).await?;
            Ok(TransferOutcome::from(answer).into())
        })
    }
}

struct Cluster {
    wires: Arc<Wires>,
    stores: Vec<Arc<Store>>,
    partitions: Vec<Partition>,
}

impl Cluster {
    async fn start() -> Self {
        let wires = Arc::<Wires>::default();
        let nodes: Vec<NodeId> = (1..=3).map(NodeId::new).collect();
        let config = TopicConfig {
            segment_bytes: 4096,
            ..TopicConfig::default()
        };
        let (mut stores, mut partitions) = (Vec::new(), Vec::new());
        for &node in &nodes {
            let store = open(Arc::new(FaultyDisk::new(node.get())));
            let wire = Wire {
                from: node,
                wires: Arc::clone(&wires),
            };
            let replicator = Replicator::new(node, Arc::clone(&store), Arc::new(wire));
            let partition = replicator
                .start(key(), &nodes, config.clone())
                .await
                .unwrap();
            wires.partitions.lock().insert(node, partition.clone());
            stores.push(store);
            partitions.push(partition);
        }
        Self {
            wires,
            stores,
            partitions,
        }
    }

    /// The leader among those that are not cut off.
    async fn leader(&self) -> &Partition {
        loop {
            for (n, partition) in self.partitions.iter().enumerate() {
                let reachable = !self.wires.cut.lock().contains(&NodeId::new(n as u64 + 1));
                let soon = Duration::from_millis(20);
                if reachable && partition.wait_leader(soon).await.is_ok() {
                    return partition;
                }
            }
        }
    }

    /// Appends through whoever leads, sending again what was not acknowledged.
    async fn append(&self, sequence: i32) -> Option<Offset> {
        loop {
            let leader = self.leader().await;
            let batch = numbered(5, 0, sequence, 2);
            let short = Duration::from_secs(5);
            match leader.append(batch, Acks::All, short).await {
                Ok(appended) => return appended.base_offset,
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

    async fn stop(self) {
        for partition in &self.partitions {
            partition.shutdown().await;
        }
        for store in &self.stores {
            store.close().unwrap();
        }
    }
}

async fn bytes_from(partition: &Partition, from: u64) -> Vec<u8> {
    let mut next = Offset::new(from);
    let mut all = Vec::new();
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
async fn replicas_hold_equal_bytes_and_survive_their_leader() {
    let cluster = Cluster::start().await;
    for n in 0..50 {
        assert_eq!(cluster.append(n * 2).await, at(n as u64 * 2));
    }
    cluster.all_reach(100).await;
    let old = cluster.leader().await.clone();
    let old_node = old.leader().0.unwrap();
    cluster.wires.cut.lock().insert(old_node);
    // What the cut leader takes now may not be acknowledged, and is not in the way later.
    let short = Duration::from_millis(200);
    let error = old
        .append(numbered(6, 0, 0, 9), Acks::All, short)
        .await
        .unwrap_err();
    assert!(matches!(error, AppendError::TimedOut(_)), "{error:?}");

    // The next leader knows what was appended before it led.
    assert_eq!(cluster.append(98).await, at(98));
    assert_ne!(cluster.leader().await.leader().0, Some(old_node));
    for n in 50..60 {
        assert_eq!(cluster.append(n * 2).await, at(n as u64 * 2));
    }
    cluster.wires.cut.lock().clear();
    cluster.all_reach(120).await;
    let first = bytes_from(&cluster.partitions[0], 0).await;
    for partition in &cluster.partitions[1..] {
        assert!(bytes_from(partition, 0).await == first, "replicas differ");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_gives_all_replicas_one_start_and_a_follower_behind_it_goes_on_after_it() {
    let cluster = Cluster::start().await;
    cluster.append(0).await;
    let leader = cluster.leader().await.clone();
    let leading = leader.leader().0.unwrap();
    let behind = (1..=3)
        .map(NodeId::new)
        .find(|node| *node != leading)
        .unwrap();
    cluster.wires.cut.lock().insert(behind);
    for n in 1..500 {
        assert_eq!(cluster.append(n * 2).await, at(n as u64 * 2));
    }
    let policy = RetentionPolicy {
        max_records: Some(100),
        ..RetentionPolicy::default()
    };
    let leader = cluster.leader().await;
    let start = leader.enforce_retention(policy, NOW).await.unwrap();
    assert!(start > Offset::new(500), "{start}");
    let leading = leader.leader().0.unwrap().get() as usize - 1;
    let log = cluster.stores[leading].partition(key()).unwrap();
    while log.state().last_purged.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.wires.cut.lock().clear();
    cluster.append(1000).await;
    cluster.all_reach(1002).await;
    for partition in &cluster.partitions {
        let mut waited = 0;
        while partition.start_offset() != start && waited < 1000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            waited += 1;
        }
        assert_eq!(partition.start_offset(), start);
    }
    let first = bytes_from(&cluster.partitions[0], start.get()).await;
    for partition in &cluster.partitions[1..] {
        assert!(
            bytes_from(partition, start.get()).await == first,
            "replicas differ"
        );
    }
    cluster.stop().await;
}
