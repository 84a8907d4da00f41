//! `quipu topic`.

use std::{
    collections::BTreeMap,
    io::{Write, stdout},
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use quipu_client::{Admin, NewTopic, PartitionDescription, Topic, TopicDescription};
use quipu_model::Offset;
use serde_json::{Value, json};

use crate::{
    connect::ConnectArgs,
    table,
    values::{parse_pair, to_map},
};

#[derive(Debug, Args)]
pub(crate) struct TopicArgs {
    #[command(subcommand)]
    command: TopicCommand,
}

#[derive(Debug, Subcommand)]
enum TopicCommand {
    /// Create a topic
    Create {
        /// 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-'
        name: String,
        /// How many partitions; the broker's default if not given
        #[arg(long, value_name = "N")]
        partitions: Option<u32>,
        /// How many replicas each partition has; the broker's default if not given
        #[arg(long, value_name = "N")]
        replication_factor: Option<u32>,
        /// A setting, such as retention.ms=3600000; may be given several times
        #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
        config: Vec<(String, String)>,
        #[command(flatten)]
        shared: Shared,
    },
    /// List all topics
    List {
        /// Quipu's own topics too
        #[arg(long)]
        internal: bool,
        #[command(flatten)]
        shared: Shared,
    },
    /// Show a topic's settings and partitions
    Describe {
        name: String,
        #[command(flatten)]
        shared: Shared,
    },
    /// Change a topic's settings, or give it more partitions
    Alter {
        name: String,
        /// How many partitions there are to be: more than now. Keys may go to other partitions then
        #[arg(long, value_name = "N")]
        partitions: Option<u32>,
        /// A setting to change; may be given several times
        #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
        config: Vec<(String, String)>,
        /// A setting to return to its default; may be given several times
        #[arg(long, value_name = "NAME")]
        reset: Vec<String>,
        #[command(flatten)]
        shared: Shared,
    },
    /// Delete a partition's oldest records, on all replicas
    DeleteRecords {
        name: String,
        /// The partition's number
        #[arg(long, value_name = "P")]
        partition: u32,
        /// The first offset to keep, or latest: all that is there goes
        #[arg(long, value_name = "OFFSET", value_parser = parse_before)]
        before: Before,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Delete a topic and all its records
    Delete {
        name: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// Up to where records are deleted.
#[derive(Clone, Copy, Debug)]
enum Before {
    Offset(Offset),
    Latest,
}

fn parse_before(text: &str) -> Result<Before, String> {
    if text == "latest" {
        return Ok(Before::Latest);
    }
    let offset = text.parse().map(Offset::new).map(Before::Offset);
    offset.map_err(|_| "give an offset, or latest".to_owned())
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

    fn print(&self, topic: &Topic, done: &str) -> Result<()> {
        let mut out = stdout().lock();
        if self.json {
            writeln!(out, "{}", topic_json(topic))?;
        } else {
            writeln!(
                out,
                "{done} topic {}: partitions {}, replicas {}",
                topic.name, topic.partitions, topic.replication_factor
            )?;
        }
        Ok(())
    }
}

pub(crate) async fn run(args: TopicArgs) -> Result<()> {
    match args.command {
        TopicCommand::Create {
            name,
            partitions,
            replication_factor,
            config,
            shared,
        } => {
            let topic = NewTopic {
                name,
                partitions,
                replication_factor,
                config: to_map(config),
            };
            let topic = shared.admin().await?.create_topic(topic).await?;
            shared.print(&topic, "created")
        }
        TopicCommand::List { internal, shared } => {
            let topics = shared.admin().await?.list_topics(internal).await?;
            list(&topics, shared.json)
        }
        TopicCommand::Describe { name, shared } => {
            let description = shared.admin().await?.describe_topic(&name).await?;
            describe(&description, shared.json)
        }
        TopicCommand::Alter {
            name,
            partitions,
            config,
            reset,
            shared,
        } => {
            let settings = !config.is_empty() || !reset.is_empty();
            let admin = shared.admin().await?;
            let mut altered = None;
            if settings {
                let altering = admin.alter_topic_config(&name, to_map(config), reset);
                altered = Some(altering.await?);
            }
            if let Some(partitions) = partitions {
                altered = Some(admin.add_partitions(&name, partitions).await?);
            }
            let altered = altered.context(
                "nothing to change: give --config NAME=VALUE, --reset NAME or --partitions N",
            )?;
            shared.print(&altered, "altered")
        }
        TopicCommand::DeleteRecords {
            name,
            partition,
            before,
            connect,
        } => {
            let admin = connect.connect().await?.admin();
            let before = match before {
                Before::Offset(offset) => Some(offset),
                Before::Latest => None,
            };
            let start = admin.delete_records(&name, partition, before).await?;
            writeln!(
                stdout(),
                "partition {partition} of {name} begins at offset {start}"
            )?;
            Ok(())
        }
        TopicCommand::Delete { name, connect } => {
            connect.connect().await?.admin().delete_topic(&name).await?;
            writeln!(stdout(), "deleted topic {name}")?;
            Ok(())
        }
    }
}

fn list(topics: &[Topic], json: bool) -> Result<()> {
    let mut out = stdout().lock();
    if json {
        let topics: Vec<Value> = topics.iter().map(topic_json).collect();
        writeln!(out, "{}", Value::from(topics))?;
        return Ok(());
    }
    let row = |topic: &Topic| {
        [
            topic.name.clone(),
            topic.partitions.to_string(),
            topic.replication_factor.to_string(),
            topic.id.clone(),
        ]
    };
    let rows: Vec<_> = topics.iter().map(row).collect();
    table::write(&mut out, ["NAME", "PARTITIONS", "REPLICAS", "ID"], &rows)?;
    Ok(())
}

fn describe(description: &TopicDescription, json: bool) -> Result<()> {
    let mut out = stdout().lock();
    let topic = description.topic.clone().unwrap_or_default();
    if json {
        let mut object = topic_json(&topic);
        let partitions = description.partitions.iter().map(partition_json);
        object["partition_states"] = partitions.collect::<Vec<_>>().into();
        writeln!(out, "{object}")?;
        return Ok(());
    }
    writeln!(
        out,
        "topic {} ({}): partitions {}, replicas {}",
        topic.name, topic.id, topic.partitions, topic.replication_factor
    )?;
    for (name, value) in topic.config.iter().collect::<BTreeMap<_, _>>() {
        writeln!(out, "  {name}={value}")?;
    }
    let rows: Vec<_> = description.partitions.iter().map(partition_row).collect();
    let headings = [
        "PARTITION",
        "LEADER",
        "EPOCH",
        "REPLICAS",
        "START",
        "END",
        "BYTES",
        "STATE",
    ];
    table::write(&mut out, headings, &rows)?;
    Ok(())
}

fn partition_row(partition: &PartitionDescription) -> [String; 8] {
    let leader = partition.leader.as_ref();
    let numbers = |nodes: &[u64]| -> String {
        let nodes: Vec<_> = nodes.iter().map(u64::to_string).collect();
        nodes.join(",")
    };
    let moving = !partition.leaving.is_empty() || !partition.joining.is_empty();
    let state = match partition.damage.as_str() {
        "" if moving => format!(
            "moves: {} join, {} leave",
            numbers(&partition.joining),
            numbers(&partition.leaving)
        ),
        "" => "served".to_owned(),
        damage => damage.to_owned(),
    };
    [
        partition.partition.to_string(),
        leader.map_or_else(|| "-".to_owned(), |node| node.id.to_string()),
        partition.leader_epoch.to_string(),
        numbers(&partition.replicas),
        partition.log_start_offset.to_string(),
        partition.high_watermark.to_string(),
        partition.size_bytes.to_string(),
        state,
    ]
}

fn topic_json(topic: &Topic) -> Value {
    let config: BTreeMap<_, _> = topic.config.iter().collect();
    json!({
        "name": topic.name,
        "id": topic.id,
        "partitions": topic.partitions,
        "replication_factor": topic.replication_factor,
        "internal": topic.internal,
        "config": config,
    })
}

fn partition_json(partition: &PartitionDescription) -> Value {
    let leader = partition.leader.as_ref();
    json!({
        "partition": partition.partition,
        "leader": leader.map(|node| json!({"id": node.id, "address": node.address})),
        "leader_epoch": partition.leader_epoch,
        "replicas": partition.replicas,
        "leaving": partition.leaving,
        "joining": partition.joining,
        "log_start_offset": partition.log_start_offset,
        "high_watermark": partition.high_watermark,
        "size_bytes": partition.size_bytes,
        "damage": (!partition.damage.is_empty()).then_some(&partition.damage),
    })
}
