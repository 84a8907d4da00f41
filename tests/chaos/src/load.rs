//! Producers and consumers that go on through everything, and note what they are told.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use quipu_client::{
    Admin, Assignment, Client, ClientConfig, Consumer, ConsumerConfig, End, NewTopic, Offset,
    Outcome, Producer, ProducerConfig, Record, Start, partition_for_key,
};
use tokio::{
    runtime::Runtime,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    history::{History, Sent},
    pulse::Pulses,
};

pub(crate) const TOPIC: &str = "chaos";

/// How often each producer sends.
const TICK: Duration = Duration::from_millis(10);
/// Keys of each producer: enough to reach every partition.
const KEYS: u32 = 97;
/// Records of one producer that may be unanswered in one partition: a partition that stands still holds up no other.
const MOST_OPEN: u32 = 2000;
/// Records that a consumer of a random range reads at once.
const RANGE: u64 = 2000;
/// How long reading may stand still before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much load, and where.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) partitions: u32,
    pub(crate) replication_factor: u32,
    pub(crate) producers: u16,
    /// Records a second of each producer.
    pub(crate) rate: u32,
    /// Bytes of a value, at least.
    pub(crate) value_bytes: usize,
    /// Whether consumers read all the time.
    pub(crate) consume: bool,
    /// The nodes' addresses, another one first for each client.
    pub(crate) addresses: Vec<String>,
    /// Whether clients are as patient as they are by default, or give a silent node up after a second.
    pub(crate) patient: bool,
}

impl Plan {
    fn client(&self, number: usize) -> ClientConfig {
        let mut config = ClientConfig::new(&self.addresses[number % self.addresses.len()]);
        if !self.patient {
            config.connect_timeout = Duration::from_secs(1);
            config.request_timeout = Duration::from_secs(5);
            config.keep_alive = Duration::from_secs(1);
        }
        config
    }
}

/// What everybody who reads or writes shares.
#[derive(Debug)]
pub(crate) struct Shared {
    plan: Plan,
    history: Mutex<History>,
    pulses: Mutex<Pulses>,
    /// Errors of consumers and of `send` itself, each with how often.
    notes: Mutex<HashMap<String, u64>>,
    producing: AtomicBool,
    consuming: AtomicBool,
}

impl Shared {
    pub(crate) fn note(&self, note: String) {
        *self.notes.lock().entry(note).or_default() += 1;
    }

    /// How the client of this number reaches the cluster.
    pub(crate) fn client(&self, number: usize) -> ClientConfig {
        self.plan.client(number)
    }

    /// Somebody read a value, who knows himself whether its offset was the next.
    pub(crate) fn read(&self, partition: u32, offset: u64, value: &[u8]) {
        let mut history = self.history.lock();
        history.read(partition, offset, offset, value);
    }
}

/// The load, on a runtime of its own.
#[derive(Debug)]
pub(crate) struct Load {
    runtime: Runtime,
    shared: Arc<Shared>,
    admin: Admin,
    client: Client,
    producers: JoinSet<Result<()>>,
    consumers: JoinSet<()>,
}

impl Load {
    /// Creates the topic and starts.
    ///
    /// # Errors
    /// Where the cluster refuses that.
    pub(crate) fn start(plan: Plan) -> Result<Self> {
        let runtime = Runtime::new()?;
        let client = runtime.block_on(Client::connect(plan.client(0)))?;
        let admin = client.admin();
        let topic = NewTopic {
            replication_factor: Some(plan.replication_factor),
            ..NewTopic::new(TOPIC).partitions(plan.partitions)
        };
        runtime.block_on(create(&admin, topic))?;
        let shared = Arc::new(Shared {
            history: Mutex::new(History::new(plan.partitions, plan.producers)),
            pulses: Mutex::new(Pulses::new(plan.producers, plan.partitions)),
            notes: Mutex::default(),
            producing: AtomicBool::new(true),
            consuming: AtomicBool::new(true),
            plan,
        });
        let mut load = Self {
            runtime,
            shared,
            admin,
            client,
            producers: JoinSet::new(),
            consumers: JoinSet::new(),
        };
        load.spawn()?;
        Ok(load)
    }

    fn spawn(&mut self) -> Result<()> {
        let handle = self.runtime.handle().clone();
        for number in 0..self.shared.plan.producers {
            let shared = Arc::clone(&self.shared);
            let config = shared.plan.client(number.into());
            let producer = handle.block_on(async {
                let client = Client::connect(config).await?;
                client.producer(producer_config(number)).await
            })?;
            self.producers
                .spawn_on(produce(shared, producer, number), &handle);
        }
        if self.shared.plan.consume {
            let (follower, ranges) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
            self.consumers.spawn_on(follow(follower), &handle);
            self.consumers.spawn_on(read_ranges(ranges), &handle);
        }
        Ok(())
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(crate) fn history<T>(&self, look: impl FnOnce(&mut History) -> T) -> T {
        look(&mut self.shared.history.lock())
    }

    pub(crate) fn pulses<T>(&self, look: impl FnOnce(&mut Pulses) -> T) -> T {
        look(&mut self.shared.pulses.lock())
    }

    /// What consumers and producers complained of, and how often.
    pub(crate) fn notes(&self) -> Vec<(String, u64)> {
        let notes = self.shared.notes.lock();
        notes
            .iter()
            .map(|(note, times)| (note.clone(), *times))
            .collect()
    }

    /// Runs a call of the admin API, for at most five seconds.
    ///
    /// # Errors
    /// Its own, or that it took too long.
    pub(crate) fn ask<T, F>(&self, call: impl FnOnce(Admin) -> F) -> Result<T>
    where
        F: Future<Output = quipu_client::Result<T>>,
    {
        let call = call(self.admin.clone());
        let bounded = async { timeout(Duration::from_secs(5), call).await };
        let answer = self.runtime.block_on(bounded);
        Ok(answer.context("no answer within 5 s")??)
    }

    /// Runs something beside the load.
    pub(crate) fn beside(&self, work: impl FnOnce(Admin) -> Work) -> tokio::task::JoinHandle<u32> {
        self.runtime.spawn(work(self.admin.clone()))
    }

    /// Fetches a group's offsets again and again, each time after the last, as long as `take` wants them: by partition of the topic.
    pub(crate) fn look_at_group(
        &self,
        group: String,
        every: Duration,
        mut take: impl FnMut(&[(u32, u64)]) -> bool + Send + 'static,
    ) {
        let (admin, shared) = (self.admin.clone(), Arc::clone(&self.shared));
        self.runtime.spawn(async move {
            loop {
                match admin.group_offsets(&group).await {
                    Ok(offsets) => {
                        let offsets = offsets.iter().map(|o| (o.partition, o.offset.get()));
                        if !take(&offsets.collect::<Vec<_>>()) {
                            return;
                        }
                    }
                    Err(error) => shared.note(format!("fetching a group's offsets: {error:#}")),
                }
                sleep(every).await;
            }
        });
    }

    /// Waits for it.
    ///
    /// # Errors
    /// Where it panicked.
    pub(crate) fn wait_for(&self, work: tokio::task::JoinHandle<u32>) -> Result<u32> {
        Ok(self.runtime.block_on(work)?)
    }

    /// Stops sending, and waits until every record is acknowledged or has failed.
    ///
    /// # Errors
    /// Where that takes longer than any delivery may.
    pub(crate) fn drain(&mut self) -> Result<()> {
        self.shared.producing.store(false, Ordering::Relaxed);
        let producers = &mut self.producers;
        let all = async {
            while let Some(ended) = producers.join_next().await {
                ended??;
            }
            anyhow::Ok(())
        };
        let bounded = async { timeout(Duration::from_secs(180), all).await };
        let drained = self.runtime.block_on(bounded);
        drained.context("stuck: the producers did not come to an end within 180 s")?
    }

    /// Stops the consumers.
    pub(crate) fn stop_consuming(&mut self) {
        self.shared.consuming.store(false, Ordering::Relaxed);
        self.runtime.block_on(self.consumers.shutdown());
    }

    /// Reads the whole topic from its leaders and checks it. Gives the number of records.
    ///
    /// # Errors
    /// Where it can't be read.
    pub(crate) fn check(&self, reading: &str) -> Result<u64> {
        let mut history = self.shared.history.lock();
        let mut check = history.check(reading);
        let mut count = 0;
        for partition in 0..self.shared.plan.partitions {
            self.runtime.block_on(async {
                let mut consumer = self.client.consumer(ConsumerConfig::default());
                let whole = Assignment::new(TOPIC, partition, Start::Earliest).until(End::Latest);
                consumer.assign([whole]).await?;
                loop {
                    let chunk = timeout(PATIENCE, consumer.next_batch()).await;
                    let chunk = chunk.with_context(|| format!("stuck: reading {partition}"))?;
                    let Some(chunk) = chunk else {
                        return anyhow::Ok(());
                    };
                    for record in chunk?.records {
                        count += 1;
                        let value = record.value.unwrap_or_default();
                        check.record(partition, record.offset.get(), &value);
                    }
                }
            })?;
        }
        check.finish();
        Ok(count)
    }
}

/// Creates the topic: a cluster that is only just up may refuse it at first.
async fn create(admin: &Admin, topic: NewTopic) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match admin.create_topic(topic.clone()).await {
            Err(error) if error.is_retryable() && Instant::now() < deadline => {
                println!("creating the topic: {error}");
                sleep(Duration::from_millis(500)).await;
            }
            created => return Ok(created.map(drop)?),
        }
    }
}

/// What runs beside the load; gives how many of its calls were refused.
pub(crate) type Work = futures::future::BoxFuture<'static, u32>;

/// Half of the producers give up early: what was given up must not be stored twice or out of order either.
fn producer_config(number: u16) -> ProducerConfig {
    let mut config = ProducerConfig::default();
    if number % 2 == 1 {
        config.delivery_timeout = Duration::from_secs(8);
    }
    config
}

async fn produce(shared: Arc<Shared>, producer: Producer, number: u16) -> Result<()> {
    let plan = &shared.plan;
    let open: Vec<_> = (0..plan.partitions)
        .map(|_| Arc::new(AtomicU32::new(0)))
        .collect();
    let mut ticks = tokio::time::interval(TICK);
    let mut sent = 0;
    let began = Instant::now();
    while shared.producing.load(Ordering::Relaxed) {
        ticks.tick().await;
        let due = (began.elapsed().as_secs_f64() * f64::from(plan.rate)) as u64;
        // After a pause of this task's own it does not catch up all at once.
        let now = (due.saturating_sub(sent)).min(u64::from(plan.rate / 10).max(1));
        for turn in 0..now {
            let key = format!("{number}-{}", (sent + turn) % u64::from(KEYS));
            let partition = partition_for_key(key.as_bytes(), plan.partitions);
            let open = &open[partition as usize];
            if open.load(Ordering::Relaxed) < MOST_OPEN {
                send(&shared, &producer, number, key.as_bytes(), open).await;
            }
        }
        sent = due;
    }
    // Each failure was noted where it happened.
    let _ = producer.close().await;
    // What was told to the producer is told to the history by tasks of its own.
    let told = async {
        while open.iter().any(|open| open.load(Ordering::Acquire) > 0) {
            sleep(TICK).await;
        }
    };
    timeout(Duration::from_secs(10), told)
        .await
        .context("a delivery was never settled although its producer is closed")
}

async fn send(
    shared: &Arc<Shared>,
    producer: &Producer,
    number: u16,
    key: &[u8],
    open: &Arc<AtomicU32>,
) {
    let sent = shared.history.lock().send(number);
    let value = sent.value(shared.plan.value_bytes);
    let record = Record::new(TOPIC).key(key).value(&value);
    match producer.send(record).await {
        Ok(delivery) => {
            open.fetch_add(1, Ordering::Relaxed);
            let (shared, open) = (Arc::clone(shared), Arc::clone(open));
            tokio::spawn(async move {
                settle(&shared, sent, delivery.await);
                open.fetch_sub(1, Ordering::Release);
            });
        }
        Err(error) => settle(shared, sent, Err(error)),
    }
}

fn settle(
    shared: &Shared,
    sent: Sent,
    outcome: quipu_client::Result<quipu_client::RecordMetadata>,
) {
    match outcome {
        Ok(stored) => {
            let offset = stored.offset.map(Offset::get);
            shared
                .history
                .lock()
                .acknowledged(stored.partition, offset, sent);
            shared.pulses.lock().beat(sent.producer, stored.partition);
        }
        Err(error) => {
            let definite = error.outcome() == Outcome::Definite;
            shared.history.lock().failed(sent, definite);
            shared.note(format!(
                "not acknowledged: {:?}, {:?}",
                error.reason(),
                error.outcome()
            ));
        }
    }
}

/// Reads every partition from the start, and goes on with what comes.
async fn follow(shared: Arc<Shared>) {
    let mut next = vec![0; shared.plan.partitions as usize];
    while shared.consuming.load(Ordering::Relaxed) {
        if let Err(error) = follow_on(&shared, &mut next).await {
            shared.note(format!("a following consumer: {error:#}"));
            sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn follow_on(shared: &Shared, next: &mut [u64]) -> Result<()> {
    let client = Client::connect(shared.plan.client(1)).await?;
    let mut consumer = client.consumer(ConsumerConfig::default());
    let all = (0..).zip(next.iter().copied());
    let all = all.map(|(partition, next)| {
        Assignment::new(TOPIC, partition, Start::Offset(Offset::new(next)))
    });
    let all: Vec<_> = all.collect();
    consumer.assign(all).await?;
    read(shared, &mut consumer, next).await
}

async fn read(shared: &Shared, consumer: &mut Consumer, next: &mut [u64]) -> Result<()> {
    while let Some(chunk) = consumer.next_batch().await {
        let chunk = chunk?;
        let next = &mut next[chunk.partition as usize];
        let mut history = shared.history.lock();
        for record in chunk.records {
            let offset = record.offset.get();
            let value = record.value.unwrap_or_default();
            history.read(chunk.partition, *next, offset, &value);
            *next = offset + 1;
        }
    }
    Ok(())
}

/// Reads random ranges of what is known, again and again: whoever leads by now must show the same.
async fn read_ranges(shared: Arc<Shared>) {
    while shared.consuming.load(Ordering::Relaxed) {
        sleep(Duration::from_millis(250)).await;
        match timeout(PATIENCE, read_range(&shared)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => shared.note(format!("a consumer of a range: {error:#}")),
            Err(_) => shared.note(format!(
                "a consumer of a range got nothing for {PATIENCE:?}"
            )),
        }
    }
}

async fn read_range(shared: &Shared) -> Result<()> {
    let partition = rand::random_range(0..shared.plan.partitions);
    let known = shared.history.lock().known(partition);
    if known == 0 {
        return Ok(());
    }
    let from = rand::random_range(0..known);
    let to = known.min(from + RANGE);
    let client = Client::connect(shared.plan.client(2)).await?;
    let mut consumer = client.consumer(ConsumerConfig::default());
    let start = Start::Offset(Offset::new(from));
    let range = Assignment::new(TOPIC, partition, start).until(End::Offset(Offset::new(to)));
    consumer.assign([range]).await?;
    let mut next = vec![from; shared.plan.partitions as usize];
    read(shared, &mut consumer, &mut next).await?;
    let reached = next[partition as usize];
    ensure!(reached >= to, "it ended at {reached} of {from} to {to}");
    Ok(())
}
