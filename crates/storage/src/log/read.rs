//! Reading: by offset for consumers, by time, by Raft index for replication.

use std::sync::Arc;

use bytes::Bytes;
use quipu_model::{
    LogId, Offset, Position, RaftIndex, RecordBatch, Term, TimestampMs, batch::BatchHeader,
};

use super::{
    Inner, PartitionLog, ReadError,
    raft_map::RaftMap,
    scan::Scan,
    segment::{Segment, SegmentError},
    types::{EntryInfo, EntryKind, LogEntry, Payload, ReadBatches, TimestampedOffset},
};

/// What is read beyond the bytes asked for, so that the walk from an index entry to the first batch needs no second read.
const WALK_BYTES: usize = 64 << 10;

impl PartitionLog {
    /// Whole batches from the one that holds `from` on, all below `up_to`: at most `max_bytes`, but at least one batch.
    /// Empty where `from` is `up_to`.
    ///
    /// # Errors
    /// Where there is no such offset, the bytes are damaged, or the disk does not give them.
    pub fn read(
        &self,
        from: Offset,
        max_bytes: usize,
        up_to: Offset,
    ) -> Result<ReadBatches, ReadError> {
        self.check_undamaged()?;
        let Some(segment) = self.segment_of(from, up_to)? else {
            return Ok(ReadBatches {
                bytes: Bytes::new(),
                next_offset: from,
            });
        };
        self.prepare_index(&segment);
        read_batches(&segment, from, max_bytes, up_to)
            .map_err(|error| self.read_error(&segment, error))
    }

    /// Brings the bytes that a [`Self::read`] would lend into memory. Blocks for as long as the disk takes; where it
    /// fails, the read fails too, instead of the process.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn populate(&self, from: Offset, max_bytes: usize, up_to: Offset) -> Result<(), ReadError> {
        self.check_undamaged()?;
        let Some(segment) = self.segment_of(from, up_to)? else {
            return Ok(());
        };
        self.prepare_index(&segment);
        let start = segment.search_from(|entry| entry.offset <= from);
        let position = start
            .map_err(|error| self.read_error(&segment, error))?
            .position;
        let populated = segment.populate(position, max_bytes.saturating_add(WALK_BYTES));
        populated.map_err(|error| ReadError::Io {
            path: segment.path.clone(),
            error,
        })
    }

    /// Whether reading from `from` is known not to wait for the disk: it was written a short while ago.
    pub fn is_warm(&self, from: Offset) -> bool {
        let inner = self.inner.lock();
        let newest_sealed = inner
            .core
            .segments()
            .rev()
            .find(|segment| segment.is_sealed());
        newest_sealed.is_none_or(|segment| segment.next_offset() <= from)
    }

    /// The first record at or after `timestamp`, among those below `up_to`.
    ///
    /// # Errors
    /// Where bytes are damaged or the disk does not give them.
    pub fn offset_for_timestamp(
        &self,
        timestamp: TimestampMs,
        up_to: Offset,
    ) -> Result<Option<TimestampedOffset>, ReadError> {
        self.check_undamaged()?;
        let (start, segments) = {
            let inner = self.inner.lock();
            (
                inner.core.start_offset,
                inner.core.segments().cloned().collect::<Vec<_>>(),
            )
        };
        for segment in segments
            .iter()
            .filter(|segment| segment.newest() >= timestamp)
        {
            self.prepare_index(segment);
            let found = find_timestamp(segment, timestamp, start, up_to);
            if let Some(found) = found.map_err(|error| self.read_error(segment, error))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The term of an entry; `None` outside the log.
    pub fn term_of(&self, index: RaftIndex) -> Option<Term> {
        let inner = self.inner.lock();
        inner.core.last.filter(|last| index <= last.index)?;
        View::of(&inner).term_of(index)
    }

    /// The first and the last entry of each term within a range, for Raft's search of a common point.
    pub fn key_log_ids(&self, first: RaftIndex, last: RaftIndex) -> Vec<LogId> {
        let view = View::of(&self.inner.lock());
        let mut ids = Vec::new();
        let mut push = |index: RaftIndex| {
            let id = view.term_of(index).map(|term| LogId { term, index });
            if let Some(id) = id
                && ids.last() != Some(&id)
            {
                ids.push(id);
            }
        };
        push(first);
        for (_, start) in view.raft.term_starts(first, last) {
            push(start);
        }
        push(last);
        ids
    }

    /// Entries from `first` up to, not including, `end`: at most about `max_bytes` of batches, but at least one entry
    /// where there is one.
    ///
    /// # Errors
    /// Where bytes are damaged or the disk does not give them.
    pub fn entries(
        &self,
        first: RaftIndex,
        end: RaftIndex,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, ReadError> {
        let mut left = max_bytes;
        self.walk(first, end, |id, found| match found {
            Found::Control(control) => Ok(Some(LogEntry {
                id,
                payload: Payload::Control(control),
            })),
            Found::Batch(segment, header, position) => {
                if left == 0 {
                    return Ok(None);
                }
                left = left.saturating_sub(header.total_len());
                let bytes = segment.window(position, header.total_len())?;
                let batch = RecordBatch::from_bytes(bytes).map_err(|error| SegmentError::Rot {
                    position,
                    detail: error.to_string(),
                })?;
                Ok(Some(LogEntry {
                    id,
                    payload: Payload::Stamped(batch),
                }))
            }
        })
    }

    /// The same without the batches' bytes: from memory, where they were appended since they were last applied.
    ///
    /// # Errors
    /// As for [`Self::entries`].
    pub fn entry_infos(
        &self,
        first: RaftIndex,
        end: RaftIndex,
    ) -> Result<Vec<EntryInfo>, ReadError> {
        {
            let inner = self.inner.lock();
            if let Some(front) = inner.recent.front()
                && front.id.index <= first
            {
                let skip = (first.get() - front.id.index.get()) as usize;
                let take = end.get().saturating_sub(first.get()) as usize;
                return Ok(inner.recent.iter().skip(skip).take(take).cloned().collect());
            }
        }
        self.walk(first, end, |id, found| {
            let kind = match found {
                Found::Control(control) => EntryKind::Control(control),
                Found::Batch(_, header, _) => EntryKind::Batch {
                    base: header.base_offset,
                    next: header.next_offset(),
                },
            };
            Ok(Some(EntryInfo { id, kind }))
        })
    }

    /// Visits entries in order, until `visit` answers with `None`.
    fn walk<T>(
        &self,
        first: RaftIndex,
        end: RaftIndex,
        mut visit: impl FnMut(LogId, Found<'_>) -> Result<Option<T>, SegmentError>,
    ) -> Result<Vec<T>, ReadError> {
        self.check_undamaged()?;
        // One moment's view, read without the lock: what it names stays readable when the log is cut meanwhile.
        let (view, end) = {
            let inner = self.inner.lock();
            (View::of(&inner), end.min(inner.core.next_index()))
        };
        let mut out = Vec::new();
        let mut index = first.max(
            view.last_purged
                .map_or(RaftIndex::default(), |purged| purged.index.next()),
        );
        let mut walk: Option<(&Arc<Segment>, Scan<'_>)> = None;
        while index < end
            && let Some(term) = view.term_of(index)
        {
            let id = LogId { term, index };
            index = index.next();
            if let Some(control) = view.raft.control(id.index) {
                match visit(id, Found::Control(control.clone())) {
                    Ok(Some(item)) => out.push(item),
                    _ => break,
                }
                continue;
            }
            let Some(segment) = view.segment_of(id.index) else {
                break;
            };
            let failed = |error| self.read_error(segment, error);
            let scan = match &mut walk {
                Some((walked, scan)) if walked.base == segment.base => scan,
                _ => {
                    self.prepare_index(segment);
                    let scan = view.scan_from(segment, id.index).map_err(failed)?;
                    &mut walk.insert((segment, scan)).1
                }
            };
            let Some((header, position)) = scan.next_header().map_err(failed)? else {
                break;
            };
            match visit(id, Found::Batch(segment, header, position)).map_err(failed)? {
                Some(item) => out.push(item),
                None => break,
            }
        }
        Ok(out)
    }

    /// The segment that holds `from`, once that is known to lie within what may be read; `None` at its end.
    pub(super) fn segment_of(
        &self,
        from: Offset,
        up_to: Offset,
    ) -> Result<Option<Arc<Segment>>, ReadError> {
        let inner = self.inner.lock();
        let start = inner.core.start_offset;
        // What was trimmed was committed once, even where that is not known again yet after a start.
        let end = inner.core.end_offset.min(up_to.max(start));
        if from < start || from > end {
            return Err(self.out_of_range(from, start, end));
        }
        if from == end {
            return Ok(None);
        }
        let holds = |segment: &&Arc<Segment>| segment.base <= from;
        Ok(inner.core.segments().rev().find(holds).cloned())
    }

    pub(super) fn prepare_index(&self, segment: &Segment) {
        if !segment.has_index() {
            segment.load_index(&*self.context.disk);
        }
    }
}

/// What stands at a Raft index.
enum Found<'a> {
    Control(super::types::Control),
    Batch(&'a Arc<Segment>, BatchHeader, Position),
}

/// What a walk over entries needs, as it was at one moment.
struct View {
    segments: Vec<Arc<Segment>>,
    raft: Arc<RaftMap>,
    last_purged: Option<LogId>,
}

impl View {
    fn of(inner: &Inner) -> Self {
        Self {
            segments: inner.core.segments().cloned().collect(),
            raft: Arc::clone(&inner.core.raft),
            last_purged: inner.core.last_purged,
        }
    }

    fn term_of(&self, index: RaftIndex) -> Option<Term> {
        let purged = self.last_purged.filter(|purged| purged.index == index);
        purged
            .map(|purged| purged.term)
            .or_else(|| self.raft.term_of(index))
    }

    fn segment_of(&self, index: RaftIndex) -> Option<&Arc<Segment>> {
        let after = self
            .segments
            .partition_point(|segment| segment.first_index <= index);
        self.segments.get(after.checked_sub(1)?)
    }

    /// A walk that stands before the batch of a Raft index.
    fn scan_from<'a>(
        &self,
        segment: &'a Segment,
        index: RaftIndex,
    ) -> Result<Scan<'a>, SegmentError> {
        let from = segment.search_from_raft(index)?;
        let mut scan = Scan::new(segment, from.position);
        let mut at = from.raft_index;
        while at < index && scan.next_header()?.is_some() {
            at = self.raft.batch_index_from(at.next());
        }
        Ok(scan)
    }
}

pub(super) fn read_batches(
    segment: &Segment,
    from: Offset,
    max_bytes: usize,
    up_to: Offset,
) -> Result<ReadBatches, SegmentError> {
    let mut position = segment.search_from(|entry| entry.offset <= from)?.position;
    loop {
        let window = segment.window(position, max_bytes.saturating_add(WALK_BYTES))?;
        match pick(&window, position, from, max_bytes, up_to)? {
            Pick::Found {
                start,
                end,
                next_offset,
            } if end <= window.len() => {
                return Ok(ReadBatches {
                    bytes: window.slice(start..end),
                    next_offset,
                });
            }
            // The first batch is larger than what was asked for.
            Pick::Found {
                start,
                end,
                next_offset,
            } => {
                let bytes = segment.window(position.plus(start as u64), end - start)?;
                return Ok(ReadBatches { bytes, next_offset });
            }
            Pick::Further(bytes) if bytes > 0 => position = position.plus(bytes as u64),
            Pick::Further(_) => {
                return Ok(ReadBatches {
                    bytes: Bytes::new(),
                    next_offset: from,
                });
            }
        }
    }
}

enum Pick {
    /// Batches from `start` to `end` of the window.
    Found {
        start: usize,
        end: usize,
        next_offset: Offset,
    },
    /// None in this window: look this many bytes further on.
    Further(usize),
}

fn pick(
    window: &[u8],
    position: Position,
    from: Offset,
    max_bytes: usize,
    up_to: Offset,
) -> Result<Pick, SegmentError> {
    let mut at = 0;
    let mut found = None;
    while at + BatchHeader::LEN <= window.len() {
        // What stands behind may be cut off and given back at any moment.
        if matches!(&found, Some(Pick::Found { next_offset, .. }) if *next_offset >= up_to) {
            break;
        }
        let header = BatchHeader::parse(&window[at..]).map_err(|error| SegmentError::Rot {
            position: position.plus(at as u64),
            detail: error.to_string(),
        })?;
        let end = at + header.total_len();
        if header.last_offset() >= up_to {
            return Ok(found.unwrap_or(Pick::Further(0)));
        }
        if header.next_offset() > from {
            match &mut found {
                None => {
                    found = Some(Pick::Found {
                        start: at,
                        end,
                        next_offset: header.next_offset(),
                    })
                }
                Some(Pick::Found {
                    start,
                    end: last,
                    next_offset,
                }) if end <= window.len() && end - *start <= max_bytes => {
                    (*last, *next_offset) = (end, header.next_offset());
                }
                Some(_) => break,
            }
        }
        at = end;
    }
    Ok(found.unwrap_or(Pick::Further(at)))
}

fn find_timestamp(
    segment: &Segment,
    timestamp: TimestampMs,
    start: Offset,
    up_to: Offset,
) -> Result<Option<TimestampedOffset>, SegmentError> {
    let from = segment
        .search_from(|entry| entry.newest_before < timestamp)?
        .position;
    let mut scan = Scan::new(segment, from);
    while let Some((header, position)) = scan.next_header()? {
        if header.last_offset() >= up_to {
            break;
        }
        if header.max_timestamp < timestamp || header.last_offset() < start {
            continue;
        }
        let rot = |error: quipu_model::batch::BatchError| SegmentError::Rot {
            position,
            detail: error.to_string(),
        };
        let batch =
            RecordBatch::from_bytes(segment.window(position, header.total_len())?).map_err(rot)?;
        for record in batch.records().map_err(rot)? {
            let record = record.map_err(rot)?;
            if record.timestamp >= timestamp && record.offset >= start {
                return Ok(Some(TimestampedOffset {
                    offset: record.offset,
                    timestamp: record.timestamp,
                }));
            }
        }
    }
    Ok(None)
}
