use std::{collections::HashMap, sync::Arc};

use quipu_model::{NodeId, PartitionId, PartitionKey, TimestampMs, TopicConfig, TopicId};
use quipu_proto::internal::v1::{
    MetadataRecord, PartitionAssignment, ReassignmentBegun, TopicCreated, metadata_record::Record,
};
use quipu_replication::{NoPeers, Replicator};
use quipu_storage::{
    StoreConfig, UnrecoveredStore,
    io::{FaultyDisk, ManualClock},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{super::MetadataImage, Metadata, PartitionTable, Reconciler, Running, Watcher};

const NODE: NodeId = NodeId::new(1);

#[derive(Debug)]
struct Unwatched;

impl Watcher for Unwatched {
    fn started(&self, _: &Running) {}
}

/// Two partitions, both of them on this node.
fn image() -> MetadataImage {
    let mut image = MetadataImage::empty(&[NODE]);
    let created = TopicCreated {
        name: "orders".to_owned(),
        topic_id: vec![7; 16].into(),
        partitions: vec![PartitionAssignment { replicas: vec![1] }; 2],
        config: HashMap::new(),
    };
    let record = Some(Record::TopicCreated(created));
    image.apply(MetadataRecord { record }).unwrap();
    image
}

fn key(partition: u32) -> PartitionKey {
    PartitionKey {
        topic: TopicId::from_bytes([7; 16]),
        partition: PartitionId::new(partition),
    }
}

fn reconciler(image: MetadataImage) -> Reconciler {
    let clock = Arc::new(ManualClock::new(TimestampMs::new(1)));
    let disk = Arc::new(FaultyDisk::new(1));
    let opened = UnrecoveredStore::open(disk, clock, StoreConfig::default()).unwrap();
    let store = Arc::new(opened.recover().unwrap().0);
    Reconciler {
        node: NODE,
        replicator: Replicator::new(NODE, Arc::clone(&store), Arc::new(NoPeers)),
        store,
        table: Arc::new(PartitionTable::new(NODE)),
        metadata: Arc::new(Metadata::of(image)),
        stop: CancellationToken::new(),
        reconciled: watch::Sender::default(),
        caught_up: watch::Sender::new(false),
        watcher: Arc::new(Unwatched),
    }
}

#[tokio::test]
async fn no_replica_begins_without_files_as_long_as_the_image_may_be_old() {
    let reconciler = reconciler(image());
    let here = key(1);
    let made = reconciler
        .store
        .create_partition(here, TopicConfig::default());
    drop(made.unwrap());
    let runs = |partition| reconciler.table.replica(key(partition)).is_some();
    reconciler.reconcile().await;
    assert_eq!([runs(0), runs(1)], [false, true]);
    reconciler.caught_up().await;
    reconciler.reconcile().await;
    assert_eq!([runs(0), runs(1)], [true, true]);
}

/// Nobody else would begin the group, and it could never move.
#[tokio::test]
async fn a_partition_that_is_moved_before_it_was_begun_is_begun_where_it_was_made() {
    let mut image = image();
    let begun = ReassignmentBegun {
        topic_id: vec![7; 16].into(),
        partition: 1,
        replicas: vec![2],
    };
    let record = Some(Record::ReassignmentBegun(begun));
    image.apply(MetadataRecord { record }).unwrap();
    let reconciler = reconciler(image);
    reconciler.caught_up().await;
    reconciler.reconcile().await;
    let partition = reconciler.table.replica(key(1)).unwrap();
    assert!(partition.is_leader());
}
