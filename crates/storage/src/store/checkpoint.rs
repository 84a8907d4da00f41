//! A checkpoint: what the write-ahead log holds is made durable where it belongs, so that the log can forget it.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use super::{Context, Partitions, ballast, format};
use crate::{
    PartitionLog,
    log::{Captured, is_full},
    wal::{Lsn, StorageFailure},
};

/// Runs a checkpoint. A disk too full for one is no failure: nothing is lost, and the next one may find room.
pub(super) fn run(context: &Arc<Context>, partitions: &Partitions) -> Result<(), StorageFailure> {
    let _running = context.checkpointing.lock();
    // Only the write-ahead log holds what a damaged partition could not take: nothing of it may be recycled before that
    // partition is removed.
    if partitions.read().values().any(|log| log.is_incomplete()) {
        return Ok(());
    }
    let started = context.clock.monotonic();
    let mut outcome = write(context, partitions);
    if outcome.as_ref().is_err_and(|(_, _, error)| is_full(error))
        && ballast::drop_it(&*context.disk)
    {
        outcome = write(context, partitions);
    }
    match outcome {
        Ok(()) => {
            ballast::take_on(&*context.disk);
            context.metrics.checkpoints.inc();
            let took = context.clock.monotonic() - started;
            context
                .metrics
                .checkpoint_seconds
                .observe(took.as_secs_f64());
            Ok(())
        }
        Err((_, path, error)) if is_full(&error) => {
            tracing::warn!(path = %path.display(), %error, "no room for a checkpoint: free space on the disk");
            Ok(())
        }
        Err((operation, path, error)) => Err(context.wal.fail(operation, &path, error)),
    }
}

type Step<T> = Result<T, (&'static str, PathBuf, io::Error)>;

fn write(context: &Context, partitions: &Partitions) -> Step<()> {
    // Every record up to here is in the states captured below. A partition that is created after this line has no record
    // before it, so that it does not matter whether it is among those captured.
    let reflected = context.wal.last_submitted();
    let logs: Vec<Arc<PartitionLog>> = partitions.read().values().cloned().collect();
    let outcome = seal(&logs).and_then(|()| write_states(context, reflected, &logs));
    if outcome.is_err() {
        logs.iter().for_each(|log| log.discard_capture());
    }
    outcome
}

fn seal(logs: &[Arc<PartitionLog>]) -> Step<()> {
    for log in logs {
        log.seal_closed()
            .map_err(|error| ("seal", format!("partition {}", log.key()).into(), error))?;
    }
    Ok(())
}

fn write_states(context: &Context, reflected: Lsn, logs: &[Arc<PartitionLog>]) -> Step<()> {
    let captured: Vec<_> = logs
        .iter()
        .filter_map(|log| Some((log, log.capture()?)))
        .collect();
    sync_segments(context, captured.iter().map(|(_, captured)| captured))?;
    // A state must not be ahead of the log it continues: Raft would take the gap for a purge.
    wait_flushed(context).map_err(|failure| {
        (
            failure.operation,
            failure.path,
            io::Error::other(failure.error),
        )
    })?;
    let states: Vec<_> = captured
        .iter()
        .map(|(_, captured)| captured.state.clone())
        .collect();
    format::write_raft_state(&*context.disk, reflected, &states)
        .map_err(|error| ("write", format::RAFT_STATE_FILE.into(), error))?;
    context.wal.recycle(reflected);
    captured
        .iter()
        .for_each(|(log, captured)| log.checkpointed(captured));
    Ok(())
}

/// Up to so many files are synced one by one; where there are more, one sync of the whole file system is cheaper, though it
/// also waits for what others write there.
const MOST_SYNCS: usize = 8;

/// Makes the segments durable that are not sealed yet: their bytes, and their names.
fn sync_segments<'a>(context: &Context, captured: impl Iterator<Item = &'a Captured>) -> Step<()> {
    let files: HashMap<_, _> = captured
        .flat_map(|captured| captured.unsynced.iter().cloned())
        .collect();
    if files.len() > MOST_SYNCS {
        let root = |error| ("sync", PathBuf::from("the file system"), error);
        return context.disk.sync_all().map_err(root);
    }
    let dirs: HashSet<_> = files
        .keys()
        .filter_map(|path| path.parent().map(Path::to_owned))
        .collect();
    for (path, file) in files {
        file.sync().map_err(|error| ("sync", path, error))?;
    }
    for dir in dirs {
        context
            .disk
            .sync_dir(&dir)
            .map_err(|error| ("sync", dir, error))?;
    }
    Ok(())
}

/// Waits until all that was submitted is durable.
fn wait_flushed(context: &Context) -> Result<(), StorageFailure> {
    let (sender, flushed) = mpsc::sync_channel(1);
    let done = move |result| {
        let _ = sender.send(result);
    };
    context.wal.submit(Vec::new(), Box::new(done))?;
    context.wait_flushed(&flushed)
}
