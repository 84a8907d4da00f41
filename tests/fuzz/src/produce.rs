//! The gRPC produce path of a running broker: whatever bytes come as a request, it answers, and what it acknowledges can be
//! read by everybody.

use anyhow::{Result, bail, ensure};
use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use prost::Message;
use quipu_model::RecordBatch;
use quipu_proto::v1::{
    Acks, CreateTopicRequest, FetchRequest, ProduceRequest, ProduceResponse,
    admin_client::AdminClient, log_client::LogClient, produce_request::Payload,
};
use quipu_tests::{Broker, Launch, scratch};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use crate::{
    Target,
    mutate::{Random, mutate},
    samples::{batches, mutated},
};

pub(crate) struct ProducePath {
    runtime: Runtime,
    channel: Channel,
    samples: Vec<Vec<u8>>,
    /// The offset after the last acknowledged record.
    end: u64,
    broker: Broker,
    _directory: TempDir,
}

impl ProducePath {
    pub(crate) fn new() -> Result<Self> {
        let directory = scratch()?;
        let broker = Launch::dev(&directory.path().join("data")).start()?;
        let runtime = Runtime::new()?;
        let address = format!("http://{}", broker.grpc());
        let channel = runtime.block_on(async {
            let channel = Channel::from_shared(address)?.connect().await?;
            let request = CreateTopicRequest {
                name: "t".to_owned(),
                partitions: 1,
                ..CreateTopicRequest::default()
            };
            AdminClient::new(channel.clone())
                .create_topic(request)
                .await?;
            anyhow::Ok(channel)
        })?;
        Ok(Self {
            runtime,
            channel,
            samples: batches()?,
            end: 0,
            broker,
            _directory: directory,
        })
    }

    fn request(&self, random: &mut Random) -> Bytes {
        let request = ProduceRequest {
            correlation_id: random.next(),
            topic: "t".to_owned(),
            partition: 0,
            acks: Acks::All.into(),
            timeout_ms: 0,
            payload: Some(Payload::Batch(mutated(&self.samples, random).into())),
        };
        let mut bytes = request.encode_to_vec();
        if random.chance(3) {
            mutate(&mut bytes, random);
        }
        bytes.into()
    }
}

impl Target for ProducePath {
    fn feed(&mut self, random: &mut Random) -> Result<()> {
        let request = self.request(random);
        let channel = self.channel.clone();
        match self.runtime.block_on(call(channel, request)) {
            Ok(answer) => {
                let response = ProduceResponse::decode(answer)?;
                if let Some(base) = response.base_offset {
                    ensure!(
                        response.duplicate || base >= self.end,
                        "offset {base} twice"
                    );
                    self.end = self.end.max(base + 1);
                }
                Ok(())
            }
            Err(status) if status.code() == Code::Unknown || status.message().is_empty() => {
                bail!(
                    "an answer that says nothing: {status}; {}",
                    self.broker.log()?
                )
            }
            Err(_) => Ok(()),
        }
    }

    /// All that was acknowledged is there, offset by offset, each batch sound.
    fn finish(mut self: Box<Self>) -> Result<()> {
        ensure!(self.end > 0, "not one input was accepted");
        let mut client = LogClient::new(self.channel);
        let mut offset = 0;
        while offset < self.end {
            let request = FetchRequest {
                topic: "t".to_owned(),
                partition: 0,
                offset,
                max_bytes: 1,
                ..FetchRequest::default()
            };
            let fetched = self.runtime.block_on(client.fetch(request))?.into_inner();
            let batch = RecordBatch::from_bytes(fetched.batches)?;
            batch.validate_records()?;
            ensure!(
                batch.header().base_offset.get() == offset,
                "a hole at {offset}"
            );
            offset = batch.header().next_offset().get();
        }
        let log = self.broker.log()?;
        ensure!(!log.contains("panicked"), "{log}");
        ensure!(!self.broker.has_ended()?, "the broker ended: {log}");
        Ok(())
    }
}

async fn call(channel: Channel, request: Bytes) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready()
        .await
        .map_err(|error| Status::unknown(error.to_string()))?;
    let path = PathAndQuery::from_static("/quipu.v1.Log/Produce");
    let answer = grpc.unary(Request::new(request), path, Raw).await?;
    Ok(answer.into_inner())
}

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(bytes.copy_to_bytes(bytes.remaining())))
    }
}
