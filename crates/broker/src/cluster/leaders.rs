//! Who leads which partition, by what nodes tell each other.

use std::collections::HashMap;

use parking_lot::RwLock;
use quipu_model::{LeaderEpoch, NodeId, PartitionKey};

/// The newest leader heard of, for each partition. What it says is a hint: a leader may have been deposed since.
#[derive(Debug, Default)]
pub(crate) struct LeaderTable {
    leaders: RwLock<HashMap<PartitionKey, (NodeId, LeaderEpoch)>>,
}

impl LeaderTable {
    /// The leader of the latest epoch heard of.
    pub(crate) fn leader(&self, key: PartitionKey) -> Option<(NodeId, LeaderEpoch)> {
        self.leaders.read().get(&key).copied()
    }

    /// Notes that `node` says it leads these.
    pub(crate) fn heard(&self, node: NodeId, led: &[(PartitionKey, LeaderEpoch)]) {
        let mut leaders = self.leaders.write();
        for (key, epoch) in led {
            let known = leaders.get(key);
            if known.is_none_or(|(_, newest)| epoch >= newest) {
                leaders.insert(*key, (node, *epoch));
            }
        }
    }

    /// Forgets partitions that are no more.
    pub(crate) fn retain(&self, exists: impl Fn(PartitionKey) -> bool) {
        self.leaders.write().retain(|key, _| exists(*key));
    }
}

#[cfg(test)]
mod tests {
    use quipu_model::{LeaderEpoch, NodeId, PartitionId, PartitionKey, TopicId};

    use super::LeaderTable;

    #[test]
    fn the_latest_epoch_wins_in_whatever_order_it_is_heard() {
        let key = PartitionKey {
            topic: TopicId::from_bytes([7; 16]),
            partition: PartitionId::new(0),
        };
        let table = LeaderTable::default();
        assert_eq!(table.leader(key), None);
        for (node, epoch) in [(1, 3), (2, 5), (1, 4)] {
            table.heard(NodeId::new(node), &[(key, LeaderEpoch::new(epoch))]);
        }
        assert_eq!(
            table.leader(key),
            Some((NodeId::new(2), LeaderEpoch::new(5)))
        );
        table.retain(|_| false);
        assert_eq!(table.leader(key), None);
    }
}
