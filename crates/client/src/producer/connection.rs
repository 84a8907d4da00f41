//! One produce stream to one node.

use std::sync::Arc;

use quipu_proto::v1::{ProduceRequest, ProduceResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;

use super::sender::Event;
use crate::{
    Result,
    cluster::{Cluster, log_client},
    error::Error,
};

/// A stream that requests go into; what comes out of it, its end included, is told as [`Event`]s. Dropping it ends the
/// stream without a word.
#[derive(Debug)]
pub(super) struct Connection {
    /// Tells this stream's events from those of an earlier one to the same node.
    pub(super) generation: u64,
    /// Unbounded, and yet bounded: by the batches that may be in flight and the producer's buffer.
    requests: mpsc::UnboundedSender<ProduceRequest>,
    task: tokio::task::JoinHandle<()>,
}

impl Connection {
    pub(super) fn open(
        cluster: Arc<Cluster>,
        channel: Channel,
        address: Box<str>,
        generation: u64,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let respond = |response| {
                // Nobody listens any more: the producer is gone.
                let _ = events.send(Event::Response(response));
            };
            let error = match exchange(&cluster, channel, &address, outgoing, respond).await {
                Ok(()) => Error::unreachable(format_args!("{address} ended the produce stream")),
                Err(error) => error,
            };
            let _ = events.send(Event::Disconnected {
                address,
                generation,
                error,
            });
        });
        Self {
            generation,
            requests,
            task,
        }
    }

    /// Where the stream has ended, its [`Event::Disconnected`] speaks for this request too.
    pub(super) fn send(&self, request: ProduceRequest) {
        let _ = self.requests.send(request);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn exchange(
    cluster: &Cluster,
    channel: Channel,
    address: &str,
    requests: mpsc::UnboundedReceiver<ProduceRequest>,
    respond: impl Fn(ProduceResponse),
) -> Result<()> {
    let failed = |status: tonic::Status| Error::from_status(address, &status);
    let requests = UnboundedReceiverStream::new(requests);
    let requests = cluster.named(requests);
    let answer = log_client(channel).produce_stream(requests).await;
    let mut responses = answer.map_err(failed)?.into_inner();
    while let Some(response) = responses.message().await.map_err(failed)? {
        respond(response);
    }
    Ok(())
}
