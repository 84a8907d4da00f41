//! What the leader of a partition sees to: that its group has the replicas that are wanted, and that the preferred one leads.

use std::{collections::BTreeSet, collections::HashSet, sync::Arc, time::Duration};

use quipu_model::NodeId;
use quipu_proto::peer::v1::{FinishReassignment, change_request::Change};
use quipu_replication::{AppendError, Partition, Settled};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior},
};

use super::MetadataMembers;
use crate::{core::Core, error::BrokerError, metadata::Assignment, standing::is_near};

/// Sees to the partitions that this node leads, until it stops.
#[derive(Debug)]
pub(crate) struct Steward {
    pub(crate) core: Arc<Core>,
    pub(crate) members: MetadataMembers,
    /// Woken when this node begins to lead a partition.
    pub(crate) wake: Arc<Notify>,
    /// The nodes that are linked to.
    pub(crate) linked: watch::Receiver<HashSet<NodeId>>,
}

/// Why a partition has not moved yet.
#[derive(Debug, thiserror::Error)]
enum MoveError {
    #[error(transparent)]
    Group(#[from] AppendError),
    #[error(transparent)]
    Metadata(#[from] BrokerError),
}

impl Steward {
    /// How often it looks whether what could not be done before can be done now.
    const INTERVAL: Duration = Duration::from_secs(2);
    /// How often leaders return to where they are preferred.
    const PREFERENCE_INTERVAL: Duration = Duration::from_secs(10);
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Runs until the node stops.
    pub(crate) async fn run(self) {
        let mut applied = self.core.metadata.applied();
        let mut ticks = tokio::time::interval(Self::INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut preferred = Instant::now() + Self::PREFERENCE_INTERVAL;
        loop {
            tokio::select! {
                () = self.core.stop.cancelled() => return,
                changed = applied.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                _ = ticks.tick() => {}
            }
            applied.mark_unchanged();
            if let Err(error) = self.members.see_to().await {
                tracing::info!(%error, "the metadata's group is not as wanted yet");
            }
            self.move_partitions().await;
            if Instant::now() >= preferred {
                preferred = Instant::now() + Self::PREFERENCE_INTERVAL;
                self.return_leaders().await;
            }
        }
    }

    async fn move_partitions(&self) {
        for entry in self.core.table.snapshot().values() {
            if entry.topic.is_everywhere() {
                continue;
            }
            for (assignment, running) in entry.assigned() {
                let partition = &running.partition;
                if !assignment.is_moving() || !partition.is_leader() {
                    continue;
                }
                match self.step(assignment, partition).await {
                    Ok(true) => {
                        tracing::info!(topic = %entry.topic.name, key = %partition.key(), replicas = ?assignment.replicas, "a partition has moved");
                    }
                    Ok(false) => {}
                    Err(error) => {
                        tracing::info!(topic = %entry.topic.name, key = %partition.key(), %error, "a partition is still to move");
                    }
                }
            }
        }
    }

    /// Does what can be done at once towards a move; whether it is done.
    async fn step(
        &self,
        assignment: &Assignment,
        partition: &Partition,
    ) -> Result<bool, MoveError> {
        let wanted: BTreeSet<NodeId> = assignment.replicas.iter().copied().collect();
        let members = partition.members().borrow().clone();
        if members.voters != wanted || members.changing {
            let missing = wanted
                .iter()
                .filter(|node| !members.voters.contains(node) && !members.learners.contains(node));
            for node in missing {
                partition.add_learner(*node, Self::PATIENCE).await?;
            }
            let ready = |node: &NodeId| self.may_vote(assignment, partition, *node);
            if !wanted.iter().all(ready) {
                return Ok(false);
            }
            if !wanted.contains(&self.core.node) {
                self.hand_over(assignment, partition).await?;
                return Ok(false);
            }
            partition
                .change_voters(&assignment.replicas, Self::PATIENCE)
                .await?;
        }
        for node in members.learners.difference(&wanted) {
            partition.remove_learner(*node, Self::PATIENCE).await?;
        }
        let key = partition.key();
        // Who else became a learner meanwhile leaves with the next step.
        let settled = partition.settled(&wanted, Self::PATIENCE).await?;
        let Some(Settled { leader, index }) = settled else {
            return Ok(false);
        };
        let finish = FinishReassignment {
            topic_id: key.topic.as_bytes().to_vec().into(),
            partition: key.partition.get(),
            replicas: assignment.replicas.iter().map(|node| node.get()).collect(),
            leader: leader.node.get(),
            term: leader.term.get(),
            index: index.get(),
        };
        let controller = self.core.controller()?;
        controller
            .change(Change::FinishReassignment(finish))
            .await?;
        Ok(true)
    }

    /// Lets a replica lead that stays, which then takes this one out: a leader that took itself out would leave its group
    /// without one until an election.
    async fn hand_over(
        &self,
        assignment: &Assignment,
        partition: &Partition,
    ) -> Result<(), MoveError> {
        let Some(next) = assignment.replicas.first().copied() else {
            return Ok(());
        };
        let mut voters = assignment.replicas.to_vec();
        voters.push(self.core.node);
        let wanted: BTreeSet<NodeId> = voters.iter().copied().collect();
        let members = partition.members().borrow().clone();
        if members.voters != wanted || members.changing {
            partition.change_voters(&voters, Self::PATIENCE).await?;
        }
        partition.transfer_leader(next, Self::PATIENCE).await?;
        Ok(())
    }

    /// Whether a replica has nearly all that the leader has, and what it must have to vote: it may have come back without its
    /// files, and before that the group could wait for its vote in vain.
    fn may_vote(&self, assignment: &Assignment, partition: &Partition, node: NodeId) -> bool {
        let needed = assignment.settled.map(|settled| settled.index);
        let progress = partition.progress();
        let mut follower = progress.iter().filter(|follower| follower.node == node);
        node == self.core.node
            || follower.any(|follower| is_near(follower) && follower.matched >= needed)
    }

    /// Hands over what another node is preferred to lead.
    async fn return_leaders(&self) {
        for entry in self.core.table.snapshot().values() {
            for (assignment, running) in entry.assigned() {
                let partition = &running.partition;
                let Some(preferred) = assignment.replicas.first().copied() else {
                    continue;
                };
                let here = preferred == self.core.node;
                if here || assignment.is_moving() || !partition.is_leader() {
                    continue;
                }
                let voter = partition.members().borrow().voters.contains(&preferred);
                let up = self.linked.borrow().contains(&preferred);
                if voter
                    && up
                    && self.may_vote(assignment, partition, preferred)
                    && !entry.topic.is_everywhere()
                {
                    let handed = partition.transfer_leader(preferred, Self::PATIENCE).await;
                    if let Err(error) = handed {
                        tracing::info!(key = %partition.key(), %preferred, %error, "the preferred leader does not lead yet");
                    }
                }
            }
        }
    }
}
