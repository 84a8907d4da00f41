//! The task that reads one partition: one fetch stream after the other, each from where the last one got to.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use quipu_model::{Offset, RecordBatch, batch::split_batches};
use quipu_proto::v1::{FetchResponse, FetchStreamRequest};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tonic::transport::Channel;

use super::{ConsumerConfig, OutOfRange};
use crate::{
    OffsetAt, Result,
    admin::list_offset,
    backoff::backoff,
    cluster::{Cluster, log_client},
    error::{Error, ErrorReason},
    leaders::SILENCE,
    topics::Led,
};

/// Streams that share one connection: servers bound them, at 200 or fewer by default, and one more would wait for ever.
const STREAMS_PER_CONNECTION: usize = 100;

/// A consumer's own connections: what it leaves unread fills their flow-control windows, and holds up nobody else. Each
/// stream holds its connection, so that the count of its holders is that of its streams.
pub(super) type Channels = Mutex<HashMap<Box<str>, Vec<Arc<Channel>>>>;

/// What a fetcher has to tell.
#[derive(Debug)]
pub(super) enum Fetched {
    Batches(Vec<RecordBatch>),
    /// The position was out of range: reading goes on there.
    Moved(Offset),
}

pub(super) struct Fetcher {
    pub(super) cluster: Arc<Cluster>,
    pub(super) channels: Arc<Channels>,
    pub(super) config: ConsumerConfig,
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    /// The next offset to read.
    pub(super) position: Offset,
    /// The offset to stop before.
    pub(super) end: Option<Offset>,
}

/// Why a stream of batches is over, when it is not an error.
enum Ended {
    /// Everything asked for was read, or nobody reads any more.
    Finished,
    /// The broker closed it: go on with another.
    Closed,
}

impl Fetcher {
    /// Reads until the end, or until `batches` is dropped; an error that trying again does not cure is the last message.
    pub(super) async fn run(mut self, batches: mpsc::Sender<Result<Fetched>>) {
        let mut attempt = 0;
        let mut leader: Option<Box<str>> = None;
        let mut not_before = None;
        while !self.is_finished() && !batches.is_closed() {
            let began_at = self.position;
            let error = match self
                .read(&batches, leader.take(), not_before, attempt)
                .await
            {
                Ok(Ended::Finished) => return,
                Ok(Ended::Closed) => None,
                Err(error) => Some(error),
            };
            let handled = match error {
                None => Ok(()),
                Some(error) if error.is(ErrorReason::OffsetOutOfRange) => {
                    self.reset(&batches, error).await
                }
                Some(error) if error.is_retryable() => {
                    tracing::debug!(topic = %self.topic, partition = self.partition, %error, "fetching again");
                    leader = error.leader().map(Into::into);
                    Ok(())
                }
                Some(error) => Err(error),
            };
            if let Err(error) = handled {
                // Nobody reads any more.
                let _ = batches.send(Err(error)).await;
                return;
            }
            not_before = Some(Instant::now());
            attempt = if self.position > began_at {
                1
            } else {
                attempt + 1
            };
            let (first, most) = (self.config.retry_backoff, self.config.retry_backoff_max);
            tokio::select! {
                () = sleep(backoff(attempt, first, most)) => {}
                () = batches.closed() => return,
            }
        }
    }

    fn is_finished(&self) -> bool {
        self.end.is_some_and(|end| self.position >= end)
    }

    /// Reads one stream.
    async fn read(
        &mut self,
        batches: &mpsc::Sender<Result<Fetched>>,
        leader: Option<Box<str>>,
        not_before: Option<Instant>,
        attempt: u32,
    ) -> Result<Ended> {
        let address = match leader {
            Some(leader) => leader,
            None => {
                let (topic, partition) = (&self.topic, self.partition);
                let reader = self.cluster.reader(topic, partition, not_before, attempt);
                reader.await?
            }
        };
        let failed = |status: tonic::Status| Error::from_status(&address, &status);
        let request = FetchStreamRequest {
            topic: self.topic.as_ref().to_owned(),
            partition: self.partition,
            offset: self.position.get(),
            max_bytes: self.config.fetch_bytes,
            end_offset: self.end.map(Offset::get),
        };
        let channel = self.channel(&address)?;
        let mut client = log_client(Channel::clone(&channel));
        let mut stream = tokio::select! {
            stream = client.fetch_stream(self.cluster.named(request)) => stream.map_err(failed)?.into_inner(),
            led = self.newer_leader(&address) => return Err(Error::replaced(&address, led.address)),
            () = batches.closed() => return Ok(Ended::Finished),
        };
        loop {
            let message = tokio::select! {
                message = stream.message() => message.map_err(failed)?,
                () = batches.closed() => return Ok(Ended::Finished),
            };
            let Some(message) = message else {
                // The broker ends a bounded stream when it is through, even where the last offsets hold no record.
                return Ok(match self.end {
                    Some(_) => Ended::Finished,
                    None => Ended::Closed,
                });
            };
            let throttle = Duration::from_millis(message.throttle_time_ms.into());
            let fetched = self.take(message)?;
            if !fetched.is_empty() {
                let fetched = Ok(Fetched::Batches(fetched));
                if batches.send(fetched).await.is_err() {
                    return Ok(Ended::Finished);
                }
            }
            if self.is_finished() {
                return Ok(Ended::Finished);
            }
            // Past its quota: the next message is not asked for before, from whatever broker.
            tokio::select! {
                () = sleep(throttle), if !throttle.is_zero() => {}
                () = batches.closed(), if !throttle.is_zero() => return Ok(Ended::Finished),
                else => {}
            }
        }
    }

    /// Another leader than a node that does not answer for a while. A stream that is open may rightly be silent: there the
    /// connection's keep-alive finds out, and the node ends it itself where it leads no more.
    async fn newer_leader(&self, silent: &str) -> Led {
        sleep(SILENCE).await;
        let (topic, partition) = (&self.topic, self.partition);
        let epoch = self.cluster.known_epoch(topic, partition).await;
        let newer = self
            .cluster
            .await_newer_leader(topic, partition, silent, epoch);
        newer.await
    }

    /// A message's batches, checked; moves the position behind them.
    fn take(&mut self, message: FetchResponse) -> Result<Vec<RecordBatch>> {
        if let Some(error) = message.error {
            return Err(Error::from_proto(error));
        }
        let mut fetched = Vec::new();
        for batch in split_batches(message.batches) {
            let batch = batch.map_err(|error| {
                Error::malformed(format_args!(
                    "{}/{} at offset {}: the broker sent a bad batch: {error}",
                    self.topic, self.partition, self.position
                ))
            })?;
            let next = batch.header().next_offset();
            if next > self.position {
                self.position = next;
                fetched.push(batch);
            }
        }
        Ok(fetched)
    }

    /// The position is not kept: does what the configuration says.
    async fn reset(&mut self, batches: &mpsc::Sender<Result<Fetched>>, error: Error) -> Result<()> {
        let at = match self.config.out_of_range {
            OutOfRange::Fail => return Err(error),
            OutOfRange::Earliest => OffsetAt::Earliest,
            OutOfRange::Latest => OffsetAt::Latest,
        };
        let found = list_offset(&self.cluster, &self.topic, self.partition, at).await;
        match found {
            Ok(found) => {
                tracing::warn!(
                    topic = %self.topic, partition = self.partition, from = %self.position, to = %found.offset,
                    "offset out of range: going on elsewhere"
                );
                self.position = found.offset;
                // Nobody reads any more: the caller finds out by itself.
                let _ = batches.send(Ok(Fetched::Moved(found.offset))).await;
                Ok(())
            }
            // The next stream fails the same way, and this is tried again.
            Err(error) if error.is_retryable() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn channel(&self, address: &str) -> Result<Arc<Channel>> {
        let mut channels = self.channels.lock();
        let channels = channels.entry(address.into()).or_default();
        // One holder is the map.
        let has_room =
            |channel: &&Arc<Channel>| Arc::strong_count(channel) <= STREAMS_PER_CONNECTION;
        if let Some(channel) = channels.iter().find(has_room) {
            return Ok(Arc::clone(channel));
        }
        let channel = Arc::new(self.cluster.dial(address)?);
        channels.push(Arc::clone(&channel));
        Ok(channel)
    }
}
