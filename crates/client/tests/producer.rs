//! What a producer promises, against a broker that loses connections, delays and refuses.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::{sync::Arc, time::Duration};

use fake::{Broker, Fate, TOPIC};
use parking_lot::Mutex;
use quipu_client::{
    Acks, Client, ClientConfig, Delivery, ErrorReason, Outcome, Producer, ProducerConfig, Reason,
    Record,
};
use tokio::time::Instant;

const RECORDS: usize = 500;

fn small_batches() -> ProducerConfig {
    ProducerConfig {
        batch_bytes: 1024,
        ..ProducerConfig::default()
    }
}

async fn producer(broker: &Arc<Broker>, config: ProducerConfig) -> Producer {
    broker.client().producer(config).await.unwrap()
}

/// Records of some size, each with its number.
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

/// Sends records through whatever the script does: each is acknowledged, and stored once, in order.
async fn rides_through(script: impl FnMut(u64) -> Fate + Send + 'static) -> Arc<Broker> {
    let broker = Broker::start(1, script);
    let producer = producer(&broker, small_batches()).await;
    let values = values(RECORDS);
    let deliveries = send_all(&producer, &values).await;
    producer.close().await.unwrap();
    for (n, delivery) in deliveries.into_iter().enumerate() {
        let stored = delivery.await.unwrap();
        if let Some(offset) = stored.offset {
            assert_eq!(offset.get(), n as u64);
        }
    }
    assert_eq!(broker.values(0), values);
    broker
}

#[tokio::test(start_paused = true)]
async fn records_arrive_in_order_with_their_offsets() {
    rides_through(|_| Fate::Served).await;
}

#[tokio::test(start_paused = true)]
async fn lost_connections_neither_lose_nor_repeat_nor_reorder() {
    rides_through(|n| match n % 7 {
        2 => Fate::LostAfter,
        5 => Fate::LostBefore,
        _ => Fate::Served,
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn refusals_that_pass_are_retried_in_order() {
    rides_through(|n| match n % 5 {
        1 => Fate::Refused(ErrorReason::Overloaded, true),
        3 => Fate::Refused(ErrorReason::NotLeader, true),
        _ => Fate::Served,
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn delays_and_losses_mixed_by_chance_keep_the_promise() {
    for seed in 1..20_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        rides_through(move |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            match state % 12 {
                0 => Fate::LostAfter,
                1 => Fate::LostBefore,
                2 => Fate::Refused(ErrorReason::Overloaded, true),
                3 => Fate::Delayed(Duration::from_millis(state % 400)),
                4 => Fate::Refused(ErrorReason::ShuttingDown, true),
                _ => Fate::Served,
            }
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_answers_nothing_is_given_up_and_tried_again() {
    let started = Instant::now();
    rides_through(|n| match n {
        0..3 => Fate::Swallowed,
        _ => Fate::Served,
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_for_a_while_costs_nothing_but_time() {
    let broker = Broker::start(1, |n| match n {
        4 => Fate::LostAfter,
        _ => Fate::Served,
    });
    let producer = producer(&broker, small_batches()).await;
    let values = values(RECORDS);
    let first = send_all(&producer, &values[..100]).await;
    broker.set_down(true);
    let second = send_all(&producer, &values[100..]).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    broker.set_down(false);
    producer.flush().await.unwrap();
    for delivery in first.into_iter().chain(second) {
        delivery.await.unwrap();
    }
    assert_eq!(broker.values(0), values);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_refused_for_good_fails_alone_and_the_rest_keep_their_order() {
    let broker = Broker::start(1, |n| match n {
        3 => Fate::Refused(ErrorReason::BatchTooLarge, false),
        _ => Fate::Served,
    });
    let producer = producer(&broker, small_batches()).await;
    let values = values(RECORDS);
    let deliveries = send_all(&producer, &values).await;
    assert!(producer.close().await.is_err());
    let mut stored = Vec::new();
    for (value, delivery) in values.iter().zip(deliveries) {
        match delivery.await {
            Ok(_) => stored.push(value.clone()),
            Err(error) => {
                assert!(error.is(ErrorReason::BatchTooLarge));
                assert_eq!(error.outcome(), Outcome::Definite);
            }
        }
    }
    assert!(stored.len() < RECORDS && stored.len() > RECORDS - 20);
    assert_eq!(broker.values(0), stored);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_expires_says_whether_it_may_be_stored_and_blocks_nobody() {
    let broker = Broker::start(1, |n| match n {
        0 => Fate::Swallowed,
        _ => Fate::Served,
    });
    let config = ProducerConfig {
        delivery_timeout: Duration::from_secs(5),
        linger: Duration::ZERO,
        ..small_batches()
    };
    let producer = producer(&broker, config).await;
    let values = values(20);
    let lost = send_all(&producer, &values[..1]).await.remove(0);
    let error = lost.await.unwrap_err();
    assert_eq!(error.reason(), Reason::TimedOut);
    assert_eq!(error.outcome(), Outcome::Indefinite);
    for delivery in send_all(&producer, &values[1..]).await {
        delivery.await.unwrap();
    }
    assert_eq!(broker.values(0), &values[1..]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_second_try_says_nothing_of_the_first() {
    for (refused, retryable) in [
        (ErrorReason::NotLeader, true),
        (ErrorReason::UnknownTopic, false),
    ] {
        let broker = Broker::start(1, move |n| match n {
            0 => Fate::LostAfter,
            _ => Fate::Refused(refused, retryable),
        });
        let config = ProducerConfig {
            delivery_timeout: Duration::from_secs(5),
            ..small_batches()
        };
        let producer = producer(&broker, config).await;
        let values = values(1);
        let delivery = send_all(&producer, &values).await.remove(0);
        assert_eq!(delivery.await.unwrap_err().outcome(), Outcome::Indefinite);
        assert_eq!(broker.values(0), values, "it is stored");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_expires_definitely() {
    let broker = Broker::start(1, |_| Fate::LostBefore);
    let config = ProducerConfig {
        delivery_timeout: Duration::from_secs(5),
        ..small_batches()
    };
    let producer = producer(&broker, config).await;
    let deliveries = send_all(&producer, &values(200)).await;
    let outcomes = futures::future::join_all(deliveries).await;
    let outcomes: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| outcome.unwrap_err().outcome())
        .collect();
    assert_eq!(outcomes.first(), Some(&Outcome::Indefinite));
    assert_eq!(outcomes.last(), Some(&Outcome::Definite));
    assert!(broker.values(0).is_empty());
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_by_the_buffer() {
    let broker = Broker::start(1, |_| Fate::Delayed(Duration::from_millis(500)));
    let config = ProducerConfig {
        buffer_bytes: 8 << 10,
        ..small_batches()
    };
    let producer = producer(&broker, config).await;
    let values = values(200);
    let started = Instant::now();
    let mut deliveries = Vec::new();
    let mut waited = false;
    for value in &values {
        let before = Instant::now();
        let record = Record::new(TOPIC).partition(0).value(value.as_bytes());
        deliveries.push(producer.send(record).await.unwrap());
        waited |= before.elapsed() > Duration::from_millis(100);
        let unsettled = deliveries.len() - broker.values(0).len();
        assert!(unsettled <= (8 << 10) / 100, "{unsettled} records are held");
    }
    assert!(waited, "send waits for room");
    producer.close().await.unwrap();
    assert_eq!(broker.values(0), values);
    assert!(started.elapsed() > Duration::from_secs(1));
    let large = vec![0; 9 << 10];
    let record = Record::new(TOPIC).partition(0).value(&large);
    assert!(producer.send(record).await.is_err(), "never fits");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_allowed_batches_are_in_flight() {
    let broker = Broker::start(1, |_| Fate::Swallowed);
    let config = ProducerConfig {
        max_in_flight: 3,
        ..small_batches()
    };
    let producer = producer(&broker, config).await;
    let deliveries = send_all(&producer, &values(RECORDS)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(broker.requests(), 3);
    drop(deliveries);
}

#[tokio::test(start_paused = true)]
async fn linger_gathers_and_flush_does_not_wait_for_it() {
    let broker = Broker::start(1, |_| Fate::Served);
    let config = ProducerConfig {
        linger: Duration::from_secs(10),
        ..ProducerConfig::default()
    };
    let producer = producer(&broker, config).await;
    let started = Instant::now();
    let first = send_all(&producer, &values(10)).await;
    for delivery in first {
        delivery.await.unwrap();
    }
    assert!(started.elapsed() >= Duration::from_secs(10));
    assert_eq!(broker.requests(), 1, "ten records, one batch");
    let started = Instant::now();
    let second = send_all(&producer, &values(10)).await;
    producer.flush().await.unwrap();
    for delivery in second {
        delivery.await.unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_closed_producer_takes_nothing_and_a_dropped_one_loses_nothing() {
    let broker = Broker::start(1, |_| Fate::Served);
    let producer = producer(&broker, small_batches()).await;
    let values = values(100);
    let deliveries = send_all(&producer, &values).await;
    drop(producer);
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    assert_eq!(broker.values(0), values);

    let producer = self::producer(&broker, small_batches()).await;
    producer.close().await.unwrap();
    producer.close().await.unwrap();
    let late = producer.send(Record::new(TOPIC).value(b"late")).await;
    assert_eq!(late.unwrap_err().reason(), Reason::Closed);
}

#[tokio::test(start_paused = true)]
async fn without_acknowledgement_no_offset_is_told_and_nothing_blocks() {
    let broker = Broker::start(3, |_| Fate::Served);
    let config = ProducerConfig {
        acks: Acks::None,
        ..small_batches()
    };
    let producer = producer(&broker, config).await;
    for value in values(100) {
        let record = Record::new(TOPIC).value(value.as_bytes());
        drop(producer.send(record).await.unwrap());
    }
    producer.close().await.unwrap();
    let stored: usize = (0..3).map(|p| broker.values(p).len()).sum();
    assert_eq!(stored, 100);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_topic_fails_at_once() {
    let broker = Broker::start(1, |_| Fate::Served);
    let producer = producer(&broker, small_batches()).await;
    assert!(
        producer
            .send(Record::new("absent").value(b"v"))
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_was_unknown_for_a_moment_loses_only_what_was_refused() {
    let broker = Broker::start(1, |n| match n {
        20 => Fate::Refused(ErrorReason::UnknownTopic, false),
        _ => Fate::Served,
    });
    let producer = producer(&broker, small_batches()).await;
    let mut stored = Vec::new();
    for value in values(RECORDS) {
        let record = Record::new(TOPIC).partition(0).value(value.as_bytes());
        match producer.send(record).await.unwrap().await {
            Ok(at) => {
                assert_eq!(at.offset.map(|o| o.get()), Some(stored.len() as u64));
                stored.push(value);
            }
            Err(error) => assert!(error.is(ErrorReason::UnknownTopic)),
        }
    }
    assert_eq!(stored.len(), RECORDS - 1);
    assert_eq!(broker.values(0), stored, "what is acknowledged is stored");
}

#[tokio::test(start_paused = true)]
async fn a_producer_past_its_quota_waits_as_it_is_told_and_loses_nothing() {
    const WAIT: Duration = Duration::from_secs(3);
    let arrivals: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = Arc::clone(&arrivals);
    let broker = Broker::start(2, move |_| {
        seen.lock().push(Instant::now());
        Fate::Throttled(WAIT)
    });
    let producer = producer(&broker, small_batches()).await;
    let values = values(150);
    let mut deliveries = send_all(&producer, &values).await;
    let other = Record::new(TOPIC).partition(1).value(b"other");
    deliveries.push(producer.send(other).await.unwrap());
    producer.close().await.unwrap();
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    assert_eq!(broker.values(0), values);
    assert_eq!(broker.values(1), ["other"]);
    // What was under way when it was told first; from then on one batch of each partition at a time.
    let arrivals = arrivals.lock();
    let is_early = |at: &&Instant| at.duration_since(arrivals[0]) < WAIT;
    let early = arrivals.iter().take_while(is_early).count();
    assert!(arrivals.len() > early + 5, "{early}");
    for pair in arrivals[early - 1..].windows(2) {
        let gap = pair[1].duration_since(pair[0]);
        assert!(gap.is_zero() || gap >= WAIT, "{gap:?}");
    }
}

#[tokio::test]
async fn a_client_id_that_is_none_is_refused() {
    for client_id in ["two words", "line\n", "\u{e9}", &"x".repeat(256)] {
        let config = ClientConfig {
            client_id: client_id.to_owned(),
            ..ClientConfig::new("fake:9093")
        };
        let refused = Client::connect(config).await.unwrap_err();
        assert_eq!(refused.outcome(), Outcome::Definite);
        assert!(refused.to_string().contains("client id"), "{refused}");
    }
}
