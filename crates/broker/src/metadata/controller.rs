//! Changes to the metadata: one at a time, checked against the image, appended, and waited for.

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use quipu_model::{NodeId, Offset, ProducerId, TopicId, TopicName};
use quipu_proto::internal::v1::{
    ClusterFormed, NodeRegistered, PartitionAssignment, ProducerIdsReserved, TopicConfigChanged,
    TopicCreated, TopicDeleted, metadata_record::Record,
};
use quipu_replication::{Acks, Partition};
use quipu_storage::io::Clock;
use tokio::sync::{Mutex, watch};
use uuid::Uuid;

use super::{Metadata, MetadataImage, Topic, image::config_of, records};
use crate::error::{BrokerError, Reason};

/// A topic to be created.
#[derive(Clone, Debug)]
pub(crate) struct NewTopic {
    pub(crate) name: String,
    /// `None`: one.
    pub(crate) partitions: Option<u32>,
    /// `None`: one.
    pub(crate) replication_factor: Option<u32>,
    pub(crate) settings: HashMap<String, String>,
}

/// The one door through which this node changes the metadata.
#[derive(Debug)]
pub(crate) struct Controller {
    node: NodeId,
    partition: Partition,
    metadata: Arc<Metadata>,
    reconciled: watch::Receiver<Offset>,
    clock: Arc<dyn Clock>,
    /// Held from the check against the image until the image has the change.
    turn: Mutex<()>,
    producer_ids: Mutex<Range<i64>>,
}

impl Controller {
    const TIMEOUT: Duration = Duration::from_secs(30);
    /// The most partitions that one topic may have.
    const MAX_PARTITIONS: u32 = 10_000;
    const PRODUCER_ID_BLOCK: i64 = 1000;

    pub(crate) fn new(
        node: NodeId,
        partition: Partition,
        metadata: Arc<Metadata>,
        reconciled: watch::Receiver<Offset>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            node,
            partition,
            metadata,
            reconciled,
            clock,
            turn: Mutex::new(()),
            producer_ids: Mutex::new(0..0),
        }
    }

    /// Registers this node, and forms the cluster where there is none yet.
    ///
    /// # Errors
    /// Where the node's number belongs to another data directory, or the write fails.
    pub(crate) async fn register(
        &self,
        address: &str,
        directory_id: [u8; 16],
    ) -> Result<(), BrokerError> {
        let _turn = self.turn.lock().await;
        let image = self.metadata.image();
        let mut records = Vec::new();
        if image.cluster_id.is_none() {
            records.push(Record::ClusterFormed(ClusterFormed {
                cluster_id: Uuid::new_v4().as_bytes().to_vec().into(),
            }));
        }
        match image.nodes.get(&self.node) {
            Some(known) if known.directory_id != directory_id => {
                return Err(BrokerError::new(
                    Reason::InvalidRequest,
                    format!(
                        "node {} is registered with another data directory: give this directory another --node-id, or bring the old one back",
                        self.node
                    ),
                ));
            }
            Some(known) if known.address == address => {}
            _ => records.push(Record::Node(NodeRegistered {
                node_id: self.node.get(),
                address: address.to_owned(),
                directory_id: directory_id.to_vec().into(),
            })),
        }
        if !records.is_empty() {
            self.commit(records).await?;
        }
        Ok(())
    }

    /// Creates a topic and waits until its partitions here have started.
    pub(crate) async fn create_topic(&self, new: NewTopic) -> Result<Arc<Topic>, BrokerError> {
        let name = TopicName::new(&new.name)?;
        let id = TopicId::new(Uuid::new_v4());
        let end = {
            let _turn = self.turn.lock().await;
            let created = check_new_topic(&self.metadata.image(), &name, id, new)?;
            self.commit(vec![Record::TopicCreated(created)]).await?
        };
        self.wait_reconciled(end).await?;
        let image = self.metadata.image();
        let topic = image.topic(&name).filter(|topic| topic.id == id);
        let topic = topic.ok_or_else(|| already_exists(&name))?;
        tracing::info!(%name, %id, partitions = topic.assignments.len(), "topic created");
        Ok(Arc::clone(topic))
    }

    /// Sets and resets settings of a topic.
    pub(crate) async fn alter_topic(
        &self,
        name: &str,
        set: HashMap<String, String>,
        reset: &[String],
    ) -> Result<Arc<Topic>, BrokerError> {
        let end = {
            let _turn = self.turn.lock().await;
            let topic = changeable(&self.metadata.image(), name)?;
            let mut settings = HashMap::clone(&topic.settings);
            for name in reset {
                // An unknown name is refused, as it is when it is set.
                config_of(&HashMap::from([(name.clone(), default_of(name))]))?;
                settings.remove(name);
            }
            settings.extend(set);
            config_of(&settings)?;
            let change = TopicConfigChanged {
                topic_id: topic.id.as_bytes().to_vec().into(),
                config: settings,
            };
            self.commit(vec![Record::TopicConfigChanged(change)])
                .await?
        };
        self.wait_reconciled(end).await?;
        changeable(&self.metadata.image(), name)
    }

    /// Deletes a topic and waits until its files here are gone.
    pub(crate) async fn delete_topic(&self, name: &str) -> Result<(), BrokerError> {
        let end = {
            let _turn = self.turn.lock().await;
            let topic = changeable(&self.metadata.image(), name)?;
            let deleted = TopicDeleted {
                topic_id: topic.id.as_bytes().to_vec().into(),
            };
            self.commit(vec![Record::TopicDeleted(deleted)]).await?
        };
        self.wait_reconciled(end).await?;
        tracing::info!(name, "topic deleted");
        Ok(())
    }

    /// A producer id that was never handed out before, nor ever will be again.
    pub(crate) async fn next_producer_id(&self) -> Result<ProducerId, BrokerError> {
        let mut ids = self.producer_ids.lock().await;
        if ids.is_empty() {
            let _turn = self.turn.lock().await;
            let first = self.metadata.image().next_producer_id;
            let next_id = first + Self::PRODUCER_ID_BLOCK;
            let block = ProducerIdsReserved {
                node_id: self.node.get(),
                next_id,
            };
            self.commit(vec![Record::ProducerIdsReserved(block)])
                .await?;
            *ids = first..next_id;
        }
        let id = ids.next().ok_or_else(|| {
            BrokerError::new(
                Reason::Internal,
                "a reserved block of producer ids is empty",
            )
        })?;
        Ok(ProducerId::new(id))
    }

    /// Appends records and waits until the image has them. Answers with the offset after the last one.
    async fn commit(&self, records: Vec<Record>) -> Result<Offset, BrokerError> {
        let count = records.len() as u64;
        let batch = records::to_batch(records, self.clock.now())?;
        let appended = self
            .partition
            .append(batch, Acks::All, Self::TIMEOUT)
            .await?;
        let base = appended.base_offset.ok_or_else(|| {
            BrokerError::indefinite(Reason::Internal, "a metadata write got no offset")
        })?;
        let end = base.plus(count);
        wait_for(self.metadata.applied(), end).await?;
        Ok(end)
    }

    async fn wait_reconciled(&self, upto: Offset) -> Result<(), BrokerError> {
        wait_for(self.reconciled.clone(), upto).await
    }
}

async fn wait_for(mut offset: watch::Receiver<Offset>, upto: Offset) -> Result<(), BrokerError> {
    let reached = offset.wait_for(|offset| *offset >= upto);
    match tokio::time::timeout(Controller::TIMEOUT, reached).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(BrokerError::indefinite(
            Reason::ShuttingDown,
            "the change is stored, but the broker is shutting down",
        )),
        Err(_) => Err(BrokerError::indefinite(
            Reason::TimedOut,
            format!(
                "the change is stored, but was not in force after {:?}",
                Controller::TIMEOUT
            ),
        )),
    }
}

/// The topic of a name, where clients may change it.
fn changeable(image: &MetadataImage, name: &str) -> Result<Arc<Topic>, BrokerError> {
    let name = TopicName::new(name)?;
    if name.is_internal() {
        return Err(internal_topic(&name));
    }
    let topic = image.topic(&name).cloned();
    topic.ok_or_else(|| BrokerError::unknown_topic(name.as_str()))
}

pub(crate) fn internal_topic(name: &TopicName) -> BrokerError {
    BrokerError::new(
        Reason::InternalTopic,
        format!(
            "{name} is internal (names that begin with \"__\" are the cluster's own): it can be read, not written, created, altered or deleted"
        ),
    )
}

fn already_exists(name: &TopicName) -> BrokerError {
    BrokerError::new(
        Reason::TopicAlreadyExists,
        format!("topic {name} already exists"),
    )
}

fn default_of(name: &str) -> String {
    let mut defaults = quipu_model::TopicConfig::default().settings();
    defaults.remove(name).unwrap_or_default()
}

fn check_new_topic(
    image: &MetadataImage,
    name: &TopicName,
    id: TopicId,
    new: NewTopic,
) -> Result<TopicCreated, BrokerError> {
    if name.is_internal() {
        return Err(internal_topic(name));
    }
    if image.topic(name).is_some() {
        return Err(already_exists(name));
    }
    let partitions = new.partitions.unwrap_or(1);
    if !(1..=Controller::MAX_PARTITIONS).contains(&partitions) {
        return Err(BrokerError::new(
            Reason::InvalidRequest,
            format!(
                "{partitions} partitions are refused: give 1 to {}",
                Controller::MAX_PARTITIONS
            ),
        ));
    }
    let factor = new.replication_factor.unwrap_or(1) as usize;
    let mut nodes: Vec<u64> = image.nodes.keys().map(|node| node.get()).collect();
    nodes.sort_unstable();
    if !(1..=nodes.len()).contains(&factor) {
        return Err(BrokerError::new(
            Reason::InvalidRequest,
            format!(
                "replication factor {factor} is refused: the cluster has {} node(s), give 1 to {0}",
                nodes.len()
            ),
        ));
    }
    config_of(&new.settings)?;
    let replicas = |first: usize| {
        let around = nodes.iter().cycle().skip(first % nodes.len());
        around.take(factor).copied().collect()
    };
    Ok(TopicCreated {
        name: name.as_str().to_owned(),
        topic_id: id.as_bytes().to_vec().into(),
        partitions: (0..partitions as usize)
            .map(|number| PartitionAssignment {
                replicas: replicas(number),
            })
            .collect(),
        config: new.settings,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use quipu_model::{NodeId, TopicId, TopicName};
    use quipu_proto::internal::v1::{MetadataRecord, NodeRegistered, metadata_record::Record};

    use super::{NewTopic, check_new_topic};
    use crate::{error::Reason, metadata::MetadataImage};

    fn image_of_nodes(count: u64) -> MetadataImage {
        let mut image = MetadataImage::empty(&[NodeId::new(1)]);
        for node_id in 1..=count {
            let node = Record::Node(NodeRegistered {
                node_id,
                address: "localhost:9093".to_owned(),
                directory_id: vec![1; 16].into(),
            });
            image.apply(MetadataRecord { record: Some(node) }).unwrap();
        }
        image
    }

    fn new_topic(partitions: u32, factor: u32) -> NewTopic {
        NewTopic {
            name: "orders".to_owned(),
            partitions: Some(partitions),
            replication_factor: Some(factor),
            settings: HashMap::new(),
        }
    }

    fn refusal(image: &MetadataImage, name: &str, new: NewTopic) -> Reason {
        let name = TopicName::new(name).unwrap();
        check_new_topic(image, &name, TopicId::default(), new)
            .unwrap_err()
            .reason
    }

    #[test]
    fn replicas_go_around_the_nodes() {
        let name = TopicName::new("orders").unwrap();
        let created = check_new_topic(
            &image_of_nodes(3),
            &name,
            TopicId::default(),
            new_topic(4, 2),
        )
        .unwrap();
        let replicas: Vec<_> = created.partitions.into_iter().map(|p| p.replicas).collect();
        assert_eq!(replicas, [vec![1, 2], vec![2, 3], vec![3, 1], vec![1, 2]]);
    }

    #[test]
    fn topics_that_cannot_be_are_refused() {
        let image = image_of_nodes(1);
        let mut bad_setting = new_topic(1, 1);
        bad_setting
            .settings
            .insert("no.such".to_owned(), "1".to_owned());
        assert_eq!(
            refusal(&image, "a", new_topic(0, 1)),
            Reason::InvalidRequest
        );
        assert_eq!(
            refusal(&image, "a", new_topic(10_001, 1)),
            Reason::InvalidRequest
        );
        assert_eq!(
            refusal(&image, "a", new_topic(1, 0)),
            Reason::InvalidRequest
        );
        assert_eq!(
            refusal(&image, "a", new_topic(1, 2)),
            Reason::InvalidRequest
        );
        assert_eq!(refusal(&image, "a", bad_setting), Reason::InvalidConfig);
        assert_eq!(
            refusal(&image, "__a", new_topic(1, 1)),
            Reason::InternalTopic
        );
        assert_eq!(
            refusal(&image, "__cluster_metadata", new_topic(1, 1)),
            Reason::InternalTopic
        );
    }
}
