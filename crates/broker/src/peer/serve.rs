//! The service that other nodes' links call.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use quipu_model::NodeId;
use quipu_proto::peer::v1::{Answers, Requests, peer_server};
use tokio::{task::AbortHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use super::{
    Host,
    caller::Caller,
    dial::PATH,
    frame::{Messages, encode_answers},
    hello::{check, greet},
};
use crate::grpc::Seat;

/// In which a node that opened a stream must have said who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests may leave no room for the next ones.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// The gRPC service that other nodes' links call: each may have about `lane_bytes` of requests unanswered before no more are
/// read of it. Its streams end when `stop` is cancelled.
pub(crate) fn service(
    host: Arc<dyn Host>,
    stop: CancellationToken,
    lane_bytes: usize,
) -> PeerService {
    PeerService {
        host,
        stop,
        lane_bytes,
    }
}

#[derive(Clone, Debug)]
pub(crate) struct PeerService {
    host: Arc<dyn Host>,
    stop: CancellationToken,
    lane_bytes: usize,
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
        let (parts, body) = request.into_parts();
        let mut messages = Messages::new(body);
        let first = timeout(HELLO_TIMEOUT, messages.next::<Requests>()).await;
        let first = first
            .map_err(|_| Status::failed_precondition("no hello came in time"))?
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let own = self.host.identity();
        let peer = check(first.and_then(|first| first.hello), &own)
            .and_then(|peer| self.host.admit(&peer).map(|()| peer))
            .map_err(|reason| {
                tracing::debug!(%reason, "a node's link was refused");
                Status::permission_denied(reason)
            })?;
        if let Some(seat) = parts.extensions.get::<Arc<Seat>>() {
            seat.give_to_node()?;
        }
        let hello = Answers {
            hello: Some(greet(&own, peer.node)),
            ..Answers::default()
        };
        let removal = self.host.removal_of(peer.node);
        let caller = Caller::new(peer.node, self.host, self.lane_bytes);
        let reading = tokio::spawn(read(Arc::clone(&caller), messages, removal));
        let stream = Answering {
            pieces: encode_answers(&hello),
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
    /// What is on its way to the socket.
    pieces: VecDeque<Bytes>,
    caller: Arc<Caller>,
    reading: AbortHandle,
    node: NodeId,
    stop: CancellationToken,
    over: bool,
}

impl Answering {
    async fn frame(&mut self) -> Option<Frame<Bytes>> {
        if self.over {
            return None;
        }
        if let Some(piece) = self.pieces.pop_front() {
            return Some(Frame::data(piece));
        }
        let node = self.node;
        let status = tokio::select! {
            () = self.stop.cancelled() => {
                Status::unavailable(format!("node {node} is shutting down"))
            }
            answers = self.caller.answers() => match answers {
                Ok(answers) => {
                    self.pieces = encode_answers(&answers);
                    return self.pieces.pop_front().map(Frame::data);
                }
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
async fn read(caller: Arc<Caller>, messages: Messages, removal: BoxFuture<'static, String>) {
    let status = tokio::select! {
        status = take(&caller, messages) => status,
        reason = removal => Status::permission_denied(reason),
    };
    tracing::debug!(node = %caller.from, %status, "a node's link ended");
    caller.end(status);
}

async fn take(caller: &Arc<Caller>, mut messages: Messages) -> Status {
    loop {
        if timeout(ROOM_TIMEOUT, caller.room()).await.is_err() {
            break Status::resource_exhausted(format!(
                "requests are not answered within {ROOM_TIMEOUT:?}, and there is no memory for more"
            ));
        }
        match messages.next::<Requests>().await {
            Ok(Some(requests)) => {
                if let Err(reason) = caller.take(requests) {
                    break Status::invalid_argument(reason);
                }
            }
            Ok(None) => break Status::ok(""),
            Err(error) => break Status::invalid_argument(error.to_string()),
        }
    }
}
