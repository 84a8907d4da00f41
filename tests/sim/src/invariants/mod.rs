//! What must hold, one invariant a file. The first that does not ends the run.

mod acknowledged;
pub(crate) mod agreed;
mod caught_up;
mod compacted;
mod configurations;
mod equal;
pub(crate) mod handover;
mod high_watermark;
mod once;
mod one_leader;
mod order;
pub(crate) mod progress;
mod removed;
mod shared;
pub(crate) mod sleep;
mod unchanged;
pub(crate) mod whole;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use quipu_broker::front::MemberId;
use quipu_model::{NodeId, Offset, PartitionKey, RecordBatch, Term, Vote, batch::split_batches};
use quipu_storage::LogEntry;
use tokio::{sync::Notify, time::Instant};

pub(crate) use self::acknowledged::Acknowledgement;
use crate::{
    load::Numbered,
    trace::{Trace, note},
};

/// An invariant that did not hold.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) detail: String,
}

pub(crate) type Check = Result<(), Violation>;

/// A check that failed.
pub(crate) fn violated<T>(invariant: &'static str, detail: String) -> Result<T, Violation> {
    Err(Violation { invariant, detail })
}

/// All invariants of a run. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Invariants {
    state: Arc<Mutex<State>>,
    trace: Trace,
    compacts: bool,
    broken: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    partitions: BTreeMap<PartitionKey, Partition>,
    leaders: one_leader::Leaders,
    removed: removed::Removed,
    shared: shared::Shared,
    violation: Option<Violation>,
}

/// What is known of a partition.
#[derive(Debug, Default)]
struct Partition {
    log: unchanged::Log,
    once: once::Once,
    order: order::Order,
    acknowledged: acknowledged::Acknowledged,
    compacted: compacted::Compacted,
    marks: high_watermark::Marks,
    configurations: configurations::Configurations,
}

impl Invariants {
    pub(crate) fn new(trace: Trace, compacts: bool) -> Self {
        Self {
            state: Arc::default(),
            trace,
            compacts,
            broken: Arc::default(),
        }
    }

    pub(crate) fn violation(&self) -> Option<Violation> {
        self.state.lock().violation.clone()
    }

    /// Waits until an invariant does not hold.
    pub(crate) async fn broken(&self) {
        while self.violation().is_none() {
            self.broken.notified().await;
        }
    }

    /// Notes the first violation; those that follow from it say nothing new.
    pub(crate) fn note(&self, check: Check) {
        if let Err(violation) = check {
            note!(
                self.trace,
                "VIOLATION {}: {}",
                violation.invariant,
                violation.detail
            );
            self.state.lock().violation.get_or_insert(violation);
            self.broken.notify_waiters();
            self.broken.notify_one();
        }
    }

    fn check(&self, key: PartitionKey, check: impl FnOnce(&mut Partition) -> Check) {
        let outcome = check(self.state.lock().partitions.entry(key).or_default());
        self.note(outcome);
    }

    /// A node says in its messages that it leads.
    pub(crate) fn leader_spoke(&self, key: PartitionKey, vote: Vote) {
        let outcome = self.state.lock().leaders.spoke(key, vote);
        self.note(outcome);
    }

    /// A producer was told that its records are safe.
    pub(crate) fn acknowledged(&self, key: PartitionKey, acknowledgement: Acknowledgement) {
        self.check(key, |partition| {
            partition.marks.acknowledged(&acknowledgement);
            if self.compacts {
                return partition.compacted.told(&acknowledgement);
            }
            partition.acknowledged.told(acknowledgement, &partition.log)
        });
    }

    /// A leader's entries arrived at a node. `last` tells the index of the last entry that a node has, where it is up.
    pub(crate) fn appended(
        &self,
        key: PartitionKey,
        entries: &[LogEntry],
        last: impl Fn(NodeId) -> Option<u64>,
    ) {
        self.check(key, |partition| {
            for entry in entries {
                if let Some(new) = partition.configurations.arrived(entry)? {
                    caught_up::check(&new, &last)?;
                }
            }
            Ok(())
        });
    }

    /// A node has removed its replica.
    pub(crate) fn left(&self, node: NodeId, key: PartitionKey) {
        self.state.lock().removed.left(key, node);
    }

    /// A node has a replica, and is to have it.
    pub(crate) fn joined(&self, node: NodeId, key: PartitionKey) {
        self.state.lock().removed.joined(key, node);
    }

    /// A node's replica takes part in what its group does.
    pub(crate) fn takes_part(&self, key: PartitionKey, node: NodeId) {
        let outcome = self.state.lock().removed.takes_part(key, node);
        self.note(outcome);
    }

    /// Up to where a partition that members share is known to be stored as processed.
    pub(crate) fn stored(&self, partition: PartitionKey) -> Offset {
        self.state.lock().shared.stored(partition)
    }

    /// A member was told that this is stored.
    pub(crate) fn committed(&self, partition: PartitionKey, offset: Offset) {
        self.state.lock().shared.committed(partition, offset);
    }

    /// A member was told to go on at an offset, when `stored` was known to be stored.
    pub(crate) fn begins(&self, whose: (&MemberId, PartitionKey), at: Offset, stored: Offset) {
        let outcome = self.state.lock().shared.begins(whose, at, stored);
        self.note(outcome);
    }

    /// A member processes what comes before an offset, as it may until then.
    pub(crate) fn processes(&self, whose: (&MemberId, PartitionKey), to: Offset, until: Instant) {
        let outcome = self.state.lock().shared.processes(whose, to, until);
        self.note(outcome);
    }

    /// A member processes a partition no longer.
    pub(crate) fn lets_go(&self, whose: (&MemberId, PartitionKey)) {
        self.state.lock().shared.lets_go(whose);
    }

    /// The newest term in which a record was acknowledged.
    pub(crate) fn acknowledged_in(&self, key: PartitionKey) -> Term {
        let state = self.state.lock();
        let partition = state.partitions.get(&key);
        partition.map_or_else(Term::default, |partition| partition.marks.newest())
    }

    /// What a node shows as its high watermark, and in which term it leads, where it does and has caught up with its term.
    pub(crate) fn high_watermark(
        &self,
        key: PartitionKey,
        life: (NodeId, u64),
        mark: Offset,
        leads: Option<Term>,
    ) {
        self.check(key, |partition| partition.marks.seen(life, mark, leads));
    }

    /// A reader at a node was given `bytes` where it asked for records from `from` on.
    pub(crate) fn read(&self, key: PartitionKey, node: NodeId, from: Offset, bytes: Bytes) {
        self.check(key, |partition| match self.compacts {
            true => partition.read_compacted(node, from, bytes),
            false => partition.read(node, from, bytes),
        });
    }

    /// The end of a run: all replicas hold the same bytes, and all that was ever acknowledged; or, of each key, the same record.
    pub(crate) fn ended(&self, key: PartitionKey, logs: &BTreeMap<NodeId, Bytes>) {
        self.check(key, |partition| {
            if self.compacts {
                return partition.compacted.ended(logs);
            }
            equal::check(logs)?;
            partition.acknowledged.ended(&partition.log)
        });
    }

    /// Up to where readers have seen a partition.
    pub(crate) fn read_up_to(&self, key: PartitionKey) -> Offset {
        let state = self.state.lock();
        let partition = state.partitions.get(&key);
        partition.map_or(Offset::ZERO, |partition| partition.log.end())
    }

    /// How many records were acknowledged.
    pub(crate) fn acknowledged_records(&self) -> u64 {
        let state = self.state.lock();
        let partitions = state.partitions.values();
        partitions
            .map(|p| p.acknowledged.records() + p.compacted.acknowledged())
            .sum()
    }
}

impl Partition {
    fn read(&mut self, node: NodeId, from: Offset, bytes: Bytes) -> Check {
        let mut next = None;
        for batch in split_batches(bytes) {
            let batch: RecordBatch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    let detail = format!("node {node} at {from}: {error}");
                    return violated(unchanged::NAME, detail);
                }
            };
            order::follows(node, from, next, &batch)?;
            next = Some(batch.header().next_offset());
            if self.log.seen(node, &batch)? {
                let numbered = Numbered::of(&batch)?;
                self.once.appended(&batch, &numbered)?;
                self.order.appended(&batch, &numbered)?;
                self.acknowledged.appended(&batch, &numbered)?;
            }
        }
        Ok(())
    }

    fn read_compacted(&mut self, node: NodeId, from: Offset, bytes: Bytes) -> Check {
        let mut next = None;
        for batch in split_batches(bytes) {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    let detail = format!("node {node} at {from}: {error}");
                    return violated(unchanged::NAME, detail);
                }
            };
            order::goes_on(node, from, next, &batch)?;
            next = Some(batch.header().next_offset());
            self.compacted.seen(&batch)?;
        }
        Ok(())
    }
}
