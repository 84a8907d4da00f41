//! A node's life: start, serve, stop.

use std::{future::Future, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use quipu_model::{NodeId, TopicConfig};
use quipu_replication::{NoPeers, Partition, Replicator};
use quipu_storage::{
    OpenError, PartitionDamage, RecoveryReport, StorageFailure, Store, UnrecoveredStore,
    io::{Clock, RealDisk, SystemClock},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    config::BrokerConfig,
    core::Core,
    error::{BrokerError, NodeFailure},
    grpc, http,
    memory::MemoryBudget,
    metadata::{
        Controller, METADATA_KEY, Metadata, MetadataImage, Reconciler, ReplayError, Replayer,
    },
    metrics::Metrics,
    partitions::PartitionTable,
    retention,
};

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("listening for {what} on {address}: {error}; give another address")]
    Listen {
        what: &'static str,
        address: SocketAddr,
        error: io::Error,
    },
    #[error("data directory {path}: {error}")]
    DataDirectory { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the cluster metadata is damaged: {0}")]
    MetadataDamaged(Arc<PartitionDamage>),
    #[error("the cluster metadata cannot be read: {0}")]
    MetadataUnreadable(String),
    #[error("the cluster metadata: {0}")]
    Metadata(#[from] BrokerError),
    #[error("a task of the start was cut short: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Where a node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

/// A running node.
#[derive(Debug)]
pub struct Broker {
    core: Arc<Core>,
    addresses: Addresses,
    recovery: RecoveryReport,
    failure: watch::Receiver<Option<NodeFailure>>,
    shutdown_grace: Duration,
    /// Cancelled after `core.stop`, so that health is told to the last.
    http_stop: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    background: Vec<JoinHandle<()>>,
}

impl Broker {
    /// Opens and recovers the data directory, starts every partition, and listens.
    ///
    /// # Errors
    /// Where an address is taken, the data directory cannot be opened, or the cluster's metadata cannot be read.
    pub async fn start(config: BrokerConfig) -> Result<Self, StartError> {
        let grpc_listener = listen("gRPC", config.grpc_listen).await?;
        let http_listener = listen("HTTP", config.http_listen).await?;
        let addresses = Addresses {
            grpc: local_address(&grpc_listener, config.grpc_listen)?,
            http: local_address(&http_listener, config.http_listen)?,
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let (store, recovery) = open_store(&config, Arc::clone(&clock)).await?;
        let (failure_sender, failure) = watch::channel(None);
        let failed = failure_sender.clone();
        store.on_failure(Box::new(move |cause| {
            tracing::error!(%cause, "the store failed");
            failed.send_replace(Some(cause.into()));
        }));

        let mut registry = Registry::with_prefix("quipu");
        store.register_metrics(&mut registry);
        let metrics = Metrics::new(&mut registry);
        let stop = CancellationToken::new();
        let replicator = Replicator::new(config.node_id, Arc::clone(&store), Arc::new(NoPeers));
        replicator.register_metrics(&mut registry);
        let parts = Parts::start(
            config.node_id,
            &store,
            replicator,
            &clock,
            &stop,
            failure_sender,
        )
        .await?;
        let address = advertised(&config, addresses.grpc);
        parts
            .controller
            .register(&address, store.directory_id())
            .await?;

        let core = Arc::new(Core {
            node: config.node_id,
            store,
            clock,
            table: parts.table,
            metadata: parts.metadata,
            controller: parts.controller,
            metrics,
            produce_memory: MemoryBudget::new(config.memory_bytes / 2),
            fetch_memory: MemoryBudget::new(config.memory_bytes / 2),
            stop,
        });
        let mut background = parts.background;
        let retention = retention::run(Arc::clone(&core), config.retention_interval);
        background.push(tokio::spawn(retention));
        let http_stop = CancellationToken::new();
        let servers = vec![
            spawn_grpc(&core, grpc_listener, config.max_connections),
            spawn_http(&core, http_listener, registry, http_stop.clone()),
        ];
        tracing::info!(
            node = %core.node,
            grpc = %addresses.grpc,
            http = %addresses.http,
            partitions = recovery.partitions,
            recovery_ms = recovery.took_ms,
            "the broker is up"
        );
        Ok(Self {
            core,
            addresses,
            recovery,
            failure,
            shutdown_grace: config.shutdown_grace,
            http_stop,
            servers,
            background,
        })
    }

    /// Where the node listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What opening the data directory found.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// Resolves when the node can go on no more: the process must end then, without [`Broker::shutdown`].
    pub fn failed(&self) -> impl Future<Output = NodeFailure> + Send + 'static {
        let mut failure = self.failure.clone();
        async move {
            let cause = failure.wait_for(Option::is_some).await;
            let cause = cause.ok().and_then(|cause| cause.clone());
            match cause {
                Some(cause) => cause,
                // The senders are gone: the node was shut down, and can fail no more.
                None => std::future::pending().await,
            }
        }
    }

    /// Stops accepting, lets requests in flight finish (for at most the configured grace), stops the partitions, and
    /// checkpoints.
    ///
    /// # Errors
    /// Where the disk fails on the way. Whatever was acknowledged is safe all the same.
    pub async fn shutdown(self) -> Result<(), StorageFailure> {
        tracing::info!("shutting down");
        self.core.stop.cancel();
        let mut servers = self.servers.into_iter();
        if let Some(mut grpc) = servers.next()
            && tokio::time::timeout(self.shutdown_grace, &mut grpc)
                .await
                .is_err()
        {
            tracing::warn!(
                "requests were still in flight after {:?}: cut",
                self.shutdown_grace
            );
            grpc.abort();
        }
        for task in self.background {
            task.abort();
            // Aborted or ended: either way it no longer touches the partitions.
            let _ = task.await;
        }
        stop_partitions(&self.core.table).await;
        let store = Arc::clone(&self.core.store);
        let closed = tokio::task::spawn_blocking(move || store.close()).await;
        self.http_stop.cancel();
        for http in servers {
            http.abort();
            let _ = http.await;
        }
        tracing::info!("the broker is down");
        closed.unwrap_or(Ok(()))
    }
}

async fn listen(what: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| StartError::Listen {
            what,
            address,
            error,
        })
}

fn local_address(listener: &TcpListener, address: SocketAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| StartError::Listen {
        what: "its own address",
        address,
        error,
    })
}

/// Where clients reach the gRPC listener. A listener on all addresses is reached on this machine's loopback, for want of
/// better knowledge.
fn advertised(config: &BrokerConfig, listening: SocketAddr) -> String {
    config.advertised_grpc.clone().unwrap_or_else(|| {
        if listening.ip().is_unspecified() {
            format!("localhost:{}", listening.port())
        } else {
            listening.to_string()
        }
    })
}

async fn open_store(
    config: &BrokerConfig,
    clock: Arc<dyn Clock>,
) -> Result<(Arc<Store>, RecoveryReport), StartError> {
    let path = config.data_dir.clone();
    let store = config.store.clone();
    tokio::task::spawn_blocking(move || {
        let disk =
            RealDisk::new(&path).map_err(|error| StartError::DataDirectory { path, error })?;
        let (store, report) = UnrecoveredStore::open(Arc::new(disk), clock, store)?.recover()?;
        if report.torn_bytes > 0 || report.records_replayed > 0 {
            tracing::info!(?report, "the data directory was recovered");
        }
        Ok((Arc::new(store), report))
    })
    .await?
}

/// What a node is made of below its servers.
struct Parts {
    table: Arc<PartitionTable>,
    metadata: Arc<Metadata>,
    controller: Controller,
    background: Vec<JoinHandle<()>>,
}

impl Parts {
    const LEADER_WAIT: Duration = Duration::from_secs(30);

    /// Starts the metadata partition, replays it, then starts all partitions that it assigns here.
    async fn start(
        node: NodeId,
        store: &Arc<Store>,
        replicator: Replicator,
        clock: &Arc<dyn Clock>,
        stop: &CancellationToken,
        failure: watch::Sender<Option<NodeFailure>>,
    ) -> Result<Self, StartError> {
        let metadata = Arc::new(Metadata::new(&[node]));
        let partition = start_metadata(&replicator, &metadata).await?;
        let mut replayer = Replayer::new(partition.clone(), Arc::clone(&metadata));
        let unreadable = |error: ReplayError| StartError::MetadataUnreadable(error.to_string());
        replayer.catch_up().await.map_err(unreadable)?;

        let table = Arc::new(PartitionTable::default());
        let reconciler = Arc::new(Reconciler {
            node,
            store: Arc::clone(store),
            replicator,
            table: Arc::clone(&table),
            metadata: Arc::clone(&metadata),
            stop: stop.clone(),
            reconciled: watch::Sender::default(),
        });
        reconciler.remove_leftovers(&replayer.take_deleted()).await;
        reconciler.adopt_metadata(partition.clone());
        reconciler.reconcile().await;
        let controller = Controller::new(
            node,
            partition,
            Arc::clone(&metadata),
            reconciler.reconciled.subscribe(),
            Arc::clone(clock),
        );
        let background = vec![
            tokio::spawn(reconciler.follow()),
            tokio::spawn(follow_metadata(replayer, failure)),
        ];
        Ok(Self {
            table,
            metadata,
            controller,
            background,
        })
    }
}

async fn start_metadata(
    replicator: &Replicator,
    metadata: &Metadata,
) -> Result<Partition, StartError> {
    let image = metadata.image();
    let topic = image
        .topics()
        .find(|topic| topic.id == MetadataImage::TOPIC_ID);
    let (voters, config) = topic.map_or((Box::default(), TopicConfig::default()), |topic| {
        let voters = topic.assignments.first().cloned().unwrap_or_default();
        (voters, topic.config.clone())
    });
    let partition = replicator
        .start(METADATA_KEY, &voters, config)
        .await
        .map_err(BrokerError::from)?;
    if let Some(damage) = partition.damage() {
        return Err(StartError::MetadataDamaged(damage));
    }
    let led = partition.wait_leader(Parts::LEADER_WAIT).await;
    led.map_err(BrokerError::from)?;
    Ok(partition)
}

async fn follow_metadata(replayer: Replayer, failure: watch::Sender<Option<NodeFailure>>) {
    if let Err(error) = replayer.follow().await {
        tracing::error!(%error, "the metadata cannot be followed");
        failure.send_replace(Some(NodeFailure::Metadata {
            key: METADATA_KEY,
            detail: error.to_string(),
        }));
    }
}

fn spawn_grpc(core: &Arc<Core>, listener: TcpListener, max_connections: usize) -> JoinHandle<()> {
    let server = grpc::Server {
        core: Arc::clone(core),
        listener,
        max_connections,
    };
    tokio::spawn(async move {
        if let Err(error) = grpc::serve(server).await {
            tracing::error!(%error, "the gRPC server ended");
        }
    })
}

fn spawn_http(
    core: &Arc<Core>,
    listener: TcpListener,
    registry: Registry,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let serving = http::serve(listener, Arc::clone(core), registry, stop);
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "the HTTP server ended");
        }
    })
}

/// Stops all partitions, the metadata's last.
async fn stop_partitions(table: &PartitionTable) {
    let topics = table.snapshot();
    let running = |metadata: bool| {
        topics
            .values()
            .filter(move |topic| (topic.topic.id == METADATA_KEY.topic) == metadata)
            .flat_map(|topic| topic.running())
            .map(|running| running.partition.shutdown())
    };
    futures::future::join_all(running(false)).await;
    futures::future::join_all(running(true)).await;
}
