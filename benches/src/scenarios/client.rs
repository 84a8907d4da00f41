//! The Rust client as an application uses it: record by record, idempotent, durable.

use anyhow::{Result, ensure};
use quipu_client::{
    Assignment, Client, ConsumerConfig, End, Producer, ProducerConfig, Record, Start,
};
use tokio::time::Instant;

use super::{CpuMeter, Settings};
use crate::{
    batches,
    report::{Report, count, median},
};

const PARTITIONS: u32 = 4;

/// Records of 100 B and 1 KiB from one producer to four partitions and back, with default settings and with large batches.
pub(super) async fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let large = ProducerConfig {
        batch_bytes: 1 << 20,
        ..ProducerConfig::default()
    };
    for record_bytes in [100, 1024] {
        for (name, config) in [
            ("defaults", ProducerConfig::default()),
            ("batches of 1 MiB", large.clone()),
        ] {
            let name = format!("{record_bytes} B, {name}");
            measure(settings, report, &name, record_bytes, config).await?;
        }
    }
    Ok(())
}

async fn measure(
    settings: &Settings,
    report: &mut Report,
    name: &str,
    record_bytes: usize,
    config: ProducerConfig,
) -> Result<()> {
    let mut broker = settings.broker().await?;
    broker.create_topic("client", PARTITIONS).await?;
    let client = Client::connect(broker.address()).await?;
    let producer = client.producer(config).await?;
    let values = batches::values(record_bytes, 1000);
    let thousands = settings.amount(1_000_000_000 / record_bytes as u64 / 1000);
    let (mut rates, mut server_cpu, mut client_cpu) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=settings.rounds {
        let meter = CpuMeter::start(broker.pid()?)?;
        let start = Instant::now();
        send(&producer, &values, thousands).await?;
        let took = start.elapsed();
        let (server, client) = meter.per_gb(thousands * 1000 * record_bytes as u64)?;
        // The first round warms up.
        if round > 0 {
            rates.push(thousands as f64 * 1000.0 / took.as_secs_f64());
            server_cpu.push(server);
            client_cpu.push(client);
        }
    }
    producer.close().await?;
    let written = thousands * 1000 * (settings.rounds as u64 + 1);
    let read = consume(&client, written).await?;
    report.row(
        format!("client crate, durable produce to {PARTITIONS} partitions, {name}"),
        format!("{} records/s", count(median(rates))),
        format!(
            "broker {:.2}, client {:.2} s/GB",
            median(server_cpu),
            median(client_cpu)
        ),
        "",
    );
    report.row(
        format!("client crate, consume, {name}"),
        format!("{} records/s", count(read)),
        "",
        "",
    );
    Ok(())
}

/// Sends round the partitions, a thousand to each in turn; a failed record fails the flush.
async fn send(producer: &Producer, values: &[Vec<u8>], thousands: u64) -> Result<()> {
    for thousand in 0..thousands {
        let partition = (thousand % u64::from(PARTITIONS)) as u32;
        for value in values {
            let record = Record::new("client").partition(partition).value(value);
            drop(producer.send(record).await?);
        }
    }
    Ok(producer.flush().await?)
}

async fn consume(client: &Client, written: u64) -> Result<f64> {
    let mut consumer = client.consumer(ConsumerConfig::default());
    let assignments =
        (0..PARTITIONS).map(|p| Assignment::new("client", p, Start::Earliest).until(End::Latest));
    let start = Instant::now();
    consumer.assign(assignments).await?;
    let mut read = 0;
    while let Some(chunk) = consumer.next_batch().await {
        read += chunk?.records.len() as u64;
    }
    let took = start.elapsed().as_secs_f64();
    ensure!(read == written, "{read} records read, {written} written");
    Ok(read as f64 / took)
}
