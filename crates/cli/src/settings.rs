//! A node's settings: defaults, overridden by a file, overridden by variables and flags.

use std::{net::SocketAddr, num::NonZeroU64, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use quipu_broker::{Membership, NodeAddress};
use quipu_kafka::KafkaConfig;
use quipu_model::NodeId;
use serde::Deserialize;

use crate::values::parse_bytes;

/// What can be set for a node in every way; absent: not said here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeSettings {
    /// Where everything is kept; created if absent
    #[arg(long, env = "QUIPU_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where clients are served
    #[arg(long, env = "QUIPU_GRPC_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) grpc_listen: Option<SocketAddr>,
    /// Where metrics and health are served
    #[arg(long, env = "QUIPU_HTTP_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) http_listen: Option<SocketAddr>,
    /// The address that clients are told to reach this node at; the listener's own if not given
    #[arg(long, env = "QUIPU_ADVERTISED_GRPC", value_name = "HOST:PORT")]
    pub(crate) advertised_grpc: Option<String>,
    /// Where Kafka clients are served
    #[arg(long, env = "QUIPU_KAFKA_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) kafka_listen: Option<SocketAddr>,
    /// The address that Kafka clients are told to reach this node at; the listener's own if not given
    #[arg(long, env = "QUIPU_KAFKA_ADVERTISE", value_name = "HOST:PORT")]
    pub(crate) kafka_advertise: Option<String>,
    /// Whether a Kafka client that asks for a topic creates it: true if not given, as with Kafka
    #[arg(
        long,
        env = "QUIPU_KAFKA_AUTO_CREATE_TOPICS",
        value_name = "true|false"
    )]
    pub(crate) kafka_auto_create_topics: Option<bool>,
    /// The first nodes of a cluster, this one among them; the same on each: 1@host1:9093,2@host2:9093,3@host3:9093
    #[arg(long, env = "QUIPU_VOTERS", value_name = "ID@HOST:PORT,…")]
    pub(crate) voters: Option<String>,
    /// The addresses of members of a cluster that this node is to join: host1:9093,host2:9093. Beside --voters it is for nodes
    /// that those do not name, so that all nodes can have the same settings
    #[arg(long, env = "QUIPU_JOIN", value_name = "HOST:PORT,…")]
    pub(crate) join: Option<String>,
    /// Where the node stands: replicas are spread over as many racks as there are
    #[arg(long, env = "QUIPU_RACK", value_name = "NAME")]
    pub(crate) rack: Option<String>,
    /// The most gRPC connections of clients served at a time, and the most Kafka connections
    #[arg(long, env = "QUIPU_MAX_CONNECTIONS", value_name = "N")]
    pub(crate) max_connections: Option<usize>,
    /// The memory that requests of clients in flight may hold, such as 512MiB
    #[arg(long, env = "QUIPU_MEMORY", value_name = "BYTES")]
    pub(crate) memory: Option<String>,
    /// How many bytes a second this node gives, at most, to replicas that are far behind, such as 64MiB
    #[arg(long, env = "QUIPU_CATCH_UP_RATE", value_name = "BYTES")]
    pub(crate) catch_up_rate: Option<String>,
    /// How many bytes a second compaction reads and writes, at most, such as 32MiB; 0 turns it off
    #[arg(long, env = "QUIPU_COMPACTION_RATE", value_name = "BYTES")]
    pub(crate) compaction_rate: Option<String>,
}

impl NodeSettings {
    /// These settings, and those of `other` where these say nothing.
    pub(crate) fn or(self, other: Self) -> Self {
        // Together they say which cluster it is: they come from one place.
        let (voters, join) = match (self.voters, self.join) {
            (None, None) => (other.voters, other.join),
            own => own,
        };
        Self {
            data_dir: self.data_dir.or(other.data_dir),
            grpc_listen: self.grpc_listen.or(other.grpc_listen),
            http_listen: self.http_listen.or(other.http_listen),
            advertised_grpc: self.advertised_grpc.or(other.advertised_grpc),
            kafka_listen: self.kafka_listen.or(other.kafka_listen),
            kafka_advertise: self.kafka_advertise.or(other.kafka_advertise),
            kafka_auto_create_topics: self
                .kafka_auto_create_topics
                .or(other.kafka_auto_create_topics),
            memory: self.memory.or(other.memory),
            catch_up_rate: self.catch_up_rate.or(other.catch_up_rate),
            compaction_rate: self.compaction_rate.or(other.compaction_rate),
            rack: self.rack.or(other.rack),
            max_connections: self.max_connections.or(other.max_connections),
            voters,
            join,
        }
    }

    /// The cluster that `node` belongs to.
    pub(crate) fn membership(&self, node: NodeId) -> Result<Membership> {
        let voters = match &self.voters {
            None => Vec::new(),
            Some(voters) => {
                let voters = voters.split(',').map(voter).collect::<Result<Vec<_>>>();
                voters.context("--voters")?
            }
        };
        match &self.join {
            Some(seeds) if !voters.iter().any(|voter| voter.id == node) => {
                let seeds = seeds.split(',').map(address).collect::<Result<_>>();
                Ok(Membership::Join(seeds.context("--join")?))
            }
            _ if voters.is_empty() => Ok(Membership::Alone),
            _ => Ok(Membership::Voters(voters)),
        }
    }

    /// How Kafka clients are served.
    pub(crate) fn kafka(&self) -> KafkaConfig {
        let defaults = KafkaConfig::default();
        KafkaConfig {
            max_connections: self.max_connections.unwrap_or(defaults.max_connections),
            auto_create_topics: self
                .kafka_auto_create_topics
                .unwrap_or(defaults.auto_create_topics),
            ..defaults
        }
    }

    pub(crate) fn memory_bytes(&self) -> Result<Option<usize>> {
        let parsed = self.memory.as_deref().map(parse_bytes).transpose();
        parsed.map_err(anyhow::Error::msg).context("memory")
    }

    pub(crate) fn compaction_bytes(&self) -> Result<Option<usize>> {
        let parsed = self.compaction_rate.as_deref().map(parse_bytes).transpose();
        parsed
            .map_err(anyhow::Error::msg)
            .context("compaction_rate")
    }

    pub(crate) fn catch_up_bytes(&self) -> Result<Option<NonZeroU64>> {
        let parsed = self.catch_up_rate.as_deref().map(parse_bytes).transpose();
        let parsed = parsed
            .map_err(anyhow::Error::msg)
            .context("catch_up_rate")?;
        let rate = |bytes| {
            NonZeroU64::new(bytes as u64).context("catch_up_rate is 0: nothing would catch up")
        };
        parsed.map(rate).transpose()
    }
}

fn voter(text: &str) -> Result<NodeAddress> {
    let (id, at) = text
        .trim()
        .split_once('@')
        .with_context(|| format!("{text:?} is not id@host:port"))?;
    let id: u64 = id
        .parse()
        .with_context(|| format!("{id:?} is not a node's number"))?;
    ensure!(id > 0, "number nodes from 1");
    Ok(NodeAddress {
        id: NodeId::new(id),
        address: address(at)?,
    })
}

fn address(text: &str) -> Result<String> {
    let text = text.trim();
    let (host, port) = text
        .rsplit_once(':')
        .with_context(|| format!("{text:?} is not host:port"))?;
    ensure!(
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0),
        "{text:?} is not host:port"
    );
    Ok(text.to_owned())
}

/// A configuration file: the node's settings and its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileSettings {
    pub(crate) node_id: Option<u64>,
    pub(crate) node: NodeSettings,
}

impl FileSettings {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut table: toml::Table = text.parse()?;
        let node_id = match table.remove("node_id") {
            None => None,
            Some(id) => Some(id.try_into().context("node_id")?),
        };
        Ok(Self {
            node_id,
            node: table.try_into()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use quipu_broker::Membership;
    use quipu_model::NodeId;

    use super::{FileSettings, NodeSettings};

    const FIRST: NodeId = NodeId::new(1);

    #[test]
    fn a_file_says_what_flags_do_not() {
        let text = "node_id = 3\ndata_dir = \"/data\"\ngrpc_listen = \"0.0.0.0:9093\"\nmemory = \"1GiB\"\n";
        let file = FileSettings::parse(text).unwrap();
        assert_eq!(file.node_id, Some(3));
        let flags = NodeSettings {
            grpc_listen: "127.0.0.1:1".parse().ok(),
            ..NodeSettings::default()
        };
        let settings = flags.or(file.node);
        assert_eq!(settings.grpc_listen.map(|a| a.port()), Some(1));
        assert_eq!(settings.data_dir, Some("/data".into()));
        assert_eq!(settings.memory_bytes().unwrap(), Some(1 << 30));
        assert_eq!(settings.catch_up_bytes().unwrap(), None);
    }

    #[test]
    fn voters_and_seeds_are_read_and_flags_win_as_a_whole() {
        let voters = |text: &str| NodeSettings {
            voters: Some(text.to_owned()),
            ..NodeSettings::default()
        };
        let read = voters("1@a:9093, 2@[::1]:9093").membership(FIRST).unwrap();
        let Membership::Voters(read) = read else {
            panic!("{read:?}")
        };
        let numbers: Vec<_> = read.iter().map(|node| node.id.get()).collect();
        assert_eq!(numbers, [1, 2]);
        assert_eq!(read[1].address, "[::1]:9093");
        for wrong in ["", "a:9093", "0@a:9093", "1@a", "1@a:0", "1@:9093", "x@a:1"] {
            assert!(voters(wrong).membership(FIRST).is_err(), "{wrong}");
        }
        let join = NodeSettings {
            join: Some("a:9093,b:9093".to_owned()),
            ..NodeSettings::default()
        };
        let seeds = vec!["a:9093".to_owned(), "b:9093".to_owned()];
        assert_eq!(join.membership(FIRST).unwrap(), Membership::Join(seeds));
        let flags = voters("1@a:9093").or(join);
        assert!(matches!(
            flags.membership(FIRST).unwrap(),
            Membership::Voters(_)
        ));
    }

    #[test]
    fn settings_that_all_nodes_share_let_voters_begin_and_others_join() {
        let shared = NodeSettings {
            voters: Some("1@a:9093,2@b:9093".to_owned()),
            join: Some("a:9093".to_owned()),
            ..NodeSettings::default()
        };
        let first = shared.membership(FIRST).unwrap();
        assert!(matches!(first, Membership::Voters(_)));
        let further = shared.membership(NodeId::new(3)).unwrap();
        assert_eq!(further, Membership::Join(vec!["a:9093".to_owned()]));
    }

    #[test]
    fn a_misspelt_setting_is_refused_by_name() {
        let refusal = FileSettings::parse("grcp_listen = \"0.0.0.0:9093\"").unwrap_err();
        assert!(format!("{refusal:#}").contains("grcp_listen"));
        assert!(FileSettings::parse("node_id = \"one\"").is_err());
    }
}
