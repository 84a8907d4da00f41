//! Quotas, at both ports: who is past its own is slowed and loses nothing, others are not, and a restart changes nothing.
#![allow(
    clippy::disallowed_methods,
    reason = "the test speaks Kafka's protocol over a socket"
)]

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use quipu_client::{Client, ClientConfig, ProducerConfig, Record};
use quipu_model::{
    TimestampMs,
    batch::{BatchBuilder, Compression},
};
use quipu_proto::v1::{
    PlainRecord, PlainRecords, ProduceRequest, log_client::LogClient, produce_request::Payload,
};
use quipu_tests::{Broker, Cluster, Launch, scratch};
use serde_json::Value;
use tonic::Request;

/// Bytes a second.
const RATE: &str = "100000";
/// With a second's worth free, none may send them all in less time.
const BYTES: usize = 320_000;
const LEAST: Duration = Duration::from_millis(1900);

/// Sends kilobyte after kilobyte with the client library; each is acknowledged.
async fn produce_over_grpc(broker: &Broker, client_id: &str, topic: &str) -> Result<Duration> {
    let client = Client::connect(ClientConfig {
        client_id: client_id.to_owned(),
        ..ClientConfig::new(broker.grpc())
    });
    let config = ProducerConfig {
        batch_bytes: 16 << 10,
        ..ProducerConfig::default()
    };
    let producer = client.await?.producer(config).await?;
    let began = Instant::now();
    let mut deliveries = Vec::new();
    for number in 0..BYTES / 1000 {
        let value = format!("{number:01000}");
        let record = Record::new(topic).value(value.as_bytes());
        deliveries.push(producer.send(record).await?);
    }
    producer.flush().await?;
    for delivery in deliveries {
        delivery.await?;
    }
    Ok(began.elapsed())
}

/// Text with its length before it.
fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as i16).to_be_bytes());
    bytes.extend(text.as_bytes());
}

/// A Produce request, version 8, with `acks=all` and one batch of 20 kB.
fn kafka_request(client_id: &str, topic: &str, number: i32) -> Result<Vec<u8>> {
    let mut batch = BatchBuilder::new(Compression::None);
    let value = format!("{number:020000}");
    batch.append(TimestampMs::new(1), None, Some(value.as_bytes()), &[]);
    let batch = batch.build()?.into_bytes();
    let mut request = Vec::new();
    request.extend(0i16.to_be_bytes());
    request.extend(8i16.to_be_bytes());
    request.extend(number.to_be_bytes());
    text(&mut request, client_id);
    // No transaction, all acknowledge, within 30 s.
    request.extend((-1i16).to_be_bytes());
    request.extend((-1i16).to_be_bytes());
    request.extend(30_000i32.to_be_bytes());
    request.extend(1i32.to_be_bytes());
    text(&mut request, topic);
    request.extend(1i32.to_be_bytes());
    request.extend(0i32.to_be_bytes());
    request.extend((batch.len() as i32).to_be_bytes());
    request.extend(batch);
    Ok([&(request.len() as i32).to_be_bytes()[..], &request].concat())
}

/// Sends batch after batch without waiting for anything, as no client should; each is acknowledged.
fn produce_over_kafka(address: &str, client_id: &str, topic: &str) -> Result<Duration> {
    let mut stream = TcpStream::connect(address)?;
    let count = (BYTES / 20_000) as i32;
    let began = Instant::now();
    for number in 0..count {
        stream.write_all(&kafka_request(client_id, topic, number)?)?;
    }
    for number in 0..count {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer)?;
        ensure!(answer[..4] == number.to_be_bytes(), "not in order");
        // Behind one topic's name and one partition's number.
        let at = 4 + 4 + 2 + topic.len() + 4 + 4;
        let error = answer.get(at..at + 2).context("too short an answer")?;
        ensure!(error == [0, 0], "refused with {error:?}");
    }
    Ok(began.elapsed())
}

/// Produces as much at once; how long it was told to wait.
async fn produce_at_once(broker: &Broker, client_id: &'static str, topic: &str) -> Result<u32> {
    let mut log = LogClient::connect(format!("http://{}", broker.grpc())).await?;
    let record = PlainRecord {
        value: Some(vec![7; BYTES].into()),
        ..PlainRecord::default()
    };
    let mut request = Request::new(ProduceRequest {
        topic: topic.to_owned(),
        payload: Some(Payload::Records(PlainRecords {
            records: vec![record],
        })),
        ..ProduceRequest::default()
    });
    let name = client_id.parse()?;
    request.metadata_mut().insert("quipu-client-id", name);
    Ok(log.produce(request).await?.into_inner().throttle_time_ms)
}

fn quotas(broker: &Broker) -> Result<Value> {
    let listed = broker.succeed(&["quota", "list", "--json"], b"")?;
    Ok(serde_json::from_str(&listed)?)
}

fn count(broker: &Broker, topic: &str) -> Result<usize> {
    let read = broker.succeed(&["consume", topic, "--format", "json"], b"")?;
    Ok(read.lines().count())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_past_its_quota_is_slowed_and_loses_nothing() -> Result<()> {
    let dir = scratch()?;
    let data = dir.path().join("data");
    let broker = Launch::dev(&data).start()?;
    for topic in ["grpc", "kafka", "free"] {
        broker.succeed(&["topic", "create", topic, "--partitions", "1"], b"")?;
    }
    for client in ["slow-grpc", "slow-kafka"] {
        broker.succeed(&["quota", "set", client, "--produce", RATE], b"")?;
    }
    broker.succeed(&["quota", "set", "--default", "--fetch", "1GiB"], b"")?;

    let address = broker.kafka().to_owned();
    let over_kafka = move || produce_over_kafka(&address, "slow-kafka", "kafka");
    let over_kafka = tokio::task::spawn_blocking(over_kafka);
    let over_grpc = produce_over_grpc(&broker, "slow-grpc", "grpc");
    let at_once = async {
        let mut told = 0;
        for _ in 0..5 {
            told += produce_at_once(&broker, "quick", "free").await?;
        }
        anyhow::Ok(told)
    };
    let (over_kafka, over_grpc, told) = tokio::join!(over_kafka, over_grpc, at_once);
    for took in [over_kafka??, over_grpc?] {
        assert!(took >= LEAST, "{took:?}");
    }
    assert_eq!(told?, 0, "another client is not slowed");
    assert!(broker.metric("quipu_throttled_seconds_total")? > 1.0);
    assert_eq!(count(&broker, "grpc")?, BYTES / 1000);
    assert_eq!(count(&broker, "kafka")?, BYTES / 20_000);

    let before = quotas(&broker)?;
    assert_eq!(before[0]["client_id"], Value::Null);
    assert_eq!(before[0]["fetch_bytes_per_second"], 1 << 30);
    assert_eq!(before[1]["client_id"], "slow-grpc");
    assert_eq!(before[1]["produce_bytes_per_second"], 100_000);
    assert!(broker.terminate()?.success());

    let broker = Launch::dev(&data).start()?;
    assert_eq!(quotas(&broker)?, before);
    assert!(produce_at_once(&broker, "slow-kafka", "free").await? > 0);
    broker.succeed(&["quota", "remove", "slow-kafka"], b"")?;
    assert_eq!(produce_at_once(&broker, "slow-kafka", "free").await?, 0);
    Ok(())
}

#[test]
fn any_node_changes_the_quotas_of_all() -> Result<()> {
    let dir = scratch()?;
    let mut cluster = Cluster::start(dir.path().to_owned())?;
    for node in 1..=3 {
        let (client, rate) = (format!("client-{node}"), (node * 1000).to_string());
        let set = ["quota", "set", &client, "--produce", &rate];
        cluster.node(node)?.succeed(&set, b"")?;
    }
    for node in 1..=3 {
        // The node that was asked has it at once, the others a moment later.
        let all = loop {
            let known = quotas(cluster.node(node)?)?;
            if known.as_array().is_some_and(|known| known.len() == 3) {
                break known;
            }
            thread::sleep(Duration::from_millis(20));
        };
        for (at, rate) in [(0, 1000), (1, 2000), (2, 3000)] {
            assert_eq!(all[at]["produce_bytes_per_second"], rate, "{all}");
        }
    }
    Ok(())
}
