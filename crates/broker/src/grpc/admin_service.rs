//! `quipu.v1.Admin`.

use std::sync::Arc;

use quipu_model::{NodeId, Offset, PartitionId};
use quipu_proto::{
    peer::v1::{DrainNode, Reassign, RemoveNode, change_request::Change},
    v1::{
        AddPartitionsRequest, AddPartitionsResponse, AlterQuotaRequest, AlterQuotaResponse,
        AlterTopicConfigRequest, AlterTopicConfigResponse, CreateTopicRequest, CreateTopicResponse,
        DeleteRecordsRequest, DeleteRecordsResponse, DeleteTopicRequest, DeleteTopicResponse,
        DescribeClusterRequest, DescribeClusterResponse, DescribeTopicRequest,
        DescribeTopicResponse, DrainNodeRequest, DrainNodeResponse, ListQuotasRequest,
        ListQuotasResponse, ListTopicsRequest, ListTopicsResponse, Node, NodeState,
        PartitionDescription, ReassignPartitionRequest, ReassignPartitionResponse,
        RemoveNodeRequest, RemoveNodeResponse, Topic, TransferLeaderRequest,
        TransferLeaderResponse, admin_server::Admin, delete_records_request::Before,
    },
};
use tonic::{Request, Response, Status};

use crate::{
    core::Core,
    error::{BrokerError, Reason},
    metadata::NewTopic,
};

/// Serves the admin API over the core.
#[derive(Clone, Debug)]
pub(super) struct AdminService {
    pub(super) core: Arc<Core>,
}

/// A number from a request; 0 is unset.
fn given(value: u32) -> Option<u32> {
    (value > 0).then_some(value)
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_topic(
        &self,
        request: Request<CreateTopicRequest>,
    ) -> Result<Response<CreateTopicResponse>, Status> {
        let request = request.into_inner();
        let new = NewTopic {
            name: request.name,
            partitions: given(request.partitions),
            replication_factor: given(request.replication_factor),
            placement: Vec::new(),
            settings: request.config,
        };
        let topic = self.core.create_topic(new).await?;
        Ok(Response::new(CreateTopicResponse {
            topic: Some(Topic::from(&*topic)),
        }))
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        let internal = request.into_inner().include_internal;
        let topics = self.core.list_topics(internal)?;
        Ok(Response::new(ListTopicsResponse {
            topics: topics.iter().map(|topic| Topic::from(&**topic)).collect(),
        }))
    }

    async fn describe_topic(
        &self,
        request: Request<DescribeTopicRequest>,
    ) -> Result<Response<DescribeTopicResponse>, Status> {
        let (topic, partitions) = self.core.describe_topic(&request.into_inner().name)?;
        Ok(Response::new(DescribeTopicResponse {
            topic: Some(Topic::from(&*topic)),
            partitions: partitions
                .into_iter()
                .map(PartitionDescription::from)
                .collect(),
        }))
    }

    async fn alter_topic_config(
        &self,
        request: Request<AlterTopicConfigRequest>,
    ) -> Result<Response<AlterTopicConfigResponse>, Status> {
        let request = request.into_inner();
        let controller = self.core.controller()?;
        let topic = controller
            .alter_topic(&request.name, request.set, request.reset)
            .await?;
        Ok(Response::new(AlterTopicConfigResponse {
            topic: Some(Topic::from(&*topic)),
        }))
    }

    async fn delete_topic(
        &self,
        request: Request<DeleteTopicRequest>,
    ) -> Result<Response<DeleteTopicResponse>, Status> {
        let name = request.into_inner().name;
        self.core.controller()?.delete_topic(&name).await?;
        Ok(Response::new(DeleteTopicResponse {}))
    }

    async fn describe_cluster(
        &self,
        _request: Request<DescribeClusterRequest>,
    ) -> Result<Response<DescribeClusterResponse>, Status> {
        let cluster = self.core.describe_cluster();
        Ok(Response::new(DescribeClusterResponse {
            cluster_id: cluster.cluster_id,
            controller_id: cluster.controller.map_or(0, |node| node.get()),
            states: cluster.nodes.iter().map(NodeState::from).collect(),
            nodes: cluster
                .nodes
                .into_iter()
                .map(|node| Node::from(node.address))
                .collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn add_partitions(
        &self,
        request: Request<AddPartitionsRequest>,
    ) -> Result<Response<AddPartitionsResponse>, Status> {
        let request = request.into_inner();
        let topic = self
            .core
            .add_partitions(&request.name, request.partitions)
            .await?;
        Ok(Response::new(AddPartitionsResponse {
            topic: Some(Topic::from(&*topic)),
        }))
    }

    async fn reassign_partition(
        &self,
        request: Request<ReassignPartitionRequest>,
    ) -> Result<Response<ReassignPartitionResponse>, Status> {
        let request = request.into_inner();
        let reassign = Change::Reassign(Reassign {
            name: request.topic,
            partition: request.partition,
            replicas: request.replicas,
        });
        self.core.controller()?.change_here(reassign).await?;
        Ok(Response::new(ReassignPartitionResponse {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let request = request.into_inner();
        let partition = PartitionId::new(request.partition);
        let to = NodeId::new(request.to);
        self.core
            .transfer_leader(&request.topic, partition, to)
            .await?;
        Ok(Response::new(TransferLeaderResponse {}))
    }

    async fn delete_records(
        &self,
        request: Request<DeleteRecordsRequest>,
    ) -> Result<Response<DeleteRecordsResponse>, Status> {
        let request = request.into_inner();
        let before = match request.before {
            Some(Before::Offset(offset)) => Some(Offset::new(offset)),
            Some(Before::HighWatermark(_)) => None,
            None => {
                let message = "the request says no offset to delete before".to_owned();
                return Err(BrokerError::new(Reason::InvalidRequest, message).into());
            }
        };
        let partition = PartitionId::new(request.partition);
        let deleting = self.core.delete_records(&request.topic, partition, before);
        Ok(Response::new(DeleteRecordsResponse {
            log_start_offset: deleting.await?.get(),
        }))
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<DrainNodeResponse>, Status> {
        let node_id = request.into_inner().node_id;
        let drain = Change::DrainNode(DrainNode { node_id });
        self.core.controller()?.change_here(drain).await?;
        Ok(Response::new(DrainNodeResponse {}))
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        let node_id = request.into_inner().node_id;
        let remove = Change::RemoveNode(RemoveNode { node_id });
        self.core.controller()?.change_here(remove).await?;
        Ok(Response::new(RemoveNodeResponse {}))
    }

    async fn alter_quota(
        &self,
        request: Request<AlterQuotaRequest>,
    ) -> Result<Response<AlterQuotaResponse>, Status> {
        let controller = self.core.controller()?;
        let quota = controller.alter_quota(request.into_inner()).await?;
        Ok(Response::new(AlterQuotaResponse { quota: Some(quota) }))
    }

    async fn list_quotas(
        &self,
        _request: Request<ListQuotasRequest>,
    ) -> Result<Response<ListQuotasResponse>, Status> {
        let quotas = self.core.metadata.image().quotas.list();
        Ok(Response::new(ListQuotasResponse { quotas }))
    }
}
