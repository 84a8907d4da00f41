//! What a broker of this version never sends is refused, with a reason, and costs little.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use quipu_model::NodeId;
use quipu_proto::peer::v1::{
    Answers, Append, Cancel, End, Entry, EntryKind, Group, Hello, Led, Request, Requests, Vote,
    VoteRequest, answer, peer_client::PeerClient, request::Kind,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming, body::Body};
use tower::Service;

use super::{
    super::{LANE_BYTES, LANE_CALLS, caller::Caller, convert::to_group, dial::PATH, service},
    LONG, Node, TestHost, batch, key, listen,
};

fn hello() -> Requests {
    let hello = Hello {
        version: 1,
        node_id: 1,
        target_node_id: 2,
        directory_id: Bytes::from_static(&[1; 16]),
        cluster_id: None,
    };
    Requests {
        hello: Some(hello),
        ..Requests::default()
    }
}

fn request(call: u64, group: bool, kind: Option<Kind>) -> Request {
    let group = group.then(|| Group {
        topic_id: Bytes::from_static(&[7; 16]),
        partition: 0,
    });
    Request {
        call,
        group,
        last: false,
        kind,
    }
}

fn requests(requests: Vec<Request>) -> Requests {
    Requests {
        requests,
        ..Requests::default()
    }
}

/// Says these to node 2, over tonic's own client.
async fn say(messages: Vec<Requests>) -> Result<Streaming<Answers>, Status> {
    let host = TestHost::new(2);
    let (address, _) = listen(&host, None).await;
    let mut client = PeerClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let kept_open = futures::StreamExt::chain(stream::iter(messages), stream::pending());
    Ok(client.link(kept_open).await?.into_inner())
}

/// What node 2 ends the stream with.
async fn refused(messages: Vec<Requests>) -> Status {
    let mut answers = match say(messages).await {
        Ok(answers) => answers,
        Err(status) => return status,
    };
    loop {
        let answer = tokio::time::timeout(LONG, answers.message()).await;
        match answer.expect("the stream should end") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended in order"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn a_stream_begins_with_a_hello_of_this_version_for_this_node() {
    let told = |change: fn(&mut Hello)| {
        let mut message = hello();
        message.hello.as_mut().map(change);
        refused(vec![message])
    };
    for (status, reason) in [
        (refused(vec![Requests::default()]).await, "not a hello"),
        (told(|hello| hello.version = 2).await, "upgrade the older"),
        (
            told(|hello| hello.target_node_id = 3).await,
            "looks for node 3",
        ),
        (
            told(|hello| hello.directory_id = Bytes::new()).await,
            "16 bytes",
        ),
        (
            told(|hello| hello.cluster_id = Some(Bytes::from_static(b"x"))).await,
            "16 bytes",
        ),
        (
            told(|hello| hello.cluster_id = Some(Bytes::from_static(&[3; 16]))).await,
            "another cluster",
        ),
    ] {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains(reason), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_opens_a_stream_and_says_nothing_is_refused_in_time() {
    let mut service = service(TestHost::new(2), CancellationToken::new(), LANE_BYTES);
    let nothing = stream::pending::<Result<Frame<Bytes>, Status>>();
    let request = http::Request::builder()
        .uri(PATH)
        .body(Body::new(StreamBody::new(nothing)))
        .unwrap();
    let response = tokio::time::timeout(LONG, service.call(request)).await;
    let status = Status::from_header_map(response.unwrap().unwrap().headers()).unwrap();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("no hello came"), "{status}");
}

#[tokio::test]
async fn calls_that_cannot_be_end_the_stream() {
    let vote = || Some(Kind::Vote(VoteRequest::default()));
    let nameless = Requests {
        led: vec![Led::default()],
        ..Requests::default()
    };
    for (message, reason) in [
        (
            requests(vec![request(3, true, vote()), request(3, true, vote())]),
            "call 3 was made again",
        ),
        (
            requests(vec![request(1, false, Some(Kind::End(End {})))]),
            "without having begun",
        ),
        (
            requests(vec![Request {
                group: Some(Group::default()),
                ..request(1, true, vote())
            }]),
            "a topic id of 0 bytes",
        ),
        (nameless, "without its name"),
    ] {
        let status = refused(vec![hello(), message]).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(reason), "{status}");
    }
}

#[tokio::test]
async fn a_call_to_a_replica_that_is_not_here_fails_alone_and_what_follows_in_it_is_passed_over() {
    let append = || Some(Kind::Append(Append::default()));
    let messages = vec![
        hello(),
        requests(vec![
            request(1, true, append()),
            request(1, false, append()),
            request(1, false, Some(Kind::Cancel(Cancel {}))),
            // Of a kind that a later version may have.
            request(5, true, None),
        ]),
    ];
    let mut answers = say(messages).await.unwrap();
    let hello = answers.message().await.unwrap().unwrap().hello.unwrap();
    assert_eq!(hello.node_id, 2);
    let mut failed = Vec::new();
    while failed.len() < 2 {
        failed.extend(answers.message().await.unwrap().unwrap().answers);
    }
    assert_eq!([failed[0].call, failed[1].call], [1, 5]);
    let Some(answer::Kind::Failed(reason)) = &failed[0].kind else {
        panic!("{failed:?}");
    };
    assert!(reason.contains("no replica of"), "{reason}");
}

#[tokio::test]
async fn a_node_that_does_not_read_its_answers_is_cut() {
    let caller = Caller::new(NodeId::new(1), TestHost::new(2), LANE_BYTES);
    let entry = Entry {
        data: vec![0; 1 << 20].into(),
        ..Entry::default()
    };
    let append = Kind::Append(Append {
        entries: vec![entry],
        ..Append::default()
    });
    let ask = |call| caller.take(requests(vec![request(call, true, Some(append.clone()))]));
    for call in 1..=63 {
        ask(call).unwrap();
    }
    assert_eq!(caller.answers().await.unwrap().answers.len(), 63);
    for call in 64..=126 {
        ask(call).unwrap();
    }
    let error = ask(127).unwrap_err();
    assert!(error.contains("are not answered"), "{error}");
}

#[tokio::test]
async fn no_more_is_read_than_memory_is_for_until_requests_are_answered() {
    let caller = Caller::new(NodeId::new(1), TestHost::new(2), 1000);
    assert!(caller.room().now_or_never().is_some());
    // No replica of it is here: so it is answered at once, as soon as the socket takes answers.
    let append = Kind::Append(Append {
        entries: vec![Entry {
            data: vec![0; 1000].into(),
            ..Entry::default()
        }],
        ..Append::default()
    });
    let message = requests(vec![request(1, true, Some(append))]);
    caller.take(message).unwrap();
    let waiting = caller.room();
    tokio::pin!(waiting);
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(caller.answers().await.unwrap().answers.len(), 1);
    assert!(waiting.now_or_never().is_some());
}

/// What a node with a replica of the group answers.
async fn answered(kind: Kind) -> answer::Kind {
    let node = Node::start(2).await;
    node.take_part(&[NodeId::new(1), NodeId::new(2)]).await;
    let caller = Caller::new(NodeId::new(1), Arc::clone(&node.host) as _, LANE_BYTES);
    caller.take(requests(vec![here(1, kind)])).unwrap();
    let mut answers = caller.answers().await.unwrap().answers;
    node.stop().await;
    answers.remove(0).kind.unwrap()
}

fn here(call: u64, kind: Kind) -> Request {
    Request {
        call,
        group: Some(to_group(key())),
        last: false,
        kind: Some(kind),
    }
}

#[tokio::test]
async fn a_batch_that_is_damaged_or_an_entry_of_another_version_fails_its_call_alone() {
    let mut damaged = BytesMut::from(&batch(100).into_bytes()[..]);
    damaged[90] ^= 1;
    let damaged = Entry {
        kind: EntryKind::Batch.into(),
        data: damaged.freeze(),
        ..Entry::default()
    };
    let unknown = Entry {
        kind: 99,
        ..Entry::default()
    };
    for (entry, told) in [(damaged, "the batch of entry 0.0"), (unknown, "of kind 99")] {
        let append = Append {
            leader: Some(Vote::default()),
            entries: vec![entry],
            ..Append::default()
        };
        let answer::Kind::Failed(reason) = answered(Kind::Append(append)).await else {
            panic!("it was taken");
        };
        assert!(reason.contains(told), "{reason}");
    }
}

#[tokio::test]
async fn a_node_may_have_so_many_calls_open_and_no_more() {
    let node = Node::start(2).await;
    node.take_part(&[NodeId::new(1), NodeId::new(2)]).await;
    let caller = Caller::new(NodeId::new(1), Arc::clone(&node.host) as _, LANE_BYTES);
    // Nothing else runs before the next await.
    let votes = (1..=LANE_CALLS as u64).map(|call| here(call, Kind::Vote(VoteRequest::default())));
    caller.take(requests(votes.collect())).unwrap();
    let next = here(1 << 20, Kind::Vote(VoteRequest::default()));
    let error = caller.take(requests(vec![next])).unwrap_err();
    assert!(error.contains("calls are open"), "{error}");
    drop(caller);
    node.stop().await;
}
