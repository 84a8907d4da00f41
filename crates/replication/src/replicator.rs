//! Starts replicas, and keeps them running.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::{
    EmptyNode, StorageHelper,
    async_runtime::watch::WatchReceiver as _,
    errors::{InitializeError, RaftError},
};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use quipu_model::{NodeId, Offset, PartitionKey, TopicConfig};
use quipu_storage::{OpenError, Store};
use tokio::sync::oneshot;

use crate::{
    blocking::blocking,
    config::config,
    error::AppendError,
    group::Group,
    log_store::LogStore,
    network::{Network, Transport},
    partition::{Inner, Partition, Replica, Running},
    state_machine::StateMachine,
    type_config::{Membership, Raft},
};

/// The first pause before a failed replica is started again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A purge that openraft did not get to in this time is left to the next trim.
const PURGE_PATIENCE: Duration = Duration::from_secs(60);

/// What all replicas of a node count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) restarts: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) room_waits: Counter,
}

/// Starts partitions' replicas on this node.
#[derive(Clone, Debug)]
pub struct Replicator {
    node: NodeId,
    store: Arc<Store>,
    transport: Arc<dyn Transport>,
    metrics: Metrics,
}

impl Replicator {
    /// For the replicas of node `node`, whose logs are in `store`.
    pub fn new(node: NodeId, store: Arc<Store>, transport: Arc<dyn Transport>) -> Self {
        Self {
            node,
            store,
            transport,
            metrics: Metrics::default(),
        }
    }

    /// Adds what all replicas of this node count to a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        registry.register(
            "replica_restarts",
            "Replicas started again after they failed",
            self.metrics.restarts.clone(),
        );
        registry.register(
            "duplicate_batches",
            "Batches of idempotent producers that had been appended before",
            self.metrics.duplicates.clone(),
        );
        registry.register(
            "append_room_waits",
            "Pauses of appends that waited for a checkpoint to make room",
            self.metrics.room_waits.clone(),
        );
    }

    /// Starts the replica of a partition, creating its log where it is absent, and forms its group of `voters` where it
    /// never was. Where the partition is damaged, the handle answers with the damage.
    ///
    /// # Errors
    /// Where the log cannot be created or read.
    pub async fn start(
        &self,
        key: PartitionKey,
        voters: &[NodeId],
        config: TopicConfig,
    ) -> Result<Partition, AppendError> {
        let store = Arc::clone(&self.store);
        let opening = blocking(&self.store, move || match store.partition(key) {
            Some(log) => {
                log.set_config(config);
                Ok(log)
            }
            None => store.create_partition(key, config),
        });
        let log = opening
            .await
            .map_err(|error| AppendError::Fatal(error.to_string()))?
            .map_err(|error: OpenError| self.not_opened(&error))?;
        let starter = Starter {
            network: Network {
                key,
                transport: Arc::clone(&self.transport),
            },
            voters: voters.iter().map(|v| (v.get(), EmptyNode {})).collect(),
        };
        let handle = |group, replica| {
            let (store, metrics) = (Arc::clone(&self.store), self.metrics.clone());
            Inner::new(group, store, metrics, replica)
        };
        if log.damage().is_some() {
            let group = Group::unserved(self.node, log);
            return Ok(Partition::new(handle(group, Replica::Ended)));
        }
        let group = Group::load(self.node, log).map_err(|e| AppendError::Fatal(e.to_string()))?;
        let running = starter.start(&group).await.map_err(AppendError::Fatal)?;
        let inner = handle(group, Replica::Running(running.clone()));
        tokio::spawn(keep(Arc::clone(&inner), starter, running));
        Ok(Partition::new(inner))
    }

    fn not_opened(&self, error: &OpenError) -> AppendError {
        match self.store.failure() {
            Some(failure) => failure.into(),
            None => AppendError::Fatal(error.to_string()),
        }
    }
}

/// What it takes to start a group's replica, the first time and again.
#[derive(Debug)]
struct Starter {
    network: Network,
    /// Who votes where the group is formed.
    voters: BTreeMap<u64, EmptyNode>,
}

impl Starter {
    async fn start(&self, group: &Arc<Group>) -> Result<Running, String> {
        let membership = newest_membership(group).await?;
        let formed = membership.voter_ids().next().is_some();
        let alone = if formed {
            is_alone(&membership)
        } else {
            self.voters.len() == 1
        };
        let raft = Raft::new(
            group.node.get(),
            // A group of one needs no clock: nobody else could be elected, and it asks for its election below.
            config(!alone).map_err(|e| e.to_string())?,
            self.network.clone(),
            LogStore::new(Arc::clone(group), &membership),
            StateMachine::new(Arc::clone(group)),
        )
        .await
        .map_err(|e| e.to_string())?;
        if formed {
            if alone {
                let electing = raft.trigger().elect(false).await;
                electing.map_err(|e| e.to_string())?;
            }
        } else {
            match raft.initialize(self.voters.clone()).await {
                // A group that others formed meanwhile is as good.
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        let server = raft.server_metrics();
        Ok(Running { raft, server })
    }
}

fn is_alone(membership: &Membership) -> bool {
    membership.voter_ids().count() == 1 && membership.learner_ids().next().is_none()
}

async fn newest_membership(group: &Arc<Group>) -> Result<Membership, String> {
    // Nobody is a voter to begin with: the store is only read.
    let nobody = Membership::default();
    let mut log_store = LogStore::new(Arc::clone(group), &nobody);
    let mut state_machine = StateMachine::new(Arc::clone(group));
    let mut helper = StorageHelper::new(&mut log_store, &mut state_machine);
    let state = helper.get_membership().await.map_err(|e| e.to_string())?;
    Ok(state.effective().membership().clone())
}

/// Keeps a replica running until it is shut down: restarts it when it failed, switches its clock on once it is no longer
/// alone, and does what trim entries ask for.
async fn keep(inner: Arc<Inner>, starter: Starter, mut running: Running) {
    let mut trim_wanted = inner.group.trim_wanted.subscribe();
    // What was applied before this task ran counts too.
    trim_wanted.mark_changed();
    let key = inner.group.log.key();
    loop {
        tokio::select! {
            changed = running.server.changed() => match changed {
                Ok(()) => {
                    let membership = running.server.borrow_watched().membership_config.clone();
                    let alone = is_alone(membership.membership());
                    running.raft.runtime_config().tick(!alone);
                }
                Err(_) => match restart(&inner, &starter, &running).await {
                    Some(again) => running = again,
                    None => return,
                },
            },
            // The sender lives in what this task holds.
            _ = trim_wanted.changed() => {
                let before = *trim_wanted.borrow_and_update();
                let wanted = before > inner.group.log.state().start_offset;
                if wanted && let Err(error) = trim(&inner, &running.raft, before).await {
                    tracing::warn!(partition = %key, %error, "retention did not finish; the next trim tries again");
                }
                inner.group.trimmed.send_replace(before);
            }
        }
    }
}

/// Starts a replica again whose core ended; `None` where it is to stay so.
async fn restart(inner: &Arc<Inner>, starter: &Starter, ended: &Running) -> Option<Running> {
    let key = inner.group.log.key();
    let mut pause = FIRST_PAUSE;
    let mut reason = match ended.raft.metrics().borrow_watched().running_state.clone() {
        Err(error) => error.to_string(),
        Ok(()) => "its core ended".to_owned(),
    };
    loop {
        {
            let mut replica = inner.replica.write();
            if matches!(*replica, Replica::Ended) {
                return None;
            }
            let beyond_help = inner.store.failure().is_some() || inner.group.log.damage().is_some();
            if beyond_help {
                tracing::error!(partition = %key, reason, "the replica ended");
                *replica = Replica::Ended;
                return None;
            }
            tracing::error!(partition = %key, reason, "the replica failed and is started again");
            *replica = Replica::Failed(reason);
        }
        tokio::time::sleep(pause).await;
        pause = LAST_PAUSE.min(pause * 2);
        inner.metrics.restarts.inc();
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
    let Some(last) = inner.group.mark_purgeable() else {
        return Ok(());
    };
    let index = last.index;
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
