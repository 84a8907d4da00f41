//! One partition's batches between the accumulator and their acknowledgement.
//!
//! A lane keeps the batches that were sent, in order, until each is settled. As long as all goes well it is *flowing*: up
//! to the allowed number are in flight, always the first ones of the queue. Any failure makes it *drain* (wait for the
//! answers still to come), back off, find the leader again, and send what is left in the same order under the same
//! sequence numbers.

use std::{collections::VecDeque, sync::Arc};

use quipu_model::{LeaderEpoch, Offset, RecordBatch, Sequence};
use tokio::{sync::Semaphore, task::JoinHandle, time::Instant};

use super::{
    ProducerConfig,
    accumulator::{Accumulator, Partition, PendingBatch},
    delivery::{BatchResult, BatchState},
    identity::Identity,
};
use crate::{
    Outcome, Result,
    backoff::backoff,
    error::{Error, ErrorReason},
    leaders::SILENCE,
    topics::{Led, NO_EPOCH},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Batches go out.
    Flowing,
    /// A batch failed; the answers to those behind it are awaited.
    Draining,
    /// Nothing is in flight; from this instant on the lane may go on, once it has reason to.
    Waiting(Instant),
    /// The leader was asked for.
    Locating,
    /// A new identity was asked for.
    Identifying,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) partition: Arc<Partition>,
    pub(super) phase: Phase,
    /// The address of the node to send to, while it is believed in.
    pub(super) leader: Option<Box<str>>,
    /// The newest epoch known in which somebody led.
    pub(super) epoch: LeaderEpoch,
    /// Since when something is in flight without any answer; connections that broke meanwhile are no answer.
    pub(super) silent_since: Option<Instant>,
    /// Looks for a newer leader than one that is silent.
    pub(super) search: Option<Search>,
    /// The leader is another one from the end of draining on, perhaps this.
    moved: Option<Option<Box<str>>>,
    /// What is known of the leader must be newer than this.
    pub(super) leader_not_before: Option<Instant>,
    /// The client is past its quota with the leader: nothing is sent before then.
    held_until: Option<Instant>,
    /// When the sender's timer is set for this lane.
    pub(super) armed: Option<Instant>,
    identity: Option<Identity>,
    next_sequence: Sequence,
    sequence_lost: bool,
    /// Another producer goes by the identity's id.
    fenced: bool,
    queue: VecDeque<Entry>,
    attempt: u32,
    last_error: Option<Error>,
}

#[derive(Debug)]
struct Entry {
    batch: RecordBatch,
    state: Arc<BatchState>,
    reserved: usize,
    opened_at: Instant,
    flight: Option<Flight>,
    /// It was sent, and no answer said that it was not stored.
    may_be_stored: bool,
}

#[derive(Debug)]
struct Flight {
    correlation: u64,
    sent_at: Instant,
    /// An earlier flight was lost on its way, and may have stored the batch: what this one is answered says nothing of that.
    again: bool,
}

/// A task that looks for a newer leader; dropping it ends it.
#[derive(Debug)]
pub(super) struct Search(pub(super) JoinHandle<()>);

impl Drop for Search {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn settle(room: &Semaphore, state: &BatchState, reserved: usize, result: BatchResult) {
    room.add_permits(reserved);
    state.settle(result);
}

impl Lane {
    pub(super) fn new(partition: Arc<Partition>, identity: Option<Identity>) -> Self {
        Self {
            partition,
            phase: Phase::Waiting(Instant::now()),
            leader: None,
            epoch: NO_EPOCH,
            silent_since: None,
            search: None,
            moved: None,
            leader_not_before: None,
            held_until: None,
            armed: None,
            identity,
            next_sequence: Sequence::new(0),
            sequence_lost: false,
            fenced: false,
            queue: VecDeque::new(),
            attempt: 0,
            last_error: None,
        }
    }

    /// A lane that needs an identity of its own before it sends.
    pub(super) fn unidentified(partition: Arc<Partition>) -> Self {
        Self {
            sequence_lost: true,
            ..Self::new(partition, None)
        }
    }

    /// Whether there is anything to send or to wait for.
    pub(super) fn has_work(&self) -> bool {
        !self.queue.is_empty() || self.partition.oldest().is_some()
    }

    pub(super) fn needs_identity(&self) -> bool {
        self.sequence_lost
    }

    pub(super) fn states(&self) -> Vec<Arc<BatchState>> {
        let queued = self.queue.iter().map(|entry| Arc::clone(&entry.state));
        queued.chain(self.partition.states()).collect()
    }

    /// The next batch to send, marked as in flight under `correlation`.
    pub(super) fn next_batch(
        &mut self,
        accumulator: &Accumulator,
        now: Instant,
        correlation: u64,
    ) -> Option<RecordBatch> {
        let config = &accumulator.config;
        let in_flight = self.in_flight();
        let held = self.held_until.is_some_and(|until| now < until);
        if self.phase != Phase::Flowing || held || in_flight >= self.allowed(config) {
            return None;
        }
        while self.queue.len() == in_flight {
            let pending = self.partition.take(now, config.linger)?;
            self.enqueue(pending, &accumulator.room);
        }
        let entry = self.queue.get_mut(in_flight)?;
        entry.flight = Some(Flight {
            correlation,
            sent_at: now,
            again: entry.may_be_stored,
        });
        entry.may_be_stored = true;
        self.silent_since.get_or_insert(now);
        Some(entry.batch.clone())
    }

    /// How many batches may be in flight. After a failure the first one goes alone: if it fails again, those behind it
    /// would have been sent in vain. Where the leader held the client back, those behind the first would wait there unread.
    fn allowed(&self, config: &ProducerConfig) -> usize {
        match (self.attempt, self.held_until) {
            (0, None) => config.max_in_flight,
            _ => 1,
        }
    }

    /// Sends nothing before then.
    pub(super) fn hold_back(&mut self, until: Instant) {
        self.held_until = self.held_until.max(Some(until));
    }

    /// The leader asks for no wait any more.
    pub(super) fn flow_freely(&mut self, now: Instant) {
        self.held_until = self.held_until.filter(|until| *until > now);
    }

    /// While the lane flows, what is in flight stands at the front.
    fn in_flight(&self) -> usize {
        self.queue.iter().filter(|e| e.flight.is_some()).count()
    }

    /// Numbers a batch and puts it behind the others.
    fn enqueue(&mut self, pending: PendingBatch, room: &Semaphore) {
        let PendingBatch {
            mut builder,
            state,
            reserved,
            opened_at,
        } = pending;
        let records = builder.len_records();
        if let Some(identity) = self.identity {
            builder.set_producer(identity.id, identity.epoch, self.next_sequence);
        }
        match builder.build() {
            Ok(batch) => {
                self.next_sequence = self.next_sequence.plus(records);
                self.queue.push_back(Entry {
                    batch,
                    state,
                    reserved,
                    opened_at,
                    flight: None,
                    may_be_stored: false,
                });
            }
            Err(error) => {
                let error = Error::invalid(format_args!("the batch could not be made: {error}"));
                settle(room, &state, reserved, Err(error));
            }
        }
    }

    /// The broker stored a batch, or had it already.
    pub(super) fn acknowledged(
        &mut self,
        room: &Semaphore,
        correlation: u64,
        base: Option<Offset>,
        now: Instant,
    ) {
        let Some(at) = self.find(correlation) else {
            return;
        };
        if let Some(entry) = self.queue.remove(at) {
            settle(room, &entry.state, entry.reserved, Ok(base));
        }
        self.heard(now);
        self.attempt = 0;
        self.last_error = None;
    }

    /// The broker refused a batch.
    pub(super) fn refused(
        &mut self,
        accumulator: &Accumulator,
        correlation: u64,
        error: Error,
        now: Instant,
    ) {
        if error.is(ErrorReason::DuplicateSequence) {
            return self.acknowledged(&accumulator.room, correlation, None, now);
        }
        let Some(at) = self.find(correlation) else {
            return;
        };
        let entry = &mut self.queue[at];
        let again = entry.flight.take().is_some_and(|flight| flight.again);
        self.heard(now);
        let entry = &mut self.queue[at];
        entry.may_be_stored = again || error.outcome() == Outcome::Indefinite;
        let error = if again { error.left_open() } else { error };
        let out_of_sequence = self.identity.is_some()
            && (error.is(ErrorReason::OutOfOrderSequence) || error.is(ErrorReason::ProducerFenced));
        if out_of_sequence {
            // Behind a failed batch that is to be expected; of the first one it says that the broker awaits another.
            self.sequence_lost |= at == 0;
            self.fenced |= at == 0 && error.is(ErrorReason::ProducerFenced);
        } else if !error.is_retryable() {
            if error.is_stale_metadata() {
                accumulator.forget_topic(&self.partition);
            }
            if let Some(entry) = self.queue.remove(at) {
                settle(&accumulator.room, &entry.state, entry.reserved, Err(error));
            }
            // Those behind it were numbered as if it were stored.
            self.phase = Phase::Draining;
            return;
        }
        if error.is_stale_metadata() {
            self.moved = Some(error.leader().map(Into::into));
            self.leader_not_before = Some(now);
        }
        self.phase = Phase::Draining;
        self.last_error = Some(error);
    }

    /// The leader answered.
    fn heard(&mut self, now: Instant) {
        self.silent_since = (self.in_flight() > 0).then_some(now);
        self.search = None;
    }

    fn find(&self, correlation: u64) -> Option<usize> {
        let same = |flight: &Flight| flight.correlation == correlation;
        let mut queue = self.queue.iter();
        queue.position(|entry| entry.flight.as_ref().is_some_and(same))
    }

    /// The connection that everything in flight went through is gone: what became of it is unknown.
    pub(super) fn disconnected(&mut self, error: &Error, now: Instant) {
        for entry in &mut self.queue {
            entry.flight = None;
        }
        self.leader = None;
        self.held_until = None;
        self.leader_not_before = Some(now);
        self.phase = Phase::Draining;
        self.last_error = Some(error.clone());
    }

    /// When the leader has been silent for so long that others are to be asked about it, unless they are already.
    fn search_at(&self) -> Option<Instant> {
        let due = self.search.is_none() && self.in_flight() > 0;
        let since = self.silent_since.filter(|_| due)?;
        Some(since + SILENCE)
    }

    /// Whether others are to be asked about a silent leader now.
    pub(super) fn is_to_search(&self, now: Instant) -> bool {
        self.search_at().is_some_and(|at| now >= at)
    }

    /// Another node leads in a newer epoch than the one that has been silent since then: what was sent to that one is sent to
    /// the new leader. Gives the address that was left.
    pub(super) fn replaced(&mut self, led: Led, since: Instant, now: Instant) -> Option<Box<str>> {
        if self.silent_since != Some(since) || led.epoch <= self.epoch {
            return None;
        }
        for entry in &mut self.queue {
            entry.flight = None;
        }
        self.search = None;
        self.silent_since = None;
        self.held_until = None;
        self.moved = None;
        self.epoch = led.epoch;
        self.attempt = self.attempt.max(1);
        self.phase = Phase::Waiting(now);
        self.leader.replace(led.address)
    }

    /// Asking for the leader or an identity failed. All batches fail with an error that trying again does not cure.
    pub(super) fn lookup_failed(&mut self, accumulator: &Accumulator, error: Error) {
        if !error.is_retryable() {
            self.fail_all(accumulator, &error);
            accumulator.forget_topic(&self.partition);
        }
        self.leader = None;
        // What was learnt before, that nobody leads, may be over.
        self.leader_not_before = Some(Instant::now());
        self.phase = Phase::Draining;
        self.last_error = Some(error);
    }

    fn fail_all(&mut self, accumulator: &Accumulator, error: &Error) {
        self.silent_since = None;
        self.search = None;
        for entry in self.queue.drain(..) {
            let room = &accumulator.room;
            settle(room, &entry.state, entry.reserved, Err(error.clone()));
        }
        self.partition.flush();
        while let Some(pending) = self
            .partition
            .take(Instant::now(), accumulator.config.linger)
        {
            let room = &accumulator.room;
            settle(room, &pending.state, pending.reserved, Err(error.clone()));
        }
    }

    /// Once nothing is in flight after a failure, waits before the next try.
    pub(super) fn finish_draining(&mut self, config: &ProducerConfig, now: Instant) {
        if self.phase == Phase::Draining && self.in_flight() == 0 {
            self.attempt = self.attempt.saturating_add(1);
            if let Some(leader) = self.moved.take() {
                self.leader = leader;
            }
            let wait = backoff(self.attempt, config.retry_backoff, config.retry_backoff_max);
            self.phase = Phase::Waiting(now + wait);
        }
    }

    /// Begins the next epoch of the identity, where its sequence was lost and it has one. Other than under another id, what the
    /// broker may still find of the epoch before is refused: in the socket of a node that was stopped, say.
    pub(super) fn begin_epoch(&mut self) {
        let own = self.identity.filter(|_| self.sequence_lost && !self.fenced);
        if let Some(next) = own.and_then(Identity::next_epoch) {
            self.identify(next);
        }
    }

    /// Goes on as another producer: whatever is still queued is known not to be stored, and is numbered anew.
    pub(super) fn identify(&mut self, identity: Identity) {
        self.identity = Some(identity);
        self.sequence_lost = false;
        self.fenced = false;
        self.next_sequence = Sequence::new(0);
        for entry in &mut self.queue {
            let records = entry.batch.header().record_count;
            let sequence = self.next_sequence;
            entry.batch = entry
                .batch
                .with_producer(identity.id, identity.epoch, sequence);
            self.next_sequence = sequence.plus(records);
        }
    }

    /// Fails the batches whose time is over. `true` where an answer to one of them was still awaited: its connection is
    /// then of no use, and might go on holding the batch's bytes.
    pub(super) fn expire(&mut self, accumulator: &Accumulator, now: Instant) -> bool {
        let mut unanswered = false;
        let config = &accumulator.config;
        let over = |opened_at: Instant| now >= opened_at + config.delivery_timeout;
        while self.queue.front().is_some_and(|e| over(e.opened_at)) {
            if let Some(entry) = self.queue.pop_front() {
                unanswered |= entry.flight.is_some();
                let outcome = match entry.may_be_stored {
                    true => Outcome::Indefinite,
                    false => Outcome::Definite,
                };
                let error = self.expired(config, outcome);
                settle(&accumulator.room, &entry.state, entry.reserved, Err(error));
            }
        }
        if self.queue.is_empty() {
            self.silent_since = None;
            self.search = None;
        }
        // What was not sent has no number yet, and leaves no gap.
        while self.partition.oldest().is_some_and(|(at, _)| over(at)) {
            let Some(pending) = self.partition.take(now, config.linger) else {
                break;
            };
            let error = self.expired(config, Outcome::Definite);
            let room = &accumulator.room;
            settle(room, &pending.state, pending.reserved, Err(error));
        }
        unanswered
    }

    fn expired(&self, config: &ProducerConfig, outcome: Outcome) -> Error {
        let stored = match outcome {
            Outcome::Definite => "it is not stored",
            Outcome::Indefinite => "it may be stored",
        };
        let why = match &self.last_error {
            Some(error) => format!("the last failure: {error}"),
            None => "the broker did not answer in time".to_owned(),
        };
        let message = format_args!(
            "a record for {}/{} was not acknowledged within {:?}; {stored}; {why}",
            self.partition.topic, self.partition.id, config.delivery_timeout
        );
        Error::timed_out(message, outcome)
    }

    /// Whether a request has been unanswered for longer than any broker takes.
    pub(super) fn is_stuck(&self, config: &ProducerConfig, now: Instant) -> bool {
        self.stuck_at(config).is_some_and(|at| now >= at)
    }

    fn stuck_at(&self, config: &ProducerConfig) -> Option<Instant> {
        let flights = self.queue.iter().filter_map(|e| e.flight.as_ref());
        let oldest = flights.map(|flight| flight.sent_at).min()?;
        // The broker itself gives up after the request timeout and says so; its answer needs a little longer.
        Some(oldest + config.request_timeout + config.request_timeout / 4)
    }

    /// When the lane wants to be looked at again, if nothing happens before.
    pub(super) fn deadline(&self, config: &ProducerConfig, now: Instant) -> Option<Instant> {
        let waiting = self.partition.oldest();
        let queued = self.queue.front().map(|entry| entry.opened_at);
        let oldest = queued.into_iter().chain(waiting.map(|(at, _)| at)).min();
        let expiry = oldest.map(|at| at + config.delivery_timeout);
        let phase = match self.phase {
            Phase::Waiting(until) if oldest.is_some() && until > now => Some(until),
            Phase::Flowing if self.held_until.is_some_and(|until| until > now) => {
                self.held_until.filter(|_| oldest.is_some())
            }
            Phase::Flowing if self.in_flight() < self.allowed(config) => waiting
                .filter(|(_, lingers)| *lingers)
                .map(|(at, _)| at + config.linger),
            _ => None,
        };
        [expiry, phase, self.stuck_at(config), self.search_at()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes note of a leader that was found, unless a newer one was meanwhile.
    pub(super) fn located(&mut self, leader: Result<Led>, accumulator: &Accumulator) {
        if self.phase != Phase::Locating {
            return;
        }
        match leader {
            Ok(led) => {
                self.leader = Some(led.address);
                self.epoch = self.epoch.max(led.epoch);
                self.phase = Phase::Flowing;
            }
            Err(error) => self.lookup_failed(accumulator, error),
        }
    }
}
