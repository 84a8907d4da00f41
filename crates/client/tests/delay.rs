//! What is promised of records that are delivered later.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::time::Duration;

use fake::{Broker, Fate, TOPIC};
use quipu_client::{DelayRelay, Delayed, Record, TimestampMs};
use tokio::time::{Instant, sleep};

#[allow(
    clippy::disallowed_methods,
    reason = "a record is due at a time of day"
)]
fn in_seconds(seconds: i64) -> TimestampMs {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    TimestampMs::new(now.as_millis() as i64 + seconds * 1000)
}

#[tokio::test(start_paused = true)]
async fn a_record_arrives_when_it_is_due_and_as_it_was_sent() {
    let broker = Broker::start(2, |_| Fate::Served);
    let client = broker.client();
    let relay = DelayRelay::start(&client, &[TOPIC]).await.unwrap();
    let delayed = Delayed::new(&client).await.unwrap();
    let (began, began_at) = (Instant::now(), in_seconds(0));
    for seconds in [-5, 0, 3, 95, 700] {
        let value = seconds.to_string();
        let headers = [("mine", Some(&b"x"[..]))];
        let record = Record::new(TOPIC).key(b"k").value(value.as_bytes());
        let record = record.headers(&headers);
        delayed.send_at(record, in_seconds(seconds)).await.unwrap();
    }
    let arrived = || [broker.records(TOPIC, 0), broker.records(TOPIC, 1)].concat();
    assert!(arrived().len() <= 2, "only what is due is there at once");
    let mut times = Vec::new();
    while times.len() < 5 {
        sleep(Duration::from_millis(100)).await;
        let known = times.len();
        times.extend(arrived().drain(known..).map(|_| began.elapsed()));
        assert!(began.elapsed() < Duration::from_secs(1000), "{times:?}");
    }
    let records = arrived();
    let values = records
        .iter()
        .map(|r| String::from_utf8(r.value.clone().unwrap().to_vec()));
    let values: Vec<_> = values.map(Result::unwrap).collect();
    assert_eq!(values, ["-5", "0", "3", "95", "700"]);
    // The time of day goes on while the other clock is paused.
    let meanwhile = in_seconds(0).get() - began_at.get();
    let meanwhile = Duration::from_millis(meanwhile.unsigned_abs());
    for (time, due) in times.iter().zip([0, 0, 3, 95, 700]) {
        let due = Duration::from_secs(due);
        // Each step takes a moment.
        let around = due.saturating_sub(meanwhile)..due + Duration::from_secs(5);
        assert!(around.contains(time), "{time:?} of {due:?}");
    }
    for record in records {
        let names: Vec<_> = record
            .headers
            .iter()
            .map(|header| header.key_str())
            .collect();
        assert_eq!(names, ["mine"]);
    }
    relay.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_could_never_arrive_is_refused_beforehand() {
    let broker = Broker::start(1, |_| Fate::Served);
    let delayed = Delayed::new(&broker.client()).await.unwrap();
    let record = Record::new("nowhere").value(b"x");
    assert!(delayed.send_at(record, in_seconds(10)).await.is_err());
}
