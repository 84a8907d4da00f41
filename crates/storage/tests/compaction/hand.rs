//! A compactor that takes a step when it is told to.

use std::{io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use quipu_storage::io::{Rest, Threads, Worker, Workers, Working};

type Slot = Arc<Mutex<Option<Box<dyn Worker>>>>;

/// Threads for all workers but the compactor.
#[derive(Clone, Default)]
pub(crate) struct Hand {
    compactor: Slot,
}

impl std::fmt::Debug for Hand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hand")
    }
}

impl Hand {
    /// Takes a step; `false` once there is nothing to do for now.
    pub(crate) fn step(&self) -> bool {
        let mut slot = self.compactor.lock();
        let Some(compactor) = slot.as_mut() else {
            return false;
        };
        match compactor.step(false) {
            Rest::No => true,
            Rest::For(rest) => rest < Duration::from_secs(10),
            Rest::UntilWoken | Rest::Ended => false,
        }
    }

    /// Goes on until there is nothing to do; how many steps that took.
    pub(crate) fn finish(&self) -> usize {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 100_000, "compaction comes to an end");
        }
        steps
    }
}

impl Workers for Hand {
    fn start(&self, name: &'static str, worker: Box<dyn Worker>) -> io::Result<Arc<dyn Working>> {
        if name != "quipu-compactor" {
            return Threads.start(name, worker);
        }
        *self.compactor.lock() = Some(worker);
        Ok(Arc::new(self.clone()))
    }
}

impl Working for Hand {
    fn wake(&self) {}
    fn join(&self) {
        drop(self.compactor.lock().take());
    }
}
