//! What a worker promises against a real broker, and what `quipu dlq` does with what it could not do.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use quipu_client::{
    Client, Failure, NewTopic, Producer, ProducerConfig, Record, Work, Worker, WorkerConfig,
};
use quipu_tests::{Broker, Launch, scratch};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// For what must happen, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(120);
const PARTITIONS: u32 = 4;

/// How often each value was worked on to its end, and the numbers of each key in the order in which they were.
#[derive(Default)]
struct Ledger {
    done: Mutex<BTreeMap<String, usize>>,
    by_key: Mutex<BTreeMap<String, Vec<u64>>>,
}

impl Ledger {
    fn note(&self, work: &Work) {
        let key = text(work.record.key.as_deref());
        let value = text(work.record.value.as_deref());
        if let Some(number) = value.strip_prefix("fine-") {
            let number = number.parse().unwrap();
            let mut by_key = self.by_key.lock().unwrap();
            by_key.entry(key).or_default().push(number);
        }
        *self.done.lock().unwrap().entry(value).or_default() += 1;
    }

    fn count(&self) -> usize {
        self.done.lock().unwrap().len()
    }
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap()
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < PATIENCE, "{what} did not come about");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn orders(broker: &Broker) -> (Client, Producer) {
    let client = Client::connect(broker.grpc()).await.unwrap();
    let topic = NewTopic::new("orders").partitions(PARTITIONS);
    client.admin().create_topic(topic).await.unwrap();
    let producer = client.producer(ProducerConfig::default()).await.unwrap();
    (client, producer)
}

async fn send(producer: &Producer, key: &str, value: &str) {
    let record = Record::new("orders").key(key.as_bytes());
    let delivery = producer.send(record.value(value.as_bytes())).await;
    drop(delivery.unwrap());
}

fn letters(broker: &Broker, more: &[&str]) -> Vec<Value> {
    let list = ["dlq", "list", "orders", "--group", "g", "--json"];
    let printed = broker.succeed(&[&list, more].concat(), b"").unwrap();
    let lines = printed.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn redrive(broker: &Broker, more: &[&str]) -> String {
    let redrive = ["dlq", "redrive", "orders", "--group", "g"];
    let said = broker.succeed(&[&redrive, more].concat(), b"").unwrap();
    said.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_goes_to_the_dead_letters_and_comes_back_when_it_is_sent() {
    let directory = scratch().unwrap();
    let broker = Launch::dev(&directory.path().join("data")).start().unwrap();
    let (client, producer) = orders(&broker).await;
    for number in 0..500 {
        let key = format!("k{}", number % 10);
        send(&producer, &key, &format!("fine-{number}")).await;
        match number % 50 {
            7 => send(&producer, &key, &format!("flaky-{number}")).await,
            8 => {
                send(
                    &producer,
                    &format!("p{number}"),
                    &format!("poison-{number}"),
                )
                .await
            }
            _ => {}
        }
    }
    producer.flush().await.unwrap();

    let (ledger, cured) = (
        Arc::new(Ledger::default()),
        Arc::new(AtomicBool::new(false)),
    );
    let config = WorkerConfig {
        retry_delays: vec![Duration::from_millis(200), Duration::from_millis(500)],
        ..WorkerConfig::new("g", "orders")
    };
    let (notes, is_cured) = (Arc::clone(&ledger), Arc::clone(&cured));
    let worker = Worker::start(&client, config, move |work: Arc<Work>| {
        let (notes, is_cured) = (Arc::clone(&notes), Arc::clone(&is_cured));
        async move {
            let value = text(work.record.value.as_deref());
            if value.starts_with("flaky") && work.attempt < 3 {
                return Err(Failure::transient("not yet"));
            }
            if value.starts_with("poison") && !is_cured.load(Ordering::Relaxed) {
                panic!("it can't be digested");
            }
            notes.note(&work);
            Ok(())
        }
    });
    let worker = worker.await.unwrap();
    until("all but the poison", || ledger.count() == 510).await;
    for (key, numbers) in &*ledger.by_key.lock().unwrap() {
        assert!(numbers.is_sorted(), "{key} is out of order: {numbers:?}");
    }
    // Its topic comes with the first letter.
    let has_topic = || {
        let described = broker.client(&["topic", "describe", "orders.g.dead"], b"");
        described.unwrap().status.success()
    };
    until("a dead letter", has_topic).await;
    until("ten dead letters", || letters(&broker, &[]).len() == 10).await;

    let listed = letters(&broker, &[]);
    let of = |key: &str| {
        let found = listed.iter().find(|letter| letter["key"] == key);
        found.unwrap().clone()
    };
    let letter = of("p58");
    assert_eq!(letter["value"], "poison-58");
    assert_eq!(letter["failure"]["attempts"], 3);
    assert_eq!(letter["failure"]["topic"], "orders");
    let cause = "the handler panicked: it can't be digested";
    assert_eq!(letter["failure"]["cause"], cause);
    let (partition, offset) = (&letter["partition"], &letter["offset"]);
    let (partition, offset) = (partition.to_string(), offset.to_string());
    let show = [
        "dlq",
        "show",
        "orders.g.dead",
        "--partition",
        &partition,
        "--offset",
        &offset,
    ];
    let shown = broker.succeed(&show, b"").unwrap();
    for part in [cause, "poison-58", "sent back     false"] {
        assert!(shown.contains(part), "{shown}");
    }

    cured.store(true, Ordering::Relaxed);
    assert_eq!(redrive(&broker, &["--key", "p58"]), "sent back: 1");
    until("the one", || ledger.count() == 511).await;
    assert_eq!(letters(&broker, &[]).len(), 9);
    assert_eq!(letters(&broker, &["--all"]).len(), 10);
    assert_eq!(redrive(&broker, &["--key", "p58"]), "sent back: 0");
    assert_eq!(redrive(&broker, &[]), "sent back: 9");
    until("the others", || ledger.count() == 520).await;
    assert_eq!(redrive(&broker, &[]), "sent back: 0");
    assert!(letters(&broker, &[]).is_empty());
    worker.close().await.unwrap();
    let done = ledger.done.lock().unwrap();
    assert!(done.values().all(|times| *times == 1), "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_go_from_worker_to_worker_without_a_record_worked_on_twice() {
    let directory = scratch().unwrap();
    let broker = Launch::dev(&directory.path().join("data")).start().unwrap();
    let (client, producer) = orders(&broker).await;
    for number in 0..3000 {
        send(
            &producer,
            &format!("k{}", number % 40),
            &format!("fine-{number}"),
        )
        .await;
    }
    producer.flush().await.unwrap();
    let ledger = Arc::new(Ledger::default());
    let start = || async {
        let notes = Arc::clone(&ledger);
        let config = WorkerConfig {
            concurrency: 8,
            ..WorkerConfig::new("g", "orders")
        };
        let worker = Worker::start(&client, config, move |work: Arc<Work>| {
            let notes = Arc::clone(&notes);
            async move {
                sleep(Duration::from_millis(10)).await;
                notes.note(&work);
                Ok(())
            }
        });
        worker.await.unwrap()
    };
    let first = start().await;
    until("a beginning", || ledger.count() > 300).await;
    let second = start().await;
    until("some of both", || ledger.count() > 1200).await;
    first.close().await.unwrap();
    until("all", || ledger.count() == 3000).await;
    second.close().await.unwrap();
    let stored = client.admin().group_offsets("g").await.unwrap();
    let stored: u64 = stored.iter().map(|offset| offset.offset.get()).sum();
    assert_eq!(stored, 3000);
    let done = ledger.done.lock().unwrap();
    let twice: Vec<_> = done.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "worked on more than once: {twice:?}");
    for (key, numbers) in &*ledger.by_key.lock().unwrap() {
        assert!(numbers.is_sorted(), "{key} is out of order");
    }
}
