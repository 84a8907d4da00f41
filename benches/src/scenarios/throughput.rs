//! Bytes and records a second, in and out.

use anyhow::Result;
use bytes::Bytes;
use futures::future::try_join_all;
use tokio::time::Instant;

use super::{CpuMeter, Settings};
use crate::{
    bare::Bare,
    batches,
    broker::Broker,
    disk::Disk,
    load::{self, Load, Outcome},
    process,
    report::{Report, count, median, percent},
};

const MIB: usize = 1 << 20;

/// Large batches of 1 KiB records, one producer and one reader, beside the bare stream and the bare disk.
pub(super) async fn limits(settings: &Settings, report: &mut Report) -> Result<()> {
    let batch = batches::largest(1024, MIB)?;
    let mebibytes = settings.amount(2048);
    let disk = settings.disk()?;
    let bare = settings.bare().await?;
    let mut broker = settings.broker().await?;
    broker.create_topic("throughput", 1).await?;
    let load = Load {
        topic: "throughput".to_owned(),
        partitions: 1,
        batch: batch.clone(),
        batches: mebibytes,
        in_flight: 16,
    };
    let warm = Load {
        batches: 256,
        ..load.clone()
    };
    load::produce(bare.connect().await?, warm.clone()).await?;
    let mut end = load::produce(broker.connect().await?, warm).await?.records;

    let (mut up, mut synced, mut produce) = (Vec::new(), Vec::new(), Vec::new());
    let (mut server_cpu, mut client_cpu) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        up.push(
            load::produce(bare.connect().await?, load.clone())
                .await?
                .gb_per_second(),
        );
        synced.push(disk.gb_per_second(MIB, settings.amount(1024))?);
        let client = broker.connect().await?;
        let meter = CpuMeter::start(broker.pid()?)?;
        let outcome = load::produce(client, load.clone()).await?;
        let (server, client) = meter.per_gb(outcome.bytes)?;
        end += outcome.records;
        produce.push(outcome.gb_per_second());
        server_cpu.push(server);
        client_cpu.push(client);
    }
    let (up, synced, produce) = (median(up), median(synced), median(produce));
    report.row(
        "durable produce, 1 KiB records, 1 MiB batches, one producer",
        format!("{produce:.2} GB/s"),
        format!("bare stream up {up:.2}, pwrite + fdatasync {synced:.2} GB/s"),
        format!(
            "{} of the smaller (goal 50 %)",
            percent(produce / up.min(synced))
        ),
    );
    cpu_row(report, "produce", median(server_cpu), median(client_cpu));
    replay(settings, report, &mut broker, &bare, end).await?;
    memory_row(report, &broker)
}

async fn replay(
    settings: &Settings,
    report: &mut Report,
    broker: &mut Broker,
    bare: &Bare,
    end: u64,
) -> Result<()> {
    let messages = settings.amount(2048);
    load::replay(broker.connect().await?, "throughput", 0, end, true).await?;
    let (mut down, mut replay) = (Vec::new(), Vec::new());
    let (mut server_cpu, mut client_cpu) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        let client = bare.connect().await?;
        down.push(
            load::replay(client, "", 0, messages, false)
                .await?
                .gb_per_second(),
        );
        let client = broker.connect().await?;
        let meter = CpuMeter::start(broker.pid()?)?;
        let outcome = load::replay(client, "throughput", 0, end, true).await?;
        let (server, client) = meter.per_gb(outcome.bytes)?;
        replay.push(outcome.gb_per_second());
        server_cpu.push(server);
        client_cpu.push(client);
    }
    let (down, replay) = (median(down), median(replay));
    report.row(
        "replay of warm data, one reader",
        format!("{replay:.2} GB/s"),
        format!("bare stream down {down:.2} GB/s"),
        format!("{} (goal 60 %)", percent(replay / down)),
    );
    cpu_row(report, "replay", median(server_cpu), median(client_cpu));
    Ok(())
}

fn cpu_row(report: &mut Report, what: &str, server: f64, client: f64) {
    report.row(
        format!("processor time, {what}"),
        format!("broker {server:.2}, client {client:.2} s/GB"),
        "",
        "",
    );
}

fn memory_row(report: &mut Report, broker: &Broker) -> Result<()> {
    let own = process::memory(broker.pid()?, "RssAnon")?;
    let most = process::memory(broker.pid()?, "VmHWM")?;
    report.row(
        "broker's memory after that",
        format!("{} MB its own", own / 1_000_000),
        format!("{} MB at most, mapped files included", most / 1_000_000),
        "",
    );
    Ok(())
}

/// Batches of 1,000 records of 100 B and 1 KiB, one and four producers and readers, a topic each: the shape in which Iggy is
/// usually measured.
pub(super) async fn shapes(settings: &Settings, report: &mut Report) -> Result<()> {
    for record_bytes in [100, 1024] {
        let batch = batches::plain(record_bytes, 1000)?;
        for producers in [1, 4] {
            let mut broker = settings.broker().await?;
            let disk = settings.disk()?;
            shape(settings, report, &mut broker, &disk, &batch, producers).await?;
        }
    }
    Ok(())
}

async fn shape(
    settings: &Settings,
    report: &mut Report,
    broker: &mut Broker,
    disk: &Disk,
    batch: &Bytes,
    producers: usize,
) -> Result<()> {
    let topics: Vec<String> = (0..producers).map(|number| format!("t{number}")).collect();
    for topic in &topics {
        broker.create_topic(topic, 1).await?;
    }
    let batches = settings.amount(1_000_000_000 / batch.len() as u64) / producers as u64;
    let (mut produce, mut synced) = (Vec::new(), Vec::new());
    let mut end = 0;
    for round in 0..=settings.rounds {
        let outcome = produce_all(broker, &topics, batch, batches).await?;
        end += outcome.records / producers as u64;
        // The first round warms up.
        if round > 0 {
            produce.push(outcome.records_per_second());
            let (took, _) = disk.write_and_sync(batch.len(), 200)?;
            synced.push(200.0 * 1000.0 / took.as_secs_f64());
        }
    }
    let mut consume = Vec::new();
    for _ in 0..settings.rounds {
        consume.push(replay_all(broker, &topics, end).await?.records_per_second());
    }
    let record_bytes = batch.len() / 1000;
    let (produce, synced) = (median(produce), median(synced));
    report.row(
        format!("durable produce, about {record_bytes} B a record ×{producers}, batches of 1,000"),
        format!("{} records/s", count(produce)),
        format!("one such batch a sync: {} records/s", count(synced)),
        "",
    );
    report.row(
        format!("replay, about {record_bytes} B a record ×{producers}"),
        format!("{} records/s", count(median(consume))),
        "",
        "",
    );
    Ok(())
}

async fn produce_all(
    broker: &mut Broker,
    topics: &[String],
    batch: &Bytes,
    batches: u64,
) -> Result<Outcome> {
    let mut tasks = Vec::new();
    for topic in topics {
        let load = Load {
            topic: topic.clone(),
            partitions: 1,
            batch: batch.clone(),
            batches,
            in_flight: 16,
        };
        tasks.push((broker.connect().await?, load));
    }
    let start = Instant::now();
    let tasks = tasks
        .into_iter()
        .map(|(client, load)| tokio::spawn(load::produce(client, load)));
    sum(try_join_all(tasks).await?, start)
}

async fn replay_all(broker: &mut Broker, topics: &[String], end: u64) -> Result<Outcome> {
    let mut tasks = Vec::new();
    for topic in topics {
        tasks.push((broker.connect().await?, topic.clone()));
    }
    let start = Instant::now();
    let tasks = tasks.into_iter().map(|(client, topic)| {
        tokio::spawn(async move { load::replay(client, &topic, 0, end, true).await })
    });
    sum(try_join_all(tasks).await?, start)
}

fn sum(outcomes: Vec<Result<Outcome>>, start: Instant) -> Result<Outcome> {
    let mut total = Outcome::default();
    for outcome in outcomes {
        let outcome = outcome?;
        total.bytes += outcome.bytes;
        total.records += outcome.records;
    }
    total.took = start.elapsed();
    Ok(total)
}
