//! The side that answers.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use parking_lot::Mutex;
use quipu_model::{LeaderEpoch, NodeId, PartitionKey};
use quipu_proto::peer::v1::{
    Answer, Answers, Append, Done, Led, Request, Requests, answer, peer_server, request::Kind,
};
use quipu_replication::{AppendError, AppendRequest, Partition};
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use super::{
    Host, LANE_BYTES, LANE_CALLS, convert, cost,
    dial::PATH,
    frame::{Messages, encode_answers},
    hello::{check, greet},
};

/// In which a node that opened a stream must have said who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How many answers are put into one message.
const ANSWERS_PER_MESSAGE: usize = 8192;

/// The gRPC service that other nodes' links call. Its streams end when `stop` is cancelled.
pub(crate) fn service(host: Arc<dyn Host>, stop: CancellationToken) -> PeerService {
    PeerService { host, stop }
}

#[derive(Clone, Debug)]
pub(crate) struct PeerService {
    host: Arc<dyn Host>,
    stop: CancellationToken,
}

impl NamedService for PeerService {
    const NAME: &'static str = peer_server::SERVICE_NAME;
}

impl Service<http::Request<Body>> for PeerService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        async move {
            let answered = service.accept(request).await;
            Ok(answered.unwrap_or_else(Status::into_http))
        }
        .boxed()
    }
}

impl PeerService {
    async fn accept(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        if request.uri().path() != PATH {
            return Err(Status::unimplemented("the service has one method, Link"));
        }
        let mut messages = Messages::new(request.into_body());
        let first = timeout(HELLO_TIMEOUT, messages.next::<Requests>()).await;
        let first = first
            .map_err(|_| Status::failed_precondition("no hello came in time"))?
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let own = self.host.identity();
        let peer = check(first.and_then(|first| first.hello), &own)
            .and_then(|peer| self.host.admit(&peer).map(|()| peer))
            .map_err(|reason| {
                tracing::debug!(%reason, "a node's link was refused");
                Status::failed_precondition(reason)
            })?;
        let hello = Answers {
            hello: Some(greet(&own, peer.node)),
            ..Answers::default()
        };
        let caller = Caller::new(peer.node, self.host);
        let reading = tokio::spawn(read(Arc::clone(&caller), messages));
        let stream = Answering {
            hello: Some(hello),
            caller,
            reading: reading.abort_handle(),
            node: own.node,
            stop: self.stop,
            over: false,
        };
        let frames = stream::unfold(stream, |mut stream| async {
            Some((Ok::<_, Status>(stream.frame().await?), stream))
        });
        let mut response = http::Response::new(Body::new(StreamBody::new(frames)));
        let grpc = http::HeaderValue::from_static("application/grpc");
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, grpc);
        Ok(response)
    }
}

/// The stream of answers. It lives as long as the connection takes them.
#[derive(Debug)]
struct Answering {
    hello: Option<Answers>,
    caller: Arc<Caller>,
    reading: AbortHandle,
    node: NodeId,
    stop: CancellationToken,
    over: bool,
}

impl Answering {
    async fn frame(&mut self) -> Option<Frame<bytes::Bytes>> {
        if self.over {
            return None;
        }
        if let Some(hello) = self.hello.take() {
            return Some(Frame::data(encode_answers(&hello)));
        }
        let node = self.node;
        let status = tokio::select! {
            () = self.stop.cancelled() => {
                Status::unavailable(format!("node {node} is shutting down"))
            }
            answers = self.caller.answers() => match answers {
                Ok(answers) => return Some(Frame::data(encode_answers(&answers))),
                Err(status) => status,
            },
        };
        self.over = true;
        self.caller.end(Status::ok(""));
        let mut trailers = http::HeaderMap::new();
        // A message that no header can hold leaves the trailers without a status, which is an error too.
        drop(status.add_header(&mut trailers));
        Some(Frame::trailers(trailers))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.reading.abort();
        self.caller.end(Status::ok(""));
    }
}

/// Takes requests until the caller ends the stream, or must be cut.
async fn read(caller: Arc<Caller>, mut messages: Messages) {
    let status = loop {
        match messages.next::<Requests>().await {
            Ok(Some(requests)) => {
                if let Err(reason) = caller.take(requests) {
                    break Status::invalid_argument(reason);
                }
            }
            Ok(None) => break Status::ok(""),
            Err(error) => break Status::invalid_argument(error.to_string()),
        }
    };
    tracing::debug!(node = %caller.from, %status, "a node's link ended");
    caller.end(status);
}

/// A call that is not answered to its end.
#[derive(Debug)]
struct OpenCall {
    /// Where an append call's next requests go; `None` after the last.
    requests: Option<mpsc::UnboundedSender<AppendRequest>>,
    /// What its unanswered requests count for, in their order.
    costs: VecDeque<usize>,
    work: AbortHandle,
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.work.abort();
    }
}

#[derive(Debug, Default)]
struct State {
    /// With what the answered requests count for, until the socket took the answer.
    answers: VecDeque<(Answer, usize)>,
    calls: HashMap<u64, OpenCall>,
    last_call: u64,
    open_bytes: usize,
    ended: Option<Status>,
}

/// A node that has opened a stream, and what it has asked on it.
#[derive(Debug)]
pub(super) struct Caller {
    from: NodeId,
    host: Arc<dyn Host>,
    state: Mutex<State>,
    wake: Notify,
}

impl Caller {
    pub(super) fn new(from: NodeId, host: Arc<dyn Host>) -> Arc<Self> {
        Arc::new(Self {
            from,
            host,
            state: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Ends the stream, with the first status that is given.
    fn end(&self, status: Status) {
        let mut state = self.state.lock();
        state.ended.get_or_insert(status);
        state.calls.clear();
        state.answers.clear();
        drop(state);
        self.wake.notify_one();
    }

    /// What is to be answered, as soon as anything is; the status with which the stream ended.
    pub(super) async fn answers(&self) -> Result<Answers, Status> {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(status) = &state.ended {
                    return Err(status.clone());
                }
                let count = state.answers.len().min(ANSWERS_PER_MESSAGE);
                if count > 0 {
                    let (answers, costs): (Vec<_>, Vec<_>) = state.answers.drain(..count).unzip();
                    state.open_bytes -= costs.iter().sum::<usize>();
                    return Ok(Answers {
                        hello: None,
                        answers,
                    });
                }
            }
            self.wake.notified().await;
        }
    }

    /// # Errors
    /// Where no node of this version asks so, or asks for so much: the stream is to be cut.
    pub(super) fn take(self: &Arc<Self>, message: Requests) -> Result<(), String> {
        for request in message.requests {
            match request.group.is_some() {
                true => self.begin(request)?,
                false => self.go_on(request)?,
            }
        }
        if !message.led.is_empty() {
            let led = message.led.iter().map(from_led);
            let led = led.collect::<Result<_, _>>()?;
            self.host.heard_led(self.from, led);
        }
        Ok(())
    }

    /// A call's first request.
    fn begin(self: &Arc<Self>, request: Request) -> Result<(), String> {
        let cost = cost(&request);
        let call = request.call;
        let key = convert::from_group(&request.group.unwrap_or_default())?;
        let mut state = self.state.lock();
        if call <= state.last_call {
            return Err(format!("call {call} was made again"));
        }
        state.last_call = call;
        if state.calls.len() >= LANE_CALLS {
            return Err(format!("more than {LANE_CALLS} calls are open"));
        }
        state.open(cost)?;
        let caller = Arc::clone(self);
        let (requests, work) = match (self.host.partition(key), request.kind) {
            (None, _) => {
                state.answer(call, failed(format!("no replica of {key} is here")), cost);
                drop(state);
                self.wake.notify_one();
                return Ok(());
            }
            (Some(partition), Some(Kind::Append(append))) => {
                let (sender, receiver) = mpsc::unbounded_channel();
                let work = tokio::spawn(caller.append(call, partition, receiver));
                (Some(sender), (work, Some(append)))
            }
            (Some(partition), kind) => {
                let work = tokio::spawn(async move {
                    let answer = answer(partition, kind).await;
                    caller.finish(call, answer.unwrap_or_else(failed));
                });
                (None, (work, None))
            }
        };
        let (work, append) = work;
        let open = OpenCall {
            requests,
            costs: VecDeque::from([cost]),
            work: work.abort_handle(),
        };
        state.calls.insert(call, open);
        drop(state);
        if let Some(append) = append {
            self.feed(call, append);
        }
        if request.last {
            self.last(call);
        }
        Ok(())
    }

    /// A call's later request, or its end. The call may be over here, which its maker need not know yet.
    fn go_on(&self, request: Request) -> Result<(), String> {
        let cost = cost(&request);
        let (call, last) = (request.call, request.last);
        let mut state = self.state.lock();
        if call > state.last_call {
            return Err(format!("call {call} goes on without having begun"));
        }
        if !state.calls.contains_key(&call) {
            return Ok(());
        }
        match request.kind {
            Some(Kind::Append(append)) => {
                state.open(cost)?;
                if let Some(open) = state.calls.get_mut(&call) {
                    open.costs.push_back(cost);
                }
                drop(state);
                self.feed(call, append);
                if last {
                    self.last(call);
                }
                Ok(())
            }
            Some(Kind::End(_)) => {
                drop(state);
                self.last(call);
                Ok(())
            }
            Some(Kind::Cancel(_)) => {
                let cancelled = state.calls.remove(&call);
                let freed = cancelled.map_or(0, |open| open.costs.iter().sum());
                state.open_bytes -= freed;
                Ok(())
            }
            _ => Err(format!("call {call} goes on with what is no append")),
        }
    }

    fn feed(&self, call: u64, append: Append) {
        match convert::from_append(append) {
            Ok(request) => {
                let state = self.state.lock();
                let open = state.calls.get(&call);
                if let Some(requests) = open.and_then(|open| open.requests.as_ref()) {
                    // Whoever receives it may have ended; then its answer is on the way.
                    drop(requests.send(request));
                }
            }
            Err(reason) => self.finish(call, failed(reason)),
        }
    }

    fn last(&self, call: u64) {
        if let Some(open) = self.state.lock().calls.get_mut(&call) {
            open.requests = None;
        }
    }

    async fn append(
        self: Arc<Self>,
        call: u64,
        partition: Partition,
        mut requests: mpsc::UnboundedReceiver<AppendRequest>,
    ) {
        let requests = stream::poll_fn(move |cx| requests.poll_recv(cx));
        let mut answers = partition.receive_appends(requests.boxed());
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(answer) => self.answer(call, convert::to_append_answer(answer)),
                Err(error) => return self.finish(call, failed(error)),
            }
        }
        self.finish(call, answer::Kind::Done(Done {}));
    }

    fn answer(&self, call: u64, answer: quipu_proto::peer::v1::AppendAnswer) {
        let mut state = self.state.lock();
        if let Some(open) = state.calls.get_mut(&call) {
            let cost = open.costs.pop_front().unwrap_or_default();
            state.answer(call, answer::Kind::Append(answer), cost);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// A call's last answer.
    fn finish(&self, call: u64, kind: answer::Kind) {
        let mut state = self.state.lock();
        if let Some(open) = state.calls.remove(&call) {
            let cost = open.costs.iter().sum();
            state.answer(call, kind, cost);
        }
        drop(state);
        self.wake.notify_one();
    }
}

impl State {
    /// # Errors
    /// Where the caller may not have so much open.
    fn open(&mut self, cost: usize) -> Result<(), String> {
        if self.ended.is_some() {
            return Err("the stream has ended".to_owned());
        }
        if self.open_bytes > 0 && self.open_bytes + cost > LANE_BYTES {
            return Err(format!(
                "more than {LANE_BYTES} bytes of requests are not answered"
            ));
        }
        self.open_bytes += cost;
        Ok(())
    }

    fn answer(&mut self, call: u64, kind: answer::Kind, cost: usize) {
        let kind = Some(kind);
        self.answers.push_back((Answer { call, kind }, cost));
    }
}

fn failed(reason: impl std::fmt::Display) -> answer::Kind {
    answer::Kind::Failed(reason.to_string())
}

fn from_led(led: &Led) -> Result<(PartitionKey, LeaderEpoch), String> {
    let group = led.group.as_ref().ok_or("a group led without its name")?;
    Ok((
        convert::from_group(group)?,
        LeaderEpoch::new(led.leader_epoch),
    ))
}

/// Answers a call of one request.
async fn answer(partition: Partition, kind: Option<Kind>) -> Result<answer::Kind, String> {
    let told = |error: AppendError| error.to_string();
    Ok(match kind {
        Some(Kind::Vote(request)) => {
            let request = convert::from_vote_request(request)?;
            let answer = partition.receive_vote(request).await.map_err(told)?;
            answer::Kind::Vote(convert::to_vote_answer(answer))
        }
        Some(Kind::PreVote(request)) => {
            let request = convert::from_vote_request(request)?;
            let answer = partition.receive_pre_vote(request).await.map_err(told)?;
            answer::Kind::Vote(convert::to_vote_answer(answer))
        }
        Some(Kind::Snapshot(request)) => {
            let request = convert::from_snapshot(request)?;
            let answer = partition.receive_snapshot(request).await.map_err(told)?;
            answer::Kind::Snapshot(convert::to_snapshot_answer(answer))
        }
        Some(Kind::Transfer(request)) => {
            let request = convert::from_transfer(request)?;
            let answer = partition.receive_transfer(request).await.map_err(told)?;
            answer::Kind::Transfer(convert::to_transfer_answer(answer))
        }
        Some(Kind::Append(_) | Kind::End(_) | Kind::Cancel(_)) | None => {
            return Err(
                "this node does not know the request, it may be of an older version: upgrade it"
                    .to_owned(),
            );
        }
    })
}
