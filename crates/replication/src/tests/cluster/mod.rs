//! Groups of several replicas in one process: what one node alone cannot show. Every message is taken into its parts and made of
//! them again on its way, as a transport between processes does.

mod catch_up;
mod copied_rot;
mod faults;
mod gone;
mod members;
mod repair;
mod replication;
mod returns;
mod sleep;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::ready, stream::BoxStream};
use parking_lot::Mutex;
use quipu_model::{NodeId, Offset, PartitionKey, TopicConfig, Vote};
use quipu_storage::{Store, io::FaultyDisk};

use super::{LONG, at, key, numbered, open_damaged};
use crate::{
    Acks, AppendAnswers, AppendError, AppendOutcome, AppendRequest, Called, CopyRequest,
    CopyResponse, Leadership, Origin, Partition, Replicator, SleepOutcome, SleepParts,
    SleepRequest, SleepResponse, SnapshotParts, SnapshotRequest, SnapshotResponse, TransferOutcome,
    TransferParts, TransferRequest, TransferResponse, Transport, TransportError, VoteOutcome,
    VoteParts, VoteRequest, VoteResponse,
};

/// Carries messages within the process, except to and from nodes that are cut off.
#[derive(Debug, Default)]
struct Wires {
    partitions: Mutex<HashMap<NodeId, Partition>>,
    cut: Mutex<HashSet<NodeId>>,
    sent: AtomicU64,
    /// Bytes of copies that arrived, and how many may still.
    copied: AtomicU64,
    copies_left: Mutex<Option<u64>>,
}

#[derive(Debug)]
struct Wire {
    from: NodeId,
    wires: Arc<Wires>,
}

impl Wire {
    fn reach(&self, node: NodeId) -> Result<Partition, TransportError> {
        self.wires.sent.fetch_add(1, Ordering::Relaxed);
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
                wires.sent.fetch_add(1, Ordering::Relaxed);
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
    fn sleep(
        &self,
        target: NodeId,
        _: PartitionKey,
        request: SleepRequest,
        timeout: Duration,
    ) -> Called<'_, SleepResponse> {
        let request = SleepParts::from(request).into();
        self.call(target, timeout, |p| async move {
            let answer = p.receive_sleep(request).await?;
            Ok(SleepOutcome::from(answer).into())
        })
    }
    fn take_over(
        &self,
        target: NodeId,
        _: PartitionKey,
        timeout: Duration,
    ) -> Called<'_, SnapshotRequest> {
        self.call(target, timeout, |p| async move {
            let all = SnapshotParts::from(p.receive_take_over().await?);
            Ok(SnapshotRequest::from_parts(&all).unwrap())
        })
    }
    fn copy(
        &self,
        target: NodeId,
        _: PartitionKey,
        request: CopyRequest,
        timeout: Duration,
    ) -> Called<'_, CopyResponse> {
        let may_arrive = self.wires.copies_left.lock().as_mut().is_none_or(|left| {
            let more = *left > 0;
            *left = left.saturating_sub(1);
            more
        });
        let wires = Arc::clone(&self.wires);
        let small = CopyRequest {
            max_bytes: 2000,
            ..request
        };
        let called = self.call(
            target,
            timeout,
            |p| async move { p.receive_copy(small).await },
        );
        async move {
            let answer = called.await?;
            if !may_arrive {
                return Err(lost(target, "cut off"));
            }
            if let CopyResponse::Batches { bytes, .. } = &answer {
                let len = bytes.len() as u64;
                wires.copied.fetch_add(len, Ordering::Relaxed);
            }
            Ok(answer)
        }
        .boxed()
    }
}

struct Member {
    disk: Arc<FaultyDisk>,
    store: Arc<Store>,
    replicator: Replicator,
    partition: Partition,
}

struct Cluster {
    wires: Arc<Wires>,
    members: BTreeMap<NodeId, Member>,
    /// After how long without traffic the group sleeps.
    idle: Duration,
    /// How far behind a follower may be before it copies segments.
    copy_behind: u64,
}

fn node(id: u64) -> NodeId {
    NodeId::new(id)
}

impl Cluster {
    /// Three voters: nodes 1 to 3.
    async fn start() -> Self {
        Self::start_idling(LONG).await
    }

    async fn start_idling(idle: Duration) -> Self {
        Self::start_with(idle, u64::MAX).await
    }

    async fn start_with(idle: Duration, copy_behind: u64) -> Self {
        Self::found(&[1, 2, 3], idle, copy_behind).await
    }

    /// So many voters.
    async fn of(founders: &[u64]) -> Self {
        Self::found(founders, LONG, u64::MAX).await
    }

    async fn found(founders: &[u64], idle: Duration, copy_behind: u64) -> Self {
        let mut cluster = Self {
            wires: Arc::default(),
            members: BTreeMap::new(),
            idle,
            copy_behind,
        };
        let founders: Vec<NodeId> = founders.iter().copied().map(node).collect();
        for founder in &founders {
            cluster.add(*founder, Origin::Founder(&founders)).await;
        }
        cluster
    }

    /// Starts a replica on a node that has none.
    async fn add(&mut self, node: NodeId, origin: Origin<'_>) -> Partition {
        let disk = Arc::new(FaultyDisk::new(node.get()));
        self.run(node, disk, origin).await
    }

    async fn run(&mut self, node: NodeId, disk: Arc<FaultyDisk>, origin: Origin<'_>) -> Partition {
        let (store, _) = open_damaged(disk.clone());
        let wire = Wire {
            from: node,
            wires: Arc::clone(&self.wires),
        };
        let replicator = Replicator::new(node, Arc::clone(&store), Arc::new(wire))
            .sleep_after(self.idle)
            .copy_behind(self.copy_behind);
        let config = TopicConfig {
            segment_bytes: 4096,
            ..TopicConfig::default()
        };
        let partition = replicator.start(key(), origin, config).await.unwrap();
        let reached = partition.clone();
        self.wires.partitions.lock().insert(node, reached);
        let member = Member {
            disk,
            store,
            replicator,
            partition: partition.clone(),
        };
        self.members.insert(node, member);
        partition
    }

    /// Cuts a node's power and starts it again.
    async fn crash(&mut self, crashing: NodeId) {
        self.cut_off(crashing);
        let member = self.members.remove(&crashing).unwrap();
        let disk = Arc::new(member.disk.fork(crashing.get()));
        disk.crash();
        member.partition.shutdown().await;
        member.store.close().unwrap();
        let founders = [1, 2, 3].map(node);
        self.run(crashing, disk, Origin::Founder(&founders)).await;
        self.wires.cut.lock().remove(&crashing);
    }

    fn at(&self, node: NodeId) -> &Partition {
        &self.members[&node].partition
    }

    fn cut_off(&self, node: NodeId) {
        self.wires.cut.lock().insert(node);
    }

    fn heal(&self) {
        self.wires.cut.lock().clear();
    }

    /// The leader among those that are not cut off.
    async fn leader(&self) -> (NodeId, &Partition) {
        loop {
            for (&node, member) in &self.members {
                let reachable = !self.wires.cut.lock().contains(&node);
                let soon = Duration::from_millis(20);
                if reachable && member.partition.wait_leader(soon).await.is_ok() {
                    return (node, &member.partition);
                }
            }
        }
    }

    /// Those of nodes 1 to 3 that do not lead.
    async fn followers(&self) -> [NodeId; 2] {
        let (leader, _) = self.leader().await;
        let mut others = [1, 2, 3].map(node).into_iter().filter(|n| *n != leader);
        [others.next().unwrap(), others.next().unwrap()]
    }

    /// Appends through whoever leads, sending again what was not acknowledged.
    async fn append(&self, sequence: i32) -> Option<Offset> {
        loop {
            let (_, leader) = self.leader().await;
            let batch = numbered(5, 0, sequence, 2);
            let short = Duration::from_secs(5);
            match leader.append(batch, Acks::All, short).await {
                Ok(appended) => return appended.base_offset,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    }

    /// Appends batches of two records from the first sequence up to the last.
    async fn fill(&self, from: u64, to: u64) {
        for sequence in (from..to).step_by(2) {
            assert_eq!(self.append(sequence as i32).await, at(sequence));
        }
    }

    /// Waits until these hold all records below `end`, and compares their bytes.
    async fn hold_the_same(&self, nodes: &[u64], from: u64, end: u64) {
        let mut first = None;
        for &id in nodes {
            let partition = self.at(node(id));
            let mut mark = partition.high_watermark();
            let reached = mark.wait_for(|mark| mark.get() >= end);
            tokio::time::timeout(LONG, reached).await.unwrap().unwrap();
            let bytes = bytes_from(partition, from).await;
            assert!(*first.get_or_insert(bytes.clone()) == bytes, "{id} differs");
        }
    }

    async fn stop(self) {
        for member in self.members.values() {
            member.partition.shutdown().await;
        }
        for member in self.members.values() {
            member.store.close().unwrap();
        }
    }
}

/// Waits until a replica knows of a leadership like this.
async fn until_led(partition: &Partition, like: impl Fn(&Leadership) -> bool) -> Leadership {
    let mut leadership = partition.leadership();
    let led = tokio::time::timeout(LONG, leadership.wait_for(like)).await;
    *led.unwrap().unwrap()
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
