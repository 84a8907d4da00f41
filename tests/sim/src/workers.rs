//! A store's background work as tasks of the simulation: a step at a time, each after as long as a disk takes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use quipu_storage::io::{FaultyDisk, Rest, Worker, Workers, Working};
use tokio::sync::Notify;

use crate::luck::Luck;

/// What a store calls the worker that waits for others.
const HOUSEKEEPER: &str = "quipu-keeper";

/// The workers of one store.
#[derive(Clone, Debug)]
pub(crate) struct NodeWorkers {
    all: Arc<Mutex<Vec<Arc<Task>>>>,
    pace: Arc<Pace>,
    disk: FaultyDisk,
}

/// How long a disk takes.
#[derive(Debug)]
pub(crate) struct Pace {
    luck: Mutex<Luck>,
    slow_us: AtomicU64,
}

impl Pace {
    pub(crate) fn new(luck: Luck) -> Self {
        Self {
            luck: Mutex::new(luck),
            slow_us: AtomicU64::new(0),
        }
    }

    /// From now on every step takes up to this much longer.
    pub(crate) fn slow_down(&self, by: Duration) {
        self.slow_us.store(by.as_micros() as u64, Ordering::Relaxed);
    }

    fn step(&self) -> Duration {
        let slow = self.slow_us.load(Ordering::Relaxed);
        let mut luck = self.luck.lock();
        luck.micros(200..3000 + 2 * slow)
    }
}

struct Task {
    name: &'static str,
    /// `None` once it has ended.
    worker: Mutex<Option<Box<dyn Worker>>>,
    woken: Notify,
    stepping: AtomicBool,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Task {
    /// `None` where it is in the middle of a step already.
    fn step(&self, rested: bool) -> Option<Rest> {
        let mut worker = self.worker.try_lock()?;
        let Some(working) = worker.as_mut() else {
            return Some(Rest::Ended);
        };
        self.stepping.store(true, Ordering::Relaxed);
        let rest = working.step(rested);
        self.stepping.store(false, Ordering::Relaxed);
        let ended = (rest == Rest::Ended).then(|| worker.take()).flatten();
        drop(worker);
        drop(ended);
        Some(rest)
    }

    async fn run(self: Arc<Self>, pace: Arc<Pace>) {
        let mut rested = false;
        loop {
            tokio::time::sleep(pace.step()).await;
            // A step under way is one of another task's, which goes on to the end by itself.
            match self.step(rested).unwrap_or(Rest::No) {
                Rest::No => rested = false,
                Rest::UntilWoken => {
                    self.woken.notified().await;
                    rested = false;
                }
                Rest::For(time) => {
                    let woken = tokio::time::timeout(time, self.woken.notified()).await;
                    rested = woken.is_err();
                }
                Rest::Ended => return,
            }
        }
    }
}

impl NodeWorkers {
    pub(crate) fn new(pace: Arc<Pace>, disk: FaultyDisk) -> Self {
        Self {
            all: Arc::default(),
            pace,
            disk,
        }
    }

    /// Lets workers step until `done`, in place of whoever would have to wait for them.
    fn work_until(&self, which: fn(&Task) -> bool, done: &mut dyn FnMut() -> bool) {
        let mut rescued = false;
        let mut tasks = self.all.lock().clone();
        tasks.retain(|task| which(task));
        while !done() {
            let mut progress = false;
            for task in &tasks {
                while !done() && task.step(rescued) == Some(Rest::No) {
                    progress = true;
                }
            }
            if progress || done() {
                continue;
            }
            // On threads they would wait for room on the disk, and time would go on.
            assert!(
                !rescued,
                "the store waits for what none of its workers will do"
            );
            self.disk.set_capacity(u64::MAX);
            rescued = true;
        }
    }
}

impl Workers for NodeWorkers {
    fn start(&self, name: &'static str, worker: Box<dyn Worker>) -> io::Result<Arc<dyn Working>> {
        let task = Arc::new(Task {
            name,
            worker: Mutex::new(Some(worker)),
            woken: Notify::new(),
            stepping: AtomicBool::new(false),
        });
        self.all.lock().push(Arc::clone(&task));
        tokio::spawn(Arc::clone(&task).run(Arc::clone(&self.pace)));
        Ok(Arc::new(Started {
            task,
            workers: self.clone(),
        }))
    }

    fn before_blocking(&self, done: &mut dyn FnMut() -> bool) {
        // What is waited for is the write-ahead log. Whoever waits may hold what the housekeeper needs.
        self.work_until(|task| task.name != HOUSEKEEPER, done);
    }

    fn is_single_threaded(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Started {
    task: Arc<Task>,
    workers: NodeWorkers,
}

impl Working for Started {
    fn wake(&self) {
        self.task.woken.notify_one();
    }

    fn join(&self) {
        if self.task.stepping.load(Ordering::Relaxed) {
            return;
        }
        let task = Arc::clone(&self.task);
        self.workers.work_until(|_| true, &mut || {
            task.worker
                .try_lock()
                .is_some_and(|worker| worker.is_none())
        });
        // Its task hears of it.
        self.task.woken.notify_one();
    }
}
