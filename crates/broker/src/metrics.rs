//! What the node counts and measures.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use quipu_replication::{Acks, Partition};

use crate::error::Reason;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AcksLabels {
    acks: &'static str,
}

/// The broker's own metrics; the store registers its own.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// By acks; the three are its members, at hand without a look-up.
    append: Family<AcksLabels, Histogram, fn() -> Histogram>,
    append_all: Histogram,
    append_leader: Histogram,
    append_none: Histogram,
    append_failures: Family<FailureLabels, Counter>,
    fetch: Histogram,
    bytes_in: Counter,
    records_in: Counter,
    batches_in: Counter,
    bytes_out: Counter,
    fetches: Counter,
    partitions: Gauge,
    partitions_led: Gauge,
    partitions_leaderless: Gauge,
    partitions_damaged: Gauge,
    /// Open gRPC connections.
    pub(crate) connections: Gauge,
}

impl Metrics {
    /// Registers everything.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let append = Family::new_with_constructor(latency as fn() -> Histogram);
        let by = |acks| append.get_or_create(&AcksLabels { acks }).clone();
        let metrics = Self {
            append_all: by("all"),
            append_leader: by("leader"),
            append_none: by("none"),
            append: append.clone(),
            append_failures: Family::default(),
            fetch: latency(),
            bytes_in: Counter::default(),
            records_in: Counter::default(),
            batches_in: Counter::default(),
            bytes_out: Counter::default(),
            fetches: Counter::default(),
            partitions: Gauge::default(),
            partitions_led: Gauge::default(),
            partitions_leaderless: Gauge::default(),
            partitions_damaged: Gauge::default(),
            connections: Gauge::default(),
        };
        metrics.register_latencies(registry);
        metrics.register_counts(registry);
        metrics
    }

    fn register_latencies(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "append_latency",
            "From a produce request's arrival to its acknowledgement",
            Unit::Seconds,
            self.append.clone(),
        );
        registry.register_with_unit(
            "fetch_latency",
            "From a fetch request's arrival (a stream's: from when there was something to read) to its answer",
            Unit::Seconds,
            self.fetch.clone(),
        );
    }

    fn register_counts(&self, registry: &mut Registry) {
        registry.register(
            "append_failures",
            "Batches that were not acknowledged",
            self.append_failures.clone(),
        );
        registry.register_with_unit(
            "produced",
            "Bytes of batches acknowledged",
            Unit::Bytes,
            self.bytes_in.clone(),
        );
        registry.register(
            "produced_records",
            "Records acknowledged",
            self.records_in.clone(),
        );
        registry.register(
            "produced_batches",
            "Batches acknowledged",
            self.batches_in.clone(),
        );
        registry.register_with_unit(
            "fetched",
            "Bytes of batches handed out",
            Unit::Bytes,
            self.bytes_out.clone(),
        );
        registry.register(
            "fetches",
            "Answers to fetch requests and messages of fetch streams",
            self.fetches.clone(),
        );
        for (name, help, gauge) in [
            (
                "partitions",
                "Replicas that run on this node",
                &self.partitions,
            ),
            (
                "partitions_led",
                "Those of them that lead",
                &self.partitions_led,
            ),
            (
                "partitions_leaderless",
                "Those of them that know of no leader",
                &self.partitions_leaderless,
            ),
            (
                "partitions_damaged",
                "Those of them that are not served before their files, which are damaged, are repaired",
                &self.partitions_damaged,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "grpc_connections",
            "Open gRPC connections",
            self.connections.clone(),
        );
    }

    /// Counts the replicas that run here, as of now.
    pub(crate) fn count_partitions<'a>(&self, running: impl Iterator<Item = &'a Partition>) {
        let (mut all, mut led, mut leaderless, mut damaged) = (0, 0, 0, 0);
        for partition in running {
            let leadership = *partition.leadership().borrow();
            let is_damaged = partition.damage().is_some();
            all += 1;
            led += i64::from(leadership.ready);
            leaderless += i64::from(leadership.leader.is_none() && !is_damaged);
            damaged += i64::from(is_damaged);
        }
        self.partitions.set(all);
        self.partitions_led.set(led);
        self.partitions_leaderless.set(leaderless);
        self.partitions_damaged.set(damaged);
    }

    pub(crate) fn appended(&self, acks: Acks, took: Duration, bytes: u64, records: u64) {
        let histogram = match acks {
            Acks::All => &self.append_all,
            Acks::Leader => &self.append_leader,
            Acks::None => &self.append_none,
        };
        histogram.observe(took.as_secs_f64());
        self.bytes_in.inc_by(bytes);
        self.records_in.inc_by(records);
        self.batches_in.inc();
    }

    pub(crate) fn append_failed(&self, reason: Reason) {
        let reason = format!("{reason:?}");
        self.append_failures
            .get_or_create(&FailureLabels { reason })
            .inc();
    }

    pub(crate) fn fetched(&self, took: Duration, bytes: u64) {
        self.fetch.observe(took.as_secs_f64());
        self.bytes_out.inc_by(bytes);
        self.fetches.inc();
    }
}

/// From 50 microseconds, less than any sync, to 13 seconds.
fn latency() -> Histogram {
    Histogram::new(std::iter::successors(Some(50e-6), |edge| Some(edge * 2.0)).take(19))
}
