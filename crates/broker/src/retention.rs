//! Lets old records go, and compaction begin.

use std::{sync::Arc, time::Duration};

use quipu_storage::RetentionPolicy;

use crate::{core::Core, partitions::TopicPartitions};

/// Looks at every led partition once an interval, a little sooner or later each time, until the node stops.
pub(crate) async fn run(core: Arc<Core>, interval: Duration) {
    loop {
        // Nodes that started together should not all delete at the same moment.
        let wait = interval.mul_f64(rand::random_range(0.8..1.2));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = core.stop.cancelled() => return,
        }
        for topic in core.table.snapshot().values() {
            enforce(&core, topic).await;
        }
    }
}

async fn enforce(core: &Core, topic: &TopicPartitions) {
    let config = &topic.topic.config;
    // A topic that is only compacted keeps every key, however old. Its segments are closed by time all the same.
    let deletes = config.cleanup.delete;
    let policy = RetentionPolicy {
        max_age_ms: config.retention_ms.filter(|_| deletes),
        max_bytes: config.retention_bytes.filter(|_| deletes),
        max_records: config.retention_records.filter(|_| deletes),
    };
    for running in topic.running() {
        let partition = &running.partition;
        if core.stop.is_cancelled() {
            return;
        }
        if partition.damage().is_some() {
            continue;
        }
        if config.cleanup.compact
            && let Err(error) = partition.prepare_compaction(core.clock.now()).await
        {
            tracing::warn!(topic = %topic.topic.name, key = %partition.key(), %error, "compaction was not begun");
        }
        if !partition.is_leader() {
            continue;
        }
        let before = partition.start_offset();
        match partition.enforce_retention(policy, core.clock.now()).await {
            Ok(start) if start > before => {
                tracing::info!(topic = %topic.topic.name, key = %partition.key(), %before, %start, "old records were deleted");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(topic = %topic.topic.name, key = %partition.key(), %error, "retention was not enforced");
            }
        }
    }
}
