//! Members come and go, and leadership is handed over.

use std::{collections::BTreeSet, time::Duration};

use quipu_model::NodeId;

use super::{
    super::{LONG, at, plain},
    Cluster, node, until_led,
};
use crate::{AppendError, Members, Origin, Partition};

async fn until_members(partition: &Partition, like: impl Fn(&Members) -> bool) {
    let mut members = partition.members();
    let changed = tokio::time::timeout(LONG, members.wait_for(like)).await;
    changed.unwrap().unwrap();
}

fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(node).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_founders_learns_catches_up_and_becomes_a_voter() {
    let mut cluster = Cluster::start().await;
    cluster.fill(0, 40).await;
    let fourth = cluster.add(node(4), Origin::Joiner(None)).await;
    let not_yet = fourth.wait_leader(Duration::from_millis(50)).await;
    assert!(matches!(
        not_yet,
        Err(AppendError::NotLeader { leader: None, .. })
    ));
    assert_eq!(*fourth.members().borrow(), Members::default());

    let (leading, leader) = cluster.leader().await;
    let refused = leader.change_voters(&[node(4)], LONG).await.unwrap_err();
    assert!(
        matches!(refused, AppendError::Refused { .. }),
        "{refused:?}"
    );
    leader.add_learner(node(4), LONG).await.unwrap();
    leader.add_learner(node(4), LONG).await.unwrap();
    cluster.hold_the_same(&[1, 2, 3, 4], 0, 40).await;
    until_members(&fourth, |m| m.learners == nodes(&[4])).await;
    assert_eq!(fourth.members().borrow().voters, nodes(&[1, 2, 3]));
    let known = until_led(&fourth, |l| l.leader == Some(leading)).await;
    assert!(!known.ready && known.epoch == leader.leader().1);
    // The leader hears of it a little later than the learner has it.
    let matched = async {
        loop {
            let progress = leader.progress();
            assert_eq!(progress.len(), 3);
            let of_fourth = progress.iter().find(|p| p.node == node(4)).unwrap();
            if of_fourth.matched.is_some() {
                return of_fourth.matched <= of_fourth.last;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, matched).await.unwrap());
    assert!(fourth.progress().is_empty());

    let all = [1, 2, 3, 4].map(node);
    leader.change_voters(&all, LONG).await.unwrap();
    leader.change_voters(&all, LONG).await.unwrap();
    until_members(&fourth, |m| {
        m.voters == nodes(&[1, 2, 3, 4]) && m.learners.is_empty() && !m.changing
    })
    .await;
    cluster.fill(40, 60).await;
    cluster.hold_the_same(&[1, 2, 3, 4], 0, 60).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_longer_a_voter_leaves_and_other_learners_stay() {
    let mut cluster = Cluster::start().await;
    cluster.add(node(4), Origin::Joiner(None)).await;
    cluster.fill(0, 10).await;
    let [gone, stays] = cluster.followers().await;
    let (leading, leader) = cluster.leader().await;
    leader.add_learner(node(4), LONG).await.unwrap();
    let all = nodes(&[1, 2, 3]);
    until_members(leader, |m| m.learners == nodes(&[4])).await;
    let unsettled = leader.settled(&all, LONG).await.unwrap();
    assert_eq!(unsettled, None, "there is a learner too");
    let voters = [leading, stays];
    leader.change_voters(&voters, LONG).await.unwrap();
    let two = BTreeSet::from(voters);
    until_members(leader, |m| m.voters == two && m.learners == nodes(&[4])).await;
    cluster.cut_off(gone);
    cluster.fill(10, 20).await;
    let both = voters.map(|v| v.get());
    cluster.hold_the_same(&both, 0, 20).await;

    let refused = leader.remove_learner(stays, LONG).await.unwrap_err();
    assert!(
        matches!(refused, AppendError::Refused { .. }),
        "{refused:?}"
    );
    leader.remove_learner(node(4), LONG).await.unwrap();
    leader.remove_learner(node(4), LONG).await.unwrap();
    until_members(leader, |m| m.learners.is_empty()).await;
    assert_eq!(leader.settled(&all, LONG).await.unwrap(), None);
    assert!(leader.settled(&two, LONG).await.unwrap().is_some());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_removes_itself_leaves_the_group_to_the_others() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 10).await;
    let (old, leader) = cluster.leader().await;
    let others = cluster.followers().await;
    leader.change_voters(&others, LONG).await.unwrap();
    for other in others {
        let partition = cluster.at(other);
        until_led(partition, |l| l.leader.is_some_and(|l| l != old)).await;
    }
    until_led(leader, |l| !l.ready && l.leader != Some(old)).await;
    cluster.fill(10, 20).await;
    let others = others.map(|other| other.get());
    cluster.hold_the_same(&others, 0, 20).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_a_shrinking_group_goes_on_alone_and_grows_again() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 10).await;
    let (old, leader) = cluster.leader().await;
    let [last, _] = cluster.followers().await;
    leader.change_voters(&[last], LONG).await.unwrap();
    let alone = cluster.at(last);
    until_led(alone, |l| l.ready && l.leader == Some(last)).await;
    cluster.fill(10, 20).await;
    alone.add_learner(old, LONG).await.unwrap();
    alone.change_voters(&[last, old], LONG).await.unwrap();
    cluster.fill(20, 30).await;
    cluster.hold_the_same(&[last.get(), old.get()], 0, 30).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_and_an_append_of_an_old_epoch_is_refused() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 10).await;
    let [to, other] = cluster.followers().await;
    let (old, leader) = cluster.leader().await;
    let before = until_led(leader, |l| l.ready).await;
    assert_eq!(before.leader, Some(old));
    leader
        .append_in(before.epoch, plain(2), LONG)
        .await
        .unwrap();
    leader.transfer_leader(to, LONG).await.unwrap();
    for partition in [leader, cluster.at(other)] {
        let now = until_led(partition, |l| l.leader == Some(to)).await;
        assert!(now.epoch > before.epoch && !now.ready);
    }
    let target = cluster.at(to);
    let now = until_led(target, |l| l.ready).await;
    let refused = leader.append_in(before.epoch, plain(1), LONG).await;
    let refused = refused.unwrap_err();
    assert!(
        matches!(refused, AppendError::NotLeader { leader, .. } if leader == Some(to)),
        "{refused:?}"
    );
    let refused = target.append_in(before.epoch, plain(1), LONG).await;
    let refused = refused.unwrap_err();
    assert!(refused.is_definite() && refused.is_retryable(), "{refused}");
    let appended = target.append_in(now.epoch, plain(1), LONG).await.unwrap();
    assert_eq!(appended.base_offset, at(12));

    // Back again, and to itself, which is nothing to do.
    target.transfer_leader(old, LONG).await.unwrap();
    until_led(leader, |l| l.ready).await;
    leader.transfer_leader(old, LONG).await.unwrap();
    cluster.hold_the_same(&[1, 2, 3], 0, 13).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_to_nobody_who_could_not_lead() {
    let mut cluster = Cluster::start().await;
    cluster.add(node(4), Origin::Joiner(None)).await;
    cluster.fill(0, 10).await;
    let [dead, alive] = cluster.followers().await;
    let (_, leader) = cluster.leader().await;
    leader.add_learner(node(4), LONG).await.unwrap();
    cluster.cut_off(dead);
    for nobody in [node(4), node(9), dead] {
        let refused = leader.transfer_leader(nobody, LONG).await.unwrap_err();
        assert!(
            matches!(refused, AppendError::Refused { .. }),
            "{refused:?}"
        );
    }
    assert!(leader.hand_over(LONG).await.unwrap());
    until_led(cluster.at(alive), |l| l.ready).await;
    cluster.fill(10, 12).await;
    cluster.cut_off(alive);
    assert!(!cluster.at(alive).hand_over(LONG).await.unwrap());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_shut_down_knows_of_no_leader() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 2).await;
    let (old, leader) = cluster.leader().await;
    let [one, _] = cluster.followers().await;
    let epoch = leader.leadership().borrow().epoch;
    leader.shutdown().await;
    cluster.wires.partitions.lock().remove(&old);
    let now = *leader.leadership().borrow();
    assert!(now.leader.is_none() && !now.ready && now.epoch >= epoch);
    until_led(cluster.at(one), |l| {
        l.epoch > epoch && l.leader.is_some_and(|l| l != old)
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_a_cut_off_leader_began_is_undone_and_the_next_leader_may_change_again() {
    let mut cluster = Cluster::start().await;
    cluster.add(node(4), Origin::Joiner(None)).await;
    cluster.fill(0, 10).await;
    let (old, leader) = cluster.leader().await;
    let [stays, other] = cluster.followers().await;
    leader.add_learner(node(4), LONG).await.unwrap();
    cluster.cut_off(old);
    let short = Duration::from_millis(300);
    let begun = leader.change_voters(&[old, stays], short).await;
    let begun = begun.unwrap_err();
    assert!(matches!(begun, AppendError::TimedOut(_)), "{begun:?}");
    until_members(leader, |m| m.changing && m.voters == nodes(&[1, 2, 3])).await;

    cluster.fill(10, 20).await;
    let (_, next) = cluster.leader().await;
    cluster.heal();
    until_members(leader, |m| !m.changing && m.learners == nodes(&[4])).await;
    let wanted = [node(4), stays, other];
    let (first, second) = tokio::join!(
        next.change_voters(&wanted, LONG),
        next.change_voters(&wanted, LONG)
    );
    first.unwrap();
    second.unwrap();
    let three = BTreeSet::from(wanted);
    until_members(cluster.at(node(4)), |m| m.voters == three && !m.changing).await;
    let kept = wanted.map(|voter| voter.get());
    cluster.hold_the_same(&kept, 0, 20).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_waits_for_the_one_under_way_without_looking_all_the_time() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 2).await;
    let others = cluster.followers().await;
    let (_, leader) = cluster.leader().await;
    for other in others {
        cluster.cut_off(other);
    }
    let soon = Duration::from_millis(300);
    leader.add_learner(node(4), soon).await.unwrap_err();
    let mut waiting = Box::pin(leader.add_learner(node(5), soon));
    let mut polls = 0;
    let waited = std::future::poll_fn(|context| {
        polls += 1;
        waiting.as_mut().poll(context)
    });
    waited.await.unwrap_err();
    drop(waiting);
    assert!(polls < 100, "{polls}");
    cluster.stop().await;
}
