//! A group of one voter, end to end.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, poll, stream::FuturesOrdered};
use quipu_model::{
    CleanupPolicy, LogId, Offset, ProducerEpoch, RaftIndex, Sequence, TopicConfig,
    batch::{BatchBuilder, Compression, split_batches},
};
use quipu_storage::{
    Control, ControlKind, LogEntry, Payload, RetentionPolicy,
    io::{Disk, FaultyDisk},
};
use tokio::time::Instant;

use super::{
    LONG, NODE, NOW, Node, at,
    disk::{Gate, GatedDisk},
    key, numbered, open, plain,
};
use crate::{Acks, AppendError, Origin};

/// Segments of a few batches.
fn small_segments() -> TopicConfig {
    TopicConfig {
        segment_bytes: 4096,
        ..TopicConfig::default()
    }
}

fn disk() -> Arc<FaultyDisk> {
    Arc::new(FaultyDisk::new(42))
}

async fn offsets_from(node: &Node, from: u64) -> Vec<u64> {
    let mut next = Offset::new(from);
    let mut bases = Vec::new();
    loop {
        let read = node.partition.read(next, 1 << 20).await.unwrap();
        if read.bytes.is_empty() {
            return bases;
        }
        for batch in split_batches(read.bytes) {
            bases.push(batch.unwrap().header().base_offset.get());
        }
        next = read.next_offset;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_can_be_read_at_once_and_first_offset_is_zero() {
    let node = Node::start(disk(), TopicConfig::default()).await;
    let mut end = 0;
    for records in [1, 5, 2] {
        let appended = node
            .partition
            .append(plain(records), Acks::All, LONG)
            .await
            .unwrap();
        assert_eq!(appended.base_offset, at(end));
        assert!(!appended.duplicate);
        end += u64::from(records);
        assert_eq!(*node.partition.high_watermark().borrow(), Offset::new(end));
    }
    assert_eq!(offsets_from(&node, 0).await, [0, 1, 6]);
    assert_eq!(node.partition.leader().0, Some(NODE));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_appends_keep_their_order() {
    let node = Node::start(disk(), TopicConfig::default()).await;
    let mut pipeline: FuturesOrdered<_> = (0..500)
        .map(|n| {
            let batch = numbered(1, 0, n * 2, 2);
            node.partition.append(batch, Acks::All, LONG)
        })
        .collect();
    let mut next = 0;
    while let Some(appended) = pipeline.next().await {
        assert_eq!(appended.unwrap().base_offset, at(next));
        next += 2;
    }
    assert_eq!(next, 1000);
    drop(pipeline);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weaker_acks_reach_the_log_too() {
    let node = Node::start(disk(), TopicConfig::default()).await;
    let append = |acks| node.partition.append(plain(1), acks, LONG);
    assert_eq!(append(Acks::None).await.unwrap().base_offset, None);
    assert_eq!(append(Acks::Leader).await.unwrap().base_offset, at(1));
    assert_eq!(append(Acks::All).await.unwrap().base_offset, at(2));
    assert_eq!(offsets_from(&node, 0).await, [0, 1, 2]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_sent_again_is_answered_with_its_first_offset_also_after_a_restart() {
    let disk = disk();
    let node = Node::start(disk.clone(), TopicConfig::default()).await;
    for n in 0..6 {
        let batch = numbered(9, 1, n * 3, 3);
        let appended = node.partition.append(batch, Acks::All, LONG).await.unwrap();
        assert_eq!(appended.base_offset, at(n as u64 * 3));
    }
    let again = async |node: &Node, n: i32| {
        let batch = numbered(9, 1, n * 3, 3);
        node.partition.append(batch, Acks::All, LONG).await
    };
    let check = async |node: &Node| {
        for n in 1..6 {
            let appended = again(node, n).await.unwrap();
            assert_eq!(appended.base_offset, at(n as u64 * 3));
            assert!(appended.duplicate);
        }
        let too_old = again(node, 0).await.unwrap_err();
        assert!(matches!(too_old, AppendError::DuplicateTooOld { .. }));
        let gap = again(node, 7).await.unwrap_err();
        let expected = Sequence::new(18);
        assert!(matches!(gap, AppendError::OutOfOrder { expected: e, .. } if e == expected));
        let fenced = numbered(9, 0, 18, 3);
        let fenced = node.partition.append(fenced, Acks::All, LONG).await;
        let current = ProducerEpoch::new(1);
        assert!(matches!(fenced, Err(AppendError::Fenced { current: c, .. }) if c == current));
        for error in [too_old, gap, fenced.unwrap_err()] {
            assert!(error.is_definite() && !error.is_retryable(), "{error}");
        }
    };
    check(&node).await;
    node.stop().await;

    let node = Node::start(disk, TopicConfig::default()).await;
    check(&node).await;
    assert_eq!(offsets_from(&node, 0).await, [0, 3, 6, 9, 12, 15]);
    assert_eq!(again(&node, 6).await.unwrap().base_offset, at(18));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_set_producer_fields_are_refused() {
    let node = Node::start(disk(), TopicConfig::default()).await;
    for (id, epoch, sequence) in [(5, -1, 0), (5, 0, -1)] {
        let batch = numbered(id, epoch, sequence, 1);
        let error = node.partition.append(batch, Acks::All, LONG).await;
        assert!(matches!(error, Err(AppendError::BadProducerFields)));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn epoch_and_sequence_mean_nothing_without_a_producer_id() {
    let node = Node::start(disk(), TopicConfig::default()).await;
    for base in 0..3 {
        let batch = numbered(-1, 0, 0, 1);
        let appended = node.partition.append(batch, Acks::All, LONG).await.unwrap();
        assert_eq!(
            (appended.base_offset, appended.duplicate),
            (at(base), false)
        );
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_or_shown_before_it_is_flushed() {
    let gate = Arc::new(Gate::default());
    let gated = GatedDisk {
        disk: disk(),
        gate: Arc::clone(&gate),
    };
    let node = Node::start(Arc::new(gated), TopicConfig::default()).await;
    gate.hold();
    let partition = node.partition.clone();
    let first = || partition.append(numbered(1, 0, 0, 4), Acks::All, LONG);
    let mut waiting = Box::pin(first());
    assert!(poll!(&mut waiting).is_pending());
    // The leader's own append is enough where others have it too: nobody does here.
    let led = partition.append(numbered(1, 0, 4, 1), Acks::Leader, LONG);
    let mut led = Box::pin(led);
    assert!(poll!(&mut led).is_pending());
    // A duplicate in flight is not acknowledged earlier than its original.
    let mut duplicate = Box::pin(first());
    for early in [&mut waiting, &mut led, &mut duplicate] {
        let early = tokio::time::timeout(Duration::from_millis(50), early).await;
        assert!(early.is_err(), "acknowledged before the flush");
    }
    assert_eq!(*node.partition.high_watermark().borrow(), Offset::ZERO);
    assert!(offsets_from(&node, 0).await.is_empty());

    gate.let_go();
    assert_eq!(waiting.await.unwrap().base_offset, at(0));
    assert_eq!(led.await.unwrap().base_offset, at(4));
    let duplicate = duplicate.await.unwrap();
    assert_eq!((duplicate.base_offset, duplicate.duplicate), (at(0), true));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_is_indefinite() {
    let gate = Arc::new(Gate::default());
    let gated = GatedDisk {
        disk: disk(),
        gate: Arc::clone(&gate),
    };
    let node = Node::start(Arc::new(gated), TopicConfig::default()).await;
    gate.hold();
    let short = Duration::from_millis(20);
    let batch = || numbered(1, 0, 0, 1);
    let error = node.partition.append(batch(), Acks::All, short).await;
    let error = error.unwrap_err();
    assert!(matches!(error, AppendError::TimedOut(_)));
    assert!(!error.is_definite() && error.is_retryable());
    gate.let_go();
    let again = node
        .partition
        .append(batch(), Acks::All, LONG)
        .await
        .unwrap();
    assert_eq!((again.base_offset, again.duplicate), (at(0), true));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_flush_nothing_more_is_acknowledged() {
    let disk = disk();
    let node = Node::start(disk.clone(), TopicConfig::default()).await;
    let append = || node.partition.append(plain(1), Acks::All, LONG);
    append().await.unwrap();
    disk.fail_sync_at(1);
    let error = append().await.unwrap_err();
    assert!(matches!(error, AppendError::Failed(_)), "{error:?}");
    assert!(!error.is_definite());
    let error = append().await.unwrap_err();
    assert!(matches!(error, AppendError::Failed(_)), "{error:?}");
    assert_eq!(*node.partition.high_watermark().borrow(), Offset::new(1));
    node.partition.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_crash() {
    let disk = disk();
    let node = Node::start(disk.clone(), small_segments()).await;
    for n in 0..100 {
        let batch = numbered(4, 0, n * 5, 5);
        node.partition.append(batch, Acks::All, LONG).await.unwrap();
    }
    // What the disk holds at this moment, were the power to fail now; the node goes on with the original.
    let crashed = disk.fork(7);
    crashed.crash();
    node.stop().await;

    let node = Node::start(Arc::new(crashed), small_segments()).await;
    let expected: Vec<u64> = (0..100).map(|n| n * 5).collect();
    assert_eq!(offsets_from(&node, 0).await, expected);
    let again = numbered(4, 0, 495, 5);
    let again = node.partition.append(again, Acks::All, LONG).await.unwrap();
    assert_eq!((again.base_offset, again.duplicate), (at(495), true));
    let next = numbered(4, 0, 500, 1);
    let next = node.partition.append(next, Acks::All, LONG).await.unwrap();
    assert_eq!(next.base_offset, at(500));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_trims_and_purges_and_a_restart_keeps_what_is_left() {
    let disk = disk();
    let node = Node::start(disk.clone(), small_segments()).await;
    let policy = RetentionPolicy {
        max_records: Some(300),
        ..RetentionPolicy::default()
    };
    for round in 0..3 {
        for n in 0..200 {
            let batch = numbered(4, 0, (round * 200 + n) * 5, 5);
            node.partition.append(batch, Acks::All, LONG).await.unwrap();
        }
        let start = node.partition.enforce_retention(policy, NOW).await.unwrap();
        let end = (round as u64 + 1) * 1000;
        assert!(
            start.get() <= end - 300 && start.get() >= end - 500,
            "{start}"
        );
        assert_eq!(node.partition.start_offset(), start);
    }
    let kept_from = node.partition.start_offset().get();
    let log = node.store.partition(key()).unwrap();
    // Raft's log is purged behind the trim, by the keeper.
    let mut waited = 0;
    while log.state().last_purged.is_none() && waited < 1000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        waited += 1;
    }
    assert!(
        log.state().last_purged.is_some(),
        "Raft's log was not purged"
    );
    // What a killed process leaves.
    let killed = disk.fork(8);
    node.stop().await;

    for disk in [disk as Arc<dyn Disk>, Arc::new(killed)] {
        let node = Node::start(disk, small_segments()).await;
        assert_eq!(node.partition.start_offset().get(), kept_from);
        let bases = offsets_from(&node, kept_from).await;
        let expected: Vec<u64> = (kept_from / 5..600).map(|n| n * 5).collect();
        assert_eq!(bases, expected);
        let next = numbered(4, 0, 3000, 1);
        let next = node.partition.append(next, Acks::All, LONG).await.unwrap();
        assert_eq!(next.base_offset, at(3000));
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trim_that_a_crash_came_before_is_done_at_the_next_start() {
    let disk = disk();
    let node = Node::start(disk.clone(), small_segments()).await;
    for n in 0..200 {
        let batch = numbered(4, 0, n * 5, 5);
        node.partition.append(batch, Acks::All, LONG).await.unwrap();
    }
    node.stop().await;

    // The entry counts as applied, and nothing is deleted yet.
    let store = open(disk.clone());
    let log = store.partition(key()).unwrap();
    let LogId { term, index } = log.state().last.unwrap();
    let index = RaftIndex::new(index.get() + 1);
    let id = LogId { term, index };
    let control = Control {
        kind: ControlKind::Trim,
        bytes: 700_u64.to_be_bytes().to_vec().into(),
    };
    let entry = LogEntry {
        id,
        payload: Payload::Control(control),
    };
    let (tell, told) = std::sync::mpsc::channel();
    let done = Box::new(move |result| tell.send(result).unwrap());
    log.append(vec![entry], done).unwrap();
    told.recv().unwrap().unwrap();
    log.set_applied(id, None);
    store.checkpoint().unwrap();
    store.close().unwrap();

    let node = Node::start(disk, small_segments()).await;
    let trimming = async {
        while node.partition.start_offset() < Offset::new(500) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, trimming).await.unwrap();
    assert!(node.partition.start_offset() <= Offset::new(700));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_leaves_the_newest_of_each_key_and_a_restart_finds_it() {
    let disk = disk();
    let config = TopicConfig {
        cleanup: CleanupPolicy {
            delete: false,
            compact: true,
        },
        ..small_segments()
    };
    let node = Node::start(disk.clone(), config.clone()).await;
    for n in 0..200 {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.append(NOW, Some(&[n % 7]), Some(&[n; 200]), &[]);
        let batch = builder.build().unwrap();
        node.partition.append(batch, Acks::All, LONG).await.unwrap();
    }
    let log = node.store.partition(key()).unwrap();
    let deadline = Instant::now() + LONG;
    // The segment that is written stays as it is, and so may the one before it.
    while log.state().size_bytes > 12 << 10 {
        assert!(Instant::now() < deadline, "{:?}", log.state());
        node.partition.prepare_compaction(NOW).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = offsets_from(&node, 0).await;
    assert!(left.ends_with(&(193..200).collect::<Vec<_>>()));
    let killed = disk.fork(8);
    node.stop().await;

    for disk in [disk as Arc<dyn Disk>, Arc::new(killed)] {
        let node = Node::start(disk, config.clone()).await;
        assert!(
            offsets_from(&node, 0)
                .await
                .ends_with(&(193..200).collect::<Vec<_>>())
        );
        let next = node
            .partition
            .append(plain(1), Acks::All, LONG)
            .await
            .unwrap();
        assert_eq!(next.base_offset, at(200));
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_deleted_before_an_offset_and_not_past_the_end() {
    let disk = disk();
    let node = Node::start(disk.clone(), small_segments()).await;
    for _ in 0..10 {
        let appending = node.partition.append(plain(5), Acks::All, LONG);
        appending.await.unwrap();
    }
    let deleted = node.partition.delete_before(Offset::new(23)).await.unwrap();
    assert_eq!(deleted, Offset::new(23));
    let again = node.partition.delete_before(Offset::new(7)).await.unwrap();
    assert_eq!(again, Offset::new(23));
    let refused = node.partition.delete_before(Offset::new(51)).await;
    assert!(matches!(refused, Err(AppendError::Refused { .. })));
    let crashed = disk.fork(9);
    crashed.crash();
    node.stop().await;
    let node = Node::start(Arc::new(crashed), small_segments()).await;
    assert_eq!(node.partition.start_offset(), Offset::new(23));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_a_clear_error_and_heals() {
    let disk = disk();
    let node = Node::start(disk.clone(), small_segments()).await;
    node.partition
        .append(plain(1), Acks::All, LONG)
        .await
        .unwrap();
    disk.set_capacity(1);
    let error = loop {
        let append = node.partition.append(plain(50), Acks::All, LONG);
        if let Err(error) = append.await {
            break error;
        }
    };
    assert!(matches!(error, AppendError::Reserve(_)), "{error:?}");
    assert!(error.is_definite() && error.is_retryable());
    disk.set_capacity(u64::MAX);
    node.partition
        .append(plain(1), Acks::All, LONG)
        .await
        .unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_shutdown_appends_are_refused() {
    let node = Node::start(disk(), TopicConfig::default()).await;
    node.partition.shutdown().await;
    let error = node.partition.append(plain(1), Acks::All, LONG).await;
    assert!(matches!(error, Err(AppendError::ShuttingDown)));
    assert!(!node.partition.is_leader());
    node.store.close().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_partitions_start_and_write_side_by_side() {
    let node = Node::start(disk(), TopicConfig::default()).await;
    let mut partitions = Vec::new();
    for n in 0..50 {
        let mut key = key();
        key.partition = quipu_model::PartitionId::new(100 + n);
        let config = TopicConfig::default();
        let partition = node
            .replicator
            .start(key, Origin::Founder(&[NODE]), config)
            .await
            .unwrap();
        partition.wait_leader(LONG).await.unwrap();
        partitions.push(partition);
    }
    for partition in &partitions {
        let appended = partition.append(plain(1), Acks::All, LONG).await.unwrap();
        assert_eq!(appended.base_offset, at(0));
    }
    for partition in partitions {
        partition.shutdown().await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_core_died_is_started_again_and_counted() {
    let node = Node::start(disk(), TopicConfig::default()).await;
    let append = async |sequence| {
        let batch = numbered(3, 0, sequence, 1);
        node.partition.append(batch, Acks::All, LONG).await
    };
    append(0).await.unwrap();
    let raft = node.partition.raft().unwrap();
    raft.external_request(|_| panic!("a broken invariant"))
        .await
        .unwrap();
    let mut sequence = 1;
    while sequence < 4 {
        match append(sequence).await {
            Ok(appended) => {
                assert_eq!(appended.base_offset, at(sequence as u64));
                sequence += 1;
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    let mut registry = prometheus_client::registry::Registry::default();
    node.replicator.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("replica_restarts_total 1"), "{text}");
    node.stop().await;
}
