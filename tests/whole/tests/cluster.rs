//! What a person is promised who runs a cluster of several broker processes.
#![allow(
    clippy::disallowed_methods,
    reason = "the tests look at real brokers' files"
)]

use std::{
    fs,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use quipu_proto::v1::{FetchRequest, log_client::LogClient};
use quipu_tests::{Cluster, scratch};
use serde_json::Value;
use tonic::Code;

fn produce(cluster: &Cluster, range: Range<u32>) -> Result<()> {
    let lines: String = range.map(|n| format!("k{}\tvalue {n}\n", n % 7)).collect();
    let arguments = ["produce", "orders", "--key-separator", "\t"];
    cluster.succeed(&arguments, lines.as_bytes())?;
    Ok(())
}

/// Every value of the range is there once, and those of each key are in order.
fn has_records(cluster: &Cluster, range: Range<u32>) -> Result<()> {
    let arguments = ["consume", "orders", "--format", "json"];
    let text = cluster.succeed(&arguments, b"")?;
    let mut numbers = Vec::new();
    let mut last = [None; 7];
    for line in text.lines() {
        let record: Value = serde_json::from_str(line)?;
        let value = record["value"].as_str().context("no value")?;
        let number: u32 = value.strip_prefix("value ").context("other")?.parse()?;
        let last = &mut last[number as usize % 7];
        ensure!(*last < Some(number), "{number} after {last:?}");
        *last = Some(number);
        numbers.push(number);
    }
    numbers.sort_unstable();
    ensure!(
        numbers.iter().copied().eq(range.clone()),
        "{} records of {range:?}",
        numbers.len()
    );
    Ok(())
}

fn create(cluster: &Cluster, partitions: &str) -> Result<()> {
    let arguments = ["topic", "create", "orders", "--partitions", partitions];
    let created = cluster.succeed(&arguments, b"")?;
    // Without being told: as many as there are nodes, up to three.
    ensure!(created.contains("replicas 3"), "{created}");
    Ok(())
}

fn partitions(cluster: &Cluster) -> Result<Vec<Value>> {
    let arguments = ["topic", "describe", "orders", "--json"];
    let topic: Value = serde_json::from_str(&cluster.succeed(&arguments, b"")?)?;
    Ok(topic["partition_states"]
        .as_array()
        .context("none")?
        .clone())
}

/// The node that leads partition 0, once one does.
fn leader(cluster: &Cluster) -> Result<u64> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let states = partitions(cluster)?;
        if let Some(id) = states
            .first()
            .and_then(|state| state["leader"]["id"].as_u64())
        {
            return Ok(id);
        }
        ensure!(Instant::now() < deadline, "nobody leads: {states:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn leaders_die_and_nothing_acknowledged_is_lost_or_doubled() -> Result<()> {
    let dir = scratch()?;
    let mut cluster = Cluster::start(dir.path().to_owned())?;
    create(&cluster, "3")?;
    produce(&cluster, 0..1000)?;
    for round in 1..=2 {
        let dead = leader(&cluster)?;
        cluster.take(dead)?.kill()?;
        produce(&cluster, round * 1000..(round + 1) * 1000)?;
        has_records(&cluster, 0..(round + 1) * 1000)?;
        cluster.revive(dead)?;
    }
    // All end at once, and come back in another order.
    for node in 1..=Cluster::FIRST {
        cluster.take(node)?.kill()?;
    }
    for node in (1..=Cluster::FIRST).rev() {
        cluster.spawn(node)?;
    }
    produce(&cluster, 3000..4000)?;
    has_records(&cluster, 0..4000)
}

#[test]
fn a_node_joins_takes_partitions_and_another_leaves_for_good() -> Result<()> {
    let dir = scratch()?;
    let mut cluster = Cluster::start(dir.path().to_owned())?;
    create(&cluster, "4")?;
    produce(&cluster, 0..1000)?;
    cluster.revive(4)?;
    let reassign = ["cluster", "reassign", "orders", "--partition", "0"];
    let to = ["--replicas", "4,1,2"];
    cluster.succeed(&[&reassign[..], &to].concat(), b"")?;
    produce(&cluster, 1000..2000)?;
    let moved = &partitions(&cluster)?[0];
    ensure!(moved["replicas"] == serde_json::json!([4, 1, 2]), "{moved}");

    let left = cluster.succeed(&["cluster", "decommission", "2"], b"")?;
    ensure!(left.contains("node 2 is out of the cluster"), "{left}");
    is_out(&mut cluster, 2)?;
    cluster.take(2)?.terminate()?;
    produce(&cluster, 2000..3000)?;
    has_records(&cluster, 0..3000)?;
    for state in partitions(&cluster)? {
        let replicas = state["replicas"].as_array().context("none")?;
        ensure!(
            replicas.len() == 3 && !replicas.contains(&2.into()),
            "{state}"
        );
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while !cluster
        .client(&["cluster", "status"], b"")?
        .status
        .success()
    {
        ensure!(Instant::now() < deadline, "the cluster is not well");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The node knows that it was removed, says so once, and is quiet from then on.
fn is_out(cluster: &mut Cluster, node: u64) -> Result<()> {
    let broker = cluster.node(node)?;
    broker.wait_unready("removed from the cluster")?;
    thread::sleep(Duration::from_secs(1));
    let before = broker.log()?;
    thread::sleep(Duration::from_secs(5));
    let after = broker.log()?;
    let told = after.matches("it may be shut down").count();
    ensure!(before == after && told == 1, "{after}");
    Ok(())
}

#[test]
fn a_node_that_was_removed_while_it_was_down_finds_out_when_it_comes_back() -> Result<()> {
    let dir = scratch()?;
    let mut cluster = Cluster::start(dir.path().to_owned())?;
    create(&cluster, "2")?;
    cluster.revive(4)?;
    let reassign = ["cluster", "reassign", "orders", "--partition", "0"];
    cluster.succeed(&[&reassign[..], &["--replicas", "4,1,2"]].concat(), b"")?;
    for node in [4, 3] {
        cluster.take(node)?.kill()?;
        if node == 3 {
            // Another has to take its place.
            cluster.revive(5)?;
        }
        let number = node.to_string();
        cluster.succeed(&["cluster", "decommission", &number], b"")?;
        cluster.spawn(node)?;
        is_out(&mut cluster, node)?;
    }
    // Its number is used up, also with nothing in its directory.
    cluster.take(4)?.terminate()?;
    fs::remove_dir_all(cluster.data(4))?;
    cluster.spawn(4)?;
    is_out(&mut cluster, 4)?;
    produce(&cluster, 0..100)?;
    has_records(&cluster, 0..100)
}

#[test]
fn a_voter_that_lost_its_data_is_refused_and_told_what_to_do() -> Result<()> {
    let dir = scratch()?;
    let mut cluster = Cluster::start(dir.path().to_owned())?;
    create(&cluster, "1")?;
    produce(&cluster, 0..100)?;
    cluster.take(3)?.kill()?;
    fs::remove_dir_all(cluster.data(3))?;
    let refused = cluster.revive(3).unwrap_err().to_string();
    ensure!(
        refused.contains("known with another data directory")
            && refused.contains("cluster decommission 3"),
        "{refused}"
    );
    produce(&cluster, 100..200)?;
    has_records(&cluster, 0..200)
}

#[test]
fn a_first_node_that_waits_for_the_others_says_so_whoever_is_asked_last() -> Result<()> {
    let dir = scratch()?;
    let mut cluster = Cluster::plan(dir.path().to_owned())?;
    for first in 1..=Cluster::FIRST {
        cluster.spawn(first)?;
        cluster.node(first)?.wait_unready("no known leader")?;
        let output = cluster.client(&["cluster", "status"], b"")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(said.contains("starting"), "node {first}: {said}");
        cluster.take(first)?.kill()?;
    }
    Ok(())
}

#[test]
fn without_a_majority_writes_are_refused_and_committed_records_are_read() -> Result<()> {
    let dir = scratch()?;
    let mut cluster = Cluster::start(dir.path().to_owned())?;
    create(&cluster, "1")?;
    produce(&cluster, 0..100)?;
    has_records(&cluster, 0..100)?;
    let dead = leader(&cluster)?;
    let survivor = (1..=Cluster::FIRST).rev().find(|node| *node != dead);
    let survivor = survivor.context("none")?;
    let other = (1..=Cluster::FIRST).find(|node| ![dead, survivor].contains(node));
    cluster.take(other.context("none")?)?.kill()?;
    // The survivor has a part in this one: with it, it learns that all before are committed.
    produce(&cluster, 100..101)?;
    cluster.take(dead)?.kill()?;
    has_records(&cluster, 0..100).or_else(|_| has_records(&cluster, 0..101))?;
    let arguments = ["produce", "orders", "--timeout", "3"];
    let output = cluster.client(&arguments, b"one more\n")?;
    ensure!(!output.status.success(), "written without a majority");
    for node in (1..=Cluster::FIRST).filter(|node| *node != survivor) {
        cluster.spawn(node)?;
    }
    produce(&cluster, 101..200)?;
    Ok(())
}

#[test]
fn a_new_topic_is_led_once_it_is_made() -> Result<()> {
    let dir = scratch()?;
    let cluster = Cluster::start(dir.path().to_owned())?;
    create(&cluster, "12")?;
    for partition in partitions(&cluster)? {
        ensure!(partition["leader"]["id"].is_u64(), "{partition}");
    }
    Ok(())
}

/// A consumer that is told so may begin anew: only who leads for certain says it. Others may have taken in what this one lacks.
#[tokio::test]
async fn a_leader_that_lost_its_majority_calls_no_offset_out_of_range() -> Result<()> {
    let dir = scratch()?;
    let mut cluster = Cluster::start(dir.path().to_owned())?;
    create(&cluster, "1")?;
    produce(&cluster, 0..10)?;
    let leads = leader(&cluster)?;
    let address = format!("http://{}", cluster.node(leads)?.grpc());
    let mut log = LogClient::connect(address).await?;
    let request = FetchRequest {
        topic: "orders".to_owned(),
        offset: 11,
        ..FetchRequest::default()
    };
    let refused = log.fetch(request.clone()).await.err().context("none")?;
    ensure!(refused.code() == Code::OutOfRange, "{refused:?}");
    for node in (1..=Cluster::FIRST).filter(|node| *node != leads) {
        cluster.take(node)?.kill()?;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let refused = log.fetch(request.clone()).await.err().context("none")?;
        if refused.code() == Code::Unavailable {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{refused:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether a node holds segments that it copied from another: their names carry a generation.
fn copied_segments(cluster: &Cluster, node: u64) -> Result<usize> {
    let mut found = 0;
    for topic in fs::read_dir(cluster.data(node).join("topics"))? {
        for file in fs::read_dir(topic?.path().join("0")).into_iter().flatten() {
            let name = file?.file_name().into_string().unwrap_or_default();
            let is_segment = name.ends_with(".log") && name.matches('-').count() == 2;
            found += usize::from(is_segment);
        }
    }
    Ok(found)
}

#[test]
fn a_new_node_copies_the_segments_of_a_large_partition_and_serves_all_of_it() -> Result<()> {
    let dir = scratch()?;
    let mut cluster = Cluster::start(dir.path().to_owned())?;
    let small = [
        "topic",
        "create",
        "orders",
        "--config",
        "segment.bytes=8388608",
    ];
    cluster.succeed(&small, b"")?;
    let filler = "0123456789abcdef".repeat(128);
    let lines: String = (0..48_000).map(|n| format!("{n} {filler}\n")).collect();
    cluster.succeed(&["produce", "orders"], lines.as_bytes())?;
    // An end in order makes a checkpoint: then old entries are forgotten, and their segments are to be copied.
    for node in 1..=Cluster::FIRST {
        cluster.take(node)?.terminate()?;
        cluster.revive(node)?;
    }
    cluster.revive(4)?;
    let reassign = [
        "cluster",
        "reassign",
        "orders",
        "--partition",
        "0",
        "--replicas",
        "4,1,2",
    ];
    cluster.succeed(&reassign, b"")?;
    let copied = copied_segments(&cluster, 4)?;
    ensure!(copied >= 2, "{copied} segments were copied");
    let deadline = Instant::now() + Duration::from_secs(120);
    while leader(&cluster)? != 4 {
        ensure!(Instant::now() < deadline, "the new replica does not lead");
        thread::sleep(Duration::from_millis(200));
    }
    let read = cluster.succeed(&["consume", "orders", "--format", "raw"], b"")?;
    ensure!(read == lines, "{} bytes of {}", read.len(), lines.len());
    Ok(())
}
