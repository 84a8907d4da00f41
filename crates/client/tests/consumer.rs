//! What a consumer promises.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::{sync::Arc, time::Duration};

use fake::{Broker, Fate, TOPIC};
use futures::{FutureExt, StreamExt};
use quipu_client::{
    Assignment, Consumer, ConsumerConfig, End, ErrorReason, OutOfRange, ProducerConfig, Record,
    Start,
};
use quipu_model::Offset;
use tokio::time::Instant;

/// A broker whose partitions hold so many records each: their values are their offsets.
async fn filled(partitions: u32, records: u64) -> Arc<Broker> {
    let broker = Broker::start(partitions as usize, |_| Fate::Served);
    fill(&broker, partitions, 0..records).await;
    broker
}

async fn fill(broker: &Arc<Broker>, partitions: u32, range: std::ops::Range<u64>) {
    let config = ProducerConfig {
        batch_bytes: 1024,
        ..ProducerConfig::default()
    };
    let producer = broker.client().producer(config).await.unwrap();
    for n in range {
        for partition in 0..partitions {
            let value = n.to_string();
            let record = Record::new(TOPIC).partition(partition);
            let record = record.value(value.as_bytes());
            drop(producer.send(record).await.unwrap());
        }
    }
    producer.close().await.unwrap();
}

async fn consumer(broker: &Arc<Broker>, assignments: Vec<Assignment>) -> Consumer {
    let mut consumer = broker.client().consumer(ConsumerConfig::default());
    consumer.assign(assignments).await.unwrap();
    consumer
}

fn partition(start: Start) -> Assignment {
    Assignment::new(TOPIC, 0, start)
}

async fn offsets(consumer: &mut Consumer, count: usize) -> Vec<u64> {
    let records = consumer.take(count).map(|record| {
        let record = record.unwrap();
        assert_eq!(
            record.value.as_deref(),
            Some(record.offset.to_string().as_bytes())
        );
        record.offset.get()
    });
    records.collect().await
}

#[tokio::test(start_paused = true)]
async fn a_range_is_read_exactly_and_again() {
    let broker = filled(1, 1000).await;
    for (start, end, wanted) in [
        (Start::Earliest, End::Latest, 0..1000),
        (
            Start::Offset(Offset::new(123)),
            End::Offset(Offset::new(456)),
            123..456,
        ),
        (
            Start::Offset(Offset::new(500)),
            End::Offset(Offset::new(501)),
            500..501,
        ),
        (Start::FromEnd(10), End::Latest, 990..1000),
        (Start::FromEnd(5000), End::Latest, 0..1000),
        (Start::Latest, End::Latest, 1000..1000),
    ] {
        for _ in 0..2 {
            let mut consumer = consumer(&broker, vec![partition(start).until(end)]).await;
            let found = offsets(&mut consumer, usize::MAX).await;
            assert_eq!(found, wanted.clone().collect::<Vec<_>>(), "{start:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_end_it_follows_what_is_written_later() {
    let broker = filled(1, 10).await;
    let mut consumer = consumer(&broker, vec![partition(Start::Earliest)]).await;
    assert_eq!(
        offsets(&mut consumer, 10).await,
        (0..10).collect::<Vec<_>>()
    );
    assert!(consumer.next().now_or_never().is_none());
    fill(&broker, 1, 10..20).await;
    assert_eq!(
        offsets(&mut consumer, 10).await,
        (10..20).collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn every_partition_gets_its_turn_and_whole_batches_come_in_order() {
    let broker = filled(4, 500).await;
    let assignments = (0..4).map(|p| Assignment::new(TOPIC, p, Start::Earliest).until(End::Latest));
    let mut consumer = consumer(&broker, assignments.collect()).await;
    let mut next = [0; 4];
    while let Some(chunk) = consumer.next_batch().await {
        let chunk = chunk.unwrap();
        assert!(!chunk.records.is_empty());
        for record in chunk.records {
            assert_eq!(record.offset.get(), next[chunk.partition as usize]);
            next[chunk.partition as usize] += 1;
        }
    }
    assert_eq!(next, [500; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_paused_partition_is_silent_and_goes_on_where_it_was() {
    let broker = filled(1, 300).await;
    let mut consumer = consumer(&broker, vec![partition(Start::Earliest).until(End::Latest)]).await;
    assert_eq!(offsets(&mut consumer, 7).await, (0..7).collect::<Vec<_>>());
    consumer.pause(TOPIC, 0).unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(60), consumer.next()).await;
    assert!(waited.is_err());
    assert_eq!(consumer.position(TOPIC, 0), Some(Offset::new(7)));
    consumer.resume(TOPIC, 0).unwrap();
    assert_eq!(
        offsets(&mut consumer, usize::MAX).await,
        (7..300).collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn seeking_goes_back_and_forth() {
    let broker = filled(1, 300).await;
    let mut consumer = consumer(&broker, vec![partition(Start::Earliest).until(End::Latest)]).await;
    offsets(&mut consumer, 50).await;
    consumer
        .seek(TOPIC, 0, Start::Offset(Offset::new(290)))
        .await
        .unwrap();
    assert_eq!(
        offsets(&mut consumer, usize::MAX).await,
        (290..300).collect::<Vec<_>>()
    );
    consumer.seek(TOPIC, 0, Start::FromEnd(3)).await.unwrap();
    assert_eq!(offsets(&mut consumer, usize::MAX).await, [297, 298, 299]);
    assert!(consumer.seek(TOPIC, 1, Start::Earliest).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_offset_that_is_gone_is_handled_as_told() {
    let broker = filled(1, 300).await;
    broker.trim(0, 250);
    let mut strict = consumer(&broker, vec![partition(Start::Offset(Offset::ZERO))]).await;
    let error = strict.next().await.unwrap().unwrap_err();
    assert!(error.is(ErrorReason::OffsetOutOfRange));
    assert!(strict.next().await.is_none(), "nothing follows");

    for (policy, start, first) in [
        (OutOfRange::Earliest, 0, 250),
        (OutOfRange::Earliest, 9999, 250),
        (OutOfRange::Latest, 0, 300),
    ] {
        let mut consumer = broker.client().consumer(ConsumerConfig {
            out_of_range: policy,
            ..ConsumerConfig::default()
        });
        let start = Start::Offset(Offset::new(start));
        consumer.assign([partition(start)]).await.unwrap();
        if first == 300 {
            let nothing = tokio::time::timeout(Duration::from_secs(1), consumer.next()).await;
            assert!(nothing.is_err());
            assert_eq!(consumer.position(TOPIC, 0), Some(Offset::new(300)));
        } else {
            assert_eq!(offsets(&mut consumer, 1).await, [first]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_is_waited_for() {
    let broker = filled(1, 300).await;
    broker.set_down(false);
    let client = broker.client();
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer
        .assign([partition(Start::Earliest).until(End::Latest)])
        .await
        .unwrap();
    broker.set_down(true);
    let waited = tokio::time::timeout(Duration::from_secs(30), consumer.next()).await;
    assert!(waited.is_err());
    broker.set_down(false);
    assert_eq!(
        offsets(&mut consumer, usize::MAX).await,
        (0..300).collect::<Vec<_>>()
    );
    assert_eq!(broker.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_partitions_are_read_side_by_side() {
    let partitions = 450;
    let broker = filled(partitions, 2).await;
    let assignments = (0..partitions).map(|p| Assignment::new(TOPIC, p, Start::Earliest));
    let mut consumer = consumer(&broker, assignments.collect()).await;
    let mut seen = vec![0; partitions as usize];
    while seen.iter().sum::<usize>() < 2 * partitions as usize {
        let record = tokio::time::timeout(Duration::from_secs(60), consumer.next()).await;
        let record = record.expect("every partition is read").unwrap().unwrap();
        seen[record.partition as usize] += 1;
    }
    assert!(seen.iter().all(|records| *records == 2));
}

#[tokio::test(start_paused = true)]
async fn a_reader_past_its_quota_waits_as_it_is_told_and_misses_nothing() {
    let broker = filled(1, 600).await;
    broker.throttle_fetches(3000);
    let began = Instant::now();
    let mut consumer = consumer(&broker, vec![partition(Start::Earliest)]).await;
    let all: Vec<_> = (0..600).collect();
    assert_eq!(offsets(&mut consumer, 600).await, all);
    // They come in three messages at least.
    assert!(began.elapsed() >= Duration::from_secs(6));
}
