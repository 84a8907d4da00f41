//! One segment: a file of record batches, its sparse index, and its seal once it is closed for good.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use quipu_model::{LogId, Offset, Position, RaftIndex, Term, TimestampMs};

use super::{
    index::{ENTRY_LEN, IndexEntry, SparseIndex, UNKNOWN_RAFT_INDEX},
    scan::Scan,
    seal::{BLOCK_BYTES, Seal},
    state::{Compacted, SegmentState},
};
use crate::io::{Disk, DiskFile, OpenMode};

/// Why a segment did not give its bytes.
#[derive(Debug)]
pub(super) enum SegmentError {
    /// They are not what was written.
    Rot {
        position: Position,
        detail: String,
    },
    Io(io::Error),
}

impl From<io::Error> for SegmentError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The path of a segment's file with an ending: `log`, `index`, `seal`, `producers`.
///
/// The name carries the term of the segment's first entry behind its base offset: after a truncation another segment may
/// begin at the same offset, in a later term, while a checkpoint still names the old one. One that came from another
/// replica, or that compaction wrote, may begin like one that is here: its name carries a generation, too (see [`SegmentState::path`](super::SegmentState::path)).
pub(crate) fn segment_path(dir: &Path, base: Offset, term: Term, ending: &str) -> PathBuf {
    dir.join(format!("{:020}-{}.{ending}", base.get(), term))
}

/// The first offset, in the name of a segment's file.
pub(super) fn base_of(name: &str) -> Option<Offset> {
    let base = name.split('-').next()?;
    base.parse().ok().map(Offset::new)
}

/// The generation in the name of a segment's file; 0 where there is none.
pub(super) fn generation_of(name: &str) -> u32 {
    let stem = name.split('.').next().unwrap_or_default();
    let generation = stem.split('-').nth(2);
    generation
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

/// A segment as readers see it. All below `len` is written and never changes.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(super) base: Offset,
    /// The term of the first batch.
    pub(super) term: Term,
    /// The Raft index of the first batch, as it was appended.
    pub(super) first_index: RaftIndex,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) created: TimestampMs,
    compacted: Mutex<Option<Compacted>>,
    len: AtomicU64,
    next_offset: AtomicU64,
    newest: AtomicI64,
    /// `None` until it is needed, for a sealed segment.
    index: RwLock<Option<SparseIndex>>,
    seal: OnceLock<Seal>,
    newly_cut: AtomicBool,
    /// By the monotonic clock, when the seal's blocks were last read and found right.
    scrubbed: Mutex<Option<Duration>>,
}

impl Segment {
    pub(super) fn new(
        (base, first): (Offset, LogId),
        (path, file): (PathBuf, Arc<dyn DiskFile>),
        created: TimestampMs,
    ) -> Self {
        Self {
            base,
            term: first.term,
            first_index: first.index,
            path,
            file,
            created,
            compacted: Mutex::new(None),
            len: AtomicU64::new(0),
            next_offset: AtomicU64::new(base.get()),
            newest: AtomicI64::new(TimestampMs::NONE.get()),
            index: RwLock::new(Some(SparseIndex::Growing(Vec::new()))),
            seal: OnceLock::new(),
            newly_cut: AtomicBool::new(false),
            scrubbed: Mutex::new(None),
        }
    }

    /// The sealed segment that a seal on disk describes.
    pub(super) fn open_sealed(
        disk: &dyn Disk,
        path: PathBuf,
        (term, created): (Term, TimestampMs),
        seal: Seal,
    ) -> io::Result<Self> {
        let file = disk.open(&path, OpenMode::Read)?;
        if file.len()? < seal.data_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let segment = Self::new(
            (
                seal.base,
                LogId {
                    term,
                    index: seal.first_index,
                },
            ),
            (path, file),
            created,
        );
        segment.publish(seal.data_bytes, seal.next_offset, seal.newest);
        *segment.index.write() = None;
        let _ = segment.seal.set(seal);
        Ok(segment)
    }

    /// This segment cut to end at a batch's end, over the same file: what stands behind is no longer looked at.
    pub(super) fn cut(&self, end: Offset) -> Result<Self, SegmentError> {
        let from = self.search_from(|entry| entry.offset < end)?;
        let (mut position, mut newest) = (from.position, from.newest_before);
        let mut scan = Scan::new(self, from.position);
        let mut reached = from.offset;
        while reached < end
            && let Some((header, at)) = scan.next_header()?
        {
            reached = header.next_offset();
            position = at.plus(header.total_len() as u64);
            newest = newest.max(header.max_timestamp);
        }
        if reached != end {
            let detail = format!("no batch ends at offset {end}, to which the log was cut");
            return Err(SegmentError::Rot { position, detail });
        }
        let first = LogId {
            term: self.term,
            index: self.first_index,
        };
        let file = (self.path.clone(), Arc::clone(&self.file));
        let segment = Self::new((self.base, first), file, self.created);
        segment.publish(position.get(), end, newest);
        segment.newly_cut.store(true, Ordering::Release);
        let mut index = self.with_index(Clone::clone)?;
        index.truncate_at(position);
        *segment.index.write() = Some(index);
        Ok(segment)
    }

    /// As a checkpoint keeps it.
    pub(super) fn state(&self) -> SegmentState {
        SegmentState {
            base: self.base,
            next_offset: self.next_offset(),
            first: LogId {
                term: self.term,
                index: self.first_index,
            },
            sealed: self.is_sealed(),
            bytes: self.len(),
            created: self.created,
            generation: self.generation(),
            compacted: self.compacted(),
        }
    }

    pub(super) fn generation(&self) -> u32 {
        let name = self.path.file_name().and_then(|name| name.to_str());
        name.map_or(0, generation_of)
    }

    pub(super) fn compacted(&self) -> Option<Compacted> {
        *self.compacted.lock()
    }

    pub(super) fn set_compacted(&self, compacted: Option<Compacted>) {
        *self.compacted.lock() = compacted;
    }

    /// Whether the last checkpoint may name this segment as it was before it was cut: it is not to be sealed then, since the
    /// seal would not fit what a start after a crash is told.
    pub(super) fn is_newly_cut(&self) -> bool {
        self.newly_cut.load(Ordering::Acquire)
    }

    /// Opened anew, it is still one that the last checkpoint may name as it was.
    pub(super) fn note_newly_cut(&self) {
        self.newly_cut.store(true, Ordering::Release);
    }

    /// A checkpoint names this segment as it is.
    pub(super) fn note_checkpointed(&self) {
        self.newly_cut.store(false, Ordering::Release);
    }

    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    pub(super) fn next_offset(&self) -> Offset {
        Offset::new(self.next_offset.load(Ordering::Acquire))
    }

    pub(super) fn newest(&self) -> TimestampMs {
        TimestampMs::new(self.newest.load(Ordering::Acquire))
    }

    pub(super) fn records(&self) -> u64 {
        self.next_offset().since(self.base)
    }

    /// One number for all its bytes, where it is sealed.
    pub(super) fn checksum(&self) -> Option<u32> {
        self.seal.get().map(Seal::checksum)
    }

    pub(super) fn has_index(&self) -> bool {
        self.index.read().is_some()
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.seal.get().is_some()
    }

    /// Makes what was written up to `len` visible. The length goes last: whoever sees it sees the rest.
    pub(super) fn publish(&self, len: u64, next_offset: Offset, newest: TimestampMs) {
        self.newest.fetch_max(newest.get(), Ordering::AcqRel);
        self.next_offset.store(next_offset.get(), Ordering::Release);
        self.len.store(len, Ordering::Release);
    }

    pub(super) fn push_index(&self, entry: IndexEntry) {
        if let Some(index) = self.index.write().as_mut() {
            index.push(entry);
        }
    }

    /// Replaces the index (it was rebuilt).
    pub(super) fn set_index(&self, index: SparseIndex) {
        *self.index.write() = Some(index);
    }

    /// Up to `len` bytes from a position, fewer at the end; checked against the seal where there is one.
    pub(super) fn window(&self, position: Position, len: usize) -> Result<Bytes, SegmentError> {
        let here = self.len().saturating_sub(position.get());
        if here == 0 {
            return Ok(Bytes::new());
        }
        let len = len.min(usize::try_from(here).unwrap_or(usize::MAX));
        let Some(seal) = self.seal.get() else {
            return Ok(self.file.read(position, len)?);
        };
        let range = seal.blocks_around(position, len);
        let blocks = self.file.read(
            Position::new(range.start),
            (range.end - range.start) as usize,
        )?;
        self.check_blocks(seal, range.start, &blocks)?;
        let from = (position.get() - range.start) as usize;
        Ok(blocks.slice(from..from + len))
    }

    /// Brings a range into memory; blocks for as long as the disk takes.
    pub(super) fn populate(&self, position: Position, len: usize) -> io::Result<()> {
        let start = position.get() / BLOCK_BYTES * BLOCK_BYTES;
        let end = position
            .get()
            .saturating_add(len as u64)
            .min(self.len())
            .next_multiple_of(BLOCK_BYTES)
            .min(self.len());
        self.file
            .populate(Position::new(start), end.saturating_sub(start) as usize)
    }

    pub(crate) fn scrubbed(&self) -> Option<Duration> {
        *self.scrubbed.lock()
    }

    pub(crate) fn note_scrubbed(&self, at: Duration) {
        *self.scrubbed.lock() = Some(at);
    }

    /// Checks a sealed segment's blocks from `position`, where one begins, for about `len` bytes, without mapping them; how
    /// many bytes that were.
    pub(super) fn scrub(&self, position: u64, len: usize) -> Result<usize, SegmentError> {
        self.copied(position, len).map(|bytes| bytes.len())
    }

    /// The bytes of a sealed segment from `position` on, up to the end of a block: about `len`, checked, copied and not mapped.
    pub(super) fn copied(&self, position: u64, len: usize) -> Result<Bytes, SegmentError> {
        let Some(seal) = self.seal.get() else {
            return Ok(Bytes::new());
        };
        let range = seal.blocks_around(Position::new(position), len);
        let mut blocks = vec![0; range.end.saturating_sub(range.start) as usize];
        self.file
            .read_into(Position::new(range.start), &mut blocks)
            .map_err(|error| SegmentError::Rot {
                position: Position::new(position),
                detail: format!("it can't be read: {error}"),
            })?;
        self.check_blocks(seal, range.start, &blocks)?;
        Ok(Bytes::from(blocks).slice((position - range.start) as usize..))
    }

    fn check_blocks(&self, seal: &Seal, start: u64, blocks: &[u8]) -> Result<(), SegmentError> {
        seal.check(start, blocks)
            .map_err(|position| SegmentError::Rot {
                position,
                detail: format!("a block of {BLOCK_BYTES} bytes does not match its checksum"),
            })
    }

    /// Runs `use_index` on the index, loading or rebuilding it first where need be.
    pub(super) fn with_index<T>(
        &self,
        use_index: impl FnOnce(&SparseIndex) -> T,
    ) -> Result<T, SegmentError> {
        if let Some(index) = self.index.read().as_ref() {
            return Ok(use_index(index));
        }
        let mut slot = self.index.write();
        let index = match slot.take() {
            Some(index) => index,
            None => self.rebuild_index()?,
        };
        Ok(use_index(slot.insert(index)))
    }

    /// Takes the index from its file where that matches the seal, so that it need not be rebuilt.
    pub(super) fn load_index(&self, disk: &dyn Disk) {
        let path = self.path.with_extension("index");
        let Some(seal) = self.seal.get() else { return };
        let Ok(file) = disk.open(&path, OpenMode::Read) else {
            return;
        };
        let Ok(len) = file.len() else { return };
        let Ok(bytes) = file.read(Position::default(), len as usize) else {
            return;
        };
        if bytes.len() % ENTRY_LEN == 0 && crc32fast::hash(&bytes) == seal.index_crc {
            self.set_index(SparseIndex::Mapped(bytes));
        }
    }

    /// Walks the segment's batches for an index without Raft indexes: those only the log's own tables could tell.
    fn rebuild_index(&self) -> Result<SparseIndex, SegmentError> {
        tracing::warn!(segment = %self.path.display(), "the index does not match its segment's seal: rebuilding it");
        let mut entries = Vec::new();
        let mut newest = TimestampMs::NONE;
        let mut next_entry_at = 0;
        let mut scan = Scan::new(self, Position::default());
        while let Some((header, position)) = scan.next_header()? {
            if position.get() >= next_entry_at {
                entries.push(IndexEntry {
                    offset: header.base_offset,
                    raft_index: UNKNOWN_RAFT_INDEX,
                    position,
                    newest_before: newest,
                });
                next_entry_at = position.get() + BLOCK_BYTES;
            }
            newest = newest.max(header.max_timestamp);
        }
        Ok(SparseIndex::Growing(entries))
    }

    /// Where a search by offset or time begins: the last index entry for which `before` holds, else the start.
    pub(super) fn search_from(
        &self,
        before: impl Fn(&IndexEntry) -> bool,
    ) -> Result<IndexEntry, SegmentError> {
        Ok(self
            .with_index(|index| index.last_where(before))?
            .unwrap_or_else(|| self.start()))
    }

    /// Where a search by Raft index begins.
    pub(super) fn search_from_raft(&self, wanted: RaftIndex) -> Result<IndexEntry, SegmentError> {
        let found =
            self.with_index(|index| index.last_where(|entry| entry.raft_index <= wanted))?;
        Ok(found.unwrap_or_else(|| self.start()))
    }

    fn start(&self) -> IndexEntry {
        IndexEntry {
            offset: self.base,
            raft_index: self.first_index,
            position: Position::default(),
            newest_before: TimestampMs::NONE,
        }
    }

    /// Seals a closed segment: makes its bytes durable, then its checksums. Blocks.
    pub(super) fn seal(
        &self,
        disk: &dyn Disk,
        producers: Option<&[u8]>,
        block_crcs: Option<&[u32]>,
    ) -> io::Result<()> {
        self.file.sync()?;
        let index = self
            .with_index(SparseIndex::encode)
            .map_err(|error| match error {
                SegmentError::Io(error) => error,
                SegmentError::Rot { detail, .. } => io::Error::other(detail),
            })?;
        let seal = Seal {
            base: self.base,
            next_offset: self.next_offset(),
            first_index: self.first_index,
            newest: self.newest(),
            data_bytes: self.len(),
            index_crc: crc32fast::hash(&index),
            block_crcs: match block_crcs {
                Some(crcs) => crcs.to_vec(),
                None => self.block_crcs()?,
            },
        };
        crate::io::write_whole(disk, &self.path.with_extension("index"), &index)?;
        let snapshot = self.path.with_extension("producers");
        match producers {
            Some(producers) => crate::io::write_whole(disk, &snapshot, producers)?,
            // One from before the segment was cut would tell of batches that are gone.
            None if disk.exists(&snapshot) => disk.remove_file(&snapshot)?,
            None => {}
        }
        crate::io::replace_file(disk, &self.path.with_extension("seal"), &seal.encode())?;
        let _ = self.seal.set(seal);
        self.load_index(disk);
        self.file
            .release_from(Position::new(self.len().next_multiple_of(4096)));
        Ok(())
    }

    fn block_crcs(&self) -> io::Result<Vec<u32>> {
        let mut buffer = vec![0; BLOCK_BYTES as usize];
        let mut crcs = Vec::new();
        let mut position = 0;
        while position < self.len() {
            let len = BLOCK_BYTES.min(self.len() - position) as usize;
            self.file
                .read_into(Position::new(position), &mut buffer[..len])?;
            crcs.push(crc32fast::hash(&buffer[..len]));
            position += len as u64;
        }
        Ok(crcs)
    }
}
