//! What the listener does besides the API: it describes itself, tells its health, and keeps to its limits.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::time::Duration;

use futures::{StreamExt, stream};
use prost::Message;
use prost_types::FileDescriptorProto;
use quipu_proto::{
    peer::v1 as peer,
    v1::{self, ErrorReason},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{sleep, timeout},
};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{Node, batch, encoded, error_of, fetch, plain, records};

async fn reflect(node: &Node, question: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    };
    let mut answers = ServerReflectionClient::new(node.channel().await)
        .server_reflection_info(stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    answer.message_response.unwrap()
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let node = Node::start().await;
    let listed = reflect(&node, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else {
        panic!("{listed:?}");
    };
    let names: Vec<_> = listed.service.into_iter().map(|s| s.name).collect();
    for service in ["quipu.v1.Log", "quipu.v1.Admin", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|name| name == service), "{names:?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn reflection_gives_the_file_of_the_api() {
    let node = Node::start().await;
    for question in [
        MessageRequest::FileByFilename("quipu/v1/quipu.proto".to_owned()),
        MessageRequest::FileContainingSymbol("quipu.v1.Log".to_owned()),
        MessageRequest::FileContainingSymbol("quipu.v1.ProduceRequest".to_owned()),
    ] {
        let answer = reflect(&node, question).await;
        let MessageResponse::FileDescriptorResponse(answer) = answer else {
            panic!("{answer:?}");
        };
        let file = FileDescriptorProto::decode(&answer.file_descriptor_proto[0][..]).unwrap();
        assert_eq!(file.package(), "quipu.v1");
        let log = file.service.iter().find(|s| s.name() == "Log").unwrap();
        assert!(log.method.iter().any(|m| m.name() == "ProduceStream"));
        let request = |m: &&prost_types::DescriptorProto| m.name() == "ProduceRequest";
        let request = file.message_type.iter().find(request).unwrap();
        assert!(request.field.iter().any(|f| f.name() == "topic"));
    }
    node.stop().await;
}

#[tokio::test]
async fn health_is_told_over_grpc() {
    let node = Node::start().await;
    let mut health = HealthClient::new(node.channel().await);
    let mut ask = async |service: &str| {
        let service = service.to_owned();
        let answer = health.check(HealthCheckRequest { service }).await?;
        Ok::<_, tonic::Status>(answer.into_inner().status())
    };
    // The empty name is the server as a whole.
    for service in ["", "quipu.v1.Log", "quipu.v1.Admin"] {
        let status = ask(service).await.unwrap();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }
    let unknown = ask("quipu.v1.Nothing").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    node.stop().await;
}

/// A connection that the broker is known to have taken, for it has answered.
async fn connected(node: &Node) -> Result<Channel, tonic::Status> {
    let channel = node.channel().await;
    let mut admin = v1::admin_client::AdminClient::new(channel.clone());
    admin
        .describe_cluster(v1::DescribeClusterRequest {})
        .await
        .map(|_| channel)
}

#[tokio::test]
async fn connections_past_the_limit_are_refused_until_another_closes() {
    let node = Node::start_with(|config| config.max_connections = 2).await;
    let first = connected(&node).await.unwrap();
    let second = connected(&node).await.unwrap();

    // The one too many is told why, and to come again.
    let refused = connected(&node).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let error = error_of(&refused);
    assert_eq!(error.reason(), ErrorReason::Overloaded);
    assert!(error.retryable);
    assert_eq!(error.outcome(), v1::Outcome::Definite);
    assert!(error.message.contains("serves 2 connections"), "{error:?}");

    // Those within the limit do not notice.
    let mut health = HealthClient::new(second);
    let request = HealthCheckRequest::default();
    health.check(request.clone()).await.unwrap();

    drop(first);
    let next = async {
        loop {
            match connected(&node).await {
                Ok(channel) => return channel,
                // The broker has yet to notice that the first is gone.
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let next = timeout(Duration::from_secs(10), next).await;
    let _third = next.expect("the place of the closed connection is free again");
    assert!(connected(&node).await.is_err());
    node.stop().await;
}

/// A link of node 2 to node 1, once that has said hello.
async fn linked(node: &Node) -> tonic::Streaming<peer::Answers> {
    let hello = peer::Hello {
        version: 1,
        node_id: 2,
        target_node_id: 1,
        directory_id: vec![2; 16].into(),
        cluster_id: None,
    };
    let first = peer::Requests {
        hello: Some(hello),
        ..peer::Requests::default()
    };
    let mut client = peer::peer_client::PeerClient::new(node.channel().await);
    let requests = stream::iter([first]).chain(stream::pending());
    let mut answers = client.link(requests).await.unwrap().into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert!(first.hello.is_some());
    answers
}

#[tokio::test]
async fn another_node_is_linked_though_clients_have_all_places() {
    let node = Node::start_with(|config| config.max_connections = 1).await;
    let _only = connected(&node).await.unwrap();
    assert!(connected(&node).await.is_err());
    let mut link = linked(&node).await;
    // Longer than a client without a place is kept.
    let ended = timeout(Duration::from_millis(1500), link.message()).await;
    assert!(ended.is_err(), "{ended:?}");
    assert!(connected(&node).await.is_err());
    node.stop().await;
}

#[tokio::test]
async fn a_refused_connection_does_not_stay() {
    let node = Node::start_with(|config| config.max_connections = 1).await;
    let _only = connected(&node).await.unwrap();
    // More than are told why, and none of them says a word.
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(node.grpc_address()).await.unwrap());
    }
    for mut stream in idle {
        let ended = timeout(Duration::from_secs(10), stream.read_to_end(&mut Vec::new())).await;
        let _reset_or_closed = ended.expect("the broker closes it");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_batch_that_memory_has_no_room_for_is_refused_and_not_stored() {
    // Half of it is for what producers send.
    let node = Node::start_with(|config| config.memory_bytes = 2000).await;
    node.create("orders", 1).await;
    let mut log = node.log().await;
    let large = encoded("orders", 0, batch(&[&"x".repeat(1000)]));

    let status = log.produce(large.clone()).await.unwrap_err();
    let refused = error_of(&status);
    let mut answers = log.produce_stream(stream::iter([large])).await.unwrap();
    let streamed = answers.get_mut().message().await.unwrap().unwrap();
    assert_eq!(streamed.base_offset, None);
    for error in [refused, streamed.error.unwrap()] {
        // It would never fit: a retry is not worth it.
        assert_eq!(error.reason(), ErrorReason::BatchTooLarge);
        assert!(!error.retryable);
        assert_eq!(error.outcome(), v1::Outcome::Definite);
        assert!(error.message.contains("hold 1000"), "{}", error.message);
    }

    // What fits goes on as if nothing had been, and what was refused holds no memory.
    for offset in 0..5 {
        let fits = plain("orders", 0, &[&"y".repeat(900)]);
        let stored = log.produce(fits).await.unwrap().into_inner();
        assert_eq!(stored.base_offset, Some(offset));
    }
    let mut stored = Vec::new();
    for offset in 0..5 {
        let fetched = log.fetch(fetch("orders", 0, offset)).await.unwrap();
        stored.extend(records(fetched.into_inner().batches));
    }
    assert_eq!(stored.len(), 5);
    assert!(stored.iter().all(|(_, value)| value.starts_with('y')));
    node.stop().await;
}

#[tokio::test]
async fn a_consumer_that_asks_for_more_than_memory_holds_gets_less_at_a_time() {
    let node = Node::start_with(|config| config.memory_bytes = 2000).await;
    node.create("orders", 1).await;
    let mut log = node.log().await;
    for _ in 0..2 {
        let request = plain("orders", 0, &[&"y".repeat(900)]);
        log.produce(request).await.unwrap();
    }
    let request = v1::FetchStreamRequest {
        topic: "orders".to_owned(),
        max_bytes: 1 << 20,
        end_offset: Some(2),
        ..v1::FetchStreamRequest::default()
    };
    let mut follower = log.fetch_stream(request).await.unwrap().into_inner();
    for _ in 0..2 {
        let message = follower.message().await.unwrap().unwrap();
        assert_eq!(message.error, None);
        assert_eq!(records(message.batches).len(), 1);
    }
    assert!(follower.message().await.unwrap().is_none());
    node.stop().await;
}
