//! `quipu.v1.Log`.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream, stream::BoxStream};
use quipu_model::{Offset, PartitionId};
use quipu_proto::v1::{
    FetchRequest, FetchResponse, FetchStreamRequest, InitProducerIdRequest, InitProducerIdResponse,
    ListOffsetsRequest, ListOffsetsResponse, ProduceRequest, ProduceResponse, log_server::Log,
};
use tonic::{Request, Response, Status, Streaming};

use super::{convert, produce_stream::ProduceStream};
use crate::{
    core::{Core, Fetch, FetchStream},
    error::BrokerError,
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
        let stream = ProduceStream::new(Arc::clone(&self.core), request.into_inner());
        Ok(Response::new(stream))
    }

    async fn produce(
        &self,
        request: Request<ProduceRequest>,
    ) -> Result<Response<ProduceResponse>, Status> {
        let (correlation_id, topic, fields) = convert::take_apart(request.into_inner());
        let produce = convert::produce(&topic, fields, self.core.clock.now())?;
        let appended = self.core.prepare(produce)?.append().await?;
        let response = convert::produce_response(correlation_id, Ok(appended));
        Ok(Response::new(response))
    }

    type FetchStreamStream = BoxStream<'static, Result<FetchResponse, Status>>;

    async fn fetch_stream(
        &self,
        request: Request<FetchStreamRequest>,
    ) -> Result<Response<Self::FetchStreamStream>, Status> {
        let request = request.into_inner();
        let stream = self.core.fetch_stream(
            &request.topic,
            PartitionId::new(request.partition),
            Offset::new(request.offset),
            convert::max_bytes(request.max_bytes),
            request.end_offset.map(Offset::new),
        )?;
        Ok(Response::new(messages(stream).boxed()))
    }

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<FetchResponse>, Status> {
        let request = request.into_inner();
        let fetched = self
            .core
            .fetch(Fetch {
                topic: &request.topic,
                partition: PartitionId::new(request.partition),
                offset: Offset::new(request.offset),
                max_bytes: convert::max_bytes(request.max_bytes),
                min_bytes: request.min_bytes as usize,
                max_wait: Duration::from_millis(request.max_wait_ms.into()),
            })
            .await?;
        Ok(Response::new(fetched.into()))
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
    stream: FetchStream,
) -> impl futures::Stream<Item = Result<FetchResponse, Status>> + Send + 'static {
    stream::unfold(Some(stream), |stream| async {
        let mut stream = stream?;
        match stream.next().await {
            Ok(Some(fetched)) => Some((Ok(fetched.into()), Some(stream))),
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
