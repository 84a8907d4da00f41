//! `quipu demo`: a cluster of three nodes in this process, a leader that dies, and nothing lost.

use std::{
    collections::{BTreeMap, HashMap},
    io::{Write, stdout},
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use futures::{StreamExt, stream::FuturesUnordered};
use quipu_broker::{Broker, BrokerConfig, Membership, NodeAddress};
use quipu_client::{
    Assignment, Client, ConsumerConfig, End, NewTopic, Offset, ProducerConfig, Record, Start,
};
use quipu_model::NodeId;
use tokio::{
    runtime::Runtime,
    time::{Instant, timeout},
};

const NODES: u64 = 3;
const TOPIC: &str = "demo";
const PARTITIONS: u32 = 3;
const RECORDS: u64 = 6_000;
const RECORDS_A_SECOND: u64 = 1_000;
/// After so many records a leader dies.
const KILL_AT: u64 = RECORDS / 3;
const KEYS: u64 = 50;
/// For what must happen soon, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {}

/// A node with threads of its own, so that it can end as a process does that is killed.
struct DemoNode {
    id: u64,
    runtime: Runtime,
    broker: Broker,
}

impl DemoNode {
    async fn start(config: BrokerConfig) -> Result<Self> {
        let id = config.node_id.get();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let broker = runtime.spawn(Broker::start(config)).await??;
        Ok(Self {
            id,
            runtime,
            broker,
        })
    }

    /// Ends it at once: no word to the others, nothing finished.
    fn kill(self) {
        self.runtime.shutdown_background();
        drop(self.broker);
    }
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(stdout(), "{line}")?)
}

pub(crate) async fn run(_: DemoArgs) -> Result<()> {
    let began = Instant::now();
    let directory = tempfile::tempdir()?;
    let mut nodes = start_nodes(directory.path()).await?;
    let brokers: Vec<_> = nodes
        .iter()
        .map(|node| node.broker.addresses().grpc.to_string())
        .collect();
    say(&format!(
        "three nodes in one process, data in {}: {}",
        directory.path().display(),
        brokers.join(", ")
    ))?;
    let client = connect(&brokers.join(",")).await?;
    client
        .admin()
        .create_topic(
            NewTopic::new(TOPIC)
                .partitions(PARTITIONS)
                .replication_factor(NODES as u32),
        )
        .await?;
    wait_for_leaders(&client).await?;
    say(&format!(
        "topic {TOPIC}: {PARTITIONS} partitions, {NODES} replicas each, acknowledged when on the disks of two"
    ))?;

    let seen = Arc::new(AtomicU64::new(0));
    let reading = tokio::spawn(read_all(client.clone(), Arc::clone(&seen)));
    let written = write_all(&client, &mut nodes, &seen).await?;
    let read = timeout(PATIENCE, reading).await;
    let read = read.context("the consumer did not see all records in time")???;
    account(&written, &read)?;
    replay(&client).await?;
    for node in nodes {
        node.kill();
    }
    say(&format!("all in {:.1} s", began.elapsed().as_secs_f64()))
}

async fn start_nodes(directory: &Path) -> Result<Vec<DemoNode>> {
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    // Each node must know where the others are before they listen. Ports below those of outgoing connections, lest one of the
    // nodes' own takes another's.
    let free = || {
        (0..100)
            .map(|_| loopback(rand::random_range(20_000..32_000)))
            .find(|address| TcpListener::bind(address).is_ok())
            .context("no port is free")
    };
    let voters: Vec<_> = (1..=NODES)
        .map(|id| {
            Ok(NodeAddress {
                id: NodeId::new(id),
                address: free()?.to_string(),
            })
        })
        .collect::<Result<_>>()?;
    let mut nodes = Vec::new();
    for voter in &voters {
        let data = directory.join(format!("node-{}", voter.id));
        let listen = voter.address.parse()?;
        let mut config = BrokerConfig::new(voter.id, data, listen, loopback(0));
        config.membership = Membership::Voters(voters.clone());
        nodes.push(DemoNode::start(config).await?);
    }
    Ok(nodes)
}

async fn connect(brokers: &str) -> Result<Client> {
    let client = Client::connect(brokers).await?;
    let formed = async {
        loop {
            let cluster = client.admin().describe_cluster().await?;
            if cluster.nodes.len() as u64 == NODES {
                return Ok::<_, anyhow::Error>(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let formed = timeout(PATIENCE, formed).await;
    formed.context("the cluster did not form in time")??;
    Ok(client)
}

async fn wait_for_leaders(client: &Client) -> Result<()> {
    let led = async {
        while (leaders(client).await?.len() as u32) < PARTITIONS {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    let led = timeout(PATIENCE, led).await;
    led.context("the partitions have no leaders in time")?
}

/// The leading node of each partition that has one.
async fn leaders(client: &Client) -> Result<BTreeMap<u32, u64>> {
    let topic = client.admin().describe_topic(TOPIC).await?;
    let led = topic.partitions.iter().filter_map(|partition| {
        let leader = partition.leader.as_ref()?;
        Some((partition.partition, leader.id))
    });
    Ok(led.collect())
}

/// What became of the records that were sent.
#[derive(Debug, Default)]
struct Written {
    /// The values acknowledged, by partition and offset.
    acknowledged: HashMap<(u32, Offset), u64>,
    /// The longest time in which a partition acknowledged nothing.
    longest_pause: Duration,
}

/// Writes at a steady pace; a third of the way, the node that leads partition 0 dies.
async fn write_all(
    client: &Client,
    nodes: &mut Vec<DemoNode>,
    seen: &AtomicU64,
) -> Result<Written> {
    let producer = client.producer(ProducerConfig::default()).await?;
    let mut written = Written::default();
    let mut deliveries = FuturesUnordered::new();
    let began = Instant::now();
    let mut last = HashMap::new();
    let mut sent = 0;
    let mut pace = tokio::time::interval(Duration::from_millis(1000 / RECORDS_A_SECOND));
    while sent < RECORDS || !deliveries.is_empty() {
        tokio::select! {
            Some((value, delivery)) = deliveries.next(), if !deliveries.is_empty() => {
                let delivery: quipu_client::Result<quipu_client::RecordMetadata> = delivery;
                let stored = delivery.context("a record was not acknowledged")?;
                let offset = stored.offset.context("an acknowledgement without an offset")?;
                written.acknowledged.insert((stored.partition, offset), value);
                let before = last.insert(stored.partition, Instant::now()).unwrap_or(began);
                written.longest_pause = written.longest_pause.max(before.elapsed());
            }
            _ = pace.tick(), if sent < RECORDS => {
                if sent == KILL_AT {
                    kill_leader(client, nodes).await?;
                }
                let (key, value) = ((sent % KEYS).to_string(), sent.to_string());
                let record = Record::new(TOPIC).key(key.as_bytes()).value(value.as_bytes());
                let delivery = producer.send(record).await?;
                let number = sent;
                deliveries.push(async move { (number, delivery.await) });
                sent += 1;
                if sent.is_multiple_of(RECORDS_A_SECOND) {
                    say(&format!(
                        "  {:4.1} s  sent {sent}, acknowledged {}, read {}",
                        began.elapsed().as_secs_f64(),
                        written.acknowledged.len(),
                        seen.load(Ordering::Relaxed)
                    ))?;
                }
            }
        }
    }
    producer.close().await?;
    Ok(written)
}

async fn kill_leader(client: &Client, nodes: &mut Vec<DemoNode>) -> Result<()> {
    let leader = leaders(client).await?.get(&0).copied();
    let at = nodes.iter().position(|node| Some(node.id) == leader);
    let node = nodes.swap_remove(at.context("partition 0 has no leader")?);
    say(&format!(
        "  node {}, which leads partition 0, is killed",
        node.id
    ))?;
    node.kill();
    Ok(())
}

/// The records that a consumer saw: value by partition and offset, in the order seen for each key.
#[derive(Debug, Default)]
struct Read {
    records: HashMap<(u32, Offset), u64>,
    by_key: HashMap<String, Vec<u64>>,
}

/// Follows all partitions until every record was seen.
async fn read_all(client: Client, seen: Arc<AtomicU64>) -> Result<Read> {
    let mut consumer = client.consumer(ConsumerConfig::default());
    let all = (0..PARTITIONS).map(|partition| Assignment::new(TOPIC, partition, Start::Earliest));
    consumer.assign(all).await?;
    let mut read = Read::default();
    while (read.records.len() as u64) < RECORDS {
        let record = consumer.next().await.context("the consumer ended")??;
        let text = |bytes: Option<bytes::Bytes>| -> Result<String> {
            let bytes = bytes.context("a record without a key or a value")?;
            Ok(String::from_utf8(bytes.to_vec())?)
        };
        let value: u64 = text(record.value)?.parse()?;
        let place = (record.partition, record.offset);
        ensure!(
            read.records.insert(place, value).is_none(),
            "partition {} gave offset {} twice",
            record.partition,
            record.offset
        );
        read.by_key
            .entry(text(record.key)?)
            .or_default()
            .push(value);
        seen.fetch_add(1, Ordering::Relaxed);
    }
    Ok(read)
}

fn account(written: &Written, read: &Read) -> Result<()> {
    ensure!(
        written.acknowledged == read.records,
        "what was read is not what was acknowledged"
    );
    let in_order = |values: &Vec<u64>| values.is_sorted_by(|a, b| a < b);
    ensure!(
        read.by_key.values().all(in_order),
        "a key's records are out of order, or there twice"
    );
    say(&format!(
        "{RECORDS} records sent, {} acknowledged; no partition was without acknowledgements for more than {:.1} s",
        written.acknowledged.len(),
        written.longest_pause.as_secs_f64()
    ))?;
    say(&format!(
        "the consumer saw {}: every acknowledged one, each once, each key in order",
        read.records.len()
    ))
}

/// Reads a range of offsets twice.
async fn replay(client: &Client) -> Result<()> {
    let (from, to) = (Offset::new(100), Offset::new(200));
    let mut runs = Vec::new();
    for _ in 0..2 {
        let mut consumer = client.consumer(ConsumerConfig::default());
        let range = Assignment::new(TOPIC, 0, Start::Offset(from)).until(End::Offset(to));
        consumer.assign([range]).await?;
        let mut records = Vec::new();
        while let Some(record) = consumer.next().await {
            let record = record?;
            records.push((record.offset, record.timestamp, record.key, record.value));
        }
        runs.push(records);
    }
    ensure!(
        runs.first() == runs.last() && runs.iter().all(|run| run.len() == 100),
        "two replays of the same offsets differ"
    );
    say(&format!(
        "offsets {from} to {to} of partition 0 replayed twice: the same records"
    ))
}
