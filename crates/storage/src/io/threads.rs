//! Workers on threads.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle, ThreadId},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use super::{Rest, Worker, Workers, Working};

/// By how much a thread that gives way is nicer than others: beside threads that never rest, it still gets a tenth of a core.
const NICER: i32 = 10;

/// A thread for each worker.
#[derive(Clone, Copy, Debug)]
pub struct Threads;

/// A wake-up that waits to be heard.
#[derive(Debug, Default)]
struct Signal {
    given: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    fn give(&self) {
        let mut given = self.given.lock();
        if !*given {
            *given = true;
            self.changed.notify_one();
        }
    }

    fn wait(&self) {
        let mut given = self.given.lock();
        self.changed.wait_while(&mut given, |given| !*given);
        *given = false;
    }

    /// Whether the time passed without it.
    fn wait_for(&self, time: Duration) -> bool {
        let mut given = self.given.lock();
        self.changed
            .wait_while_for(&mut given, |given| !*given, time);
        !std::mem::take(&mut *given)
    }
}

#[derive(Debug)]
struct Running {
    signal: Arc<Signal>,
    thread: ThreadId,
    ended: Mutex<Option<JoinHandle<()>>>,
}

impl Workers for Threads {
    fn start(&self, name: &'static str, worker: Box<dyn Worker>) -> io::Result<Arc<dyn Working>> {
        let signal = Arc::<Signal>::default();
        let heard = Arc::clone(&signal);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(worker, &heard))?;
        Ok(Arc::new(Running {
            signal,
            thread: thread.thread().id(),
            ended: Mutex::new(Some(thread)),
        }))
    }
}

fn run(mut worker: Box<dyn Worker>, signal: &Signal) {
    if worker.gives_way() {
        // Of this thread only, as Linux has it. Where it is refused, the worker is as urgent as others.
        let _ = rustix::process::nice(NICER);
    }
    let mut rested = false;
    loop {
        rested = match worker.step(rested) {
            Rest::No => false,
            Rest::UntilWoken => {
                signal.wait();
                false
            }
            Rest::For(time) => signal.wait_for(time),
            Rest::Ended => return,
        };
    }
}

impl Working for Running {
    fn wake(&self) {
        self.signal.give();
    }

    fn join(&self) {
        // What the worker itself drops may be what joins it.
        if self.thread == thread::current().id() {
            return;
        }
        let thread = self.ended.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a thread of the store panicked");
        }
    }
}
