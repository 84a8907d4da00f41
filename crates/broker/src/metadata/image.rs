//! What the metadata records say, taken together.

use std::{collections::HashMap, sync::Arc};

use quipu_model::{
    ConfigError, InvalidTopicName, NodeId, PartitionKey, TopicConfig, TopicId, TopicName,
};
use quipu_proto::internal::v1::{
    ClusterFormed, MetadataRecord, NodeRegistered, ProducerIdsReserved, TopicConfigChanged,
    TopicCreated, TopicDeleted, metadata_record::Record,
};
use uuid::Uuid;

/// A topic as the cluster knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Topic {
    pub(crate) name: TopicName,
    pub(crate) id: TopicId,
    /// The nodes that hold each partition, by partition number.
    pub(crate) assignments: Arc<[Box<[NodeId]>]>,
    /// The settings that differ from the defaults, as text.
    pub(crate) settings: Arc<HashMap<String, String>>,
    /// All settings.
    pub(crate) config: TopicConfig,
}

impl Topic {
    /// The topic that holds the metadata itself: it stands in no record, since it is where records stand.
    fn cluster_metadata(voters: &[NodeId]) -> Self {
        let config = TopicConfig {
            retention_ms: None,
            ..TopicConfig::default()
        };
        Self {
            name: TopicName::new(MetadataImage::TOPIC).unwrap_or_else(|error| panic!("{error}")),
            id: MetadataImage::TOPIC_ID,
            assignments: Arc::new([Box::from(voters)]),
            settings: Arc::default(),
            config,
        }
    }

    /// How many nodes hold each partition.
    pub(crate) fn replication_factor(&self) -> usize {
        self.assignments.first().map_or(0, |nodes| nodes.len())
    }
}

/// A registered node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegisteredNode {
    pub(crate) address: String,
    /// The identity of its data directory.
    pub(crate) directory_id: [u8; 16],
}

/// Everything that the records up to some offset say. Cloning shares the topics.
#[derive(Clone, Debug)]
pub(crate) struct MetadataImage {
    pub(crate) cluster_id: Option<Uuid>,
    pub(crate) nodes: HashMap<NodeId, RegisteredNode>,
    /// The first producer id that no block holds yet.
    pub(crate) next_producer_id: i64,
    by_name: HashMap<TopicName, Arc<Topic>>,
    by_id: HashMap<TopicId, Arc<Topic>>,
}

/// Why a record was not taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("{field} of a {record} record is not 16 bytes long")]
    NotAnId {
        record: &'static str,
        field: &'static str,
    },
    #[error(
        "a metadata record of a kind that this version does not know: run the newer version that wrote it"
    )]
    UnknownKind,
    #[error("topic {name} is created twice")]
    CreatedTwice { name: TopicName },
    #[error("topic {id} is changed or deleted, but does not exist")]
    NoSuchTopic { id: TopicId },
    #[error("producer ids from {next} on are reserved after ids from {reserved} on were")]
    ProducerIdsGoBack { next: i64, reserved: i64 },
    #[error(transparent)]
    Name(#[from] InvalidTopicName),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl ImageError {
    /// Whether the record is void rather than unreadable: every node skips it alike. A write whose outcome its
    /// controller did not learn of may be followed by another of the same kind.
    pub(crate) fn is_void(&self) -> bool {
        matches!(
            self,
            Self::CreatedTwice { .. } | Self::NoSuchTopic { .. } | Self::ProducerIdsGoBack { .. }
        )
    }
}

impl MetadataImage {
    /// The name of the topic that holds the metadata.
    pub(crate) const TOPIC: &'static str = "__cluster_metadata";
    /// Its id, the same in every cluster.
    pub(crate) const TOPIC_ID: TopicId =
        TopicId::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// The image before the first record: nothing but the metadata topic.
    pub(crate) fn empty(metadata_voters: &[NodeId]) -> Self {
        let topic = Arc::new(Topic::cluster_metadata(metadata_voters));
        Self {
            cluster_id: None,
            nodes: HashMap::new(),
            next_producer_id: 0,
            by_name: HashMap::from([(topic.name.clone(), Arc::clone(&topic))]),
            by_id: HashMap::from([(topic.id, topic)]),
        }
    }

    pub(crate) fn topic(&self, name: &TopicName) -> Option<&Arc<Topic>> {
        self.by_name.get(name)
    }

    pub(crate) fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.by_id.values()
    }

    /// Takes in one more record.
    ///
    /// # Errors
    /// Where the record contradicts those before it; the image is then as before.
    pub(crate) fn apply(&mut self, record: MetadataRecord) -> Result<(), ImageError> {
        match record.record.ok_or(ImageError::UnknownKind)? {
            Record::Node(node) => self.register_node(&node),
            Record::TopicCreated(topic) => self.create_topic(topic),
            Record::TopicConfigChanged(change) => self.change_config(change),
            Record::TopicDeleted(topic) => self.delete_topic(&topic),
            Record::ProducerIdsReserved(block) => self.reserve_producer_ids(&block),
            Record::ClusterFormed(cluster) => self.form_cluster(&cluster),
        }
    }

    fn form_cluster(&mut self, cluster: &ClusterFormed) -> Result<(), ImageError> {
        let id = id_bytes(&cluster.cluster_id, "ClusterFormed", "cluster_id")?;
        self.cluster_id = Some(Uuid::from_bytes(id));
        Ok(())
    }

    fn register_node(&mut self, node: &NodeRegistered) -> Result<(), ImageError> {
        let directory_id = id_bytes(&node.directory_id, "NodeRegistered", "directory_id")?;
        let registered = RegisteredNode {
            address: node.address.clone(),
            directory_id,
        };
        self.nodes.insert(NodeId::new(node.node_id), registered);
        Ok(())
    }

    fn create_topic(&mut self, created: TopicCreated) -> Result<(), ImageError> {
        let name = TopicName::new(&created.name)?;
        let id = topic_id(&created.topic_id, "TopicCreated")?;
        if self.by_name.contains_key(&name) || self.by_id.contains_key(&id) {
            return Err(ImageError::CreatedTwice { name });
        }
        let nodes = |replicas: &Vec<u64>| replicas.iter().map(|id| NodeId::new(*id)).collect();
        let topic = Topic {
            name,
            id,
            assignments: created
                .partitions
                .iter()
                .map(|p| nodes(&p.replicas))
                .collect(),
            config: config_of(&created.config)?,
            settings: Arc::new(created.config),
        };
        self.put(topic);
        Ok(())
    }

    fn change_config(&mut self, change: TopicConfigChanged) -> Result<(), ImageError> {
        let id = topic_id(&change.topic_id, "TopicConfigChanged")?;
        let old = self.by_id.get(&id).ok_or(ImageError::NoSuchTopic { id })?;
        let topic = Topic {
            config: config_of(&change.config)?,
            settings: Arc::new(change.config),
            ..Topic::clone(old)
        };
        self.put(topic);
        Ok(())
    }

    fn delete_topic(&mut self, deleted: &TopicDeleted) -> Result<(), ImageError> {
        let id = topic_id(&deleted.topic_id, "TopicDeleted")?;
        let topic = self
            .by_id
            .remove(&id)
            .ok_or(ImageError::NoSuchTopic { id })?;
        self.by_name.remove(&topic.name);
        Ok(())
    }

    fn reserve_producer_ids(&mut self, block: &ProducerIdsReserved) -> Result<(), ImageError> {
        if block.next_id <= self.next_producer_id {
            return Err(ImageError::ProducerIdsGoBack {
                next: block.next_id,
                reserved: self.next_producer_id,
            });
        }
        self.next_producer_id = block.next_id;
        Ok(())
    }

    fn put(&mut self, topic: Topic) {
        let topic = Arc::new(topic);
        self.by_name.insert(topic.name.clone(), Arc::clone(&topic));
        self.by_id.insert(topic.id, topic);
    }
}

/// The partition that holds the metadata.
pub(crate) const METADATA_KEY: PartitionKey = PartitionKey {
    topic: MetadataImage::TOPIC_ID,
    partition: quipu_model::PartitionId::new(0),
};

/// All settings of a topic with these settings.
pub(crate) fn config_of(settings: &HashMap<String, String>) -> Result<TopicConfig, ConfigError> {
    TopicConfig::from_settings(settings.iter().map(|(k, v)| (k.as_str(), v.as_str())))
}

fn topic_id(bytes: &[u8], record: &'static str) -> Result<TopicId, ImageError> {
    id_bytes(bytes, record, "topic_id").map(TopicId::from_bytes)
}

fn id_bytes(
    bytes: &[u8],
    record: &'static str,
    field: &'static str,
) -> Result<[u8; 16], ImageError> {
    bytes
        .try_into()
        .map_err(|_| ImageError::NotAnId { record, field })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use quipu_model::{NodeId, TopicConfig, TopicName};
    use quipu_proto::internal::v1::{
        MetadataRecord, PartitionAssignment, ProducerIdsReserved, TopicConfigChanged, TopicCreated,
        TopicDeleted, metadata_record::Record,
    };

    use super::{ImageError, MetadataImage};

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
}
