//! Applying: the segments are the state, so there is little to do but to let readers see further.
//!
//! **Retention.** A trim entry lets what lies below its offset go on every replica alike. Applying it only leaves word for
//! the keeper (see `keeper`), which deletes, and then lets Raft's log forget the entries that the deleted segments held: it
//! marks the last of them, P, asks openraft for a snapshot (of P: a few numbers, no copy) and then to purge up to P. A snapshot
//! names the voters as of P, which the log remembers where they changed after P.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend,
    alias::{SnapshotMetaOf, SnapshotOf},
    storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine},
};
use quipu_model::{LogId, Offset};
use quipu_storage::{Incoming, ReadError};
use tokio::sync::oneshot;

use crate::{
    blocking::blocking,
    group::{Group, SnapshotPoint},
    type_config::{
        Applied, Proposal, RaftEntry, RaftLogId, StoredMembership, Types, encode_membership,
        from_raft_id,
    },
};

/// What a snapshot carries besides openraft's own fields: where records go on after it, and what the log up to there is made
/// of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) next_offset: Offset,
    /// `None` where the log begins there: there is nothing to copy.
    pub(crate) log: Option<quipu_storage::Manifest>,
}

#[derive(Debug)]
pub(crate) struct StateMachine {
    group: Arc<Group>,
    /// The voters as of what was applied, encoded.
    voters: Option<(LogId, Bytes)>,
}

impl StateMachine {
    pub(crate) fn new(group: Arc<Group>) -> Self {
        let voters = encoded(&group.applied.lock().membership);
        Self { group, voters }
    }

    fn note_applied(&self, last: RaftLogId) {
        self.group.applied.lock().last = Some(last);
        let voters = self.voters.clone();
        let last = from_raft_id(&last);
        self.group.log.set_applied(last, voters);
        self.group.applied_term.send_if_modified(|term| {
            let before = std::mem::replace(term, last.term);
            before != last.term
        });
    }

    /// Puts the log that was copied for a snapshot in this one's place, durably, unless this one holds that entry already.
    async fn put_in_place(
        &self,
        last: LogId,
        membership: &StoredMembership,
    ) -> Result<(), io::Error> {
        let mut copied = Arc::clone(&self.group.copied).lock_owned().await;
        if self.group.holds(last) {
            return Ok(());
        }
        let is_here = |copied: &Incoming| copied.manifest().last == last && copied.is_whole();
        if !copied.as_ref().is_some_and(is_here) {
            // Taken for installed, it would be a hole that nobody knows of.
            let lacking = format!("what was copied does not reach entry {last}");
            return Err(io::Error::other(lacking));
        }
        let (group, voters) = (Arc::clone(&self.group), encoded(membership));
        let (tell, told) = oneshot::channel();
        let installing = blocking(&self.group.store, move || {
            let Some(copied) = copied.take() else {
                return Ok(());
            };
            let done = Box::new(move |result| drop(tell.send(result)));
            group.log.install(&copied, voters, done)
        });
        let installed = installing.await.map_err(io::Error::other)?;
        installed.map_err(io::Error::other)?;
        let flushed = told.await.map_err(io::Error::other)?;
        flushed.map_err(io::Error::other)
    }

    /// Lets what was applied since be the snapshot; whether anything was.
    fn mark_later(&self, than: &SnapshotPoint) -> Result<bool, io::Error> {
        let applied = self.group.applied_point().map_err(io::Error::other)?;
        let later = applied.filter(|point| point.last > than.last);
        let found = later.is_some();
        if found {
            self.group.snapshots.lock().current = later;
        }
        Ok(found)
    }

    fn note_membership(&mut self, membership: StoredMembership) {
        self.voters = encoded(&membership);
        self.group.applied.lock().membership = membership;
    }

    fn apply_one(&mut self, entry: RaftEntry) -> io::Result<()> {
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(voters) => {
                self.note_membership(StoredMembership::new(Some(entry.log_id), voters));
            }
            EntryPayload::Normal(Proposal::Stored { next }) => self.group.advance(next),
            EntryPayload::Normal(Proposal::Trim(before)) => {
                self.group.trim_wanted.send_if_modified(|wanted| {
                    let further = before > *wanted;
                    *wanted = before.max(*wanted);
                    further
                });
            }
            EntryPayload::Normal(Proposal::Batch { .. }) => {
                return Err(io::Error::other("an entry to apply came with its bytes"));
            }
        }
        Ok(())
    }
}

pub(crate) fn encoded(membership: &StoredMembership) -> Option<(LogId, Bytes)> {
    let id = from_raft_id(membership.log_id().as_ref()?);
    Some((id, encode_membership(membership.membership())))
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = Manifest;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, StoredMembership), io::Error> {
        let applied = self.group.applied.lock();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut last = None;
        while let Some((entry, responder)) = entries.try_next().await? {
            last = Some(entry.log_id);
            self.apply_one(entry)?;
            if let Some(responder) = responder {
                responder.send(Applied);
            }
        }
        if let Some(last) = last {
            self.note_applied(last);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            group: Arc::clone(&self.group),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: Manifest,
    ) -> Result<(), io::Error> {
        let Some(last) = meta.last_log_id else {
            return Ok(());
        };
        // Without a log, all up to there was trimmed.
        if snapshot.log.is_some() {
            let membership = &meta.last_membership;
            self.put_in_place(from_raft_id(&last), membership).await?;
        }
        self.group.snapshots.lock().current = Some(SnapshotPoint {
            last,
            membership: meta.last_membership.clone(),
            next_offset: snapshot.next_offset,
        });
        self.note_membership(meta.last_membership.clone());
        self.note_applied(last);
        self.group.advance(snapshot.next_offset);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<Types, Manifest>>, io::Error> {
        loop {
            let Some(point) = self.group.snapshots.lock().current.clone() else {
                return Ok(None);
            };
            let group = Arc::clone(&self.group);
            let (last, end) = (from_raft_id(&point.last), point.next_offset);
            let reading = blocking(&self.group.store, move || group.log.manifest(last, end));
            match reading.await.map_err(io::Error::other)? {
                Ok(log) => return Ok(Some(snapshot_of(point, Some(log)))),
                // It was trimmed past there. Without the log, what producers had sent would be forgotten: a later one has it.
                Err(ReadError::OutOfRange { .. }) => {
                    if !self.mark_later(&point)? {
                        return Ok(Some(snapshot_of(point, None)));
                    }
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

pub(crate) fn snapshot_of(
    point: SnapshotPoint,
    log: Option<quipu_storage::Manifest>,
) -> SnapshotOf<Types, Manifest> {
    SnapshotOf::<Types, Manifest> {
        meta: SnapshotMetaOf::<Types> {
            last_log_id: Some(point.last),
            last_membership: point.membership,
        },
        snapshot: Manifest {
            next_offset: point.next_offset,
            log,
        },
    }
}

#[derive(Debug)]
pub(crate) struct SnapshotBuilder {
    group: Arc<Group>,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = Manifest;

    /// A snapshot of the marked point; where none is marked, of all that was applied.
    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, Manifest>, io::Error> {
        let marked = self.group.snapshots.lock().mark.take();
        let point = match marked {
            Some(point) => Some(point),
            None => self.group.applied_point().map_err(io::Error::other)?,
        };
        let mut snapshots = self.group.snapshots.lock();
        if snapshots.current.as_ref().map(|c| c.last) < point.as_ref().map(|p| p.last) {
            snapshots.current = point;
        }
        let nothing = SnapshotOf::<Types, Manifest> {
            meta: SnapshotMetaOf::<Types>::default(),
            snapshot: Manifest {
                next_offset: Offset::ZERO,
                log: None,
            },
        };
        // openraft asks for what it sends anew.
        let current = snapshots.current.clone();
        Ok(current.map_or(nothing, |point| snapshot_of(point, None)))
    }
}
