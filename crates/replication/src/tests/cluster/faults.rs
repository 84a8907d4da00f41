//! What holds when leaders are cut off, and when replicas die.

use std::time::Duration;

use futures::{StreamExt, stream::FuturesOrdered};
use tokio::time::Instant;

use super::{
    super::{LONG, at, numbered},
    Cluster, until_led,
};
use crate::{Acks, AppendError};

/// Followers keep a leader for up to 3 s after its last word, then ask for votes after up to 3 s, and may do so at the same
/// time and again.
const ELECTION: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_is_replaced_acknowledges_nothing_and_follows_once_it_is_back() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 100).await;
    let [one, other] = cluster.followers().await;
    let (old, leader) = cluster.leader().await;
    let before = until_led(leader, |l| l.ready).await;
    cluster.cut_off(old);
    let cut_off = Instant::now();
    // What it takes now is not acknowledged, and not in the way later.
    let short = Duration::from_millis(200);
    let append = async || {
        let batch = numbered(6, 0, 0, 9);
        leader.append(batch, Acks::All, short).await.unwrap_err()
    };
    let error = append().await;
    assert!(matches!(error, AppendError::TimedOut(_)), "{error:?}");

    for follower in [one, other] {
        until_led(cluster.at(follower), |l| {
            l.epoch > before.epoch && l.leader.is_some()
        })
        .await;
    }
    assert!(cut_off.elapsed() < ELECTION, "{:?}", cut_off.elapsed());
    // By now no majority has answered it for so long that it takes nothing in.
    let error = append().await;
    assert!(
        matches!(error, AppendError::NotLeader { leader: None, .. }),
        "{error:?}"
    );
    assert_eq!(leader.leadership().borrow().epoch, before.epoch);

    // The next leader knows what was appended before it led.
    cluster.fill(98, 120).await;
    let (new, _) = cluster.leader().await;
    cluster.heal();
    until_led(leader, |l| l.leader == Some(new) && !l.ready).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 120).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leaders_own_append_is_enough_for_who_asks_for_no_more() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 20).await;
    let (old, leader) = cluster.leader().await;
    until_led(leader, |l| l.ready).await;
    cluster.cut_off(old);
    let led = leader.append(numbered(6, 0, 0, 9), Acks::Leader, LONG);
    assert_eq!(led.await.unwrap().base_offset, at(20));
    cluster.heal();
    cluster.stop().await;
}

/// A coordinator of groups goes by it: what it says must not be older than what another has stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_calls_itself_followed_no_longer_once_another_leads() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 20).await;
    let (old, leader) = cluster.leader().await;
    let before = until_led(leader, |l| l.ready).await;
    leader.confirm(before.epoch, LONG).await.unwrap();
    cluster.cut_off(old);
    let (new, _) = cluster.leader().await;
    assert_ne!(new, old);
    assert!(leader.is_leader());
    assert!(!leader.is_followed());
    let soon = Duration::from_millis(100);
    let error = leader.confirm(before.epoch, soon).await.unwrap_err();
    assert!(matches!(error, AppendError::NotLeader { .. }), "{error:?}");
    cluster.heal();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_at_a_leader_that_is_cut_off_is_sent_elsewhere_long_before_its_time_is_up() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 20).await;
    let (old, leader) = cluster.leader().await;
    assert!(leader.is_followed());
    cluster.cut_off(old);
    let began = Instant::now();
    let append = |batch| leader.append(batch, Acks::All, LONG);
    let first = numbered(6, 0, 0, 9);
    // The second finds the first in flight, as one that is sent again does.
    let (one, same) = tokio::join!(append(first.clone()), append(first));
    for error in [one.unwrap_err(), same.unwrap_err()] {
        let lost = matches!(error, AppendError::LeadershipLost { .. });
        assert!(lost && error.is_retryable(), "{error:?}");
    }
    assert!(began.elapsed() < LONG / 2, "{:?}", began.elapsed());
    assert!(!leader.is_followed());
    cluster.heal();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_at_a_replica_that_is_shut_down_is_told_to_try_again() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 20).await;
    let (old, leader) = cluster.leader().await;
    cluster.cut_off(old);
    let append = leader.append(numbered(6, 0, 0, 9), Acks::All, LONG);
    let (appended, ()) = tokio::join!(append, leader.shutdown());
    let error = appended.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    cluster.heal();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipelining_producers_retries_across_a_failover_land_exactly_once_and_in_order() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 2).await;
    let (old, leader) = cluster.leader().await;
    let patience = Duration::from_secs(3);
    let pipeline = async |from: i32, to: i32| {
        let append = |sequence| leader.append(numbered(8, 0, sequence, 3), Acks::All, patience);
        let appends: FuturesOrdered<_> = (from..to).step_by(3).map(append).collect();
        appends.collect::<Vec<_>>().await
    };
    let taken = pipeline(0, 150).await;
    cluster.cut_off(old);
    let lost = pipeline(150, 300).await;
    assert!(taken.iter().all(Result::is_ok));
    for failed in &lost {
        let error = failed.as_ref().unwrap_err();
        assert!(!error.is_definite() && error.is_retryable(), "{error}");
    }
    let answers = taken.into_iter().chain(lost);
    let acknowledged = answers.map(|answer| answer.ok().and_then(|appended| appended.base_offset));

    let mut next = 2;
    for (n, before) in acknowledged.enumerate() {
        let base = loop {
            let (_, leader) = cluster.leader().await;
            let batch = numbered(8, 0, n as i32 * 3, 3);
            match leader.append(batch, Acks::All, patience).await {
                Ok(appended) => break appended.base_offset,
                // Older than the last five: so it is there, and where was said when it was acknowledged.
                Err(AppendError::DuplicateTooOld { .. }) => break before,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        };
        assert!(before.is_none() || before == base, "{before:?} {base:?}");
        assert_eq!(base, at(next));
        next += 3;
    }
    cluster.heal();
    cluster.hold_the_same(&[1, 2, 3], 0, 302).await;
    for member in cluster.members.values() {
        assert_eq!(member.partition.high_watermark().borrow().get(), 302);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_core_died_is_replaced_and_comes_back_as_a_follower() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 20).await;
    let (_, leader) = cluster.leader().await;
    let before = until_led(leader, |l| l.ready).await;
    let raft = leader.raft().unwrap();
    raft.external_request(|_| panic!("a broken invariant"))
        .await
        .unwrap();
    until_led(leader, |l| l.leader.is_none()).await;
    let after = until_led(leader, |l| l.leader.is_some()).await;
    assert!(after.epoch > before.epoch);
    cluster.fill(20, 40).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 40).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_crash_of_a_majority() {
    let mut cluster = Cluster::start().await;
    cluster.fill(0, 40).await;
    let crashing = cluster.followers().await;
    for node in crashing {
        cluster.crash(node).await;
    }
    cluster.fill(40, 60).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 60).await;
    let (_, leader) = cluster.leader().await;
    let again = leader.append(numbered(5, 0, 58, 2), Acks::All, LONG).await;
    assert!(again.unwrap().duplicate);
    cluster.stop().await;
}
