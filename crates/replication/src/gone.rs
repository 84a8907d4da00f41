//! A leader whose process is known to have ended is replaced at once.
//!
//! Silence has to last before a leader is given up, for it may only be slow. A process that has ended is not: waiting for it
//! would be for nothing. So each follower that knows lets go of the promise to keep its leader, and then they ask for votes, one
//! after the other, so that they do not stand against each other. Who does not know keeps its promise and refuses: a single
//! mistaken follower deposes nobody.

use std::{sync::Arc, time::Duration};

use openraft::raft::TransferLeaderRequest;
use quipu_model::NodeId;

use crate::{
    partition::{Inner, Replica},
    running::Running,
    sleep::{Groups, WAKES_PER_SECOND},
};

/// How much later than the first another follower may learn that its leader ended.
const OTHERS_LEARN: Duration = Duration::from_millis(100);
/// How long each follower leaves the others behind it to wait: longer than an election takes, with two writes to busy disks. Who
/// stands into another's election costs the group a third one, and that another timeout.
const TURN: Duration = Duration::from_millis(400);

impl Groups {
    /// Replaces the leaders on a node whose process has ended.
    pub(crate) async fn replace_leaders_on(self: Arc<Self>, node: NodeId) {
        let mut led: Vec<_> = self
            .running()
            .into_iter()
            .filter(|inner| inner.leadership_now().leader == Some(node))
            .filter_map(|inner| inner.turn_after(node).map(|turn| (turn, inner)))
            .collect();
        led.sort_by_key(|(turn, _)| *turn);
        for (_, inner) in &led {
            inner.wake();
            inner.release(node).await;
        }
        tokio::time::sleep(OTHERS_LEARN).await;
        let mut now = 0;
        for (turn, inner) in led {
            if turn > now {
                tokio::time::sleep(TURN * (turn - now)).await;
                now = turn;
            }
            if inner.stand_after(node).await {
                tokio::time::sleep(Duration::from_secs(1) / WAKES_PER_SECOND).await;
            }
        }
    }
}

impl Inner {
    /// What runs, where it follows a leader on that node.
    fn led_by(&self, node: NodeId) -> Option<Running> {
        match &*self.replica.read() {
            Replica::Running(running) if self.leadership_now().leader == Some(node) => {
                Some(running.clone())
            }
            _ => None,
        }
    }

    /// How many of the other voters ask for votes before this replica does; `None` where it has no vote. All reckon alike, and
    /// not the same one comes first in every partition.
    fn turn_after(&self, node: NodeId) -> Option<u32> {
        if !self.group.log.may_vote() {
            return None;
        }
        let members = self.members.borrow();
        let others: Vec<_> = members.voters.iter().filter(|v| **v != node).collect();
        let own = others.iter().position(|voter| **voter == self.group.node)?;
        let first = self.group.log.key().partition.get() as usize % others.len();
        u32::try_from((own + others.len() - first) % others.len()).ok()
    }

    /// Ends the promise to keep the leader: what openraft does for one that hands over, to whomever.
    async fn release(&self, node: NodeId) {
        let Some(running) = self.led_by(node) else {
            return;
        };
        let vote = running.vote();
        let request = TransferLeaderRequest::new(vote, node.get(), None);
        // A core that ended is started again, and has promised nothing.
        drop(running.raft.handle_transfer_leader(request).await);
    }

    /// Asks for votes where nobody else leads yet; whether it does.
    async fn stand_after(&self, node: NodeId) -> bool {
        let Some(running) = self.led_by(node) else {
            return false;
        };
        running.raft.trigger().elect(true).await.is_ok()
    }
}
