//! What a person is promised who starts a broker, writes, reads, stops it and starts it again.
#![allow(
    clippy::disallowed_methods,
    reason = "the tests look at a real broker's files"
)]

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use quipu_tests::{Broker, Launch, scratch};
use serde_json::Value;

fn lines(range: std::ops::Range<u32>) -> String {
    range.map(|n| format!("k{}\tvalue {n}\n", n % 7)).collect()
}

fn produce(broker: &Broker, topic: &str, range: std::ops::Range<u32>) -> Result<()> {
    let input = lines(range);
    broker.succeed(
        &["produce", topic, "--key-separator", "\t"],
        input.as_bytes(),
    )?;
    Ok(())
}

fn consume(broker: &Broker, topic: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let all = [&["consume", topic, "--format", "json"], arguments].concat();
    let text = broker.succeed(&all, b"")?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

fn values(records: &[Value]) -> Vec<&str> {
    records.iter().filter_map(|r| r["value"].as_str()).collect()
}

fn has_records(broker: &Broker, topic: &str, range: std::ops::Range<u32>) -> Result<()> {
    let records = consume(broker, topic, &["--from", "earliest"])?;
    let wanted: Vec<String> = range.map(|n| format!("value {n}")).collect();
    ensure!(values(&records) == wanted, "not the records written");
    let offsets: Vec<u64> = records
        .iter()
        .filter_map(|r| r["offset"].as_u64())
        .collect();
    ensure!(
        offsets.iter().copied().eq(0..wanted.len() as u64),
        "offsets have gaps: {offsets:?}"
    );
    Ok(())
}

#[test]
fn what_is_written_is_read_back_in_order() -> Result<()> {
    let dir = scratch()?;
    let broker = Launch::dev(&dir.path().join("data")).start()?;
    broker.succeed(&["topic", "create", "orders", "--partitions", "1"], b"")?;
    produce(&broker, "orders", 0..1000)?;
    has_records(&broker, "orders", 0..1000)?;

    let range = consume(&broker, "orders", &["--from", "10", "--to", "20"])?;
    let wanted: Vec<String> = (10..20).map(|n| format!("value {n}")).collect();
    assert_eq!(values(&range), wanted);
    let last = consume(&broker, "orders", &["--from", "-2"])?;
    assert_eq!(values(&last), ["value 998", "value 999"]);
    let some = consume(&broker, "orders", &["--from", "earliest", "--count", "3"])?;
    assert_eq!(values(&some), ["value 0", "value 1", "value 2"]);
    assert_eq!(some[1]["key"], "k1");
    Ok(())
}

#[test]
fn raw_output_is_the_input() -> Result<()> {
    let dir = scratch()?;
    let broker = Launch::dev(&dir.path().join("data")).start()?;
    broker.succeed(&["topic", "create", "t", "--partitions", "1"], b"")?;
    broker.succeed(&["produce", "t"], b"first\n\nthird\n")?;
    let raw = broker.succeed(
        &["consume", "t", "--from", "earliest", "--format", "raw"],
        b"",
    )?;
    assert_eq!(raw, "first\n\nthird\n");
    Ok(())
}

#[test]
fn sigterm_ends_it_with_status_0_and_keeps_the_data() -> Result<()> {
    let dir = scratch()?;
    let data = dir.path().join("data");
    let broker = Launch::dev(&data).start()?;
    broker.succeed(&["topic", "create", "t", "--partitions", "1"], b"")?;
    produce(&broker, "t", 0..100)?;
    let status = broker.terminate()?;
    assert_eq!(status.code(), Some(0));

    let broker = Launch::dev(&data).start()?;
    has_records(&broker, "t", 0..100)?;
    produce(&broker, "t", 100..200)?;
    has_records(&broker, "t", 0..200)
}

#[test]
fn kill_9_loses_nothing_acknowledged() -> Result<()> {
    let dir = scratch()?;
    let data = dir.path().join("data");
    for round in 0..5 {
        let broker = Launch::dev(&data).start()?;
        if round == 0 {
            broker.succeed(&["topic", "create", "t", "--partitions", "1"], b"")?;
        }
        has_records(&broker, "t", 0..round * 100)?;
        produce(&broker, "t", round * 100..(round + 1) * 100)?;
        broker.kill()?;
    }
    let broker = Launch::dev(&data).start()?;
    has_records(&broker, "t", 0..500)
}

#[test]
fn a_second_process_on_the_same_directory_is_refused() -> Result<()> {
    let dir = scratch()?;
    let data = dir.path().join("data");
    let first = Launch::dev(&data).start()?;
    let refusal = refused(&data, dir.path())?;
    assert!(refusal.contains("in use"), "{refusal}");
    first.succeed(&["topic", "create", "t", "--partitions", "1"], b"")?;
    Ok(())
}

#[test]
fn a_directory_of_a_newer_format_is_refused_and_left_alone() -> Result<()> {
    let dir = scratch()?;
    let data = dir.path().join("data");
    Launch::dev(&data).start()?.terminate()?;
    let format = data.join("FORMAT");
    let text = fs::read_to_string(&format)?;
    let (lines, _) = text.split_once("crc ").context("a checksum at the end")?;
    let lines = lines.replacen("quipu 1", "quipu 1000000", 1);
    let crc = crc32fast::hash(lines.as_bytes());
    fs::write(&format, format!("{lines}crc {crc:08x}\n"))?;
    let before = fs::read(&format)?;
    let refusal = refused(&data, dir.path())?;
    assert!(
        refusal.contains("1000000") && refusal.contains("newer"),
        "{refusal}"
    );
    assert_eq!(fs::read(&format)?, before);
    Ok(())
}

/// What a broker says that must not start on this directory.
fn refused(data: &Path, scratch: &Path) -> Result<String> {
    let mut broker = Launch::dev(data)
        .log(&scratch.join("refused.log"))
        .spawn()?;
    let status = broker.wait()?;
    let log = broker.log()?;
    ensure!(status.code() == Some(1), "it ended with {status}: {log}");
    ensure!(!log.contains("panicked"), "{log}");
    Ok(log)
}

#[test]
fn mistakes_get_one_line_that_says_what_to_do() -> Result<()> {
    let dir = scratch()?;
    let broker = Launch::dev(&dir.path().join("data")).start()?;
    broker.succeed(&["topic", "create", "t", "--partitions", "1"], b"")?;
    let mistakes: [(&[&str], &str); 7] = [
        (&["topic", "create", "t"], "t"),
        (&["topic", "create", "a/b"], "a/b"),
        (&["topic", "create", ".."], ".."),
        (
            &["topic", "create", "x", "--config", "no.such=1"],
            "no.such",
        ),
        (&["topic", "describe", "absent"], "absent"),
        (&["consume", "absent", "--from", "earliest"], "absent"),
        (
            &["consume", "t", "--partition", "7", "--from", "earliest"],
            "7",
        ),
    ];
    for (arguments, named) in mistakes {
        let output = broker.client(arguments, b"")?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.contains(named), "{arguments:?}: {said}");
    }
    assert!(!broker.log()?.contains("panicked"));
    Ok(())
}
