//! What stays of a batch.

use std::path::Path;

use quipu_model::{
    Offset, RecordBatch,
    batch::{BatchError, BatchHeader, RecordView, Retained},
};

use super::keys::KeyTable;
use crate::log::producers::ProducerTable;

/// The batches that a log needs to know what its idempotent producers sent, should it have to find out from the batches again.
#[derive(Debug)]
pub(super) struct Tails(Option<Vec<Offset>>);

impl Tails {
    /// Of what a log knew at the end of all that is compacted. Where that is not known, every producer's every batch.
    pub(super) fn new(known: Option<ProducerTable>) -> Self {
        Self(known.map(|table| {
            let mut bases = table.base_offsets();
            bases.sort_unstable();
            bases
        }))
    }

    fn need(&self, header: &BatchHeader) -> bool {
        header.producer_id.is_some()
            && self
                .0
                .as_ref()
                .is_none_or(|bases| bases.binary_search(&header.base_offset).is_ok())
    }
}

/// What decides about the batches of one segment.
pub(super) struct Rule<'a> {
    pub(super) keys: &'a KeyTable,
    /// The keys are those of the records below this offset.
    pub(super) mapped_to: Offset,
    pub(super) tails: &'a Tails,
    /// Whether tombstones were kept for long enough.
    pub(super) tombstones_expired: bool,
    /// Where the new segment ends: its last batch stays, so that a reader is always led to there.
    pub(super) end: Offset,
}

/// What becomes of a batch.
pub(super) enum Verdict {
    /// It stays as it is.
    Same(RecordBatch),
    /// This stays of it.
    Less(RecordBatch),
    /// It had no records any more, and nobody needs it either.
    Empty,
    /// Nothing stays of it.
    Gone,
}

impl Rule<'_> {
    /// Decides about a batch; says too how many tombstones stay.
    pub(super) fn apply(&self, batch: RecordBatch) -> Result<(Verdict, u64), BatchError> {
        let header = batch.header();
        let needed = header.next_offset() == self.end || self.tails.need(header);
        if header.record_count == 0 {
            let verdict = match needed {
                true => Verdict::Same(batch),
                false => Verdict::Empty,
            };
            return Ok((verdict, 0));
        }
        Ok(match batch.retain(|record| self.stays(record))? {
            Retained::All(kept) => (Verdict::Same(batch), kept.tombstones.into()),
            Retained::Some(batch, kept) => (Verdict::Less(batch), kept.tombstones.into()),
            Retained::None if needed => (Verdict::Less(batch.emptied()?), 0),
            Retained::None => (Verdict::Gone, 0),
        })
    }

    fn stays(&self, record: RecordView<'_>) -> bool {
        // From before the topic was compacted: nothing says what it may be dropped for.
        let Some(key) = record.key else { return true };
        if record.offset >= self.mapped_to {
            return true;
        }
        let newest = self.keys.newest(key);
        if newest.is_some_and(|newest| newest > record.offset) {
            return false;
        }
        !(record.is_tombstone && self.tombstones_expired)
    }
}

/// How an error in a segment's records is told: its blocks match their checksums, so that it was written so.
pub(super) fn unreadable(path: &Path, error: &BatchError) -> std::io::Error {
    std::io::Error::other(format!("{}: {error}", path.display()))
}
