//! What is measured. Each scenario has its own broker on an empty data directory; where there is a limit to compare with,
//! the rounds of both take turns, and the medians of the rounds are compared.

mod client;
mod commits;
mod compaction;
mod connections;
mod latency;
mod limits;
mod members;
mod partitions;
mod start;
mod sustained;
mod throughput;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, bail};

use crate::{bare::Bare, broker::Broker, disk::Disk, process, report::Report};

/// The scenarios' names, in the order in which they run.
pub const NAMES: [&str; 12] = [
    "limits",
    "throughput",
    "shapes",
    "client",
    "latency",
    "partitions",
    "members",
    "commits",
    "compaction",
    "start",
    "connections",
    "sustained",
];

/// How to measure.
#[derive(Debug)]
pub struct Settings {
    /// The `quipu` binary.
    pub quipu: PathBuf,
    /// Where data directories and the bare disk's file go.
    pub data: PathBuf,
    /// Rounds of each measurement.
    pub rounds: usize,
    /// Divides the amounts.
    pub divisor: u64,
    /// Gigabytes of the sustained scenario.
    pub sustained_gb: u64,
}

impl Settings {
    fn amount(&self, full: u64) -> u64 {
        (full / self.divisor).max(1)
    }

    async fn broker(&self) -> Result<Broker> {
        Broker::start(&self.quipu, &self.data).await
    }

    fn disk(&self) -> Result<Disk> {
        Disk::prepare(&self.data)
    }

    async fn bare(&self) -> Result<Bare> {
        Bare::start().await
    }
}

/// Runs one scenario.
///
/// # Errors
/// Where the name is unknown or the measurement fails.
pub async fn run(name: &str, settings: &Settings, report: &mut Report) -> Result<()> {
    match name {
        "limits" => limits::run(settings, report).await,
        "throughput" => throughput::limits(settings, report).await,
        "shapes" => throughput::shapes(settings, report).await,
        "client" => client::run(settings, report).await,
        "latency" => latency::run(settings, report).await,
        "partitions" => partitions::run(settings, report).await,
        "members" => members::run(settings, report).await,
        "commits" => commits::run(settings, report).await,
        "compaction" => compaction::run(settings, report).await,
        "start" => start::run(settings, report).await,
        "connections" => connections::run(settings, report).await,
        "sustained" => sustained::run(settings, report).await,
        _ => bail!("no scenario {name}: there are {}", NAMES.join(", ")),
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

/// Processor time of server and client per gigabyte, between two looks.
struct CpuMeter {
    server: u32,
    server_before: Duration,
    client_before: Duration,
}

impl CpuMeter {
    fn start(server: u32) -> Result<Self> {
        Ok(Self {
            server,
            server_before: process::cpu_time(server)?,
            client_before: process::cpu_time(std::process::id())?,
        })
    }

    /// Seconds per 10⁹ bytes, of the server and of this process.
    fn per_gb(&self, bytes: u64) -> Result<(f64, f64)> {
        let gb = bytes as f64 / 1e9;
        let server = process::cpu_time(self.server)? - self.server_before;
        let client = process::cpu_time(std::process::id())? - self.client_before;
        Ok((server.as_secs_f64() / gb, client.as_secs_f64() / gb))
    }
}
