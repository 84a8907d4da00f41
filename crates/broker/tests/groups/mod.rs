//! What groups store, as their clients are promised.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::time::Duration;

use futures::future::join_all;
use quipu_proto::v1::{self, ErrorReason, groups_client::GroupsClient};
use tonic::{Status, transport::Channel};

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
