//! Where terms end, and what the newest record is: what clients ask to see whether their position still holds.

use quipu_model::{Offset, Term, TimestampMs};

use super::{PartitionLog, ReadError, read::View};

/// The end of a term in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermEnd {
    /// The newest term that is not newer than the one asked for.
    pub term: Term,
    /// The first offset of a later term; where there is none, the offset up to which records may be read.
    pub end: Offset,
}

impl PartitionLog {
    /// The end of `term`, or of the one before it where the log has no such term; `None` for terms newer than all.
    ///
    /// # Errors
    /// Where bytes are damaged or the disk does not give them.
    pub fn end_of_term(&self, term: Term, up_to: Offset) -> Result<Option<TermEnd>, ReadError> {
        self.check_undamaged()?;
        let (view, start) = {
            let inner = self.inner.lock();
            (View::of(&inner), inner.core.start_offset)
        };
        let terms = view.raft.terms();
        let after = terms.partition_point(|(begun, _)| *begun <= term);
        let Some((_, next)) = terms.get(after) else {
            let newest = terms.last().filter(|(newest, _)| *newest == term);
            return Ok(newest.map(|(term, _)| TermEnd {
                term: *term,
                end: up_to,
            }));
        };
        let known = after.checked_sub(1).and_then(|at| terms.get(at));
        let end = match view.segment_of(*next) {
            None => start,
            Some(segment) => {
                self.prepare_index(segment);
                let header = view
                    .scan_from(segment, *next)
                    .and_then(|mut scan| scan.next_header())
                    .map_err(|error| self.read_error(segment, error))?;
                header.map_or(segment.next_offset(), |(header, _)| header.base_offset)
            }
        };
        Ok(Some(TermEnd {
            term: known.map_or(term, |(term, _)| *term),
            end: end.min(up_to).max(start),
        }))
    }

    /// The greatest timestamp of all records, and the log's end as of then.
    pub fn newest_timestamp(&self) -> (Option<TimestampMs>, Offset) {
        let inner = self.inner.lock();
        let newest = inner.core.segments().map(|segment| segment.newest()).max();
        (newest, inner.core.end_offset)
    }
}
