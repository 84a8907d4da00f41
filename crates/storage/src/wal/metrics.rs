//! What the write-ahead log tells about itself.

use prometheus_client::{
    metrics::{
        counter::Counter,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Metrics of the groups that were written and synced together.
#[derive(Debug)]
pub(super) struct WalMetrics {
    pub(super) group_records: Histogram,
    pub(super) group_bytes: Histogram,
    pub(super) flush_seconds: Histogram,
    pub(super) bytes: Counter,
}

impl Default for WalMetrics {
    fn default() -> Self {
        Self {
            group_records: Histogram::new(exponential_buckets(1.0, 4.0, 8)),
            group_bytes: Histogram::new(exponential_buckets(256.0, 4.0, 9)),
            flush_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 15)),
            bytes: Counter::default(),
        }
    }
}

impl WalMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("wal");
        registry.register(
            "group_records",
            "Records that one sync of the write-ahead log made durable",
            self.group_records.clone(),
        );
        registry.register_with_unit(
            "group",
            "Bytes that one sync of the write-ahead log made durable",
            Unit::Bytes,
            self.group_bytes.clone(),
        );
        registry.register_with_unit(
            "flush",
            "Time to write and sync one group",
            Unit::Seconds,
            self.flush_seconds.clone(),
        );
        registry.register_with_unit(
            "written",
            "Bytes written to the write-ahead log",
            Unit::Bytes,
            self.bytes.clone(),
        );
    }
}
