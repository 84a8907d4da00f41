//! What those are told who look after topics and groups.

use super::{consumer_groups::joins, *};
use crate::wire::{
    Text,
    messages::{
        alter_partition_reassignments_request::AlterPartitionReassignmentsRequest,
        alter_partition_reassignments_response::AlterPartitionReassignmentsResponse,
        consumer_group_describe_request::ConsumerGroupDescribeRequest,
        consumer_group_describe_response::ConsumerGroupDescribeResponse,
        create_topics_request::{CreatableTopic, CreateTopicsRequest},
        create_topics_response::{CreatableTopicResult, CreateTopicsResponse},
        delete_records_request::{
            DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsTopic,
        },
        delete_records_response::DeleteRecordsResponse,
        delete_topics_request::{DeleteTopicState, DeleteTopicsRequest},
        delete_topics_response::DeleteTopicsResponse,
        describe_client_quotas_request::DescribeClientQuotasRequest,
        describe_client_quotas_response::DescribeClientQuotasResponse,
        describe_cluster_request::DescribeClusterRequest,
        describe_cluster_response::DescribeClusterResponse,
        describe_groups_request::DescribeGroupsRequest,
        describe_groups_response::DescribeGroupsResponse,
        find_coordinator_request::FindCoordinatorRequest,
        find_coordinator_response::FindCoordinatorResponse,
        list_partition_reassignments_request::ListPartitionReassignmentsRequest,
        list_partition_reassignments_response::ListPartitionReassignmentsResponse,
    },
};

const CREATE_VERSION: i16 = 7;
const DELETE_VERSION: i16 = 6;
/// The last that names one key, and the first that names several.
const FIND_VERSIONS: [i16; 2] = [3, 4];

impl Client {
    async fn create_all(
        &mut self,
        names: &[&str],
        validate_only: bool,
    ) -> Vec<CreatableTopicResult> {
        let topics = names.iter().map(|name| CreatableTopic {
            name: (*name).into(),
            num_partitions: 1,
            replication_factor: 1,
            ..CreatableTopic::default()
        });
        let request = CreateTopicsRequest {
            topics: topics.collect(),
            timeout_ms: 30_000,
            validate_only,
        };
        let which = (CreateTopicsRequest::KEY, CREATE_VERSION);
        let mut body = self
            .answered(which, |w| request.encode(w, CREATE_VERSION))
            .await;
        let response = CreateTopicsResponse::decode(&mut body, CREATE_VERSION);
        response.unwrap().topics
    }

    /// Deletes topics by their names, and answers with the error of each that is told of.
    async fn delete_all(&mut self, names: &[&str]) -> Vec<(Option<Text>, i16)> {
        let topics = names.iter().map(|name| DeleteTopicState {
            name: Some((*name).into()),
            ..DeleteTopicState::default()
        });
        let request = DeleteTopicsRequest {
            topics: topics.collect(),
            timeout_ms: 30_000,
            ..DeleteTopicsRequest::default()
        };
        let which = (DeleteTopicsRequest::KEY, DELETE_VERSION);
        let mut body = self
            .answered(which, |w| request.encode(w, DELETE_VERSION))
            .await;
        let response = DeleteTopicsResponse::decode(&mut body, DELETE_VERSION).unwrap();
        let told = response.responses.into_iter();
        told.map(|told| (told.name, told.error_code)).collect()
    }

    /// Deletes the records of "orders" before an offset, and answers with the first that is kept.
    async fn delete_before(&mut self, offset: i64) -> i64 {
        let request = DeleteRecordsRequest {
            topics: vec![DeleteRecordsTopic {
                name: "orders".into(),
                partitions: vec![DeleteRecordsPartition {
                    partition_index: 0,
                    offset,
                }],
            }],
            timeout_ms: 30_000,
        };
        let which = (DeleteRecordsRequest::KEY, 2);
        let mut body = self.answered(which, |w| request.encode(w, 2)).await;
        let response = DeleteRecordsResponse::decode(&mut body, 2).unwrap();
        response.topics[0].partitions[0].low_watermark
    }

    /// Stores a record in "orders": its offset, and the first that is kept.
    async fn store(&mut self) -> (i64, i64) {
        self.produce(1, -1, "orders", batch("a")).await;
        let (_, body) = self.receive().await;
        let response = ProduceResponse::decode(&mut Reader::new(body), PRODUCE_VERSION).unwrap();
        let told = &response.responses[0].partition_responses[0];
        (told.base_offset, told.log_start_offset)
    }

    /// Who coordinates group "g": the error, and the line that says it.
    async fn find_coordinator(&mut self, version: i16) -> (i16, Option<Text>) {
        let request = FindCoordinatorRequest {
            key: "g".into(),
            coordinator_keys: vec!["g".into()],
            ..FindCoordinatorRequest::default()
        };
        let which = (FindCoordinatorRequest::KEY, version);
        let mut body = self.answered(which, |w| request.encode(w, version)).await;
        let found = FindCoordinatorResponse::decode(&mut body, version).unwrap();
        match found.coordinators.first() {
            Some(first) => (first.error_code, first.error_message.clone()),
            None => (found.error_code, found.error_message),
        }
    }

    /// The lines beside what is told of quotas and of partitions that move.
    async fn lines(&mut self) -> [Option<Text>; 3] {
        let request = DescribeClientQuotasRequest::default();
        let which = (DescribeClientQuotasRequest::KEY, 1);
        let mut body = self.answered(which, |w| request.encode(w, 1)).await;
        let quotas = DescribeClientQuotasResponse::decode(&mut body, 1).unwrap();

        let request = ListPartitionReassignmentsRequest::default();
        let which = (ListPartitionReassignmentsRequest::KEY, 0);
        let mut body = self.answered(which, |w| request.encode(w, 0)).await;
        let listed = ListPartitionReassignmentsResponse::decode(&mut body, 0).unwrap();

        let request = AlterPartitionReassignmentsRequest::default();
        let which = (AlterPartitionReassignmentsRequest::KEY, 0);
        let mut body = self.answered(which, |w| request.encode(w, 0)).await;
        let altered = AlterPartitionReassignmentsResponse::decode(&mut body, 0).unwrap();
        [
            quotas.error_message,
            listed.error_message,
            altered.error_message,
        ]
    }
}

#[test]
fn what_went_well_is_told_without_an_error_message() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        for validate_only in [true, false] {
            let made = client.create_all(&["bills"], validate_only).await;
            assert_eq!((made[0].error_code, &made[0].error_message), (0, &None));
        }
        for version in FIND_VERSIONS {
            let line = loop {
                match client.find_coordinator(version).await {
                    (0, line) => break line,
                    // Until the groups' partition, which the first of them creates, is led.
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
            assert_eq!(line, None);
        }
        assert_eq!(client.lines().await, [None, None, None]);
    });
}

#[test]
fn what_a_request_names_twice_is_neither_made_nor_deleted() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let invalid = ErrorCode::InvalidRequest.code();
        let names = ["bills", "notes", "bills", "bills"];
        let told = client.create_all(&names, false).await;
        let told: Vec<_> = told.iter().map(|it| (&*it.name, it.error_code)).collect();
        assert_eq!(told, [("notes", 0), ("bills", invalid)]);

        let told = client.delete_all(&["notes", "orders", "notes"]).await;
        let text = |name: &str| Some(Text::from(name));
        assert_eq!(told, [(text("orders"), 0), (text("notes"), invalid)]);
        // Neither was it deleted, nor was the other one made.
        let unknown = ErrorCode::UnknownTopicOrPartition.code();
        let told = client.delete_all(&["notes", "bills"]).await;
        assert_eq!(told, [(text("notes"), 0), (text("bills"), unknown)]);
    });
}

#[test]
fn producers_are_told_from_where_on_records_are_kept() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        for offset in 0..5 {
            assert_eq!(client.store().await, (offset, 0));
        }
        assert_eq!(client.delete_before(3).await, 3);
        assert_eq!(client.store().await, (5, 3));
    });
}

/// Operations as Kafka tells them.
fn bits(operations: &[u32]) -> i32 {
    let bits = operations.iter().map(|operation| 1 << operation);
    bits.sum()
}

/// What is told by who is not asked.
const UNKNOWN_OPERATIONS: i32 = i32::MIN;

impl Client {
    /// What may be done with the cluster and with topic "orders", as metadata say it.
    async fn operations(&mut self, asked: bool) -> (i32, i32) {
        let request = MetadataRequest {
            topics: Some(vec![MetadataRequestTopic {
                name: Some("orders".into()),
                ..MetadataRequestTopic::default()
            }]),
            include_cluster_authorized_operations: asked,
            include_topic_authorized_operations: asked,
            ..MetadataRequest::default()
        };
        let which = (MetadataRequest::KEY, METADATA_VERSION);
        self.send(which, 1, |w| request.encode(w, METADATA_VERSION))
            .await;
        let (_, body) = self.receive().await;
        let told = MetadataResponse::decode(&mut Reader::new(body), METADATA_VERSION).unwrap();
        let topic = told.topics[0].topic_authorized_operations;
        (told.cluster_authorized_operations, topic)
    }

    async fn operations_of_cluster(&mut self, asked: bool) -> i32 {
        let request = DescribeClusterRequest {
            include_cluster_authorized_operations: asked,
            ..DescribeClusterRequest::default()
        };
        let which = (DescribeClusterRequest::KEY, 0);
        let mut body = self.answered(which, |w| request.encode(w, 0)).await;
        let told = DescribeClusterResponse::decode(&mut body, 0).unwrap();
        told.cluster_authorized_operations
    }

    async fn operations_of_topic(&mut self) -> i32 {
        let request = DescribeTopicPartitionsRequest::default();
        let which = (DescribeTopicPartitionsRequest::KEY, 0);
        let mut body = self.answered(which, |w| request.encode(w, 0)).await;
        let told = DescribeTopicPartitionsResponse::decode(&mut body, 0).unwrap();
        told.topics[0].topic_authorized_operations
    }

    async fn operations_of_classic_group(&mut self, asked: bool) -> i32 {
        let request = DescribeGroupsRequest {
            groups: vec!["g".into()],
            include_authorized_operations: asked,
        };
        let which = (DescribeGroupsRequest::KEY, 6);
        let mut body = self.answered(which, |w| request.encode(w, 6)).await;
        let told = DescribeGroupsResponse::decode(&mut body, 6).unwrap();
        told.groups[0].authorized_operations
    }

    async fn operations_of_group(&mut self, asked: bool) -> i32 {
        let request = ConsumerGroupDescribeRequest {
            group_ids: vec!["g".into()],
            include_authorized_operations: asked,
        };
        let which = (ConsumerGroupDescribeRequest::KEY, 1);
        let mut body = self.answered(which, |w| request.encode(w, 1)).await;
        let told = ConsumerGroupDescribeResponse::decode(&mut body, 1).unwrap();
        told.groups[0].authorized_operations
    }
}

#[test]
fn who_asks_what_it_may_do_is_told_everything_that_there_is() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let topic = bits(&[3, 4, 5, 6, 7, 8, 10, 11]);
        let cluster = bits(&[5, 7, 8, 9, 10, 11, 12]);
        let group = bits(&[3, 6, 8, 10, 11]);
        let unknown = UNKNOWN_OPERATIONS;

        assert_eq!(client.operations(true).await, (cluster, topic));
        assert_eq!(client.operations(false).await, (unknown, unknown));
        assert_eq!(client.operations_of_cluster(true).await, cluster);
        assert_eq!(client.operations_of_cluster(false).await, unknown);
        assert_eq!(client.operations_of_topic().await, topic);

        while client.commit("", -1, 42).await != 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(client.operations_of_classic_group(true).await, group);
        assert_eq!(client.operations_of_classic_group(false).await, unknown);
        assert_eq!(client.beat(&joins()).await.error_code, 0);
        assert_eq!(client.operations_of_group(true).await, group);
        assert_eq!(client.operations_of_group(false).await, unknown);
        // It is none of the other kind now.
        assert_eq!(client.operations_of_classic_group(true).await, unknown);
    });
}
