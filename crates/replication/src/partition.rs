//! A partition as the broker sees it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{ServerState, errors::ClientWriteError, metrics::WaitError};
use parking_lot::RwLock;
use quipu_model::{LeaderEpoch, NodeId, Offset, PartitionKey, Term, TimestampMs, TopicConfig};
use quipu_storage::{
    AppendError as LogError, PartitionDamage, PartitionLog, ReadBatches, ReadError, ReserveError,
    RetentionPolicy, Store, TermEnd, TimestampedOffset,
};
use tokio::{
    sync::{Mutex, Notify, oneshot, watch},
    time::Instant,
};

use crate::{
    blocking::blocking,
    error::AppendError,
    flight::Loss,
    group::Group,
    members::{Leadership, Members},
    network::Transport,
    replicator::Metrics,
    running::Running,
    sleep::Groups,
    type_config::{Answer, Proposal, Raft, WriteResult},
};

/// How long a leader that ends waits for those whom it wakes.
const LAST_WORD: Duration = Duration::from_millis(500);
/// How long the newest record is waited for to be committed.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for a trim that was committed to be done.
const TRIM_PATIENCE: Duration = Duration::from_secs(60);

/// A replica of a partition on this node: what the broker reads and writes through. Cheap to clone.
///
/// It runs until [`Partition::shutdown`], also where all handles were dropped.
#[derive(Clone, Debug)]
pub struct Partition {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) enum Replica {
    Running(Running),
    /// It failed, and will be started again.
    Failed(String),
    /// The log is damaged, and is repaired before it runs again; why that did not work out, where it was tried.
    Damaged {
        why: Option<String>,
    },
    /// It was shut down, or is not to run.
    Ended,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) group: Arc<Group>,
    pub(crate) store: Arc<Store>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) metrics: Metrics,
    pub(crate) replica: RwLock<Replica>,
    /// The one ordered door: held from the check of a batch's sequence until it is proposed, in the order of asking.
    pub(crate) door: Mutex<()>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) members: watch::Sender<Members>,
    pub(crate) groups: Arc<Groups>,
    /// Whether the group sleeps, as far as this replica knows: see `sleep`.
    pub(crate) asleep: watch::Sender<bool>,
    /// When it woke last.
    pub(crate) woke: RwLock<Option<Instant>>,
    /// Whether it wakes soon.
    pub(crate) stirs: AtomicBool,
    /// Whether a leader sent anything since the replica was started.
    pub(crate) heard: AtomicBool,
    /// The log was found damaged, or whoever repairs it is to look up.
    pub(crate) alarm: Arc<Notify>,
    /// Held while a repair changes files.
    pub(crate) mending: Mutex<()>,
    /// Who is said to hold the partition: see [`Partition::note_holders`].
    pub(crate) holders: RwLock<Vec<NodeId>>,
}

impl Inner {
    pub(crate) fn new(
        group: Arc<Group>,
        (store, transport): (Arc<Store>, Arc<dyn Transport>),
        metrics: Metrics,
        groups: Arc<Groups>,
        replica: Replica,
    ) -> Arc<Self> {
        let members = Members::of(group.applied.lock().membership.membership());
        let inner = Self {
            group,
            store,
            transport,
            metrics,
            replica: RwLock::new(replica),
            door: Mutex::new(()),
            leadership: watch::Sender::default(),
            members: watch::Sender::new(members),
            groups,
            asleep: watch::Sender::new(false),
            woke: RwLock::default(),
            stirs: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            alarm: Arc::default(),
            mending: Mutex::new(()),
            holders: RwLock::default(),
        };
        let alarm = Arc::clone(&inner.alarm);
        let raise = Box::new(move || alarm.notify_one());
        inner.group.log.on_damage(raise);
        inner.tell();
        Arc::new(inner)
    }

    /// Has it go by who founded the group, until it knows more.
    pub(crate) fn presume(&self, founders: &[NodeId]) {
        self.members.send_if_modified(|told| {
            let is_unknown = told.voters.is_empty();
            if is_unknown {
                told.voters.extend(founders);
            }
            is_unknown
        });
    }

    /// Tells who leads and who the members are now, where that is news.
    pub(crate) fn tell(&self) {
        // Found out with the sender's lock held: what is told last is what was found out last.
        self.leadership
            .send_if_modified(|told| replace(told, self.leadership_now()));
        self.members
            .send_if_modified(|told| match &*self.replica.read() {
                Replica::Running(running) => replace(told, running.members()),
                Replica::Failed(_) | Replica::Damaged { .. } | Replica::Ended => false,
            });
    }

    pub(crate) fn leadership_now(&self) -> Leadership {
        if let Replica::Running(running) = &*self.replica.read() {
            return running.leadership(*self.group.applied_term.borrow());
        }
        let term = self.group.log.vote().map(|vote| vote.term);
        Leadership {
            leader: None,
            epoch: term.unwrap_or_default().leader_epoch(),
            ready: false,
        }
    }

    /// Goes on with a replica that was started again; `false` where the partition was shut down meanwhile.
    pub(crate) fn resume(&self, running: Running) -> bool {
        // What is started anew is awake, and asks how things are.
        self.asleep.send_replace(false);
        self.heard.store(false, Ordering::Relaxed);
        let mut replica = self.replica.write();
        let wanted = !matches!(*replica, Replica::Ended);
        if wanted {
            *replica = Replica::Running(running);
        }
        drop(replica);
        self.tell();
        wanted
    }
}

/// Whether that made a difference.
fn replace<T: PartialEq>(told: &mut T, now: T) -> bool {
    let news = *told != now;
    *told = now;
    news
}

impl Partition {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// Which partition this is.
    pub fn key(&self) -> PartitionKey {
        self.log().key()
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    pub(crate) fn log(&self) -> &Arc<PartitionLog> {
        &self.inner.group.log
    }

    pub(crate) fn raft(&self) -> Result<Raft, AppendError> {
        Ok(self.running()?.raft)
    }

    /// What runs, and the term that it leads.
    pub(crate) fn leading(&self) -> Result<(Running, Term), AppendError> {
        let running = self.running()?;
        match running.leading() {
            Ok(term) => Ok((running, term)),
            Err(leader) => Err(self.not_leader(leader)),
        }
    }

    pub(crate) fn running(&self) -> Result<Running, AppendError> {
        if let Some(damage) = self.log().damage() {
            return Err(self.damaged(damage));
        }
        match &*self.inner.replica.read() {
            Replica::Running(running) => Ok(running.clone()),
            Replica::Failed(_) | Replica::Damaged { .. } => Err(self.not_leader(None)),
            Replica::Ended => Err(self.ended()),
        }
    }

    /// Where there are other replicas, one of them leads soon.
    pub(crate) fn damaged(&self, damage: Arc<PartitionDamage>) -> AppendError {
        match self.is_alone() {
            true => ReserveError::Damaged(damage).into(),
            false => self.not_leader(None),
        }
    }

    fn log_error(&self, error: LogError) -> AppendError {
        match error {
            LogError::Damaged(damage) => self.damaged(damage),
            LogError::Failed(failure) => failure.into(),
            error @ LogError::Discontinuous { .. } => AppendError::Fatal(error.to_string()),
        }
    }

    pub(crate) fn not_leader(&self, leader: Option<NodeId>) -> AppendError {
        let key = self.key();
        AppendError::NotLeader { key, leader }
    }

    fn ended(&self) -> AppendError {
        match self.inner.store.failure() {
            Some(failure) => failure.into(),
            None => AppendError::ShuttingDown,
        }
    }

    pub(crate) fn lost(&self, loss: Loss) -> AppendError {
        match loss {
            Loss::Refused { leader } => self.not_leader(leader),
            Loss::Superseded => AppendError::LeadershipLost { key: self.key() },
            Loss::Stopped => match (self.inner.store.failure(), &*self.inner.replica.read()) {
                (Some(failure), _) => failure.into(),
                (None, Replica::Failed(reason)) => AppendError::Fatal(reason.clone()),
                // It was shut down with the batch in flight: its node ends, or the partition moved. The others go on.
                (None, _) => AppendError::LeadershipLost { key: self.key() },
            },
        }
    }

    /// Committed batches from the one that holds `from` on. Cold bytes are brought in on a blocking thread first.
    pub async fn read(&self, from: Offset, max_bytes: usize) -> Result<ReadBatches, ReadError> {
        let up_to = self.inner.group.high_watermark();
        if self.is_warm(from) {
            return self.log().read(from, max_bytes, up_to);
        }
        self.blocking(move |log| {
            log.populate(from, max_bytes, up_to)?;
            log.read(from, max_bytes, up_to)
        })
        .await
    }

    /// Whether reading from an offset needs no other thread.
    pub fn is_warm(&self, from: Offset) -> bool {
        self.log().is_warm(from)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce(&PartitionLog) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let log = Arc::clone(self.log());
        let reading = blocking(&self.inner.store, move || f(&log));
        reading.await.unwrap_or_else(|error| {
            Err(ReadError::Io {
                path: self.key().to_string().into(),
                error: io::Error::other(error),
            })
        })
    }

    /// The offset after the last committed record, as it moves.
    pub fn high_watermark(&self) -> watch::Receiver<Offset> {
        self.inner.group.watch_high_watermark()
    }

    /// The first offset still kept.
    pub fn start_offset(&self) -> Offset {
        self.log().state().start_offset
    }

    /// The offset after the last record that this replica has, committed or not.
    pub fn end_offset(&self) -> Offset {
        self.log().state().end_offset
    }

    /// Bytes of batches kept here.
    pub fn size_bytes(&self) -> u64 {
        self.log().state().size_bytes
    }

    /// The first committed record at or after `timestamp`.
    pub async fn offset_for_timestamp(
        &self,
        timestamp: TimestampMs,
    ) -> Result<Option<TimestampedOffset>, ReadError> {
        let up_to = self.inner.group.high_watermark();
        self.blocking(move |log| log.offset_for_timestamp(timestamp, up_to))
            .await
    }

    /// The first record with the greatest timestamp of all. Records that are not committed yet are waited for.
    ///
    /// # Errors
    /// Where they are not committed in time, or the log cannot be read.
    pub async fn newest_record(&self) -> Result<Option<TimestampedOffset>, ReadError> {
        let (newest, end) = self.log().newest_timestamp();
        let Some(newest) = newest else {
            return Ok(None);
        };
        let mut committed = self.high_watermark();
        let waiting = committed.wait_for(|committed| *committed >= end);
        // Where they are not, the answer is out of what is.
        let _ = tokio::time::timeout(COMMIT_PATIENCE, waiting).await;
        self.offset_for_timestamp(newest).await
    }

    /// Where an epoch ends in the log, or the one before it where there is none such; `None` for epochs newer than all.
    ///
    /// # Errors
    /// Where the log cannot be read.
    pub async fn end_of_epoch(&self, epoch: LeaderEpoch) -> Result<Option<TermEnd>, ReadError> {
        let up_to = self.inner.group.high_watermark();
        let term = Term::new(u64::try_from(epoch.get()).unwrap_or(0));
        self.blocking(move |log| log.end_of_term(term, up_to)).await
    }

    /// Who leads, as far as this replica knows, and in which epoch.
    pub fn leader(&self) -> (Option<NodeId>, LeaderEpoch) {
        let now = self.inner.leadership_now();
        (now.leader, now.epoch)
    }

    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        match &*self.inner.replica.read() {
            Replica::Running(running) => running.leading().is_ok(),
            Replica::Failed(_) | Replica::Damaged { .. } | Replica::Ended => false,
        }
    }

    /// Whether no other replica can serve in this one's place. Not so where it does not know yet who votes.
    pub fn is_alone(&self) -> bool {
        let members = self.inner.members.borrow();
        members.voters.iter().eq([&self.inner.group.node])
    }

    /// Whether this replica leads and a majority was heard of lately, or sleeps with it or did until just now: where not, others
    /// may have another leader by now.
    pub fn is_followed(&self) -> bool {
        let sleeps = *self.inner.asleep.borrow() || self.inner.woke_just_now();
        self.running()
            .is_ok_and(|running| running.leading().is_ok() && (sleeps || !running.may_be_deposed()))
    }

    /// On the leader in `epoch`: makes sure that a majority follows it still. What it lacks then, nobody was told to be committed.
    ///
    /// # Errors
    /// Where it does not lead in that epoch, or no majority answers in time.
    pub async fn confirm(&self, epoch: LeaderEpoch, timeout: Duration) -> Result<(), AppendError> {
        let leading = self.leading_in(Some(epoch), Instant::now() + timeout);
        leading.await.map(drop)
    }

    /// Whether the group sleeps, as far as this replica knows.
    pub fn is_asleep(&self) -> bool {
        *self.inner.asleep.borrow()
    }

    /// Waits until this replica leads and has applied an entry of its own term: from then on its high watermark covers all
    /// that was ever acknowledged.
    pub async fn wait_leader(&self, timeout: Duration) -> Result<(), AppendError> {
        let raft = self.raft()?;
        let wait = raft.wait(Some(timeout));
        let waiting = wait.metrics(
            |metrics| {
                let term = metrics.last_applied.map(|id| id.leader_id.term);
                metrics.state == ServerState::Leader && term == Some(metrics.current_term)
            },
            "leads and has applied an entry of its term",
        );
        match waiting.await {
            Ok(_) => Ok(()),
            Err(WaitError::Timeout(..)) => Err(self.not_leader(self.leader().0)),
            Err(WaitError::ShuttingDown) => Err(self.ended()),
        }
    }

    /// The damage for which the partition is not served, if any.
    pub fn damage(&self) -> Option<Arc<PartitionDamage>> {
        self.log().damage()
    }

    /// What is being done about the damage, in one line; `None` where there is none.
    pub fn repair(&self) -> Option<String> {
        let damage = self.damage()?;
        Some(match &*self.inner.replica.read() {
            Replica::Damaged { why: Some(why) } => {
                format!("repairing, without success so far ({why}): {damage}")
            }
            Replica::Ended => damage.to_string(),
            _ => format!("repairing: {damage}"),
        })
    }

    /// Notes which nodes are said to hold the partition. A replica that starts with rot may not have read yet who its group's
    /// members are: then it asks these too.
    pub fn note_holders(&self, nodes: &[NodeId]) {
        let mut holders = self.inner.holders.write();
        if *holders != nodes {
            nodes.clone_into(&mut holders);
            self.inner.alarm.notify_one();
        }
    }

    /// Waits until the partition is not damaged, or the replica was shut down.
    pub async fn wait_sound(&self) {
        const LOOK: Duration = Duration::from_millis(100);
        let ended = || matches!(&*self.inner.replica.read(), Replica::Ended);
        while self.damage().is_some() && !ended() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Changes the topic's settings; those for segments hold from the next one on.
    pub fn set_config(&self, config: TopicConfig) {
        self.log().set_config(config);
    }

    /// On the leader: deletes what the policy lets go, through the log, so that all replicas start at the same offset.
    /// Answers with the start offset then in force.
    pub async fn enforce_retention(
        &self,
        policy: RetentionPolicy,
        now: TimestampMs,
    ) -> Result<Offset, AppendError> {
        let (running, term) = self.leading()?;
        let log = Arc::clone(self.log());
        let asking = blocking(&self.inner.store, move || {
            log.roll_if_due(now)?;
            Ok(log.retention_point(policy, now))
        });
        let point = match asking.await {
            Ok(Ok(point)) => point,
            Ok(Err(error)) => return Err(self.log_error(error)),
            Err(error) => return Err(AppendError::Fatal(error.to_string())),
        };
        let committed = self.inner.group.high_watermark();
        match point.filter(|point| *point <= committed) {
            Some(before) => self.trim(&running, term, before).await,
            None => Ok(self.start_offset()),
        }
    }

    /// On the leader: deletes all records before an offset, through the log, so that all replicas start there. Answers with the
    /// start offset then in force, which is never less than before.
    ///
    /// # Errors
    /// Where this replica does not lead, or the partition or the store has failed; [`AppendError::Refused`] where not all
    /// records before the offset are committed.
    pub async fn delete_before(&self, before: Offset) -> Result<Offset, AppendError> {
        let (running, term) = self.leading()?;
        let end = self.inner.group.high_watermark();
        if before > end {
            return Err(AppendError::Refused {
                key: self.key(),
                reason: format!("records can be deleted up to offset {end}, not {before}"),
            });
        }
        self.trim(&running, term, before).await
    }

    async fn trim(
        &self,
        running: &Running,
        term: Term,
        before: Offset,
    ) -> Result<Offset, AppendError> {
        if before > self.start_offset() {
            let deadline = Instant::now() + TRIM_PATIENCE;
            self.confirm_leading(running, deadline).await?;
            self.propose_trim(running, term, before).await?;
            let mut trimmed = self.inner.group.trimmed.subscribe();
            let trimming = trimmed.wait_for(|done| *done >= before);
            if tokio::time::timeout(TRIM_PATIENCE, trimming).await.is_err() {
                return Err(AppendError::TimedOut(TRIM_PATIENCE));
            }
        }
        Ok(self.start_offset())
    }

    /// On every replica of a compacted topic, from time to time: where there is enough to compact, lets Raft's log forget the
    /// entries whose records are to be written anew. The store compacts then, in the background.
    ///
    /// # Errors
    /// Where the partition or the store has failed.
    pub async fn prepare_compaction(&self, now: TimestampMs) -> Result<(), AppendError> {
        let (store, log) = (Arc::clone(&self.inner.store), Arc::clone(self.log()));
        let committed = self.inner.group.high_watermark();
        let asking = blocking(&self.inner.store, move || {
            log.roll_if_due(now)?;
            let point = log.compaction_point(committed, now);
            // What was applied, the voters above all, must be durable before the entries that say it are gone; and what is
            // compacted must be sealed.
            if point.is_some() {
                store.checkpoint()?;
            }
            Ok(point)
        });
        match asking.await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(point)) => {
                self.inner.group.purge_wanted.send_replace(point);
                Ok(())
            }
            Ok(Err(error)) => Err(self.log_error(error)),
            Err(error) => Err(AppendError::Fatal(error.to_string())),
        }
    }

    async fn propose_trim(
        &self,
        running: &Running,
        term: Term,
        before: Offset,
    ) -> Result<(), AppendError> {
        let (tell, told) = oneshot::channel();
        let answer = Answer::new(move |result: Option<WriteResult>| drop(tell.send(result)));
        let proposing = running.raft.write(Proposal::Trim(before)).responder(answer);
        // A failure is told through the answer.
        drop(proposing.with_leader(term.get()).await);
        match told.await.ok().flatten() {
            Some(Ok(_)) => Ok(()),
            Some(Err(ClientWriteError::ForwardToLeader(to))) => {
                Err(self.not_leader(to.leader_id.map(NodeId::new)))
            }
            Some(Err(_)) => Err(self.lost(Loss::Superseded)),
            None => Err(self.lost(Loss::Stopped)),
        }
    }

    /// Stops the replica. Batches in flight are answered with an indefinite error; whatever is asked for later is refused.
    pub async fn shutdown(&self) {
        if let Ok((running, _)) = self.leading()
            && self.inner.wake()
        {
            // Who sleeps under this leader would wait for it for ever.
            running.ask_majority(LAST_WORD).await;
        }
        // Behind whoever is in the door already.
        let _door = self.inner.door.lock().await;
        let replica = std::mem::replace(&mut *self.inner.replica.write(), Replica::Ended);
        self.inner.tell();
        self.inner.alarm.notify_one();
        // A repair that is about files finishes that step and ends.
        drop(self.inner.mending.lock().await);
        if let Replica::Running(running) = replica
            && let Err(error) = running.raft.shutdown().await
        {
            tracing::warn!(partition = %self.key(), %error, "the replica did not stop cleanly");
        }
    }
}
