//! What surrounds the calls of the log service. Those of clients that are past their quotas wait before anything of them but the
//! headers is read, and the memory of an answer is held until it has gone to the socket.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use tokio::time::sleep;
use tonic::{Status, body::Body, metadata::MetadataMap, server::NamedService};
use tower::Service;

use super::convert::invalid;
use crate::{core::Core, error::BrokerError, memory::MemoryPermit, metadata::Traffic};

/// Under what a client's name stands in a call's metadata.
const CLIENT_ID: &str = "quipu-client-id";

/// What the client calls itself; nothing where it does not say.
///
/// # Errors
/// Where it is not visible ASCII.
pub(super) fn client_id(metadata: &MetadataMap) -> Result<Arc<str>, BrokerError> {
    let named = metadata.get(CLIENT_ID).map(|name| name.to_str());
    match named.transpose() {
        Ok(name) => Ok(Arc::from(name.unwrap_or_default())),
        Err(_) => Err(invalid(format!(
            "{CLIENT_ID} holds other than visible ASCII characters: give another name"
        ))),
    }
}

/// The same of a call that is not looked into yet; who has a name that is refused later has none.
fn name(headers: &HeaderMap) -> &str {
    let name = headers.get(CLIENT_ID).and_then(|name| name.to_str().ok());
    name.unwrap_or_default()
}

/// What a call is held back for. A stream of fetched batches waits between its messages instead.
fn traffic(path: &str) -> Option<Traffic> {
    match path {
        "/quipu.v1.Log/Produce" | "/quipu.v1.Log/ProduceStream" => Some(Traffic::Produce),
        "/quipu.v1.Log/Fetch" => Some(Traffic::Fetch),
        _ => None,
    }
}

/// What an answer takes of the node's memory, among its extensions.
#[derive(Clone, Debug)]
pub(super) struct AnswerMemory {
    _permit: Arc<MemoryPermit>,
}

impl From<MemoryPermit> for AnswerMemory {
    fn from(permit: MemoryPermit) -> Self {
        Self {
            _permit: Arc::new(permit),
        }
    }
}

/// Bytes of an answer, with what the answer takes of the node's memory: the connection lets go of them when they are sent, which
/// may be long after it has asked for the last of the body.
struct HeldBytes {
    bytes: Bytes,
    _memory: AnswerMemory,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// An answer's body whose bytes hold their memory.
#[derive(Debug)]
struct Holding {
    body: Body,
    memory: AnswerMemory,
}

impl http_body::Body for Holding {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let hold = |bytes| {
            Bytes::from_owner(HeldBytes {
                bytes,
                _memory: self.memory.clone(),
            })
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(hold))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn hold_memory(mut response: Response<Body>) -> Response<Body> {
    match response.extensions_mut().remove::<AnswerMemory>() {
        None => response,
        Some(memory) => response.map(|body| Body::new(Holding { body, memory })),
    }
}

/// The log service, within what its clients may use.
#[derive(Clone, Debug)]
pub(super) struct Hold<S> {
    pub(super) core: Arc<Core>,
    pub(super) service: S,
}

impl<S: NamedService> NamedService for Hold<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Hold<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let traffic = traffic(request.uri().path());
        let owed = traffic.map_or(Duration::ZERO, |traffic| {
            let client = name(request.headers());
            self.core.quotas.owed(client, traffic)
        });
        // The one that is ready goes, its copy stays.
        let copy = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, copy);
        let stop = self.core.stop.clone();
        Box::pin(async move {
            if !owed.is_zero() {
                tokio::select! {
                    () = sleep(owed) => {}
                    () = stop.cancelled() => {}
                }
            }
            service.call(request).await.map(hold_memory)
        })
    }
}
