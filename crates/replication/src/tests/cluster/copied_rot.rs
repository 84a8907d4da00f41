//! Rot that meets a copy of segments, where they come from and where they go: what is installed is what was written.

use std::path::PathBuf;

use quipu_model::Offset;
use quipu_storage::io::Disk as _;

use super::{
    super::key,
    Cluster,
    catch_up::until,
    repair::{find_rot, log, until_sound},
};

impl Cluster {
    /// Lets a follower fall behind, so that it must copy, and then only so many pieces reach it.
    async fn fall_behind(&self, pieces: u64) -> quipu_model::NodeId {
        self.fill(0, 100).await;
        self.hold_the_same(&[1, 2, 3], 0, 100).await;
        self.checkpoint();
        let [behind, _] = self.followers().await;
        self.cut_off(behind);
        self.fill(100, 1000).await;
        self.forget().await;
        *self.wires.copies_left.lock() = Some(pieces);
        self.heal();
        behind
    }

    async fn until_cut_off(&self) {
        until(|| *self.wires.copies_left.lock() == Some(0)).await;
    }

    fn copy_on(&self) {
        *self.wires.copies_left.lock() = None;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_where_a_copy_comes_from_is_found_by_it_and_repaired_and_the_copy_goes_on() {
    let cluster = Cluster::copying().await;
    let behind = cluster.fall_behind(5).await;
    cluster.until_cut_off().await;
    let (leader, leading) = cluster.leader().await;
    let disk = cluster.disk(leader);
    let path = log(disk, 3);
    let written = disk.file_bytes(&path).unwrap();
    disk.flip_bit(&path, 700, 2);
    cluster.copy_on();
    // The copy asks for it in the end.
    let repairs = || cluster.members[&leader].replicator.repairs();
    until(|| repairs() == 1).await;
    until_sound(leading).await;
    cluster.fill(1000, 1010).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 1010).await;
    assert_eq!(repairs(), 1);
    assert_eq!(cluster.members[&behind].replicator.repairs(), 0);
    let len = written.iter().rposition(|byte| *byte != 0).unwrap();
    assert!(disk.file_bytes(&path).unwrap()[..len] == written[..len]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_in_what_was_copied_before_a_crash_is_not_installed() {
    let mut cluster = Cluster::copying().await;
    let behind = cluster.fall_behind(9).await;
    cluster.until_cut_off().await;
    let disk = cluster.disk(behind);
    let dir = PathBuf::from(format!(
        "topics/{}/{}/incoming",
        key().topic,
        key().partition
    ));
    let names = disk.list(&dir).unwrap();
    let whole = names.iter().find(|name| name.ends_with(".seal")).unwrap();
    disk.flip_bit(dir.join(whole).with_extension("log"), 700, 2);
    cluster.crash(behind).await;
    cluster.copy_on();
    cluster.hold_the_same(&[1, 2, 3], 0, 1000).await;
    let repairs = cluster.members[&behind].replicator.repairs();
    assert_eq!(repairs, 0, "it was never in the log");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_that_is_found_where_a_copy_goes_is_repaired_first_and_then_the_copy_goes_on() {
    let cluster = Cluster::copying().await;
    let behind = cluster.fall_behind(3).await;
    cluster.until_cut_off().await;
    let disk = cluster.disk(behind);
    disk.flip_bit(log(disk, 0), 100, 3);
    find_rot(cluster.at(behind), 0).await;
    let end = cluster.at(behind).end_offset();
    assert!(end < Offset::new(1000), "{end}");
    cluster.copy_on();
    until_sound(cluster.at(behind)).await;
    cluster.fill(1000, 1010).await;
    cluster.hold_the_same(&[1, 2, 3], 0, 1010).await;
    assert_eq!(cluster.members[&behind].replicator.repairs(), 1);
    cluster.stop().await;
}
