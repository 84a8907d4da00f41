//! One record at a time.

use anyhow::Result;
use hdrhistogram::Histogram;

use super::Settings;
use crate::{
    batches, load,
    report::{Report, median},
};

/// What the disk writes for one record: a block.
const BLOCK: usize = 4096;

/// A durable acknowledgement of one record of 100 B, one in flight, beside the bare round trip and the bare sync.
pub(super) async fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let rounds = settings.amount(4000);
    let record = batches::plain(100, 1)?;
    let disk = settings.disk()?;
    let bare = settings.bare().await?;
    let mut broker = settings.broker().await?;
    broker.create_topic("latency", 1).await?;
    let mut all = [Times::default(), Times::default(), Times::default()];
    for _ in 0..settings.rounds {
        let client = bare.connect().await?;
        all[0].add(&load::round_trips(client, "", record.clone(), rounds).await?);
        all[1].add(&disk.write_and_sync(BLOCK, rounds)?.1);
        let client = broker.connect().await?;
        all[2].add(&load::round_trips(client, "latency", record.clone(), rounds).await?);
    }
    let [wire, sync, quipu] = all.map(Times::medians);
    let bound = wire.0 + sync.0;
    report.row(
        "durable single record, one in flight, p50 / p99",
        format!("{:.0} / {:.0} µs", quipu.0, quipu.1),
        format!(
            "bare stream round trip {:.0} / {:.0}, fdatasync {:.0} / {:.0} µs",
            wire.0, wire.1, sync.0, sync.1
        ),
        format!("{:.2}× their sum at p50 (goal 2×)", quipu.0 / bound),
    );
    Ok(())
}

#[derive(Default)]
struct Times {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Times {
    fn add(&mut self, times: &Histogram<u64>) {
        self.p50.push(times.value_at_quantile(0.5) as f64);
        self.p99.push(times.value_at_quantile(0.99) as f64);
    }

    fn medians(self) -> (f64, f64) {
        (median(self.p50), median(self.p99))
    }
}
