//! Puts records that failed where they belong, and says so only once they are there.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use quipu_model::{TimestampMs, TopicConfig, batch::RecordHeader};
use tokio::time::sleep;

use super::{
    names,
    trail::{self, Trail},
    work::{Failure, Work},
};
use crate::{
    Admin, ErrorReason, NewTopic, Producer, Record, Result, backoff::backoff, borrow_headers,
    error::Error, producer::now,
};

/// How much later than its delay a record may be tried: so much of the delay, at random, so that what failed together does not come
/// back together.
const JITTER: f64 = 0.2;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// What a trail may add to the largest record.
const TRAIL_BYTES: u32 = 64 << 10;

/// The longest that a record with this delay waits.
pub(super) fn longest(delay: Duration) -> Duration {
    delay.mul_f64(1.0 + JITTER)
}

/// A topic to put records in.
pub(crate) struct Destination<'a> {
    pub(crate) name: String,
    /// The topic that it is made after where it is missing: as many partitions and replicas, and as large records. `None`: it must be
    /// there.
    pub(crate) like: Option<&'a str>,
    /// Whether its records are kept until somebody takes them.
    pub(crate) for_ever: bool,
}

/// Where a record goes, and what it says.
pub(crate) struct Parcel<'a> {
    pub(crate) to: Destination<'a>,
    /// The partition; of a topic with fewer, the one that it comes to. `None`: the key's.
    pub(crate) partition: Option<u32>,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [RecordHeader],
}

/// Stores records in topics that it makes where they are missing.
#[derive(Debug)]
pub(crate) struct Stores {
    admin: Admin,
    producer: Producer,
    /// The numbers of partitions of the topics that are known to be there.
    known: Mutex<HashMap<String, u32>>,
}

impl Stores {
    pub(crate) fn new(admin: Admin, producer: Producer) -> Self {
        Self {
            admin,
            producer,
            known: Mutex::default(),
        }
    }

    pub(crate) fn producer(&self) -> &Producer {
        &self.producer
    }

    /// Stores a record. However long that takes: it returns when the record is acknowledged, or refused for good.
    pub(crate) async fn store(&self, parcel: &Parcel<'_>) -> Result<()> {
        let mut attempt = 0;
        loop {
            let error = match self.try_to_store(parcel).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if error.is(ErrorReason::UnknownTopic) && parcel.to.like.is_none() {
                return Err(error);
            }
            if error.is_stale_metadata() {
                self.known.lock().remove(&parcel.to.name);
            } else if !error.is_retryable() {
                return Err(error);
            }
            attempt += 1;
            tracing::warn!(topic = parcel.to.name, %error, "a record is stored again");
            sleep(backoff(attempt, FIRST_PAUSE, LONGEST_PAUSE)).await;
        }
    }

    async fn try_to_store(&self, parcel: &Parcel<'_>) -> Result<()> {
        let partitions = self.partitions(&parcel.to).await?;
        let headers = borrow_headers(parcel.headers);
        let record = Record {
            partition: parcel.partition.map(|partition| partition % partitions),
            key: parcel.key,
            value: parcel.value,
            ..Record::new(&parcel.to.name).headers(&headers)
        };
        self.producer.send(record).await?.await.map(drop)
    }

    /// How many partitions a topic has, which is made where it is missing and may be.
    async fn partitions(&self, to: &Destination<'_>) -> Result<u32> {
        if let Some(partitions) = self.known.lock().get(&to.name) {
            return Ok(*partitions);
        }
        let described = match self.admin.describe_topic(&to.name).await {
            Err(error) if error.is(ErrorReason::UnknownTopic) => {
                let like = to.like.ok_or(error)?;
                self.make(to, like).await?;
                self.admin.describe_topic(&to.name).await?
            }
            described => described?,
        };
        let partitions = u32::try_from(described.partitions.len()).unwrap_or(u32::MAX);
        if partitions == 0 {
            return Err(Error::malformed(format_args!(
                "the broker says that topic {:?} has no partitions",
                to.name
            )));
        }
        self.known.lock().insert(to.name.clone(), partitions);
        Ok(partitions)
    }

    async fn make(&self, to: &Destination<'_>, like: &str) -> Result<()> {
        let mut topic = NewTopic::new(&to.name);
        let mut model = HashMap::new();
        match self.admin.describe_topic(like).await {
            Ok(described) => {
                topic.partitions = u32::try_from(described.partitions.len()).ok();
                let described = described.topic.unwrap_or_default();
                topic.replication_factor = Some(described.replication_factor);
                model = described.config;
            }
            // Deleted meanwhile: its records are kept all the same.
            Err(error) if error.is(ErrorReason::UnknownTopic) => {}
            Err(error) => return Err(error),
        }
        topic.config = settings(&model, to.for_ever);
        match self.admin.create_topic(topic).await {
            Err(error) if !error.is(ErrorReason::TopicAlreadyExists) => Err(error),
            _ => Ok(()),
        }
    }
}

/// The settings of a topic for records that failed, after those of the topic that they come from: room for what is added to them, and
/// time enough to work on them.
fn settings(model: &HashMap<String, String>, for_ever: bool) -> HashMap<String, String> {
    let defaults = TopicConfig::default();
    let mut like = defaults.clone();
    for name in ["max.message.bytes", "retention.ms"] {
        if let Some(value) = model.get(name) {
            // What a newer broker may say: the default does.
            let _ = like.set(name, value);
        }
    }
    let largest = like.max_message_bytes.saturating_add(TRAIL_BYTES);
    let largest = largest.min(TopicConfig::MAX_MESSAGE_BYTES_LIMIT);
    let kept = match (for_ever, like.retention_ms) {
        (false, Some(ms)) => ms.max(defaults.retention_ms.unwrap_or(ms)).to_string(),
        _ => "-1".to_owned(),
    };
    HashMap::from([
        ("max.message.bytes".to_owned(), largest.to_string()),
        ("retention.ms".to_owned(), kept),
    ])
}

/// Puts records that failed where they belong.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) stores: Stores,
    pub(super) group: String,
    pub(super) retry_delays: Vec<Duration>,
}

impl Router {
    /// Puts a record away that failed: to be tried again, or among the dead letters. Returns once it is stored there.
    pub(super) async fn put_away(&self, work: &Work, failure: &Failure) {
        let mut trail = self.trail(work, failure);
        let retries = work.attempt as usize - 1;
        let delay = match failure {
            Failure::Transient(_) => self.retry_delays.get(retries),
            Failure::Permanent(_) => None,
        };
        if let Some(delay) = delay {
            match self.retry_later(work, &trail, *delay).await {
                Ok(()) => return,
                // It must not be in the way of those behind it.
                Err(error) => {
                    tracing::error!(topic = %trail.topic, partition = trail.partition, offset = %trail.offset, %error, "a record that failed can't be tried again");
                    trail.cause = format!("{}; it can't be tried again: {error}", trail.cause);
                }
            }
        }
        self.bury(work, trail).await;
    }

    fn trail(&self, work: &Work, failure: &Failure) -> Trail {
        let record = &work.record;
        let failed_at = now();
        Trail {
            topic: record.topic.clone(),
            partition: record.partition,
            offset: record.offset,
            timestamp: record.timestamp,
            group: self.group.clone(),
            attempts: work.attempt,
            first_failed_at: work.first_failed_at.unwrap_or(failed_at),
            failed_at,
            cause: failure.cause().to_owned(),
        }
    }

    async fn retry_later(&self, work: &Work, trail: &Trail, delay: Duration) -> Result<()> {
        let wait = delay.mul_f64(rand::random_range(1.0..=1.0 + JITTER));
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        let due = TimestampMs::new(trail.failed_at.get().saturating_add(wait));
        let mut headers = trail.headers(&work.record.headers);
        headers.push(trail::due(due));
        let to = Destination {
            name: names::retry_topic(&trail.topic, &self.group, delay)?,
            like: Some(&trail.topic),
            for_ever: false,
        };
        self.stores.store(&parcel(work, to, &headers)).await
    }

    async fn bury(&self, work: &Work, trail: Trail) {
        let whole = trail.headers(&work.record.headers);
        if let Err(error) = self.try_to_bury(work, &trail, &whole, true).await {
            tracing::error!(topic = %trail.topic, partition = trail.partition, offset = %trail.offset, %error, "a dead letter is stored without its value");
        } else {
            return;
        }
        let mut bare = trail.headers(&[]);
        bare.push(trail::value_left());
        let mut attempt = 0;
        while let Err(error) = self.try_to_bury(work, &trail, &bare, false).await {
            attempt += 1;
            tracing::error!(topic = %trail.topic, partition = trail.partition, offset = %trail.offset, %error, "a dead letter can't be stored: trying again");
            sleep(backoff(attempt, FIRST_PAUSE, LONGEST_PAUSE)).await;
        }
    }

    async fn try_to_bury(
        &self,
        work: &Work,
        trail: &Trail,
        headers: &[RecordHeader],
        with_value: bool,
    ) -> Result<()> {
        let to = Destination {
            name: names::dead_letter_topic(&trail.topic, &self.group)?,
            like: Some(&trail.topic),
            for_ever: true,
        };
        let mut parcel = parcel(work, to, headers);
        if !with_value {
            parcel.value = None;
        }
        self.stores.store(&parcel).await
    }
}

fn parcel<'a>(work: &'a Work, to: Destination<'a>, headers: &'a [RecordHeader]) -> Parcel<'a> {
    Parcel {
        to,
        partition: Some(work.record.partition),
        key: work.record.key.as_deref(),
        value: work.record.value.as_deref(),
        headers,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::settings;

    #[test]
    fn what_failed_is_kept_as_long_as_where_it_came_from_and_dead_letters_for_ever() {
        let day = 24 * 60 * 60 * 1000;
        for (given, for_ever, kept) in [
            (None, false, (7 * day).to_string()),
            (Some(day), false, (7 * day).to_string()),
            (Some(30 * day), false, (30 * day).to_string()),
            (Some(-1), false, "-1".to_owned()),
            (Some(day), true, "-1".to_owned()),
        ] {
            let given = given.map(|ms: i64| ("retention.ms".to_owned(), ms.to_string()));
            let made = settings(&given.into_iter().collect(), for_ever);
            assert_eq!(made["retention.ms"], kept);
        }
    }

    #[test]
    fn the_largest_record_has_room_for_its_trail() {
        for (given, made) in [(1000, 1000 + (64 << 10)), (32 << 20, 32 << 20)] {
            let given = ("max.message.bytes".to_owned(), given.to_string());
            let settings = settings(&HashMap::from([given]), false);
            assert_eq!(settings["max.message.bytes"], made.to_string());
        }
    }
}
