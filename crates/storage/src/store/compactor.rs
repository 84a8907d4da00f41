//! The worker that compacts, one partition at a time, no faster than it may.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

use quipu_model::PartitionKey;

use super::{Context, Partitions};
use crate::{
    PartitionLog,
    io::{Rest, Worker, Working},
    log::{Pass, PassError, Plan},
};

/// How often the partitions are looked at, unless a log says that there is something to do.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);

/// How long after a pass that could not go on the next one begins.
const AFTER_TROUBLE: Duration = Duration::from_secs(60);

/// A running worker, and how to end it.
#[derive(Debug)]
pub(super) struct Compacting {
    working: Arc<dyn Working>,
    is_stopped: Arc<AtomicBool>,
}

impl Compacting {
    pub(super) fn wake(&self) {
        self.working.wake();
    }

    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        self.working.wake();
        self.working.join();
    }
}

struct Compactor {
    context: Arc<Context>,
    partitions: Partitions,
    is_stopped: Arc<AtomicBool>,
    pass: Option<Pass>,
    /// Whose last pass did not end: others come first, once.
    failed: Option<PartitionKey>,
}

/// Starts the worker.
pub(super) fn start(context: &Arc<Context>, partitions: &Partitions) -> io::Result<()> {
    let is_stopped = Arc::<AtomicBool>::default();
    let compactor = Compactor {
        context: Arc::clone(context),
        partitions: Arc::clone(partitions),
        is_stopped: Arc::clone(&is_stopped),
        pass: None,
        failed: None,
    };
    let working = context
        .workers
        .start("quipu-compactor", Box::new(compactor))?;
    let _ = context.compacting.set(Compacting {
        working,
        is_stopped,
    });
    Ok(())
}

impl Worker for Compactor {
    fn gives_way(&self) -> bool {
        true
    }

    fn step(&mut self, _rested: bool) -> Rest {
        if self.is_stopped.load(Ordering::Acquire) {
            return Rest::Ended;
        }
        let most_bytes_a_second = self.context.config.compaction_bytes_per_second;
        if most_bytes_a_second == 0 {
            return Rest::UntilWoken;
        }
        let Some(pass) = &mut self.pass else {
            return self.look();
        };
        let metrics = &self.context.metrics.compaction;
        match pass.step() {
            Ok(progress) => {
                metrics.read_bytes.inc_by(progress.read_bytes);
                metrics.written_bytes.inc_by(progress.written_bytes);
                if progress.is_done {
                    metrics.passes.inc();
                    self.pass = None;
                }
                let bytes = progress.read_bytes + progress.written_bytes;
                let rest = Duration::from_secs_f64(bytes as f64 / most_bytes_a_second as f64);
                // What is unbounded need not ask the clock.
                if rest < Duration::from_micros(1) {
                    return Rest::No;
                }
                Rest::For(rest)
            }
            Err(error) => {
                let partition = pass.log().key();
                self.pass = None;
                match error {
                    PassError::Changed => return Rest::No,
                    error => tracing::warn!(%partition, %error, "compaction did not end"),
                }
                metrics.failures.inc();
                self.failed = Some(partition);
                Rest::For(AFTER_TROUBLE)
            }
        }
    }
}

impl Compactor {
    /// Begins with the partition that has the most to gain.
    fn look(&mut self) -> Rest {
        let logs: Vec<_> = self.partitions.read().values().cloned().collect();
        let now = self.context.clock.now();
        let (mut dirtiest, mut is_unsealed) = (0.0_f64, false);
        let mut next: Option<(f64, Arc<PartitionLog>, Plan)> = None;
        let failed = self.failed.take();
        for log in logs {
            let mut look = log.look_at_compaction(now);
            dirtiest = dirtiest.max(look.dirty_ratio);
            if failed == Some(log.key()) {
                look.dirty_ratio = -1.0;
            }
            is_unsealed |= look.is_unsealed;
            if let Some(plan) = look.plan
                && next
                    .as_ref()
                    .is_none_or(|(ratio, ..)| look.dirty_ratio > *ratio)
            {
                next = Some((look.dirty_ratio, log, plan));
            }
        }
        self.context.metrics.compaction.dirty_ratio.set(dirtiest);
        if is_unsealed {
            self.context.request_checkpoint();
        }
        match next {
            Some((_, log, plan)) => {
                let memory_bytes = self.context.config.compaction_memory_bytes;
                self.pass = Some(Pass::begin(log, plan, memory_bytes));
                Rest::No
            }
            None => Rest::For(LOOK_INTERVAL),
        }
    }
}

/// What compaction counts.
#[derive(Debug, Default)]
pub(super) struct CompactionMetrics {
    read_bytes: Counter,
    written_bytes: Counter,
    passes: Counter,
    failures: Counter,
    dirty_ratio: Gauge<f64, AtomicU64>,
}

impl CompactionMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "storage_compaction_read_bytes",
            "Bytes of segments that compaction has read",
            self.read_bytes.clone(),
        );
        registry.register(
            "storage_compaction_written_bytes",
            "Bytes of segments that compaction has written",
            self.written_bytes.clone(),
        );
        registry.register(
            "storage_compaction_passes",
            "Compactions of a partition that ended well",
            self.passes.clone(),
        );
        registry.register(
            "storage_compaction_failures",
            "Compactions of a partition that did not end, and are begun again",
            self.failures.clone(),
        );
        registry.register(
            "storage_compaction_dirty_ratio",
            "The greatest share of a partition's compactable bytes that was not compacted, when compaction last looked",
            self.dirty_ratio.clone(),
        );
    }
}
