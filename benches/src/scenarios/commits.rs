//! Offsets stored by members of groups.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use quipu_client::{Client, GroupConfig, GroupConsumer, Offset};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::Settings;
use crate::{
    batches, load,
    report::{Report, count},
};

const TOPIC: &str = "read";
const GROUPS: usize = 16;
/// As many members has each group: one for each partition.
const PARTITIONS: u32 = 16;
/// Records of each partition: so far its offsets go.
const RECORDS: u64 = 10_000;
const WARM_UP: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);
const SYNCS: &str = "quipu_wal_flush_seconds_count";

/// A member at work: so many have their partition, and from when to when commits count.
#[derive(Clone)]
struct Stage {
    ready: Arc<AtomicU64>,
    counted: watch::Receiver<Option<(Instant, Instant)>>,
}

/// What a member came to.
struct Done {
    partition: u32,
    /// The offset whose storing was acknowledged last.
    last: Offset,
    times: Histogram<u64>,
}

/// 256 members of 16 groups, each of which stores the offset of its partition, one commit after the other; then the broker is killed
/// and started again, and must know all of them.
pub(super) async fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let mut broker = settings.broker().await?;
    broker.create_topic(TOPIC, PARTITIONS).await?;
    let batch = batches::plain(1, RECORDS as usize)?;
    let mut log = broker.connect().await?;
    for partition in 0..PARTITIONS {
        load::once(&mut log, (TOPIC, partition), batch.clone()).await?;
    }
    let (count_them, counted) = watch::channel(None);
    let stage = Stage {
        ready: Arc::default(),
        counted,
    };
    let mut groups = Vec::new();
    for number in 0..GROUPS {
        let client = Client::connect(broker.address()).await?;
        let members = (0..PARTITIONS).map(|_| {
            let config = GroupConfig {
                auto_commit: None,
                ..GroupConfig::new(name(number), TOPIC)
            };
            let consumer = client.group_consumer(config)?;
            Ok(tokio::spawn(member(consumer, stage.clone())))
        });
        groups.push(members.collect::<Result<Vec<_>>>()?);
    }
    let all = GROUPS as u64 * u64::from(PARTITIONS);
    let start = Instant::now();
    while stage.ready.load(Ordering::Relaxed) < all {
        ensure!(
            start.elapsed() < PATIENCE,
            "the members share no partitions"
        );
        sleep(Duration::from_millis(10)).await;
    }
    let length = Duration::from_millis(settings.amount(20_000));
    let from = Instant::now() + WARM_UP;
    count_them.send_replace(Some((from, from + length)));
    tokio::time::sleep_until(from).await;
    let syncs = broker.metric(SYNCS)?;
    tokio::time::sleep_until(from + length).await;
    let syncs = broker.metric(SYNCS)? - syncs;

    let mut times = Histogram::<u64>::new(3)?;
    let mut stored = Vec::new();
    for group in groups {
        let members: Result<Vec<Done>> = try_join_all(group).await?.into_iter().collect();
        let members = members?;
        for member in &members {
            times.add(&member.times)?;
        }
        stored.push(members);
    }
    broker.kill()?;
    broker.spawn()?;
    broker.connect().await?;
    check(broker.address(), &stored).await?;
    let commits = times.len() as f64;
    report.row(
        format!("offset commits of {all} members, one at a time each"),
        format!("{} commits/s", count(commits / length.as_secs_f64())),
        format!(
            "{:.0} for each sync; all that were acknowledged are there after kill -9",
            commits / syncs
        ),
        "goal 10,000 a second",
    );
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
    report.row(
        "time of such a commit, p50 / p99",
        format!("{:.1} / {:.1} ms", at(0.5), at(0.99)),
        "",
        "",
    );
    Ok(())
}

fn name(group: usize) -> String {
    format!("group-{group}")
}

async fn member(mut consumer: GroupConsumer, stage: Stage) -> Result<Done> {
    let mut counted = stage.counted;
    // While members join, partitions come and go.
    let mut is_ready = false;
    let (from, until) = loop {
        if let Some(counted) = *counted.borrow_and_update() {
            break counted;
        }
        // What it reads is of no matter.
        let _ = timeout(Duration::from_millis(50), consumer.next_batch()).await;
        let one = consumer.assignment().len() == 1;
        if one != is_ready {
            is_ready = one;
            match one {
                true => stage.ready.fetch_add(1, Ordering::Relaxed),
                false => stage.ready.fetch_sub(1, Ordering::Relaxed),
            };
        }
    };
    let assigned = consumer.assignment();
    let (topic, partition) = assigned.first().context("it has a partition")?;
    let mut times = Histogram::new(3)?;
    for offset in (1..=RECORDS).cycle() {
        let (last, start) = (Offset::new(offset), Instant::now());
        consumer.commit_offset(topic, *partition, last).await?;
        let end = Instant::now();
        if end >= from && end < until {
            times.record((end - start).as_micros() as u64)?;
        }
        if end >= until {
            return Ok(Done {
                partition: *partition,
                last,
                times,
            });
        }
    }
    unreachable!("a cycle has no end")
}

/// What was acknowledged is there.
async fn check(address: &str, stored: &[Vec<Done>]) -> Result<()> {
    let admin = Client::connect(address).await?.admin();
    for (number, members) in stored.iter().enumerate() {
        let offsets = admin.group_offsets(&name(number)).await?;
        for member in members {
            let found = offsets.iter().find(|o| o.partition == member.partition);
            let found = found.map(|offset| offset.offset);
            ensure!(
                found == Some(member.last),
                "group {number} had stored {} of partition {}, and {found:?} is there",
                member.last,
                member.partition
            );
        }
    }
    Ok(())
}
