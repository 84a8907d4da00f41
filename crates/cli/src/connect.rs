//! Reaching a cluster.

use anyhow::Result;
use clap::Args;
use quipu_client::{Client, ClientConfig};

#[derive(Clone, Debug, Args)]
pub(crate) struct ConnectArgs {
    /// The broker's gRPC address; several may be given, separated by commas
    #[arg(
        long,
        env = "QUIPU_BROKER",
        default_value = "localhost:9093",
        value_name = "HOST:PORT"
    )]
    pub(crate) broker: String,
}

impl ConnectArgs {
    pub(crate) async fn connect(&self) -> Result<Client> {
        Ok(Client::connect(self.broker.as_str()).await?)
    }

    /// The same, under a name: quotas are of it.
    pub(crate) async fn connect_as(&self, client_id: &str) -> Result<Client> {
        let config = ClientConfig {
            client_id: client_id.to_owned(),
            ..ClientConfig::new(&self.broker)
        };
        Ok(Client::connect(config).await?)
    }
}
