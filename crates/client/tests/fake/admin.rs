//! Topics, as far as clients of the tests ask.

use quipu_proto::v1::admin_server::Admin;

use super::*;

#[tonic::async_trait]
impl Admin for Services {
    async fn describe_topic(
        &self,
        request: Request<DescribeTopicRequest>,
    ) -> Result<Response<DescribeTopicResponse>, Status> {
        let name = request.into_inner().name;
        self.0.speak().await;
        let known = self.0.state.lock().topics.get(&name).map(Vec::len);
        let Some(count) = known.map(|count| count as u32) else {
            return Err(no_such_topic());
        };
        let (leader, leader_epoch) = *self.0.leader.lock();
        let partition = |partition| PartitionDescription {
            partition,
            leader: Some(Node {
                id: 1,
                address: leader.to_owned(),
            }),
            leader_epoch,
            ..PartitionDescription::default()
        };
        Ok(Response::new(DescribeTopicResponse {
            topic: None,
            partitions: (0..count).map(partition).collect(),
        }))
    }

    async fn create_topic(
        &self,
        request: Request<CreateTopicRequest>,
    ) -> Result<Response<CreateTopicResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.0.state.lock();
        let partitions = empty(request.partitions as usize);
        state.topics.insert(request.name.clone(), partitions);
        drop(state);
        self.0.end.send_modify(|changes| *changes += 1);
        let topic = Topic {
            name: request.name,
            ..Topic::default()
        };
        Ok(Response::new(CreateTopicResponse { topic: Some(topic) }))
    }

    async fn list_topics(
        &self,
        _: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn alter_topic_config(
        &self,
        _: Request<AlterTopicConfigRequest>,
    ) -> Result<Response<AlterTopicConfigResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn delete_topic(
        &self,
        _: Request<DeleteTopicRequest>,
    ) -> Result<Response<DeleteTopicResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn describe_cluster(
        &self,
        _: Request<DescribeClusterRequest>,
    ) -> Result<Response<DescribeClusterResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn delete_records(
        &self,
        _: Request<DeleteRecordsRequest>,
    ) -> Result<Response<DeleteRecordsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn add_partitions(
        &self,
        _: Request<v1::AddPartitionsRequest>,
    ) -> Result<Response<v1::AddPartitionsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn reassign_partition(
        &self,
        _: Request<v1::ReassignPartitionRequest>,
    ) -> Result<Response<v1::ReassignPartitionResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn transfer_leader(
        &self,
        _: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn drain_node(
        &self,
        _: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn remove_node(
        &self,
        _: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn alter_quota(
        &self,
        _: Request<v1::AlterQuotaRequest>,
    ) -> Result<Response<v1::AlterQuotaResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn list_quotas(
        &self,
        _: Request<v1::ListQuotasRequest>,
    ) -> Result<Response<v1::ListQuotasResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}
