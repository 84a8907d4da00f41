//! Groups without traffic sleep: no clock runs, and no message is sent.
//!
//! **Falling asleep.** A leader that saw nothing happen for a while, with all members at its last entry and that one committed,
//! stops its clock, lets what heartbeats are on their way arrive, and asks the others to sleep. Who is at the same entry
//! agrees and stops its clock. Where all agreed and still nothing happened, the leader leaves its own off; else it goes on,
//! and its heartbeats wake those that agreed.
//!
//! **Waking.** Whatever comes in wakes a replica: an append at the leader (which confirms its leadership first, for nobody
//! answered it for so long), a message of the group at the others, a change of members, a shutdown. A voter that is awake
//! and hears of no leader asks the others for a vote before long, which wakes them too, the leader among them.
//!
//! **Nobody stays asleep without a leader.** A leader whose node is lost is known to be by the broker, which says so through
//! [`crate::Replicator::node_lost`]; until some time after, nobody falls asleep under it. A member that was started anew is
//! awake: a voter asks for votes, and a learner pokes the others until it hears of the leader, for it may not know all that
//! was committed.
//!
//! **Nobody is deposed in its sleep.** Its followers would give their votes to anyone, or stand themselves, as they did not
//! hear of it for so long. So who is asked in its sleep whether it would vote refuses. The leader, which was asked as well,
//! wakes and says a word to all; the others go on sleeping until that, or until it is clear that none comes.

use std::{
    collections::HashMap,
    hash::BuildHasher,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use futures::future::join_all;
use parking_lot::Mutex;
use quipu_model::{LogId, NodeId, PartitionKey, Term, Vote};
use tokio::time::Instant;

use crate::{
    config::LEASE,
    network::{Network, Transport},
    partition::{Inner, Partition, Replica},
    parts::{SleepOutcome, SleepParts, VoteParts},
    running::Running,
};

/// Longer than a heartbeat is on its way: its sender gives it up before.
const HEARTBEATS_ARRIVE: Duration = Duration::from_millis(600);
/// How long a member may take to answer.
const ANSWER: Duration = Duration::from_millis(500);
/// After how long a word of a leader that was woken would have come.
const WORD_COMES: Duration = Duration::from_secs(1);
/// For how long after a node was lost nobody falls asleep under a leader there: longer than a message of it can be late.
const LOST_LATELY: Duration = Duration::from_secs(30);
/// Over how long the groups of a lost node wake, at least, so that its followers do not all stand for election at once.
const WAKE_WITHIN: Duration = Duration::from_millis(500);
/// And how many of them wake in a second, at most.
pub(crate) const WAKES_PER_SECOND: u32 = 1000;

/// A leader's group in which all is done: what it led with, its last entry, and the other members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QuietPoint {
    pub(crate) leader: Vote,
    pub(crate) last: LogId,
    pub(crate) others: Vec<NodeId>,
}

/// A node's replicas, and which nodes were lost lately.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    all: Mutex<HashMap<PartitionKey, Weak<Inner>>>,
    lost: Mutex<HashMap<NodeId, Instant>>,
}

impl Groups {
    pub(crate) fn add(&self, inner: &Arc<Inner>) {
        let key = inner.group.log.key();
        self.all.lock().insert(key, Arc::downgrade(inner));
    }

    pub(crate) fn remove(&self, inner: &Arc<Inner>) {
        let mut all = self.all.lock();
        let key = inner.group.log.key();
        // It may have been started anew meanwhile.
        if all
            .get(&key)
            .is_some_and(|known| known.as_ptr() == Arc::as_ptr(inner))
        {
            all.remove(&key);
        }
    }

    /// All replicas that were not shut down.
    pub(crate) fn running(&self) -> Vec<Arc<Inner>> {
        let all = self.all.lock();
        all.values().filter_map(Weak::upgrade).collect()
    }

    fn lost_lately(&self, node: NodeId) -> bool {
        let lost = self.lost.lock();
        lost.get(&node).is_some_and(|at| at.elapsed() < LOST_LATELY)
    }

    /// From now on, nobody falls asleep under a leader there.
    pub(crate) fn note_lost(&self, node: NodeId) {
        let mut lost = self.lost.lock();
        lost.retain(|_, at| at.elapsed() < LOST_LATELY);
        lost.insert(node, Instant::now());
    }

    /// Wakes the groups that a lost node leads, spread over a time and in no order.
    pub(crate) async fn wake_led_by(self: Arc<Self>, node: NodeId) {
        let mut led = self.running();
        led.retain(|inner| inner.sleeps_under(node));
        let random = std::hash::RandomState::new();
        led.sort_by_cached_key(|inner| random.hash_one(inner.group.log.key()));
        let count = u32::try_from(led.len()).unwrap_or(u32::MAX).max(1);
        let spread = WAKE_WITHIN.max(Duration::from_secs(1) * count / WAKES_PER_SECOND);
        // So that two nodes that wake the same group do it at different times.
        let first = spread.mul_f64(random.hash_one(node) as f64 / u64::MAX as f64) / count;
        tokio::time::sleep(first).await;
        for inner in led {
            inner.wake();
            tokio::time::sleep(spread / count).await;
        }
    }
}

impl Inner {
    /// Switches the clock on or off, as the replica needs it now.
    pub(crate) fn set_clock(&self) {
        self.asleep.send_if_modified(|asleep| {
            self.set_clock_to(*asleep);
            false
        });
    }

    fn set_clock_to(&self, asleep: bool) {
        if let Replica::Running(running) = &*self.replica.read() {
            running.set_clock(!asleep && self.group.log.may_vote());
        }
    }

    /// Wakes the replica; whether it was asleep.
    pub(crate) fn wake(&self) -> bool {
        if !*self.asleep.borrow() {
            return false;
        }
        self.asleep.send_if_modified(|asleep| {
            let was = std::mem::take(asleep);
            if was {
                *self.woke.write() = Some(Instant::now());
            }
            self.set_clock_to(false);
            was
        })
    }

    /// Whether it woke so lately that others may still have to answer.
    pub(crate) fn woke_just_now(&self) -> bool {
        self.woke.read().is_some_and(|woke| woke.elapsed() < LEASE)
    }

    /// Lets the replica sleep where it may; whether it does.
    fn fall_asleep(&self, may: impl FnOnce(&Running) -> bool) -> bool {
        let mut sleeps = false;
        self.asleep.send_if_modified(|asleep| {
            sleeps = match &*self.replica.read() {
                Replica::Running(running) => may(running),
                Replica::Failed(_) | Replica::Damaged { .. } | Replica::Ended => false,
            };
            let news = sleeps && !*asleep;
            if news {
                *asleep = true;
                self.set_clock_to(true);
            }
            news
        });
        sleeps
    }

    fn sleeps_under(&self, leader: NodeId) -> bool {
        *self.asleep.borrow() && self.leadership_now().leader == Some(leader)
    }

    /// Whether the leader, as far as it is known, is on a node that was lost lately.
    pub(crate) fn leader_is_lost(&self) -> bool {
        let leader = self.leadership_now().leader;
        leader.is_some_and(|leader| self.groups.lost_lately(leader))
    }

    /// The leader wants the group to sleep.
    pub(crate) fn agree_to_sleep(&self, parts: SleepParts) -> SleepOutcome {
        let agreed = self.fall_asleep(|running| {
            running.rests_at(parts) && !self.groups.lost_lately(parts.leader.node)
        });
        if agreed {
            SleepOutcome::Agreed
        } else {
            SleepOutcome::Refused
        }
    }

    /// Notes that a leader sent something.
    pub(crate) fn note_heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
        self.wake();
    }

    pub(crate) fn has_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }
}

impl Partition {
    /// Whether a question for this replica's vote came in its sleep, and has no reason but that.
    pub(crate) async fn refuses_in_sleep(&self, running: &Running) -> bool {
        let inner = self.inner();
        if !*inner.asleep.borrow() || inner.leader_is_lost() {
            inner.wake();
            return false;
        }
        if running.leading().is_ok() {
            inner.wake();
            running.ask_majority(ANSWER).await;
        } else if !inner.stirs.swap(true, Ordering::Relaxed) {
            let partition = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(WORD_COMES).await;
                partition.inner().stirs.store(false, Ordering::Relaxed);
                partition.inner().wake();
            });
        }
        true
    }
}

/// On the leader: puts the group to sleep, unless something happens after `point` or somebody does not agree.
pub(crate) async fn lull(inner: Arc<Inner>, transport: Arc<dyn Transport>, point: QuietPoint) {
    inner.set_clock_to(true);
    tokio::time::sleep(HEARTBEATS_ARRIVE).await;
    let key = inner.group.log.key();
    let parts = SleepParts {
        leader: point.leader,
        last: point.last,
    };
    let asking = point.others.iter().map(|other| async {
        let answer = transport.sleep(*other, key, parts.into(), ANSWER).await;
        answer.map(SleepOutcome::from)
    });
    let answers = join_all(asking).await;
    let all_agreed = answers
        .iter()
        .all(|answer| matches!(answer, Ok(SleepOutcome::Agreed)));
    // Whoever is in the door is about to append.
    let door = inner.door.try_lock();
    let sleeps = all_agreed
        && door.is_ok()
        && inner.fall_asleep(|running| running.quiet_point().as_ref() == Some(&point));
    if !sleeps {
        inner.set_clock();
    }
}

/// On a learner: wakes the others with a question to which the answer does not matter.
pub(crate) async fn poke(running: Running, network: Network) {
    let (own, members) = (running.node(), running.members());
    let question = VoteParts {
        candidate: Vote {
            term: Term::default(),
            node: own,
            committed: false,
        },
        last: None,
        transfer: false,
    };
    let others = members.voters.iter().filter(|voter| **voter != own);
    join_all(others.map(|voter| {
        let transport = &network.transport;
        transport.pre_vote(*voter, network.log.key(), question.into(), ANSWER)
    }))
    .await;
}
