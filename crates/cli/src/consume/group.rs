//! `quipu consume --group`.

use std::{
    collections::HashMap,
    io::{BufWriter, Write, stdout},
    time::Duration,
};

use anyhow::Result;
use futures::FutureExt;
use quipu_client::{Client, GroupConfig, GroupConsumer, Offset, OffsetAt, RecordChunk};

use super::{ConsumeArgs, start};

/// How long nothing must come before it is asked whether the end is reached.
const QUIET: Duration = Duration::from_millis(200);

pub(super) async fn run(args: &ConsumeArgs, client: &Client, group: &str) -> Result<()> {
    let ends = match args.follow {
        true => None,
        false => Some(ends(args, client).await?),
    };
    let mut consumer = client.group_consumer(GroupConfig {
        start: start(args.from),
        ..GroupConfig::new(group, args.topic.as_str())
    })?;
    let read = read(args, client, group, &mut consumer, ends).await;
    let closed = consumer.close().await;
    read?;
    Ok(closed?)
}

/// Where each partition ends now.
async fn ends(args: &ConsumeArgs, client: &Client) -> Result<HashMap<u32, Offset>> {
    let admin = client.admin();
    let known = admin.describe_topic(&args.topic).await?.partitions.len();
    let mut ends = HashMap::new();
    for partition in (0..).take(known) {
        let end = admin.list_offset(&args.topic, partition, OffsetAt::Latest);
        ends.insert(partition, end.await?.offset);
    }
    Ok(ends)
}

async fn read(
    args: &ConsumeArgs,
    client: &Client,
    group: &str,
    consumer: &mut GroupConsumer,
    ends: Option<HashMap<u32, Offset>>,
) -> Result<()> {
    let mut out = BufWriter::with_capacity(256 << 10, stdout());
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let chunk = match consumer.next_batch().now_or_never() {
            Some(chunk) => chunk,
            None => {
                // What was read is shown before more is waited for.
                out.flush()?;
                tokio::select! {
                    chunk = consumer.next_batch() => chunk,
                    () = tokio::time::sleep(QUIET), if ends.is_some() => {
                        if is_through(client, group, consumer, ends.as_ref()).await {
                            break;
                        }
                        continue;
                    }
                    _ = tokio::signal::ctrl_c() => break,
                }
            }
        };
        let Some(chunk) = chunk else {
            break;
        };
        let RecordChunk {
            topic,
            partition,
            records,
        } = chunk?;
        for record in &records {
            args.format.write(&mut out, &topic, partition, record)?;
            left -= 1;
            if left == 0 {
                // The rest of the batch is for the next time.
                out.flush()?;
                let next = record.offset.plus(1);
                consumer.stop_at(&topic, partition, next);
                break;
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// Whether this member has read all that there was at the start of what it owns.
async fn is_through(
    client: &Client,
    group: &str,
    consumer: &GroupConsumer,
    ends: Option<&HashMap<u32, Offset>>,
) -> bool {
    // While the group is on its way to another coordinator, it is not known.
    let Ok(described) = client.admin().describe_group(group).await else {
        return false;
    };
    let id = consumer.member_id();
    let Some(member) = described.members.iter().find(|member| member.id == id) else {
        return false;
    };
    let owned: usize = member
        .owned
        .iter()
        .map(|topic| topic.partitions.len())
        .sum();
    let assigned = consumer.assignment();
    let read = |(topic, partition): &quipu_client::TopicPartition| {
        let end = ends.and_then(|ends| ends.get(partition));
        consumer.position(topic, *partition) >= end.copied()
    };
    owned == assigned.len() && assigned.iter().all(read)
}
