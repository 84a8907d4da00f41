//! `quipu group`.

mod reset;

use std::{
    collections::BTreeMap,
    io::{Write, stdout},
};

use anyhow::Result;
use clap::{Args, Subcommand};
use quipu_client::{
    Admin, GroupDescription, GroupListing, GroupOffset, MemberDescription, Offset, OffsetAt,
};
use serde_json::{Value, json};

use crate::{connect::ConnectArgs, table};

#[derive(Debug, Args)]
pub(crate) struct GroupArgs {
    #[command(subcommand)]
    command: GroupCommand,
}

#[derive(Debug, Subcommand)]
enum GroupCommand {
    /// List all groups
    List {
        #[command(flatten)]
        shared: Shared,
    },
    /// Show a group's members, how far it has read each partition, and how many records it has yet to read
    Describe {
        name: String,
        #[command(flatten)]
        shared: Shared,
    },
    /// Set how far a group without members has read
    ResetOffsets(reset::ResetArgs),
    /// Forget a group without members and how far it has read
    Delete {
        name: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

#[derive(Debug, Args)]
struct Shared {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

impl Shared {
    async fn admin(&self) -> Result<Admin> {
        Ok(self.connect.connect().await?.admin())
    }
}

pub(crate) async fn run(args: GroupArgs) -> Result<()> {
    match args.command {
        GroupCommand::List { shared } => {
            let groups = shared.admin().await?.list_groups().await?;
            list(&groups, shared.json)
        }
        GroupCommand::Describe { name, shared } => {
            let admin = shared.admin().await?;
            let group = admin.describe_group(&name).await?;
            let progress = progress(&admin, &name, &group).await?;
            describe(&group, &progress, shared.json)
        }
        GroupCommand::ResetOffsets(args) => reset::run(args).await,
        GroupCommand::Delete { name, connect } => {
            connect.connect().await?.admin().delete_group(&name).await?;
            writeln!(stdout(), "deleted group {name}")?;
            Ok(())
        }
    }
}

fn list(groups: &[GroupListing], json: bool) -> Result<()> {
    let mut out = stdout().lock();
    if json {
        let groups: Vec<Value> = groups.iter().map(listing_json).collect();
        writeln!(out, "{}", Value::from(groups))?;
        return Ok(());
    }
    let row = |group: &GroupListing| {
        [
            group.group.clone(),
            kind(group).to_owned(),
            group.state.clone(),
            group.members.to_string(),
        ]
    };
    let rows: Vec<_> = groups.iter().map(row).collect();
    table::write(&mut out, ["GROUP", "KIND", "STATE", "MEMBERS"], &rows)?;
    Ok(())
}

fn kind(group: &GroupListing) -> &'static str {
    match group.kind().as_str_name() {
        "CONSUMER" => "consumer",
        "CLASSIC" => "classic",
        _ => "-",
    }
}

fn listing_json(group: &GroupListing) -> Value {
    json!({
        "group": group.group,
        "kind": kind(group),
        "state": group.state,
        "members": group.members,
    })
}

/// How far a group is in one partition.
struct Progress {
    topic: String,
    partition: u32,
    stored: Option<GroupOffset>,
    /// Where the partition ends, where that could be found out.
    end: Option<Offset>,
    member: Option<String>,
}

impl Progress {
    fn lag(&self) -> Option<u64> {
        let stored = self.stored.as_ref()?.offset;
        Some(self.end?.since(stored))
    }
}

/// Of all partitions for which the group has stored an offset, or which a member owns.
async fn progress(admin: &Admin, name: &str, group: &GroupDescription) -> Result<Vec<Progress>> {
    let mut partitions = BTreeMap::new();
    for offset in admin.group_offsets(name).await? {
        let key = (offset.topic.clone(), offset.partition);
        partitions.insert(key, (Some(offset), None));
    }
    for member in &group.members {
        for owned in &member.owned {
            for partition in &owned.partitions {
                let key = (owned.topic.clone(), *partition);
                partitions.entry(key).or_default().1 = Some(member.id.clone());
            }
        }
    }
    let mut all = Vec::new();
    for ((topic, partition), (stored, member)) in partitions {
        // One that has no leader at this moment is shown without its end.
        let end = admin.list_offset(&topic, partition, OffsetAt::Latest).await;
        all.push(Progress {
            end: end.ok().map(|end| end.offset),
            topic,
            partition,
            stored,
            member,
        });
    }
    Ok(all)
}

fn describe(group: &GroupDescription, progress: &[Progress], json: bool) -> Result<()> {
    let mut out = stdout().lock();
    let listing = group.group.clone().unwrap_or_default();
    if json {
        let mut object = listing_json(&listing);
        object["coordinator"] = group.coordinator.as_ref().map(|node| node.id).into();
        object["assignor"] = group.assignor.as_str().into();
        object["epoch"] = group.epoch.into();
        let members = group.members.iter().map(member_json);
        object["members"] = members.collect::<Vec<_>>().into();
        let partitions = progress.iter().map(progress_json);
        object["partitions"] = partitions.collect::<Vec<_>>().into();
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let lag: u64 = progress.iter().filter_map(Progress::lag).sum();
    writeln!(
        out,
        "group {}: {} {}, members {}, records behind {lag}",
        listing.group,
        kind(&listing),
        listing.state,
        listing.members
    )?;
    let rows: Vec<_> = progress.iter().map(progress_row).collect();
    let headings = [
        "TOPIC",
        "PARTITION",
        "OFFSET",
        "END",
        "LAG",
        "MEMBER",
        "METADATA",
    ];
    table::write(&mut out, headings, &rows)?;
    if !group.members.is_empty() {
        let rows: Vec<_> = group.members.iter().map(member_row).collect();
        let headings = ["MEMBER", "INSTANCE", "CLIENT", "EPOCH", "OWNS", "LETS GO"];
        writeln!(out)?;
        table::write(&mut out, headings, &rows)?;
    }
    Ok(())
}

fn progress_row(progress: &Progress) -> [String; 7] {
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    let stored = progress.stored.as_ref();
    [
        progress.topic.clone(),
        progress.partition.to_string(),
        number(stored.map(|stored| stored.offset.get())),
        number(progress.end.map(Offset::get)),
        number(progress.lag()),
        progress.member.clone().unwrap_or_else(|| "-".to_owned()),
        // It may be anything: it must not drive the terminal.
        stored.map_or(String::new(), |stored| {
            stored.metadata.escape_debug().to_string()
        }),
    ]
}

fn progress_json(progress: &Progress) -> Value {
    let stored = progress.stored.as_ref();
    json!({
        "topic": progress.topic,
        "partition": progress.partition,
        "offset": stored.map(|stored| stored.offset.get()),
        "end": progress.end.map(Offset::get),
        "lag": progress.lag(),
        "member": progress.member,
        "metadata": stored.map(|stored| stored.metadata.as_str()),
        "committed_at": stored.map(|stored| stored.committed_at.get()),
    })
}

fn member_row(member: &MemberDescription) -> [String; 6] {
    let count = |topics: &[quipu_client::TopicPartitions]| {
        let partitions = topics.iter().map(|topic| topic.partitions.len());
        partitions.sum::<usize>().to_string()
    };
    [
        member.id.escape_debug().to_string(),
        member.instance_id.escape_debug().to_string(),
        member.client_id.escape_debug().to_string(),
        member.epoch.to_string(),
        count(&member.owned),
        count(&member.revoking),
    ]
}

fn member_json(member: &MemberDescription) -> Value {
    let partitions = |topics: &[quipu_client::TopicPartitions]| {
        let topics = topics.iter();
        let topics = topics.map(|topic| (topic.topic.clone(), topic.partitions.clone().into()));
        Value::Object(topics.collect())
    };
    json!({
        "id": member.id,
        "instance_id": member.instance_id,
        "client_id": member.client_id,
        "rack": member.rack,
        "epoch": member.epoch,
        "topics": member.topics,
        "pattern": member.pattern,
        "owned": partitions(&member.owned),
        "revoking": partitions(&member.revoking),
    })
}
