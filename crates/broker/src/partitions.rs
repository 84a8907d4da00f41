//! The partitions that this node runs, found in one hash look-up without a lock.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use quipu_model::{PartitionId, PartitionKey};
use quipu_replication::Partition;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{BrokerError, Reason},
    metadata::Topic,
};

/// A running replica.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) partition: Partition,
    /// Cancelled when the topic is deleted or the node stops.
    pub(crate) stopped: CancellationToken,
}

/// How the start of a replica went; empty while it has not ended.
type Slot = OnceLock<Result<Running, BrokerError>>;

/// A topic with its replicas on this node.
#[derive(Clone, Debug)]
pub(crate) struct TopicPartitions {
    pub(crate) topic: Arc<Topic>,
    /// By partition number. Shared by the generations of an entry, so that an altered topic keeps its replicas.
    slots: Arc<[Slot]>,
}

impl TopicPartitions {
    fn new(topic: Arc<Topic>) -> Self {
        let slots = topic.assignments.iter().map(|_| Slot::new()).collect();
        Self { topic, slots }
    }

    /// The replica of a partition.
    ///
    /// # Errors
    /// Where there is no such partition, it is still starting or did not start.
    pub(crate) fn find(&self, partition: PartitionId) -> Result<&Running, BrokerError> {
        let slot = usize::try_from(partition.get())
            .ok()
            .and_then(|index| self.slots.get(index))
            .ok_or_else(|| {
                BrokerError::new(
                    Reason::UnknownPartition,
                    format!(
                        "topic {} has partitions 0 to {}, not {partition}",
                        self.topic.name,
                        self.slots.len().saturating_sub(1)
                    ),
                )
            })?;
        match slot.get() {
            Some(Ok(running)) => Ok(running),
            Some(Err(error)) => Err(error.clone()),
            None => Err(BrokerError::new(
                Reason::NotLeader,
                format!(
                    "partition {partition} of {} is starting: retry shortly",
                    self.topic.name
                ),
            )),
        }
    }

    /// Notes how the start of a partition went.
    pub(crate) fn started(&self, partition: PartitionId, result: Result<Running, BrokerError>) {
        if let Some(slot) = self.slots.get(partition.get() as usize) {
            // A slot is filled once in its life: a second result has nothing to add.
            let _ = slot.set(result);
        }
    }

    /// The partitions whose start has not been tried yet.
    pub(crate) fn unstarted(&self) -> impl Iterator<Item = PartitionKey> + '_ {
        let topic = self.topic.id;
        (0..)
            .zip(self.slots.iter())
            .filter_map(move |(number, slot)| {
                slot.get().is_none().then_some(PartitionKey {
                    topic,
                    partition: PartitionId::new(number),
                })
            })
    }

    /// The replicas that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Running> {
        self.slots
            .iter()
            .filter_map(|slot| slot.get()?.as_ref().ok())
    }
}

type Topics = HashMap<Box<str>, Arc<TopicPartitions>>;

/// What [`PartitionTable::replace`] changed.
#[derive(Debug)]
pub(crate) struct Replaced {
    /// The entries that are no longer in the table.
    pub(crate) gone: Vec<Arc<TopicPartitions>>,
    /// The entries whose topic has other settings than before.
    pub(crate) altered: Vec<Arc<TopicPartitions>>,
}

/// All topics' replicas on this node.
#[derive(Debug, Default)]
pub(crate) struct PartitionTable {
    topics: ArcSwap<Topics>,
    changes: Mutex<()>,
}

impl PartitionTable {
    /// A topic by name.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) fn topic(&self, name: &str) -> Result<Arc<TopicPartitions>, BrokerError> {
        self.topics
            .load()
            .get(name)
            .cloned()
            .ok_or_else(|| BrokerError::unknown_topic(name))
    }

    /// All topics.
    pub(crate) fn snapshot(&self) -> Arc<HashMap<Box<str>, Arc<TopicPartitions>>> {
        self.topics.load_full()
    }

    /// Makes the table hold exactly `wanted`, keeping the replicas of topics that it held before.
    pub(crate) fn replace(&self, wanted: impl Iterator<Item = Arc<Topic>>) -> Replaced {
        let _one_at_a_time = self.changes.lock();
        let before = self.topics.load_full();
        let mut altered = Vec::new();
        let after: Topics = wanted
            .map(|topic| {
                let entry = match before.get(topic.name.as_str()) {
                    Some(old) if Arc::ptr_eq(&old.topic, &topic) => Arc::clone(old),
                    Some(old) if old.topic.id == topic.id => {
                        let entry = Arc::new(TopicPartitions {
                            topic: Arc::clone(&topic),
                            slots: Arc::clone(&old.slots),
                        });
                        altered.push(Arc::clone(&entry));
                        entry
                    }
                    _ => Arc::new(TopicPartitions::new(Arc::clone(&topic))),
                };
                (Box::from(topic.name.as_str()), entry)
            })
            .collect();
        let gone = before
            .values()
            .filter(|old| {
                after
                    .get(old.topic.name.as_str())
                    .is_none_or(|new| new.topic.id != old.topic.id)
            })
            .cloned()
            .collect();
        self.topics.store(Arc::new(after));
        Replaced { gone, altered }
    }
}
