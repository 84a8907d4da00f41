//! Changes to the metadata: one at a time, on the node that leads it, checked against the image, appended, and waited for. Other
//! nodes pass them on.

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use quipu_model::{LeaderEpoch, NodeId, Offset, ProducerId, TopicName};
use quipu_proto::{
    peer::v1::{
        AddPartitions, AlterTopic, ChangeRequest, ChangeResponse, CreateTopic, DeleteTopic,
        PartitionPlacement, ReserveProducerIds, change_request::Change,
    },
    v1::{AlterQuotaRequest, Quota},
};
use quipu_replication::{Leadership, Partition};
use quipu_storage::io::Clock;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout_at},
};

use super::{
    Metadata, Topic,
    decide::{changeable, decide},
    records,
};
use crate::error::{BrokerError, NodeAddress, Outcome, Reason};

/// A topic to be created.
#[derive(Clone, Debug)]
pub struct NewTopic {
    pub name: String,
    /// `None`: one.
    pub partitions: Option<u32>,
    /// `None`: three where there are as many nodes, else one.
    pub replication_factor: Option<u32>,
    /// Where each partition is to be; the numbers above count for nothing then. Empty: the controller finds places.
    pub placement: Vec<Box<[NodeId]>>,
    pub settings: HashMap<String, String>,
}

fn placement(replicas: &[NodeId]) -> PartitionPlacement {
    let replicas = replicas.iter().map(|node| node.get());
    PartitionPlacement {
        replicas: replicas.collect(),
    }
}

/// A change that is in force.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changed {
    /// The metadata offset from which on it is.
    pub(crate) offset: Offset,
    /// The first of the producer ids that were reserved.
    pub(crate) first_producer_id: i64,
}

/// Carries changes to other nodes.
#[tonic::async_trait]
pub(crate) trait Carrier: std::fmt::Debug + Send + Sync + 'static {
    /// Where a node is reached.
    fn address_of(&self, node: NodeId) -> Option<NodeAddress>;
    /// # Errors
    /// Where it did not arrive, or nobody knows what became of it.
    async fn carry(
        &self,
        address: &str,
        request: ChangeRequest,
        deadline: Instant,
    ) -> Result<ChangeResponse, BrokerError>;
}

/// The one door through which the metadata is changed.
#[derive(Debug)]
pub(crate) struct Controller {
    node: NodeId,
    partition: Partition,
    metadata: Arc<Metadata>,
    reconciled: watch::Receiver<Offset>,
    clock: Arc<dyn Clock>,
    carrier: Arc<dyn Carrier>,
    /// Held from the check against the image until the image has the change.
    turn: Mutex<()>,
    producer_ids: Mutex<Range<i64>>,
}

impl Controller {
    const TIMEOUT: Duration = Duration::from_secs(30);
    /// How often a change is passed on: to a leader that was deposed meanwhile, and once more.
    const MOST_HOPS: u32 = 3;
    /// Before a change is passed on again that its receiver could not make.
    const PAUSE: Duration = Duration::from_millis(50);
    const PRODUCER_ID_BLOCK: u32 = 1000;

    pub(crate) fn new(
        node: NodeId,
        partition: Partition,
        metadata: Arc<Metadata>,
        reconciled: watch::Receiver<Offset>,
        clock: Arc<dyn Clock>,
        carrier: Arc<dyn Carrier>,
    ) -> Self {
        Self {
            node,
            partition,
            metadata,
            reconciled,
            clock,
            carrier,
            turn: Mutex::new(()),
            producer_ids: Mutex::new(0..0),
        }
    }

    /// Creates a topic and waits until its partitions here have started.
    pub(crate) async fn create_topic(&self, new: NewTopic) -> Result<Arc<Topic>, BrokerError> {
        let name = TopicName::new(&new.name)?;
        let create = CreateTopic {
            name: new.name,
            partitions: new.partitions.unwrap_or_default(),
            replication_factor: new.replication_factor.unwrap_or_default(),
            config: new.settings,
            placement: new.placement.iter().map(|nodes| placement(nodes)).collect(),
        };
        self.change_here(Change::CreateTopic(create)).await?;
        let topic = changeable(&self.metadata.image(), name.as_str())?;
        tracing::info!(%name, id = %topic.id, partitions = topic.assignments.len(), "topic created");
        Ok(topic)
    }

    /// Sets and resets settings of a topic.
    pub(crate) async fn alter_topic(
        &self,
        name: &str,
        set: HashMap<String, String>,
        reset: Vec<String>,
    ) -> Result<Arc<Topic>, BrokerError> {
        let alter = AlterTopic {
            name: name.to_owned(),
            set,
            reset,
        };
        self.change_here(Change::AlterTopic(alter)).await?;
        changeable(&self.metadata.image(), name)
    }

    /// Gives a topic more partitions.
    pub(crate) async fn add_partitions(
        &self,
        name: &str,
        partitions: u32,
    ) -> Result<Arc<Topic>, BrokerError> {
        let add = AddPartitions {
            name: name.to_owned(),
            partitions,
        };
        self.change_here(Change::AddPartitions(add)).await?;
        changeable(&self.metadata.image(), name)
    }

    /// Deletes a topic and waits until its files here are gone.
    pub(crate) async fn delete_topic(&self, name: &str) -> Result<(), BrokerError> {
        let delete = DeleteTopic {
            name: name.to_owned(),
        };
        self.change_here(Change::DeleteTopic(delete)).await?;
        tracing::info!(name, "topic deleted");
        Ok(())
    }

    /// Changes a client's quota, or the default, and answers with what it is then.
    pub(crate) async fn alter_quota(&self, alter: AlterQuotaRequest) -> Result<Quota, BrokerError> {
        let client_id = alter.client_id.clone();
        self.change_here(Change::AlterQuota(alter)).await?;
        Ok(self.metadata.image().quotas.quota(client_id.as_deref()))
    }

    /// A producer id that was never handed out before, nor ever will be again.
    pub(crate) async fn next_producer_id(&self) -> Result<ProducerId, BrokerError> {
        let mut ids = self.producer_ids.lock().await;
        if ids.is_empty() {
            let reserve = ReserveProducerIds {
                node_id: self.node.get(),
                count: Self::PRODUCER_ID_BLOCK,
            };
            let reserved = self.change(Change::ReserveProducerIds(reserve)).await?;
            let first = reserved.first_producer_id;
            *ids = first..first + i64::from(Self::PRODUCER_ID_BLOCK);
        }
        let id = ids.next().ok_or_else(|| {
            BrokerError::new(
                Reason::Internal,
                "a reserved block of producer ids is empty",
            )
        })?;
        Ok(ProducerId::new(id))
    }

    /// Whether somebody is known to lead the metadata.
    pub(crate) fn knows_leader(&self) -> bool {
        self.partition.leadership().borrow().leader.is_some()
    }

    /// Makes a change and waits until this node acts on it.
    pub(crate) async fn change_here(&self, change: Change) -> Result<(), BrokerError> {
        let changed = self.change(change).await?;
        wait_for(self.reconciled.clone(), changed.offset).await
    }

    /// Makes a change, here or on the node that leads.
    pub(crate) async fn change(&self, change: Change) -> Result<Changed, BrokerError> {
        Box::pin(self.change_or_pass_on(change, 0)).await
    }

    /// Makes a change that came over `hops` nodes. While nobody leads it waits, for a while.
    pub(crate) async fn change_or_pass_on(
        &self,
        change: Change,
        hops: u32,
    ) -> Result<Changed, BrokerError> {
        let deadline = Instant::now() + Self::TIMEOUT;
        let mut leadership = self.partition.leadership();
        loop {
            let tried = match self.leader(&mut leadership, deadline).await? {
                Leader::Here(epoch) => self.lead(epoch, change.clone()).await,
                Leader::At(node) if hops < Self::MOST_HOPS => {
                    self.pass_on(&node, change.clone(), hops, deadline).await
                }
                Leader::At(node) => {
                    return Err(BrokerError {
                        leader: Some(node),
                        ..no_leader()
                    });
                }
            };
            match tried {
                // It did not happen: whoever leads by then may make it.
                Err(error)
                    if error.reason == Reason::NotLeader
                        && error.outcome == Outcome::Definite
                        && Instant::now() < deadline =>
                {
                    tokio::time::sleep(Self::PAUSE).await;
                }
                tried => return tried,
            }
        }
    }

    /// Who leads, once somebody does.
    async fn leader(
        &self,
        leadership: &mut watch::Receiver<Leadership>,
        deadline: Instant,
    ) -> Result<Leader, BrokerError> {
        let known = leadership.wait_for(|leadership| match leadership.leader {
            Some(node) if node == self.node => leadership.ready,
            leader => leader.is_some(),
        });
        let Ok(Ok(known)) = timeout_at(deadline, known)
            .await
            .map(|known| known.map(|k| *k))
        else {
            return Err(no_leader());
        };
        let Some(node) = known.leader else {
            return Err(no_leader());
        };
        if node == self.node {
            return Ok(Leader::Here(known.epoch));
        }
        let address = self.carrier.address_of(node);
        address.map(Leader::At).ok_or_else(no_leader)
    }

    /// Makes a change in an epoch that this node leads.
    async fn lead(&self, epoch: LeaderEpoch, change: Change) -> Result<Changed, BrokerError> {
        let _turn = self.turn.lock().await;
        // All that was ever acknowledged is below the high watermark of a leader that is ready.
        let committed = *self.partition.high_watermark().borrow();
        wait_for(self.metadata.applied(), committed).await?;
        let image = self.metadata.image();
        let records = decide(&image, change)?;
        let first_producer_id = image.next_producer_id;
        if records.is_empty() {
            return Ok(Changed {
                offset: committed,
                first_producer_id,
            });
        }
        let count = records.len() as u64;
        let batch = records::to_batch(records, self.clock.now())?;
        let appended = self
            .partition
            .append_in(epoch, batch, Self::TIMEOUT)
            .await?;
        let base = appended.base_offset.ok_or_else(|| {
            BrokerError::indefinite(Reason::Internal, "a metadata write got no offset")
        })?;
        let offset = base.plus(count);
        wait_for(self.metadata.applied(), offset).await?;
        Ok(Changed {
            offset,
            first_producer_id,
        })
    }

    async fn pass_on(
        &self,
        leader: &NodeAddress,
        change: Change,
        hops: u32,
        deadline: Instant,
    ) -> Result<Changed, BrokerError> {
        let cluster_id = self.metadata.image().cluster_id;
        let request = ChangeRequest {
            cluster_id: cluster_id
                .map_or_else(Vec::new, |id| id.as_bytes().to_vec())
                .into(),
            hops: hops + 1,
            change: Some(change),
        };
        let carried = self.carrier.carry(&leader.address, request, deadline).await;
        let response = carried?;
        match response.error {
            Some(error) => Err(error.into()),
            None => Ok(Changed {
                offset: Offset::new(response.offset),
                first_producer_id: response.first_producer_id,
            }),
        }
    }
}

/// Who leads the metadata.
enum Leader {
    Here(LeaderEpoch),
    At(NodeAddress),
}

fn no_leader() -> BrokerError {
    BrokerError::new(
        Reason::NotLeader,
        "the cluster's metadata has no leader that can be reached: retry shortly; it needs a majority of the nodes that were given as --voters",
    )
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
