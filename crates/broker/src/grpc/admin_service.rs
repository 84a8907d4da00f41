//! `quipu.v1.Admin`.

use std::sync::Arc;

use quipu_proto::v1::{
    AlterTopicConfigRequest, AlterTopicConfigResponse, CreateTopicRequest, CreateTopicResponse,
    DeleteTopicRequest, DeleteTopicResponse, DescribeClusterRequest, DescribeClusterResponse,
    DescribeTopicRequest, DescribeTopicResponse, ListTopicsRequest, ListTopicsResponse, Node,
    PartitionDescription, Topic, admin_server::Admin,
};
use tonic::{Request, Response, Status};

use crate::{core::Core, metadata::NewTopic};

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
            settings: request.config,
        };
        let topic = self.core.controller.create_topic(new).await?;
        Ok(Response::new(CreateTopicResponse {
            topic: Some(Topic::from(&*topic)),
        }))
    }

    async fn list_topics(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        let topics = self.core.list_topics(request.into_inner().include_internal);
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
        let controller = &self.core.controller;
        let topic = controller
            .alter_topic(&request.name, request.set, &request.reset)
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
        self.core.controller.delete_topic(&name).await?;
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
            nodes: cluster.nodes.into_iter().map(Node::from).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }
}
