use std::collections::HashMap;

use quipu_model::{NodeId, PartitionId, PartitionKey, TopicConfig, TopicName};
use quipu_proto::internal::v1::{
    MetadataRecord, NodeDraining, NodeRegistered, NodeRemoved, PartitionAssignment,
    ProducerIdsReserved, ReassignmentBegun, ReassignmentDone, TopicConfigChanged, TopicCreated,
    TopicDeleted, metadata_record::Record,
};

use super::{ImageError, METADATA_KEY, MetadataImage};

fn image() -> MetadataImage {
    MetadataImage::empty(&[NodeId::new(1)])
}

fn record(record: Record) -> MetadataRecord {
    MetadataRecord {
        record: Some(record),
    }
}

fn created(name: &str, id: u8, settings: &[(&str, &str)]) -> MetadataRecord {
    record(Record::TopicCreated(TopicCreated {
        name: name.to_owned(),
        topic_id: vec![id; 16].into(),
        partitions: vec![PartitionAssignment { replicas: vec![1] }; 3],
        config: owned(settings),
    }))
}

fn owned(settings: &[(&str, &str)]) -> HashMap<String, String> {
    settings
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn name(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

#[test]
fn an_empty_cluster_has_its_metadata_topic() {
    let image = image();
    let topic = image.topic(&name("__cluster_metadata")).unwrap();
    assert_eq!(topic.id, MetadataImage::TOPIC_ID);
    assert_eq!(topic.assignments.len(), 1);
    assert_eq!(topic.config.retention_ms, None);
}

#[test]
fn topics_come_change_and_go() {
    let mut image = image();
    image
        .apply(created("orders", 7, &[("retention.bytes", "1000")]))
        .unwrap();
    let before = image.clone();
    let change = Record::TopicConfigChanged(TopicConfigChanged {
        topic_id: vec![7; 16].into(),
        config: owned(&[("segment.bytes", "8192")]),
    });
    image.apply(record(change)).unwrap();

    let old = before.topic(&name("orders")).unwrap();
    assert_eq!(old.config.retention_bytes, Some(1000));
    let new = image.topic(&name("orders")).unwrap();
    assert_eq!(new.assignments.len(), 3);
    let expected = TopicConfig {
        segment_bytes: 8192,
        ..TopicConfig::default()
    };
    assert_eq!(new.config, expected);

    let deleted = Record::TopicDeleted(TopicDeleted {
        topic_id: vec![7; 16].into(),
    });
    image.apply(record(deleted)).unwrap();
    assert!(image.topic(&name("orders")).is_none());
    image.apply(created("orders", 8, &[])).unwrap();
}

#[test]
fn contradictions_are_refused_and_change_nothing() {
    let mut image = image();
    image.apply(created("orders", 7, &[])).unwrap();
    let unknown = TopicDeleted {
        topic_id: vec![9; 16].into(),
    };
    let short = TopicDeleted {
        topic_id: vec![7; 15].into(),
    };
    for bad in [
        created("orders", 8, &[]),
        created("others", 7, &[]),
        created("a/b", 9, &[]),
        created("others", 9, &[("no.such", "1")]),
        record(Record::TopicDeleted(unknown)),
        record(Record::TopicDeleted(short)),
        MetadataRecord { record: None },
    ] {
        assert!(image.apply(bad.clone()).is_err(), "{bad:?}");
    }
    assert_eq!(image.topics().count(), 2);
}

fn replicas(image: &MetadataImage, partition: usize) -> [Vec<u64>; 3] {
    let topic = image.topic(&name("orders")).unwrap();
    let assignment = &topic.assignments[partition];
    [
        &assignment.replicas,
        &assignment.leaving,
        &assignment.joining,
    ]
    .map(|nodes| nodes.iter().map(|node| node.get()).collect())
}

#[test]
fn a_partition_moves_and_keeps_its_holders_until_it_is_done() {
    let mut image = image();
    image.apply(created("orders", 7, &[])).unwrap();
    let begun = |replicas: &[u64]| {
        record(Record::ReassignmentBegun(ReassignmentBegun {
            topic_id: vec![7; 16].into(),
            partition: 1,
            replicas: replicas.to_vec(),
        }))
    };
    let done_at = |replicas: &[u64], index| {
        record(Record::ReassignmentDone(ReassignmentDone {
            topic_id: vec![7; 16].into(),
            partition: 1,
            replicas: replicas.to_vec(),
            leader: 3,
            term: 5,
            index,
        }))
    };
    let done = |replicas: &[u64]| done_at(replicas, 10);
    image.apply(begun(&[2, 3])).unwrap();
    assert_eq!(replicas(&image, 1), [vec![2, 3], vec![1], vec![2, 3]]);
    // Another move before the first is done: whoever held it or was to keeps it until then.
    image.apply(begun(&[3, 4])).unwrap();
    assert_eq!(replicas(&image, 1), [vec![3, 4], vec![2, 1], vec![3, 4]]);
    assert!(image.apply(done(&[2, 3])).unwrap_err().is_void());
    image.apply(done(&[3, 4])).unwrap();
    assert_eq!(replicas(&image, 1), [vec![3, 4], vec![], vec![]]);
    // The others are as they were made.
    let topic = image.topic(&name("orders")).unwrap();
    let founders = topic.assignments.iter().map(|a| a.founders.len());
    assert_eq!(founders.collect::<Vec<_>>(), [1, 0, 1]);
    // What was said of a move before is void, though the same nodes are wanted again.
    for replicas in [&[4, 5], &[3, 4]] {
        image.apply(begun(replicas)).unwrap();
    }
    assert!(image.apply(done_at(&[3, 4], 9)).unwrap_err().is_void());
    image.apply(done_at(&[3, 4], 20)).unwrap();
    let settled = image.topic(&name("orders")).unwrap().assignments[1].settled;
    let settled = settled.unwrap();
    assert_eq!((settled.leader.term.get(), settled.index.get()), (5, 20));
}

#[test]
fn a_removed_node_never_comes_back() {
    let mut image = image();
    let registered = |node_id| {
        record(Record::Node(NodeRegistered {
            node_id,
            address: "localhost:9093".to_owned(),
            directory_id: vec![1; 16].into(),
            rack: String::new(),
            kafka_address: String::new(),
        }))
    };
    let removed = |node_id| record(Record::NodeRemoved(NodeRemoved { node_id }));
    image.apply(registered(2)).unwrap();
    image
        .apply(record(Record::NodeDraining(NodeDraining { node_id: 2 })))
        .unwrap();
    // A restart does not undo it.
    image.apply(registered(2)).unwrap();
    assert!(image.nodes[&NodeId::new(2)].draining);
    image.apply(removed(2)).unwrap();
    assert!(image.apply(removed(2)).unwrap_err().is_void());
    assert!(image.apply(registered(2)).unwrap_err().is_void());
    assert!(image.nodes.is_empty());
}

#[test]
fn producer_ids_never_go_back() {
    let mut image = image();
    let block = |next_id| {
        record(Record::ProducerIdsReserved(ProducerIdsReserved {
            node_id: 1,
            next_id,
        }))
    };
    image.apply(block(1000)).unwrap();
    assert!(matches!(
        image.apply(block(1000)),
        Err(ImageError::ProducerIdsGoBack { .. })
    ));
    assert_eq!(image.next_producer_id, 1000);
}

#[test]
fn a_node_that_joined_keeps_the_metadata_and_only_partitions_assigned_to_it() {
    let mut image = image();
    image.apply(created("orders", 7, &[])).unwrap();
    let orders = image.topic(&name("orders")).unwrap().id;
    let orders = PartitionKey {
        topic: orders,
        partition: PartitionId::new(0),
    };
    for (key, first, joined) in [(METADATA_KEY, false, false), (orders, false, true)] {
        assert_eq!(image.is_elsewhere(key, NodeId::new(1)), first);
        assert_eq!(image.is_elsewhere(key, NodeId::new(4)), joined);
    }
}
