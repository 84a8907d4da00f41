//! How a replica that lacks more than a little gets it.
//!
//! A leader lets Raft's log forget entries that lie further back than a bound (`Replicator::copy_behind`): their records stay, in
//! the segments. A follower that lacks such entries is sent a snapshot: a manifest of the segments up to an entry, without
//! their bytes. It copies what it lacks into files beside its log, checks them, and only then hands the snapshot to openraft,
//! which puts them in the log's place (`state_machine`) and goes on behind them with entries. As long as it copies, it votes and
//! answers as before. A copy that was cut off goes on from where it was when the leader sends the snapshot again.

use std::{sync::Arc, time::Duration};

use quipu_model::NodeId;
use quipu_storage::{Incoming, IncomingError, Manifest, ReserveError};

use crate::{
    blocking::blocking,
    error::AppendError,
    group::Group,
    network::{CopyRequest, CopyResponse},
    partition::Partition,
};

/// How many bytes are asked for at once.
const CHUNK_BYTES: u32 = 1 << 20;
/// How long to wait for them: others may be given theirs first.
const COPY_PATIENCE: Duration = Duration::from_secs(30);

type Copying = tokio::sync::OwnedMutexGuard<Option<Incoming>>;

impl Partition {
    /// Copies what this log lacks of another replica's. Nothing of it counts before openraft installs it.
    pub(crate) async fn copy_from(
        &self,
        from: NodeId,
        manifest: &Manifest,
    ) -> Result<(), AppendError> {
        let group = &self.inner().group;
        self.running()?;
        if group.holds(manifest.last) {
            return Ok(());
        }
        // One at a time; it outlives whoever asked where a disk is still at work.
        let copying = Arc::clone(&group.copied).lock_owned().await;
        let mut copying = self.open(copying, manifest).await?;
        while let Some((next, up_to)) = copying.as_ref().and_then(Incoming::wanted) {
            let request = CopyRequest {
                from: next,
                up_to,
                max_bytes: CHUNK_BYTES,
                uncommitted: false,
            };
            let (transport, key) = (&self.inner().transport, self.key());
            let copied = transport.copy(from, key, request, COPY_PATIENCE).await;
            let bytes = match copied.map_err(failed)? {
                CopyResponse::Batches { bytes, .. } => bytes,
                CopyResponse::OutOfRange { start, end } => {
                    return Err(failed(format!(
                        "offset {next} is no longer in the log of node {from}, which holds {start} to {end}: its next snapshot begins later"
                    )));
                }
            };
            let len = bytes.len() as u64;
            copying = self
                .at_work(copying, move |incoming, _| match incoming {
                    Some(incoming) => incoming.take(&bytes),
                    None => Ok(()),
                })
                .await?;
            self.inner().metrics.copied_here_bytes.inc_by(len);
        }
        if !copying.as_ref().is_some_and(Incoming::stands) {
            return Err(failed(
                "the log was repaired meanwhile: what it lacks is looked for anew",
            ));
        }
        Ok(())
    }

    /// Goes on with what is on its way, or begins anew.
    async fn open(&self, copying: Copying, manifest: &Manifest) -> Result<Copying, AppendError> {
        let goes_on = |at: &Incoming| {
            let stopped = !at.is_whole() && at.wanted().is_none();
            at.manifest() == manifest && !stopped && at.stands()
        };
        if copying.as_ref().is_some_and(goes_on) {
            return Ok(copying);
        }
        let manifest = manifest.clone();
        self.at_work(copying, move |incoming, group| {
            // What grows in the old one's hands is taken up again by the new one.
            *incoming = None;
            let (log, partition) = (Arc::clone(&group.log), group.log.key());
            let opened = incoming.insert(Incoming::open(log, manifest)?);
            let manifest = opened.manifest();
            tracing::info!(%partition, last = %manifest.last, segments = manifest.segments.len(), "copying what this replica lacks");
            Ok(())
        })
        .await
    }

    /// Works on what is on its way, on a thread that may block.
    async fn at_work(
        &self,
        mut copying: Copying,
        work: impl FnOnce(&mut Option<Incoming>, &Group) -> Result<(), IncomingError> + Send + 'static,
    ) -> Result<Copying, AppendError> {
        let group = Arc::clone(&self.inner().group);
        let working = blocking(&self.inner().store, move || {
            let worked = work(&mut copying, &group);
            worked.map(|()| copying)
        });
        working.await.map_err(failed)?.map_err(|error| match error {
            IncomingError::Damaged(damage) => ReserveError::Damaged(damage).into(),
            IncomingError::Failed(failure) => failure.into(),
            error => failed(error),
        })
    }
}

fn failed(error: impl std::fmt::Display) -> AppendError {
    AppendError::Fatal(error.to_string())
}
