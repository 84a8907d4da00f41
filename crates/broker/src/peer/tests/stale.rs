//! What a peer says that is out of date, or cannot be, is refused, and the replica keeps what it holds.

use std::sync::Arc;

use quipu_model::{LeaderEpoch, NodeId, Offset};
use quipu_proto::peer::v1::{
    Append, Entry, EntryKind, LogId, Request, Requests, Vote, VoteRequest, answer,
    append_answer::Outcome, request::Kind,
};
use quipu_replication::Partition;

use super::{
    super::{LANE_BYTES, caller::Caller, convert::to_group},
    LONG, Node, batch, key,
};

const fn id(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

/// What node 1 gave first: the entry after the one that names the members.
const HELD: LogId = id(5, 1);

fn vote(term: u64) -> Vote {
    Vote {
        term,
        node_id: 1,
        committed: true,
    }
}

fn entry(id: LogId, base_offset: u64) -> Entry {
    let batch = batch(100).stamped(Offset::new(base_offset), LeaderEpoch::new(5));
    Entry {
        term: id.term,
        index: id.index,
        kind: EntryKind::Batch.into(),
        data: batch.into_bytes(),
    }
}

fn append(term: u64, previous: LogId, entries: Vec<Entry>) -> Kind {
    Kind::Append(Append {
        leader: Some(vote(term)),
        previous: Some(previous),
        committed: None,
        entries,
    })
}

/// Node 2's replica, which holds one record that node 1 gave it in term 5.
struct Follower {
    node: Node,
    partition: Partition,
    caller: Arc<Caller>,
    calls: u64,
}

impl Follower {
    async fn start() -> Self {
        let node = Node::start(2).await;
        // The first founder forms the group at once.
        let founders = [2, 1].map(NodeId::new);
        let partition = node.take_part(&founders).await;
        let caller = Caller::new(NodeId::new(1), Arc::clone(&node.host) as _, LANE_BYTES);
        let mut follower = Self {
            node,
            partition,
            caller,
            calls: 0,
        };
        let first = append(5, id(0, 0), vec![entry(HELD, 0)]);
        assert!(matches!(
            follower.appended(first).await,
            Ok(Outcome::Matched(_))
        ));
        follower
    }

    /// The first answer to a call, once its last has come.
    async fn asked(&mut self, kind: Kind) -> answer::Kind {
        self.calls += 1;
        let request = Request {
            call: self.calls,
            group: Some(to_group(key())),
            last: true,
            kind: Some(kind),
        };
        let message = Requests {
            requests: vec![request],
            ..Requests::default()
        };
        self.caller.take(message).unwrap();
        let mut first = None;
        loop {
            let given = tokio::time::timeout(LONG, self.caller.answers()).await;
            for given in given.unwrap().unwrap().answers {
                assert_eq!(given.call, self.calls);
                let kind = given.kind.unwrap();
                let over = !matches!(kind, answer::Kind::Append(_));
                let first = first.get_or_insert(kind);
                if over {
                    return first.clone();
                }
            }
        }
    }

    async fn appended(&mut self, kind: Kind) -> Result<Outcome, String> {
        match self.asked(kind).await {
            answer::Kind::Append(answer) => Ok(answer.outcome.unwrap()),
            answer::Kind::Failed(reason) => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    /// Its log is what it was, and it takes what comes next.
    async fn goes_on(mut self) {
        assert_eq!(self.partition.end_offset(), Offset::new(1));
        let next = || append(5, HELD, vec![entry(id(5, 2), 1)]);
        // Where the replica failed, it is started again.
        let taken = async {
            while !matches!(self.appended(next()).await, Ok(Outcome::Matched(_))) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, taken).await.unwrap();
        assert_eq!(self.partition.end_offset(), Offset::new(2));
        self.node.stop().await;
    }
}

#[tokio::test]
async fn a_leader_or_candidate_of_an_earlier_term_is_told_of_the_later_one() {
    let mut follower = Follower::start().await;
    let append = append(4, id(4, 1), vec![entry(id(4, 2), 1)]);
    let outcome = follower.appended(append).await.unwrap();
    assert_eq!(outcome, Outcome::HigherVote(vote(5)));
    let candidate = VoteRequest {
        candidate: Some(Vote {
            committed: false,
            ..vote(4)
        }),
        last: Some(id(9, 9)),
        transfer: false,
    };
    let answer::Kind::Vote(answer) = follower.asked(Kind::Vote(candidate)).await else {
        panic!("not a vote");
    };
    assert!(!answer.granted);
    assert_eq!(answer.vote, Some(vote(5)));
    follower.goes_on().await;
}

#[tokio::test]
async fn entries_that_follow_what_is_not_here_are_not_taken() {
    let mut follower = Follower::start().await;
    let append = append(5, id(5, 7), vec![entry(id(5, 8), 1)]);
    let outcome = follower.appended(append).await.unwrap();
    assert_eq!(outcome, Outcome::Conflict(id(5, 7)));
    follower.goes_on().await;
}

#[tokio::test]
async fn entries_that_do_not_follow_each_other_are_refused() {
    let mut follower = Follower::start().await;
    for wrong in [
        vec![entry(id(5, 3), 1)],
        vec![entry(id(5, 2), 1), entry(id(5, 2), 2)],
        vec![entry(id(4, 2), 1)],
        vec![entry(id(6, 2), 1)],
    ] {
        let reason = follower.appended(append(5, HELD, wrong)).await.unwrap_err();
        assert!(reason.contains("does not follow"), "{reason}");
    }
    follower.goes_on().await;
}

#[tokio::test]
async fn a_batch_with_another_offset_than_the_log_goes_on_at_is_not_taken() {
    let mut follower = Follower::start().await;
    for offset in [0, 7] {
        let wrong = append(5, HELD, vec![entry(id(5, 2), offset)]);
        follower.appended(wrong).await.unwrap_err();
    }
    follower.goes_on().await;
}
