//! The bare gRPC limit: a server in a process of its own that takes and gives the same messages and does nothing with them.

use std::{env, process::Stdio};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use quipu_proto::v1::{
    FetchRequest, FetchResponse, FetchStreamRequest, InitProducerIdRequest, InitProducerIdResponse,
    ListOffsetsRequest, ListOffsetsResponse, ProduceRequest, ProduceResponse,
    log_server::{Log, LogServer},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    batches,
    load::{self, CONNECTION_WINDOW, Client, MAX_FRAME, STREAM_WINDOW},
};

/// The argument that makes the driver become the server.
pub const SERVER_ARGUMENT: &str = "--bare-server";

/// The server's process; it ends when this is dropped.
#[derive(Debug)]
pub struct Bare {
    child: Child,
    address: String,
}

impl Bare {
    /// Starts this program again as the server.
    ///
    /// # Errors
    /// Where it can't be started.
    pub async fn start() -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .arg(SERVER_ARGUMENT)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take().context("its output is piped")?;
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address).await?;
        Ok(Self {
            child,
            address: address.trim().to_owned(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// A connection of its own, set as those to a broker are.
    ///
    /// # Errors
    /// Where the server is gone.
    pub async fn connect(&self) -> Result<Client> {
        load::connect(&self.address).await
    }
}

/// Serves until killed; prints the address first.
///
/// # Errors
/// Where it can't listen.
pub async fn serve() -> Result<()> {
    // The server's own setting does not reach connections that are handed to it.
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    println!("{}", incoming.local_addr()?);
    let batch = batches::largest(1024, 1 << 20)?;
    Server::builder()
        .max_frame_size(MAX_FRAME)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(LogServer::new(BareLog { batch }))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

struct BareLog {
    batch: Bytes,
}

#[tonic::async_trait]
impl Log for BareLog {
    type ProduceStreamStream = BoxStream<'static, Result<ProduceResponse, Status>>;
    type FetchStreamStream = BoxStream<'static, Result<FetchResponse, Status>>;

    async fn produce_stream(
        &self,
        requests: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let answers = requests.into_inner().map_ok(|request| ProduceResponse {
            correlation_id: request.correlation_id,
            base_offset: Some(0),
            ..ProduceResponse::default()
        });
        Ok(Response::new(answers.boxed()))
    }

    /// Sends as many batches as the request's end offset says.
    async fn fetch_stream(
        &self,
        request: Request<FetchStreamRequest>,
    ) -> Result<Response<Self::FetchStreamStream>, Status> {
        let messages = request.into_inner().end_offset.unwrap_or_default();
        let batches = self.batch.clone();
        let answers = stream::iter(0..messages).map(move |_| {
            Ok(FetchResponse {
                batches: batches.clone(),
                ..FetchResponse::default()
            })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn produce(
        &self,
        _: Request<ProduceRequest>,
    ) -> Result<Response<ProduceResponse>, Status> {
        Err(not_measured())
    }

    async fn fetch(&self, _: Request<FetchRequest>) -> Result<Response<FetchResponse>, Status> {
        Err(not_measured())
    }

    async fn list_offsets(
        &self,
        _: Request<ListOffsetsRequest>,
    ) -> Result<Response<ListOffsetsResponse>, Status> {
        Err(not_measured())
    }

    async fn init_producer_id(
        &self,
        _: Request<InitProducerIdRequest>,
    ) -> Result<Response<InitProducerIdResponse>, Status> {
        Err(not_measured())
    }
}

fn not_measured() -> Status {
    Status::unimplemented("the bare server only streams")
}
