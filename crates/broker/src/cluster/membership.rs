//! How this node becomes part of the cluster, and how the metadata's group comes to have all nodes.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use quipu_model::{NodeId, Offset};
use quipu_proto::peer::v1::{ChangeRequest, RegisterNode, change_request::Change};
use quipu_replication::{AppendError, Partition};
use tokio::time::Instant;

use super::AddressBook;
use crate::{
    error::{BrokerError, Reason},
    metadata::{Carrier, Controller, Metadata, MetadataImage},
};

/// How a node asks to be taken in.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) node: RegisterNode,
    /// Whom to ask while this node does not know the metadata's leader, beside the nodes that it knows.
    pub(crate) seeds: Vec<String>,
    pub(crate) book: Arc<AddressBook>,
    pub(crate) carrier: Arc<dyn Carrier>,
}

impl Registration {
    const FIRST_PAUSE: Duration = Duration::from_millis(50);
    const LAST_PAUSE: Duration = Duration::from_secs(2);
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Registers this node, trying until it succeeds; answers with the metadata offset from which on it is.
    ///
    /// # Errors
    /// Where it is refused for good.
    pub(crate) async fn register(
        &self,
        controller: &Controller,
        metadata: &Metadata,
    ) -> Result<Offset, BrokerError> {
        let mut pause = Self::FIRST_PAUSE;
        loop {
            let mut tried = Err(no_leader());
            if controller.knows_leader() {
                let register = Change::RegisterNode(self.node.clone());
                tried = controller.change(register).await;
            }
            // Who it takes for the leader may have been one long ago.
            let tried = match tried {
                Err(error) if error.reason.is_retryable() => self.ask_seeds(metadata, error).await,
                tried => tried.map(|changed| changed.offset),
            };
            match tried {
                Err(error) if error.reason.is_retryable() => {
                    tracing::info!(%error, "the cluster does not take this node in yet; it tries again");
                }
                tried => return tried,
            }
            tokio::time::sleep(pause).await;
            pause = Self::LAST_PAUSE.min(pause * 2);
        }
    }

    /// Whether the cluster says that this node was removed from it.
    pub(crate) async fn finds_removal(&self, metadata: &Metadata) -> bool {
        let asked = self.ask_seeds(metadata, no_leader()).await;
        asked.is_err_and(|error| error.reason == Reason::NodeRemoved)
    }

    /// # Errors
    /// The last one, `last` where there is nobody to ask.
    async fn ask_seeds(
        &self,
        metadata: &Metadata,
        mut last: BrokerError,
    ) -> Result<Offset, BrokerError> {
        let cluster_id = metadata.image().cluster_id;
        let mut seeds: BTreeSet<_> = self.book.others().into_values().collect();
        seeds.extend(self.seeds.iter().cloned());
        for seed in seeds {
            let request = ChangeRequest {
                cluster_id: cluster_id
                    .map_or_else(Vec::new, |id| id.as_bytes().to_vec())
                    .into(),
                hops: 1,
                change: Some(Change::RegisterNode(self.node.clone())),
            };
            let deadline = Instant::now() + Self::PATIENCE;
            match self.carrier.carry(&seed, request, deadline).await {
                Ok(response) => match response.error {
                    None => return Ok(Offset::new(response.offset)),
                    Some(error) => last = error.into(),
                },
                Err(error) => last = error,
            }
            if !last.reason.is_retryable() {
                break;
            }
        }
        Err(last)
    }
}

fn no_leader() -> BrokerError {
    BrokerError::new(
        Reason::NotLeader,
        "the leader of the cluster's metadata is not known yet",
    )
}

/// The metadata's group, as its leader sees to it.
#[derive(Debug)]
pub(crate) struct MetadataMembers {
    pub(crate) node: NodeId,
    pub(crate) partition: Partition,
    pub(crate) metadata: Arc<Metadata>,
}

impl MetadataMembers {
    const PATIENCE: Duration = Duration::from_secs(10);

    /// On the leader: makes every registered node a member, and removed ones none. A voter that is to be empty is replaced by
    /// another node, where there is one.
    ///
    /// # Errors
    /// Where the group did not take a change in time: it is tried again.
    pub(crate) async fn see_to(&self) -> Result<(), AppendError> {
        let leadership = *self.partition.leadership().borrow();
        if leadership.leader != Some(self.node) || !leadership.ready {
            return Ok(());
        }
        let image = self.metadata.image();
        let members = self.partition.members().borrow().clone();
        for node in image.nodes.keys() {
            if !members.voters.contains(node) && !members.learners.contains(node) {
                self.partition.add_learner(*node, Self::PATIENCE).await?;
            }
        }
        for node in &members.learners {
            if image.removed_nodes.contains(node) {
                self.partition.remove_learner(*node, Self::PATIENCE).await?;
            }
        }
        let voters: Vec<_> = members.voters.iter().copied().collect();
        let wanted = wanted_voters(&image, &voters);
        if wanted != voters {
            self.partition
                .change_voters(&wanted, Self::PATIENCE)
                .await?;
        }
        Ok(())
    }
}

/// The voters once those that leave are replaced; never fewer, as long as there are other nodes.
fn wanted_voters(image: &MetadataImage, voters: &[NodeId]) -> Vec<NodeId> {
    let leaves = |node: &NodeId| {
        let draining = image.nodes.get(node).is_some_and(|known| known.draining);
        draining || image.removed_nodes.contains(node)
    };
    let mut others: Vec<_> = image
        .nodes
        .keys()
        .copied()
        .filter(|node| !voters.contains(node) && !leaves(node))
        .collect();
    others.sort_unstable();
    let mut others = others.into_iter();
    let mut wanted: Vec<_> = voters
        .iter()
        .filter_map(|node| {
            if leaves(node) {
                // Without another one to take its place, a voter that was not removed stays.
                others.next().or_else(|| {
                    let removed = image.removed_nodes.contains(node);
                    (!removed).then_some(*node)
                })
            } else {
                Some(*node)
            }
        })
        .collect();
    wanted.sort_unstable();
    wanted
}

#[cfg(test)]
mod tests {
    use quipu_model::NodeId;
    use quipu_proto::internal::v1::{
        MetadataRecord, NodeDraining, NodeRegistered, NodeRemoved, metadata_record::Record,
    };

    use super::wanted_voters;
    use crate::metadata::MetadataImage;

    fn image(nodes: u64, more: Vec<Record>) -> MetadataImage {
        let mut image = MetadataImage::empty(&[]);
        let registered = (1..=nodes).map(|node_id| {
            Record::Node(NodeRegistered {
                node_id,
                address: "localhost:9093".to_owned(),
                directory_id: vec![1; 16].into(),
                rack: String::new(),
            })
        });
        for record in registered.chain(more) {
            let record = Some(record);
            image.apply(MetadataRecord { record }).unwrap();
        }
        image
    }

    fn wanted(image: &MetadataImage) -> Vec<u64> {
        let voters = [1, 2, 3].map(NodeId::new);
        let wanted = wanted_voters(image, &voters);
        wanted.into_iter().map(NodeId::get).collect()
    }

    #[test]
    fn a_voter_that_leaves_is_replaced_where_there_is_another_node() {
        let draining = || Record::NodeDraining(NodeDraining { node_id: 2 });
        let removed = || Record::NodeRemoved(NodeRemoved { node_id: 2 });
        assert_eq!(wanted(&image(5, vec![])), [1, 2, 3]);
        assert_eq!(wanted(&image(5, vec![draining()])), [1, 3, 4]);
        assert_eq!(wanted(&image(3, vec![draining()])), [1, 2, 3]);
        assert_eq!(wanted(&image(3, vec![draining(), removed()])), [1, 3]);
    }
}
