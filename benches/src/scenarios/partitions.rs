//! Many partitions beside one.

use anyhow::Result;

use super::Settings;
use crate::{
    batches,
    load::{self, Load},
    process,
    report::{Report, median, percent},
};

const PARTITIONS: u32 = 1000;

/// Small batches (16 records of 1 KiB) written to 1,000 partitions in turn, and to one.
pub(super) async fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let mut broker = settings.broker().await?;
    broker.create_topic("one", 1).await?;
    broker.create_topic("many", PARTITIONS).await?;
    let one = Load {
        topic: "one".to_owned(),
        partitions: 1,
        batch: batches::plain(1024, 16)?,
        batches: settings.amount(40_000),
        in_flight: 256,
    };
    let many = Load {
        topic: "many".to_owned(),
        partitions: PARTITIONS,
        ..one.clone()
    };
    let (mut to_one, mut to_many) = (Vec::new(), Vec::new());
    for round in 0..=settings.rounds {
        let first = load::produce(broker.connect().await?, one.clone()).await?;
        let second = load::produce(broker.connect().await?, many.clone()).await?;
        // The first round warms up.
        if round > 0 {
            to_one.push(first.gb_per_second());
            to_many.push(second.gb_per_second());
        }
    }
    let (to_one, to_many) = (median(to_one), median(to_many));
    report.row(
        "durable produce round robin to 1,000 partitions, batches of 16 KiB",
        format!("{to_many:.3} GB/s"),
        format!("one partition {to_one:.3} GB/s"),
        format!("{} (goal 60 %)", percent(to_many / to_one)),
    );
    let own = process::memory(broker.pid()?, "RssAnon")?;
    report.row(
        "broker's own memory with 1,001 partitions",
        format!("{} MB", own / 1_000_000),
        "",
        "",
    );
    Ok(())
}
