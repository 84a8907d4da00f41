//! What members of a group are promised: nothing skipped, nothing of two members at a time, and others that come, go or die are hardly
//! noticed. The nodes run in this process.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture};
use quipu_broker::{Broker, BrokerConfig, Membership, NodeAddress};
use quipu_client::{
    Client, GroupConfig, NewTopic, Producer, ProducerConfig, RebalanceListener, Record,
    TopicPartition,
};
use quipu_model::NodeId;
use tokio::{
    runtime::Runtime,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// For what must happen, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node with threads of its own, so that it can end as a process does that is killed.
struct Node {
    id: u64,
    runtime: Option<Runtime>,
    broker: Option<Broker>,
}

impl Node {
    async fn start(config: BrokerConfig) -> Self {
        let id = config.node_id.get();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let broker = runtime.spawn(Broker::start(config)).await.unwrap().unwrap();
        Self {
            id,
            runtime: Some(runtime),
            broker: Some(broker),
        }
    }
}

/// It ends at once: no word to the others, nothing finished.
impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        drop(self.broker.take());
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

async fn cluster(directory: &Path, nodes: u64) -> (Vec<Node>, Client) {
    let addresses: Vec<_> = (1..=nodes).map(|id| (id, free_address())).collect();
    let voters = addresses.iter().map(|(id, address)| NodeAddress {
        id: NodeId::new(*id),
        address: address.to_string(),
    });
    let voters: Vec<_> = voters.collect();
    let mut started = Vec::new();
    for (id, address) in &addresses {
        let data = directory.join(id.to_string());
        let any = "127.0.0.1:0".parse().unwrap();
        let mut config = BrokerConfig::new(NodeId::new(*id), data, *address, any);
        config.store.wal_file_bytes = 4 << 20;
        if nodes > 1 {
            config.membership = Membership::Voters(voters.clone());
        }
        started.push(Node::start(config).await);
    }
    let brokers: Vec<_> = voters.iter().map(|voter| voter.address.clone()).collect();
    let brokers = brokers.join(",");
    let client = timeout(PATIENCE, async {
        loop {
            if let Ok(client) = Client::connect(brokers.as_str()).await {
                let known = client.admin().describe_cluster().await;
                if known.is_ok_and(|known| known.nodes.len() as u64 == nodes) {
                    return client;
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    });
    (started, client.await.unwrap())
}

/// The numbers of a partition's records that were processed, and when the newest was.
type Processed = (Vec<u64>, Option<Instant>);

/// Who has which partition, and what was processed, as all members see it.
#[derive(Default)]
struct Ledger {
    owners: Mutex<BTreeMap<(String, u32), usize>>,
    processed: Mutex<BTreeMap<u32, Processed>>,
    /// How often partitions were taken from each member.
    disturbed: Mutex<BTreeMap<usize, usize>>,
}

struct Listener {
    member: usize,
    ledger: Arc<Ledger>,
}

impl Listener {
    fn gone(&self, partitions: &[TopicPartition]) {
        let mut owners = self.ledger.owners.lock().unwrap();
        for (topic, partition) in partitions {
            let owner = owners.remove(&(topic.to_string(), *partition));
            assert_eq!(owner, Some(self.member));
        }
        *self
            .ledger
            .disturbed
            .lock()
            .unwrap()
            .entry(self.member)
            .or_default() += 1;
    }
}

impl RebalanceListener for Listener {
    fn assigned(&self, partitions: &[TopicPartition]) {
        let mut owners = self.ledger.owners.lock().unwrap();
        for (topic, partition) in partitions {
            let other = owners.insert((topic.to_string(), *partition), self.member);
            assert_eq!(other, None, "{topic}/{partition} is {}'s too", self.member);
        }
    }

    fn revoked<'a>(&'a self, partitions: &'a [TopicPartition]) -> BoxFuture<'a, ()> {
        self.gone(partitions);
        Box::pin(std::future::ready(()))
    }

    fn lost(&self, partitions: &[TopicPartition]) {
        self.gone(partitions);
    }
}

/// A member that processes until it is aborted.
fn member(client: &Client, number: usize, ledger: &Arc<Ledger>) -> JoinHandle<()> {
    let listener = Listener {
        member: number,
        ledger: Arc::clone(ledger),
    };
    let mut consumer = client
        .group_consumer(GroupConfig {
            auto_commit: Some(Duration::from_millis(100)),
            listener: Some(Arc::new(listener)),
            client_id: format!("member {number}"),
            ..GroupConfig::new("g", "orders")
        })
        .unwrap();
    let ledger = Arc::clone(ledger);
    tokio::spawn(async move {
        while let Some(record) = consumer.next().await {
            let record = record.unwrap();
            let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
            let mut processed = ledger.processed.lock().unwrap();
            let (numbers, at) = processed.entry(record.partition).or_default();
            numbers.push(value.parse().unwrap());
            *at = Some(Instant::now());
        }
    })
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < PATIENCE, "{what} did not come about");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn produce(producer: &Producer, partitions: u32, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let value = number.to_string();
        for partition in 0..partitions {
            let record = Record::new("orders")
                .partition(partition)
                .value(value.as_bytes());
            drop(producer.send(record).await.unwrap());
        }
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_coordinator_is_hardly_noticed_and_no_stored_offset_goes_back() {
    let directory = tempfile::tempdir().unwrap();
    let (mut nodes, client) = cluster(directory.path(), 3).await;
    let admin = client.admin();
    admin
        .create_topic(NewTopic::new("orders").partitions(6))
        .await
        .unwrap();
    let ledger = Arc::new(Ledger::default());
    let members: Vec<_> = (0..3)
        .map(|number| member(&client, number, &ledger))
        .collect();
    let producer = client.producer(ProducerConfig::default()).await.unwrap();
    let producing = tokio::spawn(async move {
        produce(&producer, 6, 0..2000).await;
        producer.close().await.unwrap();
    });
    until("reading", || ledger.processed.lock().unwrap().len() == 6).await;
    let described = admin.describe_group("g").await.unwrap();
    let coordinator = described.coordinator.unwrap().id;
    let mut before = stored(&client).await;
    let killed_at = Instant::now();
    nodes.retain(|node| node.id != coordinator);

    // Stored again, further than before, for every partition.
    let began = before.clone();
    let mut stored_after = None;
    let sum = 6 * 2000;
    loop {
        let now = stored(&client).await;
        for (partition, offset) in &before {
            assert!(now[partition] >= *offset, "partition {partition} went back");
        }
        before = now;
        let all_further = began.iter().all(|(p, offset)| before[p] > *offset);
        if stored_after.is_none() && all_further {
            stored_after = Some(killed_at.elapsed());
        }
        if before.values().sum::<u64>() == sum {
            break;
        }
        assert!(killed_at.elapsed() < PATIENCE, "{before:?}");
        sleep(Duration::from_millis(50)).await;
    }
    producing.await.unwrap();
    for (partition, (numbers, _)) in &*ledger.processed.lock().unwrap() {
        let all: BTreeSet<u64> = numbers.iter().copied().collect();
        assert!(
            all.into_iter().eq(0..2000),
            "partition {partition} has holes"
        );
    }
    let stored_after = stored_after.unwrap();
    println!(
        "offsets of all partitions were stored again {stored_after:?} after the coordinator was killed"
    );
    for member in members {
        member.abort();
    }
}

async fn stored(client: &Client) -> BTreeMap<u32, u64> {
    let offsets = client.admin().group_offsets("g").await.unwrap();
    let mut stored: BTreeMap<u32, u64> = (0..6).map(|partition| (partition, 0)).collect();
    stored.extend(offsets.iter().map(|o| (o.partition, o.offset.get())));
    stored
}

#[tokio::test(flavor = "multi_thread")]
async fn one_joins_and_leaves_a_hundred_and_nobody_else_pauses() {
    let directory = tempfile::tempdir().unwrap();
    let (_nodes, client) = cluster(directory.path(), 1).await;
    let admin = client.admin();
    admin
        .create_topic(NewTopic::new("orders").partitions(300))
        .await
        .unwrap();
    let ledger = Arc::new(Ledger::default());
    let members: Vec<_> = (0..100)
        .map(|number| member(&client, number, &ledger))
        .collect();
    let shares = || {
        let mut shares = BTreeMap::<usize, usize>::new();
        for owner in ledger.owners.lock().unwrap().values() {
            *shares.entry(*owner).or_default() += 1;
        }
        shares
    };
    let even = || shares().values().filter(|share| **share == 3).count() == 100;
    until("an even share", even).await;
    ledger.disturbed.lock().unwrap().clear();

    let began = Instant::now();
    let joined = member(&client, 100, &ledger);
    until("a share for the new one", || shares().get(&100) == Some(&2)).await;
    println!(
        "one of 101 had its partitions {:?} after it was started",
        began.elapsed()
    );
    let disturbed: Vec<_> = ledger.disturbed.lock().unwrap().keys().copied().collect();
    assert_eq!(
        disturbed.len(),
        2,
        "only those that give are asked: {disturbed:?}"
    );

    // It stops without a word but for its farewell.
    ledger.disturbed.lock().unwrap().clear();
    let began = Instant::now();
    joined.abort();
    until("its share to go to others", || {
        let shares = shares();
        !shares.contains_key(&100) && shares.values().sum::<usize>() == 300
    })
    .await;
    println!(
        "its partitions were given to others {:?} after it left",
        began.elapsed()
    );
    let disturbed = ledger.disturbed.lock().unwrap();
    assert!(
        disturbed.keys().all(|member| *member == 100),
        "{disturbed:?}"
    );
    for member in members {
        member.abort();
    }
}
