//! A partition as the broker sees it.

use std::{fmt, io, sync::Arc, time::Duration};

use openraft::{
    ServerState,
    alias::WatchReceiverOf,
    async_runtime::watch::WatchReceiver as _,
    errors::ClientWriteError,
    metrics::{RaftServerMetrics, WaitError},
};
use parking_lot::RwLock;
use quipu_model::{
    LeaderEpoch, NodeId, Offset, PartitionKey, RecordBatch, Term, TimestampMs, TopicConfig,
};
use quipu_storage::{
    AppendError as LogError, PartitionDamage, PartitionLog, ReadBatches, ReadError, Reservation,
    ReserveError, RetentionPolicy, Store, TimestampedOffset,
};
use tokio::{
    sync::{Mutex, oneshot, watch},
    time::Instant,
};

use crate::{
    error::{Acks, AppendError, Appended},
    flight::{Flight, Loss, Outcome},
    group::Group,
    replicator::Metrics,
    sequencer::{Numbered, Refusal, Verdict},
    type_config::{Answer, Proposal, Raft, Types, WriteResult},
};

/// How long to wait before asking again for room that a running checkpoint will make.
const ROOM_PAUSE: Duration = Duration::from_millis(5);

/// How long to wait for a trim that was committed to be done.
const TRIM_PATIENCE: Duration = Duration::from_secs(60);

/// A replica of a partition on this node: what the broker reads and writes through. Cheap to clone.
///
/// It runs until [`Partition::shutdown`], also where all handles were dropped.
#[derive(Clone, Debug)]
pub struct Partition {
    inner: Arc<Inner>,
}

/// The openraft instance that runs the replica at present.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) raft: Raft,
    pub(crate) server: WatchReceiverOf<Types, RaftServerMetrics<Types>>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Running")
    }
}

impl Running {
    /// The term that this replica leads, or who does.
    fn leading(&self) -> Result<Term, Option<NodeId>> {
        let server = self.server.borrow_watched();
        if server.state == ServerState::Leader {
            Ok(Term::new(server.vote.leader_id().term))
        } else {
            Err(server.current_leader.map(NodeId::new))
        }
    }
}

#[derive(Debug)]
pub(crate) enum Replica {
    Running(Running),
    /// It failed, and will be started again.
    Failed(String),
    /// It was shut down, or is not to run.
    Ended,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) group: Arc<Group>,
    pub(crate) store: Arc<Store>,
    pub(crate) metrics: Metrics,
    pub(crate) replica: RwLock<Replica>,
    /// The one ordered door: held from the check of a batch's sequence until it is proposed, in the order of asking.
    door: Mutex<()>,
}

impl Inner {
    pub(crate) fn new(
        group: Arc<Group>,
        store: Arc<Store>,
        metrics: Metrics,
        replica: Replica,
    ) -> Arc<Self> {
        Arc::new(Self {
            group,
            store,
            metrics,
            replica: RwLock::new(replica),
            door: Mutex::new(()),
        })
    }

    /// Goes on with a replica that was started again; `false` where the partition was shut down meanwhile.
    pub(crate) fn resume(&self, running: Running) -> bool {
        let mut replica = self.replica.write();
        let wanted = !matches!(*replica, Replica::Ended);
        if wanted {
            *replica = Replica::Running(running);
        }
        wanted
    }
}

/// What the door made of a batch.
enum Admitted {
    /// Proposed, now or before: here comes the outcome.
    Proposed {
        outcome: oneshot::Receiver<Outcome>,
        duplicate: bool,
    },
    /// Proposed, and nobody wants to know what became of it.
    Unwatched,
    /// In the log since before.
    InLog { base: Offset },
}

#[allow(clippy::missing_errors_doc, reason = "each error says when it comes")]
impl Partition {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    pub fn key(&self) -> PartitionKey {
        self.log().key()
    }

    fn log(&self) -> &Arc<PartitionLog> {
        &self.inner.group.log
    }

    /// Appends a checked batch through the partition's one ordered door. Calls made in order on one task are proposed in
    /// that order: the first poll of each future takes its place, so pipelining is `FuturesOrdered` over these.
    pub async fn append(
        &self,
        batch: RecordBatch,
        acks: Acks,
        timeout: Duration,
    ) -> Result<Appended, AppendError> {
        let deadline = Instant::now() + timeout;
        let appending = self.append_by(batch, acks, deadline);
        match tokio::time::timeout_at(deadline, appending).await {
            Ok(result) => result,
            Err(_) => Err(AppendError::TimedOut(timeout)),
        }
    }

    async fn append_by(
        &self,
        batch: RecordBatch,
        acks: Acks,
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        let (base, duplicate) = match self.admit(batch, acks, deadline).await? {
            Admitted::Unwatched => (None, false),
            Admitted::Proposed { outcome, duplicate } => {
                let outcome = outcome.await.unwrap_or(Err(Loss::Stopped));
                let base = outcome.map_err(|loss| self.lost(loss))?;
                (Some(base), duplicate)
            }
            Admitted::InLog { base } => {
                if acks == Acks::All {
                    self.wait_committed(base).await;
                }
                (Some(base), true)
            }
        };
        if duplicate {
            self.inner.metrics.duplicates.inc();
        }
        Ok(Appended {
            base_offset: base.filter(|_| acks != Acks::None),
            duplicate,
        })
    }

    /// Takes a batch through the door: checks its sequence, takes room for it, proposes it.
    async fn admit(
        &self,
        batch: RecordBatch,
        acks: Acks,
        deadline: Instant,
    ) -> Result<Admitted, AppendError> {
        let numbered = numbered(&batch)?;
        let _door = self.inner.door.lock().await;
        let running = self.running()?;
        let term = running
            .leading()
            .map_err(|leader| self.not_leader(leader))?;
        if let Some(numbered) = numbered {
            match self.check(numbered, term)? {
                Verdict::Due => {}
                Verdict::InLog(base) => return Ok(Admitted::InLog { base }),
                Verdict::InFlight(flight) => {
                    return Ok(Admitted::Proposed {
                        outcome: flight.wait(acks != Acks::All),
                        duplicate: true,
                    });
                }
            }
        }
        let room = self.reserve(batch.bytes().len() as u64, deadline).await?;
        let flight = Flight::new();
        if let Some(numbered) = numbered {
            let mut sequencer = self.inner.group.sequencer.lock();
            let number = sequencer.begin(numbered, Arc::clone(&flight));
            flight.set_sequenced(numbered.producer, number);
        }
        let admitted = match acks {
            Acks::None => Admitted::Unwatched,
            acks => Admitted::Proposed {
                outcome: flight.wait(acks == Acks::Leader),
                duplicate: false,
            },
        };
        let answer = self.answer(Arc::clone(&flight));
        let proposal = Proposal::Batch {
            batch,
            proposed: Some((flight, room)),
        };
        let proposing = running.raft.write(proposal).responder(answer);
        // Bound to the term in which its sequence was checked. A failure reaches the flight through its answer.
        drop(proposing.with_leader(term.get()).await);
        Ok(admitted)
    }

    fn check(&self, numbered: Numbered, term: Term) -> Result<Verdict<Arc<Flight>>, AppendError> {
        let Numbered {
            producer,
            epoch,
            first,
            ..
        } = numbered;
        let mut sequencer = self.inner.group.sequencer.lock();
        sequencer.enter_term(term);
        if !sequencer.knows(producer) {
            sequencer.load(producer, self.log().producer_tail(producer));
        }
        sequencer.check(numbered).map_err(|refusal| match refusal {
            Refusal::Fenced { current } => AppendError::Fenced {
                producer,
                given: epoch,
                current,
            },
            Refusal::OutOfOrder { expected } => AppendError::OutOfOrder {
                key: self.key(),
                producer,
                given: first,
                expected,
            },
            Refusal::DuplicateTooOld => AppendError::DuplicateTooOld {
                key: self.key(),
                producer,
                given: first,
            },
        })
    }

    /// Takes room for a batch; waits for a running checkpoint to make some, within the deadline.
    async fn reserve(&self, bytes: u64, deadline: Instant) -> Result<Reservation, AppendError> {
        loop {
            match self.log().reserve(bytes) {
                Ok(room) => return Ok(room),
                Err(ReserveError::Busy) if Instant::now() + ROOM_PAUSE < deadline => {
                    self.inner.metrics.room_waits.inc();
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
                Err(ReserveError::Failed(failure)) => return Err(failure.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What hears from openraft how a proposal ended.
    fn answer(&self, flight: Arc<Flight>) -> Answer<WriteResult> {
        let group = Arc::clone(&self.inner.group);
        Answer::new(move |result| {
            let loss = match result {
                Some(Ok(_)) => None,
                Some(Err(ClientWriteError::ForwardToLeader(to))) => Some(Loss::Refused {
                    leader: to.leader_id.map(NodeId::new),
                }),
                Some(Err(_)) => Some(Loss::Superseded),
                None => Some(Loss::Stopped),
            };
            group.settle(&flight, loss);
        })
    }

    /// Waits until a record is committed; for ever, where it never is.
    async fn wait_committed(&self, offset: Offset) {
        let mut mark = self.inner.group.watch_high_watermark();
        // The sender lives as long as this handle.
        drop(mark.wait_for(|mark| *mark > offset).await);
    }

    fn running(&self) -> Result<Running, AppendError> {
        if let Some(damage) = self.log().damage() {
            return Err(ReserveError::Damaged(damage).into());
        }
        match &*self.inner.replica.read() {
            Replica::Running(running) => Ok(running.clone()),
            Replica::Failed(_) => Err(self.not_leader(None)),
            Replica::Ended => Err(self.ended()),
        }
    }

    fn not_leader(&self, leader: Option<NodeId>) -> AppendError {
        let key = self.key();
        AppendError::NotLeader { key, leader }
    }

    fn ended(&self) -> AppendError {
        match self.inner.store.failure() {
            Some(failure) => failure.into(),
            None => AppendError::ShuttingDown,
        }
    }

    fn lost(&self, loss: Loss) -> AppendError {
        match loss {
            Loss::Refused { leader } => self.not_leader(leader),
            Loss::Superseded => AppendError::LeadershipLost { key: self.key() },
            Loss::Stopped => match self.inner.store.failure() {
                Some(failure) => failure.into(),
                None => AppendError::Fatal(match &*self.inner.replica.read() {
                    Replica::Failed(reason) => reason.clone(),
                    _ => "it stopped with the batch in flight".to_owned(),
                }),
            },
        }
    }

    /// Committed batches from the one that holds `from` on. Cold bytes are brought in on a blocking thread first.
    pub async fn read(&self, from: Offset, max_bytes: usize) -> Result<ReadBatches, ReadError> {
        let up_to = self.inner.group.high_watermark();
        if self.log().is_warm(from) {
            return self.log().read(from, max_bytes, up_to);
        }
        self.blocking(move |log| {
            log.populate(from, max_bytes, up_to)?;
            log.read(from, max_bytes, up_to)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce(&PartitionLog) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let log = Arc::clone(self.log());
        let reading = tokio::task::spawn_blocking(move || f(&log));
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

    pub fn start_offset(&self) -> Offset {
        self.log().state().start_offset
    }

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

    /// Who leads, as far as this replica knows, and in which epoch.
    pub fn leader(&self) -> (Option<NodeId>, LeaderEpoch) {
        match &*self.inner.replica.read() {
            Replica::Running(running) => {
                let server = running.server.borrow_watched();
                let term = Term::new(server.vote.leader_id().term);
                (server.current_leader.map(NodeId::new), term.leader_epoch())
            }
            Replica::Failed(_) | Replica::Ended => {
                let term = self.log().vote().map_or(Term::default(), |vote| vote.term);
                (None, term.leader_epoch())
            }
        }
    }

    pub fn is_leader(&self) -> bool {
        match &*self.inner.replica.read() {
            Replica::Running(running) => running.leading().is_ok(),
            Replica::Failed(_) | Replica::Ended => false,
        }
    }

    /// Waits until this replica leads and has applied an entry of its own term: from then on its high watermark covers all
    /// that was ever acknowledged.
    pub async fn wait_leader(&self, timeout: Duration) -> Result<(), AppendError> {
        let raft = self.running()?.raft;
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

    pub fn damage(&self) -> Option<Arc<PartitionDamage>> {
        self.log().damage()
    }

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
        let running = self.running()?;
        let term = running
            .leading()
            .map_err(|leader| self.not_leader(leader))?;
        let log = Arc::clone(self.log());
        let asking = tokio::task::spawn_blocking(move || {
            log.roll_if_due(now)?;
            Ok(log.retention_point(policy, now))
        });
        let point = match asking.await {
            Ok(Ok(point)) => point,
            Ok(Err(error)) => return Err(log_error(error)),
            Err(error) => return Err(AppendError::Fatal(error.to_string())),
        };
        let committed = self.inner.group.high_watermark();
        if let Some(before) = point.filter(|p| *p > self.start_offset() && *p <= committed) {
            self.propose_trim(&running, term, before).await?;
            let mut trimmed = self.inner.group.trimmed.subscribe();
            let trimming = trimmed.wait_for(|done| *done >= before);
            if tokio::time::timeout(TRIM_PATIENCE, trimming).await.is_err() {
                return Err(AppendError::TimedOut(TRIM_PATIENCE));
            }
        }
        Ok(self.start_offset())
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
        // Behind whoever is in the door already.
        let _door = self.inner.door.lock().await;
        let replica = std::mem::replace(&mut *self.inner.replica.write(), Replica::Ended);
        if let Replica::Running(running) = replica
            && let Err(error) = running.raft.shutdown().await
        {
            tracing::warn!(partition = %self.key(), %error, "the replica did not stop cleanly");
        }
    }
}

fn log_error(error: LogError) -> AppendError {
    match error {
        LogError::Damaged(damage) => ReserveError::Damaged(damage).into(),
        LogError::Failed(failure) => failure.into(),
        error @ LogError::Discontinuous { .. } => AppendError::Fatal(error.to_string()),
    }
}

/// The sequences of an idempotent producer's batch; `None` where it is not idempotent.
fn numbered(batch: &RecordBatch) -> Result<Option<Numbered>, AppendError> {
    let header = batch.header();
    let set = [
        header.producer_id.is_some(),
        header.producer_epoch.get() >= 0,
        header.base_sequence.get() >= 0,
    ];
    match set {
        [false, false, false] => Ok(None),
        [true, true, true] => Ok(Some(Numbered {
            producer: header.producer_id,
            epoch: header.producer_epoch,
            first: header.base_sequence,
            last: header.base_sequence.plus(header.last_offset_delta),
        })),
        _ => Err(AppendError::BadProducerFields),
    }
}
