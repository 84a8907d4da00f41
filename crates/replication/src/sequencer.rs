//! The order of idempotent producers' batches.
//!
//! What is known of a producer is the tail of the log and, behind it, the batches in flight: proposed, but not yet known to be
//! committed. A batch is let through where its first sequence follows the newest of those.
//!
//! **No gap after a failure.** When a proposal fails before it was appended, the producer's later batches in flight were
//! sequenced on the assumption that it would be there; were one of them appended, the log would have a gap that no retry
//! can fill. So [`Sequencer::fail`] gives them up with it: they leave the books at once, so that the retry of the failed
//! one is again what is due, and the caller cancels them, upon which the log store writes an empty entry in their place if
//! their turn to be appended still comes. The failure is told on openraft's core task, which is also the one that appends, so
//! none of them can be appended between the failure and the cancellation. (A request that was dropped before it was sent is
//! told elsewhere, but nothing can be behind it: it still holds the door.)
//!
//! **Nothing known.** A producer of which the log knows nothing (a new one, or one that was silent for so long that it was
//! forgotten) may begin with any sequence, as with Kafka. For one whose first batch was just refused (no room, no leader
//! yet) that would be wrong: those behind it in the client's pipeline would be taken for the first. So
//! [`Sequencer::refuse`] keeps what is due.
//!
//! **One term.** The books are kept for one term of leadership and thrown away after it: another leader may have appended
//! for the same producers since. Each proposal is bound to the term in which it was sequenced, and refused in any other.
//!
//! **Five batches.** As with Kafka, five batches of a producer are remembered after they were appended: a producer that keeps to
//! five in flight always learns the original offset of what it sends again. One that does not is not hindered; what it sends
//! again may be answered as too old for that, never appended twice.
//!
//! **Bounded.** Beside the batches in flight, at most a fixed number of producers is remembered; whoever was forgotten is
//! read back from the log, which knows the same.

use std::collections::{HashMap, VecDeque};

use quipu_model::{Offset, ProducerEpoch, ProducerId, Sequence, Term};
use quipu_storage::{MAX_PRODUCER_BATCHES, ProducerBatch, ProducerTail};

/// How many producers without batches in flight are kept in memory.
const IDLE_PRODUCERS: usize = 64;
/// Of how many producers a refused first batch is remembered.
const MOST_REFUSED: usize = 1024;

/// The sequences of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbered {
    pub(crate) producer: ProducerId,
    pub(crate) epoch: ProducerEpoch,
    pub(crate) first: Sequence,
    pub(crate) last: Sequence,
}

/// What is to be done with a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict<T> {
    /// It is what was due: propose it.
    Due,
    /// It is in flight already.
    InFlight(T),
    /// It is in the log already, at this base offset, though perhaps not yet committed.
    InLog(Offset),
}

/// Why a batch is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Fenced { current: ProducerEpoch },
    OutOfOrder { expected: Sequence },
    DuplicateTooOld,
}

#[derive(Debug)]
struct InFlight<T> {
    number: u64,
    batch: Numbered,
    token: T,
}

#[derive(Debug)]
struct Producer<T> {
    /// Of the newest batch in the log, where there is one.
    epoch: Option<ProducerEpoch>,
    /// The newest batches in the log, oldest first.
    tail: VecDeque<ProducerBatch>,
    in_flight: VecDeque<InFlight<T>>,
}

/// The books of a partition's producers, for one term.
#[derive(Debug)]
pub(crate) struct Sequencer<T> {
    term: Term,
    next_number: u64,
    producers: HashMap<ProducerId, Producer<T>>,
    /// The first batch that was refused since the producer's last one was let through.
    refused: HashMap<ProducerId, (ProducerEpoch, Sequence)>,
}

impl<T: Clone> Sequencer<T> {
    pub(crate) fn new() -> Self {
        Self {
            term: Term::default(),
            next_number: 0,
            producers: HashMap::new(),
            refused: HashMap::new(),
        }
    }

    /// Forgets what was known in another term.
    pub(crate) fn enter_term(&mut self, term: Term) {
        if self.term != term {
            self.term = term;
            self.producers.clear();
        }
    }

    pub(crate) fn knows(&self, producer: ProducerId) -> bool {
        self.producers.contains_key(&producer)
    }

    /// Takes over what the log knows of a producer that has nothing in flight.
    pub(crate) fn load(&mut self, producer: ProducerId, tail: Option<ProducerTail>) {
        self.forget_idle();
        if tail.is_some() {
            self.refused.remove(&producer);
        }
        let (epoch, tail) = tail.map_or((None, VecDeque::new()), |tail| {
            (Some(tail.epoch), tail.batches.into())
        });
        let state = Producer {
            epoch,
            tail,
            in_flight: VecDeque::new(),
        };
        self.producers.insert(producer, state);
    }

    fn forget_idle(&mut self) {
        if self.producers.len() < IDLE_PRODUCERS {
            return;
        }
        let busy = |p: &Producer<T>| !p.in_flight.is_empty();
        let idle = self.producers.values().filter(|p| !busy(p)).count();
        // Only where that halves the map at least: then the scans cost little over time.
        if idle >= IDLE_PRODUCERS && idle * 2 >= self.producers.len() {
            self.producers.retain(|_, p| busy(p));
        }
    }

    /// Judges a batch of a producer that was loaded.
    pub(crate) fn check(&self, batch: Numbered) -> Result<Verdict<T>, Refusal> {
        let Some(state) = self.producers.get(&batch.producer) else {
            return self.check_first(batch);
        };
        let newest = state
            .in_flight
            .back()
            .map(|f| (f.batch.epoch, Some(f.batch.last)));
        let in_log = || {
            let last = state.tail.back().map(|batch| batch.last);
            state.epoch.map(|epoch| (epoch, last))
        };
        let Some((current, last)) = newest.or_else(in_log) else {
            return self.check_first(batch);
        };
        if batch.epoch < current {
            return Err(Refusal::Fenced { current });
        }
        if batch.epoch > current {
            let expected = Sequence::new(0);
            return if batch.first == expected {
                Ok(Verdict::Due)
            } else {
                Err(Refusal::OutOfOrder { expected })
            };
        }
        if let Some(verdict) = state.find(batch) {
            return Ok(verdict);
        }
        match last {
            None => Ok(Verdict::Due),
            Some(last) => follows(last, batch),
        }
    }

    fn check_first(&self, batch: Numbered) -> Result<Verdict<T>, Refusal> {
        match self.refused.get(&batch.producer) {
            Some(&(epoch, expected)) if epoch == batch.epoch && expected != batch.first => {
                Err(Refusal::OutOfOrder { expected })
            }
            _ => Ok(Verdict::Due),
        }
    }

    /// Notes that a batch was not let through, for another reason than its sequence: it stays what is due.
    pub(crate) fn refuse(&mut self, batch: Numbered) {
        let refused = (batch.epoch, batch.first);
        let room = self.refused.len() < MOST_REFUSED;
        match self.refused.get_mut(&batch.producer) {
            Some(first) if first.0 < batch.epoch => *first = refused,
            Some(_) => {}
            None if room => {
                self.refused.insert(batch.producer, refused);
            }
            None => {}
        }
    }

    /// Notes a batch that [`Sequencer::check`] found due as in flight. The number names it in [`Sequencer::complete`] and
    /// [`Sequencer::fail`].
    pub(crate) fn begin(&mut self, batch: Numbered, token: T) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.refused.remove(&batch.producer);
        let state = self.producers.entry(batch.producer).or_insert(Producer {
            epoch: None,
            tail: VecDeque::new(),
            in_flight: VecDeque::new(),
        });
        state.in_flight.push_back(InFlight {
            number,
            batch,
            token,
        });
        number
    }

    /// A batch in flight is in the log for good. Those of an earlier term are no longer known here: nothing happens.
    pub(crate) fn complete(&mut self, producer: ProducerId, number: u64, base: Offset) {
        let Some(state) = self.producers.get_mut(&producer) else {
            return;
        };
        let Some(at) = state.in_flight.iter().position(|f| f.number == number) else {
            return;
        };
        let Some(done) = state.in_flight.remove(at) else {
            return;
        };
        if state.epoch != Some(done.batch.epoch) {
            state.epoch = Some(done.batch.epoch);
            state.tail.clear();
        }
        if state.tail.len() == MAX_PRODUCER_BATCHES {
            state.tail.pop_front();
        }
        state.tail.push_back(ProducerBatch {
            first: done.batch.first,
            last: done.batch.last,
            base_offset: base,
        });
    }

    /// A batch in flight failed. Answers with those that were sequenced behind it and must fail with it.
    pub(crate) fn fail(&mut self, producer: ProducerId, number: u64) -> Vec<T> {
        let Some(state) = self.producers.get_mut(&producer) else {
            return Vec::new();
        };
        let Some(at) = state.in_flight.iter().position(|f| f.number == number) else {
            return Vec::new();
        };
        let mut failed: Vec<InFlight<T>> = state.in_flight.drain(at..).collect();
        let behind = failed.split_off(1);
        for first in failed {
            self.refuse(first.batch);
        }
        behind.into_iter().map(|f| f.token).collect()
    }
}

impl<T: Clone> Producer<T> {
    /// Where exactly this batch was seen before.
    fn find(&self, batch: Numbered) -> Option<Verdict<T>> {
        if let Some(same) = self.in_flight.iter().find(|f| f.batch == batch) {
            return Some(Verdict::InFlight(same.token.clone()));
        }
        if self.epoch != Some(batch.epoch) {
            return None;
        }
        let mut tail = self.tail.iter();
        tail.find(|seen| (seen.first, seen.last) == (batch.first, batch.last))
            .map(|seen| Verdict::InLog(seen.base_offset))
    }
}

/// Judges a batch where the newest ends with `last`.
fn follows<T>(last: Sequence, batch: Numbered) -> Result<Verdict<T>, Refusal> {
    let expected = last.plus(1);
    if batch.first == expected {
        return Ok(Verdict::Due);
    }
    // Sequences wrap: within half their range backwards, a sequence lies behind.
    let ahead = |sequence: Sequence| {
        (i64::from(sequence.get()) - i64::from(expected.get())).rem_euclid(1 << 31)
    };
    // Clients take a duplicate for stored: one of which a part is new is none.
    match ahead(batch.first) >= 1 << 30 && ahead(batch.last) >= 1 << 30 {
        true => Err(Refusal::DuplicateTooOld),
        false => Err(Refusal::OutOfOrder { expected }),
    }
}

#[cfg(test)]
mod tests {
    use quipu_model::{Offset, ProducerEpoch, ProducerId, Sequence, Term};
    use quipu_storage::{ProducerBatch, ProducerTail};

    use super::{IDLE_PRODUCERS, Numbered, Refusal, Sequencer, Verdict};

    const P: ProducerId = ProducerId::new(9);

    fn batch(epoch: i16, first: i32, last: i32) -> Numbered {
        Numbered {
            producer: P,
            epoch: ProducerEpoch::new(epoch),
            first: Sequence::new(first),
            last: Sequence::new(last),
        }
    }

    fn out_of_order(expected: i32) -> Result<Verdict<u32>, Refusal> {
        Err(Refusal::OutOfOrder {
            expected: Sequence::new(expected),
        })
    }

    /// Books in which the producer's batches 0 to 9, 10 to 19… of epoch 0 were appended at the offsets of the same numbers.
    fn appended(batches: i32) -> Sequencer<u32> {
        let mut books = Sequencer::new();
        for n in 0..batches {
            let next = batch(0, n * 10, n * 10 + 9);
            assert_eq!(books.check(next), Ok(Verdict::Due));
            let number = books.begin(next, 0);
            books.complete(P, number, Offset::new(n as u64 * 10));
        }
        books
    }

    #[test]
    fn a_producer_that_nothing_is_known_of_may_begin_anywhere() {
        let mut books = Sequencer::<u32>::new();
        assert_eq!(books.check(batch(3, 77, 80)), Ok(Verdict::Due));
        books.load(P, None);
        assert_eq!(books.check(batch(3, 77, 80)), Ok(Verdict::Due));
    }

    #[test]
    fn batches_in_order_pass_and_gaps_do_not() {
        let books = appended(2);
        assert_eq!(books.check(batch(0, 20, 29)), Ok(Verdict::Due));
        assert_eq!(books.check(batch(0, 21, 29)), out_of_order(20));
        assert_eq!(books.check(batch(0, 500, 509)), out_of_order(20));
    }

    #[test]
    fn the_last_five_are_answered_with_their_offset_and_older_ones_are_named_so() {
        let books = appended(7);
        for n in 2..7 {
            let again = batch(0, n * 10, n * 10 + 9);
            assert_eq!(
                books.check(again),
                Ok(Verdict::InLog(Offset::new(n as u64 * 10)))
            );
        }
        assert_eq!(books.check(batch(0, 10, 19)), Err(Refusal::DuplicateTooOld));
        assert_eq!(books.check(batch(0, 60, 64)), Err(Refusal::DuplicateTooOld));
        // A part of it is new, and would be lost where the client takes it for stored.
        assert_eq!(books.check(batch(0, 65, 74)), out_of_order(70));
    }

    #[test]
    fn a_duplicate_in_flight_finds_the_original() {
        let mut books = appended(1);
        books.begin(batch(0, 10, 19), 41);
        books.begin(batch(0, 20, 29), 42);
        assert_eq!(books.check(batch(0, 10, 19)), Ok(Verdict::InFlight(41)));
        assert_eq!(books.check(batch(0, 20, 29)), Ok(Verdict::InFlight(42)));
        assert_eq!(books.check(batch(0, 30, 39)), Ok(Verdict::Due));
    }

    #[test]
    fn a_new_epoch_fences_the_old_and_begins_at_zero() {
        let mut books = appended(1);
        assert_eq!(books.check(batch(1, 10, 19)), out_of_order(0));
        assert_eq!(books.check(batch(1, 0, 9)), Ok(Verdict::Due));
        let number = books.begin(batch(1, 0, 9), 1);
        let fenced = Err(Refusal::Fenced {
            current: ProducerEpoch::new(1),
        });
        assert_eq!(books.check(batch(0, 10, 19)), fenced);
        books.complete(P, number, Offset::new(10));
        assert_eq!(books.check(batch(0, 0, 9)), fenced);
        assert_eq!(
            books.check(batch(1, 0, 9)),
            Ok(Verdict::InLog(Offset::new(10)))
        );
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut books = Sequencer::<u32>::new();
        books.load(
            P,
            Some(ProducerTail {
                epoch: ProducerEpoch::new(0),
                batches: vec![ProducerBatch {
                    first: Sequence::new(i32::MAX - 3),
                    last: Sequence::new(i32::MAX),
                    base_offset: Offset::new(5),
                }],
            }),
        );
        assert_eq!(books.check(batch(0, 0, 9)), Ok(Verdict::Due));
        assert_eq!(books.check(batch(0, 1, 9)), out_of_order(0));
        assert_eq!(
            books.check(batch(0, i32::MAX - 9, i32::MAX - 4)),
            Err(Refusal::DuplicateTooOld)
        );
        // A batch may hold the wrap in its middle.
        books.begin(batch(0, 0, 9), 1);
        assert_eq!(books.check(batch(0, 10, 19)), Ok(Verdict::Due));
    }

    #[test]
    fn a_failed_batch_takes_those_behind_it_along_and_may_come_again() {
        let mut books = appended(1);
        let failing = books.begin(batch(0, 10, 19), 1);
        books.begin(batch(0, 20, 29), 2);
        books.begin(batch(0, 30, 39), 3);
        assert_eq!(books.fail(P, failing), vec![2, 3]);
        assert_eq!(books.check(batch(0, 20, 29)), out_of_order(10));
        assert_eq!(books.check(batch(0, 10, 19)), Ok(Verdict::Due));
        // Its second coming is another flight: what is told of the first no longer matters.
        books.begin(batch(0, 10, 19), 4);
        assert_eq!(books.fail(P, failing), Vec::<u32>::new());
        assert_eq!(books.check(batch(0, 10, 19)), Ok(Verdict::InFlight(4)));
    }

    #[test]
    fn behind_a_refused_first_batch_nothing_else_may_begin() {
        let mut books = Sequencer::<u32>::new();
        books.refuse(batch(0, 0, 9));
        books.refuse(batch(0, 10, 19));
        books.load(P, None);
        assert_eq!(books.check(batch(0, 20, 29)), out_of_order(0));
        assert_eq!(books.check(batch(0, 0, 9)), Ok(Verdict::Due));
        let failing = books.begin(batch(0, 0, 9), 1);
        books.begin(batch(0, 10, 19), 2);
        assert_eq!(books.fail(P, failing), vec![2]);
        books.enter_term(Term::new(3));
        assert_eq!(books.check(batch(0, 20, 29)), out_of_order(0));
        // What the log knows is better, and a new epoch owes nothing to the old one.
        assert_eq!(books.check(batch(1, 0, 9)), Ok(Verdict::Due));
        for id in 0..10_000 {
            let mut other = batch(0, 0, 9);
            other.producer = ProducerId::new(100 + id);
            books.refuse(other);
        }
        assert!(books.refused.len() <= super::MOST_REFUSED);
    }

    #[test]
    fn a_new_term_reads_the_log_again() {
        let mut books = appended(1);
        let number = books.begin(batch(0, 10, 19), 1);
        books.enter_term(Term::new(2));
        assert!(!books.knows(P));
        books.complete(P, number, Offset::new(10));
        assert!(
            !books.knows(P),
            "what an earlier term had in flight is void"
        );
    }

    #[test]
    fn idle_producers_are_forgotten_and_busy_ones_are_not() {
        let mut books = Sequencer::<u32>::new();
        books.load(P, None);
        books.begin(batch(0, 0, 9), 1);
        for id in 0..10_000 {
            books.load(ProducerId::new(100 + id), None);
        }
        assert!(books.producers.len() <= 2 * IDLE_PRODUCERS);
        assert_eq!(books.check(batch(0, 0, 9)), Ok(Verdict::InFlight(1)));
    }
}
