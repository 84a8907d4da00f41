use std::time::Duration;

use quipu_model::Offset;
use quipu_storage::RetentionPolicy;

use super::{
    super::{LONG, NOW, key, plain},
    Cluster,
};
use crate::Acks;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_gives_all_replicas_one_start_and_a_follower_behind_it_goes_on_after_it() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 2).await;
    let [behind, _] = cluster.followers().await;
    cluster.cut_off(behind);
    cluster.fill(2, 1000).await;
    let policy = RetentionPolicy {
        max_records: Some(100),
        ..RetentionPolicy::default()
    };
    let (leading, leader) = cluster.leader().await;
    let start = leader.enforce_retention(policy, NOW).await.unwrap();
    assert!(start > Offset::new(500), "{start}");
    let log = cluster.members[&leading].store.partition(key()).unwrap();
    while log.state().last_purged.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.heal();
    cluster.fill(1000, 1002).await;
    cluster.hold_the_same(&[1, 2, 3], 1000, 1002).await;
    for member in cluster.members.values() {
        let mut waited = 0;
        while member.partition.start_offset() != start && waited < 1000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            waited += 1;
        }
        assert_eq!(member.partition.start_offset(), start);
    }
    cluster.hold_the_same(&[1, 2, 3], start.get(), 1002).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_disk_is_full_lags_behind_and_catches_up_once_there_is_room() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 2).await;
    let [full, _] = cluster.followers().await;
    let disk = &cluster.members[&full].disk;
    disk.set_capacity(1);
    cluster.fill(2, 600).await;
    assert!(cluster.members[&full].store.failure().is_none());
    let end = |node| cluster.members[&node].partition.high_watermark();
    assert!(end(full).borrow().get() < 600, "its disk was not full");
    disk.set_capacity(u64::MAX);
    cluster.hold_the_same(&[1, 2, 3], 0, 600).await;
    // A batch larger than all room that is left to take at once passes too.
    let (_, leader) = cluster.leader().await;
    leader.append(plain(900), Acks::All, LONG).await.unwrap();
    cluster.hold_the_same(&[1, 2, 3], 0, 1500).await;
    cluster.stop().await;
}
