//! What a member of a group promises.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::{sync::Arc, time::Duration};

use fake::{Broker, Fate, TOPIC};
use futures::{FutureExt, StreamExt};
use quipu_client::{
    GroupConfig, GroupConsumer, ProducerConfig, RebalanceListener, Record, TopicPartition,
};
use tokio::{sync::mpsc, time::timeout};

/// Of virtual time: more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Says what came and what was lost.
struct Watcher(mpsc::UnboundedSender<&'static str>);

impl RebalanceListener for Watcher {
    fn assigned(&self, _: &[TopicPartition]) {
        self.0.send("assigned").unwrap();
    }

    fn lost(&self, _: &[TopicPartition]) {
        self.0.send("lost").unwrap();
    }
}

type Told = mpsc::UnboundedReceiver<&'static str>;

/// A member of a group that reads two records.
async fn member(broker: &Arc<Broker>) -> (GroupConsumer, Told) {
    let producer = broker.client().producer(ProducerConfig::default()).await;
    let producer = producer.unwrap();
    for value in ["a", "b"] {
        let record = Record::new(TOPIC).value(value.as_bytes());
        producer.send(record).await.unwrap().await.unwrap();
    }
    let (teller, told) = mpsc::unbounded_channel();
    let config = GroupConfig {
        max_poll_interval: Duration::from_secs(60),
        listener: Some(Arc::new(Watcher(teller))),
        ..GroupConfig::new("g", TOPIC)
    };
    (broker.client().group_consumer(config).unwrap(), told)
}

async fn hear(told: &mut Told, what: &str) {
    let heard = timeout(PATIENCE, told.recv()).await;
    assert_eq!(heard.unwrap().unwrap(), what);
}

async fn value(consumer: &mut GroupConsumer) -> String {
    let record = timeout(PATIENCE, consumer.next()).await.unwrap();
    let value = record.unwrap().unwrap().value.unwrap();
    String::from_utf8(value.to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_member_that_never_asks_leaves_its_partitions_to_others_until_it_does() {
    let broker = Broker::start(1, |_| Fate::Served);
    let (mut consumer, mut told) = member(&broker).await;
    hear(&mut told, "assigned").await;
    hear(&mut told, "lost").await;
    assert_eq!(value(&mut consumer).await, "a");
    hear(&mut told, "assigned").await;
}

#[tokio::test(start_paused = true)]
async fn so_does_one_that_asked_and_does_not_wait_for_the_answer() {
    let broker = Broker::start(1, |_| Fate::Served);
    let (mut consumer, mut told) = member(&broker).await;
    assert_eq!(value(&mut consumer).await, "a");
    assert_eq!(value(&mut consumer).await, "b");
    assert!(consumer.next().now_or_never().is_none());
    hear(&mut told, "assigned").await;
    hear(&mut told, "lost").await;
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_for_a_record_for_long_keeps_its_partitions() {
    let broker = Broker::start(1, |_| Fate::Served);
    let (mut consumer, mut told) = member(&broker).await;
    assert_eq!(value(&mut consumer).await, "a");
    assert_eq!(value(&mut consumer).await, "b");
    hear(&mut told, "assigned").await;
    let waited = timeout(PATIENCE, consumer.next()).await;
    assert!(waited.is_err(), "there are two records");
    assert!(told.try_recv().is_err());
}
