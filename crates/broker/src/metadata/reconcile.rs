//! Makes the partitions that run here those that the image assigns to this node.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use quipu_model::{NodeId, Offset, PartitionKey, TopicId};
use quipu_replication::{Origin, Partition, Replicator};
use quipu_storage::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{METADATA_KEY, Metadata, Topic};
use crate::{
    error::{BrokerError, Reason},
    partitions::{Gone, PartitionTable, Running, TopicPartitions},
};

/// Starts and stops this node's partitions as the image changes.
#[derive(Debug)]
pub(crate) struct Reconciler {
    pub(crate) node: NodeId,
    pub(crate) store: Arc<Store>,
    pub(crate) replicator: Replicator,
    pub(crate) table: Arc<PartitionTable>,
    pub(crate) metadata: Arc<Metadata>,
    /// Cancelled when the node stops.
    pub(crate) stop: CancellationToken,
    /// The metadata offset up to which the partitions are what the image says.
    pub(crate) reconciled: watch::Sender<Offset>,
    /// Whether the image has all that was committed before this node started. Until then it may say that a partition is
    /// elsewhere which it assigns here again further on, and no files are removed for it; and it may say that a partition is
    /// here which left further on, and no replica begins without files.
    pub(crate) caught_up: watch::Sender<bool>,
    /// What watches over each replica that runs.
    pub(crate) watcher: Arc<dyn Watcher>,
}

/// Hears of the replicas that run.
pub(crate) trait Watcher: fmt::Debug + Send + Sync + 'static {
    /// A replica runs from now on, until `running.stopped`.
    fn started(&self, running: &Running);
}

impl Reconciler {
    /// Enough to fill the write-ahead log's groups, few enough to bound the memory of a start.
    const STARTS_AT_A_TIME: usize = 64;
    const LEADER_WAIT: Duration = Duration::from_secs(10);

    /// Puts the running metadata partition into the table.
    pub(crate) fn adopt_metadata(&self, partition: Partition) {
        self.table.replace(self.topics().into_iter());
        for entry in self.table.snapshot().values() {
            if entry.topic.id == METADATA_KEY.topic {
                entry.started(METADATA_KEY.partition, Ok(self.running(partition.clone())));
            }
        }
    }

    /// Brings the partitions up to the newest image.
    pub(crate) async fn reconcile(&self) {
        let upto = *self.metadata.applied().borrow();
        let replaced = self.table.replace(self.topics().into_iter());
        for entry in replaced.altered {
            for running in entry.running() {
                running.partition.set_config(entry.topic.config.clone());
            }
            for (assignment, running) in entry.assigned() {
                running.partition.note_holders(&assignment.replicas);
            }
        }
        for gone in replaced.gone {
            self.remove(gone).await;
        }
        self.start_missing().await;
        self.reconciled.send_replace(upto);
    }

    /// Reconciles whenever the image changes, until the node stops.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut applied = self.metadata.applied();
        let mut caught_up = self.caught_up.subscribe();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = applied.changed() => if changed.is_err() { return },
                // Its sender is here.
                _ = caught_up.changed() => {}
            }
            self.reconcile().await;
        }
    }

    /// Removes the files of deleted topics that a crash left behind. Partitions that no record explains are kept.
    pub(crate) async fn remove_deleted(&self, deleted: &HashSet<TopicId>) {
        let image = self.metadata.image();
        for key in self.store.partitions() {
            if deleted.contains(&key.topic) {
                self.remove_files(key).await;
            } else if image.topic_by_id(key.topic).is_none() {
                tracing::warn!(%key, "a partition on disk belongs to no topic; it is kept and not served");
            }
        }
    }

    /// From now on the image is as new as any: removes the files of partitions that went to other nodes while this one was
    /// down.
    pub(crate) async fn caught_up(&self) {
        self.caught_up.send_replace(true);
        for key in self.store.partitions() {
            if self.metadata.image().is_elsewhere(key, self.node) {
                self.remove_files(key).await;
            }
        }
    }

    fn topics(&self) -> Vec<Arc<Topic>> {
        self.metadata.image().topics().cloned().collect()
    }

    async fn start_missing(&self) {
        let snapshot = self.table.snapshot();
        let may_begin = *self.caught_up.borrow();
        let may_start = |key: &PartitionKey| may_begin || self.store.partition(*key).is_some();
        let missing: Vec<_> = snapshot
            .values()
            .flat_map(|entry| entry.unstarted().map(move |key| (entry, key)))
            .filter(|(_, key)| may_start(key))
            .collect();
        self.make_logs(&missing).await;
        stream::iter(missing)
            .for_each_concurrent(Self::STARTS_AT_A_TIME, |(entry, key)| async move {
                let result = self.start(entry, key).await;
                if let Err(error) = &result {
                    tracing::error!(%key, topic = %entry.topic.name, %error, "a partition did not start");
                }
                entry.started(key.partition, result);
            })
            .await;
    }

    /// Makes the logs of a topic's partitions together: one sync for the names of all. Where that fails, each partition's
    /// start meets the error again, and says so.
    async fn make_logs(&self, missing: &[(&Arc<TopicPartitions>, PartitionKey)]) {
        let wanted: Vec<_> = missing
            .iter()
            .map(|(entry, key)| (*key, entry.topic.config.clone()))
            .collect();
        let store = Arc::clone(&self.store);
        let made = tokio::task::spawn_blocking(move || store.create_partitions(&wanted)).await;
        if let Ok(Err(error)) = made {
            tracing::warn!(%error, "could not make the directories of new partitions");
        }
    }

    async fn start(
        &self,
        entry: &TopicPartitions,
        key: PartitionKey,
    ) -> Result<Running, BrokerError> {
        let assignment = entry.topic.assignments.get(key.partition.get() as usize);
        let assignment = assignment.cloned();
        let (node, replicator) = (self.node, self.replicator.clone());
        let config = entry.topic.config.clone();
        // A task of its own, so that starts use all cores.
        let started = tokio::spawn(async move {
            let origin = match &assignment {
                Some(assignment) if assignment.founders.contains(&node) => {
                    Origin::Founder(&assignment.founders)
                }
                // It learns of the group from its leader.
                joined => Origin::Joiner(joined.as_ref().and_then(|now| now.settled)),
            };
            let partition = replicator.start(key, origin, config).await?;
            if let Some(assignment) = &assignment {
                partition.note_holders(&assignment.replicas);
            }
            if let Some(damage) = partition.damage() {
                tracing::error!(%damage, "a partition is not served");
            } else if matches!(origin, Origin::Founder([_])) {
                partition.wait_leader(Self::LEADER_WAIT).await?;
            }
            Ok::<_, BrokerError>(partition)
        });
        let partition = started.await.map_err(|error| {
            BrokerError::new(Reason::Internal, format!("starting {key} failed: {error}"))
        })??;
        Ok(self.running(partition))
    }

    fn running(&self, partition: Partition) -> Running {
        let running = Running {
            partition,
            stopped: self.stop.child_token(),
        };
        self.watcher.started(&running);
        running
    }

    async fn remove(&self, gone: Gone) {
        if let Some(running) = &gone.running {
            running.stopped.cancel();
            running.partition.shutdown().await;
        }
        let moved = self.metadata.image().topic_by_id(gone.key.topic).is_some();
        if !moved || *self.caught_up.borrow() {
            self.remove_files(gone.key).await;
        }
    }

    async fn remove_files(&self, key: PartitionKey) {
        let store = Arc::clone(&self.store);
        let removed = tokio::task::spawn_blocking(move || store.remove_partition(key)).await;
        match removed {
            Ok(Ok(())) => tracing::info!(%key, "partition removed"),
            Ok(Err(error)) => tracing::error!(%key, %error, "removing a partition failed"),
            Err(error) => tracing::error!(%key, %error, "removing a partition failed"),
        }
    }
}

#[cfg(test)]
mod tests;
