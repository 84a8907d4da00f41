//! What another replica needs to know to take a log over up to an entry, without the bytes.
//!
//! ```text
//! format u8 = 2 | last entry: 1 byte (1), term u64, index u64 | start offset u64 | end offset u64
//! | terms: count u32, each term u64, first index u64
//! | segments: count u32, each base u64, next offset u64, first batch's term u64 and Raft index u64, bytes u64, created i64,
//!   checksum: 1 byte (0 or 1), u32
//! | producers, origin: each length u32, the bytes of a `.producers` file                             (little-endian)
//! ```
//!
//! Format 1 had no origin.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, TryGetError};
use quipu_model::{LogId, Offset, RaftIndex, Term, TimestampMs};

use super::{
    PartitionLog, ReadError,
    segment::Segment,
    state::{get_bytes, get_log_id, put_bytes, put_log_id},
};

const FORMAT: u8 = 2;

/// A segment that another replica has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestSegment {
    /// Its first offset.
    pub base: Offset,
    /// The offset after its last.
    pub next_offset: Offset,
    /// The Raft entry of its first batch.
    pub first: LogId,
    /// Of its batches.
    pub bytes: u64,
    /// When it was begun.
    pub created: TimestampMs,
    /// Of all its bytes, where it is sealed.
    pub checksum: Option<u32>,
}

/// A log up to an entry: what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The last entry.
    pub last: LogId,
    /// The first offset kept.
    pub start_offset: Offset,
    /// The offset after the last record's.
    pub end_offset: Offset,
    /// Where each term begins, oldest first.
    pub terms: Vec<(Term, RaftIndex)>,
    /// The segments, oldest first, without gaps between their offsets.
    pub segments: Vec<ManifestSegment>,
    /// What idempotent producers had sent, in the encoding of a `.producers` file.
    pub producers: Bytes,
    /// The same as of where the first segment begins.
    pub origin: Bytes,
}

/// Bytes are no manifest that this version could have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a manifest of another replica's log cannot be taken: {0}")]
pub struct BadManifest(&'static str);

impl Manifest {
    /// The bytes that another replica decodes.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![FORMAT];
        put_log_id(&mut out, Some(self.last));
        out.put_u64_le(self.start_offset.get());
        out.put_u64_le(self.end_offset.get());
        out.put_u32_le(self.terms.len() as u32);
        for (term, first) in &self.terms {
            out.put_u64_le(term.get());
            out.put_u64_le(first.get());
        }
        out.put_u32_le(self.segments.len() as u32);
        for segment in &self.segments {
            out.put_u64_le(segment.base.get());
            out.put_u64_le(segment.next_offset.get());
            out.put_u64_le(segment.first.term.get());
            out.put_u64_le(segment.first.index.get());
            out.put_u64_le(segment.bytes);
            out.put_i64_le(segment.created.get());
            out.put_u8(u8::from(segment.checksum.is_some()));
            out.put_u32_le(segment.checksum.unwrap_or_default());
        }
        put_bytes(&mut out, &self.producers);
        put_bytes(&mut out, &self.origin);
        out.into()
    }

    /// What [`Self::encode`] made.
    ///
    /// # Errors
    /// Where the bytes are something else, or contradict themselves.
    pub fn decode(mut bytes: Bytes) -> Result<Self, BadManifest> {
        let format = bytes.try_get_u8().unwrap_or_default();
        if !(1..=FORMAT).contains(&format) {
            return Err(BadManifest("its form is unknown here: upgrade this node"));
        }
        let manifest = Self::decode_fields(&mut bytes, format)
            .ok()
            .flatten()
            .filter(|_| bytes.is_empty())
            .ok_or(BadManifest("its length is not what it says"))?;
        if manifest.fits() {
            Ok(manifest)
        } else {
            Err(BadManifest("its parts do not fit each other"))
        }
    }

    fn decode_fields(bytes: &mut Bytes, format: u8) -> Result<Option<Self>, TryGetError> {
        let Some(last) = get_log_id(bytes)? else {
            return Ok(None);
        };
        let mut manifest = Self {
            last,
            start_offset: Offset::new(bytes.try_get_u64_le()?),
            end_offset: Offset::new(bytes.try_get_u64_le()?),
            terms: Vec::new(),
            segments: Vec::new(),
            producers: Bytes::new(),
            origin: Bytes::new(),
        };
        for _ in 0..bytes.try_get_u32_le()? {
            let term = Term::new(bytes.try_get_u64_le()?);
            let first = RaftIndex::new(bytes.try_get_u64_le()?);
            manifest.terms.push((term, first));
        }
        for _ in 0..bytes.try_get_u32_le()? {
            let segment = ManifestSegment {
                base: Offset::new(bytes.try_get_u64_le()?),
                next_offset: Offset::new(bytes.try_get_u64_le()?),
                first: LogId::new(bytes.try_get_u64_le()?, bytes.try_get_u64_le()?),
                bytes: bytes.try_get_u64_le()?,
                created: TimestampMs::new(bytes.try_get_i64_le()?),
                checksum: {
                    let present = bytes.try_get_u8()? == 1;
                    let checksum = bytes.try_get_u32_le()?;
                    present.then_some(checksum)
                },
            };
            manifest.segments.push(segment);
        }
        manifest.producers = get_bytes(bytes)?;
        if format > 1 {
            manifest.origin = get_bytes(bytes)?;
        }
        Ok(Some(manifest))
    }

    /// Whether a log can be so.
    fn fits(&self) -> bool {
        let segments = &self.segments;
        let mut due = segments.first().map_or(self.end_offset, |first| first.base);
        let chained = segments.iter().all(|segment| {
            let here = due;
            due = segment.next_offset;
            segment.base == here && segment.next_offset > here && segment.first <= self.last
        });
        let terms_rise = self.terms.windows(2).all(|two| two[0] < two[1]);
        let last_term = self
            .terms
            .last()
            .map(|(term, first)| *term == self.last.term && *first <= self.last.index);
        let holds_start = segments
            .first()
            .map_or(self.start_offset == self.end_offset, |first| {
                first.base <= self.start_offset && self.start_offset < first.next_offset
            });
        chained && due == self.end_offset && terms_rise && last_term == Some(true) && holds_start
    }
}

impl PartitionLog {
    /// The log up to entry `last`, which is committed, behind which records go on at `end`. Blocks.
    ///
    /// # Errors
    /// Where the log does not reach there, or its bytes are damaged.
    pub fn manifest(&self, last: LogId, end: Offset) -> Result<Manifest, ReadError> {
        self.check_undamaged()?;
        let (start, tables, segments, mut terms) = {
            let inner = self.inner.lock();
            let core = &inner.core;
            let reaches = core.last.is_some_and(|here| last.index <= here.index);
            if !reaches || end > core.end_offset || end < core.start_offset {
                return Err(self.out_of_range(end, core.start_offset, core.end_offset));
            }
            let segments: Vec<_> = core.segments().filter(|s| s.base < end).cloned().collect();
            let terms = core.raft.terms().to_vec();
            (core.start_offset, core.tables(), segments, terms)
        };
        terms.retain(|(_, first)| *first <= last.index);
        // A log that is trimmed up to its end has a segment only where more follows.
        let kept = segments
            .iter()
            .filter(|s| s.next_offset() > start && start < end);
        let segments = kept
            .map(|segment| self.manifest_segment(segment, end))
            .collect::<Result<Vec<_>, _>>()?;
        let base = segments.first().map_or(end, |first| first.base);
        let now = self.context.clock.now();
        let known = |at| {
            let table = tables.at(at, now);
            let table = table.map_err(|(segment, error)| self.read_error(&segment, error))?;
            Ok::<_, ReadError>(Bytes::from(table.encode()))
        };
        Ok(Manifest {
            last,
            start_offset: start,
            end_offset: end,
            terms,
            segments,
            producers: known(end)?,
            origin: known(base)?,
        })
    }

    fn manifest_segment(
        &self,
        segment: &Arc<Segment>,
        end: Offset,
    ) -> Result<ManifestSegment, ReadError> {
        let first = LogId {
            term: segment.term,
            index: segment.first_index,
        };
        let whole = ManifestSegment {
            base: segment.base,
            next_offset: segment.next_offset(),
            first,
            bytes: segment.len(),
            created: segment.created,
            checksum: segment.checksum(),
        };
        if whole.next_offset <= end {
            return Ok(whole);
        }
        let shorter = segment
            .cut(end)
            .map_err(|error| self.read_error(segment, error))?;
        Ok(ManifestSegment {
            next_offset: end,
            bytes: shorter.len(),
            checksum: None,
            ..whole
        })
    }
}
