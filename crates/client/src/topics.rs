//! What brokers told of a topic: who leads its partitions.

use quipu_model::LeaderEpoch;
use quipu_proto::v1::DescribeTopicResponse;
use tokio::time::Instant;

use crate::error::node_address;

/// A partition's leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Led {
    pub(crate) address: Box<str>,
    pub(crate) epoch: LeaderEpoch,
}

/// Of no leader at all: any that is heard of is newer.
pub(crate) const NO_EPOCH: LeaderEpoch = LeaderEpoch::new(-1);

#[derive(Clone, Debug)]
struct Told {
    leader: Option<Box<str>>,
    /// The newest that is known, also where nobody leads in it yet.
    epoch: LeaderEpoch,
}

/// A topic as brokers described it.
#[derive(Clone, Debug)]
pub(crate) struct TopicView {
    topic_id: String,
    pub(crate) fetched_at: Instant,
    partitions: Vec<Told>,
}

impl TopicView {
    pub(crate) fn new(fetched_at: Instant, description: DescribeTopicResponse) -> Self {
        let unknown = Told {
            leader: None,
            epoch: NO_EPOCH,
        };
        let mut partitions = vec![unknown; description.partitions.len()];
        for described in description.partitions {
            if let Some(told) = partitions.get_mut(described.partition as usize) {
                told.leader = described.leader.and_then(node_address);
                told.epoch = LeaderEpoch::new(described.leader_epoch);
            }
        }
        Self {
            topic_id: description.topic.unwrap_or_default().id,
            fetched_at,
            partitions,
        }
    }

    pub(crate) fn partitions(&self) -> usize {
        self.partitions.len()
    }

    pub(crate) fn leader(&self, partition: u32) -> Option<Led> {
        let told = self.partitions.get(partition as usize)?;
        let address = told.leader.clone()?;
        let epoch = told.epoch;
        Some(Led { address, epoch })
    }

    pub(crate) fn epoch(&self, partition: u32) -> LeaderEpoch {
        let told = self.partitions.get(partition as usize);
        told.map_or(NO_EPOCH, |told| told.epoch)
    }

    pub(crate) fn leaders(&self) -> impl Iterator<Item = &str> {
        let leaders = self.partitions.iter();
        leaders.filter_map(|told| told.leader.as_deref())
    }

    /// Takes over what another broker, asked at the same time, knows better.
    pub(crate) fn merge(&mut self, other: Self) {
        if self.topic_id != other.topic_id {
            return;
        }
        let more = other.partitions.get(self.partitions.len()..);
        let more = more.unwrap_or_default().to_vec();
        for (told, other) in self.partitions.iter_mut().zip(other.partitions) {
            let tells_whom = told.leader.is_none() && other.leader.is_some();
            if other.epoch > told.epoch || (other.epoch == told.epoch && tells_whom) {
                *told = other;
            }
        }
        self.partitions.extend(more);
    }

    /// Forgets leaders that were replaced by what was known before: a broker that is cut off tells of old.
    pub(crate) fn forget_replaced(&mut self, before: &Self) {
        if self.topic_id != before.topic_id {
            return;
        }
        for (told, before) in self.partitions.iter_mut().zip(&before.partitions) {
            if told.epoch < before.epoch {
                told.leader = None;
                told.epoch = before.epoch;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quipu_proto::v1::{DescribeTopicResponse, Node, PartitionDescription, Topic};
    use tokio::time::Instant;

    use super::TopicView;

    fn view(id: &str, leaders: &[(&str, i32)]) -> TopicView {
        let partitions = (0..).zip(leaders).map(|(partition, (leader, epoch))| {
            let leader = (!leader.is_empty()).then(|| Node {
                id: 1,
                address: (*leader).to_owned(),
            });
            PartitionDescription {
                partition,
                leader,
                leader_epoch: *epoch,
                ..PartitionDescription::default()
            }
        });
        let topic = Topic {
            id: id.to_owned(),
            ..Topic::default()
        };
        let description = DescribeTopicResponse {
            topic: Some(topic),
            partitions: partitions.collect(),
        };
        TopicView::new(Instant::now(), description)
    }

    fn told(view: &TopicView) -> Vec<(String, i32)> {
        let partitions = view.partitions.iter();
        partitions
            .map(|told| {
                let leader = told.leader.as_deref().unwrap_or_default();
                (leader.to_owned(), told.epoch.get())
            })
            .collect()
    }

    #[test]
    fn of_two_brokers_the_one_that_knows_the_newer_leader_is_believed() {
        let mut view_of_one = view("t", &[("a", 1), ("a", 4), ("", 2), ("a", 2)]);
        let other = view("t", &[("b", 2), ("b", 3), ("b", 2), ("", 2), ("b", 1)]);
        view_of_one.merge(other);
        let best = [("b", 2), ("a", 4), ("b", 2), ("a", 2), ("b", 1)];
        let best = best.map(|(leader, epoch)| (leader.to_owned(), epoch));
        assert_eq!(told(&view_of_one), best);
    }

    #[test]
    fn a_leader_that_was_replaced_is_not_believed_in_again_unless_the_topic_is_another() {
        let before = view("t", &[("b", 2), ("b", 2)]);
        for (id, leader) in [("t", ("", 2)), ("anew", ("a", 1))] {
            let mut late = view(id, &[("a", 1), ("c", 2)]);
            late.forget_replaced(&before);
            let expected = [leader, ("c", 2)].map(|(leader, epoch)| (leader.to_owned(), epoch));
            assert_eq!(told(&late), expected);
        }
    }
}
