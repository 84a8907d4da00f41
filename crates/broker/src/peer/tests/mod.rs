//! Nodes linked over real sockets.

mod cluster;
mod links;
mod misuse;
mod queue;
mod stale;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use quipu_model::{
    LeaderEpoch, NodeId, PartitionId, PartitionKey, RecordBatch, TimestampMs, TopicConfig, TopicId,
    batch::{BatchBuilder, Compression},
};
use quipu_replication::{Origin, Partition, Replicator};
use quipu_storage::{
    Store, StoreConfig, UnrecoveredStore,
    io::{FaultyDisk, ManualClock},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Host, Identity, LANE_BYTES, PeerLinks, Throttle, service};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
const NOW: TimestampMs = TimestampMs::new(1_700_000_000_000);
const CLUSTER: Uuid = Uuid::from_bytes([9; 16]);

fn key() -> PartitionKey {
    PartitionKey {
        topic: TopicId::from_bytes([7; 16]),
        partition: PartitionId::new(3),
    }
}

/// A batch of one record.
fn batch(bytes: usize) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.append(NOW, None, Some(&vec![5; bytes]), &[]);
    builder.build().unwrap()
}

type LedGroups = Vec<(PartitionKey, LeaderEpoch)>;

/// A node's side of its links: what it is, and what it heard.
#[derive(Debug)]
struct TestHost {
    identity: Mutex<Identity>,
    known: Mutex<HashMap<NodeId, [u8; 16]>>,
    partition: Mutex<Option<Partition>>,
    copying: Throttle,
    leads: AtomicBool,
    up: watch::Sender<HashMap<NodeId, bool>>,
    gone: watch::Sender<Vec<NodeId>>,
    heard: watch::Sender<Vec<(NodeId, LedGroups)>>,
    removed: watch::Sender<HashSet<NodeId>>,
    /// Why others refuse it.
    refusals: watch::Sender<Vec<(NodeId, String)>>,
}

impl TestHost {
    fn new(node: u64) -> Arc<Self> {
        let identity = Identity {
            node: NodeId::new(node),
            directory_id: [node as u8; 16],
            cluster_id: Some(CLUSTER),
        };
        Arc::new(Self {
            identity: Mutex::new(identity),
            known: Mutex::default(),
            partition: Mutex::default(),
            copying: Throttle::new(NonZeroU64::MAX),
            leads: AtomicBool::new(false),
            up: watch::Sender::default(),
            gone: watch::Sender::default(),
            heard: watch::Sender::default(),
            removed: watch::Sender::default(),
            refusals: watch::Sender::default(),
        })
    }

    async fn sees(&self, node: u64, up: bool) {
        let mut seen = self.up.subscribe();
        let node = NodeId::new(node);
        let seen = seen.wait_for(|seen| seen.get(&node).copied().unwrap_or(false) == up);
        tokio::time::timeout(LONG, seen).await.unwrap().unwrap();
    }
}

impl Host for TestHost {
    fn identity(&self) -> Identity {
        *self.identity.lock()
    }
    fn admit(&self, peer: &Identity) -> Result<(), String> {
        if self.removed.borrow().contains(&peer.node) {
            return Err(format!("node {} was removed", peer.node));
        }
        let mut known = self.known.lock();
        let directory = known.entry(peer.node).or_insert(peer.directory_id);
        if *directory == peer.directory_id {
            Ok(())
        } else {
            Err(format!("node {} has another data directory", peer.node))
        }
    }
    fn partition(&self, wanted: PartitionKey) -> Option<Partition> {
        self.partition.lock().clone().filter(|_| wanted == key())
    }
    fn copying(&self) -> &Throttle {
        &self.copying
    }
    fn led(&self) -> Vec<(PartitionKey, LeaderEpoch)> {
        let leads = self.leads.load(Ordering::Relaxed);
        leads
            .then_some((key(), LeaderEpoch::new(1)))
            .into_iter()
            .collect()
    }
    fn heard_led(&self, from: NodeId, led: Vec<(PartitionKey, LeaderEpoch)>) {
        self.heard.send_modify(|heard| heard.push((from, led)));
    }
    fn peer_up(&self, node: NodeId, up: bool) {
        self.up.send_modify(|seen| {
            assert_ne!(seen.insert(node, up), Some(up), "told twice");
        });
    }

    fn peer_gone(&self, node: NodeId) {
        self.gone.send_modify(|gone| gone.push(node));
    }

    fn removal_of(&self, node: NodeId) -> BoxFuture<'static, String> {
        let mut removed = self.removed.subscribe();
        Box::pin(async move {
            removed
                .wait_for(|removed| removed.contains(&node))
                .await
                .unwrap();
            format!("node {node} was removed")
        })
    }

    fn refused(&self, by: NodeId, reason: &str) {
        self.refusals
            .send_modify(|refusals| refusals.push((by, reason.to_owned())));
    }
}

/// Serves a node's end of the others' links.
async fn listen(host: &Arc<TestHost>, at: Option<SocketAddr>) -> (SocketAddr, CancellationToken) {
    let at = at.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let service = service(Arc::clone(host) as _, stop.clone(), LANE_BYTES);
    let incoming = futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let server = tonic::transport::Server::builder()
        .max_frame_size(1 << 20)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    tokio::spawn(server);
    (address, stop)
}

/// A whole node, as far as its links are concerned.
struct Node {
    id: NodeId,
    host: Arc<TestHost>,
    links: Arc<PeerLinks>,
    store: Arc<Store>,
    address: SocketAddr,
    stop: CancellationToken,
}

impl Node {
    async fn start(node: u64) -> Self {
        let clock = Arc::new(ManualClock::new(NOW));
        let config = StoreConfig {
            wal_file_bytes: 8 << 20,
            checkpoint_bytes: 32 << 20,
            wal_max_bytes: 128 << 20,
            ..StoreConfig::default()
        };
        let disk = Arc::new(FaultyDisk::new(node));
        let opened = UnrecoveredStore::open(disk, clock, config).unwrap();
        let (store, _) = opened.recover().unwrap();
        let host = TestHost::new(node);
        let (address, stop) = listen(&host, None).await;
        Self {
            id: NodeId::new(node),
            links: PeerLinks::new(NodeId::new(node), LANE_BYTES),
            store: Arc::new(store),
            host,
            address,
            stop,
        }
    }

    async fn take_part(&self, voters: &[NodeId]) -> Partition {
        let transport = Arc::clone(&self.links) as _;
        let replicator =
            Replicator::new(self.id, Arc::clone(&self.store), transport).copy_behind(128 << 10);
        let config = TopicConfig {
            segment_bytes: 64 << 10,
            ..TopicConfig::default()
        };
        let partition = replicator
            .start(key(), Origin::Founder(voters), config)
            .await
            .unwrap();
        *self.host.partition.lock() = Some(partition.clone());
        self.links.start(Arc::clone(&self.host) as _);
        partition
    }

    async fn stop(&self) {
        let partition = self.host.partition.lock().take();
        if let Some(partition) = partition {
            partition.shutdown().await;
        }
        self.links.shutdown().await;
        self.stop.cancel();
        self.store.close().unwrap();
    }
}
