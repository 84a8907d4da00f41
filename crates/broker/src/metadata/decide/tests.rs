use quipu_model::{NodeId, TopicId};
use quipu_proto::{
    internal::v1::{MetadataRecord, metadata_record::Record},
    peer::v1::{
        AddPartitions, AlterTopic, CreateTopic, DeleteTopic, DrainNode, FinishReassignment,
        PartitionPlacement, Reassign, RegisterNode, RemoveNode, ReserveProducerIds,
        change_request::Change,
    },
};

use super::{create_topic, decide};
use crate::{error::Reason, metadata::MetadataImage};

fn register(node_id: u64, directory: u8) -> Change {
    Change::RegisterNode(RegisterNode {
        node_id,
        address: format!("host{node_id}:9093"),
        directory_id: vec![directory; 16].into(),
        rack: String::new(),
        kafka_address: String::new(),
    })
}

fn new_topic(name: &str, partitions: u32, replication_factor: u32) -> CreateTopic {
    CreateTopic {
        name: name.to_owned(),
        partitions,
        replication_factor,
        ..CreateTopic::default()
    }
}

fn take(image: &mut MetadataImage, records: Vec<Record>) {
    for record in records {
        let record = Some(record);
        image.apply(MetadataRecord { record }).unwrap();
    }
}

fn make(image: &mut MetadataImage, change: Change) {
    let records = decide(image, change).unwrap();
    take(image, records);
}

/// Nodes 1 to `nodes`, and the topic "orders" of two partitions with three replicas, or as many as there are nodes.
fn cluster(nodes: u64) -> MetadataImage {
    let mut image = MetadataImage::empty(&[NodeId::new(1)]);
    for node in 1..=nodes {
        make(&mut image, register(node, node as u8));
    }
    let factor = nodes.min(3) as u32;
    let topic = new_topic("orders", 2, factor);
    let records = create_topic(&image, topic, TopicId::from_bytes([7; 16])).unwrap();
    take(&mut image, records);
    image
}

fn replicas(image: &MetadataImage) -> Vec<Vec<u64>> {
    let orders = image
        .topics()
        .find(|topic| topic.id == TopicId::from_bytes([7; 16]));
    let assignments = orders.unwrap().assignments.iter();
    assignments
        .map(|a| a.replicas.iter().map(|node| node.get()).collect())
        .collect()
}

fn refusal(image: &MetadataImage, change: Change) -> (Reason, String) {
    let error = decide(image, change).unwrap_err();
    (error.reason, error.message)
}

#[test]
fn the_first_node_forms_the_cluster_and_others_join_it() {
    let mut image = MetadataImage::empty(&[NodeId::new(1)]);
    make(&mut image, register(1, 1));
    let formed = image.cluster_id.unwrap();
    make(&mut image, register(2, 2));
    assert_eq!(image.cluster_id, Some(formed));
    // Once more changes nothing.
    assert_eq!(decide(&image, register(2, 2)).unwrap(), []);
}

#[test]
fn a_node_with_another_directory_is_refused_and_told_what_to_do() {
    let (reason, message) = refusal(&cluster(3), register(3, 99));
    assert_eq!(reason, Reason::InvalidRequest);
    assert!(
        message.contains("quipu cluster decommission 3"),
        "{message}"
    );
}

#[test]
fn a_topic_that_says_nothing_gets_three_replicas_where_there_are_three_nodes() {
    for (nodes, factor) in [(1, 1), (2, 1), (3, 3), (4, 3)] {
        let mut image = cluster(nodes);
        make(&mut image, Change::CreateTopic(new_topic("a", 0, 0)));
        let topic = image.topics().find(|topic| topic.name.as_str() == "a");
        let assignments = &topic.unwrap().assignments;
        assert_eq!(assignments.len(), 1);
        assert_eq!(assignments[0].replicas.len(), factor, "{nodes}");
    }
}

#[test]
fn a_topic_is_made_where_it_is_wanted_or_refused() {
    let mut image = cluster(3);
    let placed = |places: &[&[u64]]| {
        let place = |replicas: &&[u64]| PartitionPlacement {
            replicas: replicas.to_vec(),
        };
        Change::CreateTopic(CreateTopic {
            placement: places.iter().map(place).collect(),
            ..new_topic("placed", 0, 0)
        })
    };
    for (places, why) in [
        (&[&[1_u64, 4][..]][..], "not registered"),
        (&[&[2, 2]], "named twice"),
        (&[&[1, 2], &[3]], "as many replicas"),
        (&[&[]], "0 replicas"),
    ] {
        let (reason, message) = refusal(&image, placed(places));
        assert_eq!(reason, Reason::InvalidRequest);
        assert!(message.contains(why), "{message}");
    }
    let wanted: [&[u64]; 3] = [&[3, 1], &[2, 3], &[1, 2]];
    make(&mut image, placed(&wanted));
    let topic = image.topics().find(|topic| topic.name.as_str() == "placed");
    for (assignment, wanted) in topic.unwrap().assignments.iter().zip(wanted) {
        let nodes: Vec<_> = assignment.replicas.iter().map(|node| node.get()).collect();
        assert_eq!(nodes, wanted);
        assert!(!assignment.is_moving());
    }
}

#[test]
fn a_topic_waits_for_the_first_nodes_where_it_may_need_them() {
    let mut image = MetadataImage::empty(&[1, 2, 3].map(NodeId::new));
    for node in 1..=2 {
        make(&mut image, register(node, node as u8));
        for factor in [0, 3] {
            let topic = Change::CreateTopic(new_topic("a", 1, factor));
            let error = decide(&image, topic).unwrap_err();
            assert!(error.reason.is_retryable(), "{error}");
        }
    }
    let alone = decide(&image, Change::CreateTopic(new_topic("b", 1, 1)));
    assert_eq!(alone.unwrap().len(), 1);
    make(&mut image, register(3, 3));
    make(&mut image, Change::CreateTopic(new_topic("a", 1, 0)));
    let topic = image.topics().find(|topic| topic.name.as_str() == "a");
    assert_eq!(topic.unwrap().replication_factor(), 3);
}

#[test]
fn topics_that_cannot_be_are_refused() {
    let image = cluster(3);
    let mut bad_setting = new_topic("a", 1, 1);
    let setting = ("no.such".to_owned(), "1".to_owned());
    bad_setting.config.extend([setting]);
    for (topic, reason) in [
        (new_topic("a", 10_001, 1), Reason::InvalidRequest),
        (new_topic("a", 1, 4), Reason::InvalidRequest),
        (new_topic("a/b", 1, 1), Reason::InvalidTopicName),
        (new_topic("orders", 1, 1), Reason::TopicAlreadyExists),
        (bad_setting, Reason::InvalidConfig),
        (new_topic("__a", 1, 1), Reason::InternalTopic),
        (new_topic("__cluster_metadata", 1, 1), Reason::InternalTopic),
    ] {
        assert_eq!(refusal(&image, Change::CreateTopic(topic)).0, reason);
    }
    let name = || "__cluster_metadata".to_owned();
    let internal = [
        Change::AlterTopic(AlterTopic {
            name: name(),
            ..AlterTopic::default()
        }),
        Change::DeleteTopic(DeleteTopic { name: name() }),
        Change::AddPartitions(AddPartitions {
            name: name(),
            partitions: 2,
        }),
    ];
    for change in internal {
        assert_eq!(refusal(&image, change).0, Reason::InternalTopic);
    }
}

#[test]
fn partitions_are_added_and_never_taken_away() {
    let mut image = cluster(3);
    let add = |partitions| {
        Change::AddPartitions(AddPartitions {
            name: "orders".to_owned(),
            partitions,
        })
    };
    make(&mut image, add(5));
    let replicas = replicas(&image);
    assert_eq!(replicas.len(), 5);
    assert!(replicas.iter().all(|nodes| nodes.len() == 3));
    for partitions in [0, 4, 5, 10_001] {
        assert_eq!(refusal(&image, add(partitions)).0, Reason::InvalidRequest);
    }
}

#[test]
fn impossible_reassignments_are_refused() {
    let image = cluster(3);
    let reassign = |partition, replicas: &[u64]| {
        Change::Reassign(Reassign {
            name: "orders".to_owned(),
            partition,
            replicas: replicas.to_vec(),
        })
    };
    assert_eq!(
        refusal(&image, reassign(2, &[1])).0,
        Reason::UnknownPartition
    );
    for replicas in [&[][..], &[1, 1], &[4], &[1, 2, 3, 4]] {
        let (reason, message) = refusal(&image, reassign(0, replicas));
        assert_eq!(reason, Reason::InvalidRequest, "{message}");
    }
    let now = replicas(&image)[0].clone();
    assert_eq!(decide(&image, reassign(0, &now)).unwrap(), []);
}

#[test]
fn a_node_is_emptied_before_it_is_removed() {
    let mut image = cluster(4);
    let remove = || Change::RemoveNode(RemoveNode { node_id: 2 });
    assert_eq!(refusal(&image, remove()).0, Reason::InvalidRequest);
    make(&mut image, Change::DrainNode(DrainNode { node_id: 2 }));
    for (partition, nodes) in (0..).zip(replicas(&image)) {
        assert!(nodes.len() == 3 && !nodes.contains(&2), "{nodes:?}");
        // It keeps what it holds until the move is done.
        let done = FinishReassignment {
            topic_id: vec![7; 16].into(),
            partition,
            replicas: nodes,
            ..FinishReassignment::default()
        };
        if image
            .topics()
            .flat_map(|t| t.assignments.iter())
            .any(|a| a.is_moving())
        {
            assert_eq!(refusal(&image, remove()).0, Reason::InvalidRequest);
        }
        if let Ok(records) = decide(&image, Change::FinishReassignment(done)) {
            take(&mut image, records);
        }
    }
    make(&mut image, remove());
    let (_, message) = refusal(&image, register(2, 2));
    assert!(message.contains("was removed"), "{message}");
}

#[test]
fn a_node_that_others_cannot_stand_in_for_is_kept() {
    let image = cluster(3);
    let (reason, message) = refusal(&image, Change::DrainNode(DrainNode { node_id: 2 }));
    assert_eq!(reason, Reason::InvalidRequest);
    assert!(message.contains("add a node first"), "{message}");
    let unknown = Change::DrainNode(DrainNode { node_id: 9 });
    assert_eq!(refusal(&image, unknown).0, Reason::InvalidRequest);
}

#[test]
fn producer_ids_are_reserved_one_block_after_the_other() {
    let mut image = cluster(1);
    for node_id in [1, 2] {
        let change = ReserveProducerIds {
            node_id,
            count: 1000,
        };
        make(&mut image, Change::ReserveProducerIds(change));
    }
    assert_eq!(image.next_producer_id, 2000);
}
