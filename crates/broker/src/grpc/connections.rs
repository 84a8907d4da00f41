//! Accepting connections, and serving no more of them than the limit.
//!
//! A socket that is closed says nothing, and its client takes the broker for dead. So a connection past the limit is kept for
//! a moment, in which each of its requests is answered with the reason. Clients do not keep other nodes out: a connection of
//! theirs is told by what it says, for which any connection past the limit has that moment, and from then on it takes no
//! client's place.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    Stream,
    future::{AbortHandle, Abortable, abortable},
    stream,
};
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep},
};
use tonic::{Request, Status, transport::server::Connected};

use crate::error::{BrokerError, Reason};

/// How long a connection past the limit is kept. Its client asks anew with another one, which may find a place.
const REFUSAL: Duration = Duration::from_secs(1);
/// The most connections past the limit that are kept at a time; the oldest makes way for the next.
const MOST_REFUSED: usize = 32;
/// The most connections of other nodes: two for each, and one for each change of the metadata on its way.
const MOST_OF_NODES: usize = 512;
/// Another node pings each second in which it hears nothing. One that is not heard, nor takes anything, for so long is gone.
const SILENCE: Duration = Duration::from_secs(5);

/// An accepted connection, and the place that it takes for as long as it lives.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    seat: Arc<Seat>,
    /// When a connection past the limit ends.
    over: Option<Pin<Box<Abortable<Sleep>>>>,
    /// When bytes last went either way.
    moved_at: Instant,
    /// When it is looked whether another node fell silent.
    look: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// Whether the connection is to end by itself.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.seat.is_nodes() {
            return self.is_silent(cx);
        }
        let over = self.over.as_mut();
        over.is_some_and(|over| over.as_mut().poll(cx).is_ready())
    }

    fn is_silent(&mut self, cx: &mut Context<'_>) -> bool {
        let moved_at = self.moved_at;
        let look = self
            .look
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(moved_at + SILENCE)));
        while look.as_mut().poll(cx).is_ready() {
            if moved_at.elapsed() >= SILENCE {
                return true;
            }
            look.as_mut().reset(moved_at + SILENCE);
        }
        false
    }

    fn note<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Ok(_)) = polled {
            self.moved_at = Instant::now();
        }
        polled
    }
}

#[derive(Debug)]
enum Held {
    /// A client's place.
    Client { _place: OwnedSemaphorePermit },
    /// None: the handle ends the connection.
    Nothing(AbortHandle),
    /// Another node's place.
    Node { _place: OwnedSemaphorePermit },
}

/// A connection's place. Each request's extensions have that of its connection.
#[derive(Debug)]
pub(crate) struct Seat {
    places: Arc<Places>,
    is_nodes: AtomicBool,
    held: Mutex<Held>,
}

impl Seat {
    fn is_nodes(&self) -> bool {
        self.is_nodes.load(Ordering::Acquire)
    }

    /// Notes that the connection is another node's, which need not share the clients' limit.
    ///
    /// # Errors
    /// Where the connection has no client's place either, and those of other nodes are taken.
    pub(crate) fn give_to_node(&self) -> Result<(), BrokerError> {
        let mut held = self.held.lock();
        if let Held::Node { .. } = *held {
            return Ok(());
        }
        match (self.places.permit(&self.places.nodes), &*held) {
            (Some(place), before) => {
                self.is_nodes.store(true, Ordering::Release);
                match before {
                    Held::Nothing(over) => over.abort(),
                    _ => drop(self.places.open.dec()),
                }
                *held = Held::Node { _place: place };
                Ok(())
            }
            (None, Held::Nothing(_)) => Err(BrokerError::new(
                Reason::Overloaded,
                format!("{MOST_OF_NODES} connections of other nodes are open: retry shortly"),
            )),
            (None, _) => Ok(()),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        match self.held.get_mut() {
            Held::Client { .. } => drop(self.places.open.dec()),
            Held::Nothing(over) => over.abort(),
            Held::Node { .. } => {}
        }
    }
}

/// Lets a client's request pass, unless its connection is past the limit.
///
/// # Errors
/// For a request of a connection past the limit. Nothing was done then.
pub(super) fn check(request: Request<()>) -> Result<Request<()>, Status> {
    if let Some(seat) = request.extensions().get::<Arc<Seat>>()
        && matches!(*seat.held.lock(), Held::Nothing(_))
    {
        let limit = seat.places.limit;
        return Err(BrokerError::new(
            Reason::Overloaded,
            format!(
                "the broker serves {limit} connections, and as many are open: retry shortly, or let clients share connections"
            ),
        )
        .into());
    }
    Ok(request)
}

/// How many connections there may be.
#[derive(Debug)]
struct Places {
    /// Of clients.
    limit: usize,
    clients: Arc<Semaphore>,
    nodes: Arc<Semaphore>,
    /// Those of clients that are taken.
    open: Gauge,
}

impl Places {
    fn permit(&self, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        Arc::clone(places).try_acquire_owned().ok()
    }
}

struct Acceptor {
    listener: TcpListener,
    places: Arc<Places>,
    /// The connections past the limit, the oldest first.
    refused: VecDeque<AbortHandle>,
}

/// The listener's connections. The requests of those past the limit are for [`check`] to refuse.
pub(super) fn accept(
    listener: TcpListener,
    limit: usize,
    open: Gauge,
) -> impl Stream<Item = Result<Connection, Infallible>> {
    let places = Places {
        limit,
        clients: Arc::new(Semaphore::new(limit)),
        nodes: Arc::new(Semaphore::new(MOST_OF_NODES)),
        open,
    };
    let acceptor = Acceptor {
        listener,
        places: Arc::new(places),
        refused: VecDeque::new(),
    };
    stream::unfold(acceptor, |mut acceptor| async {
        let connection = acceptor.next().await;
        Some((Ok(connection), acceptor))
    })
}

impl Acceptor {
    async fn next(&mut self) -> Connection {
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
            if let Some(connection) = self.admit(stream, peer) {
                return connection;
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) -> Option<Connection> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "a connection ended before it began");
            return None;
        }
        let (held, over) = match self.places.permit(&self.places.clients) {
            Some(place) => {
                self.places.open.inc();
                (Held::Client { _place: place }, None)
            }
            None => {
                let (over, handle) = abortable(tokio::time::sleep(REFUSAL));
                self.refuse(handle.clone());
                (Held::Nothing(handle), Some(Box::pin(over)))
            }
        };
        let seat = Seat {
            places: Arc::clone(&self.places),
            is_nodes: AtomicBool::new(false),
            held: Mutex::new(held),
        };
        Some(Connection {
            stream,
            seat: Arc::new(seat),
            over,
            moved_at: Instant::now(),
            look: None,
        })
    }

    fn refuse(&mut self, connection: AbortHandle) {
        self.refused.retain(|before| !before.is_aborted());
        if self.refused.len() == MOST_REFUSED
            && let Some(oldest) = self.refused.pop_front()
        {
            oldest.abort();
        }
        self.refused.push_back(connection);
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Seat>;

    fn connect_info(&self) -> Arc<Seat> {
        Arc::clone(&self.seat)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(cx) {
            // An error and no end: a client that reads no answers must not keep it open.
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.note(polled)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note(polled)
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

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;

    /// Longer than anything is kept.
    const LONG: Duration = Duration::from_secs(60);

    struct Listening {
        address: SocketAddr,
        accepted: Pin<Box<dyn Stream<Item = Result<Connection, Infallible>>>>,
        open: Gauge,
    }

    impl Listening {
        async fn with_limit(limit: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let open = Gauge::default();
            Self {
                address: listener.local_addr().unwrap(),
                accepted: Box::pin(accept(listener, limit, open.clone())),
                open,
            }
        }

        /// A connection, and the far end of it.
        async fn connect(&mut self) -> (Connection, TcpStream) {
            let far = TcpStream::connect(self.address).await.unwrap();
            (self.accepted.next().await.unwrap().unwrap(), far)
        }
    }

    fn is_served(connection: &Connection) -> bool {
        let mut request = Request::new(());
        request.extensions_mut().insert(connection.connect_info());
        check(request).is_ok()
    }

    /// Whether it ends by itself, the other end being open.
    async fn ends(connection: &mut Connection) -> bool {
        let read = timeout(LONG, connection.read_u8()).await;
        read.is_ok_and(|read| read.unwrap_err().kind() == io::ErrorKind::TimedOut)
    }

    #[tokio::test(start_paused = true)]
    async fn clients_keep_no_other_node_out() {
        let mut listening = Listening::with_limit(1).await;
        let (client, _far) = listening.connect().await;
        let mut refused = Vec::new();
        for _ in 0..2 * MOST_REFUSED {
            refused.push(listening.connect().await);
        }
        let (node, _far) = listening.connect().await;
        assert!(is_served(&client) && !is_served(&node));
        node.seat.give_to_node().unwrap();
        for _ in 0..2 * MOST_REFUSED {
            refused.push(listening.connect().await);
        }
        assert!(is_served(&node), "its place is not the refused ones'");
        assert_eq!(listening.open.get(), 1);
        for (mut connection, _far) in refused {
            assert!(!is_served(&connection) && ends(&mut connection).await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_node_takes_no_clients_place() {
        let mut listening = Listening::with_limit(1).await;
        let (node, _far) = listening.connect().await;
        node.seat.give_to_node().unwrap();
        let (client, _other_far) = listening.connect().await;
        assert!(is_served(&client) && is_served(&node));
        drop((client, node));
        assert_eq!(listening.open.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn another_node_that_falls_silent_is_cut_within_seconds_and_a_client_is_not() {
        let mut listening = Listening::with_limit(2).await;
        let (mut client, _far) = listening.connect().await;
        let (mut node, _other_far) = listening.connect().await;
        node.seat.give_to_node().unwrap();
        // It takes what it is sent: so it is there.
        for _ in 0..10 {
            assert!(timeout(SILENCE / 2, node.read_u8()).await.is_err());
            node.write_u8(1).await.unwrap();
        }
        let since = Instant::now();
        assert!(ends(&mut node).await);
        assert!(since.elapsed() <= SILENCE + Duration::from_millis(10));
        assert!(!ends(&mut client).await);
    }
}
