//! A batch on its way from the door into the log.

use std::sync::Arc;

use parking_lot::Mutex;
use quipu_model::{NodeId, Offset, ProducerId};
use tokio::sync::oneshot;

/// Why a proposed batch was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It never reached the log: this replica does not lead, or not in the term in which the batch was sequenced.
    Refused { leader: Option<NodeId> },
    /// It was appended here, then another leader took over: the batch may be in the log or not.
    Superseded,
    /// The replica stopped with the batch in flight.
    Stopped,
}

pub(crate) type Outcome = Result<Offset, Loss>;

/// A proposed batch, shared by who waits for it, by the log store that appends it, and by who hears of its commit.
#[derive(Debug)]
pub(crate) struct Flight {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Who proposed it and the sequencer's number for it, where its producer is idempotent.
    sequenced: Option<(ProducerId, u64)>,
    base: Option<Offset>,
    cancelled: Option<Loss>,
    outcome: Option<Outcome>,
    waiters: Vec<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    /// Whether the leader's own append is enough.
    appended_is_enough: bool,
    tell: oneshot::Sender<Outcome>,
}

impl Flight {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
        })
    }

    pub(crate) fn set_sequenced(&self, producer: ProducerId, number: u64) {
        self.state.lock().sequenced = Some((producer, number));
    }

    pub(crate) fn sequenced(&self) -> Option<(ProducerId, u64)> {
        self.state.lock().sequenced
    }

    /// Hears the outcome, or, where that is enough, the append.
    pub(crate) fn wait(&self, appended_is_enough: bool) -> oneshot::Receiver<Outcome> {
        let (tell, told) = oneshot::channel();
        let mut state = self.state.lock();
        let known = match state.outcome {
            None if appended_is_enough => state.base.map(Ok),
            outcome => outcome,
        };
        match known {
            Some(outcome) => answer(tell, outcome),
            None => state.waiters.push(Waiter {
                appended_is_enough,
                tell,
            }),
        }
        told
    }

    /// Gives the batch up, unless it was appended.
    pub(crate) fn cancel(&self, loss: Loss) {
        let mut state = self.state.lock();
        if state.base.is_none() && state.cancelled.is_none() {
            state.cancelled = Some(loss);
        }
    }

    /// Whether the batch was given up before it was appended, so that an empty entry goes in its place.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.state.lock().cancelled.is_some()
    }

    /// The leader is about to append it at `base`: from here on it can no longer be given up.
    pub(crate) fn place(&self, base: Offset) {
        self.state.lock().base = Some(base);
    }

    /// The leader appended it.
    pub(crate) fn appended(&self) {
        let mut state = self.state.lock();
        let Some(base) = state.base else { return };
        let (enough, rest) = std::mem::take(&mut state.waiters)
            .into_iter()
            .partition(|w| w.appended_is_enough);
        state.waiters = rest;
        drop(state);
        tell(enough, Ok(base));
    }

    /// It was committed, as far as it was appended; or it will not be. Answers with what holds now, the first time only.
    pub(crate) fn settle(&self, loss: Option<Loss>) -> Option<Outcome> {
        let mut state = self.state.lock();
        if state.outcome.is_some() {
            return None;
        }
        let outcome = match (state.base, loss) {
            (Some(base), None) => Ok(base),
            // Refused, yet appended: cannot be told apart from appended and lost.
            (Some(_), Some(Loss::Refused { .. })) => Err(Loss::Superseded),
            (Some(_), Some(loss)) => Err(loss),
            (None, loss) => Err(state
                .cancelled
                .or(loss)
                .unwrap_or(Loss::Refused { leader: None })),
        };
        state.outcome = Some(outcome);
        Some(outcome)
    }

    /// Tells the outcome to all who wait.
    pub(crate) fn announce(&self) {
        let mut state = self.state.lock();
        let Some(outcome) = state.outcome else { return };
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        tell(waiters, outcome);
    }
}

fn tell(waiters: Vec<Waiter>, outcome: Outcome) {
    for waiter in waiters {
        answer(waiter.tell, outcome);
    }
}

fn answer(tell: oneshot::Sender<Outcome>, outcome: Outcome) {
    // A waiter that is gone needs no answer.
    let _ = tell.send(outcome);
}
