//! Reading closed segments again from time to time, so that rot is found while other replicas still have the bytes.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Duration,
};

use super::{Context, Partitions};
use crate::{PartitionLog, log::Segment};

/// How much is read at a time: a checkpoint that comes up waits for no more than this.
const SLICE_BYTES: usize = 1 << 20;

/// Nothing looks for work more often than this.
const LEAST_REST: Duration = Duration::from_secs(10);

/// Where the scrub stands. What it holds does not keep a removed segment's file.
#[derive(Debug, Default)]
pub(super) struct Scrubber {
    due: VecDeque<(Weak<PartitionLog>, Weak<Segment>)>,
    /// In the first segment that is due.
    position: u64,
}

impl Scrubber {
    /// Checks a slice of what is due, and says how long to rest then.
    pub(super) fn step(&mut self, context: &Context, partitions: &Partitions) -> Duration {
        let (config, now) = (&context.config, context.clock.monotonic());
        if config.scrub_bytes_per_second == 0 {
            return Duration::MAX;
        }
        if self.due.is_empty() {
            let rest = self.look_for_work(partitions, now, config.scrub_interval);
            if self.due.is_empty() {
                return rest.max(LEAST_REST);
            }
        }
        let read = self.slice(now);
        Duration::from_secs_f64(read as f64 / config.scrub_bytes_per_second as f64)
    }

    /// Collects what is due; how long until something else is.
    fn look_for_work(
        &mut self,
        partitions: &Partitions,
        now: Duration,
        interval: Duration,
    ) -> Duration {
        let mut rest = interval;
        let logs: Vec<_> = partitions.read().values().cloned().collect();
        for log in logs {
            if log.damage().is_some() {
                // It is repaired before long, and may have more.
                rest = Duration::ZERO;
                continue;
            }
            for segment in log.sealed_segments() {
                match segment.scrubbed().map(|at| at + interval) {
                    Some(due) if due > now => rest = rest.min(due - now),
                    _ => self
                        .due
                        .push_back((Arc::downgrade(&log), Arc::downgrade(&segment))),
                }
            }
        }
        rest
    }

    /// Checks the next slice; how many bytes it had.
    fn slice(&mut self, now: Duration) -> usize {
        let Some((log, segment)) = self.due.front() else {
            return 0;
        };
        if let (Some(log), Some(segment)) = (log.upgrade(), segment.upgrade())
            && let Some(read) = log.scrub(&segment, self.position, SLICE_BYTES)
        {
            self.position += read as u64;
            if self.position < segment.len() {
                return read;
            }
            segment.note_scrubbed(now);
        }
        self.due.pop_front();
        self.position = 0;
        0
    }
}
