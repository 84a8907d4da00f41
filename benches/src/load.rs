//! Load on a gRPC log server, a broker or the bare one: prebuilt batches, so that the client's own work is the wire's.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, stream};
use hdrhistogram::Histogram;
use quipu_model::batch::BatchHeader;
use quipu_proto::v1::{
    Acks, FetchStreamRequest, ProduceRequest, ProduceResponse, log_client::LogClient,
    produce_request::Payload,
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

/// A connection's client.
pub type Client = LogClient<Channel>;

/// Bytes; the receiver of a stream sets it, and it matters most of all settings.
pub const MAX_FRAME: u32 = 1 << 20;
pub const STREAM_WINDOW: u32 = 2 << 20;
pub const CONNECTION_WINDOW: u32 = 4 << 20;

/// What one producer sends.
#[derive(Clone, Debug)]
pub struct Load {
    pub topic: String,
    /// Batches go to the partitions in turn.
    pub partitions: u32,
    pub batch: Bytes,
    pub batches: u64,
    /// Batches sent and not yet acknowledged, at most.
    pub in_flight: usize,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Bytes of batches.
    pub bytes: u64,
    pub records: u64,
    pub took: Duration,
    /// The longest time without an acknowledgement (or a message, reading).
    pub longest_gap: Duration,
}

impl Outcome {
    /// Gigabytes (10⁹) a second.
    pub fn gb_per_second(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.took.as_secs_f64()
    }

    /// Records a second.
    pub fn records_per_second(&self) -> f64 {
        self.records as f64 / self.took.as_secs_f64()
    }
}

/// Connects with the settings that make streams fast.
///
/// # Errors
/// Where nobody listens.
pub async fn connect(address: &str) -> Result<Client> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .max_frame_size(MAX_FRAME)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .tcp_nodelay(true)
        .connect()
        .await?;
    Ok(LogClient::new(channel).max_decoding_message_size(64 << 20))
}

fn request(load: &Load, number: u64) -> ProduceRequest {
    ProduceRequest {
        correlation_id: number,
        topic: load.topic.clone(),
        partition: (number % u64::from(load.partitions)) as u32,
        acks: Acks::All.into(),
        timeout_ms: 0,
        payload: Some(Payload::Batch(load.batch.clone())),
    }
}

fn accepted(response: &ProduceResponse) -> Result<()> {
    match &response.error {
        None => Ok(()),
        Some(error) => anyhow::bail!("refused: {}", error.message),
    }
}

/// Sends a load through one stream and waits for every acknowledgement.
///
/// # Errors
/// Where a batch is refused or the stream breaks.
pub async fn produce(mut client: Client, load: Load) -> Result<Outcome> {
    let window = Arc::new(Semaphore::new(load.in_flight));
    let records = u64::from(BatchHeader::parse(&load.batch)?.record_count) * load.batches;
    let bytes = load.batch.len() as u64 * load.batches;
    let batches = load.batches;
    let sender_window = Arc::clone(&window);
    let requests = stream::unfold((0, load), move |(number, load)| {
        let window = Arc::clone(&sender_window);
        async move {
            if number == load.batches {
                return None;
            }
            window.acquire_owned().await.ok()?.forget();
            Some((request(&load, number), (number + 1, load)))
        }
    });
    let start = Instant::now();
    let mut responses = client.produce_stream(requests).await?.into_inner();
    let mut last = start;
    let mut longest_gap = Duration::ZERO;
    for _ in 0..batches {
        let response = responses
            .message()
            .await?
            .context("the stream ended early")?;
        accepted(&response)?;
        window.add_permits(1);
        let now = Instant::now();
        longest_gap = longest_gap.max(now - last);
        last = now;
    }
    Ok(Outcome {
        bytes,
        records,
        took: last - start,
        longest_gap,
    })
}

/// Sends a batch `rounds` times, each when the one before is acknowledged: times in microseconds.
///
/// # Errors
/// As [`produce`].
pub async fn round_trips(
    mut client: Client,
    topic: &str,
    batch: Bytes,
    rounds: u64,
) -> Result<Histogram<u64>> {
    let load = Load {
        topic: topic.to_owned(),
        partitions: 1,
        batch,
        batches: rounds,
        in_flight: 1,
    };
    let (send, receive) = mpsc::channel(1);
    // A broker may answer with headers only once there is something to answer.
    send.send(request(&load, 0)).await?;
    let requests = ReceiverStream::new(receive);
    let mut responses = client.produce_stream(requests).await?.into_inner();
    accepted(&next(&mut responses).await?)?;
    let mut times = Histogram::new(3)?;
    for number in 1..rounds {
        let request = request(&load, number);
        let start = Instant::now();
        send.send(request).await?;
        accepted(&next(&mut responses).await?)?;
        times.record(start.elapsed().as_micros() as u64)?;
    }
    Ok(times)
}

/// Sends one batch to a partition.
///
/// # Errors
/// Where it is refused.
pub async fn once(
    client: &mut Client,
    (topic, partition): (&str, u32),
    batch: Bytes,
) -> Result<()> {
    let request = ProduceRequest {
        topic: topic.to_owned(),
        partition,
        acks: Acks::All.into(),
        payload: Some(Payload::Batch(batch)),
        ..ProduceRequest::default()
    };
    accepted(&client.produce(request).await?.into_inner())
}

/// How often batches are sent, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub every: Duration,
    pub length: Duration,
}

/// Sends batches at a pace, whether or not the broker keeps up: the times from when each was sent to its acknowledgement, in
/// microseconds.
///
/// # Errors
/// As [`produce`].
pub async fn paced(mut client: Client, load: Load, pace: Pace) -> Result<Histogram<u64>> {
    let (send, receive) = mpsc::channel(load.in_flight);
    let (note, noted) = std::sync::mpsc::channel();
    let sending = tokio::spawn(async move {
        let start = Instant::now();
        let mut ticks = tokio::time::interval(pace.every);
        for number in 0.. {
            if ticks.tick().await - start >= pace.length {
                break;
            }
            // Whoever takes them may have failed.
            let _ = note.send(Instant::now());
            if send.send(request(&load, number)).await.is_err() {
                break;
            }
        }
    });
    let requests = ReceiverStream::new(receive);
    let mut responses = client.produce_stream(requests).await?.into_inner();
    let mut times = Histogram::new(3)?;
    while let Some(response) = responses.message().await? {
        accepted(&response)?;
        let sent = noted.recv().context("an answer to nothing")?;
        times.record(sent.elapsed().as_micros() as u64)?;
    }
    sending.await?;
    Ok(times)
}

async fn next(responses: &mut Streaming<ProduceResponse>) -> Result<ProduceResponse> {
    responses.message().await?.context("the stream ended early")
}

/// Reads a partition from the start up to `end` (for the bare server: that many messages), and checks that no offset lacks.
///
/// # Errors
/// Where the stream fails or offsets lack.
pub async fn replay(
    mut client: Client,
    topic: &str,
    partition: u32,
    end: u64,
    check_offsets: bool,
) -> Result<Outcome> {
    let request = FetchStreamRequest {
        topic: topic.to_owned(),
        partition,
        offset: 0,
        max_bytes: 1 << 20,
        end_offset: Some(end),
    };
    let start = Instant::now();
    let mut outcome = Outcome::default();
    let mut messages = client.fetch_stream(request).await?.into_inner();
    let mut last = start;
    while let Some(message) = messages.next().await {
        let message = message?;
        if let Some(error) = message.error {
            anyhow::bail!("refused: {}", error.message);
        }
        let mut rest = &message.batches[..];
        while !rest.is_empty() {
            let header = BatchHeader::parse(rest)?;
            let gap = check_offsets && header.base_offset.get() != outcome.records;
            ensure!(!gap, "offset {} is missing", outcome.records);
            outcome.records += u64::from(header.record_count);
            rest = &rest[header.total_len()..];
        }
        outcome.bytes += message.batches.len() as u64;
        let now = Instant::now();
        outcome.longest_gap = outcome.longest_gap.max(now - last);
        last = now;
    }
    ensure!(
        !check_offsets || outcome.records == end,
        "the end is missing"
    );
    outcome.took = last - start;
    Ok(outcome)
}
