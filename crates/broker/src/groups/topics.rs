//! The cluster's topics, as far as groups have to do with them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use quipu_model::{NodeId, PartitionId, PartitionKey, TopicId};

use crate::metadata::MetadataImage;

/// A topic that can be subscribed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicView {
    pub(crate) id: TopicId,
    /// The racks of each partition's replicas, the preferred leader's first; without those that were not said.
    pub(crate) racks: Vec<Box<[Arc<str>]>>,
}

impl TopicView {
    /// The partitions, in order.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = PartitionKey> + use<'_> {
        let numbers = (0..).zip(&self.racks);
        numbers.map(|(number, _)| PartitionKey {
            topic: self.id,
            partition: PartitionId::new(number),
        })
    }
}

/// All topics of one moment, but for the cluster's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TopicsView {
    by_name: BTreeMap<Box<str>, TopicView>,
    names: HashMap<TopicId, Box<str>>,
}

impl TopicsView {
    pub(crate) fn new(topics: impl IntoIterator<Item = (Box<str>, TopicView)>) -> Self {
        let by_name: BTreeMap<_, _> = topics.into_iter().collect();
        let names = by_name.iter();
        let names = names.map(|(name, topic)| (topic.id, name.clone()));
        Self {
            names: names.collect(),
            by_name,
        }
    }

    /// Those of an image.
    pub(crate) fn of(image: &MetadataImage) -> Self {
        let mut racks = HashMap::<NodeId, Arc<str>>::new();
        for (node, known) in &image.nodes {
            if !known.rack.is_empty() {
                racks.insert(*node, known.rack.as_str().into());
            }
        }
        let topics = image.topics().filter(|topic| !topic.name.is_internal());
        Self::new(topics.map(|topic| {
            let assignments = topic.assignments.iter();
            let view = TopicView {
                id: topic.id,
                racks: assignments
                    .map(|assignment| {
                        let nodes = assignment.replicas.iter();
                        nodes.filter_map(|node| racks.get(node).cloned()).collect()
                    })
                    .collect(),
            };
            (Box::from(topic.name.as_str()), view)
        }))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&TopicView> {
        self.by_name.get(name)
    }

    pub(crate) fn by_id(&self, id: TopicId) -> Option<&TopicView> {
        self.by_name.get(self.names.get(&id)?)
    }

    pub(crate) fn exists(&self, id: TopicId) -> bool {
        self.names.contains_key(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &TopicView)> {
        self.by_name.iter().map(|(name, topic)| (&**name, topic))
    }
}
