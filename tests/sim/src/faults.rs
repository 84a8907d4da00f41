//! What goes wrong, as the seed decides.

use std::{sync::atomic::Ordering, time::Duration};

use quipu_model::NodeId;
use quipu_storage::io::Disk as _;
use tokio::time::Instant;

use crate::{
    cluster::{Cluster, Death},
    luck::Luck,
    rot,
    trace::note,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// One node loses its power.
    PowerLoss,
    /// One node loses its power in the middle of what it writes.
    PowerLossWhileWriting,
    /// All nodes lose their power.
    PowerCut,
    /// One process ends.
    Kill,
    /// One node is stopped and started by its operator.
    Restart,
    /// One node is cut off from the others, both ways.
    Isolated,
    /// The nodes fall into two parts.
    Split,
    /// Nothing gets from one node to another; the other way is open.
    OneWay,
    /// A node's messages wait, in both directions.
    Stalled,
    Losses,
    Delays,
    SlowDisk,
    FullDisk,
    FailingSync,
    FailingWrite,
    /// A byte of a node's disk changes by itself.
    Rot,
    /// A clock is set wrong.
    ClockStep,
    /// Nobody produces for so long that groups fall asleep.
    Quiet,
}

const FAULTS: [(u64, Fault); 17] = [
    (4, Fault::PowerLoss),
    (5, Fault::PowerLossWhileWriting),
    (3, Fault::PowerCut),
    (3, Fault::Kill),
    (2, Fault::Restart),
    (4, Fault::Isolated),
    (3, Fault::Split),
    (3, Fault::OneWay),
    (3, Fault::Stalled),
    (2, Fault::Losses),
    (2, Fault::Delays),
    (3, Fault::SlowDisk),
    (2, Fault::FullDisk),
    (2, Fault::FailingSync),
    (1, Fault::FailingWrite),
    (1, Fault::ClockStep),
    (2, Fault::Quiet),
];

/// Lets things go wrong for as long as it runs.
pub(crate) async fn run(cluster: Cluster, mut luck: Luck, rot: bool) {
    let mut quiet_until = None;
    loop {
        tokio::time::sleep(luck.millis(200..6000)).await;
        // Here, and not by a task that may end after this one: nobody else is made to produce when all is well again.
        if quiet_until.is_some_and(|until| until <= Instant::now()) {
            cluster.quiet.store(false, Ordering::Relaxed);
            quiet_until = None;
        }
        let fault = match rot && luck.per_mille(100) {
            true => Fault::Rot,
            false => draw(&mut luck),
        };
        let (node, other) = (pick(&cluster, &mut luck), pick(&cluster, &mut luck));
        let lasts = luck.millis(200..9000) * if luck.per_mille(80) { 6 } else { 1 };
        let number = luck.next();
        note!(
            cluster.trace,
            "FAULT {fault:?} node {node} other {other} for {} ms",
            lasts.as_millis()
        );
        if fault == Fault::Quiet {
            // Nothing else happens until groups sleep; then it does.
            cluster.quiet.store(true, Ordering::Relaxed);
            tokio::time::sleep(luck.millis(10_000..60_000)).await;
            quiet_until = Some(Instant::now() + lasts);
            continue;
        }
        let cluster = cluster.clone();
        tokio::spawn(async move {
            inflict(&cluster, fault, (node, other), lasts, number).await;
        });
    }
}

/// Mostly a node on which something goes on.
fn pick(cluster: &Cluster, luck: &mut Luck) -> NodeId {
    let key = *luck.pick(&cluster.keys);
    let replicas = cluster.placement.replicas(key);
    if luck.per_mille(850) && !replicas.is_empty() {
        *luck.pick(&replicas)
    } else {
        *luck.pick(&cluster.nodes)
    }
}

fn draw(luck: &mut Luck) -> Fault {
    let sum = FAULTS.iter().map(|(weight, _)| weight).sum();
    let mut at = luck.within(0..sum);
    for (weight, fault) in FAULTS {
        if at < weight {
            return fault;
        }
        at -= weight;
    }
    Fault::Kill
}

async fn inflict(
    cluster: &Cluster,
    fault: Fault,
    (node, other): (NodeId, NodeId),
    lasts: Duration,
    number: u64,
) {
    match fault {
        Fault::PowerLoss => cluster.outage(node, Death::PowerLoss, lasts).await,
        Fault::Kill => cluster.outage(node, Death::Kill, lasts).await,
        Fault::PowerCut => power_cut(cluster, lasts, number).await,
        Fault::Restart => {
            cluster.stop(node).await;
            tokio::time::sleep(lasts / 4).await;
            cluster.start(node).await;
        }
        Fault::Isolated | Fault::Split | Fault::OneWay => {
            cut(cluster, fault, (node, other), lasts, number).await;
        }
        Fault::Stalled => {
            cluster.network.stall(node);
            tokio::time::sleep(lasts).await;
            cluster.network.go_on(node);
        }
        Fault::Losses => {
            cluster.network.lose(10 + number % 200);
            tokio::time::sleep(lasts).await;
            cluster.network.lose(0);
        }
        Fault::Delays => {
            cluster.network.delay(number % 400);
            tokio::time::sleep(lasts).await;
            cluster.network.delay(0);
        }
        Fault::Rot => rot::strike(cluster, node, lasts, number).await,
        Fault::ClockStep => {
            let hour = 60 * 60 * 1000;
            cluster.step_clock(node, (number % (2 * hour)) as i64 - hour as i64);
        }
        // Begun and ended above.
        Fault::Quiet => {}
        Fault::PowerLossWhileWriting
        | Fault::SlowDisk
        | Fault::FullDisk
        | Fault::FailingSync
        | Fault::FailingWrite => disk(cluster, fault, node, lasts, number).await,
    }
}

async fn power_cut(cluster: &Cluster, lasts: Duration, number: u64) {
    for node in &cluster.nodes {
        cluster.crash(*node, Death::PowerLoss);
    }
    tokio::time::sleep(lasts / 2).await;
    for (n, node) in cluster.nodes.iter().enumerate() {
        // They come back one after the other.
        let (cluster, node) = (cluster.clone(), *node);
        let after = Duration::from_millis(number.rotate_right(12 * n as u32) & 0x7ff);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            cluster.start(node).await;
        });
    }
}

async fn cut(
    cluster: &Cluster,
    fault: Fault,
    (node, other): (NodeId, NodeId),
    lasts: Duration,
    number: u64,
) {
    let mut ways = Vec::new();
    for from in &cluster.nodes {
        for to in &cluster.nodes {
            let cut = match fault {
                Fault::OneWay => *from == node && *to == other,
                Fault::Isolated => *from == node || *to == node,
                _ => (number >> from.get()) & 1 != (number >> to.get()) & 1,
            };
            if cut && from != to {
                ways.push((*from, *to));
            }
        }
    }
    for (from, to) in &ways {
        cluster.network.block(*from, *to);
    }
    tokio::time::sleep(lasts).await;
    for (from, to) in &ways {
        cluster.network.unblock(*from, *to);
    }
}

async fn disk(cluster: &Cluster, fault: Fault, node: NodeId, lasts: Duration, number: u64) {
    let Some(up) = cluster.up(node) else { return };
    let platter = up.disk.platter();
    match fault {
        Fault::PowerLossWhileWriting => up.disk.lose_power_in(1 + number % 60),
        Fault::FailingSync => platter.fail_sync_at(1 + number % 20),
        Fault::FailingWrite => platter.fail_write_at(1 + number % 40),
        Fault::FullDisk => {
            let used = u64::MAX - platter.free_bytes().unwrap_or(u64::MAX);
            platter.set_capacity(used + number % (128 << 10));
            tokio::time::sleep(lasts).await;
            platter.set_capacity(u64::MAX);
        }
        _ => {
            up.pace.slow_down(Duration::from_millis(number % 800));
            tokio::time::sleep(lasts).await;
            up.pace.slow_down(Duration::ZERO);
        }
    }
}
