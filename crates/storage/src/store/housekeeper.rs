//! What nobody waits for is done in the background.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::Ordering,
        mpsc::{self, TryRecvError},
    },
    time::Duration,
};

use quipu_model::{PartitionKey, Position};

use super::{Context, Partitions, checkpoint, scrub::Scrubber};
use crate::io::{DiskFile, Rest, Worker};

/// Something to do in the background.
#[derive(Debug)]
pub(crate) enum Task {
    Checkpoint,
    Writeback(Arc<dyn DiskFile>, Position, u64),
    RemoveDir(PathBuf),
    MarkDamaged(PartitionKey),
    Stop,
}

/// The worker that does what nobody waits for.
struct Keeper {
    context: Arc<Context>,
    partitions: Partitions,
    tasks: mpsc::Receiver<Task>,
    scrubber: Scrubber,
    cached: Cached,
    /// When the scrub goes on.
    due: Option<Duration>,
}

impl Worker for Keeper {
    fn step(&mut self, _rested: bool) -> Rest {
        let context = &self.context;
        match self.tasks.try_recv() {
            Ok(Task::Stop) | Err(TryRecvError::Disconnected) => return Rest::Ended,
            Ok(Task::Writeback(file, position, len)) => {
                file.start_writeback(position, len);
                let stretch = (Arc::downgrade(&file), position, len);
                self.cached.note(stretch, context.config.cached_bytes);
            }
            Ok(task) => perform(task, context, &self.partitions),
            Err(TryRecvError::Empty) => {
                let now = context.clock.monotonic();
                match self.due {
                    None => return Rest::UntilWoken,
                    Some(due) if due > now => return Rest::For(due - now),
                    Some(_) => {
                        let rest = self.scrubber.step(context, &self.partitions);
                        self.due = context.clock.monotonic().checked_add(rest);
                    }
                }
            }
        }
        Rest::No
    }
}

/// Starts the worker; from then on the context's tasks are done.
pub(super) fn start(context: &Arc<Context>, partitions: &Partitions) -> io::Result<()> {
    let (sender, tasks) = mpsc::channel();
    let keeper = Keeper {
        context: Arc::clone(context),
        partitions: Arc::clone(partitions),
        tasks,
        scrubber: Scrubber::default(),
        cached: Cached::default(),
        due: Some(context.clock.monotonic()),
    };
    let working = context.workers.start("quipu-keeper", Box::new(keeper))?;
    let _ = context.tasks.set((sender, working));
    Ok(())
}

/// What was written last, and is kept in the system's page cache for those who read close behind.
#[derive(Default)]
struct Cached {
    stretches: VecDeque<Stretch>,
    bytes: u64,
}

/// A deleted segment's file is not kept open for this: its space would stay taken.
type Stretch = (Weak<dyn DiskFile>, Position, u64);

impl Cached {
    /// Adds a stretch, and lets the oldest go past the bound: their memory takes what comes next, which is much cheaper than
    /// memory that was never used.
    fn note(&mut self, stretch: Stretch, most_bytes: u64) {
        self.bytes += stretch.2;
        self.stretches.push_back(stretch);
        while self.bytes > most_bytes
            && let Some((file, position, len)) = self.stretches.pop_front()
        {
            if let Some(file) = file.upgrade() {
                file.forget(position, len);
            }
            self.bytes -= len;
        }
    }
}

fn perform(task: Task, context: &Arc<Context>, partitions: &Partitions) {
    match task {
        Task::Checkpoint => {
            context.checkpoint_asked.store(false, Ordering::Release);
            if let Err(failure) = checkpoint::run(context, partitions) {
                tracing::error!(%failure, "a checkpoint failed");
            }
        }
        Task::RemoveDir(dir) => context.remove_dir_now(&dir),
        Task::MarkDamaged(key) => {
            let log = partitions.read().get(&key).cloned();
            if let Some(log) = log {
                log.write_mark();
            }
        }
        Task::Writeback(..) | Task::Stop => {}
    }
}
