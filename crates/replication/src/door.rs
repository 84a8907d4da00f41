//! The one ordered door through which batches enter a partition.

use std::{sync::Arc, time::Duration};

use futures::future::pending;
use openraft::errors::ClientWriteError;
use quipu_model::{LeaderEpoch, NodeId, Offset, RecordBatch, Term};
use quipu_storage::{Reservation, ReserveError};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    config::LEASE,
    error::{Acks, AppendError, Appended},
    flight::{Flight, Loss, Outcome},
    partition::Partition,
    running::{FORSAKEN, Running},
    sequencer::{Numbered, Refusal, Sequencer, Verdict},
    type_config::{Answer, Proposal, WriteResult},
};

/// How long to wait before asking again for room that a running checkpoint will make.
const ROOM_PAUSE: Duration = Duration::from_millis(5);

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
    InLog { base: Offset, term: Term },
}

impl Partition {
    /// Appends a checked batch through the partition's one ordered door. Calls made in order on one task are proposed in
    /// that order: the first poll of each future takes its place, so pipelining is `FuturesOrdered` over these.
    pub async fn append(
        &self,
        batch: RecordBatch,
        acks: Acks,
        timeout: Duration,
    ) -> Result<Appended, AppendError> {
        let alone = || self.running().is_ok_and(|running| running.votes_alone());
        let acks = match acks {
            // What nobody else has, and this replica has not written yet, is lost with the process.
            Acks::Leader if alone() => Acks::All,
            acks => acks,
        };
        self.append_within(None, batch, acks, timeout).await
    }

    /// Like [`Partition::append`] with [`Acks::All`], but only while this replica leads in `epoch`: in any other it is
    /// refused as by a replica that does not lead.
    pub async fn append_in(
        &self,
        epoch: LeaderEpoch,
        batch: RecordBatch,
        timeout: Duration,
    ) -> Result<Appended, AppendError> {
        let epoch = Some(epoch);
        self.append_within(epoch, batch, Acks::All, timeout).await
    }

    async fn append_within(
        &self,
        epoch: Option<LeaderEpoch>,
        batch: RecordBatch,
        acks: Acks,
        timeout: Duration,
    ) -> Result<Appended, AppendError> {
        let deadline = Instant::now() + timeout;
        let appending = self.append_by(epoch, batch, acks, deadline);
        match tokio::time::timeout_at(deadline, appending).await {
            Ok(result) => result,
            Err(_) => Err(AppendError::TimedOut(timeout)),
        }
    }

    async fn append_by(
        &self,
        epoch: Option<LeaderEpoch>,
        batch: RecordBatch,
        acks: Acks,
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        let (base, duplicate) = match self.admit(epoch, batch, acks, deadline).await? {
            Admitted::Unwatched => (None, false),
            Admitted::Proposed { outcome, duplicate } => {
                let outcome = tokio::select! {
                    biased;
                    outcome = outcome => outcome.unwrap_or(Err(Loss::Stopped)),
                    () = self.forsaken() => Err(Loss::Superseded),
                };
                let base = outcome.map_err(|loss| self.lost(loss))?;
                (Some(base), duplicate)
            }
            Admitted::InLog { base, term } => {
                if acks == Acks::All {
                    self.wait_committed_in(term, base).await?;
                }
                (Some(base), true)
            }
        };
        if duplicate {
            self.inner().metrics.duplicates.inc();
        }
        Ok(Appended {
            base_offset: base.filter(|_| acks != Acks::None),
            duplicate,
        })
    }

    /// Takes a batch through the door: checks its sequence, takes room for it, proposes it.
    async fn admit(
        &self,
        epoch: Option<LeaderEpoch>,
        batch: RecordBatch,
        acks: Acks,
        deadline: Instant,
    ) -> Result<Admitted, AppendError> {
        let numbered = numbered(&batch)?;
        let _door = self.inner().door.lock().await;
        let (running, term) = match self.leading_in(epoch, deadline).await {
            // While nobody leads, the next batch may already find this replica leading.
            Err(error @ AppendError::NotLeader { leader: None, .. }) => {
                return Err(self.refuse(numbered, error));
            }
            leading => leading?,
        };
        if let Some(numbered) = numbered {
            match self.check(numbered, term)? {
                Verdict::Due => {}
                Verdict::InLog(base) => return Ok(Admitted::InLog { base, term }),
                Verdict::InFlight(flight) => {
                    return Ok(Admitted::Proposed {
                        outcome: flight.wait(acks != Acks::All),
                        duplicate: true,
                    });
                }
            }
        }
        let room = self
            .reserve(batch.bytes().len() as u64, deadline)
            .await
            .map_err(|error| self.refuse(numbered, error))?;
        let flight = Flight::new();
        if let Some(numbered) = numbered {
            self.begin(numbered, &flight)?;
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
            flight: Some(flight),
            room: Some(room),
        };
        let proposing = running.raft.write(proposal).responder(answer);
        // Bound to the term in which its sequence was checked. A failure reaches the flight through its answer.
        drop(proposing.with_leader(term.get()).await);
        Ok(admitted)
    }

    /// What runs, and the term that it leads for certain: in `epoch`, where that matters.
    pub(crate) async fn leading_in(
        &self,
        epoch: Option<LeaderEpoch>,
        deadline: Instant,
    ) -> Result<(Running, Term), AppendError> {
        let (running, term) = self.leading()?;
        if epoch.is_some_and(|epoch| epoch != term.leader_epoch()) {
            return Err(self.not_leader(Some(self.inner().group.node)));
        }
        self.confirm_leading(&running, deadline).await?;
        Ok((running, term))
    }

    /// Makes sure that what is proposed now is not refused for want of a majority's answers. Takes at most half the time
    /// left, so that a refusal is still told as one.
    pub(crate) async fn confirm_leading(
        &self,
        running: &Running,
        deadline: Instant,
    ) -> Result<(), AppendError> {
        self.inner().wake();
        let left = deadline.saturating_duration_since(Instant::now());
        let confirming = running.confirm((left / 2).min(LEASE / 2));
        confirming.await.map_err(|leader| self.not_leader(leader))
    }

    /// Remembers that a batch was refused, so that those behind it are too.
    fn refuse(&self, numbered: Option<Numbered>, error: AppendError) -> AppendError {
        if let Some(numbered) = numbered {
            self.inner().group.sequencer.lock().refuse(numbered);
        }
        error
    }

    /// Judges a batch by what is known of its producer in this term.
    fn check(&self, numbered: Numbered, term: Term) -> Result<Verdict<Arc<Flight>>, AppendError> {
        let producer = numbered.producer;
        let sequencer = &self.inner().group.sequencer;
        let known = {
            let mut sequencer = sequencer.lock();
            sequencer.enter_term(term);
            sequencer.knows(producer)
        };
        if !known {
            // Without the sequencer's lock: the log may be waiting for the thread that reports flushes, which takes that lock.
            // Whoever is in the door is the only one to load or forget producers.
            let tail = self.log().producer_tail(producer);
            sequencer.lock().load(producer, tail);
        }
        let sequencer = sequencer.lock();
        self.judge(&sequencer, numbered)
    }

    /// Notes a batch as in flight, unless one before it failed since it was checked.
    fn begin(&self, numbered: Numbered, flight: &Arc<Flight>) -> Result<(), AppendError> {
        let mut sequencer = self.inner().group.sequencer.lock();
        match self.judge(&sequencer, numbered)? {
            Verdict::Due => {
                let number = sequencer.begin(numbered, Arc::clone(flight));
                flight.set_sequenced(numbered.producer, number);
                Ok(())
            }
            // Nobody else was in the door since it was found due.
            Verdict::InFlight(_) | Verdict::InLog(_) => Err(self.not_leader(None)),
        }
    }

    fn judge(
        &self,
        sequencer: &Sequencer<Arc<Flight>>,
        numbered: Numbered,
    ) -> Result<Verdict<Arc<Flight>>, AppendError> {
        let (key, producer, given) = (self.key(), numbered.producer, numbered.first);
        sequencer.check(numbered).map_err(|refusal| match refusal {
            Refusal::Fenced { current } => AppendError::Fenced {
                producer,
                given: numbered.epoch,
                current,
            },
            Refusal::OutOfOrder { expected } => AppendError::OutOfOrder {
                key,
                producer,
                given,
                expected,
            },
            Refusal::DuplicateTooOld => AppendError::DuplicateTooOld {
                key,
                producer,
                given,
            },
        })
    }

    /// Takes room for a batch; waits for a running checkpoint to make some, within the deadline.
    pub(crate) async fn reserve(
        &self,
        bytes: u64,
        deadline: Instant,
    ) -> Result<Reservation, AppendError> {
        loop {
            match self.log().reserve(bytes) {
                Ok(room) => return Ok(room),
                Err(ReserveError::Busy) if Instant::now() + ROOM_PAUSE < deadline => {
                    self.inner().metrics.room_waits.inc();
                    tokio::time::sleep(ROOM_PAUSE).await;
                }
                Err(ReserveError::Failed(failure)) => return Err(failure.into()),
                Err(ReserveError::Damaged(damage)) => return Err(self.damaged(damage)),
                Err(error) => {
                    if let ReserveError::DiskFull { .. } = error {
                        self.inner().metrics.note_no_room(&error);
                    }
                    return Err(error.into());
                }
            }
        }
    }

    /// What hears from openraft how a proposal ended.
    fn answer(&self, flight: Arc<Flight>) -> Answer<WriteResult> {
        let group = Arc::clone(&self.inner().group);
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

    /// Waits until no majority has followed this leader for a while: whoever waits here may find another that does.
    pub(crate) async fn forsaken(&self) {
        if self.running().is_ok_and(|running| running.votes_alone()) {
            // It waits for its own disk only.
            return pending().await;
        }
        // A group that slept was last answered before: it has this long to be answered again.
        tokio::time::sleep(FORSAKEN).await;
        while !self.running().is_ok_and(|running| running.is_forsaken()) {
            tokio::time::sleep(LEASE / 2).await;
        }
    }

    /// Waits until a record is committed that was in the log in a term that this replica led.
    async fn wait_committed_in(&self, term: Term, offset: Offset) -> Result<(), AppendError> {
        let group = &self.inner().group;
        let mut mark = group.watch_high_watermark();
        tokio::select! {
            biased;
            // The sender lives as long as this handle.
            _ = mark.wait_for(|mark| *mark > offset) => {}
            () = self.forsaken() => return Err(self.lost(Loss::Superseded)),
        }
        // A later leader votes before it cuts the log: while the vote is the same, so is the record.
        match group.log.vote() {
            Some(vote) if vote.term == term => Ok(()),
            _ => Err(self.lost(Loss::Superseded)),
        }
    }
}

/// The sequences of an idempotent producer's batch; `None` where it is not idempotent.
fn numbered(batch: &RecordBatch) -> Result<Option<Numbered>, AppendError> {
    let header = batch.header();
    // Without an id the others mean nothing: several clients leave zeros there.
    if !header.producer_id.is_some() {
        return Ok(None);
    }
    if header.producer_epoch.get() < 0 || header.base_sequence.get() < 0 {
        return Err(AppendError::BadProducerFields);
    }
    Ok(Some(Numbered {
        producer: header.producer_id,
        epoch: header.producer_epoch,
        first: header.base_sequence,
        last: header.base_sequence.plus(header.last_offset_delta),
    }))
}
