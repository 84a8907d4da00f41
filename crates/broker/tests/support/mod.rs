//! A node in a temporary directory, its clients, and requests for them.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use prost::Message;
use quipu_broker::{Broker, BrokerConfig};
use quipu_model::{
    NodeId, ProducerEpoch, ProducerId, Sequence, TimestampMs,
    batch::{BatchBuilder, Compression, split_batches},
};
use quipu_proto::v1::{self, admin_client::AdminClient, log_client::LogClient};
use quipu_storage::StoreConfig;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Status, transport::Channel};

/// A running node.
pub(crate) struct Node {
    broker: Broker,
    config: BrokerConfig,
    directory: TempDir,
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts with settings other than the tests' usual ones.
    pub(crate) async fn start_with(change: impl FnOnce(&mut BrokerConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(&directory);
        change(&mut config);
        Self::start_in(directory, config).await
    }

    async fn start_in(directory: TempDir, config: BrokerConfig) -> Self {
        let broker = Broker::start(config.clone()).await.unwrap();
        Self {
            broker,
            config,
            directory,
        }
    }

    /// The settings it was started with.
    pub(crate) fn config(&self) -> BrokerConfig {
        self.config.clone()
    }

    pub(crate) async fn stop(self) {
        self.broker.shutdown().await.unwrap();
    }

    pub(crate) async fn restart(self) -> Self {
        self.broker.shutdown().await.unwrap();
        Self::start_in(self.directory, self.config).await
    }

    pub(crate) fn grpc_address(&self) -> SocketAddr {
        self.broker.addresses().grpc
    }

    pub(crate) async fn channel(&self) -> Channel {
        let address = format!("http://{}", self.grpc_address());
        Channel::from_shared(address)
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    pub(crate) async fn log(&self) -> LogClient<Channel> {
        LogClient::new(self.channel().await).max_encoding_message_size(64 << 20)
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel().await)
    }

    pub(crate) async fn create(&self, name: &str, partitions: u32) {
        let request = v1::CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            ..v1::CreateTopicRequest::default()
        };
        self.admin().await.create_topic(request).await.unwrap();
    }

    pub(crate) async fn delete(&self, name: &str) {
        let request = v1::DeleteTopicRequest {
            name: name.to_owned(),
        };
        self.admin().await.delete_topic(request).await.unwrap();
    }

    pub(crate) async fn cluster(&self) -> v1::DescribeClusterResponse {
        let request = v1::DescribeClusterRequest {};
        let described = self.admin().await.describe_cluster(request).await;
        described.unwrap().into_inner()
    }

    /// Status and body of a GET.
    pub(crate) async fn http(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.broker.addresses().http)
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer[9..12].parse().unwrap();
        (status, answer)
    }
}

fn config(directory: &TempDir) -> BrokerConfig {
    let any = "127.0.0.1:0".parse().unwrap();
    BrokerConfig {
        shutdown_grace: Duration::from_secs(5),
        // Small files, so that a test writes few zeros.
        store: StoreConfig {
            wal_file_bytes: 4 << 20,
            ..StoreConfig::default()
        },
        ..BrokerConfig::new(NodeId::new(1), directory.path().join("data"), any, any)
    }
}

fn builder(values: &[&str]) -> BatchBuilder {
    let mut builder = BatchBuilder::new(Compression::None);
    for value in values {
        builder.append(TimestampMs::new(1), None, Some(value.as_bytes()), &[]);
    }
    builder
}

/// One batch with these values.
pub(crate) fn batch(values: &[&str]) -> Bytes {
    builder(values).build().unwrap().into_bytes()
}

/// One batch of an idempotent producer.
pub(crate) fn idempotent(id: &v1::InitProducerIdResponse, sequence: i32, values: &[&str]) -> Bytes {
    let mut builder = builder(values);
    builder.set_producer(
        ProducerId::new(id.producer_id),
        ProducerEpoch::new(i16::try_from(id.producer_epoch).unwrap()),
        Sequence::new(sequence),
    );
    builder.build().unwrap().into_bytes()
}

/// A batch with a right checksum whose header claims two thousand million records.
pub(crate) fn lying_count() -> Bytes {
    let mut bytes = batch(&["a", "b"]).to_vec();
    let count = 2_000_000_000i32;
    bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    bytes[57..61].copy_from_slice(&count.to_be_bytes());
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

/// A produce request of an encoded batch.
pub(crate) fn encoded(topic: &str, partition: u32, batch: Bytes) -> v1::ProduceRequest {
    v1::ProduceRequest {
        topic: topic.to_owned(),
        partition,
        payload: Some(v1::produce_request::Payload::Batch(batch)),
        ..v1::ProduceRequest::default()
    }
}

/// A produce request of plain records.
pub(crate) fn plain(topic: &str, partition: u32, values: &[&str]) -> v1::ProduceRequest {
    let record = |value: &&str| v1::PlainRecord {
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        ..v1::PlainRecord::default()
    };
    let records = values.iter().map(record).collect();
    v1::ProduceRequest {
        topic: topic.to_owned(),
        partition,
        payload: Some(v1::produce_request::Payload::Records(v1::PlainRecords {
            records,
        })),
        ..v1::ProduceRequest::default()
    }
}

/// Gives all plain records of a request this time.
pub(crate) fn date(request: &mut v1::ProduceRequest, timestamp_ms: i64) {
    if let Some(v1::produce_request::Payload::Records(records)) = &mut request.payload {
        for record in &mut records.records {
            record.timestamp_ms = Some(timestamp_ms);
        }
    }
}

/// A fetch that answers at once.
pub(crate) fn fetch(topic: &str, partition: u32, offset: u64) -> v1::FetchRequest {
    v1::FetchRequest {
        topic: topic.to_owned(),
        partition,
        offset,
        ..v1::FetchRequest::default()
    }
}

/// Offsets and values of all records in `batches`.
pub(crate) fn records(batches: Bytes) -> Vec<(u64, String)> {
    split_batches(batches)
        .flat_map(|batch| batch.unwrap().records().unwrap())
        .map(|record| {
            let record = record.unwrap();
            let value = record.value.unwrap().to_vec();
            (record.offset.get(), String::from_utf8(value).unwrap())
        })
        .collect()
}

/// The `quipu.v1.Error` among a status's details.
pub(crate) fn error_of(status: &Status) -> v1::Error {
    let details = tonic_types::pb::Status::decode(status.details()).unwrap();
    let own = details
        .details
        .iter()
        .find(|d| d.type_url.ends_with("/quipu.v1.Error"));
    v1::Error::decode(&own.expect("a quipu.v1.Error").value[..]).unwrap()
}
