//! A node that asks on a stream, and what of it is not answered yet.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use quipu_model::{LeaderEpoch, NodeId, PartitionKey};
use quipu_proto::peer::v1::{
    self, Answer, Answers, Append, AppendAnswer, Done, Led, Request, Requests, answer,
    request::Kind,
};
use quipu_replication::{AppendError, AppendRequest, CopyResponse, Partition};
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
};
use tonic::Status;

use super::{Host, LANE_BYTES, LANE_CALLS, TARGET_BYTES, convert, cost, frame::copied_bytes};

/// How many answers are put into one message.
const ANSWERS_PER_MESSAGE: usize = 8192;

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
    pub(super) from: NodeId,
    host: Arc<dyn Host>,
    /// How many bytes of requests may be unanswered before no more are read.
    lane_bytes: usize,
    state: Mutex<State>,
    wake: Notify,
    /// Told when requests are answered.
    freed: Notify,
}

impl Caller {
    pub(super) fn new(from: NodeId, host: Arc<dyn Host>, lane_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            from,
            host,
            lane_bytes,
            state: Mutex::default(),
            wake: Notify::new(),
            freed: Notify::new(),
        })
    }

    /// Ends the stream, with the first status that is given.
    pub(super) fn end(&self, status: Status) {
        let mut state = self.state.lock();
        state.ended.get_or_insert(status);
        state.calls.clear();
        state.answers.clear();
        drop(state);
        self.wake.notify_one();
    }

    /// Waits until there is room for the next requests.
    pub(super) async fn room(&self) {
        while self.state.lock().open_bytes >= self.lane_bytes {
            self.freed.notified().await;
        }
    }

    /// What is to be answered, as soon as anything is; the status with which the stream ended.
    pub(super) async fn answers(&self) -> Result<Answers, Status> {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(status) = &state.ended {
                    return Err(status.clone());
                }
                let count = state.next_message();
                if count > 0 {
                    let (answers, costs): (Vec<_>, Vec<_>) = state.answers.drain(..count).unzip();
                    state.open_bytes -= costs.iter().sum::<usize>();
                    self.freed.notify_one();
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
            if request.group.is_some() {
                self.begin(request)?;
            } else {
                self.go_on(request)?;
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
        let partition = self.host.partition(key);
        let mut state = self.state.lock();
        state.begin(call)?;
        state.open(cost)?;
        let Some(partition) = partition else {
            state.answer(call, failed(format!("no replica of {key} is here")), cost);
            drop(state);
            self.wake.notify_one();
            return Ok(());
        };
        // What the work answers waits for the lock, and so finds the call.
        let costs = VecDeque::from([cost]);
        let caller = Arc::clone(self);
        let Some(Kind::Append(append)) = request.kind else {
            let work = tokio::spawn(caller.answer_one(call, partition, request.kind));
            let open = OpenCall {
                requests: None,
                costs,
                work: work.abort_handle(),
            };
            state.calls.insert(call, open);
            return Ok(());
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        let work = tokio::spawn(caller.answer_appends(call, partition, receiver));
        let open = OpenCall {
            requests: Some(sender),
            costs,
            work: work.abort_handle(),
        };
        state.calls.insert(call, open);
        drop(state);
        self.feed(call, append, request.last);
        Ok(())
    }

    /// A call's later request, or its end. The call may be over here, which its maker need not know yet.
    fn go_on(&self, request: Request) -> Result<(), String> {
        let cost = cost(&request);
        let call = request.call;
        let mut state = self.state.lock();
        if call > state.last_call {
            return Err(format!("call {call} goes on without having begun"));
        }
        let Some(open) = state.calls.get_mut(&call) else {
            return Ok(());
        };
        match request.kind {
            Some(Kind::Append(append)) => {
                open.costs.push_back(cost);
                state.open(cost)?;
                drop(state);
                self.feed(call, append, request.last);
            }
            Some(Kind::End(_)) => open.requests = None,
            Some(Kind::Cancel(_)) => {
                let freed = open.costs.iter().sum::<usize>();
                state.calls.remove(&call);
                state.open_bytes -= freed;
            }
            _ => return Err(format!("call {call} goes on with what is no append")),
        }
        Ok(())
    }

    /// Hands an append call's request on, which may be the last.
    fn feed(&self, call: u64, append: Append, last: bool) {
        let request = match convert::from_append(append) {
            Ok(request) => request,
            Err(reason) => return self.finish(call, failed(reason)),
        };
        if let Some(open) = self.state.lock().calls.get_mut(&call) {
            if let Some(requests) = &open.requests {
                // Where nobody receives it any more, the call's end is on the way.
                drop(requests.send(request));
            }
            if last {
                open.requests = None;
            }
        }
    }

    async fn answer_one(self: Arc<Self>, call: u64, partition: Partition, kind: Option<Kind>) {
        let answer = match kind {
            Some(Kind::Copy(copy)) => self.copy(partition, copy).await,
            kind => answer(partition, kind).await,
        };
        self.finish(call, answer.unwrap_or_else(failed));
    }

    /// Gives batches to a replica that lacks them, when this node's turn for that comes.
    async fn copy(&self, partition: Partition, copy: v1::Copy) -> Result<answer::Kind, String> {
        let turn = self.host.copying().turn().await;
        let copied = partition.receive_copy(convert::from_copy(copy)).await;
        let copied = copied.map_err(|error| error.to_string())?;
        if let CopyResponse::Batches { bytes, .. } = &copied {
            turn.spend(bytes.len());
        }
        Ok(answer::Kind::Copy(convert::to_copy_answer(copied)))
    }

    async fn answer_appends(
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

    fn answer(&self, call: u64, answer: AppendAnswer) {
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
    /// Where the caller counts wrong, or has too many calls open.
    fn begin(&mut self, call: u64) -> Result<(), String> {
        if call <= self.last_call {
            return Err(format!("call {call} was made again"));
        }
        if self.calls.len() >= LANE_CALLS {
            return Err(format!("more than {LANE_CALLS} calls are open"));
        }
        self.last_call = call;
        Ok(())
    }

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

    /// How many answers go into the next message.
    fn next_message(&self) -> usize {
        let mut bytes = 0;
        let fits = |(answer, _): &&(Answer, usize)| {
            let room = bytes < TARGET_BYTES;
            bytes += copied_bytes(answer).map_or(0, Bytes::len);
            room
        };
        let most = self.answers.iter().take(ANSWERS_PER_MESSAGE);
        most.take_while(fits).count()
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
        Some(Kind::Sleep(request)) => {
            let request = convert::from_sleep(request)?;
            let answer = partition.receive_sleep(request).await.map_err(told)?;
            answer::Kind::Sleep(convert::to_sleep_answer(answer))
        }
        Some(Kind::TakeOver(_)) => {
            let all = partition.receive_take_over().await.map_err(told)?;
            answer::Kind::TakeOver(convert::to_snapshot(all))
        }
        Some(Kind::Append(_) | Kind::End(_) | Kind::Cancel(_) | Kind::Copy(_)) | None => {
            return Err(
                "this node does not know the request, it may be of an older version: upgrade it"
                    .to_owned(),
            );
        }
    })
}
