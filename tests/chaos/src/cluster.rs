//! A cluster of processes: built, started, healed.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    disk::Disk,
    network,
    node::Node,
    proxy::{Mode, Proxies},
};

const POLL: Duration = Duration::from_millis(50);
/// How long a node may take to be ready, also on a machine that compiles beside it.
const STARTING: Duration = Duration::from_secs(90);

/// What the nodes stand on.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    /// The binary.
    pub(crate) quipu: PathBuf,
    /// Where data, logs and disks go.
    pub(crate) home: PathBuf,
    /// Each node in a network namespace of its own; else all at loopback addresses.
    pub(crate) isolated: bool,
    /// Each node on a file system of its own.
    pub(crate) disks: bool,
    /// The library through which clocks are set.
    pub(crate) clock: Option<PathBuf>,
}

/// The nodes; the first `voters` of them lead the metadata, the others joined.
#[derive(Debug)]
pub(crate) struct Cluster {
    ground: Ground,
    pub(crate) nodes: Vec<Node>,
}

impl Cluster {
    /// Builds and starts so many voters, and then so many that join them.
    ///
    /// # Errors
    /// Where the system refuses something, or a node is not ready in time.
    pub(crate) fn start(ground: Ground, voters: u8, joining: u8) -> Result<Self> {
        let ids: Vec<u8> = (1..=voters + joining).collect();
        if ground.isolated {
            network::build_hub()?;
        }
        let addresses = addresses(&ids, ground.isolated)?;
        let voting = &addresses[..voters.into()];
        let named = voting
            .iter()
            .zip(1..)
            .map(|((at, _), id)| format!("{id}@{at}"));
        let named: Vec<_> = named.collect();
        let seeds: Vec<_> = voting.iter().map(|(at, _)| at.to_string()).collect();
        let membership = |id: u8| match id <= voters {
            true => ["--voters".to_owned(), named.join(",")],
            false => ["--join".to_owned(), seeds.join(",")],
        };
        let mut nodes = Vec::new();
        for (&id, &at) in ids.iter().zip(&addresses) {
            nodes.push(build_node(&ground, id, at, membership(id))?);
        }
        if ground.isolated {
            for node in &mut nodes {
                let others = ids.iter().zip(&addresses).filter(|(id, _)| **id != node.id);
                let routes = others.map(|(&id, (at, _))| {
                    let to = SocketAddr::new(at.ip(), network::PROXIED_PORT);
                    (network::PROXY_PORT + u16::from(id), to)
                });
                let namespace = network::namespace(node.id);
                node.proxies = Some(Proxies::start(&namespace, routes.collect())?);
            }
        }
        let mut cluster = Self { ground, nodes };
        cluster.start_dead()?;
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// `host:port` of all, separated by commas; `first` comes first.
    pub(crate) fn addresses(&self, first: usize) -> String {
        let count = self.nodes.len();
        let order = (0..count).map(|step| &self.nodes[(first + step) % count]);
        let addresses: Vec<_> = order.map(|node| node.grpc.to_string()).collect();
        addresses.join(",")
    }

    pub(crate) fn node(&mut self, id: u8) -> &mut Node {
        &mut self.nodes[usize::from(id - 1)]
    }

    pub(crate) fn ids(&self) -> Vec<u8> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// Starts every node that does not run.
    fn start_dead(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if node.process.is_none() {
                node.start(&self.ground.quipu)?;
            }
        }
        Ok(())
    }

    /// Starts one node again.
    ///
    /// # Errors
    /// Where the process can't be created.
    pub(crate) fn start_node(&mut self, id: u8) -> Result<()> {
        let quipu = self.ground.quipu.clone();
        self.node(id).start(&quipu)
    }

    /// Waits until every node is ready.
    ///
    /// # Errors
    /// Where one ends or is never ready.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + STARTING;
        for node in &mut self.nodes {
            while !node.is_ready() {
                if let Some(status) = node.ended()? {
                    anyhow::bail!(
                        "node {} ended with {status} instead of starting: {}",
                        node.id,
                        node.last_words()
                    );
                }
                ensure!(
                    Instant::now() < deadline,
                    "stuck: node {} was not ready within {STARTING:?}: {}",
                    node.id,
                    node.last_words()
                );
                thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Takes all faults away and starts what does not run. Gives the nodes that had ended by themselves, and how.
    ///
    /// # Errors
    /// Where the system refuses something.
    pub(crate) fn heal(&mut self) -> Result<Vec<String>> {
        let mut ended = Vec::new();
        for node in &mut self.nodes {
            if let Some(disk) = &mut node.disk {
                disk.heal()?;
            }
            if node.isolated {
                network::heal(node.id)?;
            }
            if let Some(proxies) = &node.proxies {
                proxies.set(Mode::Closed);
            }
            node.go_on()?;
            if node.clock.is_some() {
                node.set_clock(0)?;
            }
            if let Some(status) = node.ended()? {
                let last = node.last_words();
                ended.push(format!("node {} ended with {status}: {last}", node.id));
            }
            if let Some(disk) = node.disk.as_mut().filter(|disk| disk.is_without_power()) {
                disk.regain_power()?;
            }
        }
        self.start_dead()?;
        Ok(ended)
    }
}

fn build_node(
    ground: &Ground,
    id: u8,
    (grpc, http): (SocketAddr, SocketAddr),
    membership: [String; 2],
) -> Result<Node> {
    let home = ground.home.join(format!("node{id}"));
    fs::create_dir_all(&home)?;
    if ground.isolated {
        network::build_node(id)?;
    }
    let disk = match ground.disks {
        true => Some(Disk::make(&home.join("disk"), id)?),
        false => None,
    };
    let node = Node {
        id,
        grpc,
        http,
        disk,
        proxies: None,
        isolated: ground.isolated,
        home,
        membership,
        clock: ground.clock.clone(),
        process: None,
        stopped: false,
    };
    if node.clock.is_some() {
        node.set_clock(0)?;
    }
    Ok(node)
}

/// Where each node serves gRPC and HTTP.
fn addresses(ids: &[u8], isolated: bool) -> Result<Vec<(SocketAddr, SocketAddr)>> {
    let mut held = Vec::new();
    let mut free = || -> Result<SocketAddr> {
        let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), 0))?;
        let address = listener.local_addr()?;
        // Held until all are chosen, so that all differ.
        held.push(listener);
        Ok(address)
    };
    let addresses = ids.iter().map(|&id| match isolated {
        true => {
            let at = network::address(id);
            let grpc = SocketAddr::new(at, network::GRPC_PORT);
            Ok((grpc, SocketAddr::new(at, network::GRPC_PORT + 1)))
        }
        false => Ok((free()?, free()?)),
    });
    addresses.collect()
}
