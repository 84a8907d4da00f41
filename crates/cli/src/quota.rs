//! `quipu quota`.

use std::io::{Write, stdout};

use anyhow::Result;
use clap::{Args, Subcommand};
use quipu_client::{Quota, QuotaChange};
use serde_json::{Value, json};

use crate::{connect::ConnectArgs, table, values::parse_bytes};

#[derive(Debug, Args)]
pub(crate) struct QuotaArgs {
    #[command(subcommand)]
    command: QuotaCommand,
}

#[derive(Debug, Subcommand)]
enum QuotaCommand {
    /// Set a client id's quota, or the default for client ids that have none of their own
    Set {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        rates: Rates,
        #[command(flatten)]
        shared: Shared,
    },
    /// List all quotas
    List {
        #[command(flatten)]
        shared: Shared,
    },
    /// Remove a client id's quota, or the default
    Remove {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// Whose quota is meant.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Of {
    /// What clients call themselves
    client_id: Option<String>,
    /// The default, which holds for each client id that has no quota of its own
    #[arg(long)]
    default: bool,
}

impl Of {
    /// `None`: the default's.
    fn client_id(self) -> Option<String> {
        self.client_id.filter(|_| !self.default)
    }
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Rates {
    /// How much each node takes from it in a second, such as 10MiB; or none, for as much as comes
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    produce: Option<Rate>,
    /// How much each node gives it in a second; or none
    #[arg(long, value_name = "BYTES", value_parser = parse_rate)]
    fetch: Option<Rate>,
}

/// Bytes a second; 0: no bound.
#[derive(Clone, Copy, Debug)]
struct Rate(u64);

fn parse_rate(text: &str) -> Result<Rate, String> {
    match text {
        "none" => Ok(Rate(0)),
        _ => match parse_bytes(text)? as u64 {
            0 => Err("nothing could pass at 0 bytes a second: give more, or none".to_owned()),
            bytes => Ok(Rate(bytes)),
        },
    }
}

#[derive(Debug, Args)]
struct Shared {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: QuotaArgs) -> Result<()> {
    match args.command {
        QuotaCommand::Set { of, rates, shared } => {
            let change = QuotaChange {
                client_id: of.client_id(),
                produce_bytes_per_second: rates.produce.map(|rate| rate.0),
                fetch_bytes_per_second: rates.fetch.map(|rate| rate.0),
            };
            let admin = shared.connect.connect().await?.admin();
            let quota = admin.alter_quota(change).await?;
            match shared.json {
                true => writeln!(stdout(), "{}", quota_json(&quota))?,
                false => print(&[quota])?,
            }
            Ok(())
        }
        QuotaCommand::List { shared } => {
            let admin = shared.connect.connect().await?.admin();
            let quotas = admin.list_quotas().await?;
            match shared.json {
                true => {
                    let quotas: Vec<Value> = quotas.iter().map(quota_json).collect();
                    writeln!(stdout(), "{}", Value::from(quotas))?;
                }
                false => print(&quotas)?,
            }
            Ok(())
        }
        QuotaCommand::Remove { of, connect } => {
            let change = QuotaChange {
                client_id: of.client_id(),
                produce_bytes_per_second: Some(0),
                fetch_bytes_per_second: Some(0),
            };
            let admin = connect.connect().await?.admin();
            let quota = admin.alter_quota(change).await?;
            writeln!(stdout(), "removed the quota of {}", whose(&quota))?;
            Ok(())
        }
    }
}

fn print(quotas: &[Quota]) -> Result<()> {
    let rate = |rate: Option<u64>| rate.map_or_else(|| "-".to_owned(), |rate| rate.to_string());
    let rows = quotas.iter().map(|quota| {
        [
            whose(quota),
            rate(quota.produce_bytes_per_second),
            rate(quota.fetch_bytes_per_second),
        ]
    });
    let rows: Vec<_> = rows.collect();
    let headings = ["CLIENT ID", "PRODUCE BYTES/S", "FETCH BYTES/S"];
    table::write(&mut stdout().lock(), headings, &rows)?;
    Ok(())
}

fn whose(quota: &Quota) -> String {
    match &quota.client_id {
        Some(client_id) => client_id.escape_debug().to_string(),
        None => "(default)".to_owned(),
    }
}

fn quota_json(quota: &Quota) -> Value {
    json!({
        "client_id": quota.client_id,
        "produce_bytes_per_second": quota.produce_bytes_per_second,
        "fetch_bytes_per_second": quota.fetch_bytes_per_second,
    })
}
