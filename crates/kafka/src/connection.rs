//! One client's connection: requests are begun and answered in their order.
//!
//! Produce requests are at work together, so that those behind one another share a sync; any other request begins when all
//! before it are answered, and is answered before the next one is read, as with Kafka. Of a client that is past its quota nothing
//! is read for as long as it was told to wait.

use std::{collections::VecDeque, future, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Either},
    stream::FuturesOrdered,
};
use quipu_broker::front::{Front, MemoryPermit};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    dispatch::{Client, Request, RequestError},
    frame::{Frame, FrameError, Frames},
    server::KafkaConfig,
};

/// How long a request waits for memory that it needs beside its frame.
const EXTRA_PATIENCE: Duration = Duration::from_secs(1);

/// What a request comes to.
#[derive(Debug)]
pub(crate) enum Reply {
    Frame {
        parts: Vec<Bytes>,
        /// What the parts take of the node's memory, until they are sent.
        memory: Option<MemoryPermit>,
    },
    /// The client waits for none.
    None,
    /// There is no answer that it would understand.
    Close,
}

/// Why a connection was closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("there is no memory for a request that names so much")]
    NoMemory,
    #[error("an unacknowledged request failed")]
    Unacknowledged,
    #[error("answers were not taken: {0}")]
    Write(io::Error),
}

impl ConnectionError {
    /// Whether clients do so in the ordinary course of things.
    pub(crate) fn is_ordinary(&self) -> bool {
        matches!(
            self,
            Self::Frame(FrameError::Io(_) | FrameError::Idle(_))
                | Self::Write(_)
                | Self::Unacknowledged
        )
    }
}

/// What a request comes to, with the memory of its frame where that is held as long.
type Done = (Reply, Option<MemoryPermit>);

/// A request at work.
type Work = BoxFuture<'static, Done>;

/// A connection.
pub(crate) struct Connection<R, W> {
    frames: Frames<R>,
    write: W,
    front: Front,
    config: Arc<KafkaConfig>,
    client: Arc<Client>,
    at_work: FuturesOrdered<Either<future::Ready<Done>, Work>>,
    /// Read, but not to begin before all at work are answered.
    waiting: Option<(Request, MemoryPermit)>,
    /// Whether what is at work lets nothing begin beside it.
    alone: bool,
    /// Whether nothing is read for now, since the client is past its quota.
    muted: bool,
    /// Whether no more is read.
    ended: bool,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Connection<R, W> {
    pub(crate) fn new(
        read: R,
        write: W,
        peer: SocketAddr,
        front: Front,
        config: Arc<KafkaConfig>,
    ) -> Self {
        Self {
            frames: Frames::new(read),
            write,
            client: Arc::new(Client::new(peer, front.clone(), Arc::clone(&config))),
            front,
            config,
            at_work: FuturesOrdered::new(),
            waiting: None,
            alone: false,
            muted: false,
            ended: false,
        }
    }

    /// Serves until the client leaves or the node stops.
    ///
    /// # Errors
    /// Where the connection had to be closed.
    pub(crate) async fn serve(mut self) -> Result<(), ConnectionError> {
        let stopping = self.front.stopping();
        tokio::pin!(stopping);
        loop {
            if self.at_work.is_empty() {
                self.alone = false;
                match self.waiting.take() {
                    Some((request, memory)) => self.begin(request, memory),
                    None if self.ended => return Ok(()),
                    None => {}
                }
            }
            let muted_until = self.client.muted_until();
            if muted_until.is_none() && self.muted {
                self.frames.resume();
            }
            self.muted = muted_until.is_some();
            let reads = !self.ended
                && !self.alone
                && !self.muted
                && self.waiting.is_none()
                && self.at_work.len() < self.config.max_pipelined;
            tokio::select! {
                Some(first) = self.at_work.next() => self.answer(first).await?,
                frame = self.frames.next(&self.front, &self.config), if reads => match frame {
                    Ok(Some(frame)) => self.take_in(frame).await?,
                    Ok(None) => self.ended = true,
                    // It waits for answers, that is all.
                    Err(FrameError::Idle(_)) if !self.at_work.is_empty() => self.frames.touch(),
                    Err(error) => return Err(error.into()),
                },
                () = sleep_until(muted_until.unwrap_or_else(Instant::now)), if self.muted => {}
                () = &mut stopping, if !self.ended => self.ended = true,
            }
        }
    }

    async fn take_in(&mut self, frame: Frame) -> Result<(), ConnectionError> {
        let request = Request::decode(frame.bytes, &self.client)?;
        let mut memory = frame.memory;
        if let Some(extra) = request.extra_memory() {
            // It holds memory already: it must not wait for long for what others like it hold.
            let held = timeout(EXTRA_PATIENCE, self.front.hold_produce(extra)).await;
            let held = held.map_err(|_| ConnectionError::NoMemory)?;
            memory.merge(held.map_err(FrameError::from)?);
        }
        if request.is_pipelined() || self.at_work.is_empty() {
            self.begin(request, memory);
        } else {
            self.waiting = Some((request, memory));
        }
        Ok(())
    }

    /// Begins a request: its first poll gives it its place before those that follow.
    fn begin(&mut self, request: Request, memory: MemoryPermit) {
        self.alone = !request.is_pipelined();
        let client = Arc::clone(&self.client);
        // Those who wait for others would hold what producers need; what is kept of them is counted elsewhere.
        let memory = (!request.waits_for_others()).then_some(memory);
        let mut work: Work = Box::pin(async move { (request.handle(&client).await, memory) });
        let polled = (&mut work).now_or_never();
        self.at_work.push_back(match polled {
            Some(done) => Either::Left(future::ready(done)),
            None => Either::Right(work),
        });
    }

    /// Sends an answer and those behind it that are there already.
    async fn answer(&mut self, first: Done) -> Result<(), ConnectionError> {
        let mut parts = VecDeque::new();
        let mut held = Vec::new();
        let mut next = Some(first);
        while let Some((reply, request_memory)) = next {
            drop(request_memory);
            match reply {
                Reply::Frame {
                    parts: more,
                    memory,
                } => {
                    parts.extend(more);
                    held.push(memory);
                }
                Reply::None => {}
                Reply::Close => return Err(ConnectionError::Unacknowledged),
            }
            next = self.ready();
        }
        let written = write_all(&mut self.write, parts, self.config.request_timeout).await;
        written.map_err(ConnectionError::Write)?;
        self.frames.touch();
        Ok(())
    }

    fn ready(&mut self) -> Option<Done> {
        let polled = self.at_work.next().now_or_never();
        polled.flatten()
    }
}

/// Writes all parts. Each must be taken, at least in part, within `patience`.
async fn write_all(
    write: &mut (impl AsyncWrite + Unpin),
    mut parts: VecDeque<Bytes>,
    patience: Duration,
) -> io::Result<()> {
    /// The most that one system call is given.
    const SLICES: usize = 64;
    while !parts.is_empty() {
        let slices: Vec<io::IoSlice<'_>> = parts
            .iter()
            .take(SLICES)
            .map(|part| io::IoSlice::new(part))
            .collect();
        let written = timeout(patience, write.write_vectored(&slices)).await;
        let mut written = written.map_err(|_| io::ErrorKind::TimedOut)??;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(part) = parts.front_mut() {
            let taken = written.min(part.len());
            let _ = part.split_to(taken);
            written -= taken;
            if !part.is_empty() {
                break;
            }
            parts.pop_front();
        }
    }
    Ok(())
}
