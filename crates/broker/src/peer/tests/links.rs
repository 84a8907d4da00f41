//! Who is linked to whom, what is told over a link, and what becomes of calls on one that breaks or is silent.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use quipu_model::{LeaderEpoch, LogId, NodeId, Term, Vote};
use quipu_proto::peer::v1::{
    Answer, Answers, AppendAnswer, Done, Hello, LogId as WireId, Requests, answer, append_answer,
    peer_server::{Peer, PeerServer},
};
use quipu_replication::{
    AppendParts, AppendRequest, TransferParts, Transport, TransportError, VoteParts,
};
use quipu_storage::{LogEntry, Payload};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::{LANE_BYTES, LONG, PeerLinks, TestHost, batch, key, listen};

const TWO: NodeId = NodeId::new(2);

/// Links of node 1, to node 2 at `address`.
fn links(host: &Arc<TestHost>, address: SocketAddr) -> Arc<PeerLinks> {
    let links = PeerLinks::new(NodeId::new(1), LANE_BYTES);
    links.set_peers(HashMap::from([(TWO, address.to_string())]));
    links.start(Arc::clone(host) as _);
    links
}

async fn ask(links: &PeerLinks, timeout: Duration) -> Result<(), TransportError> {
    let parts = VoteParts {
        candidate: Vote::default(),
        last: None,
        transfer: false,
    };
    let asked = links.vote(TWO, key(), parts.into(), timeout).await;
    asked.map(drop)
}

/// Asks until it is known why there is no link.
async fn refusal(links: &PeerLinks) -> String {
    let asking = async {
        loop {
            let error = ask(links, LONG).await.unwrap_err().to_string();
            if !error.contains("yet") {
                return error;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, asking).await.unwrap()
}

fn request(entries: usize, bytes: usize) -> AppendRequest {
    let entry = |index| LogEntry {
        id: LogId::new(1, index),
        payload: Payload::Stamped(batch(bytes)),
    };
    let parts = AppendParts {
        leader: Vote {
            term: Term::new(1),
            node: NodeId::new(1),
            committed: true,
        },
        previous: None,
        committed: None,
        entries: (0..entries as u64).map(entry).collect(),
    };
    AppendRequest::from_parts(parts).unwrap()
}

/// What is wrong between node 1 and node 2.
type Wrong = fn(&TestHost, &TestHost);

#[tokio::test]
async fn a_node_that_is_removed_is_cut_and_told_so() {
    let (caller, host) = (TestHost::new(1), TestHost::new(2));
    let (address, stop) = listen(&host, None).await;
    let links = links(&caller, address);
    caller.sees(2, true).await;
    host.removed
        .send_modify(|removed| removed.extend([NodeId::new(1)]));
    caller.sees(2, false).await;
    let mut refusals = caller.refusals.subscribe();
    let refused = refusals
        .wait_for(|refusals| !refusals.is_empty())
        .await
        .unwrap()[0]
        .clone();
    assert_eq!(refused, (TWO, "node 1 was removed".to_owned()));
    links.shutdown().await;
    stop.cancel();
}

#[tokio::test]
async fn nodes_that_do_not_belong_together_are_not_linked() {
    let wrong: [(Wrong, &str); 5] = [
        (
            |one, _| one.identity.lock().cluster_id = Some(Uuid::from_bytes([1; 16])),
            "another cluster",
        ),
        (
            |_, two| two.known.lock().extend([(NodeId::new(1), [0; 16])]),
            "node 1 has another data directory",
        ),
        (
            |one, _| one.known.lock().extend([(TWO, [0; 16])]),
            "node 2 has another data directory",
        ),
        (
            |_, two| two.identity.lock().node = NodeId::new(3),
            "this is node 3, but node 1 looks for node 2",
        ),
        (
            |one, _| one.identity.lock().node = TWO,
            "two nodes are numbered 2",
        ),
    ];
    for (set, told) in wrong {
        let (one, two) = (TestHost::new(1), TestHost::new(2));
        set(&one, &two);
        let (address, _stop) = listen(&two, None).await;
        let links = links(&one, address);
        let error = refusal(&links).await;
        assert!(error.contains(told), "{error}");
        assert!(one.up.borrow().is_empty());
        links.shutdown().await;
    }
}

#[tokio::test]
async fn nodes_that_do_not_know_their_cluster_yet_are_linked() {
    let (one, two) = (TestHost::new(1), TestHost::new(2));
    one.identity.lock().cluster_id = None;
    let (address, _stop) = listen(&two, None).await;
    let links = links(&one, address);
    one.sees(2, true).await;
    let error = ask(&links, LONG).await.unwrap_err().to_string();
    assert!(error.contains("no replica of"), "{error}");
    links.shutdown().await;
    one.sees(2, false).await;
}

#[tokio::test]
async fn a_node_that_moved_is_dialled_at_its_new_address() {
    let (one, two) = (TestHost::new(1), TestHost::new(2));
    let (old, stop) = listen(&two, None).await;
    let links = links(&one, old);
    one.sees(2, true).await;
    stop.cancel();
    one.sees(2, false).await;
    let (new, _stop) = listen(&two, None).await;
    links.set_peers(HashMap::from([(TWO, new.to_string())]));
    one.sees(2, true).await;
    links.set_peers(HashMap::new());
    assert_eq!(one.up.borrow().get(&TWO), Some(&false));
    let error = ask(&links, LONG).await.unwrap_err().to_string();
    assert!(error.contains("not known"), "{error}");
    links.shutdown().await;
}

#[tokio::test]
async fn a_linked_node_hears_which_groups_are_led_now_and_later() {
    let (one, two) = (TestHost::new(1), TestHost::new(2));
    one.leads.store(true, Ordering::Relaxed);
    let (address, _stop) = listen(&two, None).await;
    let links = links(&one, address);
    let mut heard = two.heard.subscribe();
    for (epoch, count) in [(1, 1), (5, 2)] {
        let all = heard.wait_for(|heard| heard.len() == count);
        let all = tokio::time::timeout(LONG, all).await.unwrap().unwrap();
        let led = vec![(key(), LeaderEpoch::new(epoch))];
        assert_eq!(all.last(), Some(&(NodeId::new(1), led)));
        drop(all);
        links.announce(vec![(key(), LeaderEpoch::new(5))]);
    }
    links.shutdown().await;
}

#[tokio::test]
async fn a_node_where_nobody_listens_any_more_is_told_to_be_gone_once_each_time() {
    let (one, two) = (TestHost::new(1), TestHost::new(2));
    let (address, mut stop) = listen(&two, None).await;
    let links = links(&one, address);
    let mut gone = one.gone.subscribe();
    for count in 1..=2 {
        one.sees(2, true).await;
        assert_eq!(gone.borrow().len(), count - 1, "it lives");
        stop.cancel();
        let told = gone.wait_for(|gone| gone.len() == count);
        let told = tokio::time::timeout(LONG, told).await.unwrap().unwrap();
        assert_eq!(told.last(), Some(&TWO));
        drop(told);
        // It is dialled again and again, and refuses. Until each lane has heard that, the reason may be the broken link.
        let refused = async {
            while !refusal(&links).await.contains("refused") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, refused).await.unwrap();
        (_, stop) = listen(&two, Some(address)).await;
    }
    links.shutdown().await;
}

type Script = fn(Requests) -> Result<Option<Answers>, Status>;

/// Node 2, which says hello and then what a test wants.
struct Scripted {
    script: Script,
}

#[tonic::async_trait]
impl Peer for Scripted {
    type LinkStream = stream::BoxStream<'static, Result<Answers, Status>>;

    async fn link(
        &self,
        requests: Request<Streaming<Requests>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let script = self.script;
        let hello = Hello {
            version: 1,
            node_id: 2,
            target_node_id: 1,
            directory_id: Bytes::from_static(&[2; 16]),
            cluster_id: None,
        };
        let answers = requests.into_inner().filter_map(move |requests| {
            let answers = requests.and_then(|requests| match requests.hello {
                Some(_) => Ok(Some(Answers {
                    hello: Some(hello.clone()),
                    ..Answers::default()
                })),
                None => script(requests),
            });
            futures::future::ready(answers.transpose())
        });
        Ok(Response::new(answers.boxed()))
    }
}

/// Links to a node 2 of the script.
async fn scripted(script: Script) -> Arc<PeerLinks> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let service = PeerServer::new(Scripted { script }).max_decoding_message_size(64 << 20);
    let server = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming);
    tokio::spawn(server);
    let host = TestHost::new(1);
    let links = links(&host, address);
    host.sees(2, true).await;
    links
}

const CONFLICT: AppendAnswer = AppendAnswer {
    outcome: Some(append_answer::Outcome::Conflict(WireId {
        term: 1,
        index: 1,
    })),
};

fn answer(call: u64, kind: answer::Kind) -> Answers {
    Answers {
        hello: None,
        answers: vec![Answer {
            call,
            kind: Some(kind),
        }],
    }
}

#[tokio::test]
async fn a_follower_that_takes_requests_and_does_not_answer_is_cut_and_holds_few_of_them() {
    let links = scripted(|_| Ok(None)).await;
    let read = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&read);
    let requests = stream::repeat_with(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        request(1, 1 << 20)
    });
    let soon = Duration::from_millis(500);
    let answers = links.append(TWO, key(), requests.boxed(), soon).await;
    let answers: Vec<_> = answers.unwrap().collect().await;
    let error = answers[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("did not answer within 500ms"), "{error}");
    assert_eq!(answers.len(), 1);
    assert!(read.load(Ordering::Relaxed) <= 9, "{read:?} were read");

    // One that owes nothing is not cut, however long nothing is to be sent.
    let idle = links.append(TWO, key(), stream::pending().boxed(), Duration::ZERO);
    assert!(idle.await.unwrap().next().now_or_never().is_none());

    let parts = TransferParts {
        leader: Vote::default(),
        to: TWO,
        last: None,
    };
    let unanswered = links.transfer_leader(TWO, key(), parts.into(), Duration::from_millis(10));
    let error = unanswered.await.unwrap_err().to_string();
    assert!(error.contains("no answer within 10ms"), "{error}");
    links.shutdown().await;
}

#[tokio::test]
async fn a_link_that_breaks_ends_its_calls_at_once() {
    let links = scripted(|_| Err(Status::unavailable("gone"))).await;
    let one = stream::iter([request(1, 10)]).chain(stream::pending());
    let answers = links.append(TWO, key(), one.boxed(), LONG).await.unwrap();
    let beats = stream::iter([request(0, 0)]).boxed();
    let beat = links.append(TWO, key(), beats, LONG).await.unwrap();
    for answers in [answers, beat] {
        let ended: Vec<_> = answers.collect().await;
        let error = ended[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("the link broke: gone"), "{error}");
        assert_eq!(ended.len(), 1);
    }
    let error = ask(&links, LONG).await.unwrap_err().to_string();
    assert!(error.contains("gone"), "{error}");
    links.shutdown().await;
}

#[tokio::test]
async fn answers_to_what_was_not_asked_break_the_link() {
    for (script, told) in [
        (
            (|_| Ok(Some(answer(77, answer::Kind::Done(Done {}))))) as Script,
            "call 77, which was not made",
        ),
        (
            |_| {
                let mut twice = answer(1, answer::Kind::Append(CONFLICT));
                twice.answers.push(twice.answers[0].clone());
                Ok(Some(twice))
            },
            "more often than asked",
        ),
    ] {
        let links = scripted(script).await;
        let requests = stream::iter([request(1, 10)]).chain(stream::pending());
        let answers = links.append(TWO, key(), requests.boxed(), LONG).await;
        let answers: Vec<_> = answers.unwrap().collect().await;
        let error = answers.last().unwrap().as_ref().unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
        links.shutdown().await;
    }
}

/// Stands between two nodes until it falls silent, with its connections open.
async fn proxy(to: SocketAddr, silent: CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            let silent = silent.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = silent.cancelled() => std::future::pending().await,
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_machine_that_falls_silent_is_noticed_though_nothing_is_sent() {
    let (one, two) = (TestHost::new(1), TestHost::new(2));
    let (address, _stop) = listen(&two, None).await;
    let silent = CancellationToken::new();
    let links = links(&one, proxy(address, silent.clone()).await);
    one.sees(2, true).await;
    silent.cancel();
    one.sees(2, false).await;
    links.shutdown().await;
}
