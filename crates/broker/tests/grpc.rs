//! A broker in this process, spoken to as its clients do.

mod cleanup;
mod front;
mod groups;
mod quotas;
mod support;

use futures::{StreamExt, stream};
use quipu_proto::v1::{self, ErrorReason, list_offsets_request::At};
use support::{Node, batch, encoded, error_of, fetch, plain, records};
use tonic::Code;

#[tokio::test]
async fn records_come_back_as_they_were_sent() {
    let node = Node::start().await;
    node.create("orders", 2).await;
    let mut log = node.log().await;

    let sent = batch(&["a", "b", "c"]);
    let first = log
        .produce(encoded("orders", 1, sent.clone()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first.base_offset, Some(0));
    let second = log
        .produce(plain("orders", 1, &["d"]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(second.base_offset, Some(3));

    let fetched = log.fetch(fetch("orders", 1, 0)).await.unwrap().into_inner();
    assert_eq!(fetched.high_watermark, 4);
    assert_eq!(fetched.log_start_offset, 0);
    // All but what the log stamps (base offset, leader epoch) is what the producer encoded.
    assert_eq!(fetched.batches[16..sent.len()], sent[16..]);
    assert_eq!(
        records(fetched.batches),
        [(0, "a"), (1, "b"), (2, "c"), (3, "d")].map(owned)
    );

    let other = log.fetch(fetch("orders", 0, 0)).await.unwrap().into_inner();
    assert!(other.batches.is_empty());
    node.stop().await;
}

fn owned((offset, value): (u64, &str)) -> (u64, String) {
    (offset, value.to_owned())
}

#[tokio::test]
async fn a_stream_answers_every_request_in_its_partitions_order() {
    let node = Node::start().await;
    node.create("orders", 3).await;
    let mut log = node.log().await;
    let requests = (0..300u64).map(|number| {
        let partition = (number % 3) as u32;
        let mut request = plain("orders", partition, &["x"]);
        // Every tenth is refused, which must not end the others nor overtake them.
        if number % 10 == 9 {
            request = encoded("orders", partition, vec![0; 70].into());
        }
        request.correlation_id = number;
        request
    });
    let answers = log
        .produce_stream(stream::iter(requests.collect::<Vec<_>>()))
        .await
        .unwrap();
    let answers: Vec<_> = answers.into_inner().map(Result::unwrap).collect().await;

    assert_eq!(answers.len(), 300);
    for partition in 0..3u64 {
        let own = answers.iter().filter(|a| a.correlation_id % 3 == partition);
        let offsets: Vec<_> = own.filter_map(|a| a.base_offset).collect();
        assert_eq!(
            offsets,
            (0..90).collect::<Vec<_>>(),
            "partition {partition}"
        );
    }
    for answer in answers {
        let refused = answer.correlation_id % 10 == 9;
        assert_eq!(answer.error.is_some(), refused, "{}", answer.correlation_id);
        if let Some(error) = answer.error {
            assert_eq!(error.reason(), ErrorReason::InvalidBatch);
            assert_eq!(error.outcome(), v1::Outcome::Definite);
        }
    }
    node.stop().await;
}

#[tokio::test]
async fn weaker_acknowledgements_still_append() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    let mut log = node.log().await;
    let with = |acks: v1::Acks| v1::ProduceRequest {
        acks: acks.into(),
        ..plain("orders", 0, &["x"])
    };
    let none = log
        .produce(with(v1::Acks::None))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(none.base_offset, None);
    let leader = log
        .produce(with(v1::Acks::Leader))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(leader.base_offset, Some(1));
    let all = log.produce(with(v1::Acks::All)).await.unwrap().into_inner();
    assert_eq!(all.base_offset, Some(2));
    node.stop().await;
}

#[tokio::test]
async fn a_long_poll_waits_for_what_is_yet_to_come() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    let (mut reader, mut writer) = (node.log().await, node.log().await);
    let request = v1::FetchRequest {
        min_bytes: 1,
        max_wait_ms: 60_000,
        ..fetch("orders", 0, 0)
    };
    let (fetched, produced) = tokio::join!(
        reader.fetch(request.clone()),
        writer.produce(plain("orders", 0, &["late"]))
    );
    produced.unwrap();
    let fetched = fetched.unwrap().into_inner();
    assert_eq!(records(fetched.batches), [owned((0, "late"))]);

    let at_the_end = v1::FetchRequest {
        offset: 1,
        max_wait_ms: 20,
        ..request
    };
    let nothing = reader.fetch(at_the_end).await.unwrap().into_inner();
    assert!(nothing.batches.is_empty());
    assert_eq!(nothing.high_watermark, 1);
    node.stop().await;
}

#[tokio::test]
async fn a_fetch_stream_follows_the_end_and_stops_where_it_was_told() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    let mut log = node.log().await;
    for value in ["0", "1", "2"] {
        log.produce(plain("orders", 0, &[value])).await.unwrap();
    }
    let request = v1::FetchStreamRequest {
        topic: "orders".to_owned(),
        offset: 1,
        end_offset: Some(5),
        ..v1::FetchStreamRequest::default()
    };
    let mut follower = log.fetch_stream(request).await.unwrap().into_inner();
    let first = follower.message().await.unwrap().unwrap();
    assert_eq!(records(first.batches), [owned((1, "1")), owned((2, "2"))]);
    for value in ["3", "4", "5", "6"] {
        log.produce(plain("orders", 0, &[value])).await.unwrap();
    }
    let mut rest = Vec::new();
    while let Some(message) = follower.message().await.unwrap() {
        assert_eq!(message.error, None);
        rest.extend(records(message.batches));
    }
    assert_eq!(rest, [owned((3, "3")), owned((4, "4"))]);
    node.stop().await;
}

#[tokio::test]
async fn deleting_a_topic_ends_its_streams() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    let mut log = node.log().await;
    let request = v1::FetchStreamRequest {
        topic: "orders".to_owned(),
        ..v1::FetchStreamRequest::default()
    };
    let mut follower = log.fetch_stream(request).await.unwrap().into_inner();
    node.delete("orders").await;
    let last = follower.message().await.unwrap().unwrap();
    assert_eq!(last.error.unwrap().reason(), ErrorReason::UnknownTopic);
    assert!(follower.message().await.unwrap().is_none());

    // The same name is another topic: empty again.
    node.create("orders", 1).await;
    let again = log
        .produce(plain("orders", 0, &["x"]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.base_offset, Some(0));
    node.stop().await;
}

#[tokio::test]
async fn offsets_are_found_by_place_and_time() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    let mut log = node.log().await;
    for time in [1000, 2000, 3000] {
        let mut request = plain("orders", 0, &["x"]);
        support::date(&mut request, time);
        log.produce(request).await.unwrap();
    }
    let mut ask = async |at: At| {
        let request = v1::ListOffsetsRequest {
            topic: "orders".to_owned(),
            partition: 0,
            at: Some(at),
        };
        let listed = log.list_offsets(request).await.unwrap().into_inner();
        (listed.offset, listed.timestamp_ms)
    };
    assert_eq!(
        ask(At::Earliest(v1::list_offsets_request::Earliest {})).await,
        (0, None)
    );
    assert_eq!(
        ask(At::Latest(v1::list_offsets_request::Latest {})).await,
        (3, None)
    );
    assert_eq!(ask(At::TimestampMs(1500)).await, (1, Some(2000)));
    assert_eq!(ask(At::TimestampMs(3001)).await, (3, None));
    node.stop().await;
}

#[tokio::test]
async fn topics_are_described_with_all_that_is_set() {
    let node = Node::start().await;
    let mut admin = node.admin().await;
    let request = v1::CreateTopicRequest {
        name: "orders".to_owned(),
        partitions: 3,
        replication_factor: 0,
        config: [("retention.ms".to_owned(), "1000".to_owned())].into(),
    };
    admin.create_topic(request.clone()).await.unwrap();
    let twice = admin.create_topic(request).await.unwrap_err();
    assert_eq!(error_of(&twice).reason(), ErrorReason::TopicAlreadyExists);

    let describe = v1::DescribeTopicRequest {
        name: "orders".to_owned(),
    };
    let described = admin
        .describe_topic(describe.clone())
        .await
        .unwrap()
        .into_inner();
    let topic = described.topic.unwrap();
    assert_eq!((topic.partitions, topic.replication_factor), (3, 1));
    assert_eq!(topic.config["retention.ms"], "1000");
    assert_eq!(topic.config["retention.bytes"], "-1");
    assert_eq!(described.partitions.len(), 3);
    for partition in described.partitions {
        assert_eq!(partition.leader.unwrap().id, 1);
        assert_eq!(partition.replicas, [1]);
        assert_eq!(partition.damage, "");
    }

    let alter = v1::AlterTopicConfigRequest {
        name: "orders".to_owned(),
        set: [("max.message.bytes".to_owned(), "100".to_owned())].into(),
        reset: vec!["retention.ms".to_owned()],
    };
    let altered = admin.alter_topic_config(alter).await.unwrap().into_inner();
    let config = altered.topic.unwrap().config;
    assert_eq!(config["max.message.bytes"], "100");
    assert_eq!(config["retention.ms"], "604800000");
    let mut log = node.log().await;
    let large = log
        .produce(plain("orders", 0, &[&"x".repeat(100)]))
        .await
        .unwrap_err();
    assert_eq!(error_of(&large).reason(), ErrorReason::BatchTooLarge);

    let list = |include_internal| v1::ListTopicsRequest { include_internal };
    let names = |topics: Vec<v1::Topic>| topics.into_iter().map(|t| t.name).collect::<Vec<_>>();
    let own = admin.list_topics(list(false)).await.unwrap().into_inner();
    assert_eq!(names(own.topics), ["orders"]);
    let all = admin.list_topics(list(true)).await.unwrap().into_inner();
    assert_eq!(names(all.topics), ["__cluster_metadata", "orders"]);
    node.stop().await;
}

#[tokio::test]
async fn refused_admin_requests_say_why() {
    let node = Node::start().await;
    let mut admin = node.admin().await;
    let topic = |name: &str| v1::CreateTopicRequest {
        name: name.to_owned(),
        ..v1::CreateTopicRequest::default()
    };
    let two_replicas = v1::CreateTopicRequest {
        replication_factor: 2,
        ..topic("a")
    };
    let bad_setting = v1::CreateTopicRequest {
        config: [("segment.bytes".to_owned(), "many".to_owned())].into(),
        ..topic("a")
    };
    for (request, reason, code) in [
        (
            topic("../etc"),
            ErrorReason::InvalidTopicName,
            Code::InvalidArgument,
        ),
        (
            topic(".."),
            ErrorReason::InvalidTopicName,
            Code::InvalidArgument,
        ),
        (
            topic(""),
            ErrorReason::InvalidTopicName,
            Code::InvalidArgument,
        ),
        (
            topic("__mine"),
            ErrorReason::InternalTopic,
            Code::PermissionDenied,
        ),
        (
            two_replicas,
            ErrorReason::InvalidRequest,
            Code::InvalidArgument,
        ),
        (
            bad_setting,
            ErrorReason::InvalidConfig,
            Code::InvalidArgument,
        ),
    ] {
        let status = admin.create_topic(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), code, "{request:?}");
        let error = error_of(&status);
        assert_eq!(error.reason(), reason, "{request:?}");
        assert!(!error.retryable);
    }
    let unknown = v1::DeleteTopicRequest {
        name: "nobody".to_owned(),
    };
    let status = admin.delete_topic(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    node.stop().await;
}

#[tokio::test]
async fn rubbish_is_refused_and_nothing_of_it_kept() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    let mut log = node.log().await;
    let good = batch(&["a", "b"]);
    let mut flipped = good.to_vec();
    flipped[70] ^= 1;
    let truncated = good.slice(..good.len() - 1);
    let two = [&good[..], &good[..]].concat();
    for (request, reason) in [
        (
            encoded("orders", 0, Vec::new().into()),
            ErrorReason::InvalidBatch,
        ),
        (
            encoded("orders", 0, vec![0xff; 200].into()),
            ErrorReason::InvalidBatch,
        ),
        (
            encoded("orders", 0, flipped.into()),
            ErrorReason::InvalidBatch,
        ),
        (encoded("orders", 0, truncated), ErrorReason::InvalidBatch),
        (encoded("orders", 0, two.into()), ErrorReason::InvalidBatch),
        (
            encoded("orders", 0, support::lying_count()),
            ErrorReason::InvalidBatch,
        ),
        (
            encoded("orders", 0, vec![0; 2 << 20].into()),
            ErrorReason::BatchTooLarge,
        ),
        (
            encoded("orders", 1, good.clone()),
            ErrorReason::UnknownPartition,
        ),
        (
            encoded("orders", u32::MAX, good.clone()),
            ErrorReason::UnknownPartition,
        ),
        (
            encoded("nobody", 0, good.clone()),
            ErrorReason::UnknownTopic,
        ),
        (
            encoded(&"n".repeat(100_000), 0, good.clone()),
            ErrorReason::UnknownTopic,
        ),
        (
            encoded("__cluster_metadata", 0, good.clone()),
            ErrorReason::InternalTopic,
        ),
        (plain("orders", 0, &[]), ErrorReason::InvalidBatch),
        (v1::ProduceRequest::default(), ErrorReason::InvalidRequest),
    ] {
        let status = log.produce(request).await.unwrap_err();
        let error = error_of(&status);
        assert_eq!(error.reason(), reason, "{status}");
        assert!(error.message.len() < 1000);
    }
    let oversized = encoded("orders", 0, vec![0; 33 << 20].into());
    assert!(log.produce(oversized).await.is_err());

    let out_of_range = log.fetch(fetch("orders", 0, 1)).await.unwrap_err();
    assert_eq!(out_of_range.code(), Code::OutOfRange);
    let far = log.fetch(fetch("orders", 0, u64::MAX)).await.unwrap_err();
    assert_eq!(error_of(&far).reason(), ErrorReason::OffsetOutOfRange);

    let kept = log
        .produce(encoded("orders", 0, good))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(kept.base_offset, Some(0));
    node.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let node = Node::start().await;
    node.create("orders", 2).await;
    node.create("gone", 1).await;
    node.delete("gone").await;
    let mut log = node.log().await;
    log.produce(plain("orders", 1, &["a", "b"])).await.unwrap();
    let cluster = node.cluster().await;
    let id = log
        .init_producer_id(v1::InitProducerIdRequest {})
        .await
        .unwrap()
        .into_inner();

    let node = node.restart().await;
    let mut log = node.log().await;
    let fetched = log.fetch(fetch("orders", 1, 0)).await.unwrap().into_inner();
    assert_eq!(records(fetched.batches), [owned((0, "a")), owned((1, "b"))]);
    let next = log
        .produce(plain("orders", 1, &["c"]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next.base_offset, Some(2));
    let gone = log.fetch(fetch("gone", 0, 0)).await.unwrap_err();
    assert_eq!(error_of(&gone).reason(), ErrorReason::UnknownTopic);
    assert_eq!(node.cluster().await.cluster_id, cluster.cluster_id);
    let later = log
        .init_producer_id(v1::InitProducerIdRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(later.producer_id > id.producer_id);
    node.stop().await;
}

#[tokio::test]
async fn a_batch_sent_again_is_answered_with_its_first_offset() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    let mut log = node.log().await;
    let id = log
        .init_producer_id(v1::InitProducerIdRequest {})
        .await
        .unwrap()
        .into_inner();
    let first = support::idempotent(&id, 0, &["a", "b"]);
    let gap = support::idempotent(&id, 7, &["c"]);
    log.produce(plain("orders", 0, &["before"])).await.unwrap();

    let once = log
        .produce(encoded("orders", 0, first.clone()))
        .await
        .unwrap()
        .into_inner();
    let twice = log
        .produce(encoded("orders", 0, first))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((once.base_offset, once.duplicate), (Some(1), false));
    assert_eq!((twice.base_offset, twice.duplicate), (Some(1), true));
    let refused = log.produce(encoded("orders", 0, gap)).await.unwrap_err();
    assert_eq!(error_of(&refused).reason(), ErrorReason::OutOfOrderSequence);
    node.stop().await;
}

#[tokio::test]
async fn shutting_down_ends_open_streams() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    let mut log = node.log().await;
    let request = v1::FetchStreamRequest {
        topic: "orders".to_owned(),
        ..v1::FetchStreamRequest::default()
    };
    let mut follower = log.fetch_stream(request).await.unwrap().into_inner();
    let (requests, receiver) = futures::channel::mpsc::unbounded();
    let answers = log.produce_stream(receiver).await.unwrap().into_inner();
    requests.unbounded_send(plain("orders", 0, &["x"])).unwrap();
    let first = follower.message().await.unwrap().unwrap();
    assert_eq!(records(first.batches), [owned((0, "x"))]);

    let (_, last) = tokio::join!(node.stop(), follower.message());
    let error = last.unwrap().unwrap().error.unwrap();
    assert_eq!(error.reason(), ErrorReason::ShuttingDown);
    assert!(error.retryable);
    let answers: Vec<_> = answers.collect().await;
    assert_eq!(answers[0].as_ref().unwrap().base_offset, Some(0));
    assert_eq!(answers[1].as_ref().unwrap_err().code(), Code::Unavailable);
    drop(requests);
}

#[tokio::test]
async fn health_and_metrics_are_told_over_http() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    node.log()
        .await
        .produce(plain("orders", 0, &["x"]))
        .await
        .unwrap();
    assert_eq!(node.http("/healthz").await.0, 200);
    assert_eq!(node.http("/readyz").await.0, 200);
    assert_eq!(node.http("/nothing").await.0, 404);
    let (status, metrics) = node.http("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "quipu_produced_records_total 1",
        "quipu_partitions 2",
        "quipu_append_latency_seconds_count{acks=\"all\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_data_directory_serves_one_node_at_a_time() {
    let node = Node::start().await;
    let second = quipu_broker::Broker::start(node.config())
        .await
        .unwrap_err();
    assert!(second.to_string().contains("in use"), "{second}");
    node.stop().await;
}

#[tokio::test]
async fn a_topic_of_hundreds_of_partitions_takes_writes() {
    let node = Node::start().await;
    node.create("wide", 300).await;
    let requests: Vec<_> = (0..300).map(|p| plain("wide", p, &["x"])).collect();
    let answers = node
        .log()
        .await
        .produce_stream(stream::iter(requests))
        .await
        .unwrap();
    let answers: Vec<_> = answers.into_inner().map(Result::unwrap).collect().await;
    assert_eq!(answers.len(), 300);
    assert!(answers.iter().all(|answer| answer.base_offset == Some(0)));
    node.stop().await;
}
