//! A node's Kafka listener: whatever requests come, it answers them or closes the connection, and is none the larger for it.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use quipu_kafka::try_frame;
use quipu_tests::{Broker, Launch, scratch};
use tempfile::TempDir;

use crate::{Target, kafka::input, mutate::Random};

/// How many requests go down one connection, one behind the other.
const TOGETHER: usize = 64;
/// Of what is no request, one in so many is sent: each costs a connection.
const REFUSED_SHARE: usize = 64;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What all inputs together may make the node take, in bytes.
const MEMORY_BOUND: u64 = 64 << 20;
/// Fetch, JoinGroup and SyncGroup wait as long as they are told to; CreateTopics, DeleteTopics and CreatePartitions change what
/// the node has to do.
const LEFT_OUT: [[u8; 2]; 6] = [[0, 1], [0, 11], [0, 14], [0, 19], [0, 20], [0, 37]];

pub(crate) struct Listener {
    broker: Broker,
    /// Requests that wait until there are enough for a connection, and their number.
    pending: (Vec<u8>, usize),
    /// How many requests were sent, and answers came.
    sent: usize,
    answered: usize,
    memory_before: u64,
    _directory: TempDir,
}

impl Listener {
    pub(crate) fn new() -> Result<Self> {
        let directory = scratch()?;
        let quiet = Launch::dev(&directory.path().join("data"))
            .argument("--log")
            .argument("error");
        let broker = quiet.start()?;
        // The topic that most inputs name.
        broker.succeed(&["topic", "create", "ab", "--partitions", "4"], b"")?;
        Ok(Self {
            memory_before: broker.anonymous_bytes()?,
            broker,
            pending: (Vec::new(), 0),
            sent: 0,
            answered: 0,
            _directory: directory,
        })
    }

    /// Sends requests and waits until all are answered or the connection is closed.
    fn exchange(&mut self, requests: &[u8], count: usize) -> Result<()> {
        self.sent += count;
        let mut stream = TcpStream::connect(self.broker.kafka())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answers = Vec::new();
        let exchanged = stream
            .write_all(requests)
            .and_then(|()| stream.shutdown(Shutdown::Write))
            .and_then(|()| stream.read_to_end(&mut answers));
        if let Err(error) = exchanged {
            let hangs = error.kind() == io::ErrorKind::WouldBlock;
            ensure!(!hangs, "neither answered nor closed in {PATIENCE:?}");
        }
        self.answered += count_frames(&answers);
        Ok(())
    }

    fn send_pending(&mut self) -> Result<()> {
        let (requests, count) = std::mem::take(&mut self.pending);
        self.exchange(&requests, count)
    }
}

impl Target for Listener {
    fn feed(&mut self, random: &mut Random) -> Result<()> {
        let frame = input(random);
        if LEFT_OUT.iter().any(|key| frame.starts_with(key)) {
            return Ok(());
        }
        let mut request = u32::try_from(frame.len())?.to_be_bytes().to_vec();
        request.extend_from_slice(&frame);
        if try_frame(frame.into()).is_none() {
            return match random.chance(REFUSED_SHARE) {
                true => self.exchange(&request, 1),
                false => Ok(()),
            };
        }
        self.pending.0.append(&mut request);
        self.pending.1 += 1;
        match self.pending.1 {
            TOGETHER => self.send_pending(),
            _ => Ok(()),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.send_pending()?;
        ensure!(self.answered > 0, "not one request was answered");
        let log = self.broker.log()?;
        ensure!(!log.contains("panicked"), "{log}");
        ensure!(!self.broker.has_ended()?, "the broker ended: {log}");
        let memory = self.broker.anonymous_bytes().context("the broker")?;
        let grown = memory.saturating_sub(self.memory_before);
        println!(
            "{} requests were sent and {} answered, the node took {} MB more than before",
            self.sent,
            self.answered,
            grown / 1_000_000
        );
        ensure!(
            grown < MEMORY_BOUND,
            "the node took {grown} bytes more than before"
        );
        Ok(())
    }
}

/// How many frames stand one behind the other, each behind its length.
fn count_frames(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some((length, rest)) = bytes.split_first_chunk()
        && let Some(rest) = rest.get(u32::from_be_bytes(*length) as usize..)
    {
        bytes = rest;
        count += 1;
    }
    count
}
