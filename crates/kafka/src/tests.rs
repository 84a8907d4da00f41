//! A node's Kafka listener as a client sees it.

use std::{future::Future, net::SocketAddr, time::Duration};

use bytes::Bytes;
use quipu_broker::{Broker, BrokerConfig};
use quipu_model::{
    NodeId, TimestampMs,
    batch::{BatchBuilder, Compression},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    KafkaConfig, KafkaListener,
    error::ErrorCode,
    wire::{
        Reader, Writer,
        messages::{
            api_versions_request::ApiVersionsRequest,
            api_versions_response::ApiVersionsResponse,
            describe_topic_partitions_request::DescribeTopicPartitionsRequest,
            describe_topic_partitions_response::DescribeTopicPartitionsResponse,
            fetch_request::{FetchPartition, FetchRequest, FetchTopic},
            fetch_response::FetchResponse,
            incremental_alter_configs_request::{
                AlterConfigsResource, AlterableConfig, IncrementalAlterConfigsRequest,
            },
            incremental_alter_configs_response::IncrementalAlterConfigsResponse,
            join_group_request::{JoinGroupRequest, JoinGroupRequestProtocol},
            join_group_response::JoinGroupResponse,
            metadata_request::{MetadataRequest, MetadataRequestTopic},
            metadata_response::MetadataResponse,
            offset_commit_request::{
                OffsetCommitRequest, OffsetCommitRequestPartition, OffsetCommitRequestTopic,
            },
            offset_commit_response::OffsetCommitResponse,
            offset_fetch_request::{OffsetFetchRequest, OffsetFetchRequestTopic},
            offset_fetch_response::OffsetFetchResponse,
            produce_request::{PartitionProduceData, ProduceRequest, TopicProduceData},
            produce_response::ProduceResponse,
            request_header::RequestHeader,
        },
    },
};

mod admin;
mod bad_input;
mod consumer_groups;
mod limits;

const METADATA_VERSION: i16 = 8;
const PRODUCE_VERSION: i16 = 8;
const FETCH_VERSION: i16 = 11;
const JOIN_VERSION: i16 = 5;
const COMMIT_VERSION: i16 = 7;
const OFFSET_FETCH_VERSION: i16 = 5;

struct Node {
    broker: Broker,
    address: SocketAddr,
    _data: TempDir,
}

impl Node {
    async fn start(change: impl FnOnce(&mut BrokerConfig), config: KafkaConfig) -> Self {
        let data = tempfile::tempdir().unwrap();
        let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = KafkaListener::bind(anywhere, config).await.unwrap();
        let address = listener.address();
        let mut config =
            BrokerConfig::new(NodeId::new(1), data.path().to_owned(), anywhere, anywhere);
        config.advertised_kafka = Some(listener.reached_at());
        change(&mut config);
        let mut broker = Broker::start(config).await.unwrap();
        broker.attach(|front| listener.serve(front));
        Self {
            broker,
            address,
            _data: data,
        }
    }
}

/// Runs a test against a node of its own, and stops the node.
fn with_node<T: Future<Output = ()>>(config: KafkaConfig, test: impl FnOnce(SocketAddr) -> T) {
    with_broker(|_| {}, config, test);
}

/// The same, with settings of the node other than the usual ones.
fn with_broker<T: Future<Output = ()>>(
    change: impl FnOnce(&mut BrokerConfig),
    config: KafkaConfig,
    test: impl FnOnce(SocketAddr) -> T,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let node = Node::start(change, config).await;
        test(node.address).await;
        node.broker.shutdown().await.unwrap();
    });
}

async fn connect(address: SocketAddr) -> Client {
    Client {
        stream: TcpStream::connect(address).await.unwrap(),
    }
}

struct Client {
    stream: TcpStream,
}

impl Client {
    async fn send(
        &mut self,
        which: (i16, i16),
        correlation_id: i32,
        write: impl FnOnce(&mut Writer),
    ) {
        self.send_headed(which, correlation_id, 1, write).await;
    }

    /// Sends a request of the newer layout.
    async fn send_flexible(
        &mut self,
        which: (i16, i16),
        correlation_id: i32,
        write: impl FnOnce(&mut Writer),
    ) {
        self.send_headed(which, correlation_id, 2, write).await;
    }

    async fn send_headed(
        &mut self,
        (key, version): (i16, i16),
        correlation_id: i32,
        header_version: i16,
        write: impl FnOnce(&mut Writer),
    ) {
        let mut writer = Writer::default();
        let header = RequestHeader {
            request_api_key: key,
            request_api_version: version,
            correlation_id,
            client_id: Some("test".into()),
        };
        header.encode(&mut writer, header_version);
        write(&mut writer);
        self.stream
            .write_all(&writer.into_frame().concat())
            .await
            .unwrap();
    }

    /// A response behind its correlation id.
    async fn receive(&mut self) -> (i32, Bytes) {
        let length = self.stream.read_u32().await.unwrap();
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body).await.unwrap();
        let body = Bytes::from(body);
        let id = i32::from_be_bytes(body[..4].try_into().unwrap());
        (id, body.slice(4..))
    }

    /// The answer to a request of the newer layout, behind its header.
    async fn answered(&mut self, which: (i16, i16), write: impl FnOnce(&mut Writer)) -> Reader {
        self.send_flexible(which, 1, write).await;
        let (_, body) = self.receive().await;
        Reader::new(body.slice(1..))
    }

    async fn ask_metadata(&mut self, correlation_id: i32, topic: &str) {
        let request = MetadataRequest {
            topics: Some(vec![MetadataRequestTopic {
                name: Some(topic.into()),
                ..MetadataRequestTopic::default()
            }]),
            allow_auto_topic_creation: true,
            ..MetadataRequest::default()
        };
        let which = (MetadataRequest::KEY, METADATA_VERSION);
        self.send(which, correlation_id, |w| {
            request.encode(w, METADATA_VERSION)
        })
        .await;
    }

    async fn produce(&mut self, correlation_id: i32, acks: i16, topic: &str, records: Bytes) {
        let request = ProduceRequest {
            acks,
            timeout_ms: 30_000,
            topic_data: vec![TopicProduceData {
                name: topic.into(),
                partition_data: vec![PartitionProduceData {
                    index: 0,
                    records: Some(records),
                }],
                ..TopicProduceData::default()
            }],
            ..ProduceRequest::default()
        };
        let which = (ProduceRequest::KEY, PRODUCE_VERSION);
        self.send(which, correlation_id, |w| {
            request.encode(w, PRODUCE_VERSION)
        })
        .await;
    }

    /// Makes a topic and waits until it has a leader.
    async fn create(&mut self, topic: &str) {
        loop {
            self.ask_metadata(0, topic).await;
            let (_, body) = self.receive().await;
            let metadata =
                MetadataResponse::decode(&mut Reader::new(body), METADATA_VERSION).unwrap();
            let partitions = &metadata.topics[0].partitions;
            if partitions.iter().any(|partition| partition.leader_id == 1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether the other side closes the connection without a word.
    async fn is_closed(&mut self) -> bool {
        let mut byte = [0; 1];
        // A reset is a close, too.
        !matches!(self.stream.read(&mut byte).await, Ok(1))
    }
}

fn fetch_at(offset: i64, max_wait_ms: i32) -> FetchRequest {
    FetchRequest {
        max_wait_ms,
        min_bytes: 1,
        max_bytes: 1 << 20,
        session_epoch: -1,
        topics: vec![FetchTopic {
            topic: "orders".into(),
            partitions: vec![FetchPartition {
                fetch_offset: offset,
                partition_max_bytes: 1 << 20,
                ..FetchPartition::default()
            }],
            ..FetchTopic::default()
        }],
        ..FetchRequest::default()
    }
}

fn batch(value: &str) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.append(TimestampMs::new(1), None, Some(value.as_bytes()), &[]);
    builder.build().unwrap().into_bytes()
}

fn error_and_offset(body: Bytes) -> (i16, i64) {
    let response = ProduceResponse::decode(&mut Reader::new(body), PRODUCE_VERSION).unwrap();
    let partition = &response.responses[0].partition_responses[0];
    (partition.error_code, partition.base_offset)
}

#[test]
fn pipelined_requests_are_done_and_answered_in_their_order() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        for id in 0..200 {
            if id % 10 == 9 {
                client.ask_metadata(id, "orders").await;
            } else {
                let value = "x".repeat((id as usize * 37) % 500);
                client.produce(id, -1, "orders", batch(&value)).await;
            }
        }
        let mut next_offset = 0;
        for id in 0..200 {
            let (answered, body) = client.receive().await;
            assert_eq!(answered, id);
            if id % 10 != 9 {
                assert_eq!(error_and_offset(body), (0, next_offset));
                next_offset += 1;
            }
        }
    });
}

#[test]
fn what_was_produced_is_fetched_byte_for_byte() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let sent = batch(&"knot".repeat(1000));
        client.produce(1, -1, "orders", sent.clone()).await;
        client.receive().await;
        let request = fetch_at(0, 10_000);
        let which = (FetchRequest::KEY, FETCH_VERSION);
        client
            .send(which, 2, |w| request.encode(w, FETCH_VERSION))
            .await;
        let (_, body) = client.receive().await;
        let response = FetchResponse::decode(&mut Reader::new(body), FETCH_VERSION).unwrap();
        let partition = &response.responses[0].partitions[0];
        assert_eq!((partition.error_code, partition.high_watermark), (0, 1));
        let records = partition.records.clone().unwrap();
        // The log stamps what stands outside the checksum.
        assert_eq!(records[16..], sent[16..]);
    });
}

#[test]
fn what_follows_a_record_that_the_leader_has_is_never_out_of_range() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        for offset in 0..100 {
            client.produce(1, 1, "orders", batch("a")).await;
            assert_eq!(error_and_offset(client.receive().await.1), (0, offset));
            let request = fetch_at(offset + 1, 0);
            let which = (FetchRequest::KEY, FETCH_VERSION);
            client
                .send(which, 2, |w| request.encode(w, FETCH_VERSION))
                .await;
            let (_, body) = client.receive().await;
            let response = FetchResponse::decode(&mut Reader::new(body), FETCH_VERSION).unwrap();
            assert_eq!(response.responses[0].partitions[0].error_code, 0);
        }
    });
}

#[test]
fn an_unacknowledged_request_gets_no_answer_and_a_failed_one_ends_the_connection() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        client.produce(1, 0, "orders", batch("a")).await;
        client.produce(2, -1, "orders", batch("b")).await;
        let (id, body) = client.receive().await;
        assert_eq!((id, error_and_offset(body)), (2, (0, 1)));
        client.produce(3, 0, "nowhere", batch("a")).await;
        assert!(client.is_closed().await);
    });
}

#[test]
fn versions_are_told_to_who_asks_in_an_unknown_one() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.send((ApiVersionsRequest::KEY, 99), 7, |_| ()).await;
        let (id, body) = client.receive().await;
        let response = ApiVersionsResponse::decode(&mut Reader::new(body), 0).unwrap();
        assert_eq!(id, 7);
        assert_eq!(response.error_code, ErrorCode::UnsupportedVersion.code());
        let produce = response
            .api_keys
            .iter()
            .find(|api| api.api_key == ProduceRequest::KEY);
        assert_eq!(produce.unwrap().min_version, 0);
    });
}

#[test]
fn a_description_of_partitions_has_no_nulls() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let request = DescribeTopicPartitionsRequest {
            response_partition_limit: 10,
            ..DescribeTopicPartitionsRequest::default()
        };
        let which = (DescribeTopicPartitionsRequest::KEY, 0);
        let mut body = client.answered(which, |w| request.encode(w, 0)).await;
        let response = DescribeTopicPartitionsResponse::decode(&mut body, 0).unwrap();
        let partition = &response.topics[0].partitions[0];
        assert_eq!(partition.eligible_leader_replicas, Some(Vec::new()));
        assert_eq!(partition.last_known_elr, Some(Vec::new()));
    });
}

/// A member without an id joins group `g`.
fn join(member_id: &str) -> JoinGroupRequest {
    JoinGroupRequest {
        group_id: "g".into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 30_000,
        member_id: member_id.into(),
        protocol_type: "consumer".into(),
        protocols: vec![JoinGroupRequestProtocol {
            name: "range".into(),
            metadata: Bytes::from_static(b"a"),
        }],
        ..JoinGroupRequest::default()
    }
}

impl Client {
    async fn joined(&mut self, request: JoinGroupRequest) -> JoinGroupResponse {
        let which = (JoinGroupRequest::KEY, JOIN_VERSION);
        self.send(which, 1, |w| request.encode(w, JOIN_VERSION))
            .await;
        let (_, body) = self.receive().await;
        JoinGroupResponse::decode(&mut Reader::new(body), JOIN_VERSION).unwrap()
    }

    /// Stores an offset as a member, or as nobody, and answers with the error.
    async fn commit(&mut self, member_id: &str, generation: i32, offset: i64) -> i16 {
        let request = OffsetCommitRequest {
            group_id: "g".into(),
            generation_id_or_member_epoch: generation,
            member_id: member_id.into(),
            topics: vec![OffsetCommitRequestTopic {
                name: "orders".into(),
                partitions: vec![OffsetCommitRequestPartition {
                    committed_offset: offset,
                    committed_leader_epoch: 3,
                    committed_metadata: Some("m".into()),
                    ..OffsetCommitRequestPartition::default()
                }],
                ..OffsetCommitRequestTopic::default()
            }],
            ..OffsetCommitRequest::default()
        };
        let which = (OffsetCommitRequest::KEY, COMMIT_VERSION);
        self.send(which, 1, |w| request.encode(w, COMMIT_VERSION))
            .await;
        let (_, body) = self.receive().await;
        let response = OffsetCommitResponse::decode(&mut Reader::new(body), COMMIT_VERSION);
        response.unwrap().topics[0].partitions[0].error_code
    }

    /// What group "g" has stored of partitions 0 and 9 of "orders": offset, epoch, error.
    async fn offsets(&mut self) -> Vec<(i64, i32, i16)> {
        let request = OffsetFetchRequest {
            group_id: "g".into(),
            topics: Some(vec![OffsetFetchRequestTopic {
                name: "orders".into(),
                partition_indexes: vec![0, 9],
            }]),
            ..OffsetFetchRequest::default()
        };
        let which = (OffsetFetchRequest::KEY, OFFSET_FETCH_VERSION);
        self.send(which, 1, |w| request.encode(w, OFFSET_FETCH_VERSION))
            .await;
        let (_, body) = self.receive().await;
        let mut reader = Reader::new(body);
        let response = OffsetFetchResponse::decode(&mut reader, OFFSET_FETCH_VERSION).unwrap();
        let found = response.topics[0].partitions.iter();
        let found = found.map(|it| {
            let (offset, epoch) = (it.committed_offset, it.committed_leader_epoch);
            (offset, epoch, it.error_code)
        });
        found.collect()
    }
}

#[test]
fn a_join_that_waits_holds_up_nobody_elses_connection() {
    with_node(KafkaConfig::default(), |address| async move {
        let (mut first, mut second) = (connect(address).await, connect(address).await);
        first.create("orders").await;
        // The coordinator may be loading yet.
        let told = loop {
            let told = first.joined(join("")).await;
            if told.error_code == ErrorCode::MemberIdRequired.code() {
                break told;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let which = (JoinGroupRequest::KEY, JOIN_VERSION);
        let request = join(&told.member_id);
        first
            .send(which, 7, |w| request.encode(w, JOIN_VERSION))
            .await;
        first.ask_metadata(8, "orders").await;
        // The first member of a group waits for others.
        second.ask_metadata(9, "orders").await;
        assert_eq!(second.receive().await.0, 9);
        let (id, body) = first.receive().await;
        assert_eq!(id, 7);
        let joined = JoinGroupResponse::decode(&mut Reader::new(body), JOIN_VERSION).unwrap();
        assert_eq!((joined.error_code, joined.generation_id), (0, 1));
        assert_eq!(joined.leader, joined.member_id);
        assert_eq!(joined.members.len(), 1);
        assert_eq!(first.receive().await.0, 8);

        // It has not synced, and who is no member does not commit beside it.
        let early = first.commit(&joined.member_id, 1, 5).await;
        assert_eq!(early, ErrorCode::RebalanceInProgress.code());
        let outside = first.commit("", -1, 5).await;
        assert_eq!(outside, ErrorCode::UnknownMemberId.code());
        let stale = first.commit(&joined.member_id, 0, 5).await;
        assert_eq!(stale, ErrorCode::IllegalGeneration.code());
    });
}

#[test]
fn offsets_are_fetched_as_they_were_stored() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        while client.commit("", -1, 42).await != 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(client.offsets().await, [(42, 3, 0), (-1, -1, 0)]);
        // Who assigns partitions to itself may say who it is.
        assert_eq!(client.commit("me", -1, 43).await, 0);
        assert_eq!(client.offsets().await, [(43, 3, 0), (-1, -1, 0)]);
        // kafkajs begins anew so.
        assert_eq!(client.commit("", -1, -2).await, 0);
        assert_eq!(client.offsets().await, [(-2, 3, 0), (-1, -1, 0)]);
    });
}

#[test]
fn throttles_that_nobody_set_can_be_unset_and_none_be_set() {
    const TOPIC: i8 = 2;
    const BROKER: i8 = 4;
    const SET: i8 = 0;
    const DELETE: i8 = 1;
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let change = |what: i8, of: &str, name: &str, operation| AlterConfigsResource {
            resource_type: what,
            resource_name: of.into(),
            configs: vec![AlterableConfig {
                name: name.into(),
                config_operation: operation,
                value: (operation == SET).then(|| "1".into()),
            }],
        };
        let (rate, replicas) = (
            "leader.replication.throttled.rate",
            "leader.replication.throttled.replicas",
        );
        let request = IncrementalAlterConfigsRequest {
            resources: vec![
                change(BROKER, "1", rate, DELETE),
                change(TOPIC, "orders", replicas, DELETE),
                change(BROKER, "1", rate, SET),
                change(TOPIC, "orders", replicas, SET),
            ],
            validate_only: false,
        };
        let which = (IncrementalAlterConfigsRequest::KEY, 0);
        client.send(which, 1, |w| request.encode(w, 0)).await;
        let (_, body) = client.receive().await;
        let response = IncrementalAlterConfigsResponse::decode(&mut Reader::new(body), 0);
        let responses = response.unwrap().responses;
        let errors: Vec<_> = responses.iter().map(|told| told.error_code).collect();
        assert_eq!(
            errors,
            [
                0,
                0,
                ErrorCode::InvalidRequest.code(),
                ErrorCode::InvalidConfig.code()
            ]
        );
    });
}
