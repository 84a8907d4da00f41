//! Old records: deleted before an offset, compacted, and dated.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::{collections::HashMap, time::Duration};

use quipu_model::{
    TimestampMs,
    batch::{BatchBuilder, Compression, Record, split_batches},
};
use quipu_proto::v1::{self, ErrorReason, delete_records_request::Before};
use tokio::time::{Instant, sleep};

use crate::support::{Node, encoded, error_of, fetch, plain, records};

async fn create(node: &Node, name: &str, settings: &[(&str, &str)]) {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let request = v1::CreateTopicRequest {
        name: name.to_owned(),
        partitions: 1,
        config: settings.iter().map(owned).collect::<HashMap<_, _>>(),
        ..v1::CreateTopicRequest::default()
    };
    node.admin().await.create_topic(request).await.unwrap();
}

/// A batch of records with a key each.
fn keyed(records: &[(&str, &str)], timestamp_ms: i64) -> bytes::Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    for (key, value) in records {
        let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
        builder.append(TimestampMs::new(timestamp_ms), key, value, &[]);
    }
    builder.build().unwrap().into_bytes()
}

async fn read_all(node: &Node, topic: &str, mut from: u64) -> Vec<Record> {
    let mut log = node.log().await;
    let mut read = Vec::new();
    loop {
        let fetched = log.fetch(fetch(topic, 0, from)).await.unwrap().into_inner();
        for batch in split_batches(fetched.batches) {
            let batch = batch.unwrap();
            from = batch.header().next_offset().get();
            read.extend(batch.records().unwrap().map(Result::unwrap));
        }
        if from >= fetched.high_watermark {
            return read;
        }
    }
}

async fn delete_before(node: &Node, before: Before) -> Result<u64, tonic::Status> {
    let request = v1::DeleteRecordsRequest {
        topic: "t".to_owned(),
        partition: 0,
        before: Some(before),
    };
    let deleted = node.admin().await.delete_records(request).await?;
    Ok(deleted.into_inner().log_start_offset)
}

#[tokio::test]
async fn records_are_deleted_before_an_offset_and_not_past_the_end() {
    let node = Node::start().await;
    create(&node, "t", &[]).await;
    let mut log = node.log().await;
    log.produce(plain("t", 0, &["a", "b", "c"])).await.unwrap();
    log.produce(plain("t", 0, &["d"])).await.unwrap();
    assert_eq!(delete_before(&node, Before::Offset(2)).await.unwrap(), 2);
    assert_eq!(delete_before(&node, Before::Offset(1)).await.unwrap(), 2);
    let refused = log.fetch(fetch("t", 0, 1)).await.unwrap_err();
    assert_eq!(error_of(&refused).reason(), ErrorReason::OffsetOutOfRange);
    let kept = log.fetch(fetch("t", 0, 2)).await.unwrap().into_inner();
    assert_eq!(kept.log_start_offset, 2);
    // The batch that holds it comes whole.
    assert_eq!(records(kept.batches).len(), 4);

    let refused = delete_before(&node, Before::Offset(5)).await.unwrap_err();
    assert_eq!(error_of(&refused).reason(), ErrorReason::OffsetOutOfRange);
    let all = Before::HighWatermark(v1::delete_records_request::HighWatermark {});
    assert_eq!(delete_before(&node, all).await.unwrap(), 4);

    let node = node.restart().await;
    let listed = node.log().await.fetch(fetch("t", 0, 4)).await.unwrap();
    assert_eq!(listed.into_inner().log_start_offset, 4);
    let next = node.log().await.produce(plain("t", 0, &["e"])).await;
    assert_eq!(next.unwrap().into_inner().base_offset, Some(4));
    node.stop().await;
}

#[tokio::test]
async fn a_compacted_topic_takes_no_record_without_a_key() {
    let node = Node::start().await;
    create(&node, "t", &[("cleanup.policy", "compact")]).await;
    let mut log = node.log().await;
    for request in [
        plain("t", 0, &["a"]),
        encoded("t", 0, crate::support::batch(&["a"])),
    ] {
        let refused = log.produce(request).await.unwrap_err();
        let error = error_of(&refused);
        assert_eq!(error.reason(), ErrorReason::InvalidBatch);
        assert!(
            !error.retryable && error.message.contains("key"),
            "{error:?}"
        );
    }
    let sent = encoded("t", 0, keyed(&[("k", "a")], 1));
    log.produce(sent).await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn a_topic_is_compacted_as_it_is_set_and_readers_go_on_over_holes() {
    let node = Node::start_with(|config| {
        config.retention_interval = Duration::from_millis(100);
        config.store.compaction_bytes_per_second = u64::MAX;
    })
    .await;
    create(
        &node,
        "t",
        &[
            ("segment.bytes", "4096"),
            // Compaction leaves alone what is old, too.
            ("retention.ms", "1"),
        ],
    )
    .await;
    let alter = v1::AlterTopicConfigRequest {
        name: "t".to_owned(),
        set: [("cleanup.policy".to_owned(), "compact".to_owned())].into(),
        reset: Vec::new(),
    };
    node.admin().await.alter_topic_config(alter).await.unwrap();
    let mut log = node.log().await;
    let value = "v".repeat(500);
    for _ in 0..40 {
        let sent = keyed(&[("a", &value), ("b", &value)], 1);
        log.produce(encoded("t", 0, sent)).await.unwrap();
    }
    let last = keyed(&[("c", "last")], 1);
    log.produce(encoded("t", 0, last)).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    // The last few segments' worth stays until the next one is closed.
    while read_all(&node, "t", 0).await.len() > 15 {
        assert!(Instant::now() < deadline, "it was not compacted");
        sleep(Duration::from_millis(50)).await;
    }
    let node = node.restart().await;
    let read = read_all(&node, "t", 0).await;
    let newest = |key: &str| {
        let of_key = read
            .iter()
            .filter(|r| r.key.as_deref() == Some(key.as_bytes()));
        of_key.map(|record| record.offset.get()).max()
    };
    assert_eq!(
        (newest("a"), newest("b"), newest("c")),
        (Some(78), Some(79), Some(80))
    );
    for from in 0..80 {
        let first = read_all(&node, "t", from).await;
        let first = first
            .iter()
            .find(|record| record.offset.get() >= from)
            .unwrap();
        let expected = read.iter().find(|record| record.offset.get() >= from);
        assert_eq!(Some(first), expected);
    }
    node.stop().await;
}

#[tokio::test]
async fn the_brokers_clock_dates_records_where_the_topic_says_so() {
    let node = Node::start().await;
    create(&node, "t", &[("message.timestamp.type", "LogAppendTime")]).await;
    let now = || {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap();
        since.as_millis() as i64
    };
    let (before, sent) = (now(), encoded("t", 0, keyed(&[("k", "a"), ("k", "b")], 77)));
    node.log().await.produce(sent).await.unwrap();
    let read = read_all(&node, "t", 0).await;
    assert_eq!(read.len(), 2);
    for record in read {
        assert!(
            (before..=now()).contains(&record.timestamp.get()),
            "{record:?}"
        );
    }
    node.stop().await;
}

#[tokio::test]
async fn a_producers_clock_may_be_wrong_by_as_much_as_the_topic_lets_pass() {
    let node = Node::start().await;
    create(
        &node,
        "t",
        &[
            ("message.timestamp.before.max.ms", "60000"),
            ("message.timestamp.after.max.ms", "60000"),
        ],
    )
    .await;
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    let mut log = node.log().await;
    for (timestamp, is_taken) in [
        (now, true),
        (now - 30_000, true),
        (now + 30_000, true),
        (now - 90_000, false),
        (now + 90_000, false),
        (-1, false),
        (i64::MAX, false),
    ] {
        let produced = log
            .produce(encoded("t", 0, keyed(&[("k", "a")], timestamp)))
            .await;
        assert_eq!(produced.is_ok(), is_taken, "{timestamp}");
        if let Err(refused) = produced {
            let error = error_of(&refused);
            assert_eq!(error.reason(), ErrorReason::InvalidBatch);
            assert!(error.message.contains("clock"), "{}", error.message);
        }
    }
    node.stop().await;
}
