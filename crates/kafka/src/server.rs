//! The listener.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use quipu_broker::front::Front;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

use crate::connection::Connection;

/// How Kafka clients are served.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    /// The most connections at a time; others are closed at once.
    pub max_connections: usize,
    /// The largest request, in bytes: Kafka's `socket.request.max.bytes`.
    pub max_request_bytes: usize,
    /// How many produce requests of one connection are at work at a time.
    pub max_pipelined: usize,
    /// How long a connection may ask for nothing: Kafka's `connections.max.idle.ms`.
    pub idle_timeout: Duration,
    /// How long a request may take to come in once it has begun, and a response to be taken; large ones are given more.
    pub request_timeout: Duration,
    /// Whether asking for a topic creates it where the client wishes so: Kafka's `auto.create.topics.enable`.
    pub auto_create_topics: bool,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_request_bytes: 100 << 20,
            max_pipelined: 64,
            idle_timeout: Duration::from_secs(600),
            request_timeout: Duration::from_secs(30),
            auto_create_topics: true,
        }
    }
}

/// A bound listener for Kafka clients.
#[derive(Debug)]
pub struct KafkaListener {
    listener: TcpListener,
    address: SocketAddr,
    config: KafkaConfig,
}

impl KafkaListener {
    /// Binds `address`; port 0 takes any free one.
    ///
    /// # Errors
    /// Where the address is taken.
    pub async fn bind(address: SocketAddr, config: KafkaConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            config,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `host:port` for clients where nothing better is known. A listener on all addresses is reached on this machine's loopback.
    pub fn reached_at(&self) -> String {
        if self.address.ip().is_unspecified() {
            return format!("localhost:{}", self.address.port());
        }
        self.address.to_string()
    }

    /// Serves until the node stops and what was begun then is answered.
    pub async fn serve(self, front: Front) {
        let places = Arc::new(Semaphore::new(self.config.max_connections));
        let config = Arc::new(self.config);
        let mut connections = JoinSet::new();
        let stopping = front.stopping();
        tokio::pin!(stopping);
        loop {
            let accepted = tokio::select! {
                () = &mut stopping => break,
                accepted = self.listener.accept() => accepted,
                // Only to let go of those that have ended.
                Some(_) = connections.join_next() => continue,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Most often too many open files: it stays so until a connection ends.
                    tracing::warn!(%error, "accepting a Kafka connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                tracing::warn!(%peer, "as many Kafka connections are open as are served: one was closed");
                continue;
            };
            // A client with more than one address goes on to the next.
            if !front.is_ready() {
                tracing::debug!(%peer, "a Kafka client came before the node was ready");
                continue;
            }
            let (front, config) = (front.clone(), Arc::clone(&config));
            connections.spawn(async move {
                serve_connection(stream, peer, front, config).await;
                drop(place);
            });
        }
        while connections.join_next().await.is_some() {}
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    front: Front,
    config: Arc<KafkaConfig>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "a connection ended before it began");
        return;
    }
    let (read, write) = stream.into_split();
    let connection = Connection::new(read, write, peer, front, config);
    match connection.serve().await {
        Ok(()) => {}
        Err(error) if error.is_ordinary() => {
            tracing::debug!(%peer, %error, "a Kafka connection ended");
        }
        Err(error) => tracing::warn!(%peer, %error, "a Kafka connection was closed"),
    }
}
