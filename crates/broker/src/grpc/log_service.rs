//! `quipu.v1.Log`.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream, stream::BoxStream};
use quipu_model::{Offset, PartitionId};
use quipu_proto::v1::{
    FetchRequest, FetchResponse, FetchStreamRequest, InitProducerIdRequest, InitProducerIdResponse,
    ListOffsetsRequest, ListOffsetsResponse, ProduceRequest, ProduceResponse, log_server::Log,
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert,
    hold::{AnswerMemory, client_id},
    produce_stream::ProduceStream,
};
use crate::{
    core::{Core, Fetch, FetchStream},
    error::BrokerError,
    metadata::Traffic,
};

/// Serves the log API over the core.
#[derive(Clone, Debug)]
pub(super) struct LogService {
    pub(super) core: Arc<Core>,
}

#[tonic::async_trait]
impl Log for LogService {
    type ProduceStreamStream = ProduceStream;

    async fn produce_stream(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<ProduceStream>, Status> {
        let client = client_id(request.metadata())?;
        let stream = ProduceStream::new(Arc::clone(&self.core), client, request.into_inner());
        Ok(Response::new(stream))
    }

    async fn produce(
        &self,
        request: Request<ProduceRequest>,
    ) -> Result<Response<ProduceResponse>, Status> {
        let client = client_id(request.metadata())?;
        let (correlation_id, topic, fields) = convert::take_apart(request.into_inner());
        let produce = convert::produce(&topic, fields, self.core.clock.now())?;
        let quotas = &self.core.quotas;
        let throttle = quotas.charge(&client, Traffic::Produce, produce.payload.len());
        let appended = self.core.prepare(produce)?.append().await?;
        let response = convert::produce_response(correlation_id, throttle, Ok(appended));
        Ok(Response::new(response))
    }

    type FetchStreamStream = BoxStream<'static, Result<FetchResponse, Status>>;

    async fn fetch_stream(
        &self,
        request: Request<FetchStreamRequest>,
    ) -> Result<Response<Self::FetchStreamStream>, Status> {
        let client = client_id(request.metadata())?;
        let request = request.into_inner();
        let stream = self.core.fetch_stream(
            Arc::clone(&client),
            &request.topic,
            PartitionId::new(request.partition),
            Offset::new(request.offset),
            convert::max_bytes(request.max_bytes),
            request.end_offset.map(Offset::new),
        )?;
        let messages = messages(Arc::clone(&self.core), client, stream);
        Ok(Response::new(messages.boxed()))
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<FetchResponse>, Status> {
        let client = client_id(request.metadata())?;
        let request = request.into_inner();
        let quotas = &self.core.quotas;
        let most = quotas.most_at_once(&client, Traffic::Fetch);
        let fetched = self
            .core
            .fetch(Fetch {
                topic: &request.topic,
                partition: PartitionId::new(request.partition),
                offset: Offset::new(request.offset),
                max_bytes: convert::max_bytes(request.max_bytes).min(most),
                min_bytes: request.min_bytes as usize,
                max_wait: Duration::from_millis(request.max_wait_ms.into()),
            })
            .await?;
        let bytes = fetched.batches.len();
        let memory = AnswerMemory::from(self.core.fetch_memory.take(bytes)?);
        let throttle = quotas.charge(&client, Traffic::Fetch, bytes);
        let mut response = Response::new(convert::fetch_response(fetched, throttle));
        response.extensions_mut().insert(memory);
        Ok(response)
    }

    async fn list_offsets(
        &self,
        request: Request<ListOffsetsRequest>,
    ) -> Result<Response<ListOffsetsResponse>, Status> {
        let request = request.into_inner();
        let query = convert::offset_query(request.at)?;
        let partition = PartitionId::new(request.partition);
        let listed = self
            .core
            .list_offset(&request.topic, partition, query)
            .await?;
        Ok(Response::new(listed.into()))
    }

    async fn init_producer_id(
        &self,
        _request: Request<InitProducerIdRequest>,
    ) -> Result<Response<InitProducerIdResponse>, Status> {
        let id = self.core.controller()?.next_producer_id().await?;
        Ok(Response::new(InitProducerIdResponse {
            producer_id: id.get(),
            producer_epoch: 0,
        }))
    }
}

/// A fetch stream's messages, each read only when the connection has room for it; the last one tells why it ended early.
fn messages(
    core: Arc<Core>,
    client: Arc<str>,
    stream: FetchStream,
) -> impl futures::Stream<Item = Result<FetchResponse, Status>> + Send + 'static {
    stream::unfold(Some((core, client, stream)), |state| async {
        let (core, client, mut stream) = state?;
        match stream.next().await {
            Ok(Some(fetched)) => {
                let bytes = fetched.batches.len();
                let throttle = core.quotas.charge(&client, Traffic::Fetch, bytes);
                let message = convert::fetch_response(fetched, throttle);
                Some((Ok(message), Some((core, client, stream))))
            }
            Ok(None) => None,
            Err(error) => Some((Ok(failed(error)), None)),
        }
    })
}

fn failed(error: BrokerError) -> FetchResponse {
    FetchResponse {
        error: Some(error.into()),
        ..FetchResponse::default()
    }
}
