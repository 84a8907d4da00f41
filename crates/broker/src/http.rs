//! Metrics and health over HTTP.

use std::{io, sync::Arc};

use axum::{Router, extract::State, routing::get};
use http::{StatusCode, header};
use parking_lot::Mutex;
use prometheus_client::{encoding::text, registry::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::core::Core;

#[derive(Debug)]
struct Shared {
    core: Arc<Core>,
    registry: Mutex<Registry>,
}

/// Serves `/metrics`, `/healthz` and `/readyz` until `stop` is cancelled.
///
/// # Errors
/// Where the listener fails.
pub(crate) async fn serve(
    listener: TcpListener,
    core: Arc<Core>,
    registry: Registry,
    stop: CancellationToken,
) -> io::Result<()> {
    let shared = Arc::new(Shared {
        core,
        registry: Mutex::new(registry),
    });
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shared);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

type TextReply = (StatusCode, [(header::HeaderName, &'static str); 1], String);

fn reply(status: StatusCode, content_type: &'static str, body: String) -> TextReply {
    (status, [(header::CONTENT_TYPE, content_type)], body)
}

const PLAIN: &str = "text/plain; charset=utf-8";

async fn metrics(State(shared): State<Arc<Shared>>) -> TextReply {
    let core = &shared.core;
    let topics = core.table.snapshot();
    let running = topics.values().flat_map(|topic| topic.running());
    core.metrics
        .count_partitions(running.map(|running| &running.partition));
    core.standing.look(core);
    let mut body = String::new();
    match text::encode(&mut body, &shared.registry.lock()) {
        Ok(()) => reply(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            body,
        ),
        Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, error.to_string()),
    }
}

/// The process lives and its disk takes writes.
async fn healthz(State(shared): State<Arc<Shared>>) -> TextReply {
    match shared.core.store.failure() {
        None => reply(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        Some(failure) => reply(
            StatusCode::SERVICE_UNAVAILABLE,
            PLAIN,
            format!("{failure}\n"),
        ),
    }
}

/// The node serves: it does not stop, the metadata has a leader, every partition's start has ended.
async fn readyz(State(shared): State<Arc<Shared>>) -> TextReply {
    let core = &shared.core;
    let starting: usize = {
        let topics = core.table.snapshot();
        topics.values().map(|topic| topic.unstarted().count()).sum()
    };
    let trouble = if core.stop.is_cancelled() {
        Some("shutting down".to_owned())
    } else if let Some(failure) = core.store.failure() {
        Some(failure.to_string())
    } else if *core.removed.borrow() {
        Some("the node was removed from the cluster: it may be shut down".to_owned())
    } else if core.metadata_leader().is_none() {
        Some("the metadata partition has no known leader".to_owned())
    } else if !*core.ready.borrow() {
        Some("the node is not registered with its cluster yet".to_owned())
    } else if starting > 0 {
        Some(format!("{starting} partitions are starting"))
    } else {
        None
    };
    match trouble {
        None => reply(StatusCode::OK, PLAIN, "ready\n".to_owned()),
        Some(trouble) => reply(
            StatusCode::SERVICE_UNAVAILABLE,
            PLAIN,
            format!("{trouble}\n"),
        ),
    }
}
