//! Sending batches that the caller numbers, so that they are stored once although its process dies.

use std::{sync::Arc, time::Duration};

use quipu_model::{
    Offset, ProducerEpoch, ProducerId, Sequence,
    batch::{BatchBuilder, Compression},
};
use quipu_proto::v1::{self, ErrorReason, ProduceRequest, produce_request::Payload};
use tokio::time::{Instant, sleep};

use super::{Record, now};
use crate::{
    Outcome, Result,
    backoff::backoff,
    cluster::{Cluster, FIRST_PAUSE, LAST_PAUSE, log_client},
    error::Error,
};

/// How long a batch may take, retries included.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);
/// After so many records the numbers in batches begin again.
const SEQUENCES: u64 = 1 << 31;

/// Stores batches in one partition, each once, whoever sends it how often: also another process, after this one was killed.
///
/// A [`Producer`](crate::Producer) knows only while it lives what it has sent. Here the caller keeps the producer's id and the
/// number of each batch's first record, durably and before it sends the batch: after a restart it sends again, just as they were,
/// those of which it does not know what became of them. The partition takes a batch only where its number is the next, and takes
/// none twice, so that a batch of the killed process which is still on its way does no harm either.
///
/// One batch is sent at a time: the next one only once the one before it is stored. The partition knows the producer for as long
/// as it keeps its last batch; whoever stays away for longer than the topic's retention may store one twice.
#[derive(Clone, Debug)]
pub struct NumberedProducer {
    cluster: Arc<Cluster>,
    topic: Box<str>,
    partition: u32,
    id: ProducerId,
}

impl NumberedProducer {
    pub(crate) fn new(cluster: Arc<Cluster>, topic: &str, partition: u32, id: ProducerId) -> Self {
        Self {
            cluster,
            topic: topic.into(),
            partition,
            id,
        }
    }

    /// Sends records as one batch, again and again if need be, until it is on disk on a majority of the partition's replicas.
    /// `first` is the number of the first record: how many this producer sent to this partition before. Gives the first record's
    /// offset; `None` where the broker only remembers that it has the batch.
    ///
    /// # Errors
    /// Where there are no records, one is for another topic or partition, or the batch is refused: one with
    /// [`ErrorReason::OutOfOrderSequence`] was not numbered as the next. Where it was not acknowledged within two minutes;
    /// the outcome says whether it may be stored all the same.
    pub async fn send(&self, first: u64, records: &[Record<'_>]) -> Result<Option<Offset>> {
        let request = ProduceRequest {
            topic: self.topic.as_ref().to_owned(),
            partition: self.partition,
            acks: v1::Acks::All.into(),
            payload: Some(Payload::Batch(self.batch(first, records)?)),
            ..ProduceRequest::default()
        };
        let give_up_at = Instant::now() + DELIVERY_TIMEOUT;
        let (mut asked, mut attempt, mut open) = (None, 0, false);
        loop {
            let error = match self.try_once(&request, asked).await {
                Ok(offset) => return Ok(offset),
                Err(error) if error.is(ErrorReason::DuplicateSequence) => return Ok(None),
                Err(error) => error,
            };
            asked = Some(Instant::now());
            open |= error.outcome() == Outcome::Indefinite;
            attempt += 1;
            let wait = backoff(attempt, FIRST_PAUSE, LAST_PAUSE);
            if !error.is_retryable() || Instant::now() + wait > give_up_at {
                return Err(if open { error.left_open() } else { error });
            }
            sleep(wait).await;
        }
    }

    fn batch(&self, first: u64, records: &[Record<'_>]) -> Result<bytes::Bytes> {
        let mut batch = BatchBuilder::new(Compression::None);
        for record in records {
            if *record.topic != *self.topic || record.partition.is_some_and(|p| p != self.partition)
            {
                return Err(Error::invalid(format_args!(
                    "a record is not for {}/{}, whose producer this is",
                    self.topic, self.partition
                )));
            }
            let timestamp = record.timestamp.unwrap_or_else(now);
            batch.append(timestamp, record.key, record.value, record.headers);
        }
        // Less than the number of sequences, which are the 31 bits of a positive number.
        let sequence = Sequence::new((first % SEQUENCES) as i32);
        batch.set_producer(self.id, ProducerEpoch::new(0), sequence);
        let built = batch.build().map_err(Error::invalid)?;
        Ok(built.into_bytes())
    }

    async fn try_once(
        &self,
        request: &ProduceRequest,
        asked: Option<Instant>,
    ) -> Result<Option<Offset>> {
        let leader = self
            .cluster
            .await_leader(&self.topic, self.partition, asked);
        let leader = leader.await?.address;
        let request = request.clone();
        let produce = |channel| async move { log_client(channel).produce(request).await };
        let stored = self.cluster.call_at(&leader, produce).await?;
        Ok(stored.base_offset.map(Offset::new))
    }
}
