//! Broker processes that form a cluster.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::PathBuf,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};

use crate::{Broker, Launch, broker::free_address, quipu, run};

/// The nodes of a cluster, by number. Nodes 1 to 3 are its first; others join.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    addresses: BTreeMap<u64, String>,
    running: BTreeMap<u64, Broker>,
}

impl Cluster {
    /// How many nodes begin a cluster.
    pub const FIRST: u64 = 3;

    /// The first three nodes, of which none runs yet.
    ///
    /// # Errors
    /// Where no address is free.
    pub fn plan(directory: PathBuf) -> Result<Self> {
        let addresses = (1..=Self::FIRST).map(|node| Ok((node, free_address()?)));
        Ok(Self {
            directory,
            addresses: addresses.collect::<Result<_>>()?,
            running: BTreeMap::new(),
        })
    }

    /// Starts the first three nodes and waits until they are ready.
    ///
    /// # Errors
    /// Where one ends instead.
    pub fn start(directory: PathBuf) -> Result<Self> {
        let mut cluster = Self::plan(directory)?;
        for node in 1..=Self::FIRST {
            cluster.spawn(node)?;
        }
        for broker in cluster.running.values_mut() {
            broker.wait_ready()?;
        }
        Ok(cluster)
    }

    /// Where a node keeps its data.
    pub fn data(&self, node: u64) -> PathBuf {
        self.directory.join(format!("node-{node}"))
    }

    /// How a node is started, the first time and again.
    ///
    /// # Errors
    /// Where no address is free.
    pub fn launch(&mut self, node: u64) -> Result<Launch> {
        if let Entry::Vacant(place) = self.addresses.entry(node) {
            place.insert(free_address()?);
        }
        let first = self.addresses.iter().take(Self::FIRST as usize);
        let (membership, named) = if node <= Self::FIRST {
            let voters = first.map(|(id, address)| format!("{id}@{address}"));
            ("--voters", voters.collect::<Vec<_>>())
        } else {
            (
                "--join",
                first.map(|(_, address)| address.clone()).collect(),
            )
        };
        let launch = Launch::server(&self.data(node), node, &self.addresses[&node]);
        Ok(launch.argument(membership).argument(&named.join(",")))
    }

    /// Starts a node without waiting.
    ///
    /// # Errors
    /// Where the process can't be created.
    pub fn spawn(&mut self, node: u64) -> Result<()> {
        let broker = self.launch(node)?.spawn()?;
        self.running.insert(node, broker);
        Ok(())
    }

    /// Starts a node and waits until it is ready.
    ///
    /// # Errors
    /// Where it ends instead.
    pub fn revive(&mut self, node: u64) -> Result<()> {
        self.spawn(node)?;
        self.node(node)?.wait_ready()
    }

    /// Waits until a node that was [spawned](Self::spawn) is ready.
    ///
    /// # Errors
    /// Where it ends instead.
    pub fn wait_ready(&mut self, node: u64) -> Result<()> {
        self.node(node)?.wait_ready()
    }

    /// A node's process.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn node(&mut self, node: u64) -> Result<&mut Broker> {
        let running = self.running.get_mut(&node);
        running.with_context(|| format!("node {node} does not run"))
    }

    /// Takes a node's process: to end it in whatever way.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn take(&mut self, node: u64) -> Result<Broker> {
        let running = self.running.remove(&node);
        running.with_context(|| format!("node {node} does not run"))
    }

    /// Runs a client command that knows of all nodes.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn client(&self, arguments: &[&str], input: &[u8]) -> Result<Output> {
        let brokers: Vec<_> = self.addresses.values().cloned().collect();
        run(
            Command::new(quipu())
                .args(arguments)
                .env("QUIPU_BROKER", brokers.join(",")),
            input,
        )
    }

    /// Runs a client command that must succeed, and gives what it printed.
    ///
    /// # Errors
    /// Where it fails.
    pub fn succeed(&self, arguments: &[&str], input: &[u8]) -> Result<String> {
        let output = self.client(arguments, input)?;
        ensure!(
            output.status.success(),
            "quipu {arguments:?} failed with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}
