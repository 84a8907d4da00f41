//! Flipped bits anywhere in a data directory: the broker serves exactly what was written, or says that it can't. It never serves
//! anything else, and it never panics.
#![allow(
    clippy::disallowed_methods,
    reason = "the test damages a real broker's files"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use quipu_tests::{Broker, Launch, quipu, run, scratch};

const PARTITIONS: u32 = 2;

/// How many places are flipped, each in a fresh copy; `QUIPU_FLIPS` gives another number.
const FLIPS: usize = 40;

/// A data directory to copy, and what its partitions hold.
struct Original {
    data: PathBuf,
    contents: Vec<String>,
}

#[test]
fn flipped_bits_after_a_kill_are_never_served() -> Result<()> {
    flip_everywhere(|broker| broker.kill())
}

#[test]
fn flipped_bits_after_a_clean_stop_are_never_served() -> Result<()> {
    flip_everywhere(|broker| broker.terminate().map(drop))
}

fn flip_everywhere(stop: impl Fn(Broker) -> Result<()>) -> Result<()> {
    let dir = scratch()?;
    let original = write(dir.path(), stop)?;
    let mut random = Random(42);
    let files = files(&original.data)?;
    let flips = env::var("QUIPU_FLIPS").map_or(Ok(FLIPS), |text| text.parse())?;
    let mut refused = 0;
    for number in 0..flips {
        let file = &files[number % files.len()];
        let Some(position) = place(file, &mut random)? else {
            continue;
        };
        let name = file.strip_prefix(&original.data)?;
        let outcome = flip_and_look(dir.path(), &original, name, position)
            .with_context(|| format!("with bit {position} of {} flipped", name.display()))?;
        refused += usize::from(outcome == Outcome::Refused);
    }
    ensure!(
        refused > 0,
        "no flip was even noticed: the test does not test"
    );
    Ok(())
}

/// Writes enough for several closed segments a partition.
fn write(dir: &Path, stop: impl Fn(Broker) -> Result<()>) -> Result<Original> {
    let data = dir.join("original");
    let broker = Launch::dev(&data).start()?;
    let partitions = PARTITIONS.to_string();
    broker.succeed(
        &[
            "topic",
            "create",
            "t",
            "--partitions",
            &partitions,
            "--config",
            "segment.bytes=16384",
        ],
        b"",
    )?;
    for part in 0..10 {
        let lines: String = (0..200)
            .map(|n| format!("k{n}\tvalue {part} {n} {:060}\n", n * part))
            .collect();
        broker.succeed(&["produce", "t", "--key-separator", "\t"], lines.as_bytes())?;
    }
    let contents = (0..PARTITIONS)
        .map(|p| consume(&broker, p)?.context("an undamaged partition is served"))
        .collect::<Result<_>>()?;
    stop(broker)?;
    Ok(Original { data, contents })
}

/// A partition's records, or nothing where the broker or the client says that they can't be had.
fn consume(broker: &Broker, partition: u32) -> Result<Option<String>> {
    let mut command = Command::new("timeout");
    command
        .arg("100")
        .arg(quipu())
        .args([
            "consume",
            "t",
            "--from",
            "earliest",
            "--format",
            "json",
            "--partition",
        ])
        .arg(partition.to_string())
        .env("QUIPU_BROKER", broker.grpc());
    let output = run(&mut command, b"")?;
    match output.status.code() {
        Some(0) => Ok(Some(String::from_utf8(output.stdout)?)),
        Some(1) if !output.stderr.is_empty() => Ok(None),
        _ => bail!(
            "the client ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

#[derive(PartialEq)]
enum Outcome {
    Served,
    Refused,
}

fn flip_and_look(dir: &Path, original: &Original, name: &Path, bit: u64) -> Result<Outcome> {
    let copy = dir.join("copy");
    if copy.exists() {
        fs::remove_dir_all(&copy)?;
    }
    let status = Command::new("cp")
        .args(["-r", "--sparse=always"])
        .arg(&original.data)
        .arg(&copy)
        .status()?;
    ensure!(status.success(), "copying failed");
    let mut bytes = fs::read(copy.join(name))?;
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    fs::write(copy.join(name), bytes)?;

    let mut broker = match Launch::dev(&copy).start() {
        Ok(broker) => broker,
        Err(refusal) => {
            let refusal = refusal.to_string();
            ensure!(!refusal.contains("panicked"), "{refusal}");
            ensure!(refusal.contains("exit status: 1"), "{refusal}");
            return Ok(Outcome::Refused);
        }
    };
    let mut outcome = Outcome::Served;
    for (partition, content) in (0..).zip(&original.contents) {
        match consume(&broker, partition)? {
            Some(found) => ensure!(
                &found == content,
                "partition {partition} served other records"
            ),
            None => outcome = Outcome::Refused,
        }
    }
    let log = broker.log()?;
    ensure!(!log.contains("panicked"), "{log}");
    ensure!(!broker.has_ended()?, "it ended by itself: {log}");
    Ok(outcome)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A bit to flip in a file: in its first bytes, in its last that are not zero, or anywhere between.
fn place(file: &Path, random: &mut Random) -> Result<Option<u64>> {
    let bytes = fs::read(file)?;
    let Some(last) = bytes.iter().rposition(|b| *b != 0) else {
        return Ok(None);
    };
    let end = last as u64 + 1;
    let byte = match random.below(4) {
        0 => random.below(end.min(64)),
        1 => end - 1 - random.below(end.min(64)),
        _ => random.below(end),
    };
    Ok(Some(byte * 8 + random.below(8)))
}

/// The same sequence in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}
