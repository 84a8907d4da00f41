//! Handing leadership over on purpose.

use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use quipu_model::{NodeId, Term};
use tokio::time::Instant;

use crate::{error::AppendError, partition::Partition, running::Running};

/// A follower that lacks more entries than this is not waited for.
const MOST_BEHIND: u64 = 4096;
/// How long a follower may take to give a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);
/// How long the door is kept closed, for a follower to get the last entries.
const CATCH_UP: Duration = Duration::from_secs(1);

impl Partition {
    /// On the leader: hands leadership over to `to`. Returns once another replica leads, as a rule that one. Nothing is taken
    /// in meanwhile; what was taken in before is acknowledged, or lost to the next leader like in any change.
    ///
    /// # Errors
    /// [`AppendError::Refused`] where `to` is no voter, does not answer or is far behind. After a timeout another
    /// replica may still come to lead.
    pub async fn transfer_leader(&self, to: NodeId, timeout: Duration) -> Result<(), AppendError> {
        let deadline = Instant::now() + timeout;
        let (running, term) = self.leading()?;
        if running.node() == to {
            return Ok(());
        }
        let transferring = async {
            self.confirm_leading(&running, deadline).await?;
            self.check_target(&running, to).await?;
            self.transfer(&running, term, to, deadline).await
        };
        match tokio::time::timeout_at(deadline, transferring).await {
            Ok(result) => result,
            Err(_) => Err(AppendError::TimedOut(timeout)),
        }
    }

    /// On the leader: hands leadership over to the voter that is furthest. `false`: nobody is there to take it.
    ///
    /// # Errors
    /// As with [`Partition::transfer_leader`].
    pub async fn hand_over(&self, timeout: Duration) -> Result<bool, AppendError> {
        let deadline = Instant::now() + timeout;
        let (running, _) = self.leading()?;
        if self.confirm_leading(&running, deadline).await.is_err() {
            return Ok(false);
        }
        let voters = running.members().voters;
        let mut others = running.progress();
        others.retain(|other| voters.contains(&other.node));
        others.sort_by_key(|other| std::cmp::Reverse(other.matched));
        for other in others {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.transfer_leader(other.node, left).await {
                Err(AppendError::Refused { .. }) => {}
                // Nobody answers any more.
                Err(AppendError::NotLeader { leader: None, .. }) => return Ok(false),
                result => return result.map(|()| true),
            }
        }
        Ok(false)
    }

    /// A leader that began to hand over never goes back: it takes nothing in until somebody else leads. So whoever is to
    /// must be able to.
    async fn check_target(&self, running: &Running, to: NodeId) -> Result<(), AppendError> {
        if !running.members().voters.contains(&to) {
            return Err(self.refused(format!(
                "node {to} is none of the replicas that may lead it"
            )));
        }
        if !running.is_alive(to, SIGN_OF_LIFE).await {
            return Err(self.refused(format!("node {to} does not answer")));
        }
        match running.behind(to) {
            Some(entries) if entries <= MOST_BEHIND => Ok(()),
            _ => Err(self.refused(format!("node {to} is far behind"))),
        }
    }

    async fn transfer(
        &self,
        running: &Running,
        term: Term,
        to: NodeId,
        deadline: Instant,
    ) -> Result<(), AppendError> {
        {
            // With the door closed the follower gets all there is.
            let _door = self.inner().door.lock().await;
            let caught_up = async {
                let mut data = running.data.clone();
                while running.behind(to) != Some(0) {
                    data.changed().await.ok()?;
                }
                Some(())
            };
            let patience = deadline.min(Instant::now() + CATCH_UP);
            let caught_up = tokio::time::timeout_at(patience, caught_up).await;
            if caught_up.ok().flatten().is_none() {
                return Err(self.refused(format!("node {to} does not catch up")));
            }
            let transferring = running.raft.trigger().transfer_leader(to.get()).await;
            transferring.map_err(|error| AppendError::Fatal(error.to_string()))?;
        }
        let epoch = term.leader_epoch();
        let mut leadership = self.leadership();
        let another = leadership.wait_for(|now| now.epoch > epoch && now.leader.is_some());
        // The sender lives as long as this handle.
        drop(another.await);
        Ok(())
    }
}

impl Running {
    /// How many entries a follower lacks; `None` where that is not known.
    fn behind(&self, node: NodeId) -> Option<u64> {
        let progress = self.progress();
        let follower = progress.iter().find(|follower| follower.node == node)?;
        let (last, matched) = (follower.last?, follower.matched?);
        Some(last.get().saturating_sub(matched.get()))
    }
}
