//! More data than any buffer holds.

use anyhow::Result;
use tokio::time::Instant;

use super::{Settings, start::first_record};
use crate::{
    batches,
    load::{self, Load},
    process,
    report::Report,
};

/// Writes many gigabytes without a pause and looks for stalls; then kills the broker and times its return.
pub(super) async fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let batch = batches::largest(1024, 1 << 20)?;
    let batches = settings.amount(settings.sustained_gb * 1_000_000_000 / batch.len() as u64);
    let mut broker = settings.broker().await?;
    broker.create_topic("sustained", 1).await?;
    let load = Load {
        topic: "sustained".to_owned(),
        partitions: 1,
        batch,
        batches,
        in_flight: 16,
    };
    let outcome = load::produce(broker.connect().await?, load).await?;
    let gigabytes = outcome.bytes as f64 / 1e9;
    report.row(
        format!("durable produce sustained over {gigabytes:.1} GB, 1 MiB batches"),
        format!("{:.2} GB/s", outcome.gb_per_second()),
        format!(
            "longest time without an acknowledgement {} ms",
            outcome.longest_gap.as_millis()
        ),
        "goal: no stall over 250 ms",
    );
    let most = process::memory(broker.pid()?, "RssAnon")?;
    report.row(
        "broker's own memory after that",
        format!("{} MB", most / 1_000_000),
        "",
        "",
    );
    broker.kill()?;
    let start = Instant::now();
    broker.spawn()?;
    first_record(&mut broker, "sustained").await?;
    report.row(
        format!("start to first acknowledged record after kill -9 with {gigabytes:.1} GB"),
        format!("{} ms", start.elapsed().as_millis()),
        "",
        "goal 1,000 ms",
    );
    let end = outcome.records;
    let replayed = load::replay(broker.connect().await?, "sustained", 0, end, true).await?;
    report.row(
        "replay of all of that after the kill, no offset missing",
        format!("{:.2} GB/s", replayed.gb_per_second()),
        "",
        "",
    );
    Ok(())
}
