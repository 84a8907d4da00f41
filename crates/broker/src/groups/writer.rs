//! Stores what a coordinator decided, in its order, and gives its answers when that is done.

use std::{collections::VecDeque, fmt, mem, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use quipu_model::{
    LeaderEpoch, TimestampMs,
    batch::{BatchBuilder, Compression},
};
use quipu_replication::{AppendError, Partition};

use super::records::Stored;
use crate::error::BrokerError;

/// What is done with an answer once all before it is stored, or once it is known that it is not.
pub(super) type Answer = Box<dyn FnOnce(Result<(), BrokerError>) + Send>;

type Write = BoxFuture<'static, Result<(), AppendError>>;

/// Writes in the one epoch in which its coordinator's state was loaded: in any other, nothing is written.
pub(super) struct Writer {
    partition: Partition,
    epoch: LeaderEpoch,
    open: BatchBuilder,
    /// What waits for the open batch.
    waiting: Vec<Answer>,
    writes: FuturesOrdered<Write>,
    /// What waits for each of the writes.
    answers: VecDeque<Vec<Answer>>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("epoch", &self.epoch)
            .field("writes", &self.answers.len())
            .finish_non_exhaustive()
    }
}

impl Writer {
    /// Batches on their way to the disk at a time: while one is synced, the next ones gather.
    const MOST_WRITES: usize = 4;
    /// A batch that is this large is not added to.
    const BATCH_BYTES: usize = 512 << 10;
    const TIMEOUT: Duration = Duration::from_secs(10);

    pub(super) fn new(partition: Partition, epoch: LeaderEpoch) -> Self {
        Self {
            partition,
            epoch,
            open: BatchBuilder::new(Compression::None),
            waiting: Vec::new(),
            writes: FuturesOrdered::new(),
            answers: VecDeque::new(),
        }
    }

    /// Whether more is taken in at present.
    pub(super) fn has_room(&self) -> bool {
        self.answers.len() < Self::MOST_WRITES || self.open.len_bytes() < Self::BATCH_BYTES
    }

    /// Takes in what an event came to: records, and an answer that waits until they, and all before them, are stored.
    pub(super) fn take(&mut self, records: &[Stored], now: TimestampMs, answer: Option<Answer>) {
        for record in records {
            let (key, value) = record.encode();
            self.open.append(now, Some(&key), value.as_deref(), &[]);
        }
        let Some(answer) = answer else { return };
        if !self.open.is_empty() {
            self.waiting.push(answer);
        } else if let Some(last) = self.answers.back_mut() {
            last.push(answer);
        } else {
            answer(Ok(()));
        }
    }

    /// Begins to write what was taken in, where there is something and not too much on its way already.
    ///
    /// # Errors
    /// Where it makes no batch.
    pub(super) fn flush(&mut self) -> Result<(), BrokerError> {
        if self.open.is_empty() || self.answers.len() >= Self::MOST_WRITES {
            return Ok(());
        }
        let open = mem::replace(&mut self.open, BatchBuilder::new(Compression::None));
        let batch = open.build()?;
        let (partition, epoch) = (self.partition.clone(), self.epoch);
        let write = async move {
            partition
                .append_in(epoch, batch, Self::TIMEOUT)
                .await
                .map(drop)
        };
        self.writes.push_back(write.boxed());
        self.answers.push_back(mem::take(&mut self.waiting));
        Ok(())
    }

    /// Waits until the next write is done, and gives its answers. For ever where nothing is written.
    ///
    /// # Errors
    /// Where it was not stored for certain: then neither is what comes after it.
    pub(super) async fn done(&mut self) -> Result<(), AppendError> {
        match self.writes.next().await {
            Some(Ok(())) => {
                for answer in self.answers.pop_front().unwrap_or_default() {
                    answer(Ok(()));
                }
                Ok(())
            }
            Some(Err(error)) => Err(error),
            None => std::future::pending().await,
        }
    }

    /// Gives this error as the answer to all that is not stored yet.
    pub(super) fn fail(self, error: &BrokerError) {
        for answer in self.answers.into_iter().flatten().chain(self.waiting) {
            answer(Err(error.clone()));
        }
    }
}
