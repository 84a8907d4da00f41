//! Which nodes hold a partition, and how that changes.

use quipu_model::{NodeId, RaftIndex, Term, Vote};
use quipu_proto::internal::v1::{PartitionAssignment, ReassignmentDone};
use quipu_replication::Settled;

/// Which nodes hold a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Who holds it, or is to; the first is the preferred leader.
    pub replicas: Box<[NodeId]>,
    /// Who keeps it until the move under way is done. Empty: no move is under way.
    pub leaving: Box<[NodeId]>,
    /// Who joins by the move under way.
    pub joining: Box<[NodeId]>,
    /// Who makes the group: until its first move is done, a node of these that has no log of it yet begins one by itself. All of
    /// them keep theirs until then; later, a node could vote with less than it once held.
    pub founders: Box<[NodeId]>,
    /// Where the group stood when the last move was done. A node that comes back without its log begins by it.
    pub settled: Option<Settled>,
}

impl Assignment {
    /// As a new partition gets it.
    pub(super) fn original(replicas: Box<[NodeId]>) -> Self {
        Self {
            founders: replicas.clone(),
            replicas,
            leaving: Box::default(),
            joining: Box::default(),
            settled: None,
        }
    }

    /// Whether a node is to have a replica at present.
    pub(crate) fn holds(&self, node: NodeId) -> bool {
        self.replicas.contains(&node) || self.leaving.contains(&node)
    }

    /// Whether the partition is moving to other nodes.
    pub(crate) fn is_moving(&self) -> bool {
        !self.leaving.is_empty() || !self.joining.is_empty()
    }

    /// Begins a move.
    pub(super) fn move_to(&mut self, replicas: Box<[NodeId]>) {
        let holders = self.replicas.iter().chain(&*self.leaving);
        let (mut leaving, mut held) = (Vec::new(), Vec::new());
        for node in holders.copied() {
            // Who was to join by a move that this one replaces has nothing to keep, but may already be a member.
            held.push(node);
            if !replicas.contains(&node) {
                leaving.push(node);
            }
        }
        let joins = |node: &NodeId| !held.contains(node) || self.joining.contains(node);
        self.joining = replicas.iter().copied().filter(joins).collect();
        self.leaving = leaving.into();
        self.replicas = replicas;
    }

    /// Ends the move to `replicas`; `false` where others are wanted by now, or the group has settled later.
    pub(super) fn moved_to(&mut self, replicas: &[NodeId], settled: Option<Settled>) -> bool {
        let index = |settled: Option<Settled>| settled.map(|settled| settled.index);
        let ends = *self.replicas == *replicas && index(settled) >= index(self.settled);
        if ends {
            self.leaving = Box::default();
            self.joining = Box::default();
            self.founders = Box::default();
            self.settled = settled;
        }
        ends
    }
}

impl From<&PartitionAssignment> for Assignment {
    fn from(assignment: &PartitionAssignment) -> Self {
        Self::original(node_ids(&assignment.replicas))
    }
}

/// Where the group stood when its move was done, if the record says so.
pub(super) fn settled(done: &ReassignmentDone) -> Option<Settled> {
    (done.term > 0).then(|| Settled {
        leader: Vote {
            term: Term::new(done.term),
            node: NodeId::new(done.leader),
            committed: true,
        },
        index: RaftIndex::new(done.index),
    })
}

/// Node ids from their numbers.
pub(super) fn node_ids(ids: &[u64]) -> Box<[NodeId]> {
    ids.iter().map(|id| NodeId::new(*id)).collect()
}
