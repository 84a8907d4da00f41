//! What a worker promises.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fake::{Broker, Fate, TOPIC};
use parking_lot::Mutex;
use quipu_client::{
    BreakerConfig, Envelope, Failure, Handler, Once, Order, ProducerConfig, Record, Start,
    StoredRecord, Work, Worker, WorkerConfig, borrow_headers,
};
use tokio::time::{Instant, sleep, timeout};

const GROUP: &str = "g";
/// Of virtual time: more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What was worked on: value, attempt, and how long after the start.
type Seen = Arc<Mutex<Vec<(String, u32, Duration)>>>;

fn config() -> WorkerConfig {
    WorkerConfig::new(GROUP, TOPIC)
}

async fn start(broker: &Arc<Broker>, config: WorkerConfig, handler: impl Handler) -> Worker {
    let worker = Worker::start(&broker.client(), config, handler).await;
    worker.unwrap()
}

/// Sends records of these keys and values; an empty key is none.
async fn send(broker: &Arc<Broker>, records: &[(&str, &str)]) {
    let config = ProducerConfig {
        batch_bytes: 1024,
        ..ProducerConfig::default()
    };
    let producer = broker.client().producer(config).await.unwrap();
    for (key, value) in records {
        let mut record = Record::new(TOPIC).partition(0).value(value.as_bytes());
        if !key.is_empty() {
            record = record.key(key.as_bytes());
        }
        drop(producer.send(record).await.unwrap());
    }
    producer.close().await.unwrap();
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !is() {
            sleep(Duration::from_millis(10)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("{what} did not come about"));
}

#[allow(clippy::disallowed_methods, reason = "a retry is due at a time of day")]
fn time_of_day() -> Duration {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap()
}

fn value(work: &Work) -> String {
    String::from_utf8(work.record.value.clone().unwrap().to_vec()).unwrap()
}

/// A handler that notes what it sees and then does what it is told to.
fn noting(
    seen: &Seen,
    act: impl Fn(&Work) -> Result<(), Failure> + Send + Sync + 'static,
) -> impl Handler {
    let (seen, act, began) = (Arc::clone(seen), Arc::new(act), Instant::now());
    move |work: Arc<Work>| {
        let (seen, act) = (Arc::clone(&seen), Arc::clone(&act));
        async move {
            seen.lock()
                .push((value(&work), work.attempt, began.elapsed()));
            act(&work)
        }
    }
}

fn text(record: &StoredRecord, header: &str) -> String {
    let found = record
        .headers
        .iter()
        .find(|found| found.key_str() == header);
    let value = found.unwrap_or_else(|| panic!("no {header}")).value.clone();
    String::from_utf8(value.unwrap().to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_failing_record_is_tried_again_after_growing_delays_and_delays_nobody() {
    let began_at = time_of_day();
    let broker = Broker::start(1, |_| Fate::Served);
    send(&broker, &[("a", "bad"), ("a", "1"), ("b", "2"), ("", "3")]).await;
    let seen = Seen::default();
    let handler = noting(&seen, |work| match (value(work).as_str(), work.attempt) {
        ("bad", attempt) if attempt < 4 => Err(Failure::transient("not yet")),
        _ => Ok(()),
    });
    let worker = start(&broker, config(), handler).await;
    until("all attempts", || seen.lock().len() == 7).await;
    let mut attempts = HashMap::new();
    for (value, attempt, at) in seen.lock().iter() {
        attempts.insert((value.clone(), *attempt), *at);
    }
    let at = |value: &str, attempt| attempts[&(value.to_owned(), attempt)];
    for other in ["1", "2", "3"] {
        let behind = at(other, 1) - at("bad", 1);
        assert!(behind < Duration::from_millis(500), "{other}: {behind:?}");
    }
    // The time of day goes on while the other clock is paused.
    let meanwhile = time_of_day() - began_at;
    for (attempt, least) in [(1, 1), (2, 5), (3, 25)] {
        let waited = at("bad", attempt + 1) - at("bad", attempt);
        let least = Duration::from_secs(least);
        // A fifth of jitter, and the way through the topic.
        let most = least.mul_f64(1.2) + Duration::from_millis(500);
        let around = least.saturating_sub(meanwhile)..most;
        assert!(around.contains(&waited), "attempt {attempt}: {waited:?}");
    }
    worker.close().await.unwrap();
    assert_eq!(broker.group_offset(GROUP, TOPIC, 0), Some(4));
    assert_eq!(broker.group_offset(GROUP, "t.g.retry.25s", 0), Some(1));
    assert!(!broker.topics().contains(&"t.g.dead".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_fails_for_good_is_a_dead_letter_that_says_why() {
    let broker = Broker::start(2, |_| Fate::Served);
    send(&broker, &[("a", "weak"), ("b", "wrong")]).await;
    let seen = Seen::default();
    let handler = noting(&seen, |work| match value(work).as_str() {
        "weak" => Err(Failure::transient("no strength")),
        _ => Err(Failure::permanent("no sense")),
    });
    let config = WorkerConfig {
        retry_delays: vec![Duration::from_secs(1); 2],
        ..config()
    };
    let worker = start(&broker, config, handler).await;
    let dead = || broker.records("t.g.dead", 0);
    until("two dead letters", || dead().len() == 2).await;
    worker.close().await.unwrap();
    let dead = dead();
    for (letter, value, attempts, cause, offset) in [
        (&dead[0], "wrong", "1", "no sense", "1"),
        (&dead[1], "weak", "3", "no strength", "0"),
    ] {
        assert_eq!(letter.value.as_deref(), Some(value.as_bytes()));
        assert_eq!(text(letter, "quipu-attempts"), attempts);
        assert_eq!(text(letter, "quipu-cause"), cause);
        assert_eq!(text(letter, "quipu-origin-topic"), TOPIC);
        assert_eq!(text(letter, "quipu-origin-partition"), "0");
        assert_eq!(text(letter, "quipu-origin-offset"), offset);
        assert_eq!(text(letter, "quipu-group"), GROUP);
        let times = ["quipu-first-failed-ms", "quipu-failed-ms"].map(|name| text(letter, name));
        assert!(times[0].parse::<u64>().unwrap() <= times[1].parse().unwrap());
    }
    assert_eq!(broker.records("t.g.retry.1s", 0).len(), 2);
    assert_eq!(broker.records("t.g.retry.1s", 1).len(), 0);
    assert_eq!(broker.group_offset(GROUP, TOPIC, 0), Some(2));
    assert_eq!(seen.lock().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_or_hangs_has_failed_once() {
    let broker = Broker::start(1, |_| Fate::Served);
    send(&broker, &[("a", "panics"), ("b", "hangs"), ("a", "fine")]).await;
    let config = WorkerConfig {
        retry_delays: Vec::new(),
        attempt_timeout: Duration::from_secs(10),
        ..config()
    };
    let handler = |work: Arc<Work>| async move {
        match value(&work).as_str() {
            "panics" => panic!("of {}", 7),
            "hangs" => std::future::pending().await,
            _ => Ok(()),
        }
    };
    let worker = start(&broker, config, handler).await;
    until("both dead letters", || {
        broker.records("t.g.dead", 0).len() == 2
    })
    .await;
    worker.close().await.unwrap();
    let dead = broker.records("t.g.dead", 0);
    assert_eq!(text(&dead[0], "quipu-cause"), "the handler panicked: of 7");
    assert_eq!(
        text(&dead[1], "quipu-cause"),
        "the handler took longer than 10s"
    );
    assert_eq!(broker.group_offset(GROUP, TOPIC, 0), Some(3));
}

#[tokio::test(start_paused = true)]
async fn the_offset_moves_only_when_the_failed_record_is_acknowledged_elsewhere() {
    let stuck = Arc::new(AtomicBool::new(false));
    let is_stuck = Arc::clone(&stuck);
    let broker = Broker::start(1, move |_| match is_stuck.load(Ordering::Relaxed) {
        true => Fate::Refused(quipu_client::ErrorReason::Overloaded, true),
        false => Fate::Served,
    });
    send(&broker, &[("a", "bad"), ("b", "good")]).await;
    stuck.store(true, Ordering::Relaxed);
    let seen = Seen::default();
    let handler = noting(&seen, |work| match value(work).as_str() {
        "bad" => Err(Failure::permanent("bad")),
        _ => Ok(()),
    });
    let worker = start(&broker, config(), handler).await;
    until("both attempts", || seen.lock().len() == 2).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(broker.group_offset(GROUP, TOPIC, 0), None);
    stuck.store(false, Ordering::Relaxed);
    let offset = || broker.group_offset(GROUP, TOPIC, 0);
    until("the offset to be stored", || offset() == Some(2)).await;
    assert_eq!(broker.records("t.g.dead", 0).len(), 1);
    worker.close().await.unwrap();
}

/// Counts how many handlers run at a time for each key, and in which order.
#[derive(Default)]
struct Meter {
    now: HashMap<String, usize>,
    most: HashMap<String, usize>,
    order: HashMap<String, Vec<String>>,
}

async fn metered(order: Order, keys: &[&str], concurrency: usize) -> Meter {
    let broker = Broker::start(1, |_| Fate::Served);
    let values: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    let records = values.iter().zip(keys.iter().cycle());
    let records: Vec<_> = records.map(|(value, key)| (*key, value.as_str())).collect();
    send(&broker, &records).await;
    let meter = Arc::new(Mutex::new(Meter::default()));
    let shared = Arc::clone(&meter);
    let handler = move |work: Arc<Work>| {
        let meter = Arc::clone(&shared);
        async move {
            let key = work.record.key.clone().unwrap_or_default();
            let key = String::from_utf8(key.to_vec()).unwrap();
            {
                let mut meter = meter.lock();
                let now = meter.now.entry(key.clone()).or_default();
                *now += 1;
                let now = *now;
                let most = meter.most.entry(key.clone()).or_default();
                *most = now.max(*most);
                meter
                    .order
                    .entry(key.clone())
                    .or_default()
                    .push(value(&work));
            }
            // The later ones are faster.
            let number: u64 = value(&work).parse().unwrap();
            sleep(Duration::from_millis(100 - number)).await;
            *meter.lock().now.get_mut(&key).unwrap() -= 1;
            Ok(())
        }
    };
    let config = WorkerConfig {
        order,
        concurrency,
        ..config()
    };
    let worker = start(&broker, config, handler).await;
    until("all", || broker.group_offset(GROUP, TOPIC, 0) == Some(60)).await;
    worker.close().await.unwrap();
    Arc::try_unwrap(meter).ok().unwrap().into_inner()
}

#[tokio::test(start_paused = true)]
async fn records_of_a_key_are_in_order_one_at_a_time_and_others_beside_them() {
    let meter = metered(Order::Key, &["a", "b", ""], 8).await;
    for key in ["a", "b"] {
        assert_eq!(meter.most[key], 1);
        let numbers = meter.order[key].iter().map(|n| n.parse::<u64>().unwrap());
        assert!(numbers.is_sorted(), "{key}");
    }
    assert!(meter.most[""] > 1, "records without a key are in no order");
    let meter = metered(Order::Partition, &[""], 8).await;
    assert_eq!(meter.most[""], 1);
    let meter = metered(Order::Key, &[""], 8).await;
    assert_eq!(meter.most[""], 8, "no more than the bound");
}

#[tokio::test(start_paused = true)]
async fn after_a_run_of_failures_it_pauses_and_tries_one_at_a_time() {
    let broker = Broker::start(1, |_| Fate::Served);
    let values: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let records: Vec<_> = values.iter().map(|value| ("a", value.as_str())).collect();
    send(&broker, &records).await;
    let away = Arc::new(AtomicBool::new(true));
    let is_away = Arc::clone(&away);
    let seen = Seen::default();
    let handler = noting(&seen, move |_| match is_away.load(Ordering::Relaxed) {
        true => Err(Failure::transient("the database is away")),
        false => Ok(()),
    });
    let config = WorkerConfig {
        breaker: Some(BreakerConfig {
            failures: 5,
            pause: Duration::from_secs(10),
            longest_pause: Duration::from_secs(40),
        }),
        ..config()
    };
    let worker = start(&broker, config, handler).await;
    // 5 in a row, then probes after 10, 20, 40, 40 … seconds.
    sleep(Duration::from_secs(120)).await;
    assert_eq!(seen.lock().len(), 5 + 4);
    away.store(false, Ordering::Relaxed);
    // Each once more, and none in vain.
    until("all to be processed", || seen.lock().len() == 9 + 100).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(seen.lock().len(), 9 + 100);
    assert_eq!(broker.group_offset(GROUP, TOPIC, 0), Some(100));
    worker.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn closing_finishes_what_was_begun_and_the_next_one_repeats_nothing() {
    let broker = Broker::start(1, |_| Fate::Served);
    let values: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let records: Vec<_> = values.iter().map(|value| ("", value.as_str())).collect();
    send(&broker, &records).await;
    let (begun, finished) = (Arc::new(AtomicUsize::new(0)), Seen::default());
    let handler = || {
        let (begun, finished) = (Arc::clone(&begun), Arc::clone(&finished));
        move |work: Arc<Work>| {
            let (begun, finished) = (Arc::clone(&begun), Arc::clone(&finished));
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_secs(3)).await;
                finished
                    .lock()
                    .push((value(&work), work.attempt, Duration::ZERO));
                Ok(())
            }
        }
    };
    let config = || WorkerConfig {
        concurrency: 10,
        ..config()
    };
    let worker = start(&broker, config(), handler()).await;
    until("the first", || begun.load(Ordering::Relaxed) == 10).await;
    worker.close().await.unwrap();
    assert_eq!(finished.lock().len(), 10);
    assert_eq!(broker.group_offset(GROUP, TOPIC, 0), Some(10));

    let worker = start(&broker, config(), handler()).await;
    until("all", || broker.group_offset(GROUP, TOPIC, 0) == Some(100)).await;
    worker.close().await.unwrap();
    let mut values: Vec<u64> = finished
        .lock()
        .iter()
        .map(|(v, _, _)| v.parse().unwrap())
        .collect();
    values.sort_unstable();
    assert_eq!(values, (0..100).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_hangs_holds_up_only_the_offset_and_reading_stops_at_the_window() {
    let broker = Broker::start(1, |_| Fate::Served);
    let values: Vec<String> = (0..5000).map(|n| n.to_string()).collect();
    let records: Vec<_> = values.iter().map(|value| ("", value.as_str())).collect();
    send(&broker, &records).await;
    let seen = Seen::default();
    let notes = Arc::clone(&seen);
    let handler = move |work: Arc<Work>| {
        let notes = Arc::clone(&notes);
        async move {
            notes
                .lock()
                .push((value(&work), work.attempt, Duration::ZERO));
            match (value(&work).as_str(), work.attempt) {
                ("7", 1) => std::future::pending().await,
                _ => Ok(()),
            }
        }
    };
    let config = WorkerConfig {
        window: 500,
        attempt_timeout: Duration::from_secs(100),
        ..config()
    };
    let worker = start(&broker, config, handler).await;
    sleep(Duration::from_secs(50)).await;
    assert_eq!(broker.group_offset(GROUP, TOPIC, 0), Some(7));
    let read = seen.lock().len();
    // What is in a batch comes together.
    assert!((500..700).contains(&read), "{read}");
    until("the rest", || {
        broker.group_offset(GROUP, TOPIC, 0) == Some(5000)
    })
    .await;
    until("the one", || seen.lock().len() == 5001).await;
    worker.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_begins_at_the_end_still_tries_all_again_that_failed() {
    let broker = Broker::start(1, |_| Fate::Served);
    send(&broker, &[("a", "before")]).await;
    let seen = Seen::default();
    let handler = noting(&seen, |work| match work.attempt {
        1 => Err(Failure::transient("not yet")),
        _ => Ok(()),
    });
    let mut config = config();
    config.group.start = Start::Latest;
    let worker = start(&broker, config, handler).await;
    sleep(Duration::from_secs(10)).await;
    send(&broker, &[("a", "bad")]).await;
    until("another attempt", || seen.lock().len() == 2).await;
    worker.close().await.unwrap();
    let seen: Vec<_> = seen
        .lock()
        .iter()
        .map(|(v, a, _)| (v.clone(), *a))
        .collect();
    assert_eq!(seen, [("bad".to_owned(), 1), ("bad".to_owned(), 2)]);
}

#[tokio::test(start_paused = true)]
async fn what_another_group_redrove_is_passed_over() {
    let broker = Broker::start(1, |_| Fate::Served);
    let producer = broker.client().producer(ProducerConfig::default()).await;
    let producer = producer.unwrap();
    for (group, value) in [("other", "1"), (GROUP, "2")] {
        let headers = [("quipu-redriven-for", Some(group.as_bytes()))];
        let record = Record::new(TOPIC).partition(0).value(value.as_bytes());
        drop(producer.send(record.headers(&headers)).await.unwrap());
    }
    producer.close().await.unwrap();
    let seen = Seen::default();
    let worker = start(&broker, config(), noting(&seen, |_| Ok(()))).await;
    until("both", || broker.group_offset(GROUP, TOPIC, 0) == Some(2)).await;
    worker.close().await.unwrap();
    let values: Vec<_> = seen
        .lock()
        .iter()
        .map(|(value, _, _)| value.clone())
        .collect();
    assert_eq!(values, ["2"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_was_sent_twice_is_handled_once_and_one_that_failed_again() {
    let broker = Broker::start(1, |_| Fate::Served);
    let producer = broker.client().producer(ProducerConfig::default()).await;
    let producer = producer.unwrap();
    let messages = [
        ("1", "s"),
        ("2", "s"),
        ("1", "s"),
        ("2", "s"),
        ("1", "other"),
    ];
    for (number, (id, source)) in messages.into_iter().enumerate() {
        let envelope = Envelope {
            id: id.to_owned(),
            ..Envelope::new("t", source)
        };
        let headers = envelope.to_headers().unwrap();
        let headers = borrow_headers(&headers);
        let value = format!("{number} is {source}/{id}");
        let record = Record::new(TOPIC).partition(0).key(b"k").headers(&headers);
        drop(producer.send(record.value(value.as_bytes())).await.unwrap());
    }
    producer.close().await.unwrap();
    let seen = Seen::default();
    let handler = noting(&seen, |work| match (value(work).as_str(), work.attempt) {
        ("1 is s/2", 1) => Err(Failure::transient("not yet")),
        _ => Ok(()),
    });
    let worker = start(&broker, config(), Once::by_envelope(1000, handler)).await;
    sleep(Duration::from_secs(10)).await;
    worker.close().await.unwrap();
    let seen: Vec<_> = seen
        .lock()
        .iter()
        .map(|(value, _, _)| value.clone())
        .collect();
    assert_eq!(seen, ["0 is s/1", "1 is s/2", "3 is s/2", "4 is other/1"]);
    assert_eq!(broker.group_offset(GROUP, "t.g.retry.1s", 0), Some(1));
}
