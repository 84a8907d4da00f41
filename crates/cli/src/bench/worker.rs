//! `quipu bench worker`.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Result, bail};
use clap::Args;
use quipu_client::{OffsetAt, Work, Worker, WorkerConfig};
use tokio::{
    sync::Notify,
    time::{Duration, Instant, timeout},
};

use super::report::{self, Throughput};
use crate::connect::ConnectArgs;

/// How long nothing may come.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchWorkerArgs {
    /// The topic to work through, from its first record to its end as it is now
    #[arg(long, default_value = "bench")]
    topic: String,
    /// The group; a new one unless it is given
    #[arg(long)]
    group: Option<String>,
    /// Records that are worked on at a time
    #[arg(long, default_value_t = 64, value_name = "N")]
    concurrency: usize,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// What the handler counts.
#[derive(Default)]
struct Count {
    records: AtomicU64,
    bytes: AtomicU64,
    goal: u64,
    reached: Notify,
}

pub(crate) async fn run(args: BenchWorkerArgs) -> Result<()> {
    let client = args.connect.connect().await?;
    let admin = client.admin();
    let partitions = admin.describe_topic(&args.topic).await?.partitions.len();
    let mut goal = 0;
    for partition in (0..).take(partitions) {
        let earliest = admin.list_offset(&args.topic, partition, OffsetAt::Earliest);
        let latest = admin.list_offset(&args.topic, partition, OffsetAt::Latest);
        goal += latest.await?.offset.since(earliest.await?.offset);
    }
    let count = Arc::new(Count {
        goal,
        ..Count::default()
    });
    let group = args.group;
    let group = group.unwrap_or_else(|| format!("bench-{:016x}", rand::random::<u64>()));
    let config = WorkerConfig {
        concurrency: args.concurrency,
        ..WorkerConfig::new(group, args.topic.as_str())
    };
    let counting = Arc::clone(&count);
    let started = Instant::now();
    let worker = Worker::start(&client, config, move |work: Arc<Work>| {
        let count = Arc::clone(&counting);
        async move {
            count.add(&work);
            Ok(())
        }
    })
    .await?;
    count.wait().await?;
    worker.close().await?;
    let throughput = Throughput {
        records: count.records.load(Ordering::Relaxed),
        bytes: count.bytes.load(Ordering::Relaxed),
        elapsed: started.elapsed(),
    };
    report::print(args.json, &throughput, None)
}

impl Count {
    fn add(&self, work: &Work) {
        let value = work.record.value.as_ref();
        let bytes = value.map_or(0, |value| value.len() as u64);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.records.fetch_add(1, Ordering::Relaxed) + 1 >= self.goal {
            self.reached.notify_one();
        }
    }

    /// Waits for the goal as long as there is progress.
    async fn wait(&self) -> Result<()> {
        let mut before = 0;
        while self.records.load(Ordering::Relaxed) < self.goal {
            let waited = timeout(PATIENCE, self.reached.notified()).await;
            let now = self.records.load(Ordering::Relaxed);
            if waited.is_err() && now == before {
                bail!(
                    "no record was worked on in {PATIENCE:?}: {now} of {} were",
                    self.goal
                );
            }
            before = now;
        }
        Ok(())
    }
}
