//! Replicas that are far behind copy segments, and lose nothing by it.

use std::{sync::atomic::Ordering, time::Duration};

use quipu_model::NodeId;
use quipu_storage::RetentionPolicy;

use super::{
    super::{LONG, NOW, key},
    Cluster, node,
};
use crate::{Acks, Origin};

/// As small as it can be: a closed segment stays in Raft's log, and all before it are copied.
const COPY_BEHIND: u64 = 1;

impl Cluster {
    pub(super) async fn copying() -> Self {
        Self::start_with(LONG, COPY_BEHIND).await
    }

    /// Lets the leader forget the entries of its sealed segments.
    pub(super) async fn forget(&self) {
        let (leading, _) = self.leader().await;
        let store = &self.members[&leading].store;
        store.checkpoint().unwrap();
        // What was applied when the segments were sealed counts from the checkpoint after.
        let log = store.partition(key()).unwrap();
        until(|| log.state().last_purged.is_some()).await;
    }

    fn copied(&self) -> u64 {
        self.wires.copied.load(Ordering::Relaxed)
    }

    fn state(&self, of: NodeId) -> quipu_storage::LogState {
        let store = &self.members[&of].store;
        store.partition(key()).unwrap().state()
    }
}

pub(super) async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_copies_segments_and_then_follows() {
    let cluster = Cluster::copying().await;
    cluster.fill(0, 10).await;
    let [behind, _] = cluster.followers().await;
    cluster.cut_off(behind);
    cluster.fill(10, 1000).await;
    cluster.forget().await;
    let (leading, _) = cluster.leader().await;
    assert_eq!(
        cluster.state(leading).start_offset.get(),
        0,
        "no record went"
    );
    cluster.heal();
    cluster.fill(1000, 1010).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 1010).await;
    let copied = cluster.copied();
    let whole = cluster.state(leading).size_bytes;
    assert!(copied > whole / 2 && copied <= whole, "{copied} of {whole}");
    let producers = [1, 2, 3].map(|id| {
        let store = &cluster.members[&node(id)].store;
        store
            .partition(key())
            .unwrap()
            .producer_tail(quipu_model::ProducerId::new(5))
    });
    assert!(producers[0].is_some() && producers.windows(2).all(|two| two[0] == two[1]));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_cut_off_goes_on_from_where_it_was_also_after_a_crash() {
    let mut cluster = Cluster::copying().await;
    cluster.fill(0, 2).await;
    let [behind, _] = cluster.followers().await;
    cluster.cut_off(behind);
    cluster.fill(2, 1000).await;
    cluster.forget().await;
    let (leading, _) = cluster.leader().await;
    let whole = cluster.state(leading).size_bytes;
    *cluster.wires.copies_left.lock() = Some(whole / 2 / 2000);
    cluster.heal();
    until(|| *cluster.wires.copies_left.lock() == Some(0)).await;
    let half = cluster.copied();
    assert!(half > whole / 3, "{half} of {whole}");
    assert_eq!(cluster.state(behind).end_offset.get(), 2, "all or nothing");
    cluster.crash(behind).await;
    *cluster.wires.copies_left.lock() = None;
    cluster.hold_the_same(&[1, 2, 3], 0, 1000).await;
    // Of what was not sealed, a crash may take the last segment.
    let copied = cluster.copied();
    assert!(
        copied <= whole + 4096,
        "{half} and in all {copied} of {whole}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_replica_copies_segments_and_can_lead_then() {
    let mut cluster = Cluster::copying().await;
    cluster.fill(0, 1000).await;
    cluster.forget().await;
    let fourth = cluster.add(node(4), Origin::Joiner(None)).await;
    let (_, leader) = cluster.leader().await;
    leader.add_learner(node(4), LONG).await.unwrap();
    cluster.hold_the_same(&[1, 2, 3, 4], 0, 1000).await;
    assert!(cluster.copied() > 0);
    let (_, leader) = cluster.leader().await;
    let voters = [1, 2, 3, 4].map(node);
    leader.change_voters(&voters, LONG).await.unwrap();
    leader.transfer_leader(node(4), LONG).await.unwrap();
    fourth.wait_leader(LONG).await.unwrap();
    let next = super::super::numbered(5, 0, 1000, 2);
    let appended = fourth.append(next, Acks::All, LONG).await.unwrap();
    assert!(!appended.duplicate);
    let again = super::super::numbered(5, 0, 998, 2);
    let appended = fourth.append(again, Acks::All, LONG).await.unwrap();
    assert!(appended.duplicate, "it knows what the producer had sent");
    cluster.hold_the_same(&[1, 2, 3, 4], 0, 1002).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_under_which_retention_deletes_begins_again_behind_it() {
    let cluster = Cluster::copying().await;
    cluster.fill(0, 2).await;
    let [behind, _] = cluster.followers().await;
    cluster.cut_off(behind);
    cluster.fill(2, 1000).await;
    cluster.forget().await;
    *cluster.wires.copies_left.lock() = Some(3);
    cluster.heal();
    until(|| *cluster.wires.copies_left.lock() == Some(0)).await;
    let policy = RetentionPolicy {
        max_records: Some(400),
        ..RetentionPolicy::default()
    };
    let (_, leader) = cluster.leader().await;
    let start = leader.enforce_retention(policy, NOW).await.unwrap();
    assert!(start.get() > 500, "{start}");
    *cluster.wires.copies_left.lock() = None;
    cluster.fill(1000, 1002).await;
    cluster.hold_the_same(&[1, 2, 3], start.get(), 1002).await;
    until(|| cluster.state(behind).start_offset == start).await;
    cluster.stop().await;
}
