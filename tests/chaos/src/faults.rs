//! The menu of faults.

use std::{collections::BTreeSet, thread, time::Duration};

use anyhow::{Context, Result};
use clap::ValueEnum;
use futures::FutureExt;
use quipu_client::Admin;
use rand::{
    RngExt, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use tokio::task::JoinHandle;

use crate::{
    cluster::Cluster,
    load::{Load, TOPIC},
    network::{self, From},
    proxy::Mode,
};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// kill -9 of one node, of several, or of all
    Kill,
    /// SIGSTOP, so that a deposed leader wakes up later
    Stop,
    /// The network in two halves, or one node's link down
    Cut,
    /// Packets of one direction dropped
    OneWay,
    /// A leader cut off from its followers; its clients may still reach it
    LeaderAlone,
    /// Messages between nodes late
    Delay,
    /// Connections between nodes that stay open and carry nothing
    Stall,
    /// A disk without room
    FullDisk,
    /// A disk that takes writes and does not finish them
    FrozenDisk,
    /// Power lost by the whole cluster at one moment, with all that was not synced
    Power,
    /// Clocks an hour off, either way
    Clock,
    /// Partitions moved between nodes, and their leaders
    Members,
}

impl Fault {
    /// Whether it takes root's rights.
    pub(crate) fn needs_root(self) -> bool {
        !matches!(
            self,
            Fault::Kill | Fault::Stop | Fault::Clock | Fault::Members
        )
    }

    /// Whether it takes file systems of the nodes' own.
    pub(crate) fn needs_disks(self) -> bool {
        matches!(self, Fault::FullDisk | Fault::FrozenDisk | Fault::Power)
    }

    /// Whether a node may end by itself under it: one whose disk fails ends, and says so.
    pub(crate) fn may_end_a_node(self) -> bool {
        self.needs_disks()
    }
}

/// How many moves one round of [`Fault::Members`] asks for.
const MOVES: u32 = 4;
/// Copies of each partition.
pub(crate) const REPLICAS: usize = 3;

/// Injects faults, as a seed says.
#[derive(Debug)]
pub(crate) struct Injector {
    pub(crate) rng: StdRng,
    /// Moves under way; each gives how many were refused.
    pub(crate) moves: Vec<JoinHandle<u32>>,
}

impl Injector {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            moves: Vec::new(),
        }
    }

    /// Injects one fault, and says what it did.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn inject(
        &mut self,
        fault: Fault,
        cluster: &mut Cluster,
        load: &Load,
    ) -> Result<String> {
        let able = able(cluster);
        if able.is_empty() {
            return Ok("no node left for it".to_owned());
        }
        match fault {
            Fault::Kill => self.kill(cluster, &able),
            Fault::Stop => self.stop(cluster, &able),
            Fault::Cut => self.cut(cluster),
            Fault::OneWay => self.one_way(cluster),
            Fault::LeaderAlone => self.leader_alone(cluster, load),
            Fault::Delay => {
                let by = Duration::from_millis(self.rng.random_range(20..400));
                self.divert(cluster, Mode::Delay(by), &format!("late by {by:?}"))
            }
            Fault::Stall => self.divert(cluster, Mode::Stall, "stalled"),
            Fault::FullDisk => self.fill(cluster, &able),
            Fault::FrozenDisk => {
                let id = self.one(&able)?;
                disk(cluster, id)?.freeze()?;
                Ok(format!("node {id}"))
            }
            Fault::Power => lose_power(cluster),
            Fault::Clock => self.set_clocks(cluster),
            Fault::Members => {
                let seed = self.rng.random();
                let ids = cluster.ids().into_iter().map(u64::from).collect();
                let moves = load.beside(|admin| move_partitions(admin, ids, seed).boxed());
                self.moves.push(moves);
                Ok(format!("{MOVES} moves"))
            }
        }
    }

    fn one(&mut self, ids: &[u8]) -> Result<u8> {
        ids.choose(&mut self.rng).copied().context("no node")
    }

    /// One node; now and then more, and all.
    fn some(&mut self, ids: &[u8]) -> Vec<u8> {
        let count = match self.rng.random_range(0..10) {
            0 => ids.len(),
            1..3 => 2,
            _ => 1,
        };
        let mut ids = ids.to_vec();
        ids.shuffle(&mut self.rng);
        ids.truncate(count);
        ids
    }

    fn kill(&mut self, cluster: &mut Cluster, able: &[u8]) -> Result<String> {
        let ids = self.some(able);
        for &id in &ids {
            cluster.node(id).kill()?;
        }
        Ok(format!("nodes {ids:?}"))
    }

    fn stop(&mut self, cluster: &mut Cluster, able: &[u8]) -> Result<String> {
        let ids = self.some(able);
        for &id in &ids {
            cluster.node(id).stop()?;
        }
        Ok(format!("nodes {ids:?}"))
    }

    fn cut(&mut self, cluster: &Cluster) -> Result<String> {
        let mut ids = cluster.ids();
        if self.rng.random_bool(0.3) {
            let id = self.one(&ids)?;
            network::unplug(id)?;
            return Ok(format!("node {id} unplugged"));
        }
        ids.shuffle(&mut self.rng);
        let (one, other) = ids.split_at(self.rng.random_range(1..ids.len()));
        for (&a, &b) in one.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
            network::cut(From::Node(a), b)?;
            network::cut(From::Node(b), a)?;
        }
        Ok(format!("{one:?} from {other:?}"))
    }

    fn one_way(&mut self, cluster: &Cluster) -> Result<String> {
        let mut ids = cluster.ids();
        ids.shuffle(&mut self.rng);
        let (to, others) = ids.split_first().context("no node")?;
        let from = &others[..self.rng.random_range(1..=others.len())];
        let outwards = self.rng.random_bool(0.5);
        for &peer in from {
            match outwards {
                true => network::cut(From::Node(*to), peer)?,
                false => network::cut(From::Node(peer), *to)?,
            }
        }
        let way = if outwards { "to" } else { "from" };
        Ok(format!("node {to} reaches nothing {way} {from:?}"))
    }

    fn leader_alone(&mut self, cluster: &Cluster, load: &Load) -> Result<String> {
        let partitions = load.ask(|admin| async move { admin.describe_topic(TOPIC).await });
        let partitions = partitions.map(|topic| topic.partitions).unwrap_or_default();
        let leaders = partitions.iter().filter_map(|p| p.leader.as_ref());
        let leaders: Vec<u8> = leaders
            .filter_map(|leader| leader.id.try_into().ok())
            .collect();
        let Some(&leader) = leaders.choose(&mut self.rng) else {
            return Ok("no leader was known".to_owned());
        };
        let clients_too = self.rng.random_bool(0.5);
        isolate(cluster, leader, clients_too)?;
        let from = if clients_too { "all" } else { "its peers" };
        Ok(format!("node {leader} from {from}"))
    }

    /// Between one node and all others, both ways or one.
    fn divert(&mut self, cluster: &Cluster, mode: Mode, what: &str) -> Result<String> {
        let ids = cluster.ids();
        let id = self.one(&ids)?;
        let both = self.rng.random_bool(0.5);
        for node in &cluster.nodes {
            let of = node.id == id || both;
            if let Some(proxies) = node.proxies.as_ref().filter(|_| of) {
                proxies.set(mode);
            }
        }
        for peer in ids.into_iter().filter(|peer| *peer != id) {
            network::divert(id, peer)?;
            if both {
                network::divert(peer, id)?;
            }
        }
        // The reset has reached everyone by then; what they open anew goes through the proxies.
        thread::sleep(Duration::from_millis(300));
        for id in cluster.ids() {
            network::end_reset(id)?;
        }
        let way = if both { "to and from" } else { "from" };
        Ok(format!("{way} node {id}: {what}"))
    }

    fn fill(&mut self, cluster: &mut Cluster, able: &[u8]) -> Result<String> {
        let ids = self.some(able);
        let spare = self.rng.random_range(0..4 << 20);
        for &id in &ids {
            disk(cluster, id)?.fill(spare)?;
        }
        Ok(format!("nodes {ids:?}, {spare} bytes left"))
    }

    fn set_clocks(&mut self, cluster: &mut Cluster) -> Result<String> {
        let ids = self.some(&cluster.ids());
        let by = self.rng.random_range(60..4000) * if self.rng.random() { 1 } else { -1 };
        for &id in &ids {
            cluster.node(id).set_clock(by)?;
        }
        Ok(format!("nodes {ids:?} by {by} s"))
    }
}

/// Cuts a node off from its peers, and from clients if asked.
///
/// # Errors
/// Where the system refuses.
pub(crate) fn isolate(cluster: &Cluster, id: u8, clients_too: bool) -> Result<()> {
    for peer in cluster.ids().into_iter().filter(|peer| *peer != id) {
        network::cut(From::Node(id), peer)?;
        network::cut(From::Node(peer), id)?;
    }
    if clients_too {
        network::cut(From::Clients, id)?;
    }
    Ok(())
}

/// The nodes that can be killed, stopped or lose something: those that run, and don't wait for a frozen disk.
fn able(cluster: &Cluster) -> Vec<u8> {
    let nodes = cluster.nodes.iter().filter(|node| {
        let frozen = node.disk.as_ref().is_some_and(|disk| disk.is_frozen());
        node.process.is_some() && !node.stopped && !frozen
    });
    nodes.map(|node| node.id).collect()
}

fn disk(cluster: &mut Cluster, id: u8) -> Result<&mut crate::disk::Disk> {
    let disk = cluster.node(id).disk.as_mut();
    disk.context("the node has no file system of its own")
}

/// All disks at one moment; then the processes, which would only fail.
fn lose_power(cluster: &mut Cluster) -> Result<String> {
    let frozen = |node: &crate::node::Node| node.disk.as_ref().is_some_and(|disk| disk.is_frozen());
    if cluster.nodes.iter().any(frozen) {
        return Ok("not while a disk is frozen".to_owned());
    }
    thread::scope(|scope| {
        let disks = cluster
            .nodes
            .iter_mut()
            .filter_map(|node| node.disk.as_mut());
        let losing: Vec<_> = disks
            .map(|disk| scope.spawn(|| disk.lose_power()))
            .collect();
        let mut lost = losing.into_iter().map(|losing| losing.join());
        lost.try_for_each(|lost| lost.map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    for node in &mut cluster.nodes {
        node.kill()?;
    }
    Ok("all nodes".to_owned())
}

/// Moves random partitions to random nodes, and leaders to random replicas. Gives how many calls were refused, as they
/// are where no majority is.
async fn move_partitions(admin: Admin, ids: Vec<u64>, seed: u64) -> u32 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut refused = 0;
    for turn in 0..MOVES {
        let Ok(topic) = admin.describe_topic(TOPIC).await else {
            refused += 1;
            continue;
        };
        let Some(partition) = topic.partitions.choose(&mut rng) else {
            continue;
        };
        let replicas: BTreeSet<u64> = partition.replicas.iter().copied().collect();
        let asked = if turn % 2 == 0 {
            let to: Vec<u64> = ids.sample(&mut rng, REPLICAS).copied().collect();
            admin
                .reassign_partition(TOPIC, partition.partition, to)
                .await
        } else {
            let replicas: Vec<u64> = replicas.into_iter().collect();
            let Some(&to) = replicas.choose(&mut rng) else {
                continue;
            };
            admin.transfer_leader(TOPIC, partition.partition, to).await
        };
        refused += u32::from(asked.is_err());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    refused
}
