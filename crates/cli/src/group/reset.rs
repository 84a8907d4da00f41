//! `quipu group reset-offsets`.

use std::{
    collections::BTreeSet,
    io::{Write, stdout},
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgGroup, Args};
use quipu_client::{Admin, GroupOffset, Offset, OffsetAt};
use serde_json::{Value, json};

use crate::{connect::ConnectArgs, table, values::Place};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("place").required(true))]
pub(super) struct ResetArgs {
    /// The group
    name: String,
    /// A topic; may be given several times
    #[arg(long, value_name = "TOPIC", conflicts_with = "from_file")]
    topic: Vec<String>,
    /// All topics for which the group has stored offsets
    #[arg(long, conflicts_with_all = ["topic", "from_file"])]
    all_topics: bool,
    /// A partition of the one topic; may be given several times. All partitions if not given
    #[arg(long, value_name = "P", requires = "topic")]
    partition: Vec<u32>,
    /// Where to: earliest, latest, an OFFSET, -N (so many records before the end of each partition), or @TIME (RFC 3339, or milliseconds since 1970)
    #[arg(
        long,
        value_name = "PLACE",
        group = "place",
        allow_hyphen_values = true
    )]
    to: Option<Place>,
    /// So many records forth, or back
    #[arg(long, value_name = "N", group = "place", allow_hyphen_values = true)]
    shift_by: Option<i64>,
    /// The offsets in a file that --to-file wrote
    #[arg(long, value_name = "FILE", group = "place")]
    from_file: Option<PathBuf>,
    /// Write the offsets as they are now to a file, and change nothing
    #[arg(long, value_name = "FILE", group = "place")]
    to_file: Option<PathBuf>,
    /// Show what would be stored, and store nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: ResetArgs) -> Result<()> {
    let admin = args.connect.connect().await?.admin();
    if let Some(path) = &args.to_file {
        return save(&admin, &args, path).await;
    }
    let wanted = match &args.from_file {
        Some(path) => read(path)?,
        None => places(&admin, &args).await?,
    };
    ensure!(
        !wanted.is_empty(),
        "group {:?} has stored no offset there: name the topic with --topic",
        args.name
    );
    let mut offsets = Vec::new();
    for offset in wanted {
        offsets.push(within(&admin, offset).await?);
    }
    if !args.dry_run {
        admin.set_group_offsets(&args.name, &offsets).await?;
    }
    let row = |offset: &GroupOffset| {
        [
            offset.topic.clone(),
            offset.partition.to_string(),
            offset.offset.to_string(),
        ]
    };
    let rows: Vec<_> = offsets.iter().map(row).collect();
    table::write(
        &mut stdout().lock(),
        ["TOPIC", "PARTITION", "OFFSET"],
        &rows,
    )?;
    Ok(())
}

/// The partitions that are meant.
async fn partitions(
    admin: &Admin,
    args: &ResetArgs,
    stored: &[GroupOffset],
) -> Result<Vec<(String, u32)>> {
    let topics: BTreeSet<String> = match args.all_topics {
        true => stored.iter().map(|offset| offset.topic.clone()).collect(),
        false => args.topic.iter().cloned().collect(),
    };
    ensure!(
        args.all_topics || !topics.is_empty(),
        "say which topics are meant: --topic TOPIC or --all-topics"
    );
    ensure!(
        args.partition.is_empty() || topics.len() == 1,
        "--partition goes with one --topic"
    );
    let mut partitions = Vec::new();
    for topic in topics {
        let known = admin.describe_topic(&topic).await?.partitions.len();
        let numbers: BTreeSet<u32> = match args.partition.is_empty() {
            true => (0..).take(known).collect(),
            false => args.partition.iter().copied().collect(),
        };
        partitions.extend(numbers.into_iter().map(|number| (topic.clone(), number)));
    }
    Ok(partitions)
}

/// Where each of the partitions is to be.
async fn places(admin: &Admin, args: &ResetArgs) -> Result<Vec<GroupOffset>> {
    let stored = admin.group_offsets(&args.name).await?;
    let mut offsets = Vec::new();
    for (topic, partition) in partitions(admin, args, &stored).await? {
        let at = |at| admin.list_offset(&topic, partition, at);
        let offset = match (args.to, args.shift_by) {
            (Some(Place::Earliest), _) => at(OffsetAt::Earliest).await?.offset,
            (Some(Place::Latest), _) => at(OffsetAt::Latest).await?.offset,
            (Some(Place::Offset(offset)), _) => offset,
            (Some(Place::Time(time)), _) => at(OffsetAt::Timestamp(time)).await?.offset,
            (Some(Place::FromEnd(records)), _) => {
                let end = at(OffsetAt::Latest).await?.offset;
                Offset::new(end.get().saturating_sub(records))
            }
            (None, Some(records)) => {
                let same =
                    |known: &&GroupOffset| known.topic == topic && known.partition == partition;
                let Some(known) = stored.iter().find(same) else {
                    continue;
                };
                Offset::new(known.offset.get().saturating_add_signed(records))
            }
            (None, None) => bail!("say where to: --to PLACE or --shift-by N"),
        };
        offsets.push(GroupOffset::new(topic, partition, offset));
    }
    Ok(offsets)
}

/// The offset, or the nearest one that the partition holds.
async fn within(admin: &Admin, offset: GroupOffset) -> Result<GroupOffset> {
    let at = |at| admin.list_offset(&offset.topic, offset.partition, at);
    let first = at(OffsetAt::Earliest).await?.offset;
    let end = at(OffsetAt::Latest).await?.offset;
    Ok(GroupOffset {
        offset: offset.offset.clamp(first, end.max(first)),
        ..offset
    })
}

async fn save(admin: &Admin, args: &ResetArgs, path: &PathBuf) -> Result<()> {
    let mut offsets = admin.group_offsets(&args.name).await?;
    if !args.topic.is_empty() {
        offsets.retain(|offset| args.topic.contains(&offset.topic));
    }
    let offset = |offset: &GroupOffset| {
        json!({
            "topic": offset.topic,
            "partition": offset.partition,
            "offset": offset.offset.get(),
            "metadata": offset.metadata,
        })
    };
    let lines: String = offsets.iter().map(|o| format!("{}\n", offset(o))).collect();
    #[allow(clippy::disallowed_methods, reason = "the user's own file")]
    std::fs::write(path, lines).with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(
        stdout(),
        "wrote {} offsets to {}",
        offsets.len(),
        path.display()
    )?;
    Ok(())
}

fn read(path: &PathBuf) -> Result<Vec<GroupOffset>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut offsets = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let offset = read_line(text)
            .with_context(|| format!("{}, line {line}, is no offset", path.display()))?;
        offsets.push(offset);
    }
    Ok(offsets)
}

fn read_line(text: &str) -> Result<GroupOffset> {
    let line: Value = serde_json::from_str(text)?;
    let topic = line["topic"].as_str().context("it lacks topic")?;
    let partition = line["partition"].as_u64().context("it lacks partition")?;
    let offset = line["offset"].as_u64().context("it lacks offset")?;
    Ok(GroupOffset {
        metadata: line["metadata"].as_str().unwrap_or_default().to_owned(),
        ..GroupOffset::new(topic, u32::try_from(partition)?, Offset::new(offset))
    })
}

#[cfg(test)]
mod tests {
    use super::read_line;

    #[test]
    fn saved_offsets_are_read_and_others_are_not() {
        let line = r#"{"topic":"t","partition":3,"offset":7,"metadata":"m"}"#;
        let offset = read_line(line).unwrap();
        assert_eq!((offset.partition, offset.offset.get()), (3, 7));
        for bad in ["", "{}", r#"{"topic":"t","partition":-1,"offset":7}"#] {
            assert!(read_line(bad).is_err(), "{bad}");
        }
    }
}
