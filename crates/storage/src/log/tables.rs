//! Where a log takes from what it knows of idempotent producers: the table at its origin, those that stand beside sealed
//! segments or wait to be written there, and the batches since.
//!
//! **The origin.** Retention takes batches away, but what a producer sent is not forgotten with them: one whose answer was
//! lost sends again, and must not be appended twice because the batch is gone meanwhile. So the table of producers as of the
//! first segment (as of the log's end, where there is none) is part of the log's state, and moves when segments go.

use std::sync::Arc;

use bytes::Bytes;
use quipu_model::{Offset, TimestampMs};

use super::{
    core::{ClosedSegment, CoreError, LogCore},
    producers::ProducerTable,
    scan::Scan,
    segment::{Segment, SegmentError},
};
use crate::io::Disk;

/// A log's tables as they were at one moment: what they say takes no lock to find out.
#[derive(Debug)]
pub(super) struct Tables {
    disk: Arc<dyn Disk>,
    origin: Bytes,
    closed: Vec<ClosedSegment>,
    active: Option<Arc<Segment>>,
}

impl Tables {
    /// What was known of producers at `end`, where a segment or the log ends, or an entry. Blocks: reads a file, and the
    /// batches' headers since.
    pub(super) fn at(
        &self,
        end: Offset,
        now: TimestampMs,
    ) -> Result<ProducerTable, (Arc<Segment>, SegmentError)> {
        let before = self
            .closed
            .partition_point(|closed| closed.segment.next_offset() <= end);
        let (from, mut table) = self.newest(before);
        let closed = self.closed.iter().map(|closed| &closed.segment);
        let since = closed.chain(&self.active).skip(from);
        for segment in since.take_while(|segment| segment.base < end) {
            note_all(&mut table, segment, end, now).map_err(|e| (Arc::clone(segment), e))?;
        }
        Ok(table)
    }

    /// The newest table that is there of the first so many closed segments, and how many of them it reflects.
    fn newest(&self, closed: usize) -> (usize, ProducerTable) {
        let known = |closed: &ClosedSegment| match &closed.producers {
            Some(bytes) => ProducerTable::decode(bytes),
            None => load_producers(&*self.disk, &closed.segment),
        };
        let mut newest_first = self.closed.iter().take(closed).enumerate().rev();
        let found = newest_first.find_map(|(at, closed)| Some((at + 1, known(closed)?)));
        found.unwrap_or_else(|| (0, ProducerTable::decode(&self.origin).unwrap_or_default()))
    }
}

fn note_all(
    table: &mut ProducerTable,
    segment: &Segment,
    end: Offset,
    now: TimestampMs,
) -> Result<(), SegmentError> {
    let mut scan = Scan::new(segment, Default::default());
    while let Some((header, _)) = scan.next_header()?
        && header.base_offset < end
    {
        table.note(&header, header.base_offset, now);
    }
    Ok(())
}

impl LogCore {
    pub(super) fn tables(&self) -> Tables {
        Tables {
            disk: Arc::clone(&self.disk),
            origin: self.origin.clone(),
            closed: self.closed.clone(),
            active: self.active.as_ref().map(|a| Arc::clone(&a.segment)),
        }
    }

    /// Forgets the tables that closed segments were given while not all before them was known.
    pub(super) fn forget_tables(&mut self) {
        let unsealed = self.closed.iter_mut().filter(|c| !c.segment.is_sealed());
        unsealed.for_each(|closed| closed.producers = None);
    }

    /// Where the first segment would begin if the log began at `before`: where the log ends, if none would be left.
    pub(super) fn base_after_trim(&self, before: Offset) -> Offset {
        let start = self.start_offset.max(before.min(self.end_offset));
        let active = self.active.as_ref().map(|active| &active.segment);
        let closed = self.closed.iter().map(|closed| &closed.segment);
        let mut stays = closed.filter(|segment| segment.next_offset() > start);
        let first = stays.next().or(active);
        first.map_or(self.end_offset, |segment| segment.base)
    }

    /// Makes `before` the first offset served, and gives back the closed segments that lie wholly below it, where `origin`
    /// says what was known of producers behind them, and at which offset. Where the log has changed since that was found
    /// out, they stay until the next time.
    pub(super) fn trim(
        &mut self,
        before: Offset,
        origin: (Offset, &ProducerTable),
    ) -> Vec<Arc<Segment>> {
        let base = self.base_after_trim(before);
        self.start_offset = self.start_offset.max(before.min(self.end_offset));
        if base != origin.0 {
            return Vec::new();
        }
        self.origin = origin.1.encode().into();
        let gone = self.closed.partition_point(|c| c.segment.base < base);
        self.closed.drain(..gone).map(|c| c.segment).collect()
    }

    /// Rebuilds what is known of producers from the newest usable table on.
    pub(super) fn rebuild_producers(&mut self, now: TimestampMs) -> Result<(), CoreError> {
        let (from, mut table) = self.tables().newest(self.closed.len());
        let segments: Vec<_> = self.segments().skip(from).cloned().collect();
        for (at, segment) in segments.iter().enumerate() {
            note_all(&mut table, segment, segment.next_offset(), now)
                .map_err(|error| CoreError::Segment(segment.path.clone(), error))?;
            if let Some(closed) = self.closed.get_mut(from + at) {
                table.expire();
                closed.producers = (!segment.is_sealed()).then(|| Bytes::from(table.encode()));
            }
        }
        self.producers = table;
        Ok(())
    }
}

/// The table that was written when a segment was sealed.
pub(super) fn load_producers(disk: &dyn Disk, segment: &Segment) -> Option<ProducerTable> {
    if !segment.is_sealed() {
        return None;
    }
    let bytes = crate::io::read_whole(disk, &segment.path.with_extension("producers")).ok()?;
    ProducerTable::decode(&bytes)
}
