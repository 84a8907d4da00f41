//! The thread that does what nobody waits for.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::Ordering,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
};

use quipu_model::Position;

use super::{Context, Partitions, checkpoint, scrub::Scrubber};
use crate::io::DiskFile;

/// Something to do in the background.
#[derive(Debug)]
pub(crate) enum Task {
    Checkpoint,
    Writeback(Arc<dyn DiskFile>, Position, u64),
    RemoveDir(PathBuf),
    Stop,
}

#[derive(Debug)]
pub(super) struct Housekeeper {
    thread: JoinHandle<()>,
}

impl Housekeeper {
    /// Starts the thread; from then on the context's tasks are done.
    pub(super) fn start(context: &Arc<Context>, partitions: &Partitions) -> std::io::Result<Self> {
        let (sender, tasks) = mpsc::channel();
        let (held, partitions) = (Arc::clone(context), Arc::clone(partitions));
        let run = move || {
            let mut scrubber = Scrubber::default();
            let mut cached = Cached::default();
            let mut due = Some(held.clock.monotonic());
            loop {
                let task = match due {
                    None => tasks.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    Some(due) => tasks.recv_timeout(due.saturating_sub(held.clock.monotonic())),
                };
                match task {
                    Ok(Task::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                    Ok(Task::Writeback(file, position, len)) => {
                        file.start_writeback(position, len);
                        cached.note(
                            (Arc::downgrade(&file), position, len),
                            held.config.cached_bytes,
                        );
                    }
                    Ok(task) => perform(task, &held, &partitions),
                    Err(RecvTimeoutError::Timeout) => {
                        let rest = scrubber.step(&held, &partitions);
                        due = held.clock.monotonic().checked_add(rest);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("quipu-keeper".to_owned())
            .spawn(run)?;
        let _ = context.tasks.set(sender);
        Ok(Self { thread })
    }

    /// Lets the thread finish what it has, and ends it.
    pub(super) fn stop(self, context: &Context) {
        if let Some(tasks) = context.tasks.get() {
            let _ = tasks.send(Task::Stop);
        }
        if self.thread.join().is_err() {
            tracing::error!("the housekeeping thread panicked");
        }
    }
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
        Task::Writeback(..) | Task::Stop => {}
    }
}
