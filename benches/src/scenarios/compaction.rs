//! What producers notice of compaction beside them.

use std::{collections::HashMap, time::Duration};

use anyhow::{Result, ensure};
use quipu_client::{Admin, Client};
use quipu_model::{
    TimestampMs,
    batch::{BatchBuilder, Compression},
};
use tokio::time::{Instant, sleep};

use super::{Settings, milliseconds};
use crate::{
    batches,
    broker::Broker,
    load::{self, Load, Pace},
    report::{Report, median},
};

/// Keys of each topic that is compacted, each written twice: while producers are watched, their keys are read, and most of what
/// is new is written.
const KEYS: u64 = 400_000;
const RECORDS: u64 = 100;
const VALUE_BYTES: usize = 300;
/// Batches that producers send meanwhile.
const PACE: Pace = Pace {
    every: Duration::from_millis(1),
    length: Duration::from_secs(8),
};
const PATIENCE: Duration = Duration::from_secs(120);
const READ: &str = "quipu_storage_compaction_read_bytes_total";
const WRITTEN: &str = "quipu_storage_compaction_written_bytes_total";
const PASSES: &str = "quipu_storage_compaction_passes_total";

/// The time until a batch of 4 KiB is acknowledged, of a thousand a second: in turns with nothing beside it and with compaction.
pub(super) async fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let mut broker = settings.broker().await?;
    let admin = Client::connect(broker.address()).await?.admin();
    broker.create_topic("steady", 4).await?;
    let steady = Load {
        topic: "steady".to_owned(),
        partitions: 4,
        batch: batches::plain(1024, 4)?,
        batches: u64::MAX,
        in_flight: 256,
    };
    let pace = Pace {
        length: PACE.length / settings.divisor as u32,
        ..PACE
    };
    load::paced(broker.connect().await?, steady.clone(), pace).await?;
    let (mut alone, mut beside) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut rates = Vec::new();
    for round in 0..settings.rounds {
        let topic = format!("keyed-{round}");
        fill(settings, &mut broker, &topic).await?;
        let times = load::paced(broker.connect().await?, steady.clone(), pace).await?;
        alone[0].push(times.value_at_quantile(0.5) as f64);
        alone[1].push(times.value_at_quantile(0.99) as f64);

        let passes = broker.metric(PASSES)?;
        let before = begin(&broker, &admin, &topic).await?;
        let times = load::paced(broker.connect().await?, steady.clone(), pace).await?;
        rates.push((moved(&broker)? - before) / pace.length.as_secs_f64() / 1e6);
        ensure!(
            broker.metric(PASSES)? == passes,
            "compaction ended before the measurement"
        );
        beside[0].push(times.value_at_quantile(0.5) as f64);
        beside[1].push(times.value_at_quantile(0.99) as f64);
        until("compaction ends", || Ok(broker.metric(PASSES)? > passes)).await?;
        admin.delete_topic(&topic).await?;
    }
    let [alone, beside] = [alone, beside].map(|times| times.map(median));
    let shown = |times: [f64; 2]| {
        let [p50, p99] = times.map(|time| milliseconds(Duration::from_secs_f64(time / 1e6)));
        format!("{p50} / {p99} ms")
    };
    report.row(
        format!(
            "durable produce, 1,000 batches of 4 KiB a second, p50 / p99, beside compaction at {:.0} MB/s",
            median(rates)
        ),
        shown(beside),
        format!("without compaction {}", shown(alone)),
        format!("p99 {:.2}× (goal 1.10×)", beside[1] / alone[1]),
    );
    Ok(())
}

/// Makes a topic that has something to compact, and is not compacted yet.
async fn fill(settings: &Settings, broker: &mut Broker, topic: &str) -> Result<()> {
    let config = [("segment.bytes", "33554432")];
    broker.create_topic_with(topic, 1, &config).await?;
    let mut client = broker.connect().await?;
    let values = batches::values(VALUE_BYTES, RECORDS as usize);
    for batch in 0..settings.amount(KEYS) / RECORDS * 2 {
        let mut builder = BatchBuilder::new(Compression::None);
        for (n, value) in (batch * RECORDS..).zip(&values) {
            let key = format!("{:016x}", (n % KEYS).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            builder.append(TimestampMs::new(0), Some(key.as_bytes()), Some(value), &[]);
        }
        let batch = builder.build()?.into_bytes();
        load::once(&mut client, (topic, 0), batch).await?;
    }
    Ok(())
}

/// Has a topic compacted, and waits until that begins. Answers what compaction had moved then, in bytes.
async fn begin(broker: &Broker, admin: &Admin, topic: &str) -> Result<f64> {
    let before = moved(broker)?;
    let compact = HashMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
    admin.alter_topic_config(topic, compact, Vec::new()).await?;
    until("compaction begins", || Ok(moved(broker)? > before)).await?;
    moved(broker)
}

fn moved(broker: &Broker) -> Result<f64> {
    Ok(broker.metric(READ)? + broker.metric(WRITTEN)?)
}

async fn until(what: &str, is: impl Fn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is()? {
        ensure!(start.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
