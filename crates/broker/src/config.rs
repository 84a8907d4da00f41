//! How a node is set up.

use std::{net::SocketAddr, num::NonZeroU64, path::PathBuf, time::Duration};

use quipu_model::NodeId;
use quipu_storage::StoreConfig;

use crate::error::NodeAddress;

/// A fifth of what a disk of the cheaper kind gives.
const CATCH_UP_RATE: NonZeroU64 = NonZeroU64::MIN.saturating_add((64 << 20) - 1);

/// Which cluster a node belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Membership {
    /// A cluster of its own.
    #[default]
    Alone,
    /// It is one of a cluster's first nodes, which hold the cluster's metadata: these, itself among them.
    Voters(Vec<NodeAddress>),
    /// It joins a cluster of which these nodes, `host:port` each, are members.
    Join(Vec<String>),
}

/// How a node is set up. [`BrokerConfig::new`] gives every setting that is not named a default.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// This node's number in the cluster.
    pub node_id: NodeId,
    /// The cluster it belongs to. Once it is a member, only what its data directory says of that counts.
    pub membership: Membership,
    /// Where the node stands: replicas of a partition are spread over as many racks as there are. Empty: not said.
    pub rack: String,
    /// Where everything is kept; created where it is absent.
    pub data_dir: PathBuf,
    /// The gRPC listener. Port 0 takes any free port: [`Broker::addresses`](crate::Broker::addresses) tells which.
    pub grpc_listen: SocketAddr,
    /// The listener for metrics and health.
    pub http_listen: SocketAddr,
    /// `host:port` under which clients reach the gRPC listener; `None`: the listener's own address.
    pub advertised_grpc: Option<String>,
    /// The most bytes that requests of clients in flight may hold: half for what producers sent, half for what consumers are
    /// sent. Beside it, what is under way to and from other brokers may hold an eighth of it for each of them.
    pub memory_bytes: usize,
    /// The most gRPC connections of clients that are served at a time. The requests of others are refused as overload, which
    /// can be retried. Connections of other brokers do not count.
    pub max_connections: usize,
    /// How many bytes a second this node gives, at most, to replicas on other nodes that lack more than the newest records.
    pub catch_up_rate: NonZeroU64,
    /// How long requests in flight are waited for at shutdown.
    pub shutdown_grace: Duration,
    /// How often each partition's retention is looked at.
    pub retention_interval: Duration,
    /// The disk's settings.
    pub store: StoreConfig,
}

impl BrokerConfig {
    /// A node with default settings.
    pub fn new(
        node_id: NodeId,
        data_dir: PathBuf,
        grpc_listen: SocketAddr,
        http_listen: SocketAddr,
    ) -> Self {
        Self {
            node_id,
            membership: Membership::Alone,
            rack: String::new(),
            data_dir,
            grpc_listen,
            http_listen,
            advertised_grpc: None,
            memory_bytes: 512 << 20,
            max_connections: 4096,
            catch_up_rate: CATCH_UP_RATE,
            shutdown_grace: Duration::from_secs(10),
            retention_interval: Duration::from_secs(30),
            store: StoreConfig::default(),
        }
    }
}
