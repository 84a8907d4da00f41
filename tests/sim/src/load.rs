//! Idempotent producers: each sends numbered records to its partition, a few batches at once, and sends a batch again until it
//! is acknowledged.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use quipu_model::{
    NodeId, Offset, PartitionKey, ProducerEpoch, ProducerId, RecordBatch, Sequence, Term,
    TimestampMs,
    batch::{BatchBuilder, Compression},
};
use quipu_replication::{Acks, AppendError};
use tokio::time::timeout;

use crate::{
    clock::EPOCH_MS,
    cluster::Cluster,
    invariants::{Acknowledgement, Violation, violated},
    keyed,
    luck::Luck,
    mutants::Mutant,
    trace::note,
};

/// The numbers of a batch's records, as their values tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbered {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Numbered {
    /// Reads the values, each of which must be what its producer sent under that number.
    pub(crate) fn of(batch: &RecordBatch) -> Result<Self, Violation> {
        let producer = batch.header().producer_id;
        let mut numbers = None;
        let spoilt = |detail: &dyn std::fmt::Debug| {
            let at = batch.header().base_offset;
            violated("unchanged", format!("a batch at {at} holds {detail:?}"))
        };
        let records = match batch.records() {
            Ok(records) => records,
            Err(error) => return spoilt(&error),
        };
        for record in records {
            let record = match record {
                Ok(record) => record,
                Err(error) => return spoilt(&error),
            };
            let written = record.value.as_deref().unwrap_or_default();
            let number = written
                .first_chunk()
                .map(|bytes| u64::from_be_bytes(*bytes));
            let due = numbers.map(|numbers: Self| numbers.last + 1);
            let Some(number) = number.filter(|number| due.is_none_or(|due| due == *number)) else {
                return spoilt(&record);
            };
            if written != value(producer, number) {
                return spoilt(&record);
            }
            let first = numbers.map_or(number, |numbers| numbers.first);
            numbers = Some(Self {
                first,
                last: number,
            });
        }
        match numbers {
            Some(numbers) => Ok(numbers),
            None => spoilt(&"nothing"),
        }
    }
}

/// What a producer sends under a number: that, and up to a few hundred bytes that follow from it.
pub(crate) fn value(producer: ProducerId, number: u64) -> Vec<u8> {
    let mut luck = Luck::stream(number, producer.get() as u64);
    let len = match luck.within(0..20) {
        0 => luck.within(0..4000),
        _ => luck.within(0..200),
    };
    let mut value = number.to_be_bytes().to_vec();
    value.resize(8 + len as usize, luck.next() as u8);
    value
}

/// Whether producers go on, and how far they got.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) stop: AtomicBool,
    /// Batches acknowledged.
    pub(crate) batches: AtomicU64,
}

/// How often a producer that is to be quiet looks whether it still is.
const QUIET_STEP: Duration = Duration::from_millis(50);
/// As many batches of a producer as a partition remembers.
const MOST_AT_ONCE: u64 = 5;

pub(crate) struct Producer {
    pub(crate) key: PartitionKey,
    pub(crate) id: ProducerId,
    pub(crate) cluster: Cluster,
    pub(crate) luck: Luck,
    pub(crate) progress: Arc<Progress>,
}

/// A batch that is not acknowledged yet.
#[derive(Clone, Copy, Debug)]
struct Unsent {
    /// Counts batches.
    ordinal: u64,
    first: u64,
    records: u32,
    sequence: i32,
}

/// How an attempt ended.
#[derive(Debug)]
enum Outcome {
    Acknowledged(Offset, Term),
    /// Somebody else may lead.
    Elsewhere(Option<NodeId>),
    /// It may have been appended.
    Unknown,
    Refused(AppendError),
}

impl Producer {
    pub(crate) async fn run(mut self) {
        let (mut ordinal, mut number, mut sequence) = (0, 0, 0);
        let mut node = *self.luck.pick(&self.cluster.nodes);
        let mut unsent = VecDeque::new();
        loop {
            while unsent.is_empty() && self.is_quiet() {
                tokio::time::sleep(QUIET_STEP).await;
            }
            let stop = self.progress.stop.load(Ordering::Relaxed);
            let at_once = self.luck.within(1..MOST_AT_ONCE + 1) as usize;
            let more = !stop && !self.is_quiet();
            while more && unsent.len() < at_once && !spans(&unsent, ordinal) {
                let records = self.luck.within(1..5) as u32;
                unsent.push_back(Unsent {
                    ordinal,
                    first: number,
                    records,
                    sequence,
                });
                ordinal += 1;
                number += u64::from(records);
                sequence += records as i32;
            }
            if unsent.is_empty() && stop {
                return;
            }
            let Some(good) = self.round(&mut unsent, &mut node).await else {
                return;
            };
            if !good && self.cluster.mutant == Some(Mutant::RenumbersRetries) {
                for batch in &mut unsent {
                    batch.sequence = sequence;
                    sequence += batch.records as i32;
                }
            }
            let pause = if good { 0..150 } else { 5..120 };
            tokio::time::sleep(self.luck.millis(pause)).await;
        }
    }

    fn is_quiet(&self) -> bool {
        self.cluster.quiet.load(Ordering::Relaxed) && !self.progress.stop.load(Ordering::Relaxed)
    }

    /// Sends all that is not acknowledged, in its order. Whether all of it is now; `None` where it is no use to go on.
    async fn round(&mut self, unsent: &mut VecDeque<Unsent>, node: &mut NodeId) -> Option<bool> {
        let patience = self.luck.millis(500..5000);
        // One connection: they arrive in their order, or not at all.
        let arriving = self.cluster.network.travel_from_client(*node);
        let arrived = timeout(patience, arriving).await.is_ok();
        let mut attempts = Vec::new();
        for batch in &*unsent {
            let attempt = Attempt {
                key: self.key,
                node: *node,
                cluster: self.cluster.clone(),
                acks: match self.cluster.mutant {
                    Some(Mutant::TrustsTheLeader) => Acks::Leader,
                    _ => Acks::All,
                },
            };
            attempts.push(attempt.run(self.batch(batch)?, patience));
        }
        if !arrived {
            *node = *self.luck.pick(&self.cluster.nodes);
            return Some(false);
        }
        let outcomes = join_all(attempts).await;
        let mut left = VecDeque::new();
        for (batch, outcome) in unsent.drain(..).zip(outcomes) {
            match outcome {
                Outcome::Acknowledged(base, term) => {
                    self.acknowledged(&batch, base, term);
                    continue;
                }
                Outcome::Elsewhere(leader) => {
                    *node = leader.unwrap_or(*self.luck.pick(&self.cluster.nodes));
                }
                Outcome::Unknown => *node = *self.luck.pick(&self.cluster.nodes),
                Outcome::Refused(error) => {
                    let detail = format!("producer {} at {}: {error}", self.id, batch.first);
                    self.cluster
                        .invariants
                        .note(violated("definite-error", detail));
                    return None;
                }
            }
            left.push_back(batch);
        }
        *unsent = left;
        Some(unsent.is_empty())
    }

    fn acknowledged(&self, batch: &Unsent, base: Offset, term: Term) {
        let told = Acknowledgement {
            base,
            producer: self.id,
            first: batch.first,
            records: batch.records,
            term,
        };
        self.cluster.invariants.acknowledged(self.key, told);
        self.progress.batches.fetch_add(1, Ordering::Relaxed);
    }

    fn batch(&self, batch: &Unsent) -> Option<RecordBatch> {
        let mut builder = BatchBuilder::new(Compression::None);
        for number in batch.first..batch.first + u64::from(batch.records) {
            if self.cluster.is_compacted(self.key) {
                keyed::append(&mut builder, self.id, number);
                continue;
            }
            let value = value(self.id, number);
            builder.append(TimestampMs::new(EPOCH_MS), None, Some(&value), &[]);
        }
        let epoch = ProducerEpoch::new(0);
        builder.set_producer(self.id, epoch, Sequence::new(batch.sequence));
        builder.build().ok()
    }
}

/// Whether the oldest batch would be too old to be known as a duplicate, were another sent.
fn spans(unsent: &VecDeque<Unsent>, next: u64) -> bool {
    unsent
        .front()
        .is_some_and(|oldest| next - oldest.ordinal >= MOST_AT_ONCE)
}

/// One call to one node.
struct Attempt {
    key: PartitionKey,
    node: NodeId,
    cluster: Cluster,
    acks: Acks,
}

impl Attempt {
    async fn run(self, batch: RecordBatch, patience: Duration) -> Outcome {
        let (id, sequence) = (batch.header().producer_id, batch.header().base_sequence);
        let outcome = timeout(patience, self.call(batch)).await;
        let outcome = outcome.unwrap_or(Outcome::Unknown);
        let (partition, node) = (self.key.partition, self.node);
        note!(
            self.cluster.trace,
            "producer {id} p{partition} seq {sequence} at node {node}: {outcome:?}"
        );
        outcome
    }

    async fn call(&self, batch: RecordBatch) -> Outcome {
        let (network, node) = (&self.cluster.network, self.node);
        let boot = network.boot(node);
        let Some(partition) = network.partition(node, self.key) else {
            return Outcome::Elsewhere(None);
        };
        let answer = partition
            .append(batch, self.acks, Duration::from_secs(10))
            .await;
        let term = Term::new(partition.leader().1.get().max(0) as u64);
        if answer.is_ok() && self.acks == Acks::All {
            self.cluster.invariants.takes_part(self.key, node);
        }
        // A connection to a node that died in between is gone, and the answer with it.
        if network.boot(node) != boot {
            return Outcome::Unknown;
        }
        network.travel_from_client(node).await;
        match answer {
            Ok(appended) => match appended.base_offset {
                Some(base) => Outcome::Acknowledged(base, term),
                None => Outcome::Unknown,
            },
            Err(AppendError::NotLeader { leader, .. }) => Outcome::Elsewhere(leader),
            // A batch before it is still to be sent again, or the leader was replaced and does not know it yet.
            Err(AppendError::OutOfOrder { .. }) => Outcome::Elsewhere(None),
            Err(error) if !error.is_retryable() => Outcome::Refused(error),
            Err(error) if error.is_definite() => Outcome::Elsewhere(None),
            Err(_) => Outcome::Unknown,
        }
    }
}
