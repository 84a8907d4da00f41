//! `quipu cluster`.

use std::{
    collections::BTreeSet,
    io::{IsTerminal, Write, stderr, stdout},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use quipu_client::{Admin, Client, ClusterDescription, NodeState, PartitionDescription};
use serde_json::{Value, json};

use crate::{connect::ConnectArgs, table};

/// How often it is asked how far a move is.
const POLL: Duration = Duration::from_millis(300);

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Tell whether the cluster is well: its nodes, and partitions without a leader or on the move
    Status {
        #[command(flatten)]
        connect: ConnectArgs,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// List the nodes
    Nodes {
        #[command(flatten)]
        connect: ConnectArgs,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Move a partition to other nodes, and wait until it has moved
    Reassign {
        topic: String,
        #[arg(long, value_name = "P")]
        partition: u32,
        /// The nodes that are to hold it, such as 1,2,4; the first is the preferred leader
        #[arg(long, value_name = "N,…", value_delimiter = ',', required = true)]
        replicas: Vec<u64>,
        /// Do not wait until it has moved
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Let another of a partition's replicas lead it
    TransferLeader {
        topic: String,
        #[arg(long, value_name = "P")]
        partition: u32,
        /// The node that is to lead
        #[arg(long, value_name = "N")]
        to: u64,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Move all that a node holds to other nodes, and take it out of the cluster for good. It may be up or dead
    Decommission {
        node: u64,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

pub(crate) async fn run(args: ClusterArgs) -> Result<()> {
    match args.command {
        ClusterCommand::Status { connect, json } => status(&admin(&connect).await?, json).await,
        ClusterCommand::Nodes { connect, json } => {
            let cluster = admin(&connect).await?.describe_cluster().await?;
            print_nodes(&cluster, json)
        }
        ClusterCommand::Reassign {
            topic,
            partition,
            replicas,
            no_wait,
            connect,
        } => {
            let admin = admin(&connect).await?;
            admin
                .reassign_partition(&topic, partition, replicas)
                .await?;
            if no_wait {
                writeln!(stdout(), "partition {partition} of {topic} begins to move")?;
                return Ok(());
            }
            wait_for_move(&admin, &topic, partition).await
        }
        ClusterCommand::TransferLeader {
            topic,
            partition,
            to,
            connect,
        } => {
            let admin = admin(&connect).await?;
            admin.transfer_leader(&topic, partition, to).await?;
            writeln!(stdout(), "node {to} leads partition {partition} of {topic}")?;
            Ok(())
        }
        ClusterCommand::Decommission { node, connect } => {
            decommission(&admin(&connect).await?, node).await
        }
    }
}

async fn admin(connect: &ConnectArgs) -> Result<Admin> {
    Ok(connect.connect().await?.admin())
}

/// What ails a partition, as one node sees it.
fn troubles(partition: &PartitionDescription) -> Vec<String> {
    let mut troubles = Vec::new();
    if !partition.damage.is_empty() {
        troubles.push(partition.damage.clone());
    } else if partition.leader.is_none() {
        troubles.push("no leader".to_owned());
    } else if !partition.leaving.is_empty() || !partition.joining.is_empty() {
        troubles.push("on the move".to_owned());
    }
    let lagging = partition.lagging.iter();
    troubles.extend(lagging.map(|node| format!("the replica on node {node} is behind")));
    troubles
}

/// What is not as it should be.
#[derive(Debug, Default)]
struct Findings {
    /// The partitions, whether or not anything ails them.
    partitions: BTreeSet<(String, u32)>,
    /// Of nodes that could be asked, what ails them.
    nodes: BTreeSet<(u64, String)>,
    /// Of partitions, as any node sees them.
    troubles: BTreeSet<(String, u32, String)>,
}

impl Findings {
    /// How many partitions something ails.
    fn ailing(&self) -> usize {
        let places = self
            .troubles
            .iter()
            .map(|(topic, partition, _)| (topic, partition));
        places.collect::<BTreeSet<_>>().len()
    }

    /// Asks one node what it knows.
    async fn ask(&mut self, admin: &Admin) -> Result<ClusterDescription> {
        let cluster = admin.describe_cluster().await?;
        for node in cluster
            .states
            .iter()
            .filter(|node| !node.trouble.is_empty())
        {
            self.nodes.insert((node.id, node.trouble.clone()));
        }
        for topic in admin.list_topics(true).await? {
            for partition in admin.describe_topic(&topic.name).await?.partitions {
                let place = (topic.name.clone(), partition.partition);
                for trouble in troubles(&partition) {
                    let trouble = (place.0.clone(), place.1, trouble);
                    self.troubles.insert(trouble);
                }
                self.partitions.insert(place);
            }
        }
        Ok(cluster)
    }

    /// Asks a node that others reach. What it knows of itself, no other does.
    async fn ask_at(&mut self, node: u64, address: &str) {
        let asking = async {
            let client = Client::connect(address).await?;
            self.ask(&client.admin()).await
        };
        if let Err(error) = asking.await {
            self.nodes.insert((node, format!("{error:#}")));
        }
    }
}

async fn status(admin: &Admin, json: bool) -> Result<()> {
    let mut findings = Findings::default();
    let cluster = findings.ask(admin).await?;
    for node in cluster.states.iter().filter(|node| node.reached) {
        if let Some(named) = cluster.nodes.iter().find(|named| named.id == node.id) {
            findings.ask_at(node.id, &named.address).await;
        }
    }
    let lost = cluster.states.iter().filter(|node| !node.reached);
    let lost: Vec<u64> = lost.map(|node| node.id).collect();
    print_status(&cluster, &lost, &findings, json)?;
    ensure!(
        lost.is_empty() && findings.nodes.is_empty() && findings.troubles.is_empty(),
        "{} node(s) not reached, {} node(s) and {} partition(s) not as they should be",
        lost.len(),
        findings.nodes.len(),
        findings.ailing()
    );
    if !json {
        writeln!(stdout(), "all is well")?;
    }
    Ok(())
}

fn print_status(
    cluster: &ClusterDescription,
    lost: &[u64],
    findings: &Findings,
    json: bool,
) -> Result<()> {
    let mut out = stdout().lock();
    let partitions = findings.partitions.len();
    if json {
        let troubles = findings.troubles.iter().map(|(topic, partition, trouble)| {
            json!({"topic": topic, "partition": partition, "trouble": trouble})
        });
        let nodes = findings.nodes.iter();
        let nodes = nodes.map(|(node, trouble)| json!({"node": node, "trouble": trouble}));
        let object = json!({
            "cluster_id": cluster.cluster_id,
            "controller": cluster.controller_id,
            "nodes": cluster.nodes.len(),
            "nodes_not_reached": lost,
            "node_troubles": nodes.collect::<Value>(),
            "partitions": partitions,
            "troubles": troubles.collect::<Value>(),
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let leader = match cluster.controller_id {
        0 => "nobody".to_owned(),
        node => format!("node {node}"),
    };
    writeln!(
        out,
        "cluster {}: {} node(s), {partitions} partition(s), {leader} leads the metadata",
        cluster.cluster_id,
        cluster.nodes.len(),
    )?;
    for node in lost {
        writeln!(out, "node {node} is not reached")?;
    }
    for (node, trouble) in &findings.nodes {
        writeln!(out, "node {node}: {trouble}")?;
    }
    for (topic, partition, trouble) in &findings.troubles {
        writeln!(out, "{topic}/{partition}: {trouble}")?;
    }
    Ok(())
}

fn print_nodes(cluster: &ClusterDescription, json: bool) -> Result<()> {
    let mut out = stdout().lock();
    let address = |node: &NodeState| {
        let named = cluster.nodes.iter().find(|named| named.id == node.id);
        named.map_or_else(String::new, |named| named.address.clone())
    };
    if json {
        let nodes = cluster.states.iter().map(|node| {
            json!({
                "id": node.id,
                "address": address(node),
                "rack": node.rack,
                "reached": node.reached,
                "draining": node.draining,
                "metadata_voter": node.metadata_voter,
                "replicas": node.replicas,
                "leaders": node.leaders,
            })
        });
        writeln!(out, "{}", nodes.collect::<Value>())?;
        return Ok(());
    }
    let row = |node: &NodeState| {
        let state = match (node.reached, node.draining) {
            (true, false) => "up",
            (true, true) => "being emptied",
            (false, false) => "not reached",
            (false, true) => "not reached, being emptied",
        };
        let role = if node.metadata_voter { "voter" } else { "-" };
        [
            node.id.to_string(),
            address(node),
            node.rack.clone(),
            role.to_owned(),
            node.replicas.to_string(),
            node.leaders.to_string(),
            state.to_owned(),
        ]
    };
    let rows: Vec<_> = cluster.states.iter().map(row).collect();
    let headings = [
        "NODE", "ADDRESS", "RACK", "METADATA", "REPLICAS", "LEADERS", "STATE",
    ];
    table::write(&mut out, headings, &rows)?;
    Ok(())
}

/// Shows one line that changes, to a person who is looking.
fn show_progress(line: &str) -> Result<()> {
    let mut err = stderr().lock();
    if err.is_terminal() {
        write!(err, "\r{line}\x1b[K")?;
        err.flush()?;
    }
    Ok(())
}

async fn wait_for_move(admin: &Admin, topic: &str, partition: u32) -> Result<()> {
    loop {
        let description = admin.describe_topic(topic).await?;
        let state = description.partitions.get(partition as usize);
        let state = state.with_context(|| format!("partition {partition} of {topic} is gone"))?;
        if state.leaving.is_empty() && state.joining.is_empty() {
            show_progress("")?;
            writeln!(
                stdout(),
                "partition {partition} of {topic} is on nodes {:?}",
                state.replicas
            )?;
            return Ok(());
        }
        show_progress(&format!(
            "moving: {:?} join, {:?} leave",
            state.joining, state.leaving
        ))?;
        tokio::time::sleep(POLL).await;
    }
}

async fn decommission(admin: &Admin, node: u64) -> Result<()> {
    admin.drain_node(node).await?;
    loop {
        let cluster = admin.describe_cluster().await?;
        let state = cluster.states.iter().find(|state| state.id == node);
        let state = state.with_context(|| format!("node {node} is gone"))?;
        if state.replicas == 0 {
            break;
        }
        show_progress(&format!("{} replica(s) still to move", state.replicas))?;
        tokio::time::sleep(POLL).await;
    }
    show_progress("")?;
    admin.remove_node(node).await?;
    writeln!(
        stdout(),
        "node {node} is out of the cluster: stop it, and never use its number again"
    )?;
    Ok(())
}
