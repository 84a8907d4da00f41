//! Groups without traffic sleep, and wake.

use std::{sync::atomic::Ordering, time::Duration};

use quipu_model::{NodeId, RaftIndex};

use super::{
    super::{LONG, plain},
    Cluster, node, until_led,
};
use crate::{Acks, Leadership, Origin, Partition, SleepOutcome, SleepParts};

const IDLE: Duration = Duration::from_millis(200);
const HOUR: Duration = Duration::from_secs(3600);

impl Cluster {
    async fn all_sleep(&self) {
        for member in self.members.values() {
            let mut asleep = member.partition.inner().asleep.subscribe();
            let sleeps = asleep.wait_for(|asleep| *asleep);
            tokio::time::timeout(LONG, sleeps).await.unwrap().unwrap();
        }
    }

    fn sent(&self) -> u64 {
        self.wires.sent.load(Ordering::Relaxed)
    }
}

/// Lets time pass at once; only what waits for nothing but the time goes on meanwhile.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::sleep(time).await;
    tokio::time::resume();
}

fn sleeps(partition: &Partition) -> bool {
    *partition.inner().asleep.borrow()
}

async fn led(cluster: &Cluster) -> (NodeId, Leadership) {
    let (leading, leader) = cluster.leader().await;
    (leading, until_led(leader, |l| l.ready).await)
}

#[tokio::test]
async fn an_idle_group_sends_nothing_for_hours_and_an_append_wakes_it() {
    let mut cluster = Cluster::start_idling(IDLE).await;
    cluster.fill(0, 10).await;
    cluster.add(node(4), Origin::Joiner(None)).await;
    let (_, leader) = cluster.leader().await;
    leader.add_learner(node(4), LONG).await.unwrap();
    let (leading, before) = led(&cluster).await;
    for (time, end) in [(HOUR / 720, 12), (HOUR / 300, 14), (HOUR, 16)] {
        cluster.all_sleep().await;
        let sent = cluster.sent();
        pass(time).await;
        assert_eq!(cluster.sent(), sent, "messages of a group that sleeps");
        let append = cluster.at(leading).append(plain(2), Acks::All, LONG);
        append.await.unwrap();
        cluster.hold_the_same(&[1, 2, 3, 4], 0, end).await;
        assert_eq!(led(&cluster).await, (leading, before));
    }
    cluster.stop().await;
}

/// Else what is appended then is told to be lost while it is not, and sent again; and coordinators of groups turn members away.
#[tokio::test]
async fn a_leader_that_just_woke_does_not_take_itself_for_deposed() {
    let cluster = Cluster::start_idling(IDLE).await;
    cluster.fill(0, 10).await;
    let (leading, _) = led(&cluster).await;
    cluster.all_sleep().await;
    pass(HOUR).await;
    let leader = cluster.at(leading);
    assert!(leader.is_followed());
    assert!(leader.inner().wake());
    // No other task has run since: nobody can have answered.
    assert!(leader.is_followed());
    let forsaken = tokio::time::timeout(IDLE, leader.forsaken());
    assert!(forsaken.await.is_err());
    cluster.stop().await;
}

#[tokio::test]
async fn a_leader_lost_in_its_sleep_is_replaced_once_its_node_is_known_to_be_lost() {
    let cluster = Cluster::start_idling(IDLE).await;
    cluster.fill(0, 10).await;
    let (old, before) = led(&cluster).await;
    let others = cluster.followers().await;
    cluster.all_sleep().await;
    cluster.cut_off(old);
    pass(HOUR).await;
    for other in others {
        assert!(sleeps(cluster.at(other)));
        cluster.members[&other].replicator.node_lost(old);
    }
    for other in others {
        let now = until_led(cluster.at(other), |l| {
            l.leader.is_some_and(|leader| leader != old)
        })
        .await;
        assert!(now.epoch > before.epoch);
    }
    cluster.fill(10, 20).await;
    cluster.heal();
    cluster.hold_the_same(&[1, 2, 3], 0, 20).await;
    cluster.all_sleep().await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_node_taken_for_lost_by_mistake_goes_on_leading() {
    let cluster = Cluster::start_idling(IDLE).await;
    cluster.fill(0, 10).await;
    let (leading, before) = led(&cluster).await;
    let [mistaken, _] = cluster.followers().await;
    cluster.all_sleep().await;
    cluster.members[&mistaken].replicator.node_lost(leading);
    let mut asleep = cluster.at(leading).inner().asleep.subscribe();
    let woken = asleep.wait_for(|asleep| !*asleep);
    drop(tokio::time::timeout(LONG, woken).await.unwrap().unwrap());
    cluster.fill(10, 20).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 20).await;
    assert_eq!(led(&cluster).await, (leading, before));
    cluster.stop().await;
}

#[tokio::test]
async fn members_that_crash_while_the_group_sleeps_join_it_again_and_depose_nobody() {
    let mut cluster = Cluster::start_idling(IDLE).await;
    let learner = node(4);
    cluster.add(learner, Origin::Joiner(None)).await;
    let (_, leader) = cluster.leader().await;
    leader.add_learner(learner, LONG).await.unwrap();
    cluster.fill(0, 10).await;
    let (leading, before) = led(&cluster).await;
    let [voter, _] = cluster.followers().await;
    for crashing in [learner, voter] {
        cluster.all_sleep().await;
        cluster.crash(crashing).await;
        cluster.hold_the_same(&[1, 2, 3, 4], 0, 10).await;
        until_led(cluster.at(crashing), |l| l.leader == Some(leading)).await;
        cluster.all_sleep().await;
        assert_eq!(led(&cluster).await, (leading, before));
    }
    cluster.crash(leading).await;
    let (_, after) = led(&cluster).await;
    assert!(after.epoch > before.epoch);
    cluster.fill(10, 20).await;
    cluster.hold_the_same(&[1, 2, 3, 4], 0, 20).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_sleeping_leader_that_is_shut_down_wakes_those_it_leaves() {
    let cluster = Cluster::start_idling(IDLE).await;
    cluster.fill(0, 10).await;
    let (old, leader) = cluster.leader().await;
    let [other, _] = cluster.followers().await;
    cluster.all_sleep().await;
    leader.shutdown().await;
    cluster.wires.partitions.lock().remove(&old);
    until_led(cluster.at(other), |l| {
        l.leader.is_some_and(|leader| leader != old)
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn nobody_sleeps_who_lacks_something_or_doubts_the_leader() {
    let cluster = Cluster::start_idling(IDLE).await;
    cluster.fill(0, 10).await;
    let [away, other] = cluster.followers().await;
    let (leading, leader) = cluster.leader().await;
    cluster.cut_off(away);
    cluster.fill(10, 20).await;
    tokio::time::sleep(IDLE * 10).await;
    assert!(!sleeps(leader) && !sleeps(cluster.at(other)));
    cluster.heal();
    cluster.all_sleep().await;

    let running = leader.running().unwrap();
    let point = running.quiet_point().unwrap();
    let parts = SleepParts {
        leader: point.leader,
        last: point.last,
    };
    let ask = async |parts: SleepParts| {
        let answer = cluster.at(other).receive_sleep(parts.into()).await;
        SleepOutcome::from(answer.unwrap())
    };
    assert_eq!(ask(parts).await, SleepOutcome::Agreed);
    let mut earlier = parts;
    earlier.last.index = RaftIndex::new(1);
    assert_eq!(ask(earlier).await, SleepOutcome::Refused);
    let mut another = parts;
    another.leader.node = away;
    assert_eq!(ask(another).await, SleepOutcome::Refused);
    cluster.members[&other].replicator.node_lost(leading);
    assert_eq!(ask(parts).await, SleepOutcome::Refused);
    cluster.stop().await;
}
