//! Records on their way to becoming batches: one open batch a partition, behind it the full ones that wait to be sent.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use quipu_model::{TimestampMs, batch::BatchBuilder};
use tokio::{sync::Semaphore, time::Instant};

use super::{ProducerConfig, Record, delivery::BatchState, partitioner::partition_for_key};
use crate::{Result, error::Error};

/// Everything that senders of records and the task behind them share.
#[derive(Debug)]
pub(crate) struct Accumulator {
    pub(crate) config: ProducerConfig,
    /// Bytes of records that may still be taken.
    pub(crate) room: Semaphore,
    topics: RwLock<HashMap<Box<str>, Arc<Topic>>>,
    partitions: AtomicUsize,
    closed: AtomicBool,
}

/// A topic that records were sent to.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) partitions: Vec<Arc<Partition>>,
    sticky: Arc<Sticky>,
}

/// Where records without a key go until the batch there is full or sent.
#[derive(Debug)]
struct Sticky {
    current: AtomicU32,
    partitions: u32,
}

/// One partition's records that were not sent yet.
#[derive(Debug)]
pub(crate) struct Partition {
    /// A number of its own among the producer's partitions.
    pub(crate) index: usize,
    pub(crate) topic: Arc<str>,
    pub(crate) id: u32,
    sticky: Arc<Sticky>,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    open: Option<PendingBatch>,
    full: VecDeque<PendingBatch>,
    /// The size of the last batch: what the next one sets memory aside for.
    expected: usize,
    /// The sending task was told, and has not looked yet.
    announced: bool,
    closed: bool,
}

/// A batch that was not sent yet.
#[derive(Debug)]
pub(crate) struct PendingBatch {
    pub(crate) builder: BatchBuilder,
    pub(crate) state: Arc<BatchState>,
    /// Room taken by its records.
    pub(crate) reserved: usize,
    pub(crate) opened_at: Instant,
}

/// What became of an append.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) batch: Arc<BatchState>,
    pub(crate) index: u32,
    /// The sending task has to be told of the partition.
    pub(crate) announce: bool,
}

impl Accumulator {
    pub(crate) fn new(config: ProducerConfig) -> Self {
        Self {
            room: Semaphore::new(config.buffer_bytes.min(Semaphore::MAX_PERMITS)),
            config,
            topics: RwLock::default(),
            partitions: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().get(name).cloned()
    }

    /// Learns of a topic; whoever came first wins.
    pub(crate) fn add_topic(&self, name: &str, partitions: u32) -> Result<Arc<Topic>> {
        let mut topics = self.topics.write();
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::closed());
        }
        if let Some(topic) = topics.get(name) {
            return Ok(Arc::clone(topic));
        }
        let first = self
            .partitions
            .fetch_add(partitions as usize, Ordering::Relaxed);
        let topic = Arc::new(Topic::new(name, partitions, first));
        topics.insert(name.into(), Arc::clone(&topic));
        Ok(topic)
    }

    /// Forgets a topic that may have changed: the next record asks again. Its batches go on by themselves.
    pub(crate) fn forget_topic(&self, partition: &Partition) {
        let mut topics = self.topics.write();
        let same = |topic: &Arc<Topic>| {
            let known = topic.partitions.get(partition.id as usize);
            known.is_some_and(|known| known.index == partition.index)
        };
        if topics.get(&*partition.topic).is_some_and(same) {
            topics.remove(&*partition.topic);
        }
    }

    pub(crate) fn partitions(&self) -> Vec<Arc<Partition>> {
        let topics = self.topics.read();
        topics
            .values()
            .flat_map(|topic| topic.partitions.iter().cloned())
            .collect()
    }

    /// Takes no records any more. `false` while a partition still holds some.
    pub(crate) fn close(&self) -> bool {
        let topics = self.topics.write();
        self.closed.store(true, Ordering::Relaxed);
        let mut partitions = topics.values().flat_map(|topic| &topic.partitions);
        partitions.all(|partition| partition.close())
    }
}

impl Topic {
    fn new(name: &str, partitions: u32, first_index: usize) -> Self {
        let name: Arc<str> = name.into();
        let sticky = Arc::new(Sticky {
            current: AtomicU32::new(rand::random_range(0..partitions.max(1))),
            partitions,
        });
        let partition = |id: u32| {
            Arc::new(Partition {
                index: first_index + id as usize,
                topic: Arc::clone(&name),
                id,
                sticky: Arc::clone(&sticky),
                pending: Mutex::default(),
            })
        };
        Self {
            partitions: (0..partitions).map(partition).collect(),
            sticky,
        }
    }

    /// The partition that a record goes to.
    pub(crate) fn choose(&self, record: &Record<'_>) -> Result<&Arc<Partition>> {
        let id = match (record.partition, record.key) {
            (Some(id), _) => id,
            (None, Some(key)) => partition_for_key(key, self.sticky.partitions),
            (None, None) => self.sticky.current.load(Ordering::Relaxed),
        };
        self.partitions.get(id as usize).ok_or_else(|| {
            Error::invalid(format_args!(
                "topic {:?} has no partition {id}: it has {}",
                record.topic,
                self.partitions.len()
            ))
        })
    }
}

impl Sticky {
    /// Moves on, if `from` is where records go now.
    fn leave(&self, from: u32) {
        let next = (from + 1) % self.partitions;
        // Losing the race means that somebody else moved on.
        let _ = self
            .current
            .compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Partition {
    /// Adds a record whose `bytes` of room were taken.
    ///
    /// # Errors
    /// Where the producer is closed; the room is then the caller's to give back.
    pub(crate) fn append(
        &self,
        config: &ProducerConfig,
        record: &Record<'_>,
        timestamp: TimestampMs,
        bytes: usize,
    ) -> Result<Appended> {
        let mut pending = self.pending.lock();
        if pending.closed {
            return Err(Error::closed());
        }
        let fits = |open: &PendingBatch| open.builder.len_bytes() + bytes <= config.batch_bytes;
        if pending.open.as_ref().is_some_and(|open| !fits(open)) {
            self.seal(&mut pending);
        }
        let opened = pending.open.is_none();
        let capacity = pending.expected.max(bytes);
        let open = pending.open.get_or_insert_with(|| PendingBatch {
            builder: BatchBuilder::with_capacity(config.compression, capacity),
            state: Arc::default(),
            reserved: 0,
            opened_at: Instant::now(),
        });
        let index = open
            .builder
            .append(timestamp, record.key, record.value, record.headers);
        open.reserved += bytes;
        let batch = Arc::clone(&open.state);
        // Another such record would not fit: waiting for a smaller one is not worth the delay.
        let full = open.builder.len_bytes() + bytes > config.batch_bytes;
        if full {
            self.seal(&mut pending);
        }
        // Opened: its linger time begins. Full, or sealed above: there is something to send.
        let announce = (opened || full) && !std::mem::replace(&mut pending.announced, true);
        Ok(Appended {
            batch,
            index,
            announce,
        })
    }

    fn seal(&self, pending: &mut Pending) {
        if let Some(open) = pending.open.take() {
            pending.expected = open.builder.len_bytes();
            pending.full.push_back(open);
            self.sticky.leave(self.id);
        }
    }

    /// Makes the open batch ready to be sent, full or not.
    pub(crate) fn flush(&self) {
        self.seal(&mut self.pending.lock());
    }

    /// The next batch to send: a full one, or the open one once it has waited for `linger`. From here on the next news of
    /// the partition are announced again.
    pub(crate) fn take(&self, now: Instant, linger: Duration) -> Option<PendingBatch> {
        let mut pending = self.pending.lock();
        pending.announced = false;
        if pending.full.is_empty()
            && pending
                .open
                .as_ref()
                .is_some_and(|open| now >= open.opened_at + linger)
        {
            self.seal(&mut pending);
        }
        pending.full.pop_front()
    }

    /// When the oldest batch here was opened, and whether it only waits for its linger time.
    pub(crate) fn oldest(&self) -> Option<(Instant, bool)> {
        let pending = self.pending.lock();
        match pending.full.front() {
            Some(full) => Some((full.opened_at, false)),
            None => pending.open.as_ref().map(|open| (open.opened_at, true)),
        }
    }

    /// The outcomes of all batches here.
    pub(crate) fn states(&self) -> Vec<Arc<BatchState>> {
        let pending = self.pending.lock();
        let batches = pending.full.iter().chain(&pending.open);
        batches.map(|batch| Arc::clone(&batch.state)).collect()
    }

    fn close(&self) -> bool {
        let mut pending = self.pending.lock();
        pending.closed = pending.open.is_none() && pending.full.is_empty();
        pending.closed
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use quipu_model::TimestampMs;
    use tokio::time::{Instant, advance};

    use super::{Accumulator, Appended, Topic};
    use crate::producer::{ProducerConfig, Record};

    const LINGER: Duration = Duration::from_millis(5);

    fn topic(partitions: u32) -> (ProducerConfig, Arc<Topic>) {
        let config = ProducerConfig {
            batch_bytes: 1024,
            ..ProducerConfig::default()
        };
        let accumulator = Accumulator::new(config.clone());
        (config, accumulator.add_topic("t", partitions).unwrap())
    }

    fn append(config: &ProducerConfig, topic: &Topic, record: &Record<'_>) -> (u32, Appended) {
        let partition = topic.choose(record).unwrap();
        let bytes = record.size();
        let appended = partition.append(config, record, TimestampMs::new(1), bytes);
        (partition.id, appended.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_batch_waits_for_its_linger_time() {
        let (config, topic) = topic(1);
        let (_, appended) = append(&config, &topic, &Record::new("t").value(b"v"));
        assert!(appended.announce, "the sender has to start the clock");
        let partition = &topic.partitions[0];
        advance(LINGER - Duration::from_millis(1)).await;
        assert!(partition.take(Instant::now(), LINGER).is_none());
        advance(Duration::from_millis(1)).await;
        let batch = partition.take(Instant::now(), LINGER).unwrap();
        assert_eq!(batch.builder.len_records(), 1);
        assert!(partition.take(Instant::now(), LINGER).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn full_batches_go_at_once_in_order_and_never_exceed_their_bound() {
        let (config, topic) = topic(1);
        let value = [7; 400];
        let sent: Vec<_> = (0..7)
            .map(|_| append(&config, &topic, &Record::new("t").value(&value)).1)
            .collect();
        let mut batches = Vec::new();
        while let Some(batch) = topic.partitions[0].take(Instant::now(), LINGER) {
            assert!(batch.builder.len_bytes() <= config.batch_bytes);
            batches.push(batch);
        }
        assert_eq!(batches.len(), 3, "two of each batch's records fit");
        for (i, appended) in sent.iter().take(6).enumerate() {
            assert!(Arc::ptr_eq(&appended.batch, &batches[i / 2].state));
            assert_eq!(appended.index as usize, i % 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_sender_is_told_once_until_it_looks() {
        let (config, topic) = topic(1);
        let record = Record::new("t").value(&[7; 300]);
        let told = |_| append(&config, &topic, &record).1.announce;
        assert_eq!((0..9).map(told).filter(|told| *told).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn records_without_a_key_fill_one_batch_then_move_on() {
        let (config, topic) = topic(3);
        let record = Record::new("t").value(&[7; 300]);
        let went: Vec<u32> = (0..12)
            .map(|_| append(&config, &topic, &record).0)
            .collect();
        let mut runs = went.clone();
        runs.dedup();
        assert!(runs.len() >= 4, "moves on: {went:?}");
        let mut seen = runs.clone();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 1, 2], "uses every partition: {went:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_stays_with_its_partition_and_a_given_partition_wins() {
        let (_, topic) = topic(6);
        let keyed = Record::new("t").key(b"21");
        let first = topic.choose(&keyed).unwrap().id;
        assert_eq!(topic.choose(&keyed).unwrap().id, first);
        assert_eq!(topic.choose(&keyed.partition(5)).unwrap().id, 5);
        assert!(topic.choose(&keyed.partition(6)).is_err());
    }
}
