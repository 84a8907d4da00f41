//! Where partitions go: spread over nodes and racks.

use std::collections::HashMap;

use quipu_model::NodeId;

use super::MetadataImage;

/// How much each node that may take partitions holds.
#[derive(Debug)]
pub(super) struct Placement<'a> {
    nodes: Vec<Load<'a>>,
}

#[derive(Debug)]
struct Load<'a> {
    node: NodeId,
    rack: &'a str,
    replicas: usize,
    /// Partitions whose preferred leader it is.
    leads: usize,
}

impl<'a> Placement<'a> {
    /// By what the image assigns. Nodes that are to be empty take nothing.
    pub(super) fn new(image: &'a MetadataImage) -> Self {
        let mut held: HashMap<NodeId, (usize, usize)> = HashMap::new();
        let topics = image.topics().filter(|topic| !topic.is_everywhere());
        for assignment in topics.flat_map(|topic| topic.assignments.iter()) {
            for (place, node) in assignment.replicas.iter().enumerate() {
                let (replicas, leads) = held.entry(*node).or_default();
                *replicas += 1;
                *leads += usize::from(place == 0);
            }
        }
        let mut nodes: Vec<_> = image
            .nodes
            .iter()
            .filter(|(_, known)| !known.draining)
            .map(|(node, known)| {
                let (replicas, leads) = held.get(node).copied().unwrap_or_default();
                Load {
                    node: *node,
                    rack: &known.rack,
                    replicas,
                    leads,
                }
            })
            .collect();
        nodes.sort_unstable_by_key(|load| load.node);
        Self { nodes }
    }

    /// How many nodes may take partitions.
    pub(super) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes for a new partition, at most as many as there are; the first is its preferred leader.
    pub(super) fn place(&mut self, replication_factor: usize) -> Vec<NodeId> {
        self.complete(Vec::new(), replication_factor)
    }

    /// Adds nodes to `chosen` until there are enough, or no more nodes.
    pub(super) fn complete(
        &mut self,
        mut chosen: Vec<NodeId>,
        replication_factor: usize,
    ) -> Vec<NodeId> {
        while chosen.len() < replication_factor {
            let leads = chosen.is_empty();
            let racks: Vec<_> = chosen.iter().filter_map(|node| self.rack(*node)).collect();
            let free = self
                .nodes
                .iter_mut()
                .filter(|load| !chosen.contains(&load.node));
            let best = free.min_by_key(|load| {
                let crowded = !load.rack.is_empty() && racks.contains(&load.rack);
                // Leaders write and are read from: they are spread first of all, then what is stored.
                let leading = if leads { load.leads } else { 0 };
                (crowded, leading, load.replicas, load.node)
            });
            let Some(load) = best else { break };
            load.replicas += 1;
            load.leads += usize::from(leads);
            chosen.push(load.node);
        }
        chosen
    }

    fn rack(&self, node: NodeId) -> Option<&'a str> {
        let load = self.nodes.iter().find(|load| load.node == node)?;
        Some(load.rack)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quipu_model::NodeId;
    use quipu_proto::internal::v1::{
        MetadataRecord, NodeDraining, NodeRegistered, metadata_record::Record,
    };

    use super::Placement;
    use crate::metadata::MetadataImage;

    fn image(racks: &[&str]) -> MetadataImage {
        let mut image = MetadataImage::empty(&[NodeId::new(1)]);
        for (node_id, rack) in (1..).zip(racks) {
            let node = Record::Node(NodeRegistered {
                node_id,
                address: "localhost:9093".to_owned(),
                directory_id: vec![1; 16].into(),
                rack: (*rack).to_owned(),
                kafka_address: String::new(),
            });
            image.apply(MetadataRecord { record: Some(node) }).unwrap();
        }
        image
    }

    fn placed(image: &MetadataImage, partitions: usize, factor: usize) -> Vec<Vec<u64>> {
        let mut placement = Placement::new(image);
        let numbers = |nodes: Vec<NodeId>| nodes.iter().map(|node| node.get()).collect();
        (0..partitions)
            .map(|_| numbers(placement.place(factor)))
            .collect()
    }

    #[test]
    fn leaders_and_replicas_are_spread_evenly() {
        let placed = placed(&image(&["", "", "", ""]), 40, 3);
        let (mut leads, mut replicas) = (BTreeMap::new(), BTreeMap::new());
        for nodes in placed {
            assert_eq!(nodes.len(), 3);
            *leads.entry(nodes[0]).or_insert(0) += 1;
            for node in nodes {
                *replicas.entry(node).or_insert(0) += 1;
            }
        }
        assert_eq!(leads.into_values().collect::<Vec<_>>(), [10; 4]);
        assert_eq!(replicas.into_values().collect::<Vec<_>>(), [30; 4]);
    }

    #[test]
    fn no_rack_holds_two_replicas_where_there_are_enough() {
        let racks = ["a", "a", "b", "b", "c"];
        for nodes in placed(&image(&racks), 20, 3) {
            let mut on: Vec<_> = nodes.iter().map(|node| racks[*node as usize - 1]).collect();
            on.sort_unstable();
            on.dedup();
            assert_eq!(on.len(), 3, "{nodes:?}");
        }
    }

    #[test]
    fn draining_nodes_take_nothing() {
        let mut image = image(&["", "", ""]);
        let draining = Record::NodeDraining(NodeDraining { node_id: 2 });
        image
            .apply(MetadataRecord {
                record: Some(draining),
            })
            .unwrap();
        assert_eq!(placed(&image, 2, 3), [vec![1, 3], vec![3, 1]]);
    }
}
