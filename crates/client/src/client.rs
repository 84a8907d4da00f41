//! The door to a cluster.

use std::{collections::HashSet, sync::Arc, time::Duration};

use quipu_model::ProducerId;
use tonic::transport::Channel;

use crate::{
    Admin, Consumer, ConsumerConfig, GroupConfig, GroupConsumer, NumberedProducer, Producer,
    ProducerConfig, Result,
    cluster::{Cluster, Dial, dial_tcp},
    error::Error,
    producer::identity,
};

/// Where the cluster is and how patient to be with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// `host:port` of the gRPC listeners of some nodes; one that answers is enough to find the others.
    pub brokers: Vec<String>,
    /// How long one attempt to connect may take. 1 s.
    pub connect_timeout: Duration,
    /// How long a broker may take to answer one request. 30 s.
    pub request_timeout: Duration,
    /// A connection with open streams is tried after this long in silence, and given up after as long again: a node that died
    /// without a word is left for another one within twice this time. 1 s.
    pub keep_alive: Duration,
    /// What the application calls itself: quotas are of this name. At most 255 visible ASCII characters. None, which is a name like
    /// any other to the quotas.
    pub client_id: String,
}

impl ClientConfig {
    /// Defaults, with these nodes to start from: `host:port`, or several separated by commas.
    pub fn new(brokers: &str) -> Self {
        let brokers = brokers.split(',').map(str::trim);
        Self {
            brokers: brokers
                .filter(|broker| !broker.is_empty())
                .map(str::to_owned)
                .collect(),
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(1),
            client_id: String::new(),
        }
    }
}

impl From<&str> for ClientConfig {
    fn from(brokers: &str) -> Self {
        Self::new(brokers)
    }
}

/// A cluster, seen from an application. Cheap to clone; clones share connections and what they learnt.
#[derive(Clone, Debug)]
pub struct Client {
    cluster: Arc<Cluster>,
}

impl Client {
    /// Connects to a cluster: `"host:9093"`, or a [`ClientConfig`].
    ///
    /// # Errors
    /// Where an address is not one, the client id is none, or none of the nodes answers.
    pub async fn connect(config: impl Into<ClientConfig>) -> Result<Self> {
        let config = config.into();
        let dial = dial_tcp(&config);
        let client = Self::from_dial(config, dial)?;
        let described = client.admin().describe_cluster().await?;
        let nodes = described.nodes.iter().map(|node| node.address.as_str());
        client
            .cluster
            .learn(nodes.filter(|address| !address.is_empty()));
        Ok(client)
    }

    /// A client over channels that the caller makes from `host:port`: for TLS, proxies and in-memory transports. A channel
    /// must connect again by itself after its connection broke, as those of tonic do.
    ///
    /// # Errors
    /// Where the configuration names no broker, or the client by what is no name.
    pub fn with_channels(
        config: impl Into<ClientConfig>,
        dial: impl Fn(&str) -> Channel + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::from_dial(config.into(), Arc::new(move |address| Ok(dial(address))))
    }

    fn from_dial(config: ClientConfig, dial: Dial) -> Result<Self> {
        if config.brokers.is_empty() {
            return Err(Error::invalid(
                "no broker address was given: write host:port",
            ));
        }
        let cluster = Arc::new(Cluster::new(config, dial)?);
        Ok(Self { cluster })
    }

    /// A producer. Idempotent unless told otherwise: it gets its identity here.
    ///
    /// # Errors
    /// Where the configuration is out of bounds, or no broker hands out an identity.
    pub async fn producer(&self, config: ProducerConfig) -> Result<Producer> {
        Producer::start(Arc::clone(&self.cluster), config).await
    }

    /// The id of a producer to be, which its user keeps: see [`NumberedProducer`].
    ///
    /// # Errors
    /// Where no broker hands one out.
    pub async fn new_producer_id(&self) -> Result<ProducerId> {
        Ok(identity::init(&self.cluster).await?.id)
    }

    /// The producer that numbers its batches for one partition, under an id from [`Client::new_producer_id`].
    pub fn numbered_producer(
        &self,
        topic: &str,
        partition: u32,
        id: ProducerId,
    ) -> NumberedProducer {
        NumberedProducer::new(Arc::clone(&self.cluster), topic, partition, id)
    }

    /// A consumer, without partitions yet: see [`Consumer::assign`].
    pub fn consumer(&self, config: ConsumerConfig) -> Consumer {
        Consumer::new(Arc::clone(&self.cluster), config)
    }

    /// A member of a group, which joins in the background.
    ///
    /// # Errors
    /// Where the configuration is out of bounds. That the group cannot be joined is told by the stream.
    pub fn group_consumer(&self, config: GroupConfig) -> Result<GroupConsumer> {
        self.group_consumer_from(config, HashSet::new())
    }

    /// The same; in these topics it begins with the first record wherever the group has stored no offset.
    pub(crate) fn group_consumer_from(
        &self,
        config: GroupConfig,
        earliest: HashSet<Arc<str>>,
    ) -> Result<GroupConsumer> {
        GroupConsumer::start(Arc::clone(&self.cluster), config, earliest)
    }

    /// Topics, offsets and the cluster itself.
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.cluster))
    }
}
