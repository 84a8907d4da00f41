//! A replica whose log is damaged: its Raft is stopped, the log is made whole from what other replicas hold, and only then does
//! its Raft start again. Until then it neither serves nor votes nor takes entries in.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use quipu_model::{NodeId, Offset};
use quipu_storage::{DamagedLog, Mending, RepairError};

use crate::{
    blocking::blocking,
    network::{CopyRequest, CopyResponse},
    partition::{Inner, Replica},
    replicator::Starter,
    running::Running,
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
    #[error("what is damaged was found sound, and then damaged again: check the disk")]
    Fickle,
    #[error("{0}")]
    Broken(String),
    /// The replica was shut down.
    #[error("the replica was shut down")]
    Ended,
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
    async fn run(mut self, mut damaged: DamagedLog) -> Result<u64, Failure> {
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
                None => break,
                Some(still) => {
                    let again = (still.damage().path.clone(), still.damage().position);
                    if nothing && again == position {
                        return Err(Failure::Fickle);
                    }
                    damaged = still;
                }
            }
        }
        let group = Arc::clone(&self.inner.group);
        let reloaded = self.step(move || group.reload()).await?;
        reloaded.map_err(|error| Failure::Broken(error.to_string()))?;
        Ok(self.fetched)
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
                let batches = match self.fetch(node, next, up_to).await {
                    Ok(batches) => batches,
                    Err(why) => {
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
                    Ok(bytes) => {
                        self.fetched += bytes;
                        self.inner.metrics.repaired_bytes.inc_by(bytes);
                    }
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

    async fn fetch(&self, node: NodeId, from: Offset, up_to: Offset) -> Result<Bytes, String> {
        let request = CopyRequest {
            from,
            up_to,
            max_bytes: PIECE_BYTES,
            uncommitted: true,
        };
        let network = &self.starter.network;
        let key = network.log.key();
        let copying = network
            .transport
            .copy(node, key, request, PIECE_PATIENCE)
            .await;
        match copying.map_err(|error| error.reason)? {
            CopyResponse::Batches { bytes, .. } if bytes.is_empty() => {
                Err("it does not have them".to_owned())
            }
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
