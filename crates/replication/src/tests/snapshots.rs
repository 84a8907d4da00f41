//! What a snapshot must find before it counts.

use std::sync::Arc;

use openraft::{
    alias::SnapshotMetaOf,
    storage::{RaftSnapshotBuilder as _, RaftStateMachine as _},
};
use quipu_model::{LogId, Offset, RaftIndex, Term, TopicConfig};
use quipu_storage::io::FaultyDisk;

use super::{LONG, NODE, Node, key, open, plain};
use crate::{
    Acks,
    group::Group,
    state_machine::{Manifest, StateMachine},
    type_config::{StoredMembership, Types, to_raft_id},
};

#[tokio::test]
async fn a_snapshot_counts_only_where_the_log_that_it_names_is_here() {
    let store = open(Arc::new(FaultyDisk::new(1)));
    let log = store.create_partition(key(), TopicConfig::default());
    let group = Group::load(NODE, Arc::clone(&store), log.unwrap()).unwrap();
    let last = LogId::new(2, 40);
    let next_offset = Offset::new(30);
    let elsewhere = quipu_storage::Manifest {
        last,
        start_offset: Offset::ZERO,
        end_offset: next_offset,
        terms: vec![(Term::new(2), RaftIndex::new(0))],
        segments: Vec::new(),
        producers: bytes::Bytes::new(),
        origin: bytes::Bytes::new(),
    };
    let snapshot = Manifest {
        next_offset,
        log: Some(elsewhere),
    };
    let meta = SnapshotMetaOf::<Types> {
        last_log_id: Some(to_raft_id(last)),
        last_membership: StoredMembership::default(),
    };
    let mut machine = StateMachine::new(group);
    assert!(machine.install_snapshot(&meta, snapshot).await.is_err());
    let current = machine.get_current_snapshot().await.unwrap();
    assert!(current.is_none(), "it would be installed at the next start");
    assert_eq!(machine.applied_state().await.unwrap().0, None);
}

/// Who installs it would forget what producers had sent, were the log not to come with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_the_log_was_trimmed_past_is_sent_as_a_later_one() {
    let node = Node::start(Arc::new(FaultyDisk::new(1)), TopicConfig::default()).await;
    let append = || node.partition.append(plain(5), Acks::All, LONG);
    append().await.unwrap();
    let group = Arc::clone(&node.partition.inner().group);
    let mut machine = StateMachine::new(Arc::clone(&group));
    while group.applied_point().unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    let mut builder = machine.get_snapshot_builder().await;
    builder.build_snapshot().await.unwrap();
    append().await.unwrap();
    // Noted a little later than it is acknowledged.
    let applied = || group.applied_point().unwrap().unwrap().next_offset;
    while applied() < Offset::new(10) {
        tokio::task::yield_now().await;
    }
    node.partition.log().trim(Offset::new(8)).unwrap();
    let sent = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(sent.snapshot.next_offset, Offset::new(10));
    let log = sent.snapshot.log.unwrap();
    assert_eq!(
        (log.start_offset, log.end_offset),
        (Offset::new(8), Offset::new(10))
    );
    assert_eq!(sent.meta.last_log_id, Some(to_raft_id(log.last)));
    node.stop().await;
}
