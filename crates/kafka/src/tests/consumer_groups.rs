//! Groups whose partitions the coordinator assigns, as a client sees them.

use super::*;
use crate::wire::messages::{
    consumer_group_describe_request::ConsumerGroupDescribeRequest,
    consumer_group_describe_response::{ConsumerGroupDescribeResponse, DescribedGroup},
    consumer_group_heartbeat_request::{ConsumerGroupHeartbeatRequest, TopicPartitions},
    consumer_group_heartbeat_response::ConsumerGroupHeartbeatResponse,
    describe_groups_request::DescribeGroupsRequest,
    describe_groups_response::DescribeGroupsResponse,
    leave_group_request::LeaveGroupRequest,
    leave_group_response::LeaveGroupResponse,
    list_groups_request::ListGroupsRequest,
    list_groups_response::ListGroupsResponse,
    offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
};

const HEARTBEAT_VERSION: i16 = 1;
const DESCRIBE_VERSION: i16 = 1;
const LIST_VERSION: i16 = 5;
const DESCRIBE_CLASSIC_VERSION: i16 = 6;
const LEAVE_VERSION: i16 = 0;
const METADATA_BY_ID_VERSION: i16 = 12;
/// The first in which a member says who it is.
const MEMBERS_FETCH_VERSION: i16 = 9;

/// Member `m` joins group `g`.
pub(super) fn joins() -> ConsumerGroupHeartbeatRequest {
    ConsumerGroupHeartbeatRequest {
        group_id: "g".into(),
        member_id: "m".into(),
        rebalance_timeout_ms: 30_000,
        subscribed_topic_names: Some(vec!["orders".into()]),
        topic_partitions: Some(Vec::new()),
        ..ConsumerGroupHeartbeatRequest::default()
    }
}

/// It says nothing new.
fn goes_on(epoch: i32) -> ConsumerGroupHeartbeatRequest {
    ConsumerGroupHeartbeatRequest {
        group_id: "g".into(),
        member_id: "m".into(),
        member_epoch: epoch,
        ..ConsumerGroupHeartbeatRequest::default()
    }
}

impl Client {
    async fn beat_in(
        &mut self,
        version: i16,
        request: &ConsumerGroupHeartbeatRequest,
    ) -> ConsumerGroupHeartbeatResponse {
        let which = (ConsumerGroupHeartbeatRequest::KEY, version);
        loop {
            let mut body = self.answered(which, |w| request.encode(w, version)).await;
            let response = ConsumerGroupHeartbeatResponse::decode(&mut body, version).unwrap();
            // Until the groups' partition, which the first of them creates, is led.
            let passing = [
                ErrorCode::NotCoordinator,
                ErrorCode::CoordinatorLoadInProgress,
            ];
            if !passing.map(ErrorCode::code).contains(&response.error_code) {
                return response;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn beat(
        &mut self,
        request: &ConsumerGroupHeartbeatRequest,
    ) -> ConsumerGroupHeartbeatResponse {
        self.beat_in(HEARTBEAT_VERSION, request).await
    }

    /// Checks that a heartbeat is refused.
    async fn refused(&mut self, request: ConsumerGroupHeartbeatRequest, error: ErrorCode) {
        let response = self.beat(&request).await;
        assert_eq!(
            response.error_code,
            error.code(),
            "{request:?}: {response:?}"
        );
        assert!(response.error_message.is_some());
    }

    async fn described(&mut self) -> DescribedGroup {
        let request = ConsumerGroupDescribeRequest {
            group_ids: vec!["g".into()],
            ..ConsumerGroupDescribeRequest::default()
        };
        let which = (ConsumerGroupDescribeRequest::KEY, DESCRIBE_VERSION);
        let mut body = self
            .answered(which, |w| request.encode(w, DESCRIBE_VERSION))
            .await;
        let response = ConsumerGroupDescribeResponse::decode(&mut body, DESCRIBE_VERSION);
        response.unwrap().groups.remove(0)
    }

    async fn described_as_classic(&mut self) -> i16 {
        let request = DescribeGroupsRequest {
            groups: vec!["g".into()],
            ..DescribeGroupsRequest::default()
        };
        let which = (DescribeGroupsRequest::KEY, DESCRIBE_CLASSIC_VERSION);
        let mut body = self
            .answered(which, |w| request.encode(w, DESCRIBE_CLASSIC_VERSION))
            .await;
        let response = DescribeGroupsResponse::decode(&mut body, DESCRIBE_CLASSIC_VERSION);
        response.unwrap().groups[0].error_code
    }

    /// Name, type and state of each group of a type.
    async fn listed(&mut self, kind: &str) -> Vec<(String, String)> {
        let request = ListGroupsRequest {
            types_filter: vec![kind.into()],
            ..ListGroupsRequest::default()
        };
        let which = (ListGroupsRequest::KEY, LIST_VERSION);
        let mut body = self
            .answered(which, |w| request.encode(w, LIST_VERSION))
            .await;
        let response = ListGroupsResponse::decode(&mut body, LIST_VERSION).unwrap();
        let groups = response.groups.iter();
        groups
            .map(|group| (group.group_id.to_string(), group.group_state.to_string()))
            .collect()
    }

    /// The offset stored of the first partition, or the error; as a member, or as nobody.
    async fn committed(&mut self, member: Option<(&str, i32)>) -> Result<i64, i16> {
        let request = OffsetFetchRequest {
            groups: vec![OffsetFetchRequestGroup {
                group_id: "g".into(),
                member_id: member.map(|(id, _)| id.into()),
                member_epoch: member.map_or(-1, |(_, epoch)| epoch),
                topics: Some(vec![OffsetFetchRequestTopics {
                    name: "orders".into(),
                    partition_indexes: vec![0],
                    ..OffsetFetchRequestTopics::default()
                }]),
            }],
            ..OffsetFetchRequest::default()
        };
        let which = (OffsetFetchRequest::KEY, MEMBERS_FETCH_VERSION);
        let mut body = self
            .answered(which, |w| request.encode(w, MEMBERS_FETCH_VERSION))
            .await;
        let response = OffsetFetchResponse::decode(&mut body, MEMBERS_FETCH_VERSION).unwrap();
        let group = &response.groups[0];
        match group.error_code {
            0 => Ok(group.topics[0].partitions[0].committed_offset),
            error => Err(error),
        }
    }

    async fn leaves_classic(&mut self, member_id: &str) -> i16 {
        let request = LeaveGroupRequest {
            group_id: "g".into(),
            member_id: member_id.into(),
            ..LeaveGroupRequest::default()
        };
        let which = (LeaveGroupRequest::KEY, LEAVE_VERSION);
        self.send(which, 1, |w| request.encode(w, LEAVE_VERSION))
            .await;
        let (_, body) = self.receive().await;
        let response = LeaveGroupResponse::decode(&mut Reader::new(body), LEAVE_VERSION);
        response.unwrap().error_code
    }
}

#[test]
fn a_member_joins_is_assigned_stores_offsets_and_leaves() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let joined = client.beat(&joins()).await;
        assert_eq!(joined.error_code, 0, "{joined:?}");
        assert_eq!(joined.member_id.as_deref(), Some("m"));
        assert!(joined.heartbeat_interval_ms > 0);
        let assigned = joined.assignment.unwrap().topic_partitions;
        assert_eq!(assigned.len(), 1);
        assert_eq!(assigned[0].partitions, [0]);
        let epoch = joined.member_epoch;
        let owns = ConsumerGroupHeartbeatRequest {
            topic_partitions: Some(vec![TopicPartitions {
                topic_id: assigned[0].topic_id,
                partitions: vec![0],
            }]),
            ..goes_on(epoch)
        };
        let heard = client.beat(&owns).await;
        assert_eq!((heard.error_code, heard.member_epoch), (0, epoch));
        assert_eq!(heard.assignment, None);

        assert_eq!(client.commit("m", epoch, 42).await, 0);
        let stale = ErrorCode::StaleMemberEpoch.code();
        assert_eq!(client.commit("m", epoch + 1, 43).await, stale);
        let unknown = ErrorCode::UnknownMemberId.code();
        assert_eq!(client.commit("x", epoch, 43).await, unknown);
        assert_eq!(client.commit("", -1, 43).await, unknown);
        assert_eq!(client.committed(Some(("m", epoch))).await, Ok(42));
        assert_eq!(client.committed(None).await, Ok(42));
        assert_eq!(client.committed(Some(("m", epoch + 1))).await, Err(stale));
        assert_eq!(client.committed(Some(("x", epoch))).await, Err(unknown));

        let listed = client.listed("consumer").await;
        assert_eq!(listed, [("g".to_owned(), "Stable".to_owned())]);
        let group = client.described().await;
        assert_eq!(
            (&*group.group_state, &*group.assignor_name),
            ("Stable", "uniform")
        );
        let member = &group.members[0];
        assert_eq!((&*member.member_id, member.member_epoch), ("m", epoch));
        assert_eq!(
            (&*member.client_id, &*member.client_host),
            ("test", "/127.0.0.1")
        );
        assert_eq!(&*member.assignment.topic_partitions[0].topic_name, "orders");
        assert_eq!(member.assignment, member.target_assignment);
        let as_classic = client.described_as_classic().await;
        assert_eq!(as_classic, ErrorCode::GroupIdNotFound.code());

        let left = client.beat(&goes_on(-1)).await;
        assert_eq!((left.error_code, left.member_epoch), (0, -1));
        client
            .refused(goes_on(epoch), ErrorCode::UnknownMemberId)
            .await;
        assert_eq!(client.committed(None).await, Ok(42));
    });
}

#[test]
fn a_group_without_members_changes_its_kind_and_keeps_its_offsets_and_one_with_members_does_not() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let epoch = client.beat(&joins()).await.member_epoch;
        assert_eq!(client.commit("m", epoch, 42).await, 0);
        let refused = client.joined(join("")).await.error_code;
        assert_eq!(refused, ErrorCode::InconsistentGroupProtocol.code());
        client.beat(&goes_on(-1)).await;

        let told = client.joined(join("")).await;
        let joined = client.joined(join(&told.member_id)).await;
        assert_eq!(joined.error_code, 0);
        client.refused(joins(), ErrorCode::GroupIdNotFound).await;
        client
            .refused(goes_on(epoch), ErrorCode::GroupIdNotFound)
            .await;
        let described = client.described().await.error_code;
        assert_eq!(described, ErrorCode::GroupIdNotFound.code());
        assert_eq!(client.committed(None).await, Ok(42));
        assert_eq!(client.leaves_classic(&joined.member_id).await, 0);

        // One that was only told an id is no member.
        client.joined(join("")).await;
        let back = client.beat(&joins()).await;
        assert_eq!(back.error_code, 0);
        assert!(back.member_epoch > epoch);
        assert_eq!(client.committed(None).await, Ok(42));
    });
}

#[test]
fn heartbeats_that_are_none_are_refused_each_with_its_error() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let text = |text: &str| Some(text.into());
        let some = ConsumerGroupHeartbeatRequest {
            topic_partitions: Some(vec![TopicPartitions {
                partitions: vec![0],
                ..TopicPartitions::default()
            }]),
            ..joins()
        };
        let negative = ConsumerGroupHeartbeatRequest {
            topic_partitions: Some(vec![TopicPartitions {
                partitions: vec![-1],
                ..TopicPartitions::default()
            }]),
            ..goes_on(1)
        };
        let names = (0..10_000).map(|number| format!("t{number}").as_str().into());
        for request in [
            ConsumerGroupHeartbeatRequest {
                group_id: "".into(),
                ..joins()
            },
            ConsumerGroupHeartbeatRequest {
                member_id: "".into(),
                ..joins()
            },
            ConsumerGroupHeartbeatRequest {
                member_epoch: -3,
                ..joins()
            },
            ConsumerGroupHeartbeatRequest {
                member_epoch: i32::MIN,
                ..joins()
            },
            ConsumerGroupHeartbeatRequest {
                instance_id: text(""),
                ..joins()
            },
            ConsumerGroupHeartbeatRequest {
                rack_id: text(""),
                ..joins()
            },
            ConsumerGroupHeartbeatRequest {
                rebalance_timeout_ms: -1,
                ..joins()
            },
            ConsumerGroupHeartbeatRequest {
                rebalance_timeout_ms: i32::MIN,
                ..joins()
            },
            ConsumerGroupHeartbeatRequest {
                subscribed_topic_names: None,
                ..joins()
            },
            ConsumerGroupHeartbeatRequest {
                subscribed_topic_names: Some(names.collect()),
                ..joins()
            },
            ConsumerGroupHeartbeatRequest {
                topic_partitions: None,
                ..joins()
            },
            some,
            negative,
        ] {
            client.refused(request, ErrorCode::InvalidRequest).await;
        }
        let regex = ConsumerGroupHeartbeatRequest {
            subscribed_topic_regex: text("(("),
            ..joins()
        };
        let error = ErrorCode::InvalidRegularExpression;
        client.refused(regex, error).await;
        let assignor = ConsumerGroupHeartbeatRequest {
            server_assignor: text("magic"),
            ..joins()
        };
        let error = ErrorCode::UnsupportedAssignor;
        client.refused(assignor, error).await;
        client.refused(goes_on(7), ErrorCode::UnknownMemberId).await;
        assert!(client.listed("consumer").await.is_empty());

        let by_regex = ConsumerGroupHeartbeatRequest {
            subscribed_topic_names: None,
            subscribed_topic_regex: text("ord.*"),
            instance_id: text("one"),
            rebalance_timeout_ms: i32::MAX,
            ..joins()
        };
        let joined = client.beat(&by_regex).await;
        assert_eq!(joined.assignment.unwrap().topic_partitions.len(), 1);
        client
            .refused(
                goes_on(joined.member_epoch + 1),
                ErrorCode::FencedMemberEpoch,
            )
            .await;
        let second = ConsumerGroupHeartbeatRequest {
            member_id: "other".into(),
            ..by_regex.clone()
        };
        client
            .refused(second.clone(), ErrorCode::UnreleasedInstanceId)
            .await;
        // franz-go does not say its instance id again.
        assert_eq!(client.beat(&goes_on(-2)).await.member_epoch, -2);
        let back = client.beat(&second).await;
        assert_eq!(back.assignment.unwrap().topic_partitions.len(), 1);
        let late = ConsumerGroupHeartbeatRequest {
            instance_id: text("one"),
            ..goes_on(-2)
        };
        client.refused(late, ErrorCode::FencedInstanceId).await;
    });
}

#[test]
fn who_has_no_id_is_given_one_in_the_first_version() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let anonymous = ConsumerGroupHeartbeatRequest {
            member_id: "".into(),
            ..joins()
        };
        let joined = client.beat_in(0, &anonymous).await;
        assert_eq!(joined.error_code, 0);
        assert!(joined.member_id.is_some_and(|id| !id.is_empty()));
    });
}

#[test]
fn a_topic_is_found_by_its_id_beside_an_empty_name() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let id = client
            .beat(&joins())
            .await
            .assignment
            .unwrap()
            .topic_partitions[0]
            .topic_id;
        let request = MetadataRequest {
            topics: Some(vec![MetadataRequestTopic {
                topic_id: id,
                name: Some("".into()),
            }]),
            ..MetadataRequest::default()
        };
        let which = (MetadataRequest::KEY, METADATA_BY_ID_VERSION);
        let mut body = client
            .answered(which, |w| request.encode(w, METADATA_BY_ID_VERSION))
            .await;
        let response = MetadataResponse::decode(&mut body, METADATA_BY_ID_VERSION).unwrap();
        let topic = &response.topics[0];
        assert_eq!(
            (topic.error_code, topic.name.as_deref()),
            (0, Some("orders"))
        );
    });
}

#[test]
fn clients_are_told_that_groups_are_assigned_by_the_coordinator() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        let request = ApiVersionsRequest::default();
        let which = (ApiVersionsRequest::KEY, 3);
        client
            .send_flexible(which, 1, |w| request.encode(w, 3))
            .await;
        let (_, body) = client.receive().await;
        let response = ApiVersionsResponse::decode(&mut Reader::new(body), 3).unwrap();
        let feature = &response.finalized_features[0];
        assert_eq!(
            (&*feature.name, feature.max_version_level),
            ("group.version", 1)
        );
        let served = response.api_keys.iter();
        let served: Vec<_> = served.map(|api| (api.api_key, api.max_version)).collect();
        assert!(served.contains(&(68, 1)) && served.contains(&(69, 1)));
    });
}
