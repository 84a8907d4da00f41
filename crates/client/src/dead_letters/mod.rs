//! Looking at dead letters, and sending them back.

mod taken;

use std::collections::HashMap;

use bytes::Bytes;
use quipu_model::{
    Offset, TimestampMs,
    batch::{Record as StoredRecord, RecordHeader},
};

use self::taken::Taken;
use crate::{
    Assignment, Client, ConsumerConfig, Delivery, End, ErrorReason, GroupOffset, OffsetAt,
    Producer, ProducerConfig, Record, Result, Start, Trail, borrow_headers,
    error::Error,
    worker::{is_value_left, redriven},
};

/// Letters that are sent back between two times that this is stored.
const STORE_EVERY: usize = 1000;

/// A record that no attempt came to an end with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The partition of the dead-letter topic.
    pub partition: u32,
    /// Its offset there.
    pub offset: Offset,
    /// When it was put there.
    pub timestamp: TimestampMs,
    /// Where it came from and why it failed; `None` where it is not a worker's.
    pub trail: Option<Trail>,
    /// The record's key.
    pub key: Option<Bytes>,
    /// The record's value.
    pub value: Option<Bytes>,
    /// The record's own headers.
    pub headers: Vec<RecordHeader>,
    /// Value and headers were too large to come along: they are in the topic that it came from, as long as that keeps them.
    pub value_left: bool,
    /// It was sent back already.
    pub redriven: bool,
}

/// Which letters are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Letters {
    /// Only those of this partition.
    pub partition: Option<u32>,
    /// Only those from this offset on.
    pub from: Option<Offset>,
    /// Only those before this offset.
    pub to: Option<Offset>,
    /// Only those of records with this key.
    pub key: Option<Bytes>,
    /// Those too that were sent back already.
    pub redriven: bool,
}

/// What became of letters that were to be sent back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// So many were.
    pub sent: u64,
    /// So many could not: they lack their value, or are no worker's.
    pub kept: u64,
}

/// A dead-letter topic, such as [`dead_letter_topic`](crate::dead_letter_topic) names it.
///
/// Which letters were sent back is remembered as offsets of a group, `<topic>.redrive`: nothing is deleted.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    client: Client,
    topic: String,
}

impl DeadLetters {
    /// The letters of this dead-letter topic.
    pub fn new(client: &Client, topic: impl Into<String>) -> Self {
        Self {
            client: client.clone(),
            topic: topic.into(),
        }
    }

    /// Reads letters, partition by partition, in order, up to where the topic ends now, until `visit` says that it has enough.
    ///
    /// # Errors
    /// Where there is no such topic or partition, or it can't be read.
    pub async fn read(
        &self,
        which: &Letters,
        mut visit: impl FnMut(DeadLetter) -> bool,
    ) -> Result<()> {
        for (partition, taken) in self.partitions(which).await? {
            let mut letters = self.open(which, partition, &taken).await?;
            while let Some(letter) = letters.next().await? {
                if !visit(letter) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Sends letters back to the partition of the topic that they came from, as the records that they were, with two headers more:
    /// `quipu-redriven` names the letter, and `quipu-redriven-for` the group, so that workers of other groups pass them over.
    ///
    /// It is stored which ones were, every thousand; where this breaks off and is done again, up to so many are sent back twice.
    ///
    /// # Errors
    /// Where the topic can't be read, the one that a letter came from can't be written, or so many single letters were sent back
    /// before and between others that no more can be remembered. Whatever was sent back and stored remains so.
    pub async fn redrive(&self, which: &Letters) -> Result<Redriven> {
        let producer = self.client.producer(ProducerConfig::default()).await?;
        let mut redriven = Redriven::default();
        for (partition, mut taken) in self.partitions(which).await? {
            let mut letters = self.open(which, partition, &taken).await?;
            let mut deliveries = Vec::new();
            while let Some(letter) = letters.next().await? {
                let trail = match &letter.trail {
                    Some(trail) if !letter.value_left => trail,
                    _ => {
                        redriven.kept += 1;
                        continue;
                    }
                };
                taken.insert(letter.offset.get());
                if taken.encode().is_none() {
                    return Err(Error::invalid(format_args!(
                        "so many single letters of partition {partition} were sent back that no more can be remembered: send those before offset {} back",
                        letter.offset
                    )));
                }
                deliveries.push(self.send_back(&producer, &letter, trail).await?);
                if deliveries.len() == STORE_EVERY {
                    redriven.sent += self.settle(&mut deliveries, partition, &taken).await?;
                }
            }
            redriven.sent += self.settle(&mut deliveries, partition, &taken).await?;
        }
        producer.close().await?;
        Ok(redriven)
    }

    /// The partitions that are meant, and which of their letters were sent back.
    async fn partitions(&self, which: &Letters) -> Result<Vec<(u32, Taken)>> {
        let admin = self.client.admin();
        let known = admin.describe_topic(&self.topic).await?.partitions.len();
        if let Some(partition) = which.partition
            && partition as usize >= known
        {
            return Err(Error::invalid(format_args!(
                "{} has no partition {partition}: its partitions are 0 to {}",
                self.topic,
                known.saturating_sub(1)
            )));
        }
        let mut stored = self.stored().await?;
        let mut partitions = Vec::new();
        let meant = (0..)
            .take(known)
            .filter(|partition| which.partition.is_none_or(|only| only == *partition));
        for partition in meant {
            let mut taken = stored.remove(&partition).unwrap_or_default();
            let earliest = admin.list_offset(&self.topic, partition, OffsetAt::Earliest);
            taken.begin_at(earliest.await?.offset.get());
            partitions.push((partition, taken));
        }
        Ok(partitions)
    }

    fn group(&self) -> String {
        format!("{}.redrive", self.topic)
    }

    async fn stored(&self) -> Result<HashMap<u32, Taken>> {
        let offsets = match self.client.admin().group_offsets(&self.group()).await {
            Err(error) if error.is(ErrorReason::UnknownGroup) => Vec::new(),
            offsets => offsets?,
        };
        let mine = offsets
            .into_iter()
            .filter(|offset| offset.topic == self.topic);
        let taken = mine.map(|stored| {
            let taken = Taken::decode(stored.offset.get(), &stored.metadata);
            (stored.partition, taken)
        });
        Ok(taken.collect())
    }

    async fn open<'a>(
        &self,
        which: &'a Letters,
        partition: u32,
        taken: &Taken,
    ) -> Result<Reading<'a>> {
        let admin = self.client.admin();
        let first = match which.redriven {
            true => {
                let earliest = admin.list_offset(&self.topic, partition, OffsetAt::Earliest);
                earliest.await?.offset
            }
            false => Offset::new(taken.next()),
        };
        let start = which.from.map_or(first, |from| from.max(first));
        let mut consumer = self.client.consumer(ConsumerConfig::default());
        let assignment = Assignment::new(&self.topic, partition, Start::Offset(start));
        consumer.assign([assignment.until(End::Latest)]).await?;
        Ok(Reading {
            consumer,
            which,
            partition,
            taken: taken.clone(),
            records: Vec::new().into_iter(),
        })
    }

    async fn send_back(
        &self,
        producer: &Producer,
        letter: &DeadLetter,
        trail: &Trail,
    ) -> Result<Delivery> {
        let from = format!("{}/{}/{}", self.topic, letter.partition, letter.offset);
        let headers = redriven(letter.headers.clone(), from, &trail.group);
        let headers = borrow_headers(&headers);
        let record = Record {
            key: letter.key.as_deref(),
            value: letter.value.as_deref(),
            ..Record::new(&trail.topic)
                .partition(trail.partition)
                .headers(&headers)
        };
        producer.send(record).await
    }

    /// Waits until letters have arrived, and stores that.
    async fn settle(
        &self,
        deliveries: &mut Vec<Delivery>,
        partition: u32,
        taken: &Taken,
    ) -> Result<u64> {
        let sent = deliveries.len() as u64;
        for delivery in deliveries.drain(..) {
            delivery.await?;
        }
        if sent > 0 {
            let offset = GroupOffset {
                metadata: taken.encode().unwrap_or_default(),
                ..GroupOffset::new(&self.topic, partition, Offset::new(taken.next()))
            };
            let admin = self.client.admin();
            admin.set_group_offsets(&self.group(), &[offset]).await?;
        }
        Ok(sent)
    }
}

/// Letters of a partition, read one after the other.
struct Reading<'a> {
    consumer: crate::Consumer,
    which: &'a Letters,
    partition: u32,
    /// As it was at the start.
    taken: Taken,
    records: std::vec::IntoIter<StoredRecord>,
}

impl Reading<'_> {
    async fn next(&mut self) -> Result<Option<DeadLetter>> {
        loop {
            for record in self.records.by_ref() {
                if self.which.to.is_some_and(|to| record.offset >= to) {
                    return Ok(None);
                }
                let redriven = self.taken.contains(record.offset.get());
                let wanted = self.which.key.is_none() || self.which.key == record.key;
                if wanted && (self.which.redriven || !redriven) {
                    return Ok(Some(letter(self.partition, record, redriven)));
                }
            }
            match self.consumer.next_batch().await {
                Some(chunk) => self.records = chunk?.records.into_iter(),
                None => return Ok(None),
            }
        }
    }
}

fn letter(partition: u32, record: StoredRecord, redriven: bool) -> DeadLetter {
    let value_left = is_value_left(&record.headers);
    let (trail, headers) = Trail::read(record.headers);
    DeadLetter {
        partition,
        offset: record.offset,
        timestamp: record.timestamp,
        trail,
        key: record.key,
        value: record.value,
        headers,
        value_left,
        redriven,
    }
}
