//! What Kafka clients cost that are connected and ask for nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::Settings;
use crate::{broker::Broker, process, report::Report};

const CONNECTIONS: usize = 1000;
/// How long the connections are left alone before the broker is looked at.
const SETTLED: Duration = Duration::from_secs(2);

/// A request for the versions served, in its first version: key 18, a correlation id and a client id of one byte.
const ASK_VERSIONS: [u8; 15] = [0, 0, 0, 11, 0, 18, 0, 0, 0, 0, 0, 7, 0, 1, b'c'];

/// The memory of a broker before and after a thousand clients have connected, each of which has been answered once.
pub(super) async fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let broker = settings.broker().await?;
    let resident = || process::memory(broker.pid()?, "VmRSS");
    // The first connections make it take up what it then has for all.
    drop(connect(&broker, 8).await?);
    tokio::time::sleep(SETTLED).await;
    let before = resident()?;
    let connections = connect(&broker, CONNECTIONS).await?;
    tokio::time::sleep(SETTLED).await;
    let grown = resident()?.saturating_sub(before) as f64;
    drop(connections);
    report.row(
        format!("memory of {CONNECTIONS} idle Kafka connections"),
        format!("{:.1} MB", grown / 1e6),
        format!("{:.1} kB each", grown / 1e3 / CONNECTIONS as f64),
        "goal 50 MB",
    );
    Ok(())
}

async fn connect(broker: &Broker, count: usize) -> Result<Vec<TcpStream>> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect(broker.kafka_address()).await?;
        stream.write_all(&ASK_VERSIONS).await?;
        let length = usize::try_from(stream.read_i32().await?).context("a negative length")?;
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await?;
        ensure!(answer[3] == 7, "the answer is another request's");
        connections.push(stream);
    }
    Ok(connections)
}
