//! A group of a hundred members, of whom one leaves or one more joins at a time, under a steady load.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use quipu_client::{Client, GroupConfig, GroupConsumer, Producer, ProducerConfig, Record};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{Settings, milliseconds};
use crate::report::Report;

const TOPIC: &str = "shared";
const MEMBERS: usize = 100;
const PARTITIONS: u32 = 300;
/// So often each partition gets a record: a fifth of them at a time.
const RECORD_EVERY: Duration = Duration::from_millis(50);
const TURNS: u32 = 5;
/// For so long, at least, members are watched around each change, and without one.
const WINDOW: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// Twenty times, in turns: nothing changes, one more joins, nothing changes, one leaves.
pub(super) async fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let mut broker = settings.broker().await?;
    broker.create_topic(TOPIC, PARTITIONS).await?;
    let client = Client::connect(broker.address()).await?;
    let producer = client.producer(ProducerConfig::default()).await?;
    let load = tokio::spawn(steady(producer));
    let mut group = Group::default();
    for _ in 0..MEMBERS {
        group.join(broker.address()).await?;
    }
    until("each member has its partitions", || {
        let mut members = group.members.iter();
        members.all(|member| member.seen.lock().held == PARTITIONS as usize / MEMBERS)
    })
    .await?;
    let (mut joined, mut left) = (Vec::new(), Vec::new());
    let mut gaps = [const { Vec::new() }; 3];
    for _ in 0..settings.amount(20) {
        gaps[0].extend(group.watch().await);
        joined.push(group.one_joins(broker.address()).await?);
        gaps[1].extend(group.finish().await);
        gaps[0].extend(group.watch().await);
        left.push(group.one_leaves().await?);
        gaps[2].extend(group.finish().await);
    }
    ensure!(!load.is_finished(), "the load ended: {:?}", load.await);
    load.abort();
    report.row(
        "100 members, 300 partitions: one joins, until it has had a record of each of its partitions, p50 / max",
        spread(&mut joined),
        "",
        "goal 1,000 ms",
    );
    report.row(
        "one leaves, until others have had a record of each of its partitions, p50 / max",
        spread(&mut left),
        "",
        "goal 1,000 ms",
    );
    let [mut alone, mut joining, mut leaving] = gaps;
    let without = spread(&mut alone);
    for (what, gaps) in [("joins", &mut joining), ("leaves", &mut leaving)] {
        report.row(
            format!("the others' longest time without a record in the second in which one {what}, p50 / max of all of them"),
            spread(gaps),
            format!("in a second without a change {without}"),
            "",
        );
    }
    Ok(())
}

/// Sends records round the partitions.
async fn steady(producer: Producer) -> Result<()> {
    let mut ticks = interval(RECORD_EVERY / TURNS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in (0..TURNS).cycle() {
        ticks.tick().await;
        for partition in (turn..PARTITIONS).step_by(TURNS as usize) {
            let record = Record::new(TOPIC).partition(partition).value(b"x");
            drop(producer.send(record).await?);
        }
    }
    Ok(())
}

/// What a member has had since the window began.
struct Seen {
    last: Instant,
    longest: Duration,
    /// The first record of each partition.
    first: Vec<(u32, Instant)>,
    /// How many partitions it has now.
    held: usize,
}

struct Member {
    seen: Arc<Mutex<Seen>>,
    leave: oneshot::Sender<()>,
    /// Ends with the partitions that it had.
    task: JoinHandle<Result<Vec<u32>>>,
}

/// The members, the oldest first.
#[derive(Default)]
struct Group {
    members: VecDeque<Member>,
    began: Option<Instant>,
}

impl Group {
    fn begin(&mut self) {
        let now = Instant::now();
        self.began = Some(now);
        for member in &self.members {
            let mut seen = member.seen.lock();
            seen.longest = Duration::ZERO;
            seen.first.clear();
        }
    }

    /// Waits for the window's end, and answers the longest time without a record of each member that was there before it.
    async fn finish(&mut self) -> Vec<Duration> {
        if let Some(began) = self.began {
            tokio::time::sleep_until(began + WINDOW).await;
        }
        let others = self.members.iter().take(MEMBERS);
        let longest = others.map(|member| {
            let seen = member.seen.lock();
            seen.longest.max(seen.last.elapsed())
        });
        longest.collect()
    }

    async fn watch(&mut self) -> Vec<Duration> {
        self.begin();
        self.finish().await
    }

    async fn join(&mut self, address: &str) -> Result<()> {
        // A process of its own has connections of its own.
        let client = Client::connect(address).await?;
        self.add(&client)
    }

    fn add(&mut self, client: &Client) -> Result<()> {
        let consumer = client.group_consumer(GroupConfig::new("readers", TOPIC))?;
        let (leave, left) = oneshot::channel();
        let seen = Arc::new(Mutex::new(Seen {
            last: Instant::now(),
            longest: Duration::ZERO,
            first: Vec::new(),
            held: 0,
        }));
        let task = tokio::spawn(read(consumer, Arc::clone(&seen), left));
        self.members.push_back(Member { seen, leave, task });
        Ok(())
    }

    async fn one_joins(&mut self, address: &str) -> Result<Duration> {
        let client = Client::connect(address).await?;
        let share = PARTITIONS as usize / (MEMBERS + 1);
        self.begin();
        let start = Instant::now();
        self.add(&client)?;
        let newest = self.members.back().context("a member was added")?;
        until("the new member has its partitions", || {
            newest.seen.lock().first.len() == share
        })
        .await?;
        let seen = newest.seen.lock();
        let last = seen.first.iter().map(|(_, at)| *at).max();
        Ok(last.context("it has some")? - start)
    }

    async fn one_leaves(&mut self) -> Result<Duration> {
        let oldest = self.members.pop_front().context("there are members")?;
        self.begin();
        let start = Instant::now();
        ensure!(oldest.leave.send(()).is_ok(), "a member ended");
        let had: HashSet<u32> = oldest.task.await??.into_iter().collect();
        let theirs = || {
            let members = self.members.iter();
            let seen = members.flat_map(|member| member.seen.lock().first.clone());
            let theirs = seen.filter(|(partition, _)| had.contains(partition));
            theirs.collect::<Vec<_>>()
        };
        until("others have its partitions", || theirs().len() == had.len()).await?;
        let last = theirs().into_iter().map(|(_, at)| at).max();
        Ok(last.context("it had some")? - start)
    }
}

async fn read(
    mut consumer: GroupConsumer,
    seen: Arc<Mutex<Seen>>,
    mut leave: oneshot::Receiver<()>,
) -> Result<Vec<u32>> {
    loop {
        tokio::select! {
            chunk = consumer.next_batch() => {
                let chunk = chunk.context("the group cannot be joined")??;
                let now = Instant::now();
                let mut seen = seen.lock();
                seen.longest = seen.longest.max(now - seen.last);
                seen.last = now;
                seen.held = consumer.assignment().len();
                if seen.first.iter().all(|(partition, _)| *partition != chunk.partition) {
                    seen.first.push((chunk.partition, now));
                }
            }
            _ = &mut leave => break,
        }
    }
    let had = consumer.assignment().into_iter();
    let had = had.map(|(_, partition)| partition).collect();
    consumer.close().await?;
    Ok(had)
}

async fn until(what: &str, is: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !is() {
        ensure!(start.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// `12 / 34 ms`: median and greatest.
fn spread(times: &mut [Duration]) -> String {
    times.sort();
    let middle = times[times.len() / 2];
    let most = times[times.len() - 1];
    format!("{} / {} ms", milliseconds(middle), milliseconds(most))
}
