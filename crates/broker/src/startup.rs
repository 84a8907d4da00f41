//! How a node finds its place in a cluster, from an open data directory to a node that serves.

use std::{collections::HashSet, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use quipu_model::{NodeId, TopicConfig};
use quipu_proto::peer::v1::RegisterNode;
use quipu_replication::{Origin, Partition, Replicator};
use quipu_storage::{OpenError, PartitionDamage};
use tokio::sync::{Notify, watch};
use tokio_util::task::TaskTracker;

use crate::{
    cluster::{
        ChangeCarrier, Formation, LeadershipWatcher, MetadataMembers, NodeHost, Registration,
        Removal, Steward, form,
    },
    config::{BrokerConfig, Membership},
    core::Core,
    error::{BrokerError, NodeAddress, NodeFailure, Reason},
    metadata::{
        Carrier, Controller, METADATA_KEY, MetadataImage, Reconciler, ReplayError, Replayer,
    },
    peer::PeerLinks,
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
    #[error(
        "--voters do not name node {0}: name every one of the first nodes, this one too, as id@host:port"
    )]
    NotAVoter(NodeId),
    #[error("--voters name node {0} twice")]
    VoterTwice(NodeId),
    #[error("{0}")]
    Refused(String),
    #[error("a task of the start was cut short: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// A node's place in its cluster, as it was told.
#[derive(Debug)]
pub(crate) struct Place {
    node: NodeId,
    advertised: String,
    advertised_kafka: String,
    rack: String,
    /// The nodes that begin the cluster's metadata; none where this one joins.
    pub(crate) voters: Vec<NodeAddress>,
    /// Whom to ask about the cluster.
    seeds: Vec<String>,
}

impl Place {
    /// # Errors
    /// Where the settings contradict each other.
    pub(crate) fn new(config: &BrokerConfig, advertised: String) -> Result<Self, StartError> {
        let node = config.node_id;
        let (voters, seeds) = match &config.membership {
            Membership::Alone => {
                let alone = NodeAddress {
                    id: node,
                    address: advertised.clone(),
                };
                (vec![alone], Vec::new())
            }
            Membership::Voters(voters) => {
                let mut seen = HashSet::new();
                if let Some(twice) = voters.iter().find(|voter| !seen.insert(voter.id)) {
                    return Err(StartError::VoterTwice(twice.id));
                }
                if !seen.contains(&node) {
                    return Err(StartError::NotAVoter(node));
                }
                let others = voters.iter().filter(|voter| voter.id != node);
                (voters.clone(), others.map(|v| v.address.clone()).collect())
            }
            Membership::Join(seeds) => (Vec::new(), seeds.clone()),
        };
        Ok(Self {
            node,
            advertised,
            advertised_kafka: config.advertised_kafka.clone().unwrap_or_default(),
            rack: config.rack.clone(),
            voters,
            seeds,
        })
    }

    /// Whether no other node is needed.
    pub(crate) fn is_alone(&self) -> bool {
        self.voters.len() == 1
    }

    /// The first voters on the metadata.
    pub(crate) fn founders(&self) -> Box<[NodeId]> {
        self.voters.iter().map(|voter| voter.id).collect()
    }
}

/// What a node needs to find its place.
#[derive(Debug)]
pub(crate) struct Startup {
    pub(crate) core: Arc<Core>,
    pub(crate) host: Arc<NodeHost>,
    pub(crate) links: Arc<PeerLinks>,
    pub(crate) replicator: Replicator,
    pub(crate) place: Place,
    pub(crate) retention_interval: Duration,
    pub(crate) failure: watch::Sender<Option<NodeFailure>>,
    /// What goes on until the node stops.
    pub(crate) background: TaskTracker,
}

impl Startup {
    const LEADER_WAIT: Duration = Duration::from_secs(30);

    /// Starts the metadata partition, replays it, starts all partitions that it assigns here, and registers the node.
    ///
    /// # Errors
    /// Where the metadata cannot be read, or the cluster refuses this node.
    pub(crate) async fn run(self) -> Result<(), StartError> {
        let core = &self.core;
        self.wait_for_voters().await?;
        let partition = self.start_metadata().await?;
        let mut replayer = Replayer::new(partition.clone(), Arc::clone(&core.metadata));
        let unreadable = |error: ReplayError| StartError::MetadataUnreadable(error.to_string());
        replayer.catch_up().await.map_err(unreadable)?;

        let wake = Arc::new(Notify::new());
        let reconciler = self.reconciler(&wake);
        reconciler.remove_deleted(&replayer.take_deleted()).await;
        reconciler.adopt_metadata(partition.clone());
        reconciler.reconcile().await;
        let carrier: Arc<dyn Carrier> = Arc::new(ChangeCarrier {
            book: Arc::clone(&core.book),
        });
        let registration = Arc::new(self.registration(Arc::clone(&carrier)));
        let controller = Controller::new(
            core.node,
            partition.clone(),
            Arc::clone(&core.metadata),
            reconciler.reconciled.subscribe(),
            Arc::clone(&core.clock),
            carrier,
        );
        // Set once: a node starts once.
        let _ = core.controller.set(controller);
        self.go_on(replayer, &reconciler, partition, wake);
        self.watch_for_removal(&registration);
        let mut removed = core.removed.subscribe();
        let registered = tokio::select! {
            registered = self.register(&registration) => registered,
            _ = removed.wait_for(|removed| *removed) => return Ok(()),
        };
        match registered {
            Err(error) if error.reason == Reason::NodeRemoved => {
                core.removed.send_replace(true);
                return Ok(());
            }
            registered => registered?,
        }
        reconciler.caught_up().await;
        core.ready.send_replace(true);
        Ok(())
    }

    /// Before a cluster's very first start; see [`form`].
    async fn wait_for_voters(&self) -> Result<(), StartError> {
        let log = self.core.store.partition(METADATA_KEY);
        let begun = log.is_some_and(|log| log.state().last.is_some() || log.vote().is_some());
        if begun || self.place.voters.is_empty() {
            return Ok(());
        }
        match form(&self.host, &self.place.founders()).await {
            Formation::Ready => Ok(()),
            Formation::Refused(reason) => Err(StartError::Refused(reason)),
        }
    }

    async fn start_metadata(&self) -> Result<Partition, StartError> {
        let image = self.core.metadata.image();
        let topic = image.topic_by_id(MetadataImage::TOPIC_ID);
        let config = topic.map_or_else(TopicConfig::default, |topic| topic.config.clone());
        let founders = self.place.founders();
        let origin = match &*founders {
            [] => Origin::Joiner(None),
            founders => Origin::Founder(founders),
        };
        let starting = self.replicator.start(METADATA_KEY, origin, config);
        let partition = starting.await.map_err(BrokerError::from)?;
        if !self.place.is_alone() {
            partition.wait_sound().await;
        }
        if let Some(damage) = partition.damage() {
            return Err(StartError::MetadataDamaged(damage));
        }
        if self.place.is_alone() {
            let led = partition.wait_leader(Self::LEADER_WAIT).await;
            led.map_err(BrokerError::from)?;
        }
        Ok(partition)
    }

    fn reconciler(&self, wake: &Arc<Notify>) -> Arc<Reconciler> {
        let core = &self.core;
        let watcher = LeadershipWatcher {
            node: core.node,
            links: Arc::clone(&self.links),
            leaders: Arc::clone(&core.leaders),
            steward: Arc::clone(wake),
            leaderships: core.standing.leaderships.clone(),
            groups: Arc::clone(&core.groups),
        };
        Arc::new(Reconciler {
            node: core.node,
            store: Arc::clone(&core.store),
            replicator: self.replicator.clone(),
            table: Arc::clone(&core.table),
            metadata: Arc::clone(&core.metadata),
            stop: core.serving.clone(),
            reconciled: watch::Sender::default(),
            caught_up: watch::Sender::new(false),
            watcher: Arc::new(watcher),
        })
    }

    /// Begins what goes on until the node stops.
    fn go_on(
        &self,
        replayer: Replayer,
        reconciler: &Arc<Reconciler>,
        partition: Partition,
        wake: Arc<Notify>,
    ) {
        let core = &self.core;
        let spawn = |task| drop(self.background.spawn(task));
        spawn(boxed(core, Arc::clone(reconciler).follow()));
        spawn(boxed(core, follow_metadata(replayer, self.failure.clone())));
        spawn(boxed(
            core,
            retention::run(Arc::clone(core), self.retention_interval),
        ));
        let groups = Arc::clone(&core.groups);
        spawn(boxed(
            core,
            groups.follow_topics(Arc::clone(&core.metadata)),
        ));
        let (links, following) = (Arc::clone(&self.links), Arc::clone(core));
        spawn(boxed(core, follow_addresses(links, following)));
        let steward = Steward {
            members: MetadataMembers {
                node: core.node,
                partition,
                metadata: Arc::clone(&core.metadata),
            },
            core: Arc::clone(core),
            wake,
            linked: self.host.linked.subscribe(),
        };
        spawn(boxed(core, steward.run()));
    }

    /// Beside the other tasks: their end is among what it does.
    fn watch_for_removal(&self, registration: &Arc<Registration>) {
        let removal = Removal {
            core: Arc::clone(&self.core),
            links: Arc::clone(&self.links),
            registration: Arc::clone(registration),
            refusal: self.host.refusal.subscribe(),
        };
        self.background.spawn(removal.run());
    }

    fn registration(&self, carrier: Arc<dyn Carrier>) -> Registration {
        Registration {
            node: RegisterNode {
                node_id: self.place.node.get(),
                address: self.place.advertised.clone(),
                directory_id: self.core.store.directory_id().to_vec().into(),
                rack: self.place.rack.clone(),
                kafka_address: self.place.advertised_kafka.clone(),
            },
            seeds: self.place.seeds.clone(),
            book: Arc::clone(&self.core.book),
            carrier,
        }
    }

    /// Registers the node, and waits until the image has all that was decided before.
    async fn register(&self, registration: &Registration) -> Result<(), BrokerError> {
        let controller = self.core.controller()?;
        let registered = registration
            .register(controller, &self.core.metadata)
            .await?;
        let mut applied = self.core.metadata.applied();
        // The sender lives as long as the image.
        let _ = applied.wait_for(|applied| *applied >= registered).await;
        Ok(())
    }
}

type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task that the node's stop ends, or its removal.
fn boxed(core: &Arc<Core>, task: impl Future<Output = ()> + Send + 'static) -> Task {
    let stop = core.serving.clone();
    Box::pin(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = task => {}
        }
    })
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

/// Keeps the links those to the nodes that are registered, and forgets who led what is no more.
async fn follow_addresses(links: Arc<PeerLinks>, core: Arc<Core>) {
    let mut applied = core.metadata.applied();
    applied.mark_changed();
    while applied.changed().await.is_ok() {
        links.set_peers(core.book.others());
        let image = core.metadata.image();
        core.leaders.retain(|key| image.assignment(key).is_some());
    }
}
