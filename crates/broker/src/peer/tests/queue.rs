//! What is put into one message, and when it goes. The clock stands still.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, Stream, StreamExt};
use http_body::Frame;
use http_body_util::StreamBody;
use quipu_proto::peer::v1::{
    Answer, Answers, Append, Entry, Hello, Request, Requests, answer, request::Kind,
};
use tokio::time::Instant;
use tonic::{Status, body::Body};

use super::super::{
    LANE_BYTES, cost,
    frame::Messages,
    link::{Call, Haste, Link},
};

async fn opened(link: &Arc<Link>) -> Messages {
    let mut messages = messages(link.body(Hello::default()));
    let hello: Requests = messages.next().await.unwrap().unwrap();
    assert!(hello.hello.is_some() && hello.requests.is_empty());
    messages
}

fn messages(body: impl Stream<Item = bytes::Bytes> + Send + 'static) -> Messages {
    let body = body.map(|piece| Ok::<_, Status>(Frame::data(piece)));
    Messages::new(Body::new(StreamBody::new(body)))
}

async fn send(link: &Arc<Link>, bytes: usize, haste: Haste) -> Call {
    let call = link.call().unwrap();
    send_on(link, &call, bytes, haste).await;
    call
}

async fn send_on(link: &Arc<Link>, call: &Call, bytes: usize, haste: Haste) {
    let entry = Entry {
        data: vec![0; bytes].into(),
        ..Entry::default()
    };
    let append = Append {
        entries: (bytes > 0).then_some(entry).into_iter().collect(),
        ..Append::default()
    };
    let request = Request {
        kind: Some(Kind::Append(append)),
        ..Request::default()
    };
    let cost = cost(&request);
    let room = link.room(cost).await.unwrap();
    call.send(request, cost, room, haste);
}

async fn calls(messages: &mut Messages) -> Vec<u64> {
    let message: Requests = messages.next().await.unwrap().unwrap();
    let calls = message.requests.iter().map(|request| request.call);
    calls.collect()
}

#[tokio::test(start_paused = true)]
async fn heartbeats_of_all_groups_go_together_and_a_vote_takes_them_along() {
    let link = Link::new(LANE_BYTES);
    let mut messages = opened(&link).await;
    let mut open = Vec::new();
    for _ in 0..100 {
        open.push(send(&link, 0, Haste::Lingers).await);
    }
    let began = Instant::now();
    assert_eq!(calls(&mut messages).await, Vec::from_iter(1..=100));
    assert!(began.elapsed() >= Duration::from_millis(10));

    open.push(send(&link, 0, Haste::Lingers).await);
    open.push(send(&link, 0, Haste::AtOnce).await);
    let began = Instant::now();
    assert_eq!(calls(&mut messages).await, [101, 102]);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_message_is_filled_up_to_about_a_mebibyte_and_a_larger_batch_goes_alone() {
    let link = Link::new(LANE_BYTES);
    let mut messages = opened(&link).await;
    let mut open = Vec::new();
    for bytes in [400 << 10, 400 << 10, 400 << 10, 30 << 20, 10, 10] {
        open.push(send(&link, bytes, Haste::AtOnce).await);
    }
    assert_eq!(calls(&mut messages).await, [1, 2]);
    assert_eq!(calls(&mut messages).await, [3]);
    assert_eq!(calls(&mut messages).await, [4]);
    assert_eq!(calls(&mut messages).await, [5, 6]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_given_up_is_not_sent_or_its_peer_is_told() {
    let link = Link::new(LANE_BYTES);
    let mut messages = opened(&link).await;
    let heard = send(&link, 10, Haste::AtOnce).await;
    assert_eq!(calls(&mut messages).await, [1]);
    drop(send(&link, 10, Haste::AtOnce).await);
    drop(heard);
    let message: Requests = messages.next().await.unwrap().unwrap();
    let [cancel] = &message.requests[..] else {
        panic!("{message:?}");
    };
    assert_eq!(cancel.call, 1);
    assert!(matches!(cancel.kind, Some(Kind::Cancel(_))));
}

#[tokio::test(start_paused = true)]
async fn whoever_finds_no_room_waits_until_others_are_sent_and_answered_or_given_up() {
    let link = Link::new(LANE_BYTES);
    let mut messages = opened(&link).await;
    let call = link.call().unwrap();
    let first = link.room(LANE_BYTES - 100).await.unwrap();
    assert!(link.room(200).now_or_never().is_none());
    assert!(link.room(LANE_BYTES + 1).await.is_err());
    call.send(Request::default(), 100, Arc::clone(&first), Haste::AtOnce);
    drop(first);
    assert!(link.room(200).now_or_never().is_none());
    calls(&mut messages).await;
    // The next look for a message says that the socket took the last.
    assert!(messages.next::<Requests>().now_or_never().is_none());
    assert!(link.room(200).now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_request_larger_than_its_lane_goes_alone() {
    let link = Link::new(1000);
    let other = link.room(1).await.unwrap();
    assert!(link.room(5000).now_or_never().is_none());
    drop(other);
    let alone = link.room(5000).await.unwrap();
    assert!(link.room(1).now_or_never().is_none());
    drop(alone);
    assert!(link.room(1000).now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_a_socket_that_moves_is_not_late() {
    let link = Link::new(LANE_BYTES);
    let mut messages = opened(&link).await;
    let limit = Duration::from_millis(500);
    let first = send(&link, 2 << 20, Haste::AtOnce).await;
    let second = send(&link, 10, Haste::AtOnce).await;
    let began = Instant::now();
    assert_eq!(second.deadline(limit), Some(began + limit));
    tokio::time::advance(Duration::from_millis(400)).await;
    assert_eq!(calls(&mut messages).await, [1]);
    let moved = Instant::now();
    assert_eq!(second.deadline(limit), Some(moved + limit));
    tokio::time::advance(Duration::from_millis(400)).await;
    assert_eq!(calls(&mut messages).await, [2]);
    // The first was taken, and its answer is due since.
    assert_eq!(first.deadline(limit), Some(Instant::now() + limit));
    link.close("enough");
    assert_eq!(first.deadline(limit), None);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_opened_first_may_send_last() {
    let link = Link::new(LANE_BYTES);
    let mut messages = opened(&link).await;
    let slow = link.call().unwrap();
    let quick = send(&link, 0, Haste::AtOnce).await;
    send_on(&link, &slow, 0, Haste::AtOnce).await;
    send_on(&link, &quick, 0, Haste::AtOnce).await;
    // The peer takes numbers that go up, and later requests of what it has heard of.
    assert_eq!(calls(&mut messages).await, [1, 2, 1]);
    // Each gets the answers that are its own.
    let failed = |call, reason: &str| Answer {
        call,
        kind: Some(answer::Kind::Failed(reason.to_owned())),
    };
    let answers = vec![failed(2, "slow"), failed(1, "quick")];
    let answers = Answers {
        answers,
        ..Answers::default()
    };
    link.answered(answers).unwrap();
    for (mut call, reason) in [(quick, "quick"), (slow, "slow")] {
        let answer = call.answer().await.unwrap();
        assert_eq!(answer, answer::Kind::Failed(reason.to_owned()));
    }
}
