//! `quipu consume`.

mod group;

use std::io::{BufWriter, Write, stdout};

use anyhow::{Result, bail, ensure};
use clap::Args;
use futures::FutureExt;
use quipu_client::{Admin, Assignment, Client, ConsumerConfig, End, OffsetAt, Start};

use crate::{connect::ConnectArgs, format::Format, values::Place};

#[derive(Debug, Args)]
pub(crate) struct ConsumeArgs {
    topic: String,
    /// A partition to read; may be given several times. All partitions if not given
    #[arg(long, value_name = "P")]
    partition: Vec<u32>,
    /// Where to begin: earliest, latest, an OFFSET, -N (so many records before the end of each partition), or @TIME (RFC 3339, or milliseconds since 1970)
    #[arg(
        long,
        value_name = "PLACE",
        default_value = "earliest",
        allow_hyphen_values = true
    )]
    from: Place,
    /// Where to stop, before that record: an OFFSET, latest (the end as it is now) or @TIME
    #[arg(long, value_name = "PLACE")]
    to: Option<Place>,
    /// Stop after so many records
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Read as a member of this group: what it has read is remembered, and it shares the partitions with its other members.
    /// --from then says where it begins where nothing is remembered
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["partition", "to"])]
    group: Option<String>,
    /// Go on reading what is written later, instead of stopping at the end
    #[arg(long, short)]
    follow: bool,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// What it calls itself: quotas are of this name
    #[arg(long, value_name = "ID", default_value = "quipu-consume")]
    client_id: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(args: ConsumeArgs) -> Result<()> {
    let client = args.connect.connect_as(&args.client_id).await?;
    if let Some(group) = &args.group {
        return group::run(&args, &client, group).await;
    }
    let assignments = assignments(&args, &client.admin()).await?;
    print_records(&args, &client, assignments).await
}

async fn assignments(args: &ConsumeArgs, admin: &Admin) -> Result<Vec<Assignment>> {
    let description = admin.describe_topic(&args.topic).await?;
    let known = description.partitions.len();
    let mut partitions = args.partition.clone();
    partitions.sort_unstable();
    partitions.dedup();
    if partitions.is_empty() {
        partitions = (0..).take(known).collect();
    }
    let start = start(args.from);
    let mut assignments = Vec::new();
    for partition in partitions {
        ensure!(
            (partition as usize) < known,
            "topic {:?} has no partition {partition}: its partitions are 0 to {}",
            args.topic,
            known.saturating_sub(1)
        );
        if let (Place::Offset(offset), false) = (args.from, args.follow) {
            let latest = admin.list_offset(&args.topic, partition, OffsetAt::Latest);
            let latest = latest.await?.offset;
            ensure!(
                offset <= latest,
                "partition {partition} of topic {:?} has no record at or past offset {latest}, and --from is {offset}: start earlier, or wait with --follow",
                args.topic
            );
        }
        let end = end(args, admin, partition).await?;
        assignments.push(Assignment::new(&args.topic, partition, start).until(end));
    }
    Ok(assignments)
}

fn start(place: Place) -> Start {
    match place {
        Place::Earliest => Start::Earliest,
        Place::Latest => Start::Latest,
        Place::Offset(offset) => Start::Offset(offset),
        Place::FromEnd(records) => Start::FromEnd(records),
        Place::Time(time) => Start::Timestamp(time),
    }
}

async fn end(args: &ConsumeArgs, admin: &Admin, partition: u32) -> Result<End> {
    Ok(match args.to {
        None if args.follow => End::Never,
        None | Some(Place::Latest) => End::Latest,
        Some(Place::Time(time)) => End::Timestamp(time),
        Some(Place::Offset(offset)) if args.follow => End::Offset(offset),
        Some(Place::Offset(offset)) => {
            // Without --follow nobody wants to wait for what is not there yet.
            let latest = admin.list_offset(&args.topic, partition, OffsetAt::Latest);
            End::Offset(offset.min(latest.await?.offset))
        }
        Some(Place::Earliest | Place::FromEnd(_)) => {
            bail!("--to takes an offset, latest or @TIME")
        }
    })
}

async fn print_records(
    args: &ConsumeArgs,
    client: &Client,
    assignments: Vec<Assignment>,
) -> Result<()> {
    let mut out = BufWriter::with_capacity(256 << 10, stdout());
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign(assignments).await?;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let chunk = match consumer.next_batch().now_or_never() {
            Some(chunk) => chunk,
            None => {
                // What was read is shown before more is waited for.
                out.flush()?;
                tokio::select! {
                    chunk = consumer.next_batch() => chunk,
                    _ = tokio::signal::ctrl_c() => break,
                }
            }
        };
        let Some(chunk) = chunk else {
            break;
        };
        let chunk = chunk?;
        let wanted = usize::try_from(left).unwrap_or(usize::MAX);
        for record in chunk.records.iter().take(wanted) {
            let format = args.format;
            format.write(&mut out, &chunk.topic, chunk.partition, record)?;
        }
        left = left.saturating_sub(chunk.records.len() as u64);
    }
    out.flush()?;
    Ok(())
}
