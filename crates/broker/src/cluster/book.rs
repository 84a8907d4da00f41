//! Where the other nodes are reached.

use std::{collections::HashMap, sync::Arc};

use quipu_model::NodeId;

use crate::{error::NodeAddress, metadata::Metadata};

/// The addresses of all nodes: as they registered, or, before they did, as they were given at the start.
#[derive(Debug)]
pub(crate) struct AddressBook {
    node: NodeId,
    given: HashMap<NodeId, String>,
    metadata: Arc<Metadata>,
}

impl AddressBook {
    /// For node `node`, which was given the addresses of the metadata's voters.
    pub(crate) fn new(node: NodeId, given: &[NodeAddress], metadata: Arc<Metadata>) -> Self {
        let given = given.iter().map(|node| (node.id, node.address.clone()));
        Self {
            node,
            given: given.collect(),
            metadata,
        }
    }

    /// Where a node is reached.
    pub(crate) fn address_of(&self, id: NodeId) -> Option<NodeAddress> {
        let image = self.metadata.image();
        let address = match image.nodes.get(&id) {
            Some(registered) => &registered.address,
            None => self.given.get(&id)?,
        };
        let address = address.clone();
        Some(NodeAddress { id, address })
    }

    /// All nodes but this one.
    pub(crate) fn others(&self) -> HashMap<NodeId, String> {
        let image = self.metadata.image();
        let mut others = self.given.clone();
        others.retain(|node, _| !image.removed_nodes.contains(node));
        let registered = image.nodes.iter();
        others.extend(registered.map(|(node, known)| (*node, known.address.clone())));
        others.remove(&self.node);
        others
    }
}
