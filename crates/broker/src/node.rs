//! A node's life: start, serve, stop.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::registry::Registry;
use quipu_replication::{Replicator, Transport};
use quipu_storage::{
    RecoveryReport, StorageFailure, Store, UnrecoveredStore,
    io::{Clock, RealDisk, SystemClock},
};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cluster::{AddressBook, NodeHost},
    config::BrokerConfig,
    core::{Core, Quotas},
    error::NodeFailure,
    front::Front,
    groups::{Groups, Limits},
    grpc, http,
    memory::MemoryBudget,
    metadata::Metadata,
    metrics::Metrics,
    partitions::{PartitionTable, stop_partitions},
    peer::{self, PeerLinks, Throttle},
    standing::Standing,
    startup::{Place, StartError, Startup},
};

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
    links: Arc<PeerLinks>,
    addresses: Addresses,
    recovery: RecoveryReport,
    failure: watch::Receiver<Option<NodeFailure>>,
    shutdown_grace: Duration,
    /// Cancelled after `core.stop`, so that health is told to the last.
    http_stop: CancellationToken,
    /// What clients talk to.
    fronts: Vec<JoinHandle<()>>,
    http: JoinHandle<()>,
    background: TaskTracker,
}

impl Broker {
    /// Opens and recovers the data directory and listens. A node alone has then started every partition; one of several goes on
    /// to find its cluster in the background, since that may take until others are started: `/readyz` says when it has.
    ///
    /// # Errors
    /// Where an address is taken, the settings contradict each other, the data directory cannot be opened, or the cluster's
    /// metadata cannot be read.
    pub async fn start(config: BrokerConfig) -> Result<Self, StartError> {
        let grpc_listener = listen("gRPC", config.grpc_listen).await?;
        let http_listener = listen("HTTP", config.http_listen).await?;
        let addresses = Addresses {
            grpc: local_address(&grpc_listener, config.grpc_listen)?,
            http: local_address(&http_listener, config.http_listen)?,
        };
        let advertised = advertised(&config, addresses.grpc);
        let place = Place::new(&config, advertised)?;
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
        let standing = Standing::new(&mut registry);
        let links = PeerLinks::new(config.node_id, peer::lane_bytes(config.memory_bytes));
        let transport: Arc<dyn Transport> = Arc::clone(&links) as _;
        let replicator = Replicator::new(config.node_id, Arc::clone(&store), transport);
        replicator.register_metrics(&mut registry);
        let metadata = Arc::new(Metadata::new(&place.founders()));
        let book = AddressBook::new(config.node_id, &place.voters, Arc::clone(&metadata));
        let book = Arc::new(book);
        let linked = watch::Sender::default();
        let stop = CancellationToken::new();
        let groups = Groups::new(config.node_id, Arc::clone(&clock), group_limits(&config));
        let core = Arc::new(Core {
            node: config.node_id,
            store,
            clock,
            table: Arc::new(PartitionTable::new(config.node_id)),
            quotas: Quotas::new(Arc::clone(&metadata), &mut registry),
            metadata,
            leaders: Arc::default(),
            groups: Arc::new(groups),
            book,
            linked: linked.subscribe(),
            controller: OnceLock::new(),
            ready: watch::Sender::new(false),
            replicator: replicator.clone(),
            metrics,
            standing,
            produce_memory: MemoryBudget::new(config.memory_bytes / 2),
            fetch_memory: MemoryBudget::new(config.memory_bytes / 2),
            removed: watch::Sender::new(false),
            serving: stop.child_token(),
            stop,
        });
        let host = Arc::new(NodeHost {
            node: config.node_id,
            founders: place.founders(),
            store: Arc::clone(&core.store),
            table: Arc::clone(&core.table),
            metadata: Arc::clone(&core.metadata),
            leaders: Arc::clone(&core.leaders),
            replicator: replicator.clone(),
            linked,
            copying: Throttle::new(config.catch_up_rate),
            refusal: watch::Sender::new(None),
        });
        links.start(Arc::clone(&host) as _);
        links.set_peers(core.book.others());
        let http_stop = CancellationToken::new();
        let broker = Self {
            fronts: vec![spawn_grpc(&core, &host, grpc_listener, &config)],
            http: spawn_http(&core, http_listener, registry, http_stop.clone()),
            core: Arc::clone(&core),
            links: Arc::clone(&links),
            addresses,
            recovery,
            failure,
            shutdown_grace: config.shutdown_grace,
            http_stop,
            background: TaskTracker::new(),
        };
        let startup = Startup {
            core,
            host,
            links,
            replicator,
            place,
            retention_interval: config.retention_interval,
            failure: failure_sender,
            background: broker.background.clone(),
        };
        broker.begin(startup).await
    }

    /// Alone, the node waits until it serves; with others, they may have to be started first.
    async fn begin(self, startup: Startup) -> Result<Self, StartError> {
        if startup.place.is_alone() {
            if let Err(error) = startup.run().await {
                self.abandon().await;
                return Err(error);
            }
        } else {
            let (failure, stop) = (startup.failure.clone(), self.core.stop.clone());
            self.background.spawn(async move {
                let started = tokio::select! {
                    () = stop.cancelled() => return,
                    started = startup.run() => started,
                };
                if let Err(error) = started {
                    tracing::error!(%error, "the node did not start");
                    failure.send_replace(Some(NodeFailure::Start(error.to_string())));
                }
            });
        }
        tracing::info!(
            node = %self.core.node,
            grpc = %self.addresses.grpc,
            http = %self.addresses.http,
            partitions = self.recovery.partitions,
            recovery_ms = self.recovery.took_ms,
            "the broker is up"
        );
        Ok(self)
    }

    /// Ends what runs of a node that did not start.
    async fn abandon(self) {
        self.core.stop.cancel();
        self.http_stop.cancel();
        for server in self.fronts.into_iter().chain([self.http]) {
            server.abort();
            let _ = server.await;
        }
        self.links.shutdown().await;
        stop_partitions(&self.core.table).await;
    }

    /// Where the node listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Lets clients reach the node through another front: `serve` is to go on until [`Front::stopping`] resolves, and then to
    /// finish what is in flight.
    pub fn attach<S>(&mut self, serve: impl FnOnce(Front) -> S)
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let front = Front::new(Arc::clone(&self.core));
        self.fronts.push(tokio::spawn(serve(front)));
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

    /// Hands its partitions over to other nodes, stops accepting, lets requests in flight finish (for at most the configured
    /// grace), stops the partitions, and checkpoints.
    ///
    /// # Errors
    /// Where the disk fails on the way. Whatever was acknowledged is safe all the same.
    pub async fn shutdown(self) -> Result<(), StorageFailure> {
        tracing::info!("shutting down");
        hand_over(&self.core.table, self.shutdown_grace).await;
        self.core.stop.cancel();
        let deadline = Instant::now() + self.shutdown_grace;
        for mut front in self.fronts {
            if timeout_at(deadline, &mut front).await.is_err() {
                tracing::warn!(
                    "requests were still in flight after {:?}: cut",
                    self.shutdown_grace
                );
                front.abort();
            }
        }
        self.background.close();
        self.background.wait().await;
        stop_partitions(&self.core.table).await;
        self.links.shutdown().await;
        let store = Arc::clone(&self.core.store);
        let closed = tokio::task::spawn_blocking(move || store.close()).await;
        self.http_stop.cancel();
        self.http.abort();
        let _ = self.http.await;
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

fn group_limits(config: &BrokerConfig) -> Limits {
    Limits {
        offsets_retention: config.offsets_retention,
        ..Limits::default()
    }
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

fn spawn_grpc(
    core: &Arc<Core>,
    host: &Arc<NodeHost>,
    listener: TcpListener,
    config: &BrokerConfig,
) -> JoinHandle<()> {
    let server = grpc::Server {
        core: Arc::clone(core),
        host: Arc::clone(host),
        listener,
        max_connections: config.max_connections,
        lane_bytes: peer::lane_bytes(config.memory_bytes),
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

/// Lets other nodes lead what this one leads.
async fn hand_over(table: &PartitionTable, patience: Duration) {
    let topics = table.snapshot();
    let led = topics.values().flat_map(|topic| topic.running());
    let led = led.filter(|running| running.partition.is_leader());
    let handing = led.map(|running| async {
        let partition = &running.partition;
        if let Err(error) = partition.hand_over(patience).await {
            tracing::info!(key = %partition.key(), %error, "no other node leads yet");
        }
    });
    futures::future::join_all(handing).await;
}
