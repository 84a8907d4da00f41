//! A coordinator whose groups have one member: it owns all that it subscribes to.

use std::{collections::HashMap, time::Duration};

use tokio::time::interval;

use super::*;
use quipu_proto::v1::{
    groups_server::Groups, session_request::Request as Said, session_response::Response as Answer,
};

impl Services {
    /// All partitions of those of these topics that there are.
    fn owned(&self, topics: &[String]) -> Vec<TopicPartitions> {
        let state = self.0.state.lock();
        let there = topics.iter().filter_map(|topic| {
            let partitions = state.topics.get(topic)?.len() as u32;
            Some(TopicPartitions {
                topic: topic.clone(),
                partitions: (0..partitions).collect(),
            })
        });
        there.collect()
    }
}

#[tonic::async_trait]
impl Groups for Services {
    type SessionStream = Answers<SessionResponse>;

    async fn find_coordinator(
        &self,
        _: Request<FindCoordinatorRequest>,
    ) -> Result<Response<FindCoordinatorResponse>, Status> {
        let coordinator = Node {
            id: 1,
            address: self.0.address.to_owned(),
        };
        Ok(Response::new(FindCoordinatorResponse {
            coordinator: Some(coordinator),
        }))
    }

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let service = self.clone();
        let mut requests = request.into_inner();
        let (answers, outgoing) = mpsc::channel(64);
        tokio::spawn(async move {
            let Ok(Some(SessionRequest {
                request: Some(Said::Join(join)),
            })) = requests.message().await
            else {
                return;
            };
            let say = async |answer| {
                let response = Some(answer);
                answers.send(Ok(SessionResponse { response })).await.is_ok()
            };
            let joined = JoinedGroup {
                heartbeat_interval_ms: 1000,
                session_timeout_ms: 15_000,
            };
            say(Answer::Joined(joined)).await;
            let (mut epoch, mut owned) = (0, Vec::new());
            let mut looks = interval(Duration::from_millis(100));
            loop {
                let told = tokio::select! {
                    said = requests.message() => match said {
                        Ok(Some(SessionRequest { request: Some(Said::Heartbeat(beat)) })) => {
                            say(Answer::Heartbeat(beat)).await
                        }
                        _ => false,
                    },
                    _ = looks.tick() => {
                        let now = service.owned(&join.topics);
                        if now == owned {
                            continue;
                        }
                        (epoch, owned) = (epoch + 1, now);
                        let assignment = Assignment {
                            epoch,
                            owned: owned.clone(),
                            ..Assignment::default()
                        };
                        say(Answer::Assignment(assignment)).await
                    }
                };
                if !told {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn commit_offsets(
        &self,
        request: Request<CommitOffsetsRequest>,
    ) -> Result<Response<CommitOffsetsResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.0.state.lock();
        for TopicOffsets { topic, partitions } in request.topics {
            for partition in partitions {
                let key = (request.group.clone(), topic.clone(), partition.partition);
                state.offsets.insert(key, partition.offset);
            }
        }
        Ok(Response::new(CommitOffsetsResponse::default()))
    }

    async fn fetch_offsets(
        &self,
        request: Request<FetchOffsetsRequest>,
    ) -> Result<Response<FetchOffsetsResponse>, Status> {
        let FetchOffsetsRequest {
            group,
            topics: asked,
        } = request.into_inner();
        let is_asked = |topic: &str, partition: u32| {
            let named = |asked: &TopicPartitions| {
                asked.topic == topic && asked.partitions.contains(&partition)
            };
            asked.is_empty() || asked.iter().any(named)
        };
        let mut topics: HashMap<String, Vec<PartitionOffset>> = HashMap::new();
        for ((of, topic, partition), offset) in &self.0.state.lock().offsets {
            if *of == group && is_asked(topic, *partition) {
                topics
                    .entry(topic.clone())
                    .or_default()
                    .push(PartitionOffset {
                        partition: *partition,
                        offset: *offset,
                        ..PartitionOffset::default()
                    });
            }
        }
        let topics = topics
            .into_iter()
            .map(|(topic, partitions)| TopicOffsets { topic, partitions });
        Ok(Response::new(FetchOffsetsResponse {
            topics: topics.collect(),
        }))
    }

    async fn delete_offsets(
        &self,
        _: Request<DeleteOffsetsRequest>,
    ) -> Result<Response<DeleteOffsetsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn list_groups(
        &self,
        _: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn describe_group(
        &self,
        _: Request<DescribeGroupRequest>,
    ) -> Result<Response<DescribeGroupResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn delete_group(
        &self,
        _: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}
