//! Replicas over the real storage code.

mod cluster;
mod disk;
mod one_node;
mod raft_suite;
mod snapshots;

use std::{sync::Arc, time::Duration};

use quipu_model::{
    NodeId, Offset, PartitionId, PartitionKey, ProducerEpoch, ProducerId, RecordBatch, Sequence,
    TimestampMs, TopicConfig, TopicId,
    batch::{BatchBuilder, Compression},
};
use quipu_storage::{
    RecoveryReport, Store, StoreConfig, UnrecoveredStore,
    io::{Disk, ManualClock},
};

use crate::{NoPeers, Partition, Replicator};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
pub(crate) const NODE: NodeId = NodeId::new(1);
pub(crate) const NOW: TimestampMs = TimestampMs::new(1_700_000_000_000);

pub(crate) fn key() -> PartitionKey {
    PartitionKey {
        topic: TopicId::from_bytes([7; 16]),
        partition: PartitionId::new(3),
    }
}

fn small_config() -> StoreConfig {
    StoreConfig {
        wal_file_bytes: 1 << 20,
        checkpoint_bytes: 4 << 20,
        wal_max_bytes: 16 << 20,
        ..StoreConfig::default()
    }
}

pub(crate) fn open(disk: Arc<dyn Disk>) -> Arc<Store> {
    let (store, report) = open_damaged(disk);
    assert!(report.damaged.is_empty(), "{:?}", report.damaged);
    store
}

/// Opens a store in which partitions may be damaged.
fn open_damaged(disk: Arc<dyn Disk>) -> (Arc<Store>, RecoveryReport) {
    let clock = Arc::new(ManualClock::new(NOW));
    let unrecovered = UnrecoveredStore::open(disk, clock, small_config()).unwrap();
    let (store, report) = unrecovered.recover().unwrap();
    (Arc::new(store), report)
}

/// A node of one, with its partition.
struct Node {
    store: Arc<Store>,
    replicator: Replicator,
    partition: Partition,
}

impl Node {
    async fn start(disk: Arc<dyn Disk>, config: TopicConfig) -> Self {
        let store = open(disk);
        let replicator = Replicator::new(NODE, Arc::clone(&store), Arc::new(NoPeers));
        let partition = replicator.start(key(), &[NODE], config).await.unwrap();
        partition.wait_leader(LONG).await.unwrap();
        Self {
            store,
            replicator,
            partition,
        }
    }

    /// Stops the replica and the store as an operator does.
    async fn stop(self) {
        self.partition.shutdown().await;
        self.store.close().unwrap();
    }
}

/// A batch of records whose values say where they belong.
fn batch(records: u32) -> BatchBuilder {
    let mut builder = BatchBuilder::new(Compression::None);
    for n in 0..records {
        builder.append(NOW, None, Some(&n.to_be_bytes()), &[]);
    }
    builder
}

pub(crate) fn plain(records: u32) -> RecordBatch {
    batch(records).build().unwrap()
}

fn numbered(producer: i64, epoch: i16, sequence: i32, records: u32) -> RecordBatch {
    let mut builder = batch(records);
    builder.set_producer(
        ProducerId::new(producer),
        ProducerEpoch::new(epoch),
        Sequence::new(sequence),
    );
    builder.build().unwrap()
}

fn at(offset: u64) -> Option<Offset> {
    Some(Offset::new(offset))
}
