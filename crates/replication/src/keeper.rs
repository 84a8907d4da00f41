//! What each replica's one task does: see `keep`.

use std::{sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, Fuse, FusedFuture},
};
use openraft::async_runtime::watch::WatchReceiver as _;
use quipu_model::{LogId, Offset};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    blocking::blocking,
    partition::{Inner, Replica},
    repair::{repair, stop_damaged},
    replicator::{Habits, Starter},
    running::Running,
    sleep::{QuietPoint, lull, poke},
    type_config::{Raft, to_raft_id},
};

/// The first pause before a failed replica is started again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A purge that openraft did not get to in this time is left to the next trim.
const PURGE_PATIENCE: Duration = Duration::from_secs(60);
/// How often a learner that was started asks for a word of its leader.
const POKE_PAUSE: Duration = Duration::from_secs(1);

type Doing = Fuse<BoxFuture<'static, ()>>;

/// Keeps a replica running until it is shut down: restarts it when it failed, switches its clock on and off, tells who leads
/// and who the members are, puts the group to sleep when nothing happened for `idle`, and does what trim entries ask for.
pub(crate) async fn keep(
    inner: Arc<Inner>,
    starter: Starter,
    running: Option<Running>,
    habits: Habits,
) {
    let started = match running {
        Some(running) => Some(running),
        None => restart(&inner, &starter, None).await,
    };
    if let Some(running) = started {
        keep_running(&inner, &starter, running, habits).await;
    }
    inner.tell();
    inner.groups.remove(&inner);
}

async fn keep_running(
    inner: &Arc<Inner>,
    starter: &Starter,
    mut running: Running,
    Habits { idle, copy_behind }: Habits,
) {
    let mut trim_wanted = inner.group.trim_wanted.subscribe();
    // What was applied before this task ran counts too.
    trim_wanted.mark_changed();
    let mut sealed = inner.group.sealed.subscribe();
    sealed.mark_changed();
    let mut purge_wanted = inner.group.purge_wanted.subscribe();
    let mut applied_term = inner.group.applied_term.subscribe();
    let mut asleep = inner.asleep.subscribe();
    let mut trimming: Doing = Fuse::terminated();
    let mut lulling: Doing = Fuse::terminated();
    let mut poking = tokio::time::interval(POKE_PAUSE);
    let mut quiet: Option<QuietPoint> = None;
    let looking = tokio::time::sleep(idle);
    tokio::pin!(looking);
    loop {
        inner.set_clock();
        inner.tell();
        let may_lull = running.leads_others() && lulling.is_terminated() && !*asleep.borrow();
        tokio::select! {
            changed = running.server.changed() => if changed.is_err() {
                lulling = Fuse::terminated();
                match restart(inner, starter, Some(&running)).await {
                    Some(again) => running = again,
                    None => break,
                }
            },
            () = inner.alarm.notified() => if inner.group.log.damage().is_some() {
                (lulling, trimming) = (Fuse::terminated(), Fuse::terminated());
                match restart(inner, starter, Some(&running)).await {
                    Some(again) => running = again,
                    None => break,
                }
            },
            // The senders live in what this task holds.
            _ = applied_term.changed() => {}
            _ = asleep.changed() => {
                quiet = None;
                looking.as_mut().reset(Instant::now() + idle);
            }
            () = &mut looking, if may_lull => {
                let now = running.quiet_point();
                if let Some(point) = now.clone().filter(|_| now == quiet && running.hears_all()) {
                    let transport = Arc::clone(&starter.network.transport);
                    lulling = lull(Arc::clone(inner), transport, point).boxed().fuse();
                }
                quiet = now;
                looking.as_mut().reset(Instant::now() + idle);
            }
            () = &mut lulling, if !lulling.is_terminated() => {}
            _ = poking.tick(), if !inner.has_heard() && running.learns() => {
                tokio::spawn(poke(running.clone(), starter.network.clone()));
            }
            _ = trim_wanted.changed(), if trimming.is_terminated() => {
                let before = *trim_wanted.borrow_and_update();
                let (inner, raft) = (Arc::clone(inner), running.raft.clone());
                trimming = async move { keep_trimmed(&inner, &raft, before).await }.boxed().fuse();
            }
            _ = sealed.changed(), if trimming.is_terminated() => {
                let point = inner.group.log.copied_point(copy_behind);
                let (inner, raft) = (Arc::clone(inner), running.raft.clone());
                trimming = async move { forget(&inner, &raft, point).await }.boxed().fuse();
            }
            _ = purge_wanted.changed(), if trimming.is_terminated() => {
                let point = *purge_wanted.borrow_and_update();
                let (inner, raft) = (Arc::clone(inner), running.raft.clone());
                trimming = async move { forget(&inner, &raft, point).await }.boxed().fuse();
            }
            () = &mut trimming, if !trimming.is_terminated() => {}
        }
    }
}

async fn keep_trimmed(inner: &Inner, raft: &Raft, before: Offset) {
    let log = &inner.group.log;
    let wanted = before > log.state().start_offset;
    if wanted && let Err(error) = trim(inner, raft, before).await {
        let partition = log.key();
        tracing::warn!(%partition, %error, "retention did not finish; the next trim tries again");
    }
    inner.group.trimmed.send_replace(before);
}

/// Starts a replica again whose core ended, or whose log is damaged; `None` where it is to stay so.
async fn restart(
    inner: &Arc<Inner>,
    starter: &Starter,
    before: Option<&Running>,
) -> Option<Running> {
    let key = inner.group.log.key();
    let mut pause = FIRST_PAUSE;
    let mut reason = match before.map(|before| before.raft.metrics()) {
        Some(metrics) => match metrics.borrow_watched().running_state.clone() {
            Err(error) => error.to_string(),
            Ok(()) => "its core ended".to_owned(),
        },
        None => "its log was damaged".to_owned(),
    };
    loop {
        if inner.group.log.damage().is_some() {
            if let Some(before) = before {
                stop_damaged(inner, before).await;
            }
            if !repair(inner, starter).await {
                return None;
            }
        } else {
            note_failed(inner, reason)?;
            tokio::time::sleep(pause).await;
            pause = LAST_PAUSE.min(pause * 2);
            inner.metrics.restarts.inc();
        }
        match starter.start(&inner.group).await {
            Ok(running) => {
                if inner.resume(running.clone()) {
                    return Some(running);
                }
                if let Err(error) = running.raft.shutdown().await {
                    tracing::warn!(partition = %key, %error, "the replica did not stop cleanly");
                }
                return None;
            }
            Err(error) => reason = error,
        }
    }
}

/// `None`: the replica is not to be started again.
fn note_failed(inner: &Inner, reason: String) -> Option<()> {
    let partition = inner.group.log.key();
    let mut replica = inner.replica.write();
    if matches!(*replica, Replica::Ended) {
        return None;
    }
    if inner.store.failure().is_some() {
        tracing::error!(%partition, reason, "the replica ended");
        *replica = Replica::Ended;
        return None;
    }
    tracing::error!(%partition, reason, "the replica failed and is started again");
    *replica = Replica::Failed(reason);
    drop(replica);
    inner.tell();
    Some(())
}

/// Deletes the segments below an offset, and lets Raft's log forget what they held.
async fn trim(inner: &Inner, raft: &Raft, before: Offset) -> Result<(), String> {
    let (store, log) = (Arc::clone(&inner.store), Arc::clone(&inner.group.log));
    let trimming = blocking(&inner.store, move || {
        // What was applied, the voters above all, must be durable before the entries that say it are gone.
        store.checkpoint().map_err(|e| e.to_string())?;
        log.trim(before).map_err(|e| e.to_string())
    });
    trimming.await.map_err(|e| e.to_string())??;
    // Only then is it said to be done: a start offset that goes back after a crash would surprise who read it.
    let (tell, flushed) = oneshot::channel();
    let barrier = Box::new(move |result| drop(tell.send(result)));
    let log = &inner.group.log;
    log.append(Vec::new(), barrier).map_err(|e| e.to_string())?;
    flushed
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| e.to_string())?;
    match inner.group.log.purge_point() {
        Some(point) => purge(inner, raft, point).await,
        None => Ok(()),
    }
}

/// Lets Raft's log forget what followers are to copy by segments, or compaction is to write anew.
async fn forget(inner: &Inner, raft: &Raft, point: Option<(LogId, Offset)>) {
    if let Some(point) = point
        && let Err(error) = purge(inner, raft, point).await
    {
        let partition = inner.group.log.key();
        tracing::warn!(%partition, %error, "old entries stay in Raft's log until it is asked again to forget them: compaction waits for that");
    }
}

/// Makes a snapshot that ends with an entry, behind which records go on at an offset, and lets Raft's log forget all up to it.
async fn purge(
    inner: &Inner,
    raft: &Raft,
    (last, next_offset): (LogId, Offset),
) -> Result<(), String> {
    // The other one who asks may have gone further.
    let purged = inner.group.log.state().last_purged;
    if purged >= Some(last) || !inner.group.mark(to_raft_id(last), next_offset) {
        return Ok(());
    }
    let index = last.index.get();
    let trigger = raft.trigger();
    trigger.snapshot().await.map_err(|e| e.to_string())?;
    raft.wait(Some(PURGE_PATIENCE))
        .metrics(
            |metrics| metrics.snapshot.is_some_and(|id| id.index >= index),
            "a snapshot of what was deleted",
        )
        .await
        .map_err(|e| e.to_string())?;
    trigger.purge_log(index).await.map_err(|e| e.to_string())
}
