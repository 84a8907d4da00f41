//! What groups store, as their clients are promised.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::time::Duration;

use futures::{future::join_all, stream};
use quipu_proto::v1::{
    self, ErrorReason, groups_client::GroupsClient, session_request::Request,
    session_response::Response,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming, transport::Channel};

use crate::support::{Node, error_of, plain};

async fn client(node: &Node) -> GroupsClient<Channel> {
    GroupsClient::new(node.channel().await)
}

fn commit(group: &str, topic: &str, offsets: &[(u32, u64)]) -> v1::CommitOffsetsRequest {
    let offsets = offsets.iter();
    let partitions = offsets.map(|(partition, offset)| v1::PartitionOffset {
        partition: *partition,
        offset: *offset,
        leader_epoch: Some(0),
        metadata: format!("at {offset}"),
        committed_at_ms: 0,
    });
    v1::CommitOffsetsRequest {
        group: group.to_owned(),
        member: None,
        topics: vec![v1::TopicOffsets {
            topic: topic.to_owned(),
            partitions: partitions.collect(),
        }],
    }
}

/// Asks again while the coordinator is chosen and loads.
async fn committed(
    client: &mut GroupsClient<Channel>,
    request: v1::CommitOffsetsRequest,
) -> Result<v1::CommitOffsetsResponse, Status> {
    loop {
        match client.commit_offsets(request.clone()).await {
            Err(status) if error_of(&status).retryable => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            answer => return answer.map(tonic::Response::into_inner),
        }
    }
}

async fn stored(client: &mut GroupsClient<Channel>, group: &str) -> Vec<(String, u32, u64)> {
    let request = v1::FetchOffsetsRequest {
        group: group.to_owned(),
        topics: Vec::new(),
    };
    let answer = loop {
        match client.fetch_offsets(request.clone()).await {
            Ok(answer) => break answer.into_inner(),
            Err(status) => assert!(error_of(&status).retryable, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let offsets = answer.topics.into_iter().flat_map(|topic| {
        let name = topic.topic;
        let partitions = topic.partitions.into_iter();
        partitions.map(move |found| {
            assert_eq!(found.metadata, format!("at {}", found.offset));
            (name.clone(), found.partition, found.offset)
        })
    });
    offsets.collect()
}

#[tokio::test]
async fn stored_offsets_outlive_a_restart_and_go_with_their_topic() {
    let node = Node::start().await;
    node.create("orders", 3).await;
    let values = ["a", "b", "c", "d", "e"];
    for partition in 0..3 {
        let mut log = node.log().await;
        log.produce(plain("orders", partition, &values))
            .await
            .unwrap();
    }
    let mut groups = client(&node).await;
    for (group, offset) in [("g", 2), ("g", 3), ("h", 5)] {
        let request = commit(group, "orders", &[(0, offset), (2, offset)]);
        let answer = committed(&mut groups, request).await.unwrap();
        assert_eq!(answer.refused, []);
    }
    let orders = |partition, offset| ("orders".to_owned(), partition, offset);
    assert_eq!(stored(&mut groups, "g").await, [orders(0, 3), orders(2, 3)]);
    drop(groups);

    let node = node.restart().await;
    let mut groups = client(&node).await;
    assert_eq!(stored(&mut groups, "g").await, [orders(0, 3), orders(2, 3)]);
    assert_eq!(stored(&mut groups, "h").await, [orders(0, 5), orders(2, 5)]);
    // A topic of the same name is another topic.
    node.delete("orders").await;
    node.create("orders", 3).await;
    assert_eq!(stored(&mut groups, "g").await, []);
    drop(groups);
    node.stop().await;
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_with_its_reason() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    let mut groups = client(&node).await;
    let answer = committed(&mut groups, commit("g", "orders", &[(0, 0), (7, 0)])).await;
    let refused = answer.unwrap().refused;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].partition, 7);
    let error = refused[0].error.as_ref().unwrap();
    assert_eq!(error.reason(), ErrorReason::UnknownPartition);

    let one = |topic: &str, offset: u64| {
        let request = commit("g", topic, &[(0, offset)]);
        let mut groups = groups.clone();
        async move {
            let refused = committed(&mut groups, request).await.unwrap().refused;
            refused[0].error.as_ref().unwrap().reason()
        }
    };
    assert_eq!(one("orders", 1).await, ErrorReason::OffsetOutOfRange);
    assert_eq!(one("none", 0).await, ErrorReason::UnknownTopic);
    for group in [String::new(), "x".repeat(256)] {
        let status = committed(&mut groups, commit(&group, "orders", &[(0, 0)])).await;
        let error = error_of(&status.unwrap_err());
        assert_eq!(error.reason(), ErrorReason::InvalidRequest);
    }
    let nobody = v1::DeleteGroupRequest {
        group: "nobody".to_owned(),
    };
    let status = groups.delete_group(nobody).await.unwrap_err();
    assert_eq!(error_of(&status).reason(), ErrorReason::UnknownGroup);
    drop(groups);
    node.stop().await;
}

#[tokio::test]
async fn groups_are_listed_found_and_deleted() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    let mut groups = client(&node).await;
    let names: Vec<String> = (0..40).map(|number| format!("group-{number:02}")).collect();
    let storing = names.iter().map(|name| {
        let mut groups = groups.clone();
        async move { committed(&mut groups, commit(name, "orders", &[(0, 0)])).await }
    });
    for stored in join_all(storing).await {
        assert_eq!(stored.unwrap().refused, []);
    }
    let listed = groups.list_groups(v1::ListGroupsRequest {}).await.unwrap();
    let listed = listed.into_inner();
    assert!(!listed.loading);
    let listed: Vec<_> = listed.groups.into_iter().map(|group| group.group).collect();
    assert_eq!(listed, names);
    for group in &names {
        let group = group.clone();
        let find = v1::FindCoordinatorRequest {
            group: group.clone(),
        };
        let found = groups.find_coordinator(find).await.unwrap().into_inner();
        assert_eq!(found.coordinator.unwrap().id, 1);
        let delete = v1::DeleteGroupRequest { group };
        groups.delete_group(delete).await.unwrap();
    }
    let listed = groups.list_groups(v1::ListGroupsRequest {}).await.unwrap();
    assert_eq!(listed.into_inner().groups, []);
    // The topic behind it is the cluster's own.
    let write = plain("__consumer_offsets", 0, &["x"]);
    let status = node.log().await.produce(write).await.unwrap_err();
    assert_eq!(error_of(&status).reason(), ErrorReason::InternalTopic);
    drop(groups);
    node.stop().await;
}

/// A member's session, as its client keeps it.
struct Member {
    requests: mpsc::Sender<v1::SessionRequest>,
    responses: Streaming<v1::SessionResponse>,
}

impl Member {
    async fn join(client: &GroupsClient<Channel>, id: &str, epoch: u64) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let join = v1::JoinGroup {
            group: "g".to_owned(),
            member_id: id.to_owned(),
            epoch,
            topics: vec!["orders".to_owned()],
            ..v1::JoinGroup::default()
        };
        let stream = stream::unfold(receiver, |mut receiver| async {
            Some((receiver.recv().await?, receiver))
        });
        let mut member = Self {
            responses: client.clone().session(stream).await.unwrap().into_inner(),
            requests,
        };
        member.say(Request::Join(join)).await;
        member
    }

    async fn say(&mut self, request: Request) {
        let request = v1::SessionRequest {
            request: Some(request),
        };
        self.requests.send(request).await.unwrap();
    }

    async fn hear(&mut self) -> Response {
        let message = self.responses.message().await.unwrap().unwrap();
        message.response.unwrap()
    }

    /// The next assignment: its epoch, what is owned, and what of that is to be let go.
    async fn assignment(&mut self) -> (u64, Vec<u32>, Vec<u32>) {
        loop {
            match self.hear().await {
                Response::Assignment(assignment) => {
                    let partitions = |topics: Vec<v1::TopicPartitions>| {
                        topics.into_iter().flat_map(|t| t.partitions).collect()
                    };
                    let owned = partitions(assignment.owned);
                    return (assignment.epoch, owned, partitions(assignment.revoking));
                }
                Response::Error(error) => panic!("{error:?}"),
                Response::Joined(_) | Response::Heartbeat(_) => {}
            }
        }
    }
}

/// A client of a node whose groups are served.
async fn serving(node: &Node) -> GroupsClient<Channel> {
    let mut client = client(node).await;
    stored(&mut client, "g").await;
    client
}

#[tokio::test]
async fn members_share_partitions_hand_them_over_and_go_on_after_a_restart() {
    let node = Node::start().await;
    node.create("orders", 4).await;
    let client = serving(&node).await;
    let mut first = Member::join(&client, "a", 0).await;
    assert_eq!(first.assignment().await.1, [0, 1, 2, 3]);
    let mut second = Member::join(&client, "b", 0).await;
    let (_, owned, _) = second.assignment().await;
    assert_eq!(owned, [0; 0]);
    let (epoch, owned, revoking) = first.assignment().await;
    assert_eq!((owned.len(), revoking.len()), (4, 2));
    let release = v1::ReleasePartitions {
        epoch,
        topics: vec![v1::TopicPartitions {
            topic: "orders".to_owned(),
            partitions: revoking.clone(),
        }],
    };
    first.say(Request::Release(release)).await;
    let (kept_in, kept, _) = first.assignment().await;
    let (given_in, given, _) = second.assignment().await;
    assert_eq!(given, revoking);

    // Only who has a partition stores how far it was read, and nobody from outside does.
    let store = |member: Option<(&str, u64)>, partition: u32| {
        let mut request = commit("g", "orders", &[(partition, 0)]);
        request.member = member.map(|(id, epoch)| v1::GroupMember {
            id: id.to_owned(),
            epoch,
        });
        let mut client = client.clone();
        async move { client.commit_offsets(request).await }
    };
    let mine = store(Some(("a", kept_in)), kept[0]).await.unwrap();
    assert_eq!(mine.into_inner().refused, []);
    let others = store(Some(("a", kept_in)), given[0]).await.unwrap();
    let error = others.into_inner().refused[0].error.clone().unwrap();
    assert_eq!(error.reason(), ErrorReason::PartitionNotOwned);
    for (member, reason) in [
        (None, ErrorReason::GroupNotEmpty),
        (Some(("c", 1)), ErrorReason::UnknownMember),
    ] {
        let refused = store(member, 0).await.unwrap_err();
        assert_eq!(error_of(&refused).reason(), reason);
    }
    drop((first, second, client));

    let node = node.restart().await;
    let client = serving(&node).await;
    let mut first = Member::join(&client, "a", kept_in).await;
    assert_eq!(first.assignment().await.1, kept);
    let mut second = Member::join(&client, "b", given_in).await;
    assert_eq!(second.assignment().await.1, given);
    second
        .say(Request::Heartbeat(v1::SessionHeartbeat { number: 7 }))
        .await;
    assert!(matches!(second.hear().await, Response::Heartbeat(h) if h.number == 7));
    second.say(Request::Leave(v1::LeaveGroup {})).await;
    assert_eq!(first.assignment().await.1, [0, 1, 2, 3]);
    // One that the group does not know has lost what it held.
    let mut stranger = Member::join(&client, "x", 3).await;
    let Response::Error(error) = stranger.hear().await else {
        panic!("a stranger goes on");
    };
    assert_eq!(error.reason(), ErrorReason::UnknownMember);
    drop((first, second, stranger, client));
    node.stop().await;
}
