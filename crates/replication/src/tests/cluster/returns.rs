//! A node that a partition left, and that it comes back to, has forgotten what it promised and stored: nobody takes it for what
//! it was.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use quipu_model::{LogId, NodeId, RaftIndex, Term, Vote};
use quipu_storage::LogEntry;

use super::{super::LONG, Cluster, node};
use crate::{
    AppendOutcome, AppendParts, AppendRequest, Origin, Partition, Settled, VoteOutcome, VoteParts,
    VoteRequest,
};

/// Longer than a voter that hears of no leader takes to stand.
const STANDS: Duration = Duration::from_secs(2);

/// The group moved from a node to node 4 while another one was cut off, and the node it left is empty again.
struct Moved {
    cluster: Cluster,
    left: NodeId,
    missed: NodeId,
    /// Where the log of the node that missed the move ends.
    old: Option<LogId>,
    settled: Settled,
}

impl Moved {
    async fn start() -> Self {
        let mut cluster = Cluster::start().await;
        cluster.fill(0, 20).await;
        // Whoever led the first term is not the one who sees to the move.
        let [next, _] = cluster.followers().await;
        let (_, leader) = cluster.leader().await;
        leader.transfer_leader(next, LONG).await.unwrap();
        cluster.at(next).wait_leader(LONG).await.unwrap();
        cluster.fill(20, 40).await;
        cluster.hold_the_same(&[1, 2, 3], 0, 40).await;
        let mut others = [1, 2, 3].map(node).into_iter().filter(|n| *n != next);
        let (left, missed) = (others.next().unwrap(), others.next().unwrap());
        cluster.cut_off(missed);
        let old = cluster.at(missed).log().state().last;
        cluster.add(node(4), Origin::Joiner(None)).await;
        let leader = cluster.at(next);
        leader.add_learner(node(4), LONG).await.unwrap();
        let voters = [next, missed, node(4)];
        leader.change_voters(&voters, LONG).await.unwrap();
        cluster.fill(40, 60).await;
        let settled = cluster.at(next).settled(&voters.into(), LONG).await;
        let settled = settled.unwrap().unwrap();
        let gone = cluster.members.remove(&left).unwrap();
        gone.partition.shutdown().await;
        gone.store.close().unwrap();
        cluster.add(left, Origin::Joiner(Some(settled))).await;
        Self {
            cluster,
            left,
            missed,
            old,
            settled,
        }
    }

    fn back(&self) -> &Partition {
        self.cluster.at(self.left)
    }

    /// What the one that missed the move asks for in a term later than any.
    fn candidacy(&self) -> VoteRequest {
        let candidate = Vote {
            term: Term::new(self.settled.leader.term.get() + 50),
            node: self.missed,
            committed: false,
        };
        let (last, transfer) = (self.old, true);
        VoteParts {
            candidate,
            last,
            transfer,
        }
        .into()
    }

    async fn is_refused(&self) {
        let back = self.back();
        let vote = back.receive_vote(self.candidacy()).await.unwrap();
        let pre_vote = back.receive_pre_vote(self.candidacy()).await.unwrap();
        for answer in [vote, pre_vote] {
            assert!(!VoteOutcome::from(answer).granted);
        }
    }

    /// The entries that stood in the log before the move.
    fn old_entries(&self) -> Vec<LogEntry> {
        let log = self.cluster.at(self.settled.leader.node).log();
        let end = self.old.unwrap().index.get() + 1;
        let entries = log.entries(RaftIndex::new(0), RaftIndex::new(end), 1 << 20);
        entries.unwrap()
    }

    async fn append(&self, leader: Vote) -> AppendOutcome {
        let mut entries = self.old_entries();
        entries.retain(|entry| entry.id.term <= leader.term);
        let parts = AppendParts {
            leader,
            previous: None,
            committed: None,
            entries,
        };
        let request = AppendRequest::from_parts(parts).unwrap();
        let requests = futures::stream::iter([request]).boxed();
        let answer = self.back().receive_appends(requests).next().await.unwrap();
        answer.unwrap().into()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_has_no_vote_until_it_has_what_it_missed_also_after_a_crash() {
    let mut moved = Moved::start().await;
    moved.is_refused().await;
    let member = moved.cluster.members.remove(&moved.left).unwrap();
    member.partition.shutdown().await;
    member.store.close().unwrap();
    let disk = Arc::new(member.disk.fork(7));
    disk.crash();
    let cluster = &mut moved.cluster;
    cluster.run(moved.left, disk, Origin::Joiner(None)).await;
    moved.is_refused().await;
    let leader = moved.cluster.at(moved.settled.leader.node);
    leader.add_learner(moved.left, LONG).await.unwrap();
    moved
        .cluster
        .hold_the_same(&[4, moved.left.get()], 0, 60)
        .await;
    // By its own log, as any other, it refuses still.
    moved.is_refused().await;
    let voters = [node(4), moved.left];
    leader.change_voters(&voters, LONG).await.unwrap();
    moved.cluster.heal();
    moved.cluster.cut_off(moved.settled.leader.node);
    moved.cluster.fill(60, 80).await;
    moved
        .cluster
        .hold_the_same(&[4, moved.left.get()], 0, 80)
        .await;
    moved.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_follows_no_leader_of_before() {
    let moved = Moved::start().await;
    let leader = Vote {
        term: Term::new(moved.settled.leader.term.get() - 1),
        node: moved.missed,
        committed: true,
    };
    let answer = moved.append(leader).await;
    assert_eq!(answer, AppendOutcome::HigherVote(moved.settled.leader));
    assert_eq!(moved.back().log().state().last, None);
    moved.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_not_stand_where_its_log_says_that_it_votes() {
    let moved = Moved::start().await;
    let answer = moved.append(moved.settled.leader).await;
    assert_eq!(answer, AppendOutcome::Matched(moved.old));
    // Its log's members, of before the move, become known a little after they are stored.
    let mut members = moved.back().members();
    let votes = members.wait_for(|members| members.voters.contains(&moved.left));
    tokio::time::timeout(LONG, votes).await.unwrap().unwrap();
    // Only who missed the move is there, and would vote for it.
    moved.cluster.heal();
    for other in [moved.settled.leader.node, node(4)] {
        moved.cluster.cut_off(other);
    }
    assert!(moved.back().wait_leader(STANDS).await.is_err());
    moved.cluster.stop().await;
}
