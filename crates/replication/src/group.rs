//! What the parts of one partition's replica share.

use std::sync::Arc;

use parking_lot::Mutex;
use quipu_model::{LogId, NodeId, Offset, RaftIndex, Term};
use quipu_storage::{ControlKind, EntryKind, Incoming, PartitionLog, ReadError, Store};
use tokio::sync::watch;

use crate::{
    flight::{Flight, Loss},
    sequencer::Sequencer,
    type_config::{
        RaftLogId, StoredMembership, UnknownBytes, decode_membership, decode_trim, from_raft_id,
        to_raft_id,
    },
};

/// Up to where entries were applied, and the voters as of there.
#[derive(Clone, Debug, Default)]
pub(crate) struct AppliedState {
    pub(crate) last: Option<RaftLogId>,
    pub(crate) membership: StoredMembership,
}

/// A point of the log that stands for everything before it: what a follower is told that is behind the log's start.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotPoint {
    pub(crate) last: RaftLogId,
    pub(crate) membership: StoredMembership,
    /// The offset of the first record after it.
    pub(crate) next_offset: Offset,
}

#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    /// Where the next snapshot is to end: the last entry that retention let go.
    pub(crate) mark: Option<SnapshotPoint>,
    pub(crate) current: Option<SnapshotPoint>,
}

/// One partition's replica, as seen by its log store, its state machine and its door. It outlives openraft's own restarts.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) node: NodeId,
    pub(crate) store: Arc<Store>,
    pub(crate) log: Arc<PartitionLog>,
    /// Another replica's log on its way here: see `catch_up`.
    pub(crate) copied: Arc<tokio::sync::Mutex<Option<Incoming>>>,
    /// Counts the times that segments were sealed.
    pub(crate) sealed: watch::Sender<u64>,
    pub(crate) sequencer: Mutex<Sequencer<Arc<Flight>>>,
    pub(crate) applied: Mutex<AppliedState>,
    pub(crate) snapshots: Mutex<Snapshots>,
    /// Below which offset records may go, by what was applied: for the keeper to see to.
    pub(crate) trim_wanted: watch::Sender<Offset>,
    /// Up to where the keeper saw to it.
    pub(crate) trimmed: watch::Sender<Offset>,
    /// Up to where Raft's log is to forget what compaction is to write anew, and the offset behind it: for the keeper, too.
    pub(crate) purge_wanted: watch::Sender<Option<(LogId, Offset)>>,
    /// The term of the last entry applied.
    pub(crate) applied_term: watch::Sender<Term>,
    high_watermark: watch::Sender<Offset>,
}

/// Why a replica could not be set up from its log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Unknown(#[from] UnknownBytes),
    #[error(transparent)]
    Purge(#[from] quipu_storage::AppendError),
}

impl Group {
    /// Sets up what is known from the log as it was recovered.
    pub(crate) fn load(
        node: NodeId,
        store: Arc<Store>,
        log: Arc<PartitionLog>,
    ) -> Result<Arc<Self>, LoadError> {
        let applied = recovered(&log)?;
        let high_watermark = offset_after(&log, applied.last.as_ref().map(from_raft_id))?;
        let group = Self::new(node, store, log, applied, high_watermark);
        group.finish_purge()?;
        group.restore_snapshot()?;
        group.restore_trim()?;
        Ok(Arc::new(group))
    }

    /// For a log that is damaged, and so is not served: nothing is read from it.
    pub(crate) fn unserved(node: NodeId, store: Arc<Store>, log: Arc<PartitionLog>) -> Arc<Self> {
        let start = log.state().start_offset;
        let membership = recovered(&log).unwrap_or_default().membership;
        let applied = AppliedState {
            last: None,
            membership,
        };
        Arc::new(Self::new(node, store, log, applied, start))
    }

    /// Goes on with a log that was damaged and is sound again.
    pub(crate) fn reload(&self) -> Result<(), LoadError> {
        let applied = recovered(&self.log)?;
        let high_watermark = offset_after(&self.log, applied.last.as_ref().map(from_raft_id))?;
        let term = applied.last.map_or(0, |last| last.leader_id.term);
        *self.applied.lock() = applied;
        self.applied_term.send_replace(Term::new(term));
        self.advance(high_watermark);
        self.finish_purge()?;
        self.restore_snapshot()?;
        Ok(self.restore_trim()?)
    }

    fn new(
        node: NodeId,
        store: Arc<Store>,
        log: Arc<PartitionLog>,
        applied: AppliedState,
        high_watermark: Offset,
    ) -> Self {
        let applied_term = applied.last.map_or(0, |last| last.leader_id.term);
        let sealed = watch::Sender::default();
        let told = sealed.clone();
        log.on_sealed(Box::new(move || told.send_modify(|times| *times += 1)));
        Self {
            node,
            store,
            log,
            copied: Arc::default(),
            sealed,
            sequencer: Mutex::new(Sequencer::new()),
            applied: Mutex::new(applied),
            snapshots: Mutex::default(),
            trim_wanted: watch::Sender::new(Offset::ZERO),
            trimmed: watch::Sender::new(Offset::ZERO),
            purge_wanted: watch::Sender::default(),
            applied_term: watch::Sender::new(Term::new(applied_term)),
            high_watermark: watch::Sender::new(high_watermark),
        }
    }

    /// Purges what a crash left between a trim and the purge behind it: openraft must not look for entries whose segments
    /// are gone. They were applied: the keeper makes that durable before it trims.
    fn finish_purge(&self) -> Result<(), quipu_storage::AppendError> {
        let applied = self.applied.lock().last;
        match self.log.purge_point() {
            Some((last, next_offset)) if Some(to_raft_id(last)) <= applied => {
                self.log.purge(last, next_offset)
            }
            _ => Ok(()),
        }
    }

    /// The snapshot that stands behind a purged log's start. It needs no file: it is made of the segments. Where the voters as
    /// of that point are no longer known, openraft asks for one of what was applied instead.
    fn restore_snapshot(&self) -> Result<(), LoadError> {
        let Some(purged) = self.log.state().last_purged else {
            return Ok(());
        };
        let last = to_raft_id(purged);
        let Some(membership) = self.membership_as_of(last)? else {
            return Ok(());
        };
        let next_offset = offset_after(&self.log, Some(purged))?;
        self.snapshots.lock().current = Some(SnapshotPoint {
            last,
            membership,
            next_offset,
        });
        Ok(())
    }

    /// A crash may have come between applying a trim and doing it: then it is done now.
    fn restore_trim(&self) -> Result<(), UnknownBytes> {
        let Some(applied) = self.applied.lock().last else {
            return Ok(());
        };
        let index = RaftIndex::new(applied.index);
        if let Some((_, before)) = self.log.newest_control(ControlKind::Trim, index) {
            self.trim_wanted.send_replace(decode_trim(&before)?);
        }
        Ok(())
    }

    /// The voters as of an entry that was applied; `None` where that is no longer known.
    fn membership_as_of(&self, last: RaftLogId) -> Result<Option<StoredMembership>, UnknownBytes> {
        let applied = self.applied.lock().membership.clone();
        if *applied.log_id() <= Some(last) {
            return Ok(Some(applied));
        }
        if let Some((id, bytes)) = self
            .log
            .newest_control(ControlKind::Membership, RaftIndex::new(last.index))
        {
            let members = decode_membership(&bytes)?;
            return Ok(Some(StoredMembership::new(Some(to_raft_id(id)), members)));
        }
        let snapshots = self.snapshots.lock();
        let current = snapshots
            .current
            .as_ref()
            .filter(|current| current.last <= last);
        Ok(current.map(|current| current.membership.clone()))
    }

    /// Whether this log has an entry, and so all before it.
    pub(crate) fn holds(&self, id: LogId) -> bool {
        self.log.term_of(id.index) == Some(id.term)
            || self
                .log
                .state()
                .last_purged
                .is_some_and(|purged| id <= purged)
    }

    pub(crate) fn watch_high_watermark(&self) -> watch::Receiver<Offset> {
        self.high_watermark.subscribe()
    }

    pub(crate) fn high_watermark(&self) -> Offset {
        *self.high_watermark.borrow()
    }

    /// Lets readers see up to `to`. Never goes back.
    pub(crate) fn advance(&self, to: Offset) {
        self.high_watermark.send_if_modified(|mark| {
            let further = to > *mark;
            if further {
                *mark = to;
            }
            further
        });
    }

    /// Ends a flight: committed, or lost. Only the first call for a flight counts.
    pub(crate) fn settle(&self, flight: &Flight, loss: Option<Loss>) {
        let Some(outcome) = flight.settle(loss) else {
            return;
        };
        if let Some((producer, number)) = flight.sequenced() {
            match outcome {
                Ok(base) => self.sequencer.lock().complete(producer, number, base),
                Err(loss) => {
                    let behind = self.sequencer.lock().fail(producer, number);
                    for flight in behind {
                        flight.cancel(loss);
                    }
                }
            }
        }
        flight.announce();
    }

    /// Marks an entry as what the next snapshot is to end with, behind which records go on at `next_offset`; `false` where
    /// the voters as of there are no longer known.
    pub(crate) fn mark(&self, last: RaftLogId, next_offset: Offset) -> bool {
        let Ok(Some(membership)) = self.membership_as_of(last) else {
            return false;
        };
        self.snapshots.lock().mark = Some(SnapshotPoint {
            last,
            membership,
            next_offset,
        });
        true
    }

    /// The point up to which everything was applied.
    pub(crate) fn applied_point(&self) -> Result<Option<SnapshotPoint>, ReadError> {
        let applied = self.applied.lock().clone();
        let Some(last) = applied.last else {
            return Ok(None);
        };
        let next_offset = offset_after(&self.log, Some(from_raft_id(&last)))?;
        Ok(Some(SnapshotPoint {
            last,
            membership: applied.membership,
            next_offset,
        }))
    }
}

/// What the log knows to be applied.
fn recovered(log: &PartitionLog) -> Result<AppliedState, UnknownBytes> {
    let (last, membership) = log.recovered_applied();
    let membership = match membership {
        Some((id, bytes)) => {
            StoredMembership::new(Some(to_raft_id(id)), decode_membership(&bytes)?)
        }
        None => StoredMembership::default(),
    };
    Ok(AppliedState {
        last: last.map(to_raft_id),
        membership,
    })
}

/// The offset of the first record after an entry; after none, of the first record.
fn offset_after(log: &PartitionLog, id: Option<LogId>) -> Result<Offset, ReadError> {
    const CHUNK: u64 = 64;
    let state = log.state();
    let end = state.last.map_or(0, |last| last.index.get() + 1);
    let first_kept = state.last_purged.map_or(0, |purged| purged.index.get() + 1);
    let mut from = id.map_or(0, |id| id.index.get() + 1).max(first_kept);
    while from < end {
        let to = end.min(from + CHUNK);
        let infos = log.entry_infos(RaftIndex::new(from), RaftIndex::new(to))?;
        let base = infos.iter().find_map(|info| match info.kind {
            EntryKind::Batch { base, .. } => Some(base),
            EntryKind::Control(_) => None,
        });
        if let Some(base) = base {
            return Ok(base);
        }
        from = to;
    }
    Ok(state.end_offset)
}
