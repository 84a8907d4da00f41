//! `quipu bench produce`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use futures::FutureExt;
use parking_lot::Mutex;
use quipu_client::{Client, Delivery, ErrorReason, NewTopic, Producer, ProducerConfig, Record};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, sleep_until};

use super::report::{self, Latencies, Throughput};
use crate::{
    connect::ConnectArgs,
    values::{AcksArg, CompressionArg, parse_bytes},
};

/// Records whose latency is measured, at most: enough for the percentiles shown, too few to disturb the rest.
const SAMPLES: u64 = 200_000;
/// Random bytes that values are cut from.
const POOL_BYTES: usize = 4 << 20;

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchProduceArgs {
    /// The topic to write to; created where it does not exist
    #[arg(long, default_value = "bench")]
    topic: String,
    /// Partitions of the topic, if it is created
    #[arg(long, default_value_t = 1, value_name = "N")]
    partitions: u32,
    /// Records to write, over all producers
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    records: u64,
    /// Bytes of each record's value
    #[arg(long, default_value = "1KiB", value_name = "BYTES", value_parser = parse_bytes)]
    record_size: usize,
    /// Producers, each with a connection of its own
    #[arg(long, default_value_t = 1, value_name = "N")]
    producers: u64,
    #[arg(long, default_value = "1MiB", value_name = "BYTES", value_parser = parse_bytes)]
    batch_bytes: usize,
    /// Unacknowledged batches of each partition and producer: 1 to 5
    #[arg(long, default_value_t = 5, value_name = "N")]
    in_flight: usize,
    /// Unacknowledged records of each producer; 1 with --linger-ms 0 measures single records
    #[arg(long, value_name = "N")]
    outstanding: Option<usize>,
    /// How long a batch waits to be filled
    #[arg(long, default_value_t = 5, value_name = "MS")]
    linger_ms: u64,
    #[arg(long, value_enum, default_value = "none")]
    compression: CompressionArg,
    #[arg(long, value_enum, default_value = "all")]
    acks: AcksArg,
    /// Records per second over all producers, whether or not the broker keeps up: latency then counts from when a record was due
    #[arg(long, value_name = "N")]
    rate: Option<u64>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(args: BenchProduceArgs) -> Result<()> {
    ensure!(args.producers > 0, "--producers is 0: give at least 1");
    ensure!(args.rate != Some(0), "--rate is 0: give at least 1");
    ensure!(
        args.outstanding != Some(0),
        "--outstanding is 0: give at least 1"
    );
    ensure!(
        args.record_size < POOL_BYTES,
        "--record-size is {}: give less than {POOL_BYTES}",
        args.record_size
    );
    let args = Arc::new(args);
    create_topic(&args).await?;
    let mut pool = vec![0; POOL_BYTES];
    SmallRng::seed_from_u64(1).fill_bytes(&mut pool);
    let shared = Arc::new(Shared {
        pool,
        latencies: Mutex::new(Latencies::new()?),
    });
    let mut producers = Vec::new();
    for number in 0..args.producers {
        // Connected beforehand: the run measures producing.
        let producer = producer(&args).await?;
        producers.push((number, producer));
    }
    let started = Instant::now();
    let tasks: Vec<_> = producers
        .into_iter()
        .map(|(number, producer)| {
            let load = Load {
                args: Arc::clone(&args),
                shared: Arc::clone(&shared),
                producer,
                started,
                number,
            };
            tokio::spawn(load.run())
        })
        .collect();
    for task in tasks {
        task.await.context("a producer's task")??;
    }
    let throughput = Throughput {
        records: args.records,
        bytes: args.records * args.record_size as u64,
        elapsed: started.elapsed(),
    };
    let latencies = shared.latencies.lock().clone();
    report::print(args.json, &throughput, Some(&latencies))
}

async fn create_topic(args: &BenchProduceArgs) -> Result<()> {
    let client = args.connect.connect().await?;
    let topic = NewTopic::new(&args.topic).partitions(args.partitions);
    match client.admin().create_topic(topic).await {
        Err(error) if !error.is(ErrorReason::TopicAlreadyExists) => Err(error.into()),
        _ => Ok(()),
    }
}

async fn producer(args: &BenchProduceArgs) -> Result<Producer> {
    let client = Client::connect(args.connect.broker.as_str()).await?;
    let config = ProducerConfig {
        acks: args.acks.into(),
        compression: args.compression.into(),
        linger: Duration::from_millis(args.linger_ms),
        batch_bytes: args.batch_bytes,
        max_in_flight: args.in_flight,
        ..ProducerConfig::default()
    };
    Ok(client.producer(config).await?)
}

struct Shared {
    pool: Vec<u8>,
    latencies: Mutex<Latencies>,
}

/// One producer's part.
struct Load {
    args: Arc<BenchProduceArgs>,
    shared: Arc<Shared>,
    producer: Producer,
    started: Instant,
    number: u64,
}

impl Load {
    async fn run(self) -> Result<()> {
        let sample_every = self.args.records.div_ceil(SAMPLES).max(1);
        let mut waiting = VecDeque::new();
        let mut samples = Vec::new();
        let mut index = self.number;
        while index < self.args.records {
            let due = self.due(index).await;
            let record = Record::new(&self.args.topic).value(self.value(index));
            let delivery = self.producer.send(record).await?;
            if (index / self.args.producers).is_multiple_of(sample_every) {
                samples.push(self.sample(due, delivery, &mut waiting).await?);
            } else {
                waiting.push_back(delivery);
            }
            self.settle(&mut waiting).await?;
            index += self.args.producers;
        }
        self.producer.close().await?;
        for delivery in waiting {
            delivery.await?;
        }
        for sample in samples.into_iter().flatten() {
            sample.await.context("a sample's task")??;
        }
        Ok(())
    }

    /// Waits until a record is due, and says when that was.
    async fn due(&self, index: u64) -> Instant {
        let Some(rate) = self.args.rate else {
            return Instant::now();
        };
        let due = self.started + Duration::from_secs_f64(index as f64 / rate as f64);
        if Instant::now() < due {
            sleep_until(due).await;
        }
        due
    }

    /// Another part of the pool for each record, so that compression finds nothing to share.
    fn value(&self, index: u64) -> &[u8] {
        let size = self.args.record_size;
        let places = (POOL_BYTES - size) as u64;
        let at = (index.wrapping_mul(7919) % places.max(1)) as usize;
        &self.shared.pool[at..at + size]
    }

    /// Measures a record's latency, beside the sending of others unless they have to wait for it anyway.
    async fn sample(
        &self,
        due: Instant,
        delivery: Delivery,
        waiting: &mut VecDeque<Delivery>,
    ) -> Result<Option<tokio::task::JoinHandle<Result<()>>>> {
        let shared = Arc::clone(&self.shared);
        let measure = async move {
            delivery.await?;
            shared.latencies.lock().record(due.elapsed());
            Ok(())
        };
        if self.args.outstanding == Some(1) {
            debug_assert!(waiting.is_empty(), "each record was waited for");
            measure.await.map(|()| None)
        } else {
            Ok(Some(tokio::spawn(measure)))
        }
    }

    async fn settle(&self, waiting: &mut VecDeque<Delivery>) -> Result<()> {
        let most = self.args.outstanding.map_or(usize::MAX, |most| most - 1);
        while let Some(oldest) = waiting.front_mut() {
            let settled = match oldest.now_or_never() {
                Some(settled) => settled,
                None if waiting.len() > most => match waiting.pop_front() {
                    Some(oldest) => {
                        oldest.await?;
                        continue;
                    }
                    None => return Ok(()),
                },
                None => return Ok(()),
            };
            settled?;
            waiting.pop_front();
        }
        Ok(())
    }
}
