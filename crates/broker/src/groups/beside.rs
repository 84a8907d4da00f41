//! The groups of one partition without a node around it, for who drives replicas by itself: the simulator.

use std::{fmt, sync::Arc};

use quipu_model::{NodeId, PartitionKey, TopicId};
use quipu_replication::Partition;
use quipu_storage::io::Clock;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Commit, Committed, Committer, ConsumerHeartbeat, GroupError, GroupId, HeartbeatAnswer, Limits,
    MemberId,
    shard::{Server, Shard},
    topics::{TopicView, TopicsView},
};
use crate::front::GroupFailure;

/// Serves groups beside a replica of the internal topic while that leads, until it is dropped.
pub struct GroupPartition {
    shard: Arc<Shard>,
    _serves: DropGuard,
}

impl fmt::Debug for GroupPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupPartition")
    }
}

impl GroupPartition {
    /// Begins to serve. There is one topic to subscribe to: of this name, with so many partitions.
    pub fn beside(
        node: NodeId,
        partition: Partition,
        clock: Arc<dyn Clock>,
        (name, id, partitions): (&str, TopicId, usize),
    ) -> Self {
        let topic = TopicView {
            id,
            racks: vec![[].into(); partitions],
        };
        let topics = Arc::new(TopicsView::new([(name.into(), topic)]));
        let stopped = CancellationToken::new();
        let shard = Arc::new(Shard::new());
        let server = Server {
            node,
            partition,
            stopped: stopped.clone(),
            clock,
            limits: Limits::default(),
            shard: Arc::clone(&shard),
            topics: watch::Sender::new(topics).subscribe(),
            started: Instant::now(),
        };
        tokio::spawn(server.run());
        Self {
            shard,
            _serves: stopped.drop_guard(),
        }
    }

    /// A member joins, or gives a sign of life.
    ///
    /// # Errors
    /// Where it is refused, or this replica does not lead.
    pub async fn beat(
        &self,
        group: GroupId,
        beat: ConsumerHeartbeat,
    ) -> Result<HeartbeatAnswer, GroupFailure> {
        let beating = self
            .shard
            .call(move |coordinator, now, effects| coordinator.beat(now, &group, &beat, effects));
        Ok(beating.await??)
    }

    /// A member leaves.
    ///
    /// # Errors
    /// Where it is not known, or this replica does not lead.
    pub async fn depart(&self, group: GroupId, member: MemberId) -> Result<(), GroupFailure> {
        let departing = self.shard.call(move |coordinator, now, effects| {
            coordinator.depart(now, &group, (&member, None), false, effects)
        });
        Ok(departing.await??)
    }

    /// Stores offsets. Answers with those that were refused.
    ///
    /// # Errors
    /// Where none was stored.
    pub async fn commit(
        &self,
        group: GroupId,
        committer: Committer,
        offsets: Vec<(PartitionKey, Committed)>,
    ) -> Result<Vec<(PartitionKey, GroupError)>, GroupFailure> {
        let commit = Commit { committer, offsets };
        let committing = self.shard.call(move |coordinator, now, effects| {
            coordinator.commit(now, &group, commit, effects)
        });
        Ok(committing.await??)
    }

    /// The offsets that are stored.
    ///
    /// # Errors
    /// Where this replica does not lead for certain.
    pub async fn fetch(
        &self,
        group: GroupId,
    ) -> Result<Vec<(PartitionKey, Committed)>, GroupFailure> {
        let fetching = self
            .shard
            .look(move |coordinator| coordinator.fetch(&group, None));
        Ok(fetching.await?)
    }
}
