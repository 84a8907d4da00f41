//! One seed: a cluster under load and faults, then whole again, then compared.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::{
        Arc, Mutex,
        atomic::Ordering,
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use quipu_model::{NodeId, PartitionKey, ProducerId};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    calm,
    cluster::{Cluster, Shape},
    compaction, entropy, faults,
    groups::Members,
    invariants::{
        Violation,
        progress::{self, BECOMES_EQUAL, TAKES_RECORDS},
        violated,
    },
    liveness,
    load::{Producer, Progress},
    luck::Luck,
    moves,
    mutants::{self, Mutant},
    readers::Reader,
    retention, rot,
    trace::Trace,
    transfers,
};

/// What is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) partitions: u32,
    /// Of each partition, to begin with and in the end.
    pub(crate) replicas: usize,
    /// For each partition.
    pub(crate) producers: u32,
    /// How long things go wrong.
    pub(crate) faulty: Duration,
    pub(crate) mutant: Option<Mutant>,
    /// Bytes on disks change by themselves.
    pub(crate) rot: bool,
    /// The partitions are compacted, and nothing is deleted for its age.
    pub(crate) compacts: bool,
    /// Beside the partitions of producers there is one that holds a consumer group.
    pub(crate) groups: bool,
    /// Every line of the trace goes to standard error.
    pub(crate) print: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) simulated: Duration,
    pub(crate) events: u64,
    pub(crate) fingerprint: u64,
    pub(crate) acknowledged: u64,
    pub(crate) violation: Option<Violation>,
    pub(crate) tail: Vec<String>,
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// How long, in real time, simulated time may stand still.
const STANDSTILL: Duration = Duration::from_secs(120);

/// Runs a seed, on a thread whose randomness begins with it.
pub(crate) fn run(plan: Plan) -> anyhow::Result<Outcome> {
    entropy::seed(plan.seed);
    let (show, shown) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let thread = std::thread::Builder::new().stack_size(8 << 20);
    thread.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        // Where nobody listens any more, the process ends.
        let _ = tell.send(runtime.map(|runtime| runtime.block_on(simulate(plan, &show))));
    })?;
    let trace: Trace = shown.recv().context("the simulation did not begin")?;
    loop {
        let before = trace.at();
        match told.recv_timeout(STANDSTILL) {
            Ok(outcome) => return Ok(outcome?),
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the simulation itself panicked"),
            Err(RecvTimeoutError::Timeout) if trace.at() > before => {}
            Err(RecvTimeoutError::Timeout) => return Ok(stands_still(&trace)),
        }
    }
}

/// Something waits for what cannot come, or works for ever at one moment.
fn stands_still(trace: &Trace) -> Outcome {
    let violation = Violation {
        invariant: "standstill",
        detail: format!("time stands still at {} ms", trace.at().as_millis()),
    };
    Outcome {
        simulated: trace.at(),
        events: trace.events(),
        fingerprint: trace.fingerprint(),
        acknowledged: 0,
        violation: Some(violation),
        tail: trace.tail(),
    }
}

async fn simulate(plan: Plan, show: &mpsc::Sender<Trace>) -> Outcome {
    let trace = Trace::new(plan.print);
    // Whoever started this waits for it.
    let _ = show.send(trace.clone());
    listen(&trace);
    let start = Instant::now();
    let shape = Shape {
        nodes: plan.nodes,
        partitions: plan.partitions,
        replicas: plan.replicas,
        compacts: plan.compacts,
        groups: plan.groups,
    };
    let cluster = Cluster::new(plan.seed, shape, trace.clone(), plan.mutant);
    let course = Course {
        cluster: cluster.clone(),
        plan,
    };
    tokio::select! {
        biased;
        () = cluster.invariants.broken() => {}
        () = panicked(&cluster) => {}
        () = course.run() => {}
    }
    Outcome {
        simulated: start.elapsed(),
        events: trace.events(),
        fingerprint: trace.fingerprint(),
        acknowledged: cluster.invariants.acknowledged_records(),
        violation: cluster.invariants.violation(),
        tail: trace.tail(),
    }
}

/// Brings what the code under test says, and its panics, into the trace.
fn listen(trace: &Trace) {
    let writer = trace.clone();
    let lines = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .without_time()
        .with_ansi(false)
        .with_max_level(tracing::Level::WARN)
        .finish();
    // Only the first run of a process listens, and there is only one.
    let _ = tracing::subscriber::set_global_default(lines);
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(std::io::stderr(), "{panic}");
        let known = panic.to_string().contains(KNOWN_PANIC);
        if !known && let Ok(mut panics) = PANICS.lock() {
            panics.push(panic.to_string());
        }
    }));
}

/// A replica whose core ends there is started again: a snapshot was installed while entries were still to be applied
/// (openraft issue 2116).
const KNOWN_PANIC: &str = "openraft-0.10.0-alpha.37/src/core/raft_core.rs:2522:";

/// No task panics, but where it is known to and does no harm.
async fn panicked(cluster: &Cluster) {
    loop {
        let panic = PANICS
            .lock()
            .ok()
            .and_then(|panics| panics.first().cloned());
        if let Some(panic) = panic {
            cluster.invariants.note(violated("panic", panic));
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

struct Course {
    cluster: Cluster,
    plan: Plan,
}

impl Course {
    async fn run(&self) {
        let cluster = &self.cluster;
        join_all(cluster.nodes.iter().map(|node| cluster.start(*node))).await;
        for (n, (node, key)) in self.pairs().enumerate() {
            let reader = Reader {
                cluster: cluster.clone(),
                node,
                key,
                luck: Luck::stream(self.plan.seed, 10_000 + n as u64),
            };
            tokio::spawn(reader.run());
        }
        let producers = self.start_producers();
        let members = self.start_members();
        let cleanup = self.for_each_key(20_000, clean_up);
        let mut trouble = self.for_each_key(30_000, moves::ask);
        trouble.extend(self.for_each_key(40_000, transfers::run));
        self.for_each_key(50_000, moves::see_to);
        tokio::spawn(liveness::watch(cluster.clone()));
        let faults = faults::run(
            cluster.clone(),
            Luck::stream(self.plan.seed, 3),
            self.plan.rot,
        );
        trouble.push(tokio::spawn(faults));
        sleep(self.plan.faulty).await;
        trouble.iter().for_each(JoinHandle::abort);
        self.heal().await;
        cleanup.iter().for_each(JoinHandle::abort);
        self.take_records(&producers).await;
        end_members(members).await;
        rot::wait_whole(cluster).await;
        calm::settle(cluster, self.plan.replicas).await;
        calm::hand_over(cluster).await;
        let down = calm::sleep_and_wake(cluster).await;
        self.take_records(&producers).await;
        if let Some(down) = down {
            cluster.start(down).await;
        }
        end_members(self.start_members()).await;
        self.stop_producers(producers).await;
        self.become_equal().await;
        self.compare().await;
        rot::check_disks(cluster);
    }

    /// Runs something for every partition, each with luck of its own.
    fn for_each_key<F>(
        &self,
        purpose: u64,
        run: impl Fn(Cluster, PartitionKey, Luck) -> F,
    ) -> Vec<JoinHandle<()>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let keys = self.cluster.keys.iter().zip(purpose..);
        keys.map(|(key, purpose)| {
            let luck = Luck::stream(self.plan.seed, purpose);
            tokio::spawn(run(self.cluster.clone(), *key, luck))
        })
        .collect()
    }

    fn pairs(&self) -> impl Iterator<Item = (NodeId, PartitionKey)> {
        let nodes = self.cluster.nodes.iter();
        nodes.flat_map(|node| self.cluster.produced().map(move |key| (*node, key)))
    }

    fn start_members(&self) -> Option<Members> {
        let groups = self.plan.groups;
        groups.then(|| Members::start(&self.cluster, self.plan.seed))
    }

    fn start_producers(&self) -> Vec<Running> {
        let mut all = Vec::new();
        for key in self.cluster.produced() {
            for _ in 0..self.plan.producers {
                let number = all.len() as u64;
                let progress = Arc::<Progress>::default();
                let producer = Producer {
                    key,
                    id: ProducerId::new(number as i64 + 1),
                    cluster: self.cluster.clone(),
                    luck: Luck::stream(self.plan.seed, 1000 + number),
                    progress: Arc::clone(&progress),
                };
                let task = tokio::spawn(producer.run());
                all.push(Running {
                    key,
                    progress,
                    task,
                });
            }
        }
        all
    }

    /// All is well from here on: what goes wrong still ends, and whoever is down comes up.
    async fn heal(&self) {
        let cluster = &self.cluster;
        note(cluster, "all is well from here on");
        cluster.quiet.store(false, Ordering::Relaxed);
        for node in cluster.running() {
            if let Some(up) = cluster.up(node) {
                up.disk.stay_on();
                up.disk.platter().set_capacity(u64::MAX);
                up.pace.slow_down(Duration::ZERO);
            }
        }
        let whole = async {
            loop {
                if self.plan.mutant != Some(Mutant::StaysCut) {
                    cluster.network.heal();
                }
                join_all(cluster.nodes.iter().map(|node| cluster.start(*node))).await;
                if cluster.all_up() {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(TAKES_RECORDS, whole).await.is_err() {
            let missing = format!("only {:?} run", cluster.running());
            cluster.invariants.note(violated("progress", missing));
        }
        // What was begun may still strike in the first seconds.
        sleep(Duration::from_secs(10)).await;
        if self.plan.mutant == Some(Mutant::StaysCut) {
            for node in &cluster.nodes[1..] {
                cluster.network.block(cluster.nodes[0], *node);
            }
        } else {
            cluster.network.heal();
        }
    }

    /// Every producer gets a record in.
    async fn take_records(&self, producers: &[Running]) {
        let before: Vec<u64> = producers.iter().map(Running::batches).collect();
        let behind = || {
            let pairs = producers.iter().zip(&before);
            let mut behind = pairs.filter(|(producer, before)| producer.batches() == **before);
            behind.next().map(|(producer, _)| producer.key)
        };
        let deadline = Instant::now() + TAKES_RECORDS;
        while behind().is_some() && Instant::now() < deadline {
            sleep(Duration::from_millis(50)).await;
        }
        if let Some(key) = behind() {
            let state = self.cluster.describe(key);
            let check = progress::takes_records(key, false, &state);
            self.cluster.invariants.note(check);
        }
    }

    async fn stop_producers(&self, producers: Vec<Running>) {
        for producer in &producers {
            producer.progress.stop.store(true, Ordering::Relaxed);
        }
        for producer in producers {
            let did = timeout(TAKES_RECORDS, producer.task).await.is_ok();
            let state = self.cluster.describe(producer.key);
            let check = progress::takes_records(producer.key, did, &state);
            self.cluster.invariants.note(check);
        }
    }

    async fn become_equal(&self) {
        let cluster = &self.cluster;
        for key in &cluster.keys {
            let equal = || {
                let replicas = cluster.placement.replicas(*key);
                let mut ends = replicas.iter().map(|node| {
                    let partition = cluster.network.partition(*node, *key)?;
                    let mark = *partition.high_watermark().borrow();
                    let state = cluster.up(*node)?.store.partition(*key)?.state();
                    Some((mark, state.end_offset, state.start_offset))
                });
                let first = ends.next().flatten();
                first.is_some_and(|(mark, end, _)| mark == end) && ends.all(|end| end == first)
            };
            let deadline = Instant::now() + BECOMES_EQUAL;
            while !equal() && Instant::now() < deadline {
                sleep(Duration::from_millis(50)).await;
            }
            let check = progress::becomes_equal(*key, equal(), &cluster.describe(*key));
            cluster.invariants.note(check);
        }
    }

    async fn compare(&self) {
        for key in self.cluster.produced() {
            let mut logs = BTreeMap::new();
            for node in self.cluster.placement.replicas(key) {
                logs.insert(node, self.read_all(node, key).await);
            }
            self.cluster.invariants.ended(key, &logs);
        }
        for key in &self.cluster.keys {
            calm::check_agreed(&self.cluster, *key);
        }
    }

    async fn read_all(&self, node: NodeId, key: PartitionKey) -> Bytes {
        let mut all = BytesMut::new();
        let Some(partition) = self.cluster.network.partition(node, key) else {
            return all.freeze();
        };
        let mut next = partition.start_offset();
        let end = *partition.high_watermark().borrow();
        while next < end {
            match partition.read(next, 1 << 20).await {
                Ok(read) if !read.bytes.is_empty() => {
                    self.cluster
                        .invariants
                        .read(key, node, next, read.bytes.clone());
                    let bytes = match self.plan.mutant {
                        Some(Mutant::ForgetsAKey) => mutants::forget_a_key(&read.bytes),
                        _ => read.bytes,
                    };
                    all.extend_from_slice(&bytes);
                    next = read.next_offset;
                }
                read => {
                    let detail = format!("node {node} cannot read {key} at {next}: {read:?}");
                    self.cluster.invariants.note(violated("equal", detail));
                    break;
                }
            }
        }
        all.freeze()
    }
}

/// Lets logs forget what they need not keep.
async fn clean_up(cluster: Cluster, key: PartitionKey, luck: Luck) {
    match cluster.is_compacted(key) {
        true => compaction::run(cluster, key, luck).await,
        false => retention::run(cluster, key, luck).await,
    }
}

/// Members go on now that all is well, and then leave.
async fn end_members(members: Option<Members>) {
    if let Some(members) = members {
        members.go_on().await;
        members.stop().await;
    }
}

fn note(cluster: &Cluster, what: &str) {
    crate::trace::note!(cluster.trace, "{what}");
}

/// A producer at work.
struct Running {
    key: PartitionKey,
    progress: Arc<Progress>,
    task: JoinHandle<()>,
}

impl Running {
    fn batches(&self) -> u64 {
        self.progress.batches.load(Ordering::Relaxed)
    }
}
