//! How long a start takes, and what an idle broker costs.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::Settings;
use crate::{
    batches,
    broker::Broker,
    load, process,
    report::{Report, median},
};

/// After a start the write-ahead log prepares its spare files.
const SETTLED: Duration = Duration::from_secs(10);

/// How long the idle broker is watched.
const IDLE: Duration = Duration::from_secs(10);

/// From the start of the process to the first acknowledged record on an empty directory; then the same broker left alone.
pub(super) async fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let mut times = Vec::new();
    let mut last = None;
    for _ in 0..settings.rounds {
        let mut broker = Broker::new(&settings.quipu, &settings.data)?;
        let start = Instant::now();
        broker.spawn()?;
        broker.connect().await?;
        broker.create_topic("first", 1).await?;
        first_record(&mut broker, "first").await?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        last = Some(broker);
    }
    report.row(
        "start to first acknowledged record, empty directory, topic creation included",
        format!("{:.0} ms", median(times)),
        "",
        "goal 300 ms",
    );
    if let Some(broker) = last {
        tokio::time::sleep(SETTLED).await;
        let before = process::cpu_time(broker.pid()?)?;
        tokio::time::sleep(IDLE).await;
        let used = process::cpu_time(broker.pid()?)? - before;
        let resident = process::memory(broker.pid()?, "VmRSS")?;
        report.row(
            "idle",
            format!("{:.1} MB resident", resident as f64 / 1e6),
            format!(
                "{} ms of processor time in 10 s, from 10 s after the start",
                used.as_millis()
            ),
            "goal 30 MB, none",
        );
    }
    Ok(())
}

/// Writes one record, trying again until it is acknowledged.
pub(super) async fn first_record(broker: &mut Broker, topic: &str) -> Result<()> {
    let record = batches::plain(100, 1)?;
    loop {
        let client = broker.connect().await?;
        if load::round_trips(client, topic, record.clone(), 1)
            .await
            .is_ok()
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
