//! The gRPC listener and its limits.

use std::{sync::Arc, time::Duration};

use quipu_model::TopicConfig;
use quipu_proto::{
    peer::v1::controller_server::ControllerServer,
    v1::{admin_server::AdminServer, groups_server::GroupsServer, log_server::LogServer},
};
use tokio::net::TcpListener;
use tonic::{Request, Status, service::interceptor::InterceptedService};

use super::{
    admin_service::AdminService, connections, groups_service::GroupsService, hold::Hold,
    log_service::LogService,
};
use crate::{
    cluster::{ControllerService, NodeHost},
    core::Core,
    peer,
};

/// The largest message taken or sent: the largest batch and what stands around it.
const MESSAGE_BYTES: usize = TopicConfig::MAX_MESSAGE_BYTES_LIMIT as usize + (64 << 10);
/// The largest admin request: a name and some settings.
const ADMIN_MESSAGE_BYTES: usize = 1 << 20;
/// What doubles a stream's speed over the default of 16 KiB.
const FRAME_BYTES: u32 = 1 << 20;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const STREAMS_PER_CONNECTION: u32 = 256;
const HEADER_LIST_BYTES: u32 = 16 << 10;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What the server needs.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) core: Arc<Core>,
    pub(crate) host: Arc<NodeHost>,
    pub(crate) listener: TcpListener,
    pub(crate) max_connections: usize,
    /// How many bytes of requests each lane of another node may have unanswered.
    pub(crate) lane_bytes: usize,
}

/// Why the services could not be put together or the listener ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("the reflection service: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the gRPC listener: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves until the core stops and the last request has ended.
///
/// # Errors
/// Where the listener fails.
pub(crate) async fn serve(server: Server) -> Result<(), ServeError> {
    let core = server.core;
    let log = LogServer::new(LogService {
        core: Arc::clone(&core),
    })
    .max_decoding_message_size(MESSAGE_BYTES)
    .max_encoding_message_size(MESSAGE_BYTES);
    let log = Hold {
        core: Arc::clone(&core),
        service: log,
    };
    let admin = AdminServer::new(AdminService {
        core: Arc::clone(&core),
    })
    .max_decoding_message_size(ADMIN_MESSAGE_BYTES);

    let groups = GroupsServer::new(GroupsService {
        core: Arc::clone(&core),
    })
    .max_decoding_message_size(ADMIN_MESSAGE_BYTES);
    let controller = ControllerServer::new(ControllerService {
        core: Arc::clone(&core),
    })
    .max_decoding_message_size(ADMIN_MESSAGE_BYTES);

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<LogServer<LogService>>().await;
    health.set_serving::<AdminServer<AdminService>>().await;
    health.set_serving::<GroupsServer<GroupsService>>().await;
    let stop = core.stop.clone();
    let stopped = async move {
        stop.cancelled().await;
        health.set_not_serving::<LogServer<LogService>>().await;
        health.set_not_serving::<AdminServer<AdminService>>().await;
        health
            .set_not_serving::<GroupsServer<GroupsService>>()
            .await;
    };

    let open = core.metrics.connections.clone();
    let incoming = connections::accept(server.listener, server.max_connections, open);
    tonic::transport::Server::builder()
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(for_clients(health_service))
        .add_service(for_clients(reflection().build_v1()?))
        .add_service(for_clients(reflection().build_v1alpha()?))
        .add_service(for_clients(admin))
        .add_service(for_clients(log))
        .add_service(for_clients(groups))
        .add_service(controller)
        .add_service(peer::service(
            server.host,
            core.stop.clone(),
            server.lane_bytes,
        ))
        .serve_with_incoming_shutdown(incoming, stopped)
        .await?;
    Ok(())
}

/// A service for which a connection needs a client's place.
fn for_clients<S>(service: S) -> InterceptedService<S, Check> {
    InterceptedService::new(service, connections::check)
}

type Check = fn(Request<()>) -> Result<Request<()>, Status>;

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(quipu_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
