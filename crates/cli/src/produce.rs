//! `quipu produce`.

use std::{
    collections::VecDeque,
    io::{self, Read},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Bytes, BytesMut};
use clap::Args;
use futures::FutureExt;
use quipu_client::{Delivery, Producer, ProducerConfig, Record};
use tokio::sync::mpsc;

use crate::{
    connect::ConnectArgs,
    values::{AcksArg, CompressionArg, parse_bytes, parse_pair},
};

/// How much of standard input is read at a time, at most.
const BLOCK_BYTES: usize = 1 << 20;
/// The longest line: what the largest batch has room for.
const MAX_LINE_BYTES: usize = 31 << 20;
/// Records that wait for their acknowledgement, at most; their bytes are bounded by the producer's buffer.
const MAX_UNACKNOWLEDGED: usize = 1 << 18;

#[derive(Debug, Args)]
pub(crate) struct ProduceArgs {
    topic: String,
    /// Write to this partition only; otherwise the key chooses, and without a key batch after batch goes around
    #[arg(long, value_name = "P")]
    partition: Option<u32>,
    /// What stands between key and value in a line; a line without it has no key
    #[arg(long, value_name = "TEXT")]
    key_separator: Option<String>,
    /// A header for every record; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    header: Vec<(String, String)>,
    /// When the broker acknowledges
    #[arg(long, value_enum, default_value = "all")]
    acks: AcksArg,
    #[arg(long, value_enum, default_value = "none")]
    compression: CompressionArg,
    /// The size at which a batch is sent without waiting for more
    #[arg(long, value_name = "BYTES", default_value = "64KiB", value_parser = parse_bytes)]
    batch_bytes: usize,
    /// How long a record may wait for its acknowledgement, through every retry, before it fails
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// What it calls itself: quotas are of this name
    #[arg(long, value_name = "ID", default_value = "quipu-produce")]
    client_id: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(args: ProduceArgs) -> Result<()> {
    if args.key_separator.as_deref() == Some("") {
        bail!("--key-separator is empty: give the text between key and value");
    }
    let client = args.connect.connect_as(&args.client_id).await?;
    let producer = client
        .producer(ProducerConfig {
            acks: args.acks.into(),
            compression: args.compression.into(),
            batch_bytes: args.batch_bytes,
            delivery_timeout: Duration::from_secs(args.timeout),
            ..ProducerConfig::default()
        })
        .await?;
    // Fails at once where there is no such topic, whatever comes on standard input.
    client.admin().describe_topic(&args.topic).await?;
    let mut tally = Tally::default();
    let read = send_lines(&args, &producer, &mut tally).await;
    // Failures show in the deliveries, one by one.
    let _ = producer.close().await;
    tally.settle_all().await;
    tally.report(read)
}

/// Sends line after line until standard input ends, an interrupt comes or a record fails.
async fn send_lines(args: &ProduceArgs, producer: &Producer, tally: &mut Tally) -> Result<()> {
    let headers = args.header.iter();
    let headers: Vec<_> = headers
        .map(|(key, value)| (key.as_str(), Some(value.as_bytes())))
        .collect();
    let separator = args
        .key_separator
        .as_deref()
        .map(memchr::memmem::Finder::new);
    let mut blocks = read_blocks();
    loop {
        let block = tokio::select! {
            block = blocks.recv() => block,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(block) = block else {
            return Ok(());
        };
        for line in lines(&block?) {
            let mut record = Record::new(&args.topic).headers(&headers);
            record = match separator.as_ref().and_then(|s| Some((s, s.find(line)?))) {
                Some((separator, at)) => record
                    .key(&line[..at])
                    .value(&line[at + separator.needle().len()..]),
                None => record.value(line),
            };
            if let Some(partition) = args.partition {
                record = record.partition(partition);
            }
            tally.take(producer.send(record).await?).await;
        }
        tally.settle_ready();
        if tally.first_failure.is_some() {
            return Ok(());
        }
    }
}

/// What became of the records.
#[derive(Debug, Default)]
struct Tally {
    waiting: VecDeque<Delivery>,
    acknowledged: u64,
    failed: u64,
    first_failure: Option<quipu_client::Error>,
}

impl Tally {
    async fn take(&mut self, delivery: Delivery) {
        self.waiting.push_back(delivery);
        if self.waiting.len() >= MAX_UNACKNOWLEDGED {
            self.settle_ready();
            if self.waiting.len() >= MAX_UNACKNOWLEDGED
                && let Some(oldest) = self.waiting.pop_front()
            {
                let settled = oldest.await;
                self.count(settled);
            }
        }
    }

    fn settle_ready(&mut self) {
        while let Some(oldest) = self.waiting.front_mut() {
            let Some(settled) = oldest.now_or_never() else {
                return;
            };
            self.waiting.pop_front();
            self.count(settled);
        }
    }

    async fn settle_all(&mut self) {
        while let Some(oldest) = self.waiting.pop_front() {
            let settled = oldest.await;
            self.count(settled);
        }
    }

    fn count(&mut self, settled: quipu_client::Result<quipu_client::RecordMetadata>) {
        match settled {
            Ok(_) => self.acknowledged += 1,
            Err(error) => {
                self.failed += 1;
                self.first_failure.get_or_insert(error);
            }
        }
    }

    fn report(self, read: Result<()>) -> Result<()> {
        let acknowledged = self.acknowledged;
        match (self.first_failure, read) {
            (None, Ok(())) => {
                eprintln!("{acknowledged} records acknowledged");
                Ok(())
            }
            (Some(failure), _) => {
                let failed = self.failed;
                Err(anyhow!("{failure}"))
                    .with_context(|| format!("{acknowledged} records acknowledged, {failed} not"))
            }
            (None, Err(error)) => {
                Err(error).with_context(|| format!("{acknowledged} records acknowledged, then"))
            }
        }
    }
}

/// Reads standard input on a thread of its own, in blocks of whole lines; a last line needs no end.
fn read_blocks() -> mpsc::Receiver<Result<Bytes>> {
    let (sender, blocks) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut lines = LineBlocks::new(io::stdin().lock());
        // Ends with the input, or when nobody wants more.
        while let Some(block) = lines.next_block().transpose() {
            if sender.blocking_send(block).is_err() {
                return;
            }
        }
    });
    blocks
}

#[derive(Debug)]
struct LineBlocks<R> {
    input: R,
    /// The beginning of a line whose end was not read yet.
    rest: BytesMut,
    ended: bool,
}

impl<R: Read> LineBlocks<R> {
    fn new(input: R) -> Self {
        Self {
            input,
            rest: BytesMut::new(),
            ended: false,
        }
    }

    /// All whole lines that are there once at least one is.
    fn next_block(&mut self) -> Result<Option<Bytes>> {
        let mut searched = 0;
        while !self.ended {
            let start = self.rest.len();
            if start > MAX_LINE_BYTES {
                self.ended = true;
                bail!("a line is longer than {MAX_LINE_BYTES} bytes: a record must fit one batch");
            }
            self.rest.resize(start + BLOCK_BYTES, 0);
            let read = read_retrying(&mut self.input, &mut self.rest[start..]);
            self.rest.truncate(start + read.as_ref().unwrap_or(&0));
            self.ended = !matches!(read, Ok(1..));
            read.context("reading standard input")?;
            if let Some(last) = memchr::memrchr(b'\n', &self.rest[searched..]) {
                return Ok(Some(self.rest.split_to(searched + last + 1).freeze()));
            }
            searched = self.rest.len();
        }
        let last = self.rest.split().freeze();
        Ok((!last.is_empty()).then_some(last))
    }
}

fn read_retrying(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// The lines of a block, without their ends.
fn lines(block: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = block;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        Some(line)
    })
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};

    use super::{LineBlocks, lines};

    /// Hands out a few bytes at a time.
    struct Trickle<'a>(&'a [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            let (now, later) = self.0.split_at(count);
            buffer[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    fn split(input: &[u8], step: usize) -> Vec<Vec<u8>> {
        let mut blocks = LineBlocks::new(Trickle(input, step));
        let mut found = Vec::new();
        while let Some(block) = blocks.next_block().unwrap() {
            found.extend(lines(&block).map(<[u8]>::to_vec));
        }
        found
    }

    #[test]
    fn every_line_is_a_record_however_input_comes() {
        for step in [1, 3, 1000] {
            assert_eq!(
                split(b"first\n\nthird\n", step),
                [&b"first"[..], b"", b"third"]
            );
            assert_eq!(split(b"a\r\nno end", step), [&b"a\r"[..], b"no end"]);
            assert!(split(b"", step).is_empty());
            assert_eq!(split(b"\n", step), [b""]);
        }
    }
}
