//! What a snapshot must find before it counts.

use std::sync::Arc;

use openraft::{alias::SnapshotMetaOf, storage::RaftStateMachine as _};
use quipu_model::{LogId, Offset, RaftIndex, Term, TopicConfig};
use quipu_storage::io::FaultyDisk;

use super::{NODE, key, open};
use crate::{
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
