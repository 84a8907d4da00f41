//! Accepting connections, and serving no more of them than the limit.
//!
//! A socket that is closed says nothing, and its client takes the broker for dead. So a connection past the limit is kept for
//! a moment, in which each of its requests is answered with the reason.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, stream};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tonic::{Request, Status, transport::server::Connected};

use crate::error::{BrokerError, Reason};

/// How long a connection past the limit is kept. Its client asks anew with another one, which may find a place.
const REFUSAL: Duration = Duration::from_secs(1);
/// The most connections past the limit that are kept at a time; others are closed at once.
const MOST_REFUSED: usize = 32;

/// An accepted connection, and the place that it takes for as long as it lives.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    place: Place,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Place {
    /// Within the limit.
    Served { open: Gauge },
    /// Past the limit, which is so many.
    Refused { limit: usize, over: Pin<Box<Sleep>> },
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Place::Served { open } = &self.place {
            open.dec();
        }
    }
}

/// What a request's extensions tell of its connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Admission {
    Served,
    Refused { limit: usize },
}

/// Lets the requests of served connections pass.
///
/// # Errors
/// For a request of a connection past the limit. Nothing was done then.
pub(super) fn check(request: Request<()>) -> Result<Request<()>, Status> {
    match request.extensions().get() {
        Some(Admission::Refused { limit }) => Err(BrokerError::new(
            Reason::Overloaded,
            format!(
                "the broker serves {limit} connections, and as many are open: retry shortly, or let clients share connections"
            ),
        )
        .into()),
        _ => Ok(request),
    }
}

struct Acceptor {
    listener: TcpListener,
    limit: usize,
    served: Arc<Semaphore>,
    refused: Arc<Semaphore>,
    open: Gauge,
}

/// The listener's connections. The requests of those past the limit are for [`check`] to refuse.
pub(super) fn accept(
    listener: TcpListener,
    limit: usize,
    open: Gauge,
) -> impl Stream<Item = Result<Connection, Infallible>> {
    let acceptor = Acceptor {
        listener,
        limit,
        served: Arc::new(Semaphore::new(limit)),
        refused: Arc::new(Semaphore::new(MOST_REFUSED)),
        open,
    };
    stream::unfold(acceptor, |acceptor| async {
        let connection = acceptor.next().await;
        Some((Ok(connection), acceptor))
    })
}

impl Acceptor {
    async fn next(&self) -> Connection {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Most often too many open files: it stays so until a connection ends.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match self.admit(stream, peer) {
                Some(connection) => return connection,
                None => tracing::debug!(%peer, "too many connections: one was closed"),
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) -> Option<Connection> {
        let permit_of = |places: &Arc<Semaphore>| Arc::clone(places).try_acquire_owned().ok();
        let served = permit_of(&self.served);
        let within = served.is_some();
        let permit = served.or_else(|| permit_of(&self.refused))?;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "a connection ended before it began");
            return None;
        }
        let place = if within {
            self.open.inc();
            Place::Served {
                open: self.open.clone(),
            }
        } else {
            Place::Refused {
                limit: self.limit,
                over: Box::pin(tokio::time::sleep(REFUSAL)),
            }
        };
        Some(Connection {
            stream,
            place,
            _permit: permit,
        })
    }
}

impl Connected for Connection {
    type ConnectInfo = Admission;

    fn connect_info(&self) -> Admission {
        match self.place {
            Place::Served { .. } => Admission::Served,
            Place::Refused { limit, .. } => Admission::Refused { limit },
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Place::Refused { over, .. } = &mut self.place
            && over.as_mut().poll(cx).is_ready()
        {
            // An error and no end: a client that reads no answers must not keep it open.
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
