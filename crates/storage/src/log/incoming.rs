//! Another replica's segments on their way here: files beside the log that nobody reads before all are there.
//!
//! They stand in the partition's directory `incoming`, named as in a log. One that is whole has a seal. One without was cut off
//! while it grew: what of it is whole batches in their places is kept.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use quipu_model::{LeaderEpoch, Offset, Position, Term, TimestampMs, batch::BatchHeader};

use super::{
    BadCopy, Manifest, ManifestSegment, PartitionLog,
    append::is_full,
    check_copied,
    index::{IndexEntry, UNKNOWN_RAFT_INDEX},
    mend::check_blocks,
    seal::{BLOCK_BYTES, BlockCrcs, Seal},
    segment::{Segment, base_of, segment_path},
};
use crate::{
    PartitionDamage, StorageFailure,
    io::{Disk, DiskFile, OpenMode, read_whole},
};

pub(super) const INCOMING_DIR: &str = "incoming";

/// Why another replica's log is not taken over, yet. What was taken stays, unless it is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// What came is not what was asked for.
    #[error(transparent)]
    Bad(#[from] BadCopy),
    /// A segment is whole, and not what it is where it came from.
    #[error("the segment from offset {base} on does not match its checksum: it is copied again")]
    Checksum {
        /// The segment's first offset.
        base: Offset,
    },
    /// There is less of a segment, or more, than was said.
    #[error("the segment from offset {base} on has other bytes than was said: it is copied again")]
    Length {
        /// The segment's first offset.
        base: Offset,
    },
    /// The partition is not written until it is repaired.
    #[error(transparent)]
    Damaged(#[from] Arc<PartitionDamage>),
    /// The store takes nothing more.
    #[error(transparent)]
    Failed(#[from] StorageFailure),
    /// What is here stays; it goes on once there is room.
    #[error("no room for {path}: {error}; free space on the disk")]
    DiskFull {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// A segment that is here.
#[derive(Debug)]
pub(super) enum Arrived {
    /// In the log itself, as it is there.
    Kept(Arc<Segment>),
    /// In a file beside the log.
    Fetched(ManifestSegment),
}

/// Another replica's log on its way here. It is put in the log's place by [`PartitionLog::install`] once it is
/// [whole](Self::is_whole).
#[derive(Debug)]
pub struct Incoming {
    pub(super) log: Arc<PartitionLog>,
    pub(super) manifest: Manifest,
    /// The first segments, in their order.
    pub(super) arrived: Vec<Arrived>,
    /// The one after those.
    growing: Option<Growing>,
}

/// A segment that is not whole.
#[derive(Debug)]
struct Growing {
    segment: Segment,
    crcs: BlockCrcs,
    due: Offset,
    epoch: LeaderEpoch,
    next_index_at: u64,
}

impl Incoming {
    /// Begins to take a log over, or goes on where it was cut off before. Reads what is there: blocks.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn open(log: Arc<PartitionLog>, manifest: Manifest) -> Result<Self, IncomingError> {
        log.check_undamaged()?;
        Self::begin(log, manifest)
    }

    /// Of a log that may be damaged.
    pub(super) fn begin(log: Arc<PartitionLog>, manifest: Manifest) -> Result<Self, IncomingError> {
        let mut incoming = Self {
            log,
            manifest,
            arrived: Vec::new(),
            growing: None,
        };
        incoming.make_dir()?;
        incoming.advance()?;
        Ok(incoming)
    }

    /// What is taken over.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether nothing is missing any more.
    pub fn is_whole(&self) -> bool {
        self.arrived.len() == self.manifest.segments.len()
    }

    /// Whether what it takes of this log is this log's still: a repair opens that anew, and other segments may be in it.
    pub fn stands(&self) -> bool {
        let inner = self.log.inner.lock();
        self.arrived.iter().all(|arrived| match arrived {
            Arrived::Kept(kept) => inner.core.segments().any(|here| Arc::ptr_eq(here, kept)),
            Arrived::Fetched(_) => true,
        })
    }

    /// The offsets to be copied next. `None` once all is [here](Self::is_whole), and after an error: then it is to be opened
    /// again.
    pub fn wanted(&self) -> Option<(Offset, Offset)> {
        let growing = self.growing.as_ref()?;
        let wanted = self.manifest.segments.get(self.arrived.len())?;
        Some((growing.due, wanted.next_offset))
    }

    /// Takes batches of the offsets [wanted](Self::wanted), after checking them. Blocks.
    ///
    /// # Errors
    /// Where they are refused: nothing of them was written then.
    pub fn take(&mut self, bytes: &Bytes) -> Result<(), IncomingError> {
        let Some(wanted) = self.manifest.segments.get(self.arrived.len()).copied() else {
            return Ok(());
        };
        let last = self.manifest.last.term;
        if let Some(growing) = &mut self.growing {
            let headers = growing.check(bytes, wanted, last)?;
            let here = growing.segment.len();
            let too_long = here + bytes.len() as u64 > wanted.bytes;
            let too_short = bytes.is_empty() && here < wanted.bytes;
            if too_long || too_short {
                self.give_up()?;
                return Err(IncomingError::Length { base: wanted.base });
            }
            let written = growing.segment.file.write_at(Position::new(here), &[bytes]);
            written.map_err(|error| failed(&self.log, "write", &growing.segment.path, error))?;
            growing.note(bytes, &headers);
        }
        self.advance()
    }

    /// Passes over what is whole, up to the first segment that is not.
    fn advance(&mut self) -> Result<(), IncomingError> {
        while let Some(wanted) = self.manifest.segments.get(self.arrived.len()).copied() {
            if self.growing.is_none() {
                if let Some(arrived) = self.find(wanted)? {
                    self.arrived.push(arrived);
                    continue;
                }
                let last = self.manifest.last.term;
                self.growing = Some(Growing::open(&self.log, wanted, last)?);
            }
            let whole = self.growing.as_ref().map(|growing| growing.segment.len());
            if whole != Some(wanted.bytes) {
                return Ok(());
            }
            self.seal(wanted)?;
        }
        Ok(())
    }

    /// A segment that is here already. One beside the log may have lain there for long: what of it is not as its seal says is
    /// removed, and copied again. So is one in a damaged log, which stays where it is.
    fn find(&self, wanted: ManifestSegment) -> Result<Option<Arrived>, IncomingError> {
        let disk = &*self.log.context.disk;
        let kept = self.log.holds_same(wanted);
        let kept = kept.filter(|kept| self.log.damage().is_none() || is_sound(disk, kept));
        if let Some(kept) = kept {
            return Ok(Some(Arrived::Kept(kept)));
        }
        let Ok(seal) = read_whole(disk, &path_of(&self.log, wanted, "seal")) else {
            return Ok(None);
        };
        let same = Seal::decode(&seal).is_ok_and(|seal| {
            seal.base == wanted.base
                && seal.next_offset == wanted.next_offset
                && seal.data_bytes == wanted.bytes
                && wanted.checksum.is_none_or(|sum| sum == seal.checksum())
                && is_as_sealed(disk, &path_of(&self.log, wanted, "log"), &seal)
        });
        if !same {
            self.remove(wanted)?;
            return Ok(None);
        }
        Ok(Some(Arrived::Fetched(wanted)))
    }

    fn seal(&mut self, wanted: ManifestSegment) -> Result<(), IncomingError> {
        let Some(growing) = self.growing.take() else {
            return Ok(());
        };
        let Growing { segment, crcs, .. } = growing;
        let is_last = self.arrived.len() + 1 == self.manifest.segments.len();
        let producers = is_last.then(|| self.manifest.producers.clone());
        segment.publish(wanted.bytes, wanted.next_offset, TimestampMs::NONE);
        let disk = &*self.log.context.disk;
        let sealed = segment.seal(disk, producers.as_deref(), Some(&crcs.finish()));
        sealed.map_err(|error| failed(&self.log, "seal", &segment.path, error))?;
        if wanted.checksum.is_some() && segment.checksum() != wanted.checksum {
            self.remove(wanted)?;
            return Err(IncomingError::Checksum { base: wanted.base });
        }
        self.arrived.push(Arrived::Fetched(wanted));
        Ok(())
    }

    /// Begins the segment that grows anew.
    fn give_up(&mut self) -> Result<(), IncomingError> {
        self.growing = None;
        match self.manifest.segments.get(self.arrived.len()).copied() {
            Some(wanted) => self.remove(wanted),
            None => Ok(()),
        }
    }

    fn remove(&self, wanted: ManifestSegment) -> Result<(), IncomingError> {
        let disk = &self.log.context.disk;
        // The seal first: a crash must not leave it beside what it does not fit.
        for ending in ["seal", "log", "index", "producers"] {
            let path = path_of(&self.log, wanted, ending);
            if disk.exists(&path) {
                let removed = disk.remove_file(&path);
                removed.map_err(|error| failed(&self.log, "remove", &path, error))?;
            }
        }
        Ok(())
    }

    /// Makes the directory, and removes from it what is of no use any more.
    fn make_dir(&self) -> Result<(), IncomingError> {
        let (disk, dir) = (&self.log.context.disk, self.log.dir().join(INCOMING_DIR));
        self.log.inner.lock().check_taking()?;
        let wanted = |name: &String| {
            let of = |segment: &ManifestSegment| {
                let path = path_of(&self.log, *segment, "log");
                let file = path.file_stem().and_then(|stem| stem.to_str());
                file.is_some_and(|stem| name.split('.').next() == Some(stem))
            };
            self.manifest.segments.iter().any(of)
        };
        let made = || {
            disk.create_dir_all(&dir)?;
            for name in disk.list(&dir)?.iter().filter(|name| !wanted(name)) {
                disk.remove_file(&dir.join(name))?;
            }
            disk.sync_dir(&self.log.dir())
        };
        made().map_err(|error| failed(&self.log, "create", &dir, error))
    }
}

/// What a failed write, sync or read means: as elsewhere in the store, nothing is tried again.
fn failed(
    log: &PartitionLog,
    operation: &'static str,
    path: &Path,
    error: io::Error,
) -> IncomingError {
    if is_full(&error) {
        let path = path.to_owned();
        return IncomingError::DiskFull { path, error };
    }
    // A partition that was removed has no directory any more: that is no failure.
    let ended = log.inner.lock().check_taking().err();
    ended
        .unwrap_or_else(|| log.fail(operation, path.to_owned(), error))
        .into()
}

pub(super) fn path_of(log: &PartitionLog, segment: ManifestSegment, ending: &str) -> PathBuf {
    let dir = log.dir().join(INCOMING_DIR);
    segment_path(&dir, segment.base, segment.first.term, ending)
}

impl Growing {
    /// A new file, or what is whole of one that was cut off.
    fn open(
        log: &PartitionLog,
        wanted: ManifestSegment,
        last: Term,
    ) -> Result<Self, IncomingError> {
        let disk = &log.context.disk;
        let path = path_of(log, wanted, "log");
        let opened = if disk.exists(&path) {
            disk.open(&path, OpenMode::Write)
        } else {
            disk.open(&path, OpenMode::CreateNew)
        };
        let file = opened
            .and_then(|file| file.allocate(wanted.bytes).map(|()| file))
            .map_err(|error| failed(log, "create", &path, error))?;
        let named = (path.clone(), Arc::clone(&file));
        let mut growing = Self {
            segment: Segment::new((wanted.base, wanted.first), named, wanted.created),
            crcs: BlockCrcs::default(),
            due: wanted.base,
            epoch: wanted.first.term.leader_epoch(),
            next_index_at: 0,
        };
        while let Some(batch) = growing
            .next_batch(&*file, wanted)
            .map_err(|error| failed(log, "read", &path, error))?
        {
            let Ok(headers) = growing.check(&batch, wanted, last) else {
                break;
            };
            // Written again: where a sync failed before this process began, the system may show what the disk does not have, and
            // say of the next sync that all is well.
            file.write_at(Position::new(growing.segment.len()), &[&batch])
                .map_err(|error| failed(log, "write", &path, error))?;
            growing.note(&batch, &headers);
        }
        Ok(growing)
    }

    /// The bytes of the next batch in the file, if there may be one.
    fn next_batch(
        &self,
        file: &dyn DiskFile,
        wanted: ManifestSegment,
    ) -> io::Result<Option<Bytes>> {
        let left = wanted.bytes - self.segment.len();
        let mut header = [0; BatchHeader::LEN];
        if left < header.len() as u64 {
            return Ok(None);
        }
        let position = Position::new(self.segment.len());
        file.read_into(position, &mut header)?;
        let len = match BatchHeader::parse(&header) {
            Ok(header) if header.total_len() as u64 <= left => header.total_len(),
            _ => return Ok(None),
        };
        let mut batch = vec![0; len];
        file.read_into(position, &mut batch)?;
        Ok(Some(batch.into()))
    }

    fn check(
        &self,
        bytes: &Bytes,
        wanted: ManifestSegment,
        last: Term,
    ) -> Result<Vec<BatchHeader>, BadCopy> {
        check_copied(
            bytes,
            (self.due, wanted.next_offset),
            (self.epoch, last.leader_epoch()),
        )
    }

    /// Notes batches that are in the file.
    fn note(&mut self, bytes: &Bytes, headers: &[BatchHeader]) {
        let (mut position, mut newest) = (self.segment.len(), self.segment.newest());
        for header in headers {
            if position >= self.next_index_at {
                self.segment.push_index(IndexEntry {
                    offset: header.base_offset,
                    raft_index: UNKNOWN_RAFT_INDEX,
                    position: Position::new(position),
                    newest_before: newest,
                });
                self.next_index_at = position + BLOCK_BYTES / 4;
            }
            position += header.total_len() as u64;
            newest = newest.max(header.max_timestamp);
            self.due = header.next_offset();
            self.epoch = header.leader_epoch;
        }
        self.crcs.update(bytes);
        self.segment.publish(position, self.due, newest);
    }
}

fn is_as_sealed(disk: &dyn Disk, log: &Path, seal: &Seal) -> bool {
    let opened = disk.open(log, OpenMode::Read);
    opened.is_ok_and(|file| check_blocks(&*file, seal).is_ok())
}

/// Whether a segment of the log is what its seal says.
fn is_sound(disk: &dyn Disk, segment: &Segment) -> bool {
    let seal = read_whole(disk, &segment.path.with_extension("seal"));
    let seal = seal.ok().and_then(|bytes| Seal::decode(&bytes).ok());
    seal.is_some_and(|seal| {
        Some(seal.checksum()) == segment.checksum() && is_as_sealed(disk, &segment.path, &seal)
    })
}

/// Removes what was on its way here when the node ended, where the log's newest segment begins behind it: the log has gone on
/// otherwise, and nobody takes it up again.
///
/// # Errors
/// Where the disk fails.
pub(super) fn remove_overtaken(
    disk: &dyn Disk,
    log: &Path,
    newest: Option<Offset>,
) -> io::Result<()> {
    let dir = log.join(INCOMING_DIR);
    if !disk.exists(&dir) {
        return Ok(());
    }
    let names = disk.list(&dir)?;
    let copied = names.iter().filter_map(|name| base_of(name)).max();
    if copied.is_none() || copied < newest {
        tracing::info!(dir = %dir.display(), "removing a copy of segments that is no longer needed");
        disk.remove_dir_all(&dir)?;
    }
    Ok(())
}

impl PartitionLog {
    fn dir(&self) -> PathBuf {
        self.inner.lock().core.dir.clone()
    }

    /// A sealed segment of this log that is the same as one elsewhere.
    fn holds_same(&self, wanted: ManifestSegment) -> Option<Arc<Segment>> {
        let inner = self.inner.lock();
        let same = |segment: &&Arc<Segment>| {
            segment.base == wanted.base
                && segment.next_offset() == wanted.next_offset
                && segment.len() == wanted.bytes
                && segment.checksum().is_some()
                && segment.checksum() == wanted.checksum
        };
        inner.core.segments().find(same).cloned()
    }
}
