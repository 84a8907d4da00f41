//! Holding clients to their quotas: what each sends and is sent is counted, and who is past its rate is told how long to wait.
//!
//! A request is served whatever it costs; the wait comes after it. So no request is too large for a quota, and what waits is a
//! client, not a request in memory.

use std::{collections::HashMap, sync::Arc, sync::atomic::AtomicU64, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::{Registry, Unit},
};
use tokio::time::{Instant, sleep};

use crate::metadata::{LONGEST_CLIENT_ID, Metadata, Rate, Traffic};

/// The longest wait that a client is told. What it owes beyond is let off: a mistake costs no more than this.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// So much of its rate may a client that was quiet send or be sent at once.
const BURST: Duration = Duration::from_secs(1);
/// After so long a client is as if it had never been there.
const FORGIVEN: Duration = LONGEST_WAIT.saturating_add(BURST);
/// The most client ids that are told from one another; those with quotas of their own come on top. The others share.
const MOST_CLIENTS: usize = 4096;
/// How often it is looked, at most, whether some of that many are quiet.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// What a client may still send or be sent: below zero, what it has to wait for.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    bytes: f64,
    at: Instant,
}

impl Bucket {
    fn full(at: Instant) -> Self {
        Self {
            bytes: f64::INFINITY,
            at,
        }
    }

    /// Takes bytes out, and says how long it takes until none are owed: whole milliseconds.
    fn take(&mut self, rate: Rate, bytes: usize, now: Instant) -> Duration {
        let rate = rate.bytes_per_second.get() as f64;
        let since = now.duration_since(self.at).as_secs_f64();
        let filled = (self.bytes + since * rate).min(rate * BURST.as_secs_f64());
        self.bytes = (filled - bytes as f64).max(-rate * LONGEST_WAIT.as_secs_f64());
        self.at = now;
        let owed_ms = (-self.bytes / rate * 1000.0).ceil().max(0.0);
        Duration::from_millis(owed_ms as u64).min(LONGEST_WAIT)
    }
}

/// The clients of one kind of traffic.
#[derive(Debug)]
struct Buckets {
    by_client: HashMap<Box<str>, Bucket>,
    /// Of those that there is no room to tell apart.
    shared: Bucket,
    sweep_at: Instant,
}

impl Buckets {
    fn new(now: Instant) -> Self {
        Self {
            by_client: HashMap::new(),
            shared: Bucket::full(now),
            sweep_at: now,
        }
    }

    fn of(&mut self, client: &str, rate: Rate, now: Instant) -> &mut Bucket {
        if !self.by_client.contains_key(client) {
            let has_room = self.has_room(now) && client.len() <= LONGEST_CLIENT_ID;
            if has_room || rate.own {
                self.by_client.insert(client.into(), Bucket::full(now));
            }
        }
        let own = self.by_client.get_mut(client);
        own.unwrap_or(&mut self.shared)
    }

    fn has_room(&mut self, now: Instant) -> bool {
        if self.by_client.len() >= MOST_CLIENTS && now >= self.sweep_at {
            self.sweep_at = now + SWEEP_PAUSE;
            let is_quiet = |bucket: &Bucket| now.duration_since(bucket.at) >= FORGIVEN;
            self.by_client.retain(|_, bucket| !is_quiet(bucket));
        }
        self.by_client.len() < MOST_CLIENTS
    }
}

/// One kind of traffic.
#[derive(Debug)]
struct Meter {
    buckets: Mutex<Buckets>,
    throttled_bytes: Counter,
    throttled_seconds: Counter<f64, AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TrafficLabels {
    traffic: &'static str,
}

/// Who has sent and was sent how much.
#[derive(Debug)]
pub(crate) struct Quotas {
    metadata: Arc<Metadata>,
    produce: Meter,
    fetch: Meter,
}

impl Quotas {
    /// Registers its metrics.
    pub(crate) fn new(metadata: Arc<Metadata>, registry: &mut Registry) -> Self {
        let bytes = Family::<TrafficLabels, Counter>::default();
        let seconds = Family::<TrafficLabels, Counter<f64, AtomicU64>>::default();
        registry.register_with_unit(
            "throttled",
            "Bytes with which clients went past their quotas",
            Unit::Bytes,
            bytes.clone(),
        );
        registry.register_with_unit(
            "throttled",
            "How long clients were told to wait since they were past their quotas",
            Unit::Seconds,
            seconds.clone(),
        );
        let meter = |traffic| Meter {
            buckets: Mutex::new(Buckets::new(Instant::now())),
            throttled_bytes: bytes.get_or_create(&TrafficLabels { traffic }).clone(),
            throttled_seconds: seconds.get_or_create(&TrafficLabels { traffic }).clone(),
        };
        Self {
            metadata,
            produce: meter("produce"),
            fetch: meter("fetch"),
        }
    }

    fn meter(&self, traffic: Traffic) -> &Meter {
        match traffic {
            Traffic::Produce => &self.produce,
            Traffic::Fetch => &self.fetch,
        }
    }

    /// Counts bytes that a client sent or is sent, and says how long it is to wait before its next request of the kind: whole
    /// milliseconds, at most 30 s.
    pub(crate) fn charge(&self, client: &str, traffic: Traffic, bytes: usize) -> Duration {
        let wait = self.take(client, traffic, bytes);
        if !wait.is_zero() {
            let meter = self.meter(traffic);
            meter.throttled_bytes.inc_by(bytes as u64);
            meter.throttled_seconds.inc_by(wait.as_secs_f64());
        }
        wait
    }

    /// How long a client that is past its quota has to wait yet.
    pub(crate) fn owed(&self, client: &str, traffic: Traffic) -> Duration {
        self.take(client, traffic, 0)
    }

    /// Waits until a client is not past its quota: as long as that takes, where others of the same name go on.
    pub(crate) async fn settle(&self, client: &str, traffic: Traffic) {
        loop {
            let owed = self.owed(client, traffic);
            if owed.is_zero() {
                return;
            }
            sleep(owed).await;
        }
    }

    /// How many bytes are to be sent to a client at once: with more, it would have to wait for longer than it need.
    pub(crate) fn most_at_once(&self, client: &str, traffic: Traffic) -> usize {
        let rate = self.metadata.rate(client, traffic);
        rate.map_or(usize::MAX, |rate| {
            let rate = rate.bytes_per_second.get() as f64;
            (rate * BURST.as_secs_f64()) as usize
        })
    }

    fn take(&self, client: &str, traffic: Traffic, bytes: usize) -> Duration {
        let Some(rate) = self.metadata.rate(client, traffic) else {
            return Duration::ZERO;
        };
        let now = Instant::now();
        let mut buckets = self.meter(traffic).buckets.lock();
        buckets.of(client, rate, now).take(rate, bytes, now)
    }
}

#[cfg(test)]
mod tests;
