//! What becomes of producers and consumers whose leader falls silent.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fake::{Broker, Fate, TOPIC};
use futures::StreamExt;
use quipu_client::{
    Assignment, Client, ConsumerConfig, Delivery, End, ErrorReason, Outcome, Producer,
    ProducerConfig, Record, Start,
};
use tokio::time::Instant;

const OTHER: &str = "other:9093";

async fn producer(client: &Client) -> Producer {
    let config = ProducerConfig {
        batch_bytes: 1024,
        ..ProducerConfig::default()
    };
    client.producer(config).await.unwrap()
}

fn values(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{n:0>100}")).collect()
}

async fn send_all(producer: &Producer, values: &[String]) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for value in values {
        let record = Record::new(TOPIC).partition(0).value(value.as_bytes());
        deliveries.push(producer.send(record).await.unwrap());
    }
    deliveries
}

/// A broker beside the leader, which leads from when it is told so.
fn follower(leader: &Arc<Broker>) -> Arc<Broker> {
    leader.beside(OTHER, |_| Fate::Served)
}

#[tokio::test(start_paused = true)]
async fn writes_go_on_at_a_newer_leader_within_a_second_and_nothing_is_doubled_or_reordered() {
    for stored in [true, false] {
        let ended = Arc::new(AtomicBool::new(false));
        let has_ended = Arc::clone(&ended);
        // The last ones that it took it may have stored, and it may not have.
        let mut stores = if stored { 2 } else { 0 };
        let old = Broker::start(1, move |_| {
            if !has_ended.load(Ordering::Relaxed) {
                return Fate::Served;
            }
            stores -= 1;
            if stores >= 0 {
                Fate::Unanswered
            } else {
                Fate::Swallowed
            }
        });
        let new = follower(&old);
        let producer = producer(&Broker::client_of([&old, &new])).await;
        let values = values(300);
        let first = send_all(&producer, &values[..90]).await;
        for delivery in first {
            delivery.await.unwrap();
        }
        ended.store(true, Ordering::Relaxed);
        old.fall_silent();
        let mut waiting = send_all(&producer, &values[90..]).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(new.requests(), 0, "nobody leads but the old one");

        new.tell_leader(OTHER, 2);
        let elected = Instant::now();
        waiting.remove(0).await.unwrap();
        assert!(elected.elapsed() < Duration::from_secs(1));
        for delivery in waiting {
            delivery.await.unwrap();
        }
        assert_eq!(new.values(0), values);
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_slow_is_not_left_however_long_it_takes() {
    let mut requests = Vec::new();
    for seconds in [0, 20] {
        let leader = Broker::start(1, move |n| match n {
            3 => Fate::Delayed(Duration::from_secs(seconds)),
            _ => Fate::Served,
        });
        let other = leader.beside(OTHER, |_| Fate::Refused(ErrorReason::NotLeader, true));
        // It knows of a leader of long ago only.
        other.tell_leader(OTHER, 0);
        let producer = producer(&Broker::client_of([&leader, &other])).await;
        let values = values(100);
        for delivery in send_all(&producer, &values).await {
            delivery.await.unwrap();
        }
        assert_eq!(other.requests(), 0);
        assert_eq!(leader.values(0), values);
        requests.push(leader.requests());
    }
    assert_eq!(requests[0], requests[1], "nothing was sent twice");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_answers_again_is_believed_although_others_were_asked() {
    let old = Broker::start(1, |n| match n {
        0 => Fate::Delayed(Duration::from_secs(2)),
        _ => Fate::Served,
    });
    let other = follower(&old);
    let producer = producer(&Broker::client_of([&old, &other])).await;
    let first = send_all(&producer, &values(1)).await.remove(0);
    first.await.unwrap();
    // What was found out about the silence before holds no longer.
    other.tell_leader(OTHER, 2);
    tokio::time::sleep(Duration::from_secs(5)).await;
    for delivery in send_all(&producer, &values(20)).await {
        delivery.await.unwrap();
    }
    assert_eq!(other.requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_consumer_whose_stream_is_not_opened_goes_to_the_newer_leader() {
    let old = Broker::start(1, |_| Fate::Served);
    let new = follower(&old);
    let client = Broker::client_of([&old, &new]);
    let producer = producer(&client).await;
    let values = values(20);
    for delivery in send_all(&producer, &values).await {
        delivery.await.unwrap();
    }
    old.fall_silent();
    let mut consumer = client.consumer(ConsumerConfig::default());
    let all = Assignment::new(TOPIC, 0, Start::Earliest).until(End::Latest);
    consumer.assign([all]).await.unwrap();
    let elected = Instant::now() + Duration::from_secs(2);
    let telling = async {
        tokio::time::sleep_until(elected).await;
        new.tell_leader(OTHER, 2);
    };
    let (first, ()) = tokio::join!(consumer.next(), telling);
    first.unwrap().unwrap();
    assert!(elected.elapsed() < Duration::from_secs(1));
    for value in &values[1..] {
        let record = consumer.next().await.unwrap().unwrap();
        assert_eq!(record.value.unwrap(), value.as_bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn what_expired_unanswered_is_refused_when_it_comes_after_all() {
    let broker = Broker::start(1, |n| match n {
        1 => Fate::Late,
        _ => Fate::Served,
    });
    let config = ProducerConfig {
        delivery_timeout: Duration::from_secs(5),
        linger: Duration::ZERO,
        ..ProducerConfig::default()
    };
    let producer = broker.client().producer(config).await.unwrap();
    let values = values(10);
    send_all(&producer, &values[..1])
        .await
        .remove(0)
        .await
        .unwrap();
    let lost = send_all(&producer, &values[1..2]).await.remove(0).await;
    assert_eq!(lost.unwrap_err().outcome(), Outcome::Indefinite);
    for delivery in send_all(&producer, &values[2..]).await {
        delivery.await.unwrap();
    }
    assert_eq!(broker.store_late(), [Some(ErrorReason::ProducerFenced)]);
    let mut stored = values;
    stored.remove(1);
    assert_eq!(broker.values(0), stored);
}
