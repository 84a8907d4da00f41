//! Quotas, and the memory that answers take, as clients over gRPC meet them.
#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::time::Duration;

use futures::{StreamExt, stream};
use http::uri::PathAndQuery;
use quipu_proto::v1::{self, ErrorReason};
use tokio::time::{Instant, sleep};
use tonic::{Request, Streaming, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::support::{Node, batch, encoded, error_of, fetch, plain, records};

/// A request of a client that names itself.
fn by<T>(client: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let name = client.parse().unwrap();
    request.metadata_mut().insert("quipu-client-id", name);
    request
}

fn quota(client: Option<&str>, produce: Option<u64>, fetch: Option<u64>) -> v1::AlterQuotaRequest {
    v1::AlterQuotaRequest {
        client_id: client.map(str::to_owned),
        produce_bytes_per_second: produce,
        fetch_bytes_per_second: fetch,
    }
}

async fn alter(node: &Node, quota: v1::AlterQuotaRequest) -> v1::Quota {
    let altered = node.admin().await.alter_quota(quota).await.unwrap();
    altered.into_inner().quota.unwrap()
}

async fn listed(node: &Node) -> Vec<v1::Quota> {
    let mut admin = node.admin().await;
    let listed = admin.list_quotas(v1::ListQuotasRequest {}).await;
    listed.unwrap().into_inner().quotas
}

#[tokio::test]
async fn who_is_past_its_quota_is_told_and_what_it_sends_before_is_held_back() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    alter(&node, quota(Some("slow"), Some(10_000), None)).await;
    let mut log = node.log().await;
    let request = plain("orders", 0, &[&"x".repeat(15_000)]);

    let began = Instant::now();
    let answer = log.produce(by("slow", request.clone())).await.unwrap();
    // A second's worth is free.
    let told = answer.into_inner().throttle_time_ms;
    assert!((500..600).contains(&told), "{told}");
    for other in [by("quick", request.clone()), Request::new(request.clone())] {
        let answer = log.produce(other).await.unwrap().into_inner();
        assert_eq!(answer.throttle_time_ms, 0);
    }
    let early = plain("orders", 0, &["early"]);
    let answer = log.produce(by("slow", early)).await.unwrap().into_inner();
    assert_eq!(answer.base_offset, Some(3));
    assert!(began.elapsed() >= Duration::from_millis(told.into()));
    let (_, metrics) = node.http("/metrics").await;
    assert!(metrics.contains("quipu_throttled_bytes_total{traffic=\"produce\"} 15"));
    node.stop().await;
}

#[tokio::test]
async fn a_stream_past_its_quota_is_read_at_its_rate_and_loses_nothing() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    alter(&node, quota(None, Some(10_000), None)).await;
    let value = "x".repeat(5_000);
    let requests = (0..6).map(|number| v1::ProduceRequest {
        correlation_id: number,
        ..plain("orders", 0, &[&value])
    });
    let requests: Vec<_> = requests.collect();
    let began = Instant::now();
    let mut log = node.log().await;
    let answers = log.produce_stream(by("any", stream::iter(requests))).await;
    let answers: Vec<_> = answers.unwrap().into_inner().collect().await;
    let answers = answers.into_iter().map(Result::unwrap);
    let answers: Vec<_> = answers
        .map(|answer| (answer.correlation_id, answer.base_offset))
        .collect();
    let all: Vec<_> = (0..6).map(|number| (number, Some(number))).collect();
    assert_eq!(answers, all);
    // 25 kB were to be paid for before the last was read, of which a second's worth was free.
    assert!(began.elapsed() >= Duration::from_millis(1500));
    node.stop().await;
}

#[tokio::test]
async fn readers_past_their_quota_get_less_at_a_time_and_all_of_it_in_the_end() {
    let node = Node::start().await;
    node.create("orders", 1).await;
    let mut log = node.log().await;
    for _ in 0..3 {
        let request = plain("orders", 0, &[&"x".repeat(5_000)]);
        log.produce(request).await.unwrap();
    }
    alter(&node, quota(Some("slow"), None, Some(4_000))).await;
    let began = Instant::now();
    let read = log.fetch(by("slow", fetch("orders", 0, 0))).await.unwrap();
    assert_eq!(records(read.into_inner().batches).len(), 1);
    let read = log.fetch(fetch("orders", 0, 0)).await.unwrap().into_inner();
    assert_eq!((records(read.batches).len(), read.throttle_time_ms), (3, 0));

    let request = v1::FetchStreamRequest {
        topic: "orders".to_owned(),
        end_offset: Some(3),
        ..v1::FetchStreamRequest::default()
    };
    let stream = log.fetch_stream(by("slow", request)).await.unwrap();
    let messages: Vec<_> = stream.into_inner().map(Result::unwrap).collect().await;
    let offsets = messages
        .iter()
        .flat_map(|message| records(message.batches.clone()));
    let offsets: Vec<_> = offsets.map(|(offset, _)| offset).collect();
    assert_eq!(offsets, [0, 1, 2]);
    // Each is more than a second's worth.
    assert!(messages.iter().all(|it| it.throttle_time_ms >= 250));
    // 15 kB were to be paid for before the last message, of which a second's worth was free.
    assert!(began.elapsed() >= Duration::from_millis(2750));
    node.stop().await;
}

#[tokio::test]
async fn quotas_outlive_a_restart_and_bad_ones_are_refused() {
    let node = Node::start().await;
    let default = alter(&node, quota(None, Some(100), None)).await;
    let own = alter(&node, quota(Some("a"), Some(7), Some(9))).await;
    let empty_name = alter(&node, quota(Some(""), None, Some(1))).await;
    let node = node.restart().await;
    assert_eq!(listed(&node).await, [default.clone(), empty_name, own]);
    for removed in ["a", "", "never there"] {
        alter(&node, quota(Some(removed), Some(0), Some(0))).await;
    }
    assert_eq!(listed(&node).await, [default]);

    let long = quota(Some(&"x".repeat(256)), Some(1), None);
    let refused = node.admin().await.alter_quota(long).await.unwrap_err();
    assert_eq!(error_of(&refused).reason(), ErrorReason::InvalidRequest);
    let mut log = node.log().await;
    let mut unnamed = Request::new(fetch("orders", 0, 0));
    let name = tonic::metadata::MetadataValue::try_from(b"\xc3\xa9".as_slice()).unwrap();
    unnamed.metadata_mut().insert("quipu-client-id", name);
    let refused = log.fetch(unnamed).await.unwrap_err();
    assert_eq!(error_of(&refused).reason(), ErrorReason::InvalidRequest);
    node.stop().await;
}

/// A fetch whose answer nobody reads.
async fn fetch_unread(node: &Node) -> Streaming<v1::FetchResponse> {
    let address = format!("http://{}", node.grpc_address());
    let channel = Channel::from_shared(address).unwrap();
    let channel = channel.initial_stream_window_size(65_535).connect().await;
    let mut grpc = Grpc::new(channel.unwrap());
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<v1::FetchRequest, v1::FetchResponse>::default();
    let path = PathAndQuery::from_static("/quipu.v1.Log/Fetch");
    let request = Request::new(fetch("orders", 0, 0));
    let answer = grpc.server_streaming(request, path, codec).await;
    answer.unwrap().into_inner()
}

#[tokio::test]
async fn answers_that_are_not_read_hold_their_share_of_memory() {
    // Half of it is for what consumers are sent: two answers.
    let node = Node::start_with(|config| config.memory_bytes = 3_200_000).await;
    node.create("orders", 1).await;
    let large = batch(&[&"x".repeat(700_000)]);
    let mut log = node.log().await;
    log.produce(encoded("orders", 0, large)).await.unwrap();

    let unread = (fetch_unread(&node).await, fetch_unread(&node).await);
    let refused = log.fetch(fetch("orders", 0, 0)).await.unwrap_err();
    assert_eq!(error_of(&refused).reason(), ErrorReason::Overloaded);
    drop(unread);
    // It comes back once the node has seen that nobody reads any more.
    while log.fetch(fetch("orders", 0, 0)).await.is_err() {
        sleep(Duration::from_millis(10)).await;
    }
    node.stop().await;
}
