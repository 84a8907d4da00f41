//! What is promised of requests and replies.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake;

use std::{sync::Arc, time::Duration};

use fake::{Broker, Fate, TOPIC};
use futures::future::join_all;
use quipu_client::{
    Client, Failure, NewTopic, Record, Reply, RequestError, Requester, RequesterConfig, Responder,
    Work, Worker, WorkerConfig,
};
use tokio::time::sleep;

const REPLIES: &str = "replies";

async fn requester(client: &Client) -> Requester {
    let config = RequesterConfig {
        timeout: Duration::from_secs(10),
        ..RequesterConfig::new(REPLIES)
    };
    Requester::start(client, config).await.unwrap()
}

/// Echoes in capitals; knows words that it can't, that it only can later, and that take long.
async fn responder(client: &Client) -> Worker {
    let topic = NewTopic::new(REPLIES).partitions(2);
    client.admin().create_topic(topic).await.unwrap();
    let answer = |work: Arc<Work>| async move {
        let word = String::from_utf8(work.record.value.clone().unwrap().to_vec()).unwrap();
        match (word.as_str(), work.attempt) {
            ("never", _) => return Err(Failure::permanent("no such word")),
            ("later", 1) => return Err(Failure::transient("not now")),
            ("slow", _) => sleep(Duration::from_secs(20)).await,
            _ => {}
        }
        Ok(Reply::from(word.to_uppercase()))
    };
    let config = WorkerConfig::new("echo", TOPIC);
    Responder::start(client, config, answer).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_request_gets_its_own_reply() {
    let broker = Broker::start(2, |_| Fate::Served);
    let client = broker.client();
    let responder = responder(&client).await;
    let requesters = [requester(&client).await, requester(&client).await];
    let words: Vec<String> = (0..50).map(|n| format!("word{n}")).collect();
    let asked = words.iter().enumerate().map(|(number, word)| {
        let record = Record::new(TOPIC).value(word.as_bytes());
        requesters[number % 2].request(record)
    });
    for (reply, word) in join_all(asked).await.into_iter().zip(&words) {
        let value = reply.unwrap().value.unwrap();
        assert_eq!(value, word.to_uppercase());
    }
    let later = requesters[0]
        .request(Record::new(TOPIC).value(b"later"))
        .await;
    assert_eq!(later.unwrap().value.unwrap(), "LATER");
    responder.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_comes_at_once_and_silence_ends() {
    let broker = Broker::start(1, |_| Fate::Served);
    let client = broker.client();
    let responder = responder(&client).await;
    let requester = requester(&client).await;
    let refused = requester.request(Record::new(TOPIC).value(b"never")).await;
    let Err(RequestError::Refused { cause }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(cause, "no such word");
    let slow = requester.request(Record::new(TOPIC).value(b"slow")).await;
    assert!(
        matches!(slow, Err(RequestError::TimedOut { .. })),
        "{slow:?}"
    );
    // Its reply comes late, to nobody, and disturbs nobody.
    sleep(Duration::from_secs(20)).await;
    let next = requester.request(Record::new(TOPIC).value(b"next")).await;
    assert_eq!(next.unwrap().value.unwrap(), "NEXT");
    responder.close().await.unwrap();
    assert_eq!(broker.records("t.echo.dead", 0).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_can_not_be_sent_fails() {
    let broker = Broker::start(1, |_| Fate::Served);
    let client = broker.client();
    assert!(
        Requester::start(&client, RequesterConfig::new("none"))
            .await
            .is_err()
    );
    let responder = responder(&client).await;
    let requester = requester(&client).await;
    let failed = requester.request(Record::new("none").value(b"x")).await;
    assert!(matches!(failed, Err(RequestError::Failed(_))));
    responder.close().await.unwrap();
}
