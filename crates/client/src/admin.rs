//! Topics, offsets and the cluster itself.

use std::{collections::HashMap, sync::Arc};

use quipu_model::{Offset, TimestampMs};
use quipu_proto::v1::{
    self, AddPartitionsRequest, AlterTopicConfigRequest, CreateTopicRequest, DeleteRecordsRequest,
    DeleteTopicRequest, DescribeClusterRequest, DrainNodeRequest, ListOffsetsRequest,
    ListQuotasRequest, ListTopicsRequest, ReassignPartitionRequest, RemoveNodeRequest,
    TransferLeaderRequest,
    admin_client::AdminClient,
    delete_records_request::{Before, HighWatermark},
    list_offsets_request::{At, Earliest, Latest},
};
pub use quipu_proto::v1::{
    AlterQuotaRequest as QuotaChange, DescribeClusterResponse as ClusterDescription,
    DescribeTopicResponse as TopicDescription, Node, NodeState, PartitionDescription, Quota, Topic,
};

use tokio::time::{Instant, sleep};

use crate::{
    Result,
    backoff::backoff,
    cluster::{Cluster, ELECTION, FIRST_PAUSE, LAST_PAUSE, log_client},
    error::Error,
};

/// A topic to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name: 1 to 249 characters of `[a-zA-Z0-9._-]`.
    pub name: String,
    /// How many partitions; `None`: as many as the broker gives by default.
    pub partitions: Option<u32>,
    /// How many replicas each partition has; `None`: the broker's default.
    pub replication_factor: Option<u32>,
    /// Settings that differ from the defaults, such as `retention.ms`.
    pub config: HashMap<String, String>,
}

impl NewTopic {
    /// A topic with the broker's defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Sets the number of replicas of each partition.
    #[must_use]
    pub fn replication_factor(mut self, replicas: u32) -> Self {
        self.replication_factor = Some(replicas);
        self
    }

    /// Sets the number of partitions.
    #[must_use]
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = Some(partitions);
        self
    }
}

/// A place in a partition to look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetAt {
    /// The first offset still kept.
    Earliest,
    /// The offset after the last committed record.
    Latest,
    /// The first record with this timestamp or a later one; the latest offset where there is none.
    Timestamp(TimestampMs),
}

/// What [`Admin::list_offset`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// The offset.
    pub offset: Offset,
    /// The timestamp of the record there, if it was found by time.
    pub timestamp: Option<TimestampMs>,
}

/// Calls that look at or change the cluster. Each is made once: an [`Error`] whose outcome is indefinite may have happened.
#[derive(Clone, Debug)]
pub struct Admin {
    cluster: Arc<Cluster>,
}

/// One unary call of the admin service, on whichever node is the one to ask.
macro_rules! call {
    ($self:ident, $method:ident, $request:expr) => {{
        let request = $request;
        $self
            .cluster
            .call(|channel| {
                let request = request.clone();
                async move { AdminClient::new(channel).$method(request).await }
            })
            .await
    }};
}

impl Admin {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster }
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// Where the name is taken or not one, or a setting is refused.
    pub async fn create_topic(&self, topic: NewTopic) -> Result<Topic> {
        let request = CreateTopicRequest {
            name: topic.name,
            partitions: topic.partitions.unwrap_or(0),
            replication_factor: topic.replication_factor.unwrap_or(0),
            config: topic.config,
        };
        require(call!(self, create_topic, request)?.topic)
    }

    /// All topics, by name; Quipu's own (`__…`) only if asked.
    ///
    /// # Errors
    /// Where no broker answers.
    pub async fn list_topics(&self, include_internal: bool) -> Result<Vec<Topic>> {
        let mut topics = call!(self, list_topics, ListTopicsRequest { include_internal })?.topics;
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// A topic's settings and the state of its partitions.
    ///
    /// # Errors
    /// Where there is no such topic.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription> {
        self.cluster.describe_topic(name).await
    }

    /// Sets some of a topic's settings and returns others to their defaults.
    ///
    /// # Errors
    /// Where there is no such topic, or a setting is refused; nothing is changed then.
    pub async fn alter_topic_config(
        &self,
        name: &str,
        set: HashMap<String, String>,
        reset: Vec<String>,
    ) -> Result<Topic> {
        let request = AlterTopicConfigRequest {
            name: name.to_owned(),
            set,
            reset,
        };
        require(call!(self, alter_topic_config, request)?.topic)
    }

    /// Deletes a topic and all its records.
    ///
    /// # Errors
    /// Where there is no such topic, or it is Quipu's own.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        let request = DeleteTopicRequest {
            name: name.to_owned(),
        };
        call!(self, delete_topic, request)?;
        self.cluster.forget(name).await;
        Ok(())
    }

    /// Gives a topic more partitions: `partitions` in all. Keys may go to other partitions then than before.
    ///
    /// # Errors
    /// Where there is no such topic, or it has as many already.
    pub async fn add_partitions(&self, name: &str, partitions: u32) -> Result<Topic> {
        let request = AddPartitionsRequest {
            name: name.to_owned(),
            partitions,
        };
        let topic = require(call!(self, add_partitions, request)?.topic)?;
        self.cluster.forget(name).await;
        Ok(topic)
    }

    /// Begins to move a partition to other nodes, of which the first is to lead it. It is done when
    /// [`Admin::describe_topic`] shows it neither leaving nor joining any.
    ///
    /// # Errors
    /// Where the partition or a node does not exist, or a node is named twice or being emptied.
    pub async fn reassign_partition(
        &self,
        topic: &str,
        partition: u32,
        replicas: Vec<u64>,
    ) -> Result<()> {
        let request = ReassignPartitionRequest {
            topic: topic.to_owned(),
            partition,
            replicas,
        };
        call!(self, reassign_partition, request).map(drop)
    }

    /// Deletes a partition's records before an offset, which becomes the first one kept on all replicas; without an offset, all
    /// that is committed. Answers with the first offset kept.
    ///
    /// # Errors
    /// Where there is no such partition, or the offset lies behind what is committed.
    pub async fn delete_records(
        &self,
        topic: &str,
        partition: u32,
        before: Option<Offset>,
    ) -> Result<Offset> {
        let before = match before {
            Some(offset) => Before::Offset(offset.get()),
            None => Before::HighWatermark(HighWatermark {}),
        };
        let request = DeleteRecordsRequest {
            topic: topic.to_owned(),
            partition,
            before: Some(before),
        };
        let response = call!(self, delete_records, request)?;
        Ok(Offset::new(response.log_start_offset))
    }

    /// Lets another of a partition's replicas lead it.
    ///
    /// # Errors
    /// Where that replica is not one of the voters, or lacks too much.
    pub async fn transfer_leader(&self, topic: &str, partition: u32, to: u64) -> Result<()> {
        let request = TransferLeaderRequest {
            topic: topic.to_owned(),
            partition,
            to,
        };
        call!(self, transfer_leader, request)?;
        self.cluster.forget(topic).await;
        Ok(())
    }

    /// Begins to move all that a node holds to other nodes; it gets no partition any more. [`Admin::describe_cluster`] tells how
    /// many replicas it still has.
    ///
    /// # Errors
    /// Where there is no such node, or too few others to take what it holds.
    pub async fn drain_node(&self, node: u64) -> Result<()> {
        call!(self, drain_node, DrainNodeRequest { node_id: node }).map(drop)
    }

    /// Takes a node that is empty out of the cluster, for good: its number is never used again.
    ///
    /// # Errors
    /// Where there is no such node, or it still holds partitions.
    pub async fn remove_node(&self, node: u64) -> Result<()> {
        call!(self, remove_node, RemoveNodeRequest { node_id: node }).map(drop)
    }

    /// Sets, changes or removes how many bytes a second each node takes from a client id and gives it, or the default for those that
    /// have no rate of their own. Answers with what is set then.
    ///
    /// # Errors
    /// Where the client id is too long, or as many have quotas as can.
    pub async fn alter_quota(&self, change: QuotaChange) -> Result<Quota> {
        let answer = call!(self, alter_quota, change)?;
        Ok(answer.quota.unwrap_or_default())
    }

    /// All quotas: the default first, where there is one, then by client id.
    ///
    /// # Errors
    /// Where no broker answers.
    pub async fn list_quotas(&self) -> Result<Vec<Quota>> {
        Ok(call!(self, list_quotas, ListQuotasRequest {})?.quotas)
    }

    /// An offset by position or time, from the partition's leader.
    ///
    /// # Errors
    /// Where there is no such partition, or its leader does not answer.
    pub async fn list_offset(
        &self,
        topic: &str,
        partition: u32,
        at: OffsetAt,
    ) -> Result<ListedOffset> {
        list_offset(&self.cluster, topic, partition, at).await
    }

    /// The nodes of the cluster.
    ///
    /// # Errors
    /// Where no broker answers.
    pub async fn describe_cluster(&self) -> Result<ClusterDescription> {
        call!(self, describe_cluster, DescribeClusterRequest {})
    }
}

/// Asks the leader, and the next one where it is another by now.
pub(crate) async fn list_offset(
    cluster: &Cluster,
    topic: &str,
    partition: u32,
    at: OffsetAt,
) -> Result<ListedOffset> {
    let give_up_at = Instant::now() + ELECTION;
    let (mut not_before, mut hint, mut attempt) = (None, None, 0);
    loop {
        attempt += 1;
        let (place, tried) = ((topic, partition), (not_before, attempt));
        let error = match list_offset_once(cluster, place, at, tried, hint).await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let wait = backoff(attempt, FIRST_PAUSE, LAST_PAUSE);
        if !error.is_retryable() || Instant::now() + wait > give_up_at {
            return Err(error);
        }
        hint = error.leader().map(Box::from);
        not_before = Some(Instant::now());
        sleep(wait).await;
    }
}

async fn list_offset_once(
    cluster: &Cluster,
    (topic, partition): (&str, u32),
    at: OffsetAt,
    (not_before, attempt): (Option<Instant>, u32),
    hint: Option<Box<str>>,
) -> Result<ListedOffset> {
    let leader = match hint {
        Some(leader) => leader,
        None => {
            let reader = cluster.reader(topic, partition, not_before, attempt);
            reader.await?
        }
    };
    let answer = list_offset_at(cluster, &leader, topic, partition, at).await?;
    Ok(ListedOffset {
        offset: Offset::new(answer.offset),
        timestamp: answer.timestamp_ms.map(TimestampMs::new),
    })
}

async fn list_offset_at(
    cluster: &Cluster,
    leader: &str,
    topic: &str,
    partition: u32,
    at: OffsetAt,
) -> Result<v1::ListOffsetsResponse> {
    let request = ListOffsetsRequest {
        topic: topic.to_owned(),
        partition,
        at: Some(match at {
            OffsetAt::Earliest => At::Earliest(Earliest {}),
            OffsetAt::Latest => At::Latest(Latest {}),
            OffsetAt::Timestamp(timestamp) => At::TimestampMs(timestamp.get()),
        }),
    };
    cluster
        .call_at(leader, |channel| async move {
            log_client(channel).list_offsets(request).await
        })
        .await
}

fn require<T>(field: Option<T>) -> Result<T> {
    field.ok_or_else(|| Error::malformed("the broker's answer lacks the topic it speaks of"))
}
