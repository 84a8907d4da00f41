//! The openraft instance that runs a replica at present, and what it says of itself.

use std::{fmt, time::Duration};

use futures::FutureExt;
use openraft::{
    Instant, ServerState, TokioInstant,
    alias::{VoteOf, WatchReceiverOf},
    async_runtime::watch::WatchReceiver as _,
    metrics::{RaftDataMetrics, RaftServerMetrics},
    raft::linearizable_read::LinearizerOption,
};
use quipu_model::{NodeId, RaftIndex, Term};

use crate::{
    config::LEASE,
    members::{FollowerProgress, Leadership, Members},
    parts::{SleepParts, VoteOutcome},
    sleep::QuietPoint,
    type_config::{
        Membership, Raft, Types, from_raft_id, from_raft_vote, is_sole_voter, to_raft_id,
        to_raft_vote,
    },
};

/// Past this age of a majority's last answer, leadership is confirmed before anything is proposed. While the clock is on,
/// answers are never so old where a majority is reached.
const FRESH: Duration = Duration::from_millis(LEASE.as_millis() as u64 / 2);

/// After so long without a majority's answers, the others have replaced a leader that they don't hear.
pub(crate) const FORSAKEN: Duration = Duration::from_millis(LEASE.as_millis() as u64 * 2);

/// An openraft instance. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) raft: Raft,
    pub(crate) server: WatchReceiverOf<Types, RaftServerMetrics<Types>>,
    pub(crate) data: WatchReceiverOf<Types, RaftDataMetrics<Types>>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Running")
    }
}

impl Running {
    pub(crate) fn new(raft: Raft) -> Self {
        let (server, data) = (raft.server_metrics(), raft.data_metrics());
        Self { raft, server, data }
    }

    /// The term that this replica leads, or who does.
    pub(crate) fn leading(&self) -> Result<Term, Option<NodeId>> {
        let server = self.server.borrow_watched();
        if server.state == ServerState::Leader {
            Ok(Term::new(server.vote.leader_id().term))
        } else {
            // A leader that left the group takes itself for its leader ever after.
            let other = server.current_leader.filter(|leader| *leader != server.id);
            Err(other.map(NodeId::new))
        }
    }

    /// Who leads; `applied` is the term of the last entry applied.
    pub(crate) fn leadership(&self, applied: Term) -> Leadership {
        let server = self.server.borrow_watched();
        let vote = server.vote.leader_id();
        let leads = server.state == ServerState::Leader;
        // A leader is heard of before the vote for it is stored: the epoch given with it must be its own. And a leader that
        // left the group takes itself for its leader ever after.
        let stored = server.vote.is_committed();
        let followed = server.current_leader.filter(|leader| {
            leads || (stored && *leader == vote.voted_for && *leader != server.id)
        });
        Leadership {
            leader: followed.map(NodeId::new),
            epoch: Term::new(vote.term).leader_epoch(),
            ready: leads && followed.is_some() && applied.get() == vote.term,
        }
    }

    pub(crate) fn vote(&self) -> VoteOf<Types> {
        self.server.borrow_watched().vote
    }

    pub(crate) fn members(&self) -> Members {
        let server = self.server.borrow_watched();
        Members::of(server.membership_config.membership())
    }

    /// How far each of the others got, as the leader knows it.
    pub(crate) fn progress(&self) -> Vec<FollowerProgress> {
        let own = self.server.borrow_watched().id;
        let data = self.data.borrow_watched();
        let last = data.last_log.map(|id| RaftIndex::new(id.index));
        let Some(replication) = &data.replication else {
            return Vec::new();
        };
        let others = replication.iter().filter(|(node, _)| **node != own);
        others
            .map(|(&node, matched)| FollowerProgress {
                node: NodeId::new(node),
                matched: matched.map(|id| RaftIndex::new(id.index)),
                last,
            })
            .collect()
    }

    /// Asks all members for a sign of life; whether a node gives one before the time is up.
    pub(crate) async fn is_alive(&self, node: NodeId, patience: Duration) -> bool {
        let asked = TokioInstant::now();
        let mut data = self.data.clone();
        let answering = async {
            while !answered_since(&data.borrow_watched(), node, asked) {
                data.changed().await.ok()?;
            }
            Some(())
        };
        let both = async { tokio::join!(self.ask_majority(patience), answering).1 };
        let answered = tokio::time::timeout(patience, both).await;
        answered.ok().flatten().is_some()
    }

    /// Makes sure that a majority still follows this leader, where that is not known by answers of late: openraft refuses
    /// what is proposed to a leader that was not answered for [`LEASE`].
    ///
    /// # Errors
    /// Where no majority answers in time: who leads, as far as that is known.
    pub(crate) async fn confirm(&self, patience: Duration) -> Result<(), Option<NodeId>> {
        if self.is_confirmed() || self.ask_majority(patience).await {
            Ok(())
        } else {
            Err(self.leading().err().flatten())
        }
    }

    /// Sends all members a heartbeat; whether a majority answers in time.
    pub(crate) async fn ask_majority(&self, patience: Duration) -> bool {
        let option = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(patience);
        // Boxed, as openraft's futures are deep, and this one is within most of what callers do.
        self.raft.get_read_linearizer(option).boxed().await.is_ok()
    }

    fn is_confirmed(&self) -> bool {
        let answered = self.data.borrow_watched().last_quorum_acked;
        answered.is_some_and(|at| is_fresh(*at)) || self.votes_alone()
    }

    /// Whether nobody else votes.
    pub(crate) fn votes_alone(&self) -> bool {
        let server = self.server.borrow_watched();
        is_sole_voter(server.id, server.membership_config.membership())
    }

    /// Whether this replica takes itself for the leader, and no majority has answered it for so long that the others have
    /// another by now.
    pub(crate) fn is_forsaken(&self) -> bool {
        self.leads_unheard_for(FORSAKEN)
    }

    /// Whether this replica takes itself for the leader, and no majority has answered what it sent within [`LEASE`]: from then
    /// on they may vote for another.
    pub(crate) fn may_be_deposed(&self) -> bool {
        self.leads_unheard_for(LEASE)
    }

    fn leads_unheard_for(&self, time: Duration) -> bool {
        let server = self.server.borrow_watched();
        let answered = self.data.borrow_watched().last_quorum_acked;
        server.state == ServerState::Leader
            && answered.is_some_and(|at| at.elapsed() > time)
            && !is_sole_voter(server.id, server.membership_config.membership())
    }

    pub(crate) fn node(&self) -> NodeId {
        NodeId::new(self.server.borrow_watched().id)
    }

    pub(crate) fn leads_others(&self) -> bool {
        let server = self.server.borrow_watched();
        let mut members = server.membership_config.membership().nodes();
        server.state == ServerState::Leader && members.any(|(node, _)| *node != server.id)
    }

    /// Whether this replica is a member without a vote.
    pub(crate) fn learns(&self) -> bool {
        let server = self.server.borrow_watched();
        let mut learners = server.membership_config.membership().learner_ids();
        learners.any(|learner| learner == server.id)
    }

    /// Where the group stands, where this replica leads others and nothing is left to do: all are at its last entry, and that
    /// is committed and applied.
    pub(crate) fn quiet_point(&self) -> Option<QuietPoint> {
        let progress = self.progress();
        let server = self.server.borrow_watched();
        let data = self.data.borrow_watched();
        let last = data.last_log?;
        let settled = server.state == ServerState::Leader
            && server.vote.is_committed()
            && server.membership_config.log_id() == server.committed_membership_config.log_id()
            && data.cluster_committed == Some(last)
            && data.last_applied == Some(last);
        let all_there = progress
            .iter()
            .all(|other| other.matched.map(RaftIndex::get) == Some(last.index));
        (settled && all_there && !progress.is_empty()).then(|| QuietPoint {
            leader: from_raft_vote(&server.vote),
            last: from_raft_id(&last),
            others: progress.iter().map(|other| other.node).collect(),
        })
    }

    /// Whether all others answered this leader of late.
    pub(crate) fn hears_all(&self) -> bool {
        let own = self.server.borrow_watched().id;
        let data = self.data.borrow_watched();
        let mut answered = data.heartbeat.iter().flatten();
        answered.all(|(node, at)| *node == own || at.as_ref().is_some_and(|at| is_fresh(**at)))
    }

    /// Whether this replica follows the leader and has all that it has.
    pub(crate) fn rests_at(&self, point: SleepParts) -> bool {
        let server = self.server.borrow_watched();
        let data = self.data.borrow_watched();
        let last = Some(to_raft_id(point.last));
        matches!(server.state, ServerState::Follower | ServerState::Learner)
            && server.vote.is_committed()
            && server.vote == to_raft_vote(point.leader)
            && data.last_log == last
            && data.local_committed == last
            && data.last_applied == last
    }

    /// What refuses a vote and changes nothing.
    pub(crate) fn refusal(&self) -> VoteOutcome {
        let last = self.data.borrow_watched().last_log;
        VoteOutcome {
            vote: from_raft_vote(&self.server.borrow_watched().vote),
            granted: false,
            last: last.as_ref().map(from_raft_id),
        }
    }

    /// Switches the clock on where it is wanted and the replica needs one: as a leader of others, for heartbeats, and as a
    /// voter among others, for elections.
    pub(crate) fn set_clock(&self, wanted: bool) {
        let needed = wanted && {
            let server = self.server.borrow_watched();
            let members = server.membership_config.membership();
            let committed = server.committed_membership_config.membership();
            let votes = |members: &Membership| members.voter_ids().any(|voter| voter == server.id);
            if server.state == ServerState::Leader {
                members.nodes().any(|(node, _)| *node != server.id)
            } else {
                votes(members) || votes(committed)
            }
        };
        self.raft.runtime_config().tick(needed);
    }
}

fn answered_since(data: &RaftDataMetrics<Types>, node: NodeId, since: TokioInstant) -> bool {
    let answered = data.heartbeat.as_ref().and_then(|all| all.get(&node.get()));
    answered.is_some_and(|at| at.as_ref().is_some_and(|at| **at >= since))
}

fn is_fresh(answered: impl Instant) -> bool {
    answered.elapsed() < FRESH
}
