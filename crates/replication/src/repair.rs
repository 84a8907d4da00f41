//! A replica whose log is damaged: its Raft is stopped, the log is made whole from what other replicas hold, and only then does
//! its Raft start again. Until then it neither serves nor votes nor takes entries in.
//!
//! Where no other holds what stood here, since retention let it go or compaction wrote it anew, another's whole log takes this
//! one's place, as when a replica that is far behind catches up. What this replica acknowledged may be committed by that. So the
//! other log must be committed up to an entry no older than this one's last: then whatever of this log is committed, or will
//! be, is in it. And this replica follows whom the other one follows, unless it promised a later candidate its vote: so it
//! gives none to a candidate of before that entry.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use quipu_model::{NodeId, Offset, Vote};
use quipu_storage::{DamagedLog, Manifest, Mending, RepairError};

use crate::{
    blocking::blocking,
    network::{CopyRequest, CopyResponse},
    partition::{Inner, Replica},
    replicator::Starter,
    running::Running,
    state_machine::encoded,
    type_config::{StoredMembership, from_raft_vote},
};

/// The first pause before a repair that failed is tried again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// How long a leader that must stop waits for another to take over.
const HAND_OVER: Duration = Duration::from_secs(1);
/// How much is asked for at a time, and how long that may take: giving it waits for its turn on the other node.
const PIECE_BYTES: u32 = 1 << 20;
const PIECE_PATIENCE: Duration = Duration::from_secs(10);

/// Why a repair did not work out.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Storage(#[from] RepairError),
    #[error(
        "no other replica gave sound records from offset {from} on ({}); where none has them, bring the file back from a copy, or \
         move the partition to other nodes without what is lost", tried.join("; ")
    )]
    NotFound { from: Offset, tried: Vec<String> },
    #[error("{mending}; nor was another replica's log to be had in place of this one ({})", tried.join("; "))]
    NotReplaced {
        mending: Box<Failure>,
        tried: Vec<String>,
    },
    #[error("what is damaged was found sound, and then damaged again: check the disk")]
    Fickle,
    #[error("{0}")]
    Broken(String),
    /// The replica was shut down.
    #[error("the replica was shut down")]
    Ended,
}

impl Failure {
    /// Whether others may hold other bytes than stood here, or nothing at those offsets.
    fn may_differ(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. } | Self::Storage(RepairError::Unsound { .. })
        )
    }
}

/// Another replica's log, as far as it is committed.
struct Offered {
    node: NodeId,
    leader: Vote,
    members: StoredMembership,
    manifest: Manifest,
}

/// Stops the Raft of a replica whose log is damaged. Where it leads, another replica is to, soon.
pub(crate) async fn stop_damaged(inner: &Inner, running: &Running) {
    let partition = inner.group.log.key();
    let leads = running.leads_others();
    let was_asleep = inner.wake();
    {
        let mut replica = inner.replica.write();
        if !matches!(*replica, Replica::Ended) {
            *replica = Replica::Damaged { why: None };
        }
    }
    inner.tell();
    if leads {
        if was_asleep {
            running.ask_majority(HAND_OVER).await;
        }
        hand_over(running).await;
    }
    if let Err(error) = running.raft.shutdown().await {
        tracing::debug!(%partition, %error, "the replica had stopped already");
    }
}

/// Asks the voter that is furthest to lead, and waits a moment for it to.
async fn hand_over(running: &Running) {
    let voters = running.members().voters;
    let progress = running.progress();
    let others = progress.iter().filter(|other| voters.contains(&other.node));
    let Some(next) = others.max_by_key(|other| other.matched) else {
        return;
    };
    let trigger = running.raft.trigger();
    if trigger.transfer_leader(next.node.get()).await.is_err() {
        return;
    }
    let mut server = running.server.clone();
    let handing = async { while running.leading().is_ok() && server.changed().await.is_ok() {} };
    // Where nobody takes over in time, they elect when they hear no more of this one.
    let _ = tokio::time::timeout(HAND_OVER, handing).await;
}

/// Repairs the log, however long it takes; `false`: the replica was shut down.
pub(crate) async fn repair(inner: &Arc<Inner>, starter: &Starter) -> bool {
    let log = &inner.group.log;
    let partition = log.key();
    let mut pause = FIRST_PAUSE;
    while let Some(damaged) = log.damaged() {
        let (path, position) = (damaged.damage().path.clone(), damaged.damage().position);
        let path = path.display();
        tracing::warn!(%partition, %path, position, "repairing a damaged partition from other replicas");
        let repair = Repair {
            inner,
            starter,
            fetched: 0,
        };
        let failure = match repair.run(damaged).await {
            Ok(fetched) => {
                inner.metrics.repairs.inc();
                tracing::warn!(%partition, %path, position, fetched, "the partition is whole again");
                return true;
            }
            Err(Failure::Ended) => return false,
            Err(failure) => failure.to_string(),
        };
        tracing::warn!(%partition, %path, position, failure, "the partition is not repaired yet: trying again in {pause:?}");
        if !note(inner, failure) {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.alarm.notified() => {}
        }
        pause = LAST_PAUSE.min(pause * 2);
    }
    true
}

/// Notes why a repair did not work out; `false`: the replica was shut down.
fn note(inner: &Inner, failure: String) -> bool {
    let mut replica = inner.replica.write();
    let goes_on = !matches!(*replica, Replica::Ended);
    if goes_on {
        *replica = Replica::Damaged { why: Some(failure) };
    }
    goes_on
}

/// One attempt.
struct Repair<'a> {
    inner: &'a Arc<Inner>,
    starter: &'a Starter,
    fetched: u64,
}

impl Repair<'_> {
    /// How many bytes were fetched.
    async fn run(mut self, damaged: DamagedLog) -> Result<u64, Failure> {
        match self.mend_all(damaged).await {
            Err(mending) if mending.may_differ() => self.replace(mending).await?,
            mended => mended?,
        }
        let group = Arc::clone(&self.inner.group);
        let reloaded = self.step(move || group.reload()).await?;
        reloaded.map_err(|error| Failure::Broken(error.to_string()))?;
        Ok(self.fetched)
    }

    async fn mend_all(&mut self, mut damaged: DamagedLog) -> Result<(), Failure> {
        loop {
            let (examined, found) = self
                .step(move || {
                    let found = damaged.examine();
                    (damaged, found)
                })
                .await?;
            let found = found?;
            let nothing = found.is_empty();
            for mending in found {
                self.mend(mending).await?;
            }
            let position = (examined.damage().path.clone(), examined.damage().position);
            match self.step(move || examined.reopen()).await?? {
                None => return Ok(()),
                Some(still) => {
                    let again = (still.damage().path.clone(), still.damage().position);
                    if nothing && again == position {
                        return Err(Failure::Fickle);
                    }
                    damaged = still;
                }
            }
        }
    }

    /// Puts the log of the first replica whose reaches far enough in this one's place.
    async fn replace(&mut self, mending: Failure) -> Result<(), Failure> {
        let others = self.others();
        if others.is_empty() {
            return Err(mending);
        }
        let mut tried = Vec::new();
        for node in others {
            let taken = match self.ask_for_all(node).await {
                Ok(offered) => self.take(offered).await,
                Err(why) => Err(Failure::Broken(why)),
            };
            match taken {
                Ok(()) => return Ok(()),
                Err(Failure::Ended) => return Err(Failure::Ended),
                Err(why) => tried.push(format!("node {node}: {why}")),
            }
        }
        let mending = Box::new(mending);
        Err(Failure::NotReplaced { mending, tried })
    }

    async fn ask_for_all(&self, node: NodeId) -> Result<Offered, String> {
        let network = &self.starter.network;
        let key = network.log.key();
        let asking = network.transport.take_over(node, key, PIECE_PATIENCE).await;
        let (leader, snapshot) = asking.map_err(|error| error.reason)?.0;
        Ok(Offered {
            node,
            leader: from_raft_vote(&leader),
            members: snapshot.meta.last_membership,
            manifest: snapshot.snapshot.log.ok_or("it gave nothing")?,
        })
    }

    /// Copies a log, and lets it take this one's place.
    async fn take(&mut self, offered: Offered) -> Result<(), Failure> {
        let group = &self.inner.group;
        let Some(damaged) = group.log.damaged() else {
            return Ok(());
        };
        let (node, leader, members) = (offered.node, offered.leader, encoded(&offered.members));
        let last = offered.manifest.last;
        // What was on its way for Raft goes into the same files.
        let mut copied = group.copied.lock().await;
        *copied = None;
        let (damaged, opened) = self
            .step(move || {
                let opened = damaged.copy_of(offered.manifest);
                (damaged, opened)
            })
            .await?;
        let mut incoming = opened?;
        let partition = group.log.key();
        tracing::warn!(%partition, %node, %last, "no replica gives what was damaged: a node's log takes this one's place");
        while let Some((from, up_to)) = incoming.wanted() {
            let batches = self.fetch(node, from, up_to, false).await;
            let batches = batches.map_err(Failure::Broken)?;
            let bytes = batches.len() as u64;
            let (filled, taken) = self
                .step(move || {
                    let taken = incoming.take(&batches);
                    (incoming, taken)
                })
                .await?;
            incoming = filled;
            taken.map_err(RepairError::from)?;
            self.note_fetched(bytes);
        }
        let replaced = self
            .step(move || damaged.replace(&incoming, members, leader))
            .await?;
        match replaced? {
            None => Ok(()),
            Some(_) => Err(Failure::Fickle),
        }
    }

    fn note_fetched(&mut self, bytes: u64) {
        self.fetched += bytes;
        self.inner.metrics.repaired_bytes.inc_by(bytes);
    }

    async fn mend(&mut self, mut mending: Mending) -> Result<(), Failure> {
        loop {
            while let Some((from, up_to)) = mending.wanted() {
                mending = self.fill(mending, from, up_to).await?;
            }
            let (mended, done) = self
                .step(move || {
                    let done = mending.finish();
                    (mending, done)
                })
                .await?;
            if done? {
                return Ok(());
            }
            mending = mended;
        }
    }

    /// Puts batches from the first replica that gives some that fit.
    async fn fill(
        &mut self,
        mut mending: Mending,
        from: Offset,
        up_to: Offset,
    ) -> Result<Mending, Failure> {
        let mut tried = Vec::new();
        for node in self.others() {
            let mut next = from;
            // A stretch comes from one replica: what does not fit in the end may have been wrong from the start.
            loop {
                let fetched = self.fetch(node, next, up_to, true).await;
                let lacks = || "it does not have them".to_owned();
                let batches = match fetched {
                    Ok(batches) if !batches.is_empty() => batches,
                    nothing => {
                        let why = nothing.err().unwrap_or_else(lacks);
                        tried.push(format!("node {node}: {why}"));
                        break;
                    }
                };
                let (filled, put) = self
                    .step(move || {
                        let put = mending.put(batches);
                        (mending, put)
                    })
                    .await?;
                mending = filled;
                match put {
                    Ok(bytes) => self.note_fetched(bytes),
                    Err(RepairError::Unsound { detail, .. }) => {
                        tried.push(format!("node {node}: {detail}"));
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
                match mending.wanted() {
                    Some((further, end)) if end == up_to && further > next => next = further,
                    Some((same, end)) if end == up_to && same <= next => {
                        tried.push(format!("node {node} gave nothing that was wanted"));
                        break;
                    }
                    _ => return Ok(mending),
                }
            }
            mending.rewind();
        }
        Err(Failure::NotFound { from, tried })
    }

    async fn fetch(
        &self,
        node: NodeId,
        from: Offset,
        up_to: Offset,
        uncommitted: bool,
    ) -> Result<Bytes, String> {
        let request = CopyRequest {
            from,
            up_to,
            max_bytes: PIECE_BYTES,
            uncommitted,
        };
        let network = &self.starter.network;
        let key = network.log.key();
        let copying = network
            .transport
            .copy(node, key, request, PIECE_PATIENCE)
            .await;
        match copying.map_err(|error| error.reason)? {
            CopyResponse::Batches { bytes, .. } => Ok(bytes),
            CopyResponse::OutOfRange { start, end } => {
                Err(format!("it holds offsets {start} to {end}"))
            }
        }
    }

    fn others(&self) -> Vec<NodeId> {
        let own = self.inner.group.node;
        let members = self.inner.members.borrow();
        let mut others: Vec<_> = members.voters.union(&members.learners).copied().collect();
        others.extend(self.starter.founders.keys().map(|node| NodeId::new(*node)));
        others.extend(&*self.inner.holders.read());
        others.sort();
        others.dedup();
        others.retain(|node| *node != own);
        others
    }

    /// Does what changes files, unless the replica was shut down: its directory may be another's by now.
    async fn step<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let _mending = self.inner.mending.lock().await;
        if matches!(*self.inner.replica.read(), Replica::Ended) {
            return Err(Failure::Ended);
        }
        let done = blocking(&self.inner.store, f).await;
        done.map_err(|error| Failure::Broken(error.to_string()))
    }
}
