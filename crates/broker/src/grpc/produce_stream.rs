//! The pipelined produce stream: no task of its own, nothing between the connection and the partitions' doors.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use quipu_model::PartitionKey;
use quipu_proto::v1::{ProduceRequest, ProduceResponse};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::convert;
use crate::{
    core::{Appended, Core, Prepared},
    error::BrokerError,
    metadata::Traffic,
};

/// The most requests of one stream in flight.
const MOST_REQUESTS: usize = 1024;
/// No more requests are read while those in flight hold this many bytes.
const MOST_BYTES: usize = 16 << 20;

/// Reads requests, proposes each in order, and answers as they are acknowledged.
pub(super) struct ProduceStream<R = Streaming<ProduceRequest>> {
    core: Arc<Core>,
    /// Whose quota it takes from.
    client: Arc<str>,
    requests: R,
    /// While the client is past its quota: no more requests are read.
    hold: Option<Pin<Box<Sleep>>>,
    in_flight: InFlight,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    reading: Reading,
}

/// Whether more requests are read, and how the stream ends once the last one is answered.
enum Reading {
    On,
    Ended(Option<Status>),
    Done,
}

impl<R> fmt::Debug for ProduceStream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProduceStream").finish_non_exhaustive()
    }
}

impl<R: Stream<Item = Result<ProduceRequest, Status>> + Unpin> ProduceStream<R> {
    pub(super) fn new(core: Arc<Core>, client: Arc<str>, requests: R) -> Self {
        Self {
            stop: Box::pin(core.stop.clone().cancelled_owned()),
            core,
            client,
            requests,
            hold: None,
            in_flight: InFlight::default(),
            reading: Reading::On,
        }
    }

    fn poll_requests(&mut self, cx: &mut Context<'_>) {
        while matches!(self.reading, Reading::On) {
            if self.stop.as_mut().poll_unpin(cx).is_ready() {
                let status = BrokerError::shutting_down().into();
                self.reading = Reading::Ended(Some(status));
                return;
            }
            if self.in_flight.is_full() || self.is_held(cx) {
                return;
            }
            match self.requests.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(request))) => self.begin(request, cx),
                Poll::Ready(Some(Err(status))) => self.reading = Reading::Ended(Some(status)),
                Poll::Ready(None) => self.reading = Reading::Ended(None),
                Poll::Pending => return,
            }
        }
    }

    fn is_held(&mut self, cx: &mut Context<'_>) -> bool {
        let held = self.hold.as_mut();
        if held.is_some_and(|hold| hold.poll_unpin(cx).is_pending()) {
            return true;
        }
        self.hold = None;
        false
    }

    fn begin(&mut self, request: ProduceRequest, cx: &mut Context<'_>) {
        let (correlation_id, topic, fields) = convert::take_apart(request);
        let mut throttle = Duration::ZERO;
        let prepared =
            convert::produce(&topic, fields, self.core.clock.now()).and_then(|produce| {
                let (quotas, bytes) = (&self.core.quotas, produce.payload.len());
                throttle = quotas.charge(&self.client, Traffic::Produce, bytes);
                self.core.prepare(produce)
            });
        if !throttle.is_zero() {
            self.hold = Some(Box::pin(sleep(throttle)));
        }
        let answer = Answer {
            correlation_id,
            throttle,
        };
        match prepared {
            Ok(prepared) => self.in_flight.begin(answer, prepared, cx),
            Err(error) => {
                let response = answer.of(Err(error));
                self.in_flight.ready.push_back(response);
            }
        }
    }
}

impl<R: Stream<Item = Result<ProduceRequest, Status>> + Unpin> Stream for ProduceStream<R> {
    type Item = Result<ProduceResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            // Requests before answers: what is read now shares the next sync with what waits for it.
            self.poll_requests(cx);
            let was_full = self.in_flight.is_full();
            self.in_flight.poll(cx);
            if let Some(response) = self.in_flight.ready.pop_front() {
                return Poll::Ready(Some(Ok(response)));
            }
            // Answers that made room, though none may be given yet: then reading must go on, or nobody wakes this task.
            if was_full && !self.in_flight.is_full() {
                continue;
            }
            if !self.in_flight.is_empty() {
                return Poll::Pending;
            }
            return match std::mem::replace(&mut self.reading, Reading::Done) {
                Reading::On => {
                    self.reading = Reading::On;
                    Poll::Pending
                }
                Reading::Ended(Some(status)) => Poll::Ready(Some(Err(status))),
                Reading::Ended(None) | Reading::Done => Poll::Ready(None),
            };
        }
    }
}

/// An append that runs: its place, its size, and what comes of it.
type Running = BoxFuture<'static, (Place, usize, Result<Appended, BrokerError>)>;

/// A request's partition, and its number among all requests of the stream.
#[derive(Clone, Copy)]
struct Place {
    key: PartitionKey,
    number: u64,
}

/// What an answer says beside the result.
#[derive(Clone, Copy)]
struct Answer {
    correlation_id: u64,
    throttle: Duration,
}

impl Answer {
    fn of(self, result: Result<Appended, BrokerError>) -> ProduceResponse {
        convert::produce_response(self.correlation_id, self.throttle, result)
    }
}

/// A request that waits for its answer, or for those before it in its partition.
struct Waiting {
    number: u64,
    answer: Answer,
    response: Option<ProduceResponse>,
}

/// Requests that were proposed and are not answered yet.
#[derive(Default)]
struct InFlight {
    appends: FuturesUnordered<Running>,
    /// By partition, in the order of the requests.
    lanes: HashMap<PartitionKey, VecDeque<Waiting>>,
    ready: VecDeque<ProduceResponse>,
    next_number: u64,
    count: usize,
    bytes: usize,
}

impl InFlight {
    fn is_full(&self) -> bool {
        self.count + self.ready.len() >= MOST_REQUESTS || self.bytes >= MOST_BYTES
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Polls the append once, so that it takes its place behind those before it, and keeps it.
    fn begin(&mut self, answer: Answer, prepared: Prepared, cx: &mut Context<'_>) {
        let place = Place {
            key: prepared.key(),
            number: self.next_number,
        };
        let size = prepared.len();
        self.next_number += 1;
        self.count += 1;
        self.bytes += size;
        self.lanes.entry(place.key).or_default().push_back(Waiting {
            number: place.number,
            answer,
            response: None,
        });
        let mut append: Running = Box::pin(async move { (place, size, prepared.append().await) });
        match append.poll_unpin(cx) {
            Poll::Ready((place, size, result)) => self.finish(place, size, result),
            Poll::Pending => self.appends.push(append),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some((place, size, result))) = self.appends.poll_next_unpin(cx) {
            self.finish(place, size, result);
        }
    }

    /// Notes an answer, and releases those of its partition whose turn it is.
    fn finish(&mut self, place: Place, size: usize, result: Result<Appended, BrokerError>) {
        self.bytes -= size;
        let Some(lane) = self.lanes.get_mut(&place.key) else {
            return;
        };
        // Numbers rise along a lane, and its first is nearly always the one.
        if let Ok(at) = lane.binary_search_by_key(&place.number, |waiting| waiting.number) {
            let waiting = &mut lane[at];
            waiting.response = Some(waiting.answer.of(result));
        }
        while let Some(response) = lane.front_mut().and_then(|first| first.response.take()) {
            lane.pop_front();
            self.count -= 1;
            self.ready.push_back(response);
        }
        if lane.is_empty() {
            self.lanes.remove(&place.key);
        }
    }
}
