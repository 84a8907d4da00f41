//! gRPC's framing under tonic's codec, so that a batch's bytes go from the sender's memory to the socket, and from the socket
//! to the log, without a copy on the way.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use prost::{
    Message,
    encoding::{self, DecodeContext, WireType},
};
use quipu_model::TopicConfig;
use quipu_proto::peer::v1::{
    Answer, Answers, Append, Copied, Entry, Request, Requests, answer, copy_answer, request::Kind,
};
use tonic::{Code, Status, body::Body};

/// The largest message taken or sent: the largest batch, and what stands around and before it.
pub(super) const MESSAGE_BYTES: usize =
    TopicConfig::MAX_MESSAGE_BYTES_LIMIT as usize + 2 * super::TARGET_BYTES;
/// The most elements of a list in a message: an element of two bytes takes a hundred in memory.
pub(super) const MOST_ELEMENTS: usize = 1 << 16;
/// A flag for compression, and the length in 32 bits.
const PREFIX_BYTES: usize = 5;
/// Fewer bytes are cheaper copied than handed on by themselves.
const SHARED_FROM: usize = 4096;
/// A larger batch goes in slices, so that the sender sees how the socket takes them.
const SLICE_BYTES: usize = 256 << 10;

/// Why no more messages come.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("the connection broke: {0}")]
    Lost(String),
    #[error("{0}")]
    Ended(String),
    /// It does not want to speak with this node.
    #[error("{0}")]
    Refused(String),
    #[error("what it sent cannot be read: {0}")]
    Rubbish(String),
}

/// Why a peer ended a stream, as it says in the headers or trailers; `None` where it ended in order.
pub(super) fn refusal(headers: &HeaderMap) -> Option<StreamError> {
    let status = Status::from_header_map(headers)?;
    match (status.code(), status.message()) {
        (Code::Ok, _) => None,
        (Code::PermissionDenied, message) => Some(StreamError::Refused(message.to_owned())),
        (code, "") => Some(StreamError::Ended(code.description().to_owned())),
        (_, message) => Some(StreamError::Ended(message.to_owned())),
    }
}

/// A message that can come from a peer.
pub(super) trait Incoming: Message + Default {
    /// Where it has lists: the tags that lead to them.
    const LISTS: &'static [&'static [u32]];
}

impl Incoming for Requests {
    /// Requests, their entries, and groups led.
    const LISTS: &'static [&'static [u32]] = &[&[2], &[2, 4, 4], &[3]];
}

impl Incoming for Answers {
    const LISTS: &'static [&'static [u32]] = &[&[2]];
}

/// Bytes of a message, in pieces of which none is empty.
#[derive(Clone, Debug, Default)]
struct Pieces {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        self.pieces.push_back(piece);
    }

    /// Takes the first `len` bytes, of which there must be as many.
    fn split_to(&mut self, len: usize) -> Self {
        let mut taken = Self::default();
        while taken.len < len {
            let Some(mut first) = self.pieces.pop_front() else {
                break;
            };
            let missing = len - taken.len;
            if first.len() > missing {
                self.pieces.push_front(first.split_off(missing));
            }
            taken.push(first);
        }
        self.len -= taken.len;
        taken
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut count: usize) {
        self.len -= count;
        while let Some(first) = self.pieces.front_mut().filter(|_| count > 0) {
            let step = count.min(first.len());
            first.advance(step);
            count -= step;
            if first.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        match self.pieces.front_mut() {
            Some(first) if first.len() > len => {
                self.len -= len;
                first.split_to(len)
            }
            _ => {
                let mut taken = self.split_to(len);
                if taken.pieces.len() == 1 {
                    return taken.pieces.pop_front().unwrap_or_default();
                }
                let mut joined = BytesMut::with_capacity(taken.len);
                joined.extend(taken.pieces);
                joined.freeze()
            }
        }
    }
}

/// Bytes as they come.
#[derive(Debug, Default)]
struct Gathered {
    pieces: Pieces,
    /// Small pieces, put together; behind all of `pieces`.
    tail: BytesMut,
}

impl Gathered {
    fn len(&self) -> usize {
        self.pieces.len + self.tail.len()
    }

    fn push(&mut self, piece: Bytes) {
        if piece.len() < SHARED_FROM {
            self.tail.extend_from_slice(&piece);
        } else {
            self.settle();
            self.pieces.push(piece);
        }
    }

    fn settle(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
    }

    fn split_to(&mut self, len: usize) -> Pieces {
        self.settle();
        self.pieces.split_to(len)
    }
}

/// Counts the elements of the list that `path` leads to, without decoding them.
fn count(mut message: Pieces, path: &[u32]) -> Result<usize, StreamError> {
    let mut counted = 0;
    while message.has_remaining() {
        let (tag, wire_type) = encoding::decode_key(&mut message).map_err(rubbish)?;
        if path.first() == Some(&tag) && wire_type == WireType::LengthDelimited {
            let len = encoding::decode_varint(&mut message).map_err(rubbish)?;
            if len > message.remaining() as u64 {
                return Err(rubbish("a field longer than its message"));
            }
            let element = message.split_to(len as usize);
            counted += match &path[1..] {
                [] => 1,
                deeper => count(element, deeper)?,
            };
        } else {
            encoding::skip_field(wire_type, tag, &mut message, DecodeContext::default())
                .map_err(rubbish)?;
        }
    }
    Ok(counted)
}

/// The messages of a body.
#[derive(Debug)]
pub(super) struct Messages {
    body: Body,
    gathered: Gathered,
}

impl Messages {
    pub(super) fn new(body: Body) -> Self {
        Self {
            body,
            gathered: Gathered::default(),
        }
    }

    /// The next message; `None` where the peer ended the stream in order.
    ///
    /// # Errors
    /// Where the connection broke, the peer ended the stream with an error, or sent what is not a message.
    pub(super) async fn next<M: Incoming>(&mut self) -> Result<Option<M>, StreamError> {
        if !self.fill(PREFIX_BYTES).await? {
            return Ok(None);
        }
        let mut prefix = self.gathered.split_to(PREFIX_BYTES);
        let (flag, len) = (prefix.get_u8(), prefix.get_u32() as usize);
        if flag != 0 {
            return Err(rubbish(format_args!("a message with flag {flag}")));
        }
        if len > MESSAGE_BYTES {
            return Err(rubbish(format_args!(
                "a message of {len} bytes, where the most is {MESSAGE_BYTES}"
            )));
        }
        if len > 0 && !self.fill(len).await? {
            return Err(rubbish("it ended within a message"));
        }
        let message = self.gathered.split_to(len);
        for path in M::LISTS {
            let elements = count(message.clone(), path)?;
            if elements > MOST_ELEMENTS {
                return Err(rubbish(format_args!("a list of {elements} elements")));
            }
        }
        Ok(Some(M::decode(message).map_err(rubbish)?))
    }

    /// Reads until `len` bytes are there; `false` where the stream ended, in order, before the first of them.
    async fn fill(&mut self, len: usize) -> Result<bool, StreamError> {
        while self.gathered.len() < len {
            let Some(frame) = self.body.frame().await else {
                return self.ended();
            };
            let frame = frame.map_err(|status| StreamError::Lost(super::causes(&status)))?;
            match frame.into_data() {
                Ok(data) => self.gathered.push(data),
                Err(frame) => {
                    let refusal = frame.trailers_ref().and_then(refusal);
                    return refusal.map_or_else(|| self.ended(), Err);
                }
            }
        }
        Ok(true)
    }

    fn ended(&self) -> Result<bool, StreamError> {
        if self.gathered.len() == 0 {
            Ok(false)
        } else {
            Err(rubbish("it ended within a message"))
        }
    }
}

fn rubbish(what: impl std::fmt::Display) -> StreamError {
    StreamError::Rubbish(what.to_string())
}

/// A message as it goes to the socket.
#[derive(Debug, Default)]
struct Chain {
    pieces: VecDeque<Bytes>,
    /// What stands between batches.
    open: BytesMut,
}

/// Requests with their frame around them; batches are shared.
pub(super) fn encode_requests(message: &Requests) -> VecDeque<Bytes> {
    let mut chain = Chain::default();
    chain.prefix(message.encoded_len());
    if let Some(hello) = &message.hello {
        encoding::message::encode(1, hello, &mut chain.open);
    }
    for request in &message.requests {
        chain.request(request);
    }
    encoding::message::encode_repeated(3, &message.led, &mut chain.open);
    chain.finish()
}

/// Answers with their frame around them; batches are shared.
pub(super) fn encode_answers(message: &Answers) -> VecDeque<Bytes> {
    let mut chain = Chain::default();
    chain.prefix(message.encoded_len());
    if let Some(hello) = &message.hello {
        encoding::message::encode(1, hello, &mut chain.open);
    }
    for answer in &message.answers {
        chain.answer(answer);
    }
    chain.finish()
}

fn copied(answer: &Answer) -> Option<&Copied> {
    match &answer.kind {
        Some(answer::Kind::Copy(copy)) => match &copy.outcome {
            Some(copy_answer::Outcome::Copied(copied)) => Some(copied),
            _ => None,
        },
        _ => None,
    }
}

/// The batches that an answer carries, if it is one that does.
pub(super) fn copied_bytes(answer: &Answer) -> Option<&Bytes> {
    copied(answer).map(|copied| &copied.batches)
}

impl Chain {
    fn prefix(&mut self, len: usize) {
        self.open.put_u8(0);
        // `MESSAGE_BYTES` bounds what is sent.
        self.open.put_u32(len as u32);
    }

    fn head(&mut self, tag: u32, len: usize) {
        encoding::encode_key(tag, WireType::LengthDelimited, &mut self.open);
        encoding::encode_varint(len as u64, &mut self.open);
    }

    /// A message's fields may be encoded one after the other: each level without its last field, then that one.
    fn request(&mut self, request: &Request) {
        let Some(Kind::Append(append)) = &request.kind else {
            encoding::message::encode(2, request, &mut self.open);
            return;
        };
        self.head(2, request.encoded_len());
        let around = Request {
            kind: None,
            group: request.group.clone(),
            ..*request
        };
        around.encode_raw(&mut self.open);
        self.head(4, append.encoded_len());
        let around = Append {
            entries: Vec::new(),
            ..*append
        };
        around.encode_raw(&mut self.open);
        for entry in &append.entries {
            self.head(4, entry.encoded_len());
            let around = Entry {
                data: Bytes::new(),
                ..*entry
            };
            around.encode_raw(&mut self.open);
            if !entry.data.is_empty() {
                self.head(4, entry.data.len());
                self.share(entry.data.clone());
            }
        }
    }

    fn answer(&mut self, answer: &Answer) {
        let Some(copied) = copied(answer) else {
            encoding::message::encode(2, answer, &mut self.open);
            return;
        };
        self.head(2, answer.encoded_len());
        let around = Answer {
            kind: None,
            ..*answer
        };
        around.encode_raw(&mut self.open);
        let copied_len = copied.encoded_len();
        let outcome_len = 1 + encoding::encoded_len_varint(copied_len as u64) + copied_len;
        self.head(9, outcome_len);
        self.head(1, copied_len);
        let around = Copied {
            batches: Bytes::new(),
            ..*copied
        };
        around.encode_raw(&mut self.open);
        if !copied.batches.is_empty() {
            self.head(2, copied.batches.len());
            self.share(copied.batches.clone());
        }
    }

    fn share(&mut self, mut bytes: Bytes) {
        if bytes.len() < SHARED_FROM {
            self.open.extend_from_slice(&bytes);
            return;
        }
        self.pieces.push_back(self.open.split().freeze());
        while bytes.len() > SLICE_BYTES {
            self.pieces.push_back(bytes.split_to(SLICE_BYTES));
        }
        self.pieces.push_back(bytes);
    }

    fn finish(mut self) -> VecDeque<Bytes> {
        if !self.open.is_empty() {
            self.pieces.push_back(self.open.freeze());
        }
        self.pieces
    }
}
