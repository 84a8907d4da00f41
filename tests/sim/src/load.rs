//! Idempotent producers: each sends numbered records to its partition, one batch after the other, and sends a batch again
//! until it is acknowledged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use quipu_model::{
    NodeId, Offset, PartitionKey, ProducerEpoch, ProducerId, RecordBatch, Sequence, TimestampMs,
    batch::{BatchBuilder, Compression},
};
use quipu_replication::{Acks, AppendError};
use tokio::time::timeout;

use crate::{
    clock::EPOCH_MS,
    invariants::{Acknowledgement, Invariants, Violation, violated},
    luck::Luck,
    mutants::Mutant,
    network::Network,
    trace::{Trace, note},
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
fn value(producer: ProducerId, number: u64) -> Vec<u8> {
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

pub(crate) struct Producer {
    pub(crate) key: PartitionKey,
    pub(crate) id: ProducerId,
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) network: Network,
    pub(crate) invariants: Invariants,
    pub(crate) trace: Trace,
    pub(crate) luck: Luck,
    pub(crate) progress: Arc<Progress>,
    pub(crate) mutant: Option<Mutant>,
    pub(crate) next_sequence: i32,
}

/// How an attempt ended.
enum Outcome {
    Acknowledged(Offset, quipu_model::Term),
    /// Somebody else may lead.
    Elsewhere(Option<NodeId>),
    /// It may have been appended.
    Unknown,
    Refused(AppendError),
}

impl Producer {
    pub(crate) async fn run(mut self) {
        let mut number = 0;
        let mut node = *self.luck.pick(&self.nodes);
        while !self.progress.stop.load(Ordering::Relaxed) {
            let records = self.luck.within(1..5) as u32;
            let Some((base, term)) = self.send(number, records, &mut node).await else {
                return;
            };
            self.invariants.acknowledged(
                self.key,
                Acknowledgement {
                    base,
                    producer: self.id,
                    first: number,
                    records,
                    term,
                },
            );
            number += u64::from(records);
            self.progress.batches.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.luck.millis(0..150)).await;
        }
    }

    fn batch(&self, number: u64, records: u32) -> Option<RecordBatch> {
        let mut builder = BatchBuilder::new(Compression::None);
        for number in number..number + u64::from(records) {
            let value = value(self.id, number);
            builder.append(TimestampMs::new(EPOCH_MS), None, Some(&value), &[]);
        }
        let epoch = ProducerEpoch::new(0);
        builder.set_producer(self.id, epoch, Sequence::new(self.next_sequence));
        builder.build().ok()
    }

    /// Sends a batch until it is acknowledged; `None` where that is no use.
    async fn send(
        &mut self,
        number: u64,
        records: u32,
        node: &mut NodeId,
    ) -> Option<(Offset, quipu_model::Term)> {
        loop {
            let batch = self.batch(number, records)?;
            match self.attempt(*node, batch).await {
                Outcome::Acknowledged(base, term) => {
                    self.next_sequence += records as i32;
                    return Some((base, term));
                }
                Outcome::Elsewhere(leader) => {
                    *node = leader.unwrap_or(*self.luck.pick(&self.nodes));
                }
                Outcome::Unknown => {
                    if self.mutant == Some(Mutant::RenumbersRetries) {
                        self.next_sequence += records as i32;
                    }
                    *node = *self.luck.pick(&self.nodes);
                }
                Outcome::Refused(error) => {
                    let detail = format!("producer {} at {number}: {error}", self.id);
                    self.invariants.note(violated("definite-error", detail));
                    return None;
                }
            }
            tokio::time::sleep(self.luck.millis(5..120)).await;
        }
    }

    async fn attempt(&mut self, node: NodeId, batch: RecordBatch) -> Outcome {
        let patience = self.luck.millis(500..5000);
        let sequence = batch.header().base_sequence;
        let key = self.key;
        let acks = match self.mutant {
            Some(Mutant::TrustsTheLeader) => Acks::Leader,
            _ => Acks::All,
        };
        let network = self.network.clone();
        let calling = async move {
            network.travel_from_client(node).await;
            let Some(partition) = network.partition(node, key) else {
                return Outcome::Elsewhere(None);
            };
            let boot = network.boot(node);
            let answer = partition.append(batch, acks, Duration::from_secs(10)).await;
            let term = quipu_model::Term::new(partition.leader().1.get().max(0) as u64);
            // A connection to a node that died in between is gone, and the answer with it.
            let gone = network.boot(node) != boot;
            network.travel_from_client(node).await;
            match answer {
                _ if gone => Outcome::Unknown,
                Ok(appended) => match appended.base_offset {
                    Some(base) => Outcome::Acknowledged(base, term),
                    None => Outcome::Unknown,
                },
                Err(AppendError::NotLeader { leader, .. }) => Outcome::Elsewhere(leader),
                // A leader that does not yet know that it was replaced cannot know what was appended since.
                Err(AppendError::OutOfOrder { .. }) => Outcome::Elsewhere(None),
                Err(error) if !error.is_retryable() => Outcome::Refused(error),
                Err(error) if error.is_definite() => Outcome::Elsewhere(None),
                Err(_) => Outcome::Unknown,
            }
        };
        let outcome = timeout(patience, calling).await.unwrap_or(Outcome::Unknown);
        let (id, partition) = (self.id, key.partition);
        match &outcome {
            Outcome::Acknowledged(base, term) => {
                note!(
                    self.trace,
                    "producer {id} seq {sequence} p{partition} is at {base} in term {term}"
                );
            }
            Outcome::Elsewhere(leader) => {
                note!(
                    self.trace,
                    "producer {id} seq {sequence} p{partition} not at {node}, {leader:?}"
                );
            }
            Outcome::Unknown => note!(
                self.trace,
                "producer {id} seq {sequence} p{partition} unknown at {node}"
            ),
            Outcome::Refused(error) => note!(
                self.trace,
                "producer {id} seq {sequence} p{partition} {error}"
            ),
        }
        outcome
    }
}
