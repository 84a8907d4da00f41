//! `quipu bench consume`.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args;
use quipu_client::{Assignment, Client, ConsumerConfig, End, Start};
use tokio::time::Instant;

use super::report::{self, Throughput};
use crate::connect::ConnectArgs;

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchConsumeArgs {
    /// The topic to read, from its first record to its end as it is now
    #[arg(long, default_value = "bench")]
    topic: String,
    /// Stop each consumer after so many records
    #[arg(long, value_name = "N")]
    records: Option<u64>,
    /// Consumers, each with a connection of its own; the partitions are shared out among them
    #[arg(long, default_value_t = 1, value_name = "N")]
    consumers: usize,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(args: BenchConsumeArgs) -> Result<()> {
    ensure!(args.consumers > 0, "--consumers is 0: give at least 1");
    let admin = args.connect.connect().await?.admin();
    let partitions = admin.describe_topic(&args.topic).await?.partitions.len();
    let started = Instant::now();
    let tasks: Vec<_> = (0..args.consumers)
        .map(|number| {
            let mine = (0..).take(partitions).skip(number).step_by(args.consumers);
            let assignments: Vec<_> = mine
                .map(|p| Assignment::new(&args.topic, p, Start::Earliest).until(End::Latest))
                .collect();
            let broker = args.connect.broker.clone();
            tokio::spawn(consume(broker, assignments, args.records))
        })
        .collect();
    let (mut records, mut bytes) = (0, 0);
    for task in tasks {
        let (r, b) = task.await.context("a consumer's task")??;
        records += r;
        bytes += b;
    }
    let throughput = Throughput {
        records,
        bytes,
        elapsed: started.elapsed(),
    };
    report::print(args.json, &throughput, None)
}

/// Reads everything assigned: how many records, and bytes of their keys and values.
async fn consume(
    broker: String,
    assignments: Vec<Assignment>,
    most: Option<u64>,
) -> Result<(u64, u64)> {
    let client = Client::connect(broker.as_str()).await?;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign(assignments).await?;
    let (mut records, mut bytes) = (0, 0);
    while most.is_none_or(|most| records < most) {
        let Some(chunk) = consumer.next_batch().await else {
            break;
        };
        for record in &chunk?.records {
            let len = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len) as u64;
            records += 1;
            bytes += len(&record.key) + len(&record.value);
        }
    }
    Ok((records, bytes))
}
