//! A node's settings: defaults, overridden by a file, overridden by variables and flags.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;
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
    /// The memory that requests in flight may hold, such as 512MiB
    #[arg(long, env = "QUIPU_MEMORY", value_name = "BYTES")]
    pub(crate) memory: Option<String>,
}

impl NodeSettings {
    /// These settings, and those of `other` where these say nothing.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(other.data_dir),
            grpc_listen: self.grpc_listen.or(other.grpc_listen),
            http_listen: self.http_listen.or(other.http_listen),
            advertised_grpc: self.advertised_grpc.or(other.advertised_grpc),
            memory: self.memory.or(other.memory),
        }
    }

    pub(crate) fn memory_bytes(&self) -> Result<Option<usize>> {
        let parsed = self.memory.as_deref().map(parse_bytes).transpose();
        parsed.map_err(anyhow::Error::msg).context("memory")
    }
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
    use super::{FileSettings, NodeSettings};

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
    }

    #[test]
    fn a_misspelt_setting_is_refused_by_name() {
        let refusal = FileSettings::parse("grcp_listen = \"0.0.0.0:9093\"").unwrap_err();
        assert!(format!("{refusal:#}").contains("grcp_listen"));
        assert!(FileSettings::parse("node_id = \"one\"").is_err());
    }
}
