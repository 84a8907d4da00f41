//! The partitions of the cluster and the replicas that this node runs of them, found in one hash look-up without a lock.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use quipu_model::{NodeId, PartitionId, PartitionKey, TopicId};
use quipu_replication::Partition;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{BrokerError, Reason},
    metadata::{Assignment, METADATA_KEY, Topic},
};

/// A running replica.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) partition: Partition,
    /// Cancelled when the replica is removed or the node stops.
    pub(crate) stopped: CancellationToken,
}

/// How the start of a replica went; empty while it has not ended.
type Start = OnceLock<Result<Running, BrokerError>>;

/// Where a partition is, as seen from this node.
#[derive(Clone, Debug)]
enum Place {
    /// Shared by the generations of an entry, so that an altered topic keeps its replicas.
    Here(Arc<Start>),
    Elsewhere,
}

impl Place {
    fn of(topic: &Topic, assignment: &Assignment, node: NodeId) -> Self {
        if topic.is_everywhere() || assignment.holds(node) {
            Self::Here(Arc::default())
        } else {
            Self::Elsewhere
        }
    }

    fn running(&self) -> Option<&Running> {
        match self {
            Self::Here(start) => start.get()?.as_ref().ok(),
            Self::Elsewhere => None,
        }
    }
}

/// A topic with its replicas on this node.
#[derive(Clone, Debug)]
pub(crate) struct TopicPartitions {
    pub(crate) topic: Arc<Topic>,
    /// By partition number.
    places: Box<[Place]>,
}

impl TopicPartitions {
    /// A topic's entry, which goes on with the replicas of the one before it.
    fn new(topic: Arc<Topic>, before: Option<&Self>, node: NodeId) -> Self {
        let places = topic.assignments.iter().enumerate();
        let places = places
            .map(|(number, assignment)| {
                let old = before.and_then(|entry| entry.places.get(number));
                match (Place::of(&topic, assignment, node), old) {
                    (Place::Here(_), Some(Place::Here(start))) => Place::Here(Arc::clone(start)),
                    (place, _) => place,
                }
            })
            .collect();
        Self { topic, places }
    }

    fn key(&self, number: u32) -> PartitionKey {
        PartitionKey {
            topic: self.topic.id,
            partition: PartitionId::new(number),
        }
    }

    /// The replica of a partition.
    ///
    /// # Errors
    /// Where there is no such partition, it is on other nodes, still starting, or did not start.
    pub(crate) fn find(&self, partition: PartitionId) -> Result<&Running, BrokerError> {
        let place = usize::try_from(partition.get())
            .ok()
            .and_then(|index| self.places.get(index))
            .ok_or_else(|| {
                BrokerError::new(
                    Reason::UnknownPartition,
                    format!(
                        "topic {} has partitions 0 to {}, not {partition}",
                        self.topic.name,
                        self.places.len().saturating_sub(1)
                    ),
                )
            })?;
        let elsewhere = |what: &str| {
            let message = format!("partition {partition} of {} {what}", self.topic.name);
            BrokerError::new(Reason::NotLeader, message)
        };
        match place {
            Place::Elsewhere => Err(elsewhere("is on other nodes: ask its leader")),
            Place::Here(start) => match start.get() {
                Some(Ok(running)) => Ok(running),
                Some(Err(error)) => Err(error.clone()),
                None => Err(elsewhere("is starting: retry shortly")),
            },
        }
    }

    /// Notes how the start of a partition went.
    pub(crate) fn started(&self, partition: PartitionId, result: Result<Running, BrokerError>) {
        if let Some(Place::Here(start)) = self.places.get(partition.get() as usize) {
            // A start is noted once: a second result has nothing to add.
            let _ = start.set(result);
        }
    }

    /// The partitions that are to run here and whose start has not been tried yet.
    pub(crate) fn unstarted(&self) -> impl Iterator<Item = PartitionKey> + '_ {
        let places = (0..).zip(&self.places);
        places.filter_map(move |(number, place)| match place {
            Place::Here(start) if start.get().is_none() => Some(self.key(number)),
            _ => None,
        })
    }

    /// The replicas that run.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Running> {
        self.places.iter().filter_map(Place::running)
    }

    /// The replicas that run and what is assigned of their partitions.
    pub(crate) fn assigned(&self) -> impl Iterator<Item = (&Assignment, &Running)> {
        let places = self.topic.assignments.iter().zip(&self.places);
        places.filter_map(|(assignment, place)| Some((assignment, place.running()?)))
    }

    /// The replicas that this entry has and the next one has not.
    fn gone(&self, next: Option<&Self>) -> impl Iterator<Item = Gone> {
        let places = (0..).zip(&self.places);
        places.filter_map(move |(number, place)| {
            let kept = next.and_then(|next| next.places.get(number as usize));
            match (place, kept) {
                (Place::Here(_), Some(Place::Here(_))) | (Place::Elsewhere, _) => None,
                (Place::Here(_), _) => Some(Gone {
                    key: self.key(number),
                    running: place.running().cloned(),
                }),
            }
        })
    }
}

/// A replica that is to be on this node no more.
#[derive(Debug)]
pub(crate) struct Gone {
    pub(crate) key: PartitionKey,
    /// `None`: it did not start.
    pub(crate) running: Option<Running>,
}

/// The topics of one moment.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    by_name: HashMap<Box<str>, Arc<TopicPartitions>>,
    by_id: HashMap<TopicId, Arc<TopicPartitions>>,
}

impl Topics {
    pub(crate) fn values(&self) -> impl Iterator<Item = &Arc<TopicPartitions>> {
        self.by_id.values()
    }
}

impl FromIterator<Arc<TopicPartitions>> for Topics {
    fn from_iter<I: IntoIterator<Item = Arc<TopicPartitions>>>(entries: I) -> Self {
        let mut topics = Self::default();
        for entry in entries {
            let name = Box::from(entry.topic.name.as_str());
            topics.by_name.insert(name, Arc::clone(&entry));
            topics.by_id.insert(entry.topic.id, entry);
        }
        topics
    }
}

/// What [`PartitionTable::replace`] changed.
#[derive(Debug)]
pub(crate) struct Replaced {
    /// The replicas that are no longer in the table.
    pub(crate) gone: Vec<Gone>,
    /// The entries whose topic is not as it was before.
    pub(crate) altered: Vec<Arc<TopicPartitions>>,
}

/// All topics, with the replicas on this node.
#[derive(Debug)]
pub(crate) struct PartitionTable {
    node: NodeId,
    topics: ArcSwap<Topics>,
    changes: Mutex<()>,
}

impl PartitionTable {
    /// Of node `node`; without a topic yet.
    pub(crate) fn new(node: NodeId) -> Self {
        Self {
            node,
            topics: ArcSwap::default(),
            changes: Mutex::new(()),
        }
    }

    /// A topic by name.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) fn topic(&self, name: &str) -> Result<Arc<TopicPartitions>, BrokerError> {
        self.topics
            .load()
            .by_name
            .get(name)
            .cloned()
            .ok_or_else(|| BrokerError::unknown_topic(name))
    }

    /// All topics.
    pub(crate) fn snapshot(&self) -> Arc<Topics> {
        self.topics.load_full()
    }

    /// The replica that runs here of a partition.
    pub(crate) fn replica(&self, key: PartitionKey) -> Option<Partition> {
        let topics = self.topics.load();
        let place = topics
            .by_id
            .get(&key.topic)?
            .places
            .get(key.partition.get() as usize)?;
        Some(place.running()?.partition.clone())
    }

    /// Makes the table hold exactly `wanted`, keeping the replicas that it held before and is to hold.
    pub(crate) fn replace(&self, wanted: impl Iterator<Item = Arc<Topic>>) -> Replaced {
        let _one_at_a_time = self.changes.lock();
        let before = self.topics.load_full();
        let mut altered = Vec::new();
        let after: Topics = wanted
            .map(|topic| match before.by_id.get(&topic.id) {
                Some(old) if Arc::ptr_eq(&old.topic, &topic) => Arc::clone(old),
                Some(old) => {
                    let entry = Arc::new(TopicPartitions::new(topic, Some(old), self.node));
                    altered.push(Arc::clone(&entry));
                    entry
                }
                None => Arc::new(TopicPartitions::new(topic, None, self.node)),
            })
            .collect();
        let next = |old: &TopicPartitions| after.by_id.get(&old.topic.id).map(|next| &**next);
        let gone = before
            .values()
            .flat_map(|old| old.gone(next(old)))
            .collect();
        self.topics.store(Arc::new(after));
        Replaced { gone, altered }
    }
}

/// Stops all partitions, the metadata's last.
pub(crate) async fn stop_partitions(table: &PartitionTable) {
    let topics = table.snapshot();
    let running = |metadata: bool| {
        topics
            .values()
            .filter(move |topic| (topic.topic.id == METADATA_KEY.topic) == metadata)
            .flat_map(|topic| topic.running())
            .map(|running| running.partition.shutdown())
    };
    futures::future::join_all(running(false)).await;
    futures::future::join_all(running(true)).await;
}
