//! Leaders whose process has ended are replaced without waiting.

use std::time::Duration;

use super::{Cluster, until_led};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_of_which_both_followers_know_that_it_ended_is_replaced_though_it_was_heard_of() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 20).await;
    let (old, leader) = cluster.leader().await;
    let before = until_led(leader, |l| l.ready).await;
    let others = cluster.followers().await;
    // It goes on sending heartbeats: silence alone would never replace it.
    for other in others {
        cluster.members[&other].replicator.node_gone(old);
    }
    for other in others {
        let now = until_led(cluster.at(other), |l| {
            l.leader.is_some_and(|leader| leader != old)
        })
        .await;
        assert!(now.epoch > before.epoch);
    }
    cluster.fill(20, 40).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 40).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_follower_that_takes_its_leader_for_ended_deposes_nobody() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 20).await;
    let (leading, leader) = cluster.leader().await;
    let before = until_led(leader, |l| l.ready).await;
    let [mistaken, _] = cluster.followers().await;
    cluster.members[&mistaken].replicator.node_gone(leading);
    // Longer than it would take to stand.
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.fill(20, 40).await;
    assert_eq!(*leader.leadership().borrow(), before);
    cluster.hold_the_same(&[1, 2, 3], 0, 40).await;
    cluster.stop().await;
}
