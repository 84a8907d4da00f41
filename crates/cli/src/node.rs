//! `quipu dev` and `quipu server`: a broker from start to stop.

use std::{
    io::{Write, stdout},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use quipu_broker::{Broker, BrokerConfig};
use quipu_kafka::KafkaListener;
use quipu_model::NodeId;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::settings::{FileSettings, NodeSettings};

const KAFKA_PORT: u16 = 9092;
const GRPC_PORT: u16 = 9093;
const HTTP_PORT: u16 = 9094;

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    #[command(flatten)]
    settings: NodeSettings,
}

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// This node's number: from 1, and never that of another node
    #[arg(long, env = "QUIPU_NODE_ID", value_name = "N")]
    node_id: Option<u64>,
    /// A TOML file with these settings: node_id, data_dir, kafka_listen, kafka_advertise, kafka_auto_create_topics, grpc_listen, http_listen, advertised_grpc, voters, join, rack, max_connections, memory, catch_up_rate, compaction_rate. Variables and flags win over it
    #[arg(long, env = "QUIPU_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: NodeSettings,
}

/// Runs until a signal or a failure.
pub(crate) async fn dev(args: DevArgs) -> Result<()> {
    let defaults = NodeSettings {
        data_dir: Some("./quipu-data".into()),
        kafka_listen: Some(SocketAddr::from(([127, 0, 0, 1], KAFKA_PORT))),
        grpc_listen: Some(SocketAddr::from(([127, 0, 0, 1], GRPC_PORT))),
        http_listen: Some(SocketAddr::from(([127, 0, 0, 1], HTTP_PORT))),
        ..NodeSettings::default()
    };
    let settings = args.settings.or(defaults);
    let mut config = broker_config(NodeId::new(1), &settings)?;
    let data_dir = config.data_dir.clone();
    let kafka = listen_for_kafka(&settings, &mut config).await?;
    let address = kafka.address();
    serve(config, kafka, |broker| greet(broker, address, &data_dir)).await
}

/// Runs until a signal or a failure.
pub(crate) async fn server(args: ServerArgs) -> Result<()> {
    let file = match &args.config {
        Some(path) => read_file(path)?,
        None => FileSettings::default(),
    };
    let node_id = args.node_id.or(file.node_id);
    let node_id = node_id.context("which node is this? give --node-id N")?;
    ensure!(node_id > 0, "--node-id is 0: number nodes from 1");
    let defaults = NodeSettings {
        kafka_listen: Some(SocketAddr::from(([0, 0, 0, 0], KAFKA_PORT))),
        grpc_listen: Some(SocketAddr::from(([0, 0, 0, 0], GRPC_PORT))),
        http_listen: Some(SocketAddr::from(([0, 0, 0, 0], HTTP_PORT))),
        ..NodeSettings::default()
    };
    let settings = args.settings.or(file.node).or(defaults);
    let mut config = broker_config(NodeId::new(node_id), &settings)?;
    let kafka = listen_for_kafka(&settings, &mut config).await?;
    serve(config, kafka, |_| ()).await
}

#[allow(
    clippy::disallowed_methods,
    reason = "the configuration is read once, before there is a node whose disk could be simulated"
)]
fn read_file(path: &Path) -> Result<FileSettings> {
    let name = || format!("configuration file {}", path.display());
    let text = std::fs::read_to_string(path).with_context(name)?;
    FileSettings::parse(&text).with_context(name)
}

/// Binds the Kafka listener before there is a node: the cluster is told its address.
async fn listen_for_kafka(
    settings: &NodeSettings,
    config: &mut BrokerConfig,
) -> Result<KafkaListener> {
    let address = settings.kafka_listen.context("give --kafka-listen")?;
    let bound = KafkaListener::bind(address, settings.kafka()).await;
    let listener = bound.with_context(|| {
        format!("listening for Kafka clients on {address}; give another --kafka-listen")
    })?;
    let advertised = settings.kafka_advertise.clone();
    config.advertised_kafka = Some(advertised.unwrap_or_else(|| listener.reached_at()));
    Ok(listener)
}

fn broker_config(node_id: NodeId, settings: &NodeSettings) -> Result<BrokerConfig> {
    let memory = settings.memory_bytes()?;
    let catch_up_rate = settings.catch_up_bytes()?;
    let compaction_rate = settings.compaction_bytes()?;
    let membership = settings.membership(node_id)?;
    let missing = |flag: &str| format!("give {flag}");
    let mut config = BrokerConfig::new(
        node_id,
        settings
            .data_dir
            .clone()
            .with_context(|| missing("--data-dir"))?,
        settings
            .grpc_listen
            .with_context(|| missing("--grpc-listen"))?,
        settings
            .http_listen
            .with_context(|| missing("--http-listen"))?,
    );
    config.membership = membership;
    config.rack = settings.rack.clone().unwrap_or_default();
    config.advertised_grpc = settings.advertised_grpc.clone();
    if let Some(most) = settings.max_connections {
        config.max_connections = most;
    }
    if let Some(memory) = memory {
        config.memory_bytes = memory;
    }
    if let Some(rate) = catch_up_rate {
        config.catch_up_rate = rate;
    }
    if let Some(rate) = compaction_rate {
        config.store.compaction_bytes_per_second = rate as u64;
    }
    Ok(config)
}

async fn serve(
    config: BrokerConfig,
    kafka: KafkaListener,
    ready: impl FnOnce(&Broker),
) -> Result<()> {
    let mut signals = Signals::new()?;
    let mut broker = tokio::select! {
        broker = Broker::start(config) => broker?,
        () = signals.next() => return Ok(()),
    };
    broker.attach(|front| kafka.serve(front));
    ready(&broker);
    tokio::select! {
        () = signals.next() => {}
        failure = broker.failed() => return Err(anyhow!("{failure}")),
    }
    tokio::select! {
        stopped = broker.shutdown() => Ok(stopped?),
        () = signals.next() => Err(anyhow!("stopped at once by a second signal; what was acknowledged is safe")),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn greet(broker: &Broker, kafka: SocketAddr, data_dir: &Path) {
    let addresses = broker.addresses();
    let broker_flag = match addresses.grpc.port() {
        GRPC_PORT => String::new(),
        _ => format!(" --broker {}", addresses.grpc),
    };
    let text = format!(
        "quipu {} is ready; data in {}\n  Kafka    {kafka}\n  gRPC     {}\n  metrics  http://{}/metrics\n\nTry, in another terminal:\n  quipu topic create hello --partitions 3{broker_flag}\n  echo 'first knot' | quipu produce hello{broker_flag}\n  quipu consume hello{broker_flag}\n",
        env!("CARGO_PKG_VERSION"),
        data_dir.display(),
        addresses.grpc,
        addresses.http,
    );
    // A broker goes on where nobody reads its greeting.
    let _ = stdout().write_all(text.as_bytes());
}
