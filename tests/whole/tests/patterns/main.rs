//! The code of the pages in `docs/patterns`, run against a real broker; and that the pages show just that code.
#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "the examples are as an application would have them, and the pages are the checkout's own files"
)]

mod dead_letters;
mod delivery_guarantees;
mod event_sourcing;
mod fan_out_fan_in;
mod idempotency;
mod ordering;
mod publish_subscribe;
mod queue;
mod request_reply;

use std::{collections::BTreeSet, fs, time::Duration};

use quipu_client::{Client, RequestError};
use quipu_tests::{Launch, repository, scratch};
use tokio::time::timeout;

/// A page, and the file whose code it shows.
const PAGES: [(&str, &str); 10] = [
    ("dead-letters", include_str!("dead_letters.rs")),
    (
        "delivery-guarantees",
        include_str!("delivery_guarantees.rs"),
    ),
    ("event-sourcing", include_str!("event_sourcing.rs")),
    ("fan-out-fan-in", include_str!("fan_out_fan_in.rs")),
    ("idempotency", include_str!("idempotency.rs")),
    ("ordering", include_str!("ordering.rs")),
    // It takes a database: tests/outbox/run runs it.
    ("outbox", include_str!("../../../outbox/src/outbox.rs")),
    ("publish-subscribe", include_str!("publish_subscribe.rs")),
    ("queue", include_str!("queue.rs")),
    ("request-reply", include_str!("request_reply.rs")),
];

#[test]
fn the_pages_show_the_code_that_is_run() {
    let rewrite = std::env::var_os("QUIPU_UPDATE_PATTERNS").is_some();
    for (name, code) in PAGES {
        let path = repository().join(format!("docs/patterns/{name}.md"));
        let page = fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once("```rust\n").unwrap();
        let (shown, after) = rest.split_once("```\n").unwrap();
        if rewrite && shown != code {
            fs::write(&path, format!("{before}```rust\n{code}```\n{after}")).unwrap();
            continue;
        }
        assert!(
            shown == code,
            "{name}.md does not show what is run: run this test with QUIPU_UPDATE_PATTERNS=1"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_does_what_its_page_says() {
    let directory = scratch().unwrap();
    let broker = Launch::dev(&directory.path().join("data")).start().unwrap();
    let client = Client::connect(broker.grpc()).await.unwrap();
    let all = async {
        let jobs = queue::run(&client).await.unwrap();
        assert_eq!(jobs.iter().collect::<BTreeSet<_>>().len(), 100);

        for (subscriber, prices) in publish_subscribe::run(&client).await.unwrap() {
            assert_eq!(prices, ["10", "12", "11"], "{subscriber}");
        }

        let replies = request_reply::run(&client).await.unwrap();
        assert_eq!(replies[0].as_deref().unwrap(), "APPLES");
        assert!(
            matches!(&replies[1], Err(RequestError::Refused { cause }) if cause.contains("digits"))
        );

        let sums = fan_out_fan_in::run(&client).await.unwrap();
        assert_eq!(sums["task-1"], 385);

        let (cause, booked) = dead_letters::run(&client).await.unwrap();
        assert_eq!(cause, "invalid digit found in string");
        assert_eq!(booked, ["7", "12"]);

        let (balances, again) = event_sourcing::run(&client).await.unwrap();
        assert_eq!(
            balances,
            [("anna".to_owned(), 70), ("bert".to_owned(), 50)].into()
        );
        assert_eq!(balances, again);

        let (at_least_once, at_most_once) = delivery_guarantees::run(&client).await.unwrap();
        assert_eq!(at_least_once, ["a", "b", "b", "c"]);
        assert_eq!(at_most_once, ["a", "c"]);

        let steps = ordering::run(&client).await.unwrap();
        assert_eq!(steps.len(), 3);
        assert!(
            steps
                .values()
                .all(|steps| *steps == ["packed", "sent", "received"])
        );

        assert_eq!(idempotency::run(&client).await.unwrap(), ["5", "7"]);
    };
    timeout(Duration::from_secs(300), all).await.unwrap();
}
