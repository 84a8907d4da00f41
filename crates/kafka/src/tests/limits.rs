//! What one client, and all together, may ask of a node.

use tokio::time::Instant;

use super::*;
use crate::wire::messages::{
    alter_client_quotas_request::{AlterClientQuotasRequest, EntityData, EntryData, OpData},
    alter_client_quotas_response::AlterClientQuotasResponse,
    describe_client_quotas_request::DescribeClientQuotasRequest,
    describe_client_quotas_response::DescribeClientQuotasResponse,
    incremental_alter_configs_request::{
        AlterConfigsResource, AlterableConfig, IncrementalAlterConfigsRequest,
    },
    incremental_alter_configs_response::IncrementalAlterConfigsResponse,
};

impl Client {
    /// Sets a rate of a client id, or of the default, and answers with the error.
    async fn set_rate(&mut self, client_id: Option<&str>, key: &str, rate: f64) -> i16 {
        let request = AlterClientQuotasRequest {
            entries: vec![EntryData {
                entity: vec![EntityData {
                    entity_type: "client-id".into(),
                    entity_name: client_id.map(Into::into),
                }],
                ops: vec![OpData {
                    key: key.into(),
                    value: rate,
                    remove: rate == 0.0,
                }],
            }],
            validate_only: false,
        };
        self.send((AlterClientQuotasRequest::KEY, 0), 1, |w| {
            request.encode(w, 0)
        })
        .await;
        let (_, body) = self.receive().await;
        let answer = AlterClientQuotasResponse::decode(&mut Reader::new(body), 0);
        answer.unwrap().entries[0].error_code
    }

    /// Every quota: of whom, and its rates by their names.
    async fn quotas(&mut self) -> Vec<(Option<String>, Vec<(String, f64)>)> {
        let request = DescribeClientQuotasRequest::default();
        self.send_flexible((DescribeClientQuotasRequest::KEY, 1), 1, |w| {
            request.encode(w, 1);
        })
        .await;
        let (_, body) = self.receive().await;
        // Behind the header's tagged fields.
        let mut reader = Reader::new(body.slice(1..));
        let answer = DescribeClientQuotasResponse::decode(&mut reader, 1).unwrap();
        let entries = answer.entries.unwrap().into_iter();
        let entries = entries.map(|entry| {
            let name = entry.entity[0].entity_name.as_ref();
            let values = entry.values.iter();
            let values = values.map(|value| (value.key.to_string(), value.value));
            (name.map(|name| name.to_string()), values.collect())
        });
        entries.collect()
    }

    /// How long it was told to wait after producing, and the error.
    async fn produced(&mut self, records: Bytes) -> (i32, i16) {
        self.produce(1, -1, "orders", records).await;
        let (_, body) = self.receive().await;
        let answer = ProduceResponse::decode(&mut Reader::new(body), PRODUCE_VERSION).unwrap();
        let error = answer.responses[0].partition_responses[0].error_code;
        (answer.throttle_time_ms, error)
    }

    async fn fetched(&mut self, offset: i64) -> FetchResponse {
        let request = fetch_at(offset, 10_000);
        let which = (FetchRequest::KEY, FETCH_VERSION);
        self.send(which, 1, |w| request.encode(w, FETCH_VERSION))
            .await;
        let (_, body) = self.receive().await;
        FetchResponse::decode(&mut Reader::new(body), FETCH_VERSION).unwrap()
    }
}

#[test]
fn connections_past_the_limit_are_closed_and_places_come_back() {
    let config = KafkaConfig {
        max_connections: 1,
        ..KafkaConfig::default()
    };
    with_node(config, |address| async move {
        let mut first = connect(address).await;
        first.create("orders").await;
        assert!(connect(address).await.is_closed().await);
        drop(first);
        // The place is free once the node has seen the connection end.
        loop {
            let mut next = connect(address).await;
            let which = (ApiVersionsRequest::KEY, 0);
            next.send(which, 1, |w| ApiVersionsRequest::default().encode(w, 0))
                .await;
            if !next.is_closed().await {
                return;
            }
        }
    });
}

#[test]
fn quotas_are_set_told_and_removed() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        let rate = |key: &str, rate: f64| (key.to_owned(), rate);
        for (name, key, value) in [
            (Some("a"), "producer_byte_rate", 1000.0),
            (Some("a"), "consumer_byte_rate", 2000.0),
            (None, "consumer_byte_rate", 5000.0),
        ] {
            assert_eq!(client.set_rate(name, key, value).await, 0);
        }
        let both = vec![
            rate("producer_byte_rate", 1000.0),
            rate("consumer_byte_rate", 2000.0),
        ];
        let default = vec![rate("consumer_byte_rate", 5000.0)];
        let all = [(None, default.clone()), (Some("a".to_owned()), both)];
        assert_eq!(client.quotas().await, all);

        let refused = client.set_rate(Some("a"), "request_percentage", 5.0).await;
        assert_eq!(refused, ErrorCode::InvalidRequest.code());
        for key in ["producer_byte_rate", "consumer_byte_rate"] {
            assert_eq!(client.set_rate(Some("a"), key, 0.0).await, 0);
        }
        assert_eq!(client.quotas().await, [(None, default)]);
    });
}

#[test]
fn who_is_past_its_quota_is_told_and_not_listened_to_before() {
    with_node(KafkaConfig::default(), |address| async move {
        let (mut client, mut other) = (connect(address).await, connect(address).await);
        client.create("orders").await;
        assert_eq!(client.produced(batch("a")).await, (0, 0));
        let set = client.set_rate(Some("test"), "producer_byte_rate", 10_000.0);
        assert_eq!(set.await, 0);

        let began = Instant::now();
        let (told, error) = client.produced(batch(&"x".repeat(20_000))).await;
        assert_eq!(error, 0);
        assert!((1000..1100).contains(&told), "{told}");
        client.ask_metadata(7, "orders").await;
        // Another connection is listened to.
        other.ask_metadata(8, "orders").await;
        assert_eq!(other.receive().await.0, 8);
        assert_eq!(client.receive().await.0, 7);
        assert!(began.elapsed() >= Duration::from_millis(told as u64));
        // The quota is gone, and so are all waits.
        let set = client.set_rate(Some("test"), "producer_byte_rate", 0.0);
        assert_eq!(set.await, 0);
        assert_eq!(client.produced(batch(&"x".repeat(20_000))).await, (0, 0));
    });
}

#[test]
fn a_reader_past_its_quota_gets_less_at_a_time_and_is_told() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        for _ in 0..3 {
            client.produced(batch(&"x".repeat(6_000))).await;
        }
        let set = client.set_rate(None, "consumer_byte_rate", 5_000.0);
        assert_eq!(set.await, 0);
        let mut told = Vec::new();
        for at in 0..3 {
            let answer = client.fetched(at).await;
            let partition = &answer.responses[0].partitions[0];
            let bytes = partition.records.as_ref().unwrap().len();
            assert!((6_000..10_000).contains(&bytes), "one batch, not {bytes}");
            told.push(answer.throttle_time_ms);
        }
        // Each is more than a second's worth.
        assert!(told.iter().all(|wait| *wait >= 200), "{told:?}");
    });
}

#[test]
fn a_batch_past_its_topics_limit_is_refused() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let request = IncrementalAlterConfigsRequest {
            resources: vec![AlterConfigsResource {
                resource_type: 2,
                resource_name: "orders".into(),
                configs: vec![AlterableConfig {
                    name: "max.message.bytes".into(),
                    value: Some("1000".into()),
                    ..AlterableConfig::default()
                }],
            }],
            ..IncrementalAlterConfigsRequest::default()
        };
        let which = (IncrementalAlterConfigsRequest::KEY, 0);
        client.send(which, 1, |w| request.encode(w, 0)).await;
        let (_, body) = client.receive().await;
        let answer = IncrementalAlterConfigsResponse::decode(&mut Reader::new(body), 0);
        assert_eq!(answer.unwrap().responses[0].error_code, 0);
        let large = client.produced(batch(&"x".repeat(1000))).await;
        assert_eq!(large, (0, ErrorCode::MessageTooLarge.code()));
        assert_eq!(client.produced(batch(&"x".repeat(900))).await, (0, 0));
    });
}

#[test]
fn requests_wait_for_memory_and_one_that_never_fits_ends_its_connection() {
    // Half of it is for what producers send.
    let broker = |config: &mut BrokerConfig| config.memory_bytes = 1 << 20;
    with_broker(broker, KafkaConfig::default(), |address| async move {
        let mut first = connect(address).await;
        first.create("orders").await;
        let mut clients = Vec::new();
        for _ in 0..8 {
            let mut client = connect(address).await;
            let records = batch(&"x".repeat(300_000));
            clients.push(tokio::spawn(async move { client.produced(records).await }));
        }
        for client in clients {
            assert_eq!(client.await.unwrap(), (0, 0));
        }
        let mut large = connect(address).await;
        let head = [0, 0x0f, 0xff, 0xff, 0, 0, 0, 8];
        large.stream.write_all(&head).await.unwrap();
        assert!(large.is_closed().await);

        // What is asked for is more than may be sent at once.
        for at in 0..8 {
            let answer = first.fetched(at).await;
            let partition = &answer.responses[0].partitions[0];
            assert_eq!(partition.error_code, 0);
            let bytes = partition.records.as_ref().unwrap().len();
            assert!((300_000..=512 << 10).contains(&bytes), "{bytes}");
        }
    });
}
