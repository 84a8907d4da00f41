//! What runs out: readers' patience, file sizes, the disk. Memory stays bounded, nothing acknowledged is lost, and the broker says
//! what the matter is.
#![allow(clippy::disallowed_methods, reason = "the tests fill a real disk")]

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use quipu_client::{Client, GroupOffset, Offset};
use quipu_proto::v1::{
    Acks, CreateTopicRequest, FetchRequest, FetchStreamRequest, ListOffsetsRequest, PlainRecord,
    PlainRecords, ProduceRequest, admin_client::AdminClient, list_offsets_request::At,
    list_offsets_request::Latest, log_client::LogClient, produce_request::Payload,
};
use quipu_tests::{Broker, Launch, scratch};
use tonic::{Status, transport::Channel};

/// Bytes of a record that fits a batch of the default size.
const RECORD: usize = 900_000;

async fn log(broker: &Broker) -> Result<LogClient<Channel>> {
    Ok(LogClient::connect(format!("http://{}", broker.grpc())).await?)
}

async fn create_topic(broker: &Broker) -> Result<()> {
    let mut admin = AdminClient::connect(format!("http://{}", broker.grpc())).await?;
    let request = CreateTopicRequest {
        name: "t".to_owned(),
        partitions: 1,
        ..CreateTopicRequest::default()
    };
    admin.create_topic(request).await?;
    Ok(())
}

/// Writes one large record; its value is its number, repeated.
async fn append(client: &mut LogClient<Channel>, number: u64) -> Result<u64, Status> {
    let record = PlainRecord {
        value: Some(vec![number as u8; RECORD].into()),
        ..PlainRecord::default()
    };
    let request = ProduceRequest {
        correlation_id: number,
        topic: "t".to_owned(),
        partition: 0,
        acks: Acks::All.into(),
        timeout_ms: 0,
        payload: Some(Payload::Records(PlainRecords {
            records: vec![record],
        })),
    };
    let response = client.produce(request).await?.into_inner();
    response
        .base_offset
        .ok_or_else(|| Status::internal("an acknowledgement without an offset"))
}

async fn end(client: &mut LogClient<Channel>) -> Result<u64> {
    let request = ListOffsetsRequest {
        topic: "t".to_owned(),
        partition: 0,
        at: Some(At::Latest(Latest {})),
    };
    Ok(client.list_offsets(request).await?.into_inner().offset)
}

/// Reads each of the records 0 to `end` and looks at its value's last byte, which ends the batch but for the header count.
async fn check(client: &mut LogClient<Channel>, end: u64) -> Result<()> {
    for offset in 0..end {
        let request = FetchRequest {
            topic: "t".to_owned(),
            partition: 0,
            offset,
            max_bytes: 1,
            ..FetchRequest::default()
        };
        let batches = client.fetch(request).await?.into_inner().batches;
        ensure!(
            batches.get(batches.len() - 2) == Some(&(offset as u8)),
            "offset {offset} holds something else"
        );
    }
    Ok(())
}

/// Appends until one is refused; gives how many were acknowledged and the refusal.
async fn append_until_refused(client: &mut LogClient<Channel>, most: u64) -> Result<(u64, Status)> {
    for number in 0..most {
        match append(client, number).await {
            Ok(offset) => ensure!(offset == number, "offset {offset} where {number} was due"),
            Err(refusal) => return Ok((number, refusal)),
        }
    }
    anyhow::bail!("{most} appends were accepted")
}

#[test]
fn idle_kafka_connections_cost_little() -> Result<()> {
    /// As many as every system lets a process have beside its files.
    const CONNECTIONS: u64 = 500;
    const BOUND: u64 = 50 << 10;
    // ApiVersions in its first version: what each client asks first.
    const REQUEST: [u8; 15] = [0, 0, 0, 11, 0, 18, 0, 0, 0, 0, 0, 7, 0, 1, b'c'];
    let dir = scratch()?;
    let broker = Launch::dev(&dir.path().join("data")).start()?;
    let before = broker.anonymous_bytes()?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(broker.kafka())?;
        stream.write_all(&REQUEST)?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer)?;
        ensure!(answer[4..] == REQUEST[8..12], "another request's answer");
        connections.push(stream);
    }
    let each = broker.anonymous_bytes()?.saturating_sub(before) / CONNECTIONS;
    assert!(each < BOUND, "each idle connection costs {each} bytes");
    drop(connections);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_never_read_cost_bounded_memory() -> Result<()> {
    const READERS: usize = 40;
    const BOUND: u64 = 400 << 20;
    let dir = scratch()?;
    let broker = Launch::dev(&dir.path().join("data")).start()?;
    create_topic(&broker).await?;
    let mut client = log(&broker).await?;
    for number in 0..60 {
        append(&mut client, number).await?;
    }
    let before = broker.anonymous_bytes()?;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let request = FetchStreamRequest {
            topic: "t".to_owned(),
            partition: 0,
            offset: 0,
            max_bytes: 0,
            end_offset: None,
        };
        let mut stream = log(&broker)
            .await?
            .fetch_stream(request)
            .await?
            .into_inner();
        stream.message().await?.context("a first message")?;
        readers.push(stream);
    }
    // Others are served meanwhile, and that takes long enough for whatever would pile up to pile up.
    check(&mut client, 60).await?;
    append(&mut client, 60).await?;
    let grown = broker.anonymous_bytes()?.saturating_sub(before);
    assert!(grown < BOUND, "{READERS} silent readers cost {grown} bytes");
    drop(readers);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_groups_with_random_names_cost_bounded_memory() -> Result<()> {
    const GROUPS: u64 = 10_000;
    const BOUND: u64 = 64 << 20;
    let dir = scratch()?;
    let broker = Launch::dev(&dir.path().join("data")).start()?;
    create_topic(&broker).await?;
    let client = Client::connect(broker.grpc()).await?;
    let admin = client.admin();
    let store = |number: u64| {
        let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (admin, name) = (admin.clone(), format!("{random:0255x}"));
        async move {
            let offset = GroupOffset::new("t", 0, Offset::ZERO);
            admin.set_group_offsets(&name, &[offset]).await
        }
    };
    store(0).await?;
    let before = broker.anonymous_bytes()?;
    let storing = futures::stream::iter(1..GROUPS).map(store);
    storing
        .buffer_unordered(64)
        .try_for_each(|()| std::future::ready(Ok(())))
        .await?;
    let grown = broker.anonymous_bytes()?.saturating_sub(before);
    assert!(grown < BOUND, "{GROUPS} groups cost {grown} bytes");
    assert_eq!(admin.list_groups().await?.len() as u64, GROUPS);
    // Others are served as before.
    append(&mut log(&broker).await?, 0).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_size_limit_is_named_and_loses_nothing() -> Result<()> {
    let dir = scratch()?;
    let data = dir.path().join("data");
    // In blocks of 512 bytes: room for the write-ahead log's files, not for a whole segment.
    let broker = Launch::dev(&data).prelude("ulimit -f 200000").start()?;
    create_topic(&broker).await?;
    let mut client = log(&broker).await?;
    let (acknowledged, refusal) = append_until_refused(&mut client, 400).await?;
    assert!(acknowledged > 10, "{acknowledged} fit: {refusal}");
    assert!(refusal.message().contains("room"), "{refusal}");
    check(&mut client, acknowledged).await?;
    no_panic(&broker)?;
    broker.kill()?;

    let broker = Launch::dev(&data).start()?;
    let mut client = log(&broker).await?;
    assert!(end(&mut client).await? >= acknowledged);
    check(&mut client, acknowledged).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_size_limit_too_small_to_start_is_named() -> Result<()> {
    let dir = scratch()?;
    let mut broker = Launch::dev(&dir.path().join("data"))
        .prelude("ulimit -f 2048")
        .spawn()?;
    let status = broker.wait()?;
    let log = broker.log()?;
    assert_eq!(status.code(), Some(1), "{status}: {log}");
    assert!(log.to_lowercase().contains("file too large"), "{log}");
    no_panic(&broker)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_appends_serves_reads_and_heals() -> Result<()> {
    let dir = scratch()?;
    let Some(mount) = SmallDisk::mount(&dir.path().join("disk"))? else {
        println!("SKIPPED: mounting a small file system needs root and the right to mount");
        return Ok(());
    };
    let ballast = mount.path.join("ballast");
    fs::write(&ballast, vec![1; 200 << 20])?;
    let launch = || Launch::dev(&mount.path.join("data")).log(&dir.path().join("log"));
    let broker = launch().start()?;
    create_topic(&broker).await?;
    let mut client = log(&broker).await?;
    let (acknowledged, refusal) = append_until_refused(&mut client, 2000).await?;
    assert!(refusal.message().contains("room"), "{refusal}");
    check(&mut client, acknowledged).await?;
    no_panic(&broker)?;
    broker.kill()?;

    let broker = launch().start()?;
    let mut client = log(&broker).await?;
    assert!(end(&mut client).await? >= acknowledged);
    check(&mut client, acknowledged).await?;
    fs::remove_file(&ballast)?;
    let next = append(&mut client, acknowledged).await?;
    assert!(next >= acknowledged);
    no_panic(&broker)
}

fn no_panic(broker: &Broker) -> Result<()> {
    let log = broker.log()?;
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

/// A file system in memory of 768 MB; unmounted when dropped.
struct SmallDisk {
    path: std::path::PathBuf,
}

impl SmallDisk {
    /// `None` where this machine does not let us.
    fn mount(path: &Path) -> Result<Option<Self>> {
        fs::create_dir(path)?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=768m", "tmpfs"])
            .arg(path)
            .output()?;
        let path = path.to_owned();
        Ok(output.status.success().then_some(Self { path }))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a broker that is being killed may still hold it.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
