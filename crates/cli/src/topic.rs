//! `quipu topic`.

use std::{
    collections::BTreeMap,
    io::{Write, stdout},
};

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use quipu_client::{Admin, NewTopic, PartitionDescription, Topic, TopicDescription};
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
    /// Change a topic's settings
    Alter {
        name: String,
        /// A setting to change; may be given several times
        #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
        config: Vec<(String, String)>,
        /// A setting to return to its default; may be given several times
        #[arg(long, value_name = "NAME")]
        reset: Vec<String>,
        #[command(flatten)]
        shared: Shared,
    },
    /// Delete a topic and all its records
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
            config,
            reset,
            shared,
        } => {
            ensure!(
                !config.is_empty() || !reset.is_empty(),
                "nothing to change: give --config NAME=VALUE or --reset NAME"
            );
            let admin = shared.admin().await?;
            let topic = admin
                .alter_topic_config(&name, to_map(config), reset)
                .await?;
            shared.print(&topic, "altered")
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
    let replicas: Vec<String> = partition.replicas.iter().map(u64::to_string).collect();
    let state = match partition.damage.as_str() {
        "" => "served",
        damage => damage,
    };
    [
        partition.partition.to_string(),
        leader.map_or_else(|| "-".to_owned(), |node| node.id.to_string()),
        partition.leader_epoch.to_string(),
        replicas.join(","),
        partition.log_start_offset.to_string(),
        partition.high_watermark.to_string(),
        partition.size_bytes.to_string(),
        state.to_owned(),
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
        "log_start_offset": partition.log_start_offset,
        "high_watermark": partition.high_watermark,
        "size_bytes": partition.size_bytes,
        "damage": (!partition.damage.is_empty()).then_some(&partition.damage),
    })
}
