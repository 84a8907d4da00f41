//! What a change comes to: it is checked against the image and becomes records, or is refused.

use std::{collections::HashMap, sync::Arc};

use quipu_model::{NodeId, TopicConfig, TopicId, TopicName};
use quipu_proto::{
    internal::v1::{
        ClusterFormed, NodeDraining, NodeRegistered, NodeRemoved, PartitionAssignment,
        PartitionsAdded, ProducerIdsReserved, ReassignmentBegun, ReassignmentDone,
        TopicConfigChanged, TopicCreated, TopicDeleted, metadata_record::Record,
    },
    peer::v1::{
        AddPartitions, AlterTopic, CreateTopic, FinishReassignment, PartitionPlacement, Reassign,
        RegisterNode, ReserveProducerIds, change_request::Change,
    },
};
use uuid::Uuid;

use super::{MetadataImage, Topic, assignment::node_ids, image::config_of, placement::Placement};
use crate::error::{BrokerError, Reason};

/// The most partitions that one topic may have.
const MAX_PARTITIONS: u32 = 10_000;
/// The most replicas of one partition.
const MAX_REPLICATION_FACTOR: usize = 9;
/// What a topic gets that says nothing, where there are as many nodes.
const DEFAULT_REPLICATION_FACTOR: usize = 3;
/// Over how many partitions, and so coordinators, groups are spread. It never changes: a group's name decides its partition.
const OFFSETS_PARTITIONS: u32 = 16;

type Decided = Result<Vec<Record>, BrokerError>;

/// The records that make a change; none where everything is as wanted already.
pub(super) fn decide(image: &MetadataImage, change: Change) -> Decided {
    match change {
        Change::CreateTopic(new) => create_topic(image, new, TopicId::new(Uuid::new_v4())),
        Change::AlterTopic(alter) => alter_topic(image, alter),
        Change::DeleteTopic(delete) => {
            let topic_id = id_of(&*changeable(image, &delete.name)?);
            Ok(vec![Record::TopicDeleted(TopicDeleted { topic_id })])
        }
        Change::RegisterNode(node) => register_node(image, &node),
        Change::ReserveProducerIds(wanted) => Ok(vec![reserve_producer_ids(image, &wanted)]),
        Change::AddPartitions(add) => add_partitions(image, &add),
        Change::Reassign(reassign) => begin_reassignment(image, &reassign),
        Change::FinishReassignment(finish) => Ok(vec![finish_reassignment(finish)]),
        Change::DrainNode(drain) => drain_node(image, NodeId::new(drain.node_id)),
        Change::RemoveNode(remove) => remove_node(image, NodeId::new(remove.node_id)),
        Change::CreateOffsetsTopic(_) => create_offsets_topic(image),
        Change::AlterQuota(alter) => Ok(image.quotas.decide(alter)?.into_iter().collect()),
    }
}

fn refused(reason: Reason, message: String) -> BrokerError {
    BrokerError::new(reason, message)
}

fn id_of(topic: &Topic) -> bytes::Bytes {
    topic.id.as_bytes().to_vec().into()
}

/// The topic of a name, where clients may change it.
pub(super) fn changeable(image: &MetadataImage, name: &str) -> Result<Arc<Topic>, BrokerError> {
    let name = TopicName::new(name)?;
    if name.is_internal() {
        return Err(internal_topic(&name));
    }
    let topic = image.topic(&name).cloned();
    topic.ok_or_else(|| BrokerError::unknown_topic(name.as_str()))
}

/// The topic of a name, where its partitions may be moved.
fn movable(image: &MetadataImage, name: &str) -> Result<Arc<Topic>, BrokerError> {
    match image.topic(&TopicName::new(name)?) {
        Some(topic) if topic.name.is_internal() && !topic.is_everywhere() => Ok(Arc::clone(topic)),
        _ => changeable(image, name),
    }
}

/// The refusal of a write to a topic of the cluster's own.
pub(crate) fn internal_topic(name: &TopicName) -> BrokerError {
    refused(
        Reason::InternalTopic,
        format!(
            "{name} is internal (names that begin with \"__\" are the cluster's own): it can be read, not written, created, altered or deleted"
        ),
    )
}

fn create_topic(image: &MetadataImage, new: CreateTopic, id: TopicId) -> Decided {
    let name = TopicName::new(&new.name)?;
    if name.is_internal() {
        return Err(internal_topic(&name));
    }
    if image.topic(&name).is_some() {
        return Err(refused(
            Reason::TopicAlreadyExists,
            format!("topic {name} already exists"),
        ));
    }
    config_of(&new.config)?;
    let partitions = match new.placement.is_empty() {
        true => find_places(image, &name, &new)?,
        false => check_places(image, &new.placement)?,
    };
    Ok(vec![Record::TopicCreated(TopicCreated {
        name: new.name,
        topic_id: id.as_bytes().to_vec().into(),
        partitions,
        config: new.config,
    })])
}

/// Where the partitions of a new topic go that may be anywhere.
fn find_places(
    image: &MetadataImage,
    name: &TopicName,
    new: &CreateTopic,
) -> Result<Vec<PartitionAssignment>, BrokerError> {
    let partitions = check_partitions(new.partitions.max(1))?;
    let mut placement = Placement::new(image);
    let wanted = new.replication_factor as usize;
    if wanted == 0 || wanted > placement.node_count() {
        // A topic keeps the number of replicas that it began with.
        check_formed(image, name.as_str(), Reason::NotLeader)?;
    }
    let factor = match wanted {
        0 => default_factor(&placement),
        given => check_factor(given, placement.node_count())?,
    };
    Ok(place(&mut placement, partitions, factor))
}

/// How many replicas a new topic gets that says nothing.
pub(crate) fn default_replication_factor(image: &MetadataImage) -> usize {
    default_factor(&Placement::new(image))
}

fn default_factor(placement: &Placement<'_>) -> usize {
    match placement.node_count() {
        DEFAULT_REPLICATION_FACTOR.. => DEFAULT_REPLICATION_FACTOR,
        _ => 1,
    }
}

/// # Errors
/// Where there can be no partitions there.
fn check_places(
    image: &MetadataImage,
    places: &[PartitionPlacement],
) -> Result<Vec<PartitionAssignment>, BrokerError> {
    check_partitions(u32::try_from(places.len()).unwrap_or(u32::MAX))?;
    let factor = places.first().map_or(0, |first| first.replicas.len());
    let places = places.iter().map(|place| {
        check_replicas(image, &node_ids(&place.replicas))?;
        if place.replicas.len() != factor {
            return Err(refused(
                Reason::InvalidRequest,
                "the partitions of a new topic have as many replicas each".to_owned(),
            ));
        }
        Ok(PartitionAssignment {
            replicas: place.replicas.clone(),
        })
    });
    places.collect()
}

/// Once as many nodes are there as the cluster was begun with, so that the topic has as many replicas as it should.
fn create_offsets_topic(image: &MetadataImage) -> Decided {
    let name = MetadataImage::OFFSETS_TOPIC;
    if image.topic_by_id(MetadataImage::OFFSETS_TOPIC_ID).is_some() {
        return Ok(Vec::new());
    }
    check_formed(image, name, Reason::CoordinatorLoading)?;
    let mut placement = Placement::new(image);
    let factor = placement.node_count().clamp(1, DEFAULT_REPLICATION_FACTOR);
    Ok(vec![Record::TopicCreated(TopicCreated {
        name: name.to_owned(),
        topic_id: MetadataImage::OFFSETS_TOPIC_ID.as_bytes().to_vec().into(),
        partitions: place(&mut placement, OFFSETS_PARTITIONS, factor),
        // The newest commit of each group and partition is kept, and no older one.
        config: HashMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]),
    })])
}

/// Refuses, for as long as too few of the nodes that the cluster was begun with are registered, a topic that may need them.
fn check_formed(image: &MetadataImage, name: &str, reason: Reason) -> Result<(), BrokerError> {
    let metadata = image.topic_by_id(MetadataImage::TOPIC_ID);
    let founders = metadata.map_or(0, |topic| topic.replication_factor());
    let seen = image.nodes.len() + image.removed_nodes.len();
    if seen < founders.min(DEFAULT_REPLICATION_FACTOR) {
        return Err(refused(
            reason,
            format!(
                "{name} waits for the cluster's first nodes, of which {seen} of {founders} are registered: start the others"
            ),
        ));
    }
    Ok(())
}

fn check_partitions(partitions: u32) -> Result<u32, BrokerError> {
    if partitions > MAX_PARTITIONS {
        return Err(refused(
            Reason::InvalidRequest,
            format!("{partitions} partitions are refused: give 1 to {MAX_PARTITIONS}"),
        ));
    }
    Ok(partitions)
}

fn check_factor(factor: usize, nodes: usize) -> Result<usize, BrokerError> {
    let most = nodes.min(MAX_REPLICATION_FACTOR);
    if factor > most {
        return Err(refused(
            Reason::InvalidRequest,
            format!(
                "replication factor {factor} is refused: the cluster has {nodes} node(s) that take partitions, give 1 to {most}"
            ),
        ));
    }
    Ok(factor)
}

fn place(placement: &mut Placement<'_>, count: u32, factor: usize) -> Vec<PartitionAssignment> {
    let assignment = |nodes: Vec<NodeId>| PartitionAssignment {
        replicas: numbers(&nodes),
    };
    (0..count)
        .map(|_| assignment(placement.place(factor)))
        .collect()
}

fn numbers(nodes: &[NodeId]) -> Vec<u64> {
    nodes.iter().map(|node| node.get()).collect()
}

fn alter_topic(image: &MetadataImage, alter: AlterTopic) -> Decided {
    let topic = changeable(image, &alter.name)?;
    let mut settings = HashMap::clone(&topic.settings);
    for name in &alter.reset {
        // An unknown name is refused, as it is when it is set.
        config_of(&HashMap::from([(name.clone(), default_of(name))]))?;
        settings.remove(name);
    }
    settings.extend(alter.set);
    config_of(&settings)?;
    Ok(vec![Record::TopicConfigChanged(TopicConfigChanged {
        topic_id: id_of(&topic),
        config: settings,
    })])
}

fn default_of(name: &str) -> String {
    let mut defaults = TopicConfig::default().settings();
    defaults.remove(name).unwrap_or_default()
}

/// A node's number stands for one data directory: another one would lack what the first has acknowledged.
fn register_node(image: &MetadataImage, node: &RegisterNode) -> Decided {
    let id = NodeId::new(node.node_id);
    if image.removed_nodes.contains(&id) {
        return Err(removed(id));
    }
    let mut records = Vec::new();
    if image.cluster_id.is_none() {
        records.push(Record::ClusterFormed(ClusterFormed {
            cluster_id: Uuid::new_v4().as_bytes().to_vec().into(),
        }));
    }
    match image.nodes.get(&id) {
        Some(known) if known.directory_id[..] != node.directory_id[..] => {
            return Err(other_directory(id));
        }
        Some(known)
            if known.address == node.address
                && known.rack == node.rack
                && known.kafka_address == node.kafka_address => {}
        _ => records.push(Record::Node(NodeRegistered {
            node_id: node.node_id,
            address: node.address.clone(),
            directory_id: node.directory_id.clone(),
            rack: node.rack.clone(),
            kafka_address: node.kafka_address.clone(),
        })),
    }
    Ok(records)
}

/// The refusal of a node that was decommissioned. Its number is used up, also with an empty data directory: a replica that was
/// cut off may still take that number for one whose vote counts, and the empty directory does not know what it must not grant.
pub(crate) fn removed(node: NodeId) -> BrokerError {
    refused(
        Reason::NodeRemoved,
        format!(
            "node {node} was removed from the cluster: shut it down; to join anew, start on an empty data directory with a --node-id that was never used"
        ),
    )
}

/// The refusal of a node that comes with another data directory than it had.
pub(crate) fn other_directory(node: NodeId) -> BrokerError {
    refused(
        Reason::InvalidRequest,
        format!(
            "node {node} is known with another data directory: bring that directory back, or give this one a --node-id that was never used, --join the cluster, and `quipu cluster decommission {node}`"
        ),
    )
}

fn reserve_producer_ids(image: &MetadataImage, wanted: &ReserveProducerIds) -> Record {
    Record::ProducerIdsReserved(ProducerIdsReserved {
        node_id: wanted.node_id,
        next_id: image.next_producer_id + i64::from(wanted.count),
    })
}

fn add_partitions(image: &MetadataImage, add: &AddPartitions) -> Decided {
    let topic = changeable(image, &add.name)?;
    let (before, wanted) = (topic.assignments.len(), check_partitions(add.partitions)?);
    let more = (wanted as usize).saturating_sub(before);
    if more == 0 {
        return Err(refused(
            Reason::InvalidRequest,
            format!(
                "topic {} has {before} partitions: give a larger number, partitions are never taken away",
                topic.name
            ),
        ));
    }
    let mut placement = Placement::new(image);
    let factor = check_factor(topic.replication_factor(), placement.node_count())?;
    let partitions = place(&mut placement, wanted - before as u32, factor);
    Ok(vec![Record::PartitionsAdded(PartitionsAdded {
        topic_id: id_of(&topic),
        partitions,
    })])
}

fn begin_reassignment(image: &MetadataImage, reassign: &Reassign) -> Decided {
    let topic = movable(image, &reassign.name)?;
    let number = reassign.partition;
    let assignment = topic.assignments.get(number as usize).ok_or_else(|| {
        refused(
            Reason::UnknownPartition,
            format!(
                "topic {} has partitions 0 to {}, not {number}",
                topic.name,
                topic.assignments.len() - 1
            ),
        )
    })?;
    let wanted = node_ids(&reassign.replicas);
    check_replicas(image, &wanted)?;
    if assignment.replicas == wanted {
        return Ok(Vec::new());
    }
    Ok(vec![Record::ReassignmentBegun(ReassignmentBegun {
        topic_id: id_of(&topic),
        partition: number,
        replicas: reassign.replicas.clone(),
    })])
}

fn check_replicas(image: &MetadataImage, wanted: &[NodeId]) -> Result<(), BrokerError> {
    let mut seen = Vec::new();
    for node in wanted {
        let trouble = match image.nodes.get(node) {
            None => Some("is not registered"),
            Some(known) if known.draining => Some("is being decommissioned"),
            Some(_) if seen.contains(node) => Some("is named twice"),
            Some(_) => None,
        };
        if let Some(trouble) = trouble {
            return Err(refused(
                Reason::InvalidRequest,
                format!("node {node} {trouble}: name registered nodes, each once"),
            ));
        }
        seen.push(*node);
    }
    if !(1..=MAX_REPLICATION_FACTOR).contains(&wanted.len()) {
        return Err(refused(
            Reason::InvalidRequest,
            format!(
                "{} replicas are refused: name 1 to {MAX_REPLICATION_FACTOR} nodes",
                wanted.len()
            ),
        ));
    }
    Ok(())
}

fn finish_reassignment(finish: FinishReassignment) -> Record {
    Record::ReassignmentDone(ReassignmentDone {
        topic_id: finish.topic_id,
        partition: finish.partition,
        replicas: finish.replicas,
        leader: finish.leader,
        term: finish.term,
        index: finish.index,
    })
}

/// Marks the node and moves all that it holds to others.
fn drain_node(image: &MetadataImage, node: NodeId) -> Decided {
    known_node(image, node)?;
    let mut drained = image.clone();
    let draining = Record::NodeDraining(NodeDraining {
        node_id: node.get(),
    });
    if let Some(known) = drained.nodes.get_mut(&node) {
        known.draining = true;
    }
    let mut placement = Placement::new(&drained);
    let mut records = vec![draining];
    for topic in image.topics().filter(|topic| !topic.is_everywhere()) {
        for (partition, assignment) in (0..).zip(topic.assignments.iter()) {
            if !assignment.replicas.contains(&node) {
                continue;
            }
            let factor = assignment.replicas.len();
            let staying = assignment.replicas.iter().copied();
            let staying = staying.filter(|replica| *replica != node).collect();
            let replicas = placement.complete(staying, factor);
            if replicas.len() < factor {
                return Err(refused(
                    Reason::InvalidRequest,
                    format!(
                        "node {node} cannot be emptied: partition {partition} of {} has {factor} replicas and only {} other node(s) take partitions; add a node first, or reassign to fewer replicas",
                        topic.name,
                        placement.node_count()
                    ),
                ));
            }
            records.push(Record::ReassignmentBegun(ReassignmentBegun {
                topic_id: id_of(topic),
                partition,
                replicas: numbers(&replicas),
            }));
        }
    }
    Ok(records)
}

fn remove_node(image: &MetadataImage, node: NodeId) -> Decided {
    let known = known_node(image, node)?;
    let assignments = image
        .topics()
        .filter(|topic| !topic.is_everywhere())
        .flat_map(|topic| topic.assignments.iter());
    let held = assignments
        .filter(|assignment| assignment.holds(node))
        .count();
    if held > 0 || !known.draining {
        return Err(refused(
            Reason::InvalidRequest,
            format!(
                "node {node} still holds {held} partition(s): empty it with `quipu cluster decommission {node}`"
            ),
        ));
    }
    Ok(vec![Record::NodeRemoved(NodeRemoved {
        node_id: node.get(),
    })])
}

fn known_node(
    image: &MetadataImage,
    node: NodeId,
) -> Result<&super::image::RegisteredNode, BrokerError> {
    image.nodes.get(&node).ok_or_else(|| {
        refused(
            Reason::InvalidRequest,
            format!("node {node} is not registered: `quipu cluster nodes` lists those that are"),
        )
    })
}

#[cfg(test)]
mod tests;
