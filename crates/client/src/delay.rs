//! Records that are delivered later.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quipu_model::{TimestampMs, batch::RecordHeader};

use crate::{
    Client, ErrorReason, Failure, ProducerConfig, Record, Result, Work, Worker, WorkerConfig,
    error::Error,
    producer::now,
    worker::{
        Destination, Parcel, Stores, Subscription, Trail, delay_topic, deliver_at, delivered_at,
        due, due_at,
    },
};

/// How long records wait in each of a topic's delay topics. In one of them all wait equally long, so that the first is always the next.
const RUNGS: [Duration; 7] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(60 * 60),
    Duration::from_secs(6 * 60 * 60),
    Duration::from_secs(24 * 60 * 60),
];

/// The group of all relays.
const GROUP: &str = "quipu-delay";

/// Sends records that are to be delivered later.
///
/// They wait in the topic's delay topics (`orders.delay.1s`, `orders.delay.10s` and so on up to a day) and go from one to the next until
/// they are due, never sooner and about a second later at most; then they stand in the topic itself. A [`DelayRelay`] must run for the
/// topic somewhere, and what it does, it does at least once. Records of one key that are due at the same time may overtake each other.
///
/// ```no_run
/// use quipu_client::{Client, Delayed, DelayRelay, Record, TimestampMs};
///
/// # async fn example(tomorrow: TimestampMs) -> quipu_client::Result<()> {
/// let client = Client::connect("localhost:9093").await?;
/// let relay = DelayRelay::start(&client, &["reminders"]).await?;
/// let delayed = Delayed::new(&client).await?;
/// delayed.send_at(Record::new("reminders").value(b"pay"), tomorrow).await?;
/// # relay.close().await
/// # }
/// ```
#[derive(Debug)]
pub struct Delayed {
    client: Client,
    stores: Stores,
}

impl Delayed {
    /// A sender.
    ///
    /// # Errors
    /// Where no broker hands out an identity for its producer.
    pub async fn new(client: &Client) -> Result<Self> {
        Ok(Self {
            client: client.clone(),
            stores: stores(client).await?,
        })
    }

    /// Sends a record that is to stand in its topic at this time; one whose time is over stands there at once. Returns once it is
    /// acknowledged, however long that takes. A partition that the record names is not kept: its key says where it goes.
    ///
    /// # Errors
    /// Where there is no such topic, or the record is refused.
    pub async fn send_at(&self, record: Record<'_>, at: TimestampMs) -> Result<()> {
        // Found out now, and not when nobody is there any more to be told.
        self.client.admin().describe_topic(record.topic).await?;
        let own = record.headers.iter().map(|(name, value)| RecordHeader {
            key: Bytes::copy_from_slice(name.as_bytes()),
            value: value.map(Bytes::copy_from_slice),
        });
        let waiting = Waiting {
            topic: record.topic,
            key: record.key,
            value: record.value,
            headers: own.collect(),
        };
        waiting.pass_on(&self.stores, at, now()).await
    }
}

/// Passes on what [`Delayed`] sends.
#[derive(Clone, Copy, Debug)]
pub struct DelayRelay;

impl DelayRelay {
    /// Passes on what waits for these topics, until it is closed. Several share the work.
    ///
    /// # Errors
    /// As [`Worker::start`].
    pub async fn start(client: &Client, topics: &[&str]) -> Result<Worker> {
        let mut subscription = Subscription::default();
        for topic in topics {
            for rung in RUNGS {
                subscription.add_delay(delay_topic(topic, rung)?, topic, rung);
            }
        }
        let mut config = WorkerConfig::new(GROUP, "");
        // It only ever waits for brokers, and those it waits for.
        config.group.rebalance_timeout = Duration::from_secs(3600);
        config.attempt_timeout = Duration::from_secs(3599);
        config.retry_delays = Vec::new();
        config.breaker = None;
        let stores = Arc::new(stores(client).await?);
        let relay = move |work: Arc<Work>| {
            let stores = Arc::clone(&stores);
            async move { relay(&stores, &work).await.map_err(Failure::permanent) }
        };
        Worker::start_on(client, config, subscription, relay).await
    }
}

async fn stores(client: &Client) -> Result<Stores> {
    let producer = client.producer(ProducerConfig::default()).await?;
    Ok(Stores::new(client.admin(), producer))
}

async fn relay(stores: &Stores, work: &Work) -> Result<()> {
    let record = &work.record;
    let at = delivered_at(&record.headers).unwrap_or(TimestampMs::NONE);
    // It was waited for that, whatever this clock says.
    let waited_to = due_at(&record.headers).unwrap_or(TimestampMs::NONE);
    let (_, own) = Trail::read(record.headers.clone());
    let waiting = Waiting {
        topic: &record.topic,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: own,
    };
    waiting.pass_on(stores, at, now().max(waited_to)).await
}

/// A record on its way.
struct Waiting<'a> {
    topic: &'a str,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Vec<RecordHeader>,
}

impl Waiting<'_> {
    /// Stores the record in its topic, or where it waits next.
    async fn pass_on(mut self, stores: &Stores, at: TimestampMs, now: TimestampMs) -> Result<()> {
        let left = at.get().saturating_sub(now.get());
        let to = match u64::try_from(left) {
            Err(_) | Ok(0) => Destination {
                name: self.topic.to_owned(),
                like: None,
                for_ever: false,
            },
            Ok(left) => {
                let left = Duration::from_millis(left);
                let rung = rung(left);
                let wait = i64::try_from(left.min(rung).as_millis()).unwrap_or(i64::MAX);
                let until = now.get().saturating_add(wait);
                self.headers.push(due(TimestampMs::new(until)));
                self.headers.push(deliver_at(at));
                Destination {
                    name: delay_topic(self.topic, rung)?,
                    like: Some(self.topic),
                    for_ever: false,
                }
            }
        };
        let parcel = Parcel {
            to,
            partition: None,
            key: self.key,
            value: self.value,
            headers: &self.headers,
        };
        match stores.store(&parcel).await {
            Err(error) if error.is(ErrorReason::UnknownTopic) => Err(Error::invalid(format_args!(
                "the topic {:?}, to which a delayed record is due, is not there",
                self.topic
            ))),
            stored => stored,
        }
    }
}

/// Where a record waits that has so long to go: nowhere longer than that, but for the last second.
fn rung(left: Duration) -> Duration {
    let fitting = RUNGS.iter().rev().find(|rung| **rung <= left);
    fitting.copied().unwrap_or(RUNGS[0])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::rung;

    #[test]
    fn nobody_waits_too_long_and_everybody_arrives_in_few_steps() {
        for left in [
            1,
            999,
            1000,
            59_999,
            3_600_000,
            987_654_321,
            30 * 86_400_000,
        ] {
            let mut left = Duration::from_millis(left);
            let days = left.as_secs() / 86_400;
            let mut steps = 0;
            while !left.is_zero() {
                let rung = rung(left);
                assert!(rung <= left || rung == Duration::from_secs(1));
                left = left.saturating_sub(rung);
                steps += 1;
            }
            assert!(steps <= days + 50, "{steps}");
        }
    }
}
