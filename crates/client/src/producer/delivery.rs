//! What `send` hands back: a batch's outcome, shared by its records.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use quipu_model::{Offset, TimestampMs};

use crate::Result;

/// Where a record was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordMetadata {
    /// The partition.
    pub partition: u32,
    /// The record's offset; `None` with [`Acks::None`](crate::Acks::None), or where the broker only remembers that it
    /// has the record.
    pub offset: Option<Offset>,
    /// The record's timestamp.
    pub timestamp: TimestampMs,
}

/// The offset of a batch's first record, as far as the broker told it.
pub(crate) type BatchResult = Result<Option<Offset>>;

/// A batch's outcome to be.
#[derive(Debug, Default)]
pub(crate) struct BatchState {
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    result: Option<BatchResult>,
    waiting: Vec<Waker>,
}

impl BatchState {
    /// Settles the outcome for every record of the batch.
    pub(crate) fn settle(&self, result: BatchResult) {
        let waiting = {
            let mut progress = self.progress.lock();
            assert!(progress.result.is_none(), "a batch is settled once");
            progress.result = Some(result);
            std::mem::take(&mut progress.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// The outcome; until there is one, remembers to wake `cx`, in the place `slot` that this caller got at first.
    fn poll(&self, cx: &Context<'_>, slot: &mut Option<usize>) -> Poll<BatchResult> {
        let mut progress = self.progress.lock();
        if let Some(result) = &progress.result {
            return Poll::Ready(result.clone());
        }
        match slot.and_then(|slot| progress.waiting.get_mut(slot)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                *slot = Some(progress.waiting.len());
                progress.waiting.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }

    /// Waits for the outcome.
    pub(crate) async fn settled(&self) -> BatchResult {
        let mut slot = None;
        std::future::poll_fn(|cx| self.poll(cx, &mut slot)).await
    }
}

/// A record's way to the broker: a future of where it was stored, or of why it was not. Dropping it changes nothing.
#[derive(Debug)]
#[must_use = "a record's failure shows only here"]
pub struct Delivery {
    batch: Arc<BatchState>,
    partition: u32,
    /// The record's place in its batch.
    index: u32,
    timestamp: TimestampMs,
    slot: Option<usize>,
}

impl Delivery {
    pub(crate) fn new(
        batch: Arc<BatchState>,
        partition: u32,
        index: u32,
        timestamp: TimestampMs,
    ) -> Self {
        Self {
            batch,
            partition,
            index,
            timestamp,
            slot: None,
        }
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.batch
            .poll(cx, &mut this.slot)
            .map_ok(|base| RecordMetadata {
                partition: this.partition,
                offset: base.map(|base| base.plus(u64::from(this.index))),
                timestamp: this.timestamp,
            })
    }
}
