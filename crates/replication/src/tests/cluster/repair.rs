//! A replica whose log is damaged makes itself whole from the others, and they go on meanwhile.

use std::{path::PathBuf, sync::Arc, time::Duration};

use quipu_model::{NodeId, Offset};
use quipu_storage::{
    RetentionPolicy,
    io::{Disk, FaultyDisk},
};
use tokio::time::Instant;

use super::{
    super::{LONG, NOW, key, open_damaged},
    Cluster,
    catch_up::until,
    node, until_led,
};
use crate::{AppendError, Origin, Partition};

/// A segment's file, the oldest being number 0.
pub(super) fn log(disk: &FaultyDisk, number: usize) -> PathBuf {
    let dir = PathBuf::from(format!("topics/{}/{}", key().topic, key().partition));
    let names = disk.list(&dir).unwrap();
    let mut logs = names
        .iter()
        .filter(|name| name.contains('-') && name.ends_with(".log"));
    dir.join(logs.nth(number).unwrap())
}

/// Reads from an offset until the rot there is found.
pub(super) async fn find_rot(partition: &Partition, offset: u64) {
    let read = partition.read(Offset::new(offset), 1).await;
    assert!(read.is_err());
}

pub(super) async fn until_sound(partition: &Partition) {
    let sound = tokio::time::timeout(LONG, partition.wait_sound()).await;
    sound.expect("it is repaired");
}

impl Cluster {
    /// Seals what is closed, on all nodes.
    pub(super) fn checkpoint(&self) {
        for member in self.members.values() {
            member.store.checkpoint().unwrap();
        }
    }

    pub(super) fn disk(&self, node: NodeId) -> &FaultyDisk {
        &self.members[&node].disk
    }

    /// Stops all nodes in order, changes their disks, and starts them again.
    async fn damage_stopped(&mut self, damage: impl Fn(NodeId, &FaultyDisk)) {
        let members = std::mem::take(&mut self.members);
        for member in members.values() {
            member.partition.shutdown().await;
        }
        for (node, member) in members {
            member.store.close().unwrap();
            let disk = Arc::new(member.disk.fork(node.get()));
            damage(node, &disk);
            self.run(node, disk, Origin::Founder(&[1, 2, 3].map(super::node)))
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_finds_rot_is_whole_again_while_the_others_go_on() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 300).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 300).await;
    cluster.checkpoint();
    let [follower, _] = cluster.followers().await;
    let (disk, partition) = (cluster.disk(follower), cluster.at(follower));
    let path = log(disk, 1);
    let written = disk.file_bytes(&path).unwrap();
    disk.flip_bit(&path, 100, 3);
    let begins: u64 = path.file_name().unwrap().to_str().unwrap()[..20]
        .parse()
        .unwrap();
    find_rot(partition, begins).await;
    cluster.fill(300, 320).await;
    until_sound(partition).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 320).await;
    assert!(disk.file_bytes(&path).unwrap()[..100] == written[..100]);
    assert_eq!(cluster.members[&follower].replicator.repairs(), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_finds_rot_hands_over_at_once() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 300).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 300).await;
    cluster.checkpoint();
    let [other, _] = cluster.followers().await;
    let (leader, partition) = cluster.leader().await;
    cluster
        .disk(leader)
        .flip_bit(log(cluster.disk(leader), 0), 100, 3);
    find_rot(partition, 0).await;
    let found = Instant::now();
    until_led(cluster.at(other), |led| {
        led.leader.is_some_and(|now| now != leader)
    })
    .await;
    assert!(
        found.elapsed() < Duration::from_millis(1400),
        "{:?}",
        found.elapsed()
    );
    cluster.fill(300, 320).await;
    until_sound(partition).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 320).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_that_start_with_rot_in_different_places_are_whole_again() {
    let mut cluster = Cluster::start().await;
    cluster.fill(0, 300).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 300).await;
    cluster.checkpoint();
    let newest = cluster.at(node(1)).log().state().segments as usize - 1;
    cluster
        .damage_stopped(|at, disk| match at.get() {
            1 => disk.flip_bit(log(disk, 0), 100, 1),
            2 => disk.flip_bit(log(disk, newest), 100, 1),
            _ => {}
        })
        .await;
    let unsealed = cluster.at(node(2));
    until_sound(unsealed).await;
    // A start does not read what is sealed: the scrub finds it, or whoever reads it first.
    let first = &cluster.members[&node(1)];
    while first.replicator.repairs() == 0 {
        drop(first.partition.read(Offset::ZERO, 1).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until_sound(&first.partition).await;
    cluster.fill(300, 320).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 320).await;
    assert_eq!(cluster.members[&node(1)].replicator.repairs(), 1);
    assert_eq!(cluster.members[&node(2)].replicator.repairs(), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_in_what_is_not_sealed_of_a_majority_loses_nothing() {
    let mut cluster = Cluster::start().await;
    cluster.fill(0, 300).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 300).await;
    cluster.checkpoint();
    let newest = cluster.at(node(1)).log().state().segments as usize - 1;
    // Without two of them nobody leads, and so nobody knows anew what is committed.
    cluster
        .damage_stopped(|at, disk| match at.get() {
            1 => disk.flip_bit(log(disk, newest), 100, 1),
            2 => disk.flip_bit(log(disk, newest), 300, 1),
            _ => {}
        })
        .await;
    for at in [1, 2] {
        until_sound(cluster.at(node(at))).await;
    }
    cluster.fill(300, 320).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 320).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_no_other_can_help_says_so_and_comes_back_once_one_can() {
    let cluster = Cluster::start().await;
    cluster.fill(0, 300).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 300).await;
    cluster.checkpoint();
    let [follower, _] = cluster.followers().await;
    let partition = cluster.at(follower);
    cluster
        .disk(follower)
        .flip_bit(log(cluster.disk(follower), 0), 100, 3);
    cluster.cut_off(follower);
    find_rot(partition, 0).await;
    let failing = async {
        while !partition.repair().unwrap().contains("cut off") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, failing).await.unwrap();
    assert!(partition.repair().unwrap().starts_with("repairing"));
    assert!(partition.read(Offset::ZERO, 1).await.is_err());
    // Also whoever came in just before it was found is sent to another replica, and not away.
    let refused = partition.reserve(100, Instant::now()).await.unwrap_err();
    assert!(
        matches!(refused, AppendError::NotLeader { .. }),
        "{refused}"
    );
    cluster.heal();
    until_sound(partition).await;
    cluster.fill(300, 320).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 320).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_starts_with_rot_and_no_word_of_the_others_sends_producers_to_them() {
    let mut cluster = Cluster::start().await;
    cluster.fill(0, 300).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 300).await;
    let [rotten, _] = cluster.followers().await;
    cluster.cut_off(rotten);
    let member = cluster.members.remove(&rotten).unwrap();
    let disk = Arc::new(member.disk.fork(rotten.get()));
    disk.crash();
    member.partition.shutdown().await;
    member.store.close().unwrap();
    // It starts, and ends before its Raft has told who votes.
    let (store, _) = open_damaged(disk.clone());
    let newest = store.partition(key()).unwrap().state().segments as usize - 1;
    store.close().unwrap();
    let disk = Arc::new(disk.fork(rotten.get()));
    disk.flip_bit(log(&disk, newest), 100, 1);
    let founders = [1, 2, 3].map(node);
    let partition = cluster.run(rotten, disk, Origin::Founder(&founders)).await;
    assert!(partition.repair().is_some());
    let refused = partition.reserve(100, Instant::now()).await.unwrap_err();
    assert!(
        matches!(refused, AppendError::NotLeader { .. }),
        "{refused}"
    );
    cluster.heal();
    until_sound(&partition).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 300).await;
    cluster.stop().await;
}

/// What its last checkpoint knows of is itself alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_the_only_one_and_starts_with_rot_asks_whom_it_is_told_of() {
    let mut cluster = Cluster::of(&[1]).await;
    cluster.fill(0, 300).await;
    cluster.checkpoint();
    for joins in [2, 3].map(node) {
        cluster.add(joins, Origin::Joiner(None)).await;
        cluster.at(node(1)).add_learner(joins, LONG).await.unwrap();
    }
    cluster.hold_the_same(&[1, 2, 3], 0, 300).await;
    let all = [1, 2, 3].map(node);
    cluster.at(node(1)).change_voters(&all, LONG).await.unwrap();
    let member = cluster.members.remove(&node(1)).unwrap();
    let disk = Arc::new(member.disk.fork(1));
    disk.crash();
    member.partition.shutdown().await;
    member.store.close().unwrap();
    // Found at once, and not to be mended without the others.
    disk.flip_bit(log(&disk, 0).with_extension("seal"), 20, 3);
    disk.flip_bit(log(&disk, 0), 100, 3);
    let partition = cluster.run(node(1), disk, Origin::Joiner(None)).await;
    assert!(partition.damage().is_some());
    partition.note_holders(&all);
    until_sound(&partition).await;
    cluster.fill(300, 320).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 320).await;
    cluster.stop().await;
}

/// Lets the others delete what a replica with rot cannot repair meanwhile; where the log begins then.
async fn let_go(cluster: &Cluster) -> Offset {
    let policy = RetentionPolicy {
        max_records: Some(100),
        ..RetentionPolicy::default()
    };
    let (_, leader) = cluster.leader().await;
    let start = leader.enforce_retention(policy, NOW).await.unwrap();
    let cut = cluster.wires.cut.lock().clone();
    for (at, member) in &cluster.members {
        if !cut.contains(at) {
            until(|| member.partition.start_offset() == start).await;
        }
    }
    start
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_rot_in_what_all_others_let_go_takes_their_log_and_serves_again() {
    let mut cluster = Cluster::start().await;
    cluster.fill(0, 400).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 400).await;
    cluster.checkpoint();
    let [rotten, other] = cluster.followers().await;
    cluster.cut_off(rotten);
    let flipped = cluster.disk(rotten);
    flipped.flip_bit(log(flipped, 0), 100, 3);
    find_rot(cluster.at(rotten), 0).await;
    cluster.fill(400, 600).await;
    let start = let_go(&cluster).await;
    assert!(start > Offset::new(400), "{start}");
    cluster.heal();
    until_sound(cluster.at(rotten)).await;
    cluster.fill(600, 620).await;
    cluster.hold_the_same(&[1, 2, 3], start.get(), 620).await;
    assert_eq!(cluster.at(rotten).start_offset(), start);
    assert_eq!(cluster.members[&rotten].replicator.repairs(), 1);
    // It is a member like the others: with another one away, it makes the majority, before a crash and after.
    cluster.crash(rotten).await;
    cluster.cut_off(other);
    cluster.fill(620, 640).await;
    cluster.heal();
    cluster.hold_the_same(&[1, 2, 3], start.get(), 640).await;
    cluster.stop().await;
}
