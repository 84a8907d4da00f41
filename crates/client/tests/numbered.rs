//! What a producer promises that numbers its batches: that each is stored once, also where another process sends it again.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::sync::Arc;

use fake::{Broker, Fate, TOPIC};
use quipu_client::{
    ErrorReason, NumberedProducer, Offset, Outcome, ProducerId, Reason, Record, Result,
};

/// What a process has after its start that was told under which id to go on.
fn process(broker: &Arc<Broker>, id: ProducerId) -> NumberedProducer {
    broker.client().numbered_producer(TOPIC, 0, id)
}

async fn new_id(broker: &Arc<Broker>) -> ProducerId {
    broker.client().new_producer_id().await.unwrap()
}

/// Sends `values` as one batch.
async fn send(producer: &NumberedProducer, first: u64, values: &[&str]) -> Result<Option<Offset>> {
    let records = values
        .iter()
        .map(|v| Record::new(TOPIC).value(v.as_bytes()));
    producer.send(first, &records.collect::<Vec<_>>()).await
}

#[tokio::test(start_paused = true)]
async fn batches_ride_through_what_passes_and_are_stored_once() {
    let broker = Broker::start(1, |n| match n % 5 {
        0 => Fate::LostAfter,
        1 => Fate::LostBefore,
        2 => Fate::Refused(ErrorReason::NotLeader, true),
        3 => Fate::Unanswered,
        _ => Fate::Served,
    });
    let producer = process(&broker, new_id(&broker).await);
    for n in 0..10 {
        let stored = send(&producer, 2 * n, &["a", "b"]).await.unwrap();
        assert_eq!(stored, Some(Offset::new(2 * n)));
    }
    assert_eq!(broker.values(0), ["a", "b"].repeat(10));
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_process_sent_and_another_sends_again_is_stored_once() {
    let broker = Broker::start(1, |n| match n {
        0 => Fate::Unanswered,
        2 => Fate::Late,
        _ => Fate::Served,
    });
    let id = new_id(&broker).await;
    for (first, values) in [(0, ["a", "b"]), (2, ["c", "d"])] {
        let killed = process(&broker, id);
        let sending = tokio::spawn(async move { send(&killed, first, &values).await });
        while broker.requests() <= first {
            tokio::task::yield_now().await;
        }
        sending.abort();
        let stored = send(&process(&broker, id), first, &values).await;
        assert_eq!(stored.unwrap(), Some(Offset::new(first)));
    }
    // The one that was still on its way.
    assert_eq!(broker.store_late(), [None]);
    assert_eq!(broker.values(0), ["a", "b", "c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_long_ago_is_known_to_be() {
    let broker = Broker::start(1, |_| Fate::Served);
    let producer = process(&broker, new_id(&broker).await);
    for n in 0..7 {
        send(&producer, n, &["a"]).await.unwrap();
    }
    assert_eq!(send(&producer, 0, &["a"]).await.unwrap(), None);
    assert_eq!(broker.values(0).len(), 7);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_the_next_or_of_another_partition_is_refused() {
    let broker = Broker::start(2, |_| Fate::Served);
    let producer = process(&broker, new_id(&broker).await);
    send(&producer, 0, &["a"]).await.unwrap();
    let gap = send(&producer, 2, &["c"]).await.unwrap_err();
    assert!(gap.is(ErrorReason::OutOfOrderSequence));
    assert_eq!(gap.outcome(), Outcome::Definite);
    let others = [
        Record::new("other"),
        Record::new(TOPIC).partition(1),
        Record::new(TOPIC).partition(0).key(b"k"),
    ];
    for wrong in [&others[..1], &others[1..2], &others[1..], &[]] {
        let refused = producer.send(1, wrong).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::InvalidArgument);
    }
    producer.send(1, &others[2..]).await.unwrap();
}
