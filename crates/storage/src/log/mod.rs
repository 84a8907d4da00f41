//! One partition's log: the batches in its segments, and what Raft keeps beside them.

mod active;
mod append;
mod check;
mod compact;
mod copied;
mod core;
mod cut;
mod damage;
mod epochs;
mod error;
mod incoming;
mod index;
mod install;
mod maintain;
mod manifest;
mod mend;
mod producers;
mod raft_map;
mod read;
mod recover;
mod repair;
mod scan;
mod seal;
mod segment;
mod state;
mod switch;
mod tables;
mod types;
mod wounds;

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use parking_lot::Mutex;
use quipu_model::{LogId, Offset, PartitionKey, ProducerId, RaftIndex, TopicConfig, Vote};

pub use self::{
    append::Reservation,
    copied::{BadCopy, check_copied},
    epochs::TermEnd,
    error::{AppendError, ReadError, RepairError, ReserveError},
    incoming::{Incoming, IncomingError},
    manifest::{BadManifest, Manifest, ManifestSegment},
    mend::Mending,
    producers::MAX_PRODUCER_BATCHES,
    repair::DamagedLog,
    types::{
        Control, ControlKind, EntryInfo, EntryKind, LogEntry, LogState, Payload, ProducerBatch,
        ProducerTail, ReadBatches, RetentionPolicy, TimestampedOffset,
    },
};
pub(crate) use self::{
    append::is_full,
    compact::{Pass, PassError, Plan},
    damage::read_mark,
    index::{ENTRY_LEN, decode as decode_index_entry},
    maintain::Captured,
    producers::ProducerTable,
    recover::RecoveringLog,
    seal::{BLOCK_BYTES, Seal},
    segment::Segment,
    state::{PartitionState, STATE_FORMAT, SegmentState},
    wounds::sound_index,
};
use self::{
    core::{CoreError, LogCore},
    damage::DamageLatch,
    maintain::SealedHook,
    segment::SegmentError,
};
use crate::{
    PartitionDamage,
    store::Context,
    wal::{Lsn, StorageFailure},
};

/// One partition's log: a handle to share. Entries come from one task at a time (Raft's); reads from any thread.
#[derive(Debug)]
pub struct PartitionLog {
    key: PartitionKey,
    context: Arc<Context>,
    inner: Mutex<Inner>,
    damage: DamageLatch,
    /// Records of the write-ahead log could not all be repeated into it: they must stay where they are.
    incomplete: bool,
    on_sealed: OnceLock<SealedHook>,
}

/// What Raft has applied: the last entry, and the membership in force with the entry that set it.
pub type Applied = (Option<LogId>, Option<(LogId, Bytes)>);

/// All that a write changes together.
#[derive(Debug)]
struct Inner {
    core: LogCore,
    /// The entries not yet applied, oldest first: applying them reads nothing from a segment.
    recent: VecDeque<EntryInfo>,
    applied: Applied,
    /// What was applied as of the checkpoint that the log was last opened from.
    recovered_applied: Applied,
    /// The last record that this partition submitted to the write-ahead log.
    lsn: Lsn,
    /// Bytes promised to batches on their way here.
    reserved_bytes: u64,
    /// As of the last checkpoint that is durable: the last entry applied, and how many segments were sealed.
    checkpointed_applied: Option<LogId>,
    checkpointed_sealed: usize,
    /// The encoded state of the last checkpoint; `None` once something has changed.
    captured: Option<Bytes>,
    /// Why nothing is written here any more, once that is so: the partition was removed, or the store closed.
    ended: Option<StorageFailure>,
    /// No checkpoint keeps the partition any more.
    removed: bool,
    /// Files of segments that are gone, which the last checkpoint still names.
    obsolete: Vec<PathBuf>,
    /// Segments of the log that could not be opened: the log is damaged, and they are to be repaired.
    unopened: Vec<SegmentState>,
}

impl PartitionLog {
    /// Which partition this is.
    pub fn key(&self) -> PartitionKey {
        self.key
    }

    /// What the log holds now.
    pub fn state(&self) -> LogState {
        let inner = self.inner.lock();
        let core = &inner.core;
        LogState {
            last_purged: core.last_purged,
            last: core.last,
            start_offset: core.start_offset,
            end_offset: core.end_offset,
            size_bytes: core.size_bytes(),
            segments: core.segments().count() as u32,
        }
    }

    /// The vote last stored.
    pub fn vote(&self) -> Option<Vote> {
        self.inner.lock().core.vote
    }

    /// Whether it reaches the entry that it was to reach before the replica votes.
    pub fn may_vote(&self) -> bool {
        let inner = self.inner.lock();
        let last = inner.core.last.map_or(RaftIndex::default(), |id| id.index);
        last >= inner.core.votes_from
    }

    /// The damage for which the partition is not served, if any.
    pub fn damage(&self) -> Option<Arc<PartitionDamage>> {
        self.damage.get()
    }

    /// Calls `f` whenever damage is found from now on, on the thread that finds it: it must not call the log.
    pub fn on_damage(&self, f: Box<dyn Fn() + Send + Sync>) {
        self.damage.on_set(f);
    }

    /// Changes the topic's settings; those for segments hold from the next one on.
    pub fn set_config(&self, config: TopicConfig) {
        self.inner.lock().core.config = config;
    }

    /// The newest entry of a kind at or before `index`, and what it says; `None` where that is not known. Who votes is known also of
    /// an index up to which the log was purged.
    pub fn newest_control(&self, kind: ControlKind, index: RaftIndex) -> Option<(LogId, Bytes)> {
        self.inner.lock().core.raft.newest_control(kind, index)
    }

    /// What the log remembers of an idempotent producer.
    pub fn producer_tail(&self, id: ProducerId) -> Option<ProducerTail> {
        self.inner.lock().core.producers.tail(id)
    }

    /// Notes what Raft has applied, for the next checkpoint to keep.
    pub fn set_applied(&self, applied: LogId, membership: Option<(LogId, Bytes)>) {
        let mut inner = self.inner.lock();
        while inner
            .recent
            .front()
            .is_some_and(|entry| entry.id.index <= applied.index)
        {
            inner.recent.pop_front();
        }
        inner.applied.0 = Some(applied);
        if membership.is_some() {
            inner.applied.1 = membership;
        }
        inner.captured = None;
    }

    /// What was applied as of the checkpoint that the log was last opened from: never past its end of then.
    pub fn recovered_applied(&self) -> Applied {
        self.inner.lock().recovered_applied.clone()
    }

    fn check_undamaged(&self) -> Result<(), Arc<PartitionDamage>> {
        self.damage().map_or(Ok(()), Err)
    }

    /// Whether only the write-ahead log holds all that the partition acknowledged.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// Stops serving the partition: bytes that were acknowledged are no longer what was written.
    fn latch_damage(&self, path: PathBuf, position: u64, detail: String) -> Arc<PartitionDamage> {
        let (damage, is_new) = self.damage.set(PartitionDamage {
            key: self.key,
            path,
            position,
            detail,
        });
        if is_new {
            tracing::error!(%damage, "a partition is no longer served");
            self.context.mark_damaged(self.key);
        }
        damage
    }

    /// What a failed read means. Not to be called with the lock held.
    fn read_error(&self, segment: &Arc<Segment>, error: SegmentError) -> ReadError {
        let path = segment.path.clone();
        match error {
            SegmentError::Rot { position, detail } if self.holds(segment) => {
                self.latch_damage(path, position.get(), detail).into()
            }
            // It was cut while it was read, and its end given back: the bytes were no longer the log's.
            SegmentError::Rot { .. } => ReadError::Io {
                path,
                error: std::io::Error::other("the log was cut meanwhile: read again"),
            },
            SegmentError::Io(error) => ReadError::Io { path, error },
        }
    }

    fn holds(&self, segment: &Arc<Segment>) -> bool {
        let inner = self.inner.lock();
        inner.core.segments().any(|held| Arc::ptr_eq(held, segment))
    }

    /// What a failed change means: a disk that does not write ends the node, rot ends this partition.
    fn append_error(&self, error: CoreError) -> AppendError {
        match error {
            CoreError::Segment(path, SegmentError::Rot { position, detail }) => {
                self.latch_damage(path, position.get(), detail).into()
            }
            CoreError::Segment(path, SegmentError::Io(error)) => {
                self.fail("read", path, error).into()
            }
            CoreError::Io(operation, path, error) => self.fail(operation, path, error).into(),
        }
    }

    fn fail(
        &self,
        operation: &'static str,
        path: PathBuf,
        error: std::io::Error,
    ) -> StorageFailure {
        self.context.wal.fail(operation, &path, error)
    }

    fn out_of_range(&self, offset: Offset, start: Offset, end: Offset) -> ReadError {
        ReadError::OutOfRange {
            key: self.key,
            offset,
            start,
            end,
        }
    }
}
