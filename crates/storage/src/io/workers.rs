//! Where a store's background work is done: on threads of its own, or step by step inside a simulation.

use std::{fmt, io, sync::Arc, time::Duration};

/// Work in the background, cut into steps that each end by themselves.
pub trait Worker: Send {
    /// Does one piece of what there is to do, or says how to rest. `rested` says that the last rest was as long as asked for:
    /// nobody woke the worker meanwhile.
    fn step(&mut self, rested: bool) -> Rest;
    /// Whether all else on the machine goes before it.
    fn gives_way(&self) -> bool {
        false
    }
}

/// What a worker wants after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// To go on at once.
    No,
    /// To go on once woken.
    UntilWoken,
    /// To go on once woken, or after this time.
    For(Duration),
    /// Nothing any more: it is dropped.
    Ended,
}

/// A worker that was started.
pub trait Working: fmt::Debug + Send + Sync {
    /// Lets it go on if it rests. A wake-up while it works holds for its next rest.
    fn wake(&self);
    /// Waits until it has ended. Returns at once where the worker itself calls.
    fn join(&self);
}

/// Runs a store's workers.
pub trait Workers: fmt::Debug + Send + Sync {
    /// Starts a worker.
    ///
    /// # Errors
    /// Where there is no thread to be had for it.
    fn start(&self, name: &'static str, worker: Box<dyn Worker>) -> io::Result<Arc<dyn Working>>;
    /// Called before the calling thread blocks until workers have done something. One who has a single thread for all runs
    /// the other workers here until `done`.
    fn before_blocking(&self, _done: &mut dyn FnMut() -> bool) {}
    /// Whether what blocks is to be done where it is asked for, since there is no other thread to do it.
    fn is_single_threaded(&self) -> bool {
        false
    }
}
