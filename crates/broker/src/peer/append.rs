//! An append call: requests as the group has them, answers in their order.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{
    FutureExt, StreamExt, TryFutureExt, TryStreamExt,
    future::pending,
    stream::{self, BoxStream},
};
use quipu_model::{NodeId, PartitionKey};
use quipu_proto::peer::v1::{End, Request, answer, request::Kind};
use quipu_replication::{AppendAnswers, AppendRequest, AppendResponse, TransportError};
use tokio::time::{Instant, sleep_until};

use super::{
    convert::{from_append_answer, to_append, to_group},
    cost,
    dial::{Lane, Peer},
    link::{Call, Haste, Link, Room},
};

/// The most bytes that one call has queued and unanswered, beside its last request: so a group leaves room for others.
const CALL_BYTES: usize = 8 << 20;

/// Starts a call. Which lane it takes is seen by its first requests: one without entries that stays alone is a heartbeat.
pub(super) fn append(
    peer: Arc<Peer>,
    key: PartitionKey,
    requests: BoxStream<'static, AppendRequest>,
    timeout: Duration,
) -> AppendAnswers {
    let target = peer.node;
    begin(peer, key, requests, timeout)
        .try_flatten_stream()
        .map_err(move |reason| TransportError {
            node: target,
            reason,
        })
        .boxed()
}

async fn begin(
    peer: Arc<Peer>,
    key: PartitionKey,
    mut requests: BoxStream<'static, AppendRequest>,
    timeout: Duration,
) -> Result<BoxStream<'static, Result<AppendResponse, String>>, String> {
    let Some(first) = requests.next().await else {
        return Ok(stream::empty().boxed());
    };
    let first = to_append(first)?;
    let second = if first.entries.is_empty() {
        requests.next().now_or_never()
    } else {
        None
    };
    let beats = matches!(second, Some(None));
    let link = peer.link(if beats { Lane::Control } else { Lane::Data })?;
    let request = Request {
        group: Some(to_group(key)),
        last: beats,
        kind: Some(Kind::Append(first)),
        ..Request::default()
    };
    let second = stream::iter(second.flatten());
    let call = AppendCall {
        call: link.call()?,
        rooms: VecDeque::new(),
        open_bytes: 0,
        link,
        node: peer.node,
        requests: (!beats).then(|| second.chain(requests).boxed()),
        waiting: Some(request),
        haste: if beats { Haste::Lingers } else { Haste::AtOnce },
        timeout,
        over: false,
    };
    Ok(stream::unfold(call, |mut call| async {
        let answer = call.next().await?;
        call.over |= answer.is_err();
        Some((answer, call))
    })
    .boxed())
}

struct AppendCall {
    /// Before `rooms`: whoever takes the room that is free must come behind the call's cancellation.
    call: Call,
    /// Of the requests that are not answered, with what each counts for.
    rooms: VecDeque<(usize, Room)>,
    open_bytes: usize,
    link: Arc<Link>,
    node: NodeId,
    /// `None` after the last.
    requests: Option<BoxStream<'static, AppendRequest>>,
    /// What waits for room.
    waiting: Option<Request>,
    haste: Haste,
    timeout: Duration,
    over: bool,
}

enum Event {
    Answer(Result<answer::Kind, String>),
    Request(Option<AppendRequest>),
    Room(Result<Room, String>),
    Late,
}

impl AppendCall {
    async fn next(&mut self) -> Option<Result<AppendResponse, String>> {
        while !self.over {
            match self.event().await {
                Event::Answer(Ok(answer)) => return self.answer(answer),
                Event::Answer(Err(reason)) | Event::Room(Err(reason)) => return Some(Err(reason)),
                Event::Room(Ok(room)) => self.send(room),
                Event::Request(Some(request)) => match to_append(request) {
                    Ok(append) => self.waiting = Some(of_kind(Kind::Append(append))),
                    Err(reason) => return Some(Err(reason)),
                },
                Event::Request(None) => {
                    self.requests = None;
                    self.waiting = Some(of_kind(Kind::End(End {})));
                }
                Event::Late => {
                    // Meanwhile it may have answered, or the socket may have moved.
                    let deadline = self.call.deadline(self.timeout);
                    if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                        let (node, timeout) = (self.node, self.timeout);
                        return Some(Err(format!(
                            "node {node} did not answer within {timeout:?}"
                        )));
                    }
                }
            }
        }
        None
    }

    async fn event(&mut self) -> Event {
        let deadline = self.call.deadline(self.timeout);
        let requests = self
            .requests
            .as_mut()
            .filter(|_| self.waiting.is_none() && self.open_bytes < CALL_BYTES);
        tokio::select! {
            biased;
            answer = self.call.answer() => Event::Answer(answer),
            room = room_for(&self.link, self.waiting.as_ref()) => Event::Room(room),
            request = next_of(requests) => Event::Request(request),
            () = at(deadline) => Event::Late,
        }
    }

    fn send(&mut self, room: Room) {
        let Some(request) = self.waiting.take() else {
            return;
        };
        let cost = cost(&request);
        if matches!(request.kind, Some(Kind::Append(_))) {
            self.rooms.push_back((cost, Arc::clone(&room)));
            self.open_bytes += cost;
        }
        self.call.send(request, cost, room, self.haste);
    }

    fn answer(&mut self, answer: answer::Kind) -> Option<Result<AppendResponse, String>> {
        match answer {
            answer::Kind::Append(answer) => {
                if let Some((cost, _)) = self.rooms.pop_front() {
                    self.open_bytes -= cost;
                }
                return Some(from_append_answer(answer));
            }
            answer::Kind::Done(_) => {}
            answer::Kind::Failed(reason) => return Some(Err(reason)),
            _ => return Some(Err("it was answered like another request".to_owned())),
        }
        self.over = true;
        None
    }
}

fn of_kind(kind: Kind) -> Request {
    Request {
        kind: Some(kind),
        ..Request::default()
    }
}

async fn room_for(link: &Link, request: Option<&Request>) -> Result<Room, String> {
    match request {
        Some(request) => link.room(cost(request)).await,
        None => pending().await,
    }
}

async fn next_of(
    requests: Option<&mut BoxStream<'static, AppendRequest>>,
) -> Option<AppendRequest> {
    match requests {
        Some(requests) => requests.next().await,
        None => pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
