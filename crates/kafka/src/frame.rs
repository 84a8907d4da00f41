//! Requests as they stand in a connection's bytes.

use std::{io, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use quipu_broker::{
    BrokerError,
    front::{Front, MemoryPermit},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, timeout_at},
};

use crate::{server::KafkaConfig, wire::messages::produce_request::ProduceRequest};

/// A request: what stands behind its length.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    /// The node's memory that it takes, for as long as it is at work.
    pub(crate) memory: MemoryPermit,
}

/// Why no more requests are read from a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the connection ended in the middle of a request")]
    Truncated,
    #[error("it speaks TLS, and this port does not: set security.protocol=PLAINTEXT")]
    Tls,
    #[error("it speaks HTTP, and this is the port for Kafka clients")]
    Http,
    #[error("a request says that it has {length} bytes, {most} are taken")]
    BadLength { length: i32, most: usize },
    #[error("a request was not there whole after {0:?}")]
    Slow(Duration),
    #[error("nothing was asked for {0:?}")]
    Idle(Duration),
    #[error(transparent)]
    Memory(#[from] BrokerError),
}

/// Reads requests one after the other. Between two of them it holds no memory.
#[derive(Debug)]
pub(crate) struct Frames<S> {
    stream: S,
    buffer: BytesMut,
    /// Since when the next request has been coming in, or nothing has.
    since: Instant,
    coming: Option<Coming>,
}

/// A request whose length is known.
#[derive(Debug)]
struct Coming {
    length: usize,
    memory: MemoryPermit,
}

/// A request's length, and the key and version by which it is told what length is right.
const HEAD: usize = 8;
/// What is read at once where the length is not known yet.
const FIRST_READ: usize = 2 << 10;
/// The least bytes a second at which a large request may come in.
const SLOWEST: usize = 64 << 10;
/// The largest request other than for producing: names and numbers only.
const MOST_OTHER: usize = 4 << 20;

impl<S: AsyncRead + Unpin> Frames<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            since: Instant::now(),
            coming: None,
        }
    }

    /// Notes that the connection is in use.
    pub(crate) fn touch(&mut self) {
        if self.buffer.is_empty() {
            self.since = Instant::now();
        }
    }

    /// Goes on reading after a pause, for which the client is not to blame.
    pub(crate) fn resume(&mut self) {
        self.since = Instant::now();
    }

    /// The next request; `None` at the connection's end. Nothing is lost where the future is dropped.
    pub(crate) async fn next(
        &mut self,
        front: &Front,
        config: &KafkaConfig,
    ) -> Result<Option<Frame>, FrameError> {
        loop {
            if self.coming.is_none() && self.buffer.len() >= HEAD {
                let length = check_length(&self.buffer, config.max_request_bytes)?;
                let memory = front.hold_produce(length).await?;
                self.coming = Some(Coming { length, memory });
            }
            let wanted = self.coming.as_ref().map_or(0, |coming| 4 + coming.length);
            if let Some(Coming { length, memory }) =
                self.coming.take_if(|_| self.buffer.len() >= wanted)
            {
                self.buffer.advance(4);
                let bytes = self.buffer.split_to(length).freeze();
                if self.buffer.is_empty() {
                    self.buffer = BytesMut::new();
                }
                self.since = Instant::now();
                return Ok(Some(Frame { bytes, memory }));
            }
            if !self.read_more(wanted, config).await? {
                return Ok(None);
            }
        }
    }

    /// Reads what has come; `false` at the connection's end.
    async fn read_more(&mut self, wanted: usize, config: &KafkaConfig) -> Result<bool, FrameError> {
        let quiet = self.buffer.is_empty();
        let patience = match quiet {
            true => config.idle_timeout,
            false => config.request_timeout + Duration::from_secs((wanted / SLOWEST) as u64),
        };
        let missing = wanted.saturating_sub(self.buffer.len());
        self.buffer.reserve(missing.max(FIRST_READ));
        let reading = self.stream.read_buf(&mut self.buffer);
        let read = timeout_at(self.since + patience, reading).await;
        match read {
            Ok(Ok(0)) if quiet => Ok(false),
            Ok(Ok(0)) => Err(FrameError::Truncated),
            Ok(read) => {
                read?;
                if quiet {
                    self.since = Instant::now();
                }
                Ok(true)
            }
            Err(_) if quiet => Err(FrameError::Idle(patience)),
            Err(_) => Err(FrameError::Slow(patience)),
        }
    }
}

/// The length that a request says it has, from its first bytes.
fn check_length(mut head: &[u8], most: usize) -> Result<usize, FrameError> {
    const METHODS: [&[u8]; 7] = [
        b"GET ", b"POST", b"PUT ", b"HEAD", b"OPTI", b"DELE", b"PRI ",
    ];
    if head.starts_with(&[0x16, 0x03]) {
        return Err(FrameError::Tls);
    }
    if METHODS.iter().any(|method| head.starts_with(method)) {
        return Err(FrameError::Http);
    }
    let length = head.get_i32();
    let most = match head.get_i16() {
        ProduceRequest::KEY => most,
        _ => most.min(MOST_OTHER),
    };
    match usize::try_from(length) {
        Ok(bytes) if (HEAD..=most).contains(&bytes) => Ok(bytes),
        _ => Err(FrameError::BadLength { length, most }),
    }
}
