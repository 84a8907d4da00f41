//! Who belongs to a partition's group, who leads it, and how that changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use openraft::{
    ChangeMembers, EmptyNode, Precondition,
    async_runtime::watch::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
    metrics::RaftServerMetrics,
};
use quipu_model::{LeaderEpoch, NodeId, RaftIndex, Vote};
use tokio::{sync::watch, time::Instant};

use crate::{
    error::AppendError,
    flight::Loss,
    partition::Partition,
    running::Running,
    type_config::{Membership, Types},
};

/// Who leads a partition, as far as this replica knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The leader, where one is known.
    pub leader: Option<NodeId>,
    /// The newest epoch known; where there is a leader, its own.
    pub epoch: LeaderEpoch,
    /// This replica leads and has applied an entry of its term: its high watermark covers all that was ever acknowledged.
    pub ready: bool,
}

/// The nodes of a partition's group, as of the newest entry in this replica's log that says so.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Members {
    /// Who votes; while the voters change, those of before and after.
    pub voters: BTreeSet<NodeId>,
    /// Who is sent everything and does not vote.
    pub learners: BTreeSet<NodeId>,
    /// A change of voters is under way.
    pub changing: bool,
}

impl Members {
    pub(crate) fn of(membership: &Membership) -> Self {
        Self {
            voters: membership.voter_ids().map(NodeId::new).collect(),
            learners: membership.learner_ids().map(NodeId::new).collect(),
            changing: membership.get_joint_config().len() > 1,
        }
    }
}

/// A point in a group's history at which its members were those that were wanted, and everybody else was out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The leader that saw it. Whoever does not know of it can only have led before, in a lower term.
    pub leader: Vote,
    /// The committed entry that says who the members are. Whoever does not know of it has a log that ends before.
    pub index: RaftIndex,
}

/// How far another member got, as its leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerProgress {
    /// The member.
    pub node: NodeId,
    /// Up to where its log is flushed and agrees with the leader's; `None` where that is not known yet.
    pub matched: Option<RaftIndex>,
    /// The leader's last entry.
    pub last: Option<RaftIndex>,
}

/// How long to wait before a change is tried again that another one got ahead of.
const CHANGE_PAUSE: Duration = Duration::from_millis(10);

/// Whether a change of members is under way.
fn is_changing(server: &RaftServerMetrics<Types>) -> bool {
    server.membership_config.log_id() != server.committed_membership_config.log_id()
}

type Change = ChangeMembers<u64, EmptyNode>;

impl Partition {
    /// Who leads, as it changes. Also a replica that was started again tells through it; one that was shut down knows of no
    /// leader.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner().leadership.subscribe()
    }

    /// The group's members, as they change.
    pub fn members(&self) -> watch::Receiver<Members> {
        self.inner().members.subscribe()
    }

    /// On the leader: where it stands once no change of members is under way. `None` where the members are then not these, who
    /// all vote.
    ///
    /// # Errors
    /// Where it does not lead, or a change is still under way when the time is up.
    pub async fn settled(
        &self,
        voters: &BTreeSet<NodeId>,
        timeout: Duration,
    ) -> Result<Option<Settled>, AppendError> {
        let (mut running, _) = self.leading()?;
        let settling = async {
            while is_changing(&running.server.borrow_watched()) {
                if running.server.changed().await.is_err() {
                    return Err(self.lost(Loss::Stopped));
                }
            }
            let term = running.leading().map_err(|other| self.not_leader(other))?;
            let leader = Vote {
                term,
                node: running.node(),
                committed: true,
            };
            let stored = running.server.borrow_watched().membership_config.clone();
            let members = Members::of(stored.membership());
            let id = stored.log_id().as_ref();
            let index = id.map_or(RaftIndex::default(), |id| RaftIndex::new(id.index));
            let as_wanted = members.voters == *voters && members.learners.is_empty();
            Ok(as_wanted.then_some(Settled { leader, index }))
        };
        let settled = tokio::time::timeout(timeout, settling).await;
        settled.unwrap_or(Err(AppendError::TimedOut(timeout)))
    }

    /// How far the other members got. Empty where this replica does not lead.
    pub fn progress(&self) -> Vec<FollowerProgress> {
        let leading = self.leading();
        leading.map_or_else(|_| Vec::new(), |(running, _)| running.progress())
    }

    /// On the leader: makes a node a member that is sent everything and does not vote. Returns once that is committed, which
    /// may be long before the node caught up. Of a node that is a member, nothing changes.
    ///
    /// # Errors
    /// After a timeout the change may still be made.
    pub async fn add_learner(&self, node: NodeId, timeout: Duration) -> Result<(), AppendError> {
        let node = node.get();
        let change = Change::AddNodes(BTreeMap::from([(node, EmptyNode {})]));
        let is_member = move |members: &Membership| members.get_node(&node).is_some();
        self.change_members(change, is_member, timeout).await
    }

    /// On the leader: makes these, all of them members, the voters. Returns once that is committed. Who was a voter and is
    /// not in the list leaves the group; learners that are not in it stay. A leader that is not in it hands over and leaves.
    ///
    /// It takes two steps, between which majorities of the voters before and after decide together. Where the leader is lost
    /// between them, the group stays there until its next leader is asked for a change. Who was a voter before the change that
    /// was cut off, and is in neither list since, is then a learner.
    ///
    /// # Errors
    /// After a timeout the change may still be made.
    pub async fn change_voters(
        &self,
        voters: &[NodeId],
        timeout: Duration,
    ) -> Result<(), AppendError> {
        let voters: BTreeSet<u64> = voters.iter().map(|voter| voter.get()).collect();
        let change = Change::ReplaceAllVoters(voters.clone());
        let are_voters = move |members: &Membership| match &members.get_joint_config()[..] {
            [only] => *only == voters,
            _ => false,
        };
        self.change_members(change, are_voters, timeout).await
    }

    /// On the leader: removes a learner from the group. Where the node is no member, nothing changes; a voter is refused.
    ///
    /// # Errors
    /// After a timeout the change may still be made.
    pub async fn remove_learner(&self, node: NodeId, timeout: Duration) -> Result<(), AppendError> {
        let node = node.get();
        let change = Change::RemoveNodes(BTreeSet::from([node]));
        let is_gone = move |members: &Membership| members.get_node(&node).is_none();
        self.change_members(change, is_gone, timeout).await
    }

    async fn change_members(
        &self,
        change: Change,
        is_done: impl Fn(&Membership) -> bool,
        timeout: Duration,
    ) -> Result<(), AppendError> {
        let deadline = Instant::now() + timeout;
        let changing = async {
            loop {
                let (mut running, _) = self.leading()?;
                self.confirm_leading(&running, deadline).await?;
                let settled = {
                    let server = running.server.borrow_watched();
                    let done = is_done(server.membership_config.membership());
                    (!is_changing(&server)).then_some(done)
                };
                match settled {
                    Some(true) => return Ok(()),
                    Some(false) => match self.try_change(&running, change.clone()).await {
                        Some(result) => {
                            result?;
                            // Whoever asks next is to see it.
                            let mut server = running.server.clone();
                            while !is_done(server.borrow_watched().membership_config.membership())
                                && running.leading().is_ok()
                                && server.changed().await.is_ok()
                            {}
                            return Ok(());
                        }
                        // Another change came first.
                        None => tokio::time::sleep(CHANGE_PAUSE).await,
                    },
                    // One change at a time: this one's turn comes when the one under way is committed.
                    None => {
                        while is_changing(&running.server.borrow_watched())
                            && running.leading().is_ok()
                        {
                            let ended = running.server.changed().await.is_err();
                            if ended {
                                return Err(self.lost(Loss::Stopped));
                            }
                        }
                    }
                }
            }
        };
        match tokio::time::timeout_at(deadline, changing).await {
            Ok(result) => result,
            Err(_) => Err(AppendError::TimedOut(timeout)),
        }
    }

    /// Proposes a change; `None` where another one was in its way.
    async fn try_change(
        &self,
        running: &Running,
        change: Change,
    ) -> Option<Result<(), AppendError>> {
        let term = running.leading().ok()?.get();
        let raft = running.raft.clone();
        // On a task of its own: whoever asks may give up, but what began must not stop between its two steps.
        let changing = tokio::spawn(async move {
            let same_leader = Precondition::<Types>::CommittedLeaderId {
                committed_leader_id: term.into(),
            };
            let changed = raft.change_membership_if(change, false, [same_leader]);
            changed.await.map(drop)
        });
        let refused = match changing.await {
            Ok(Ok(())) => return Some(Ok(())),
            Ok(Err(RaftError::APIError(refused))) => refused,
            Ok(Err(RaftError::Fatal(_))) | Err(_) => return Some(Err(self.lost(Loss::Stopped))),
        };
        let error = match refused {
            ClientWriteError::PreconditionFailed(_)
            | ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => {
                return None;
            }
            ClientWriteError::ForwardToLeader(to) => self.not_leader(to.leader_id.map(NodeId::new)),
            ClientWriteError::LogEntryDiscarded(_) => self.lost(Loss::Superseded),
            ClientWriteError::ChangeMembershipError(error) => self.refused(error.to_string()),
        };
        Some(Err(error))
    }

    pub(crate) fn refused(&self, reason: String) -> AppendError {
        let key = self.key();
        AppendError::Refused { key, reason }
    }
}
