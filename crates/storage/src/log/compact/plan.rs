//! Which segments of a partition are to be compacted, and whether it is time.

use std::sync::Arc;

use quipu_model::{LogId, Offset, RaftIndex, TimestampMs, TopicConfig};

use crate::log::{
    PartitionLog,
    core::{ClosedSegment, LogCore},
    segment::Segment,
};

/// What a pass is to do.
#[derive(Debug)]
pub(crate) struct Plan {
    /// All segments that may be compacted, from the oldest on.
    pub(super) segments: Vec<Arc<Segment>>,
    /// Below this offset they were compacted before.
    pub(super) dirty_from: Offset,
    /// How often another log had been put in place of this one: what is found of one says nothing of the next.
    pub(super) installs: u64,
    pub(super) now: TimestampMs,
    pub(super) config: TopicConfig,
}

/// What a look at a partition found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// The share of the compactable bytes that was not compacted yet.
    pub(crate) dirty_ratio: f64,
    /// Something to do now.
    pub(crate) plan: Option<Plan>,
    /// Something could be done, were it sealed.
    pub(crate) is_unsealed: bool,
}

/// How far compaction can go, and whether it is to begin.
struct Reach {
    /// So many closed segments.
    segments: usize,
    dirty_ratio: f64,
    is_due: bool,
}

impl PartitionLog {
    /// Looks what there is to compact.
    pub(crate) fn look_at_compaction(&self, now: TimestampMs) -> Look {
        let inner = self.inner.lock();
        let core = &inner.core;
        if !core.config.cleanup.compact || self.damage().is_some() || inner.ended.is_some() {
            return Look::default();
        }
        let purged = core.last_purged.map(|id| id.index);
        let purgeable = core.reach(now, |_, last| Some(last) <= purged);
        let sealed = core.reach(now, |segment, last| {
            segment.is_sealed() && Some(last) <= purged
        });
        let plan = sealed.is_due.then(|| Plan {
            segments: core.closed[..sealed.segments]
                .iter()
                .map(|closed| Arc::clone(&closed.segment))
                .collect(),
            dirty_from: core.compacted_to,
            installs: core.installs,
            now,
            config: core.config.clone(),
        });
        Look {
            dirty_ratio: sealed.dirty_ratio,
            is_unsealed: purgeable.is_due && plan.is_none(),
            plan,
        }
    }

    /// Where Raft's log is to be purged before compaction can go on: an entry that was applied, all records up to which lie below
    /// `committed`, and the offset that follows it. `None` where compaction can do without, or has nothing to do. The voters as
    /// of that entry must be durable before it is purged.
    pub fn compaction_point(&self, committed: Offset, now: TimestampMs) -> Option<(LogId, Offset)> {
        let inner = self.inner.lock();
        let core = &inner.core;
        if !core.config.cleanup.compact {
            return None;
        }
        let applied = inner.applied.0?.index;
        let reach = core.reach(now, |segment, last| {
            segment.next_offset() <= committed && last <= applied
        });
        let (_, last) = core.closed_until(reach.segments.checked_sub(1)?)?;
        let purged = core.last_purged.map(|id| id.index);
        if !reach.is_due || Some(last) <= purged {
            return None;
        }
        let term = core.raft.term_of(last)?;
        let id = LogId { term, index: last };
        Some((
            id,
            core.closed.get(reach.segments - 1)?.segment.next_offset(),
        ))
    }
}

impl LogCore {
    /// A closed segment, and the last Raft entry before the one that follows it.
    fn closed_until(&self, at: usize) -> Option<(&ClosedSegment, RaftIndex)> {
        let closed = self.closed.get(at)?;
        let next = match self.closed.get(at + 1) {
            Some(next) => Some(&next.segment),
            None => self.active.as_ref().map(|active| &active.segment),
        };
        let last = match next {
            Some(next) => RaftIndex::new(next.first_index.get().checked_sub(1)?),
            None => self.last?.index,
        };
        Some((closed, last))
    }

    /// How far the segments go that are old enough and that `may` be compacted.
    fn reach(&self, now: TimestampMs, may: impl Fn(&Segment, RaftIndex) -> bool) -> Reach {
        let age_ms = |since: i64| u64::try_from(now.get().saturating_sub(since)).unwrap_or(0);
        let config = &self.config;
        let (mut clean, mut dirty, mut segments) = (0, 0, 0);
        let mut is_overdue = false;
        while let Some((ClosedSegment { segment, .. }, last)) = self.closed_until(segments) {
            let young = age_ms(self.newest_ms(segments)) < config.min_compaction_lag_ms;
            if young || segment.is_newly_cut() || !may(segment, last) {
                break;
            }
            if segment.next_offset() > self.compacted_to {
                dirty += segment.len();
                is_overdue |= age_ms(segment.created.get()) >= config.max_compaction_lag_ms;
            } else {
                clean += segment.len();
            }
            is_overdue |= segment.compacted().is_some_and(|compacted| {
                compacted.tombstones > 0 && age_ms(compacted.at.get()) >= config.delete_retention_ms
            });
            segments += 1;
        }
        let dirty_ratio = match dirty {
            0 => 0.0,
            dirty => dirty as f64 / (clean + dirty) as f64,
        };
        let is_dirty = dirty > 0 && dirty_ratio >= config.min_cleanable_dirty_ratio.as_f64();
        Reach {
            segments,
            dirty_ratio,
            is_due: is_dirty || is_overdue,
        }
    }
}
