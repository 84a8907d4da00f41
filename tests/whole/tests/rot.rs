//! Bytes that change by themselves on the disks of a cluster: nobody is served them, everybody goes on, and the replicas that have
//! them make themselves whole again.
#![allow(
    clippy::disallowed_methods,
    reason = "the test damages real brokers' files"
)]

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use quipu_tests::{Cluster, quipu, run, scratch};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn produce(cluster: &Cluster, parts: std::ops::Range<u32>) -> Result<()> {
    for part in parts {
        let lines: String = (0..50).map(|n| format!("value {part} {n:060}\n")).collect();
        cluster.succeed(&["produce", "orders"], lines.as_bytes())?;
    }
    Ok(())
}

fn has_all(cluster: &Cluster, parts: u32) -> Result<()> {
    let text = cluster.succeed(&["consume", "orders", "--format", "raw"], b"")?;
    let due = (0..parts).flat_map(|part| (0..50).map(move |n| format!("value {part} {n:060}")));
    ensure!(text.lines().eq(due), "other records were served");
    Ok(())
}

/// The files with an ending of the partition with the most segments, the oldest first.
fn files(data: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut most = Vec::new();
    for topic in fs::read_dir(data.join("topics"))? {
        for partition in fs::read_dir(topic?.path())? {
            let entries = fs::read_dir(partition?.path())?;
            let mut found: Vec<_> = entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.extension().is_some_and(|end| end == ending))
                .filter(|path| path.file_name().is_some_and(|name| name != "next.log"))
                .collect();
            found.sort();
            if found.len() > most.len() {
                most = found;
            }
        }
    }
    Ok(most)
}

/// A file that was damaged: what it held before, and what of it counts.
struct Damaged {
    path: PathBuf,
    before: Vec<u8>,
}

/// Flips a bit in place: the broker may have the file open and mapped.
fn flip(path: &Path, byte: u64) -> Result<Damaged> {
    let before = fs::read(path)?;
    let file = fs::OpenOptions::new().write(true).open(path)?;
    let flipped = before.get(byte as usize).context("no such byte")? ^ 4;
    file.write_all_at(&[flipped], byte)?;
    file.sync_all()?;
    Ok(Damaged {
        path: path.to_owned(),
        before,
    })
}

impl Damaged {
    /// Whether another replica's log has taken the place of this one: its files have a generation. That happens where the others did
    /// not know yet that they have committed what is damaged here.
    fn is_replaced(&self) -> Result<bool> {
        let dir = self.path.parent().context("no directory")?;
        let names = fs::read_dir(dir)?.flatten().map(|entry| entry.file_name());
        let mut names = names.filter_map(|name| name.into_string().ok());
        let copied = names.any(|name| name.ends_with(".log") && name.matches('-').count() == 2);
        Ok(copied && !self.path.exists())
    }

    /// Waits until the file holds again what it held. Behind the data it may have had zeros.
    fn wait_whole(&self) -> Result<()> {
        let data = |bytes: &[u8]| {
            bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |at| at + 1)
        };
        let due = &self.before[..data(&self.before)];
        let deadline = Instant::now() + PATIENCE;
        loop {
            // While it is renamed there is none.
            let now = fs::read(&self.path).unwrap_or_default();
            if now.get(..due.len()) == Some(due) || self.is_replaced()? {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{} stays damaged; beside it: {:?}",
                self.path.display(),
                fs::read_dir(self.path.parent().context("no directory")?)?
                    .flatten()
                    .map(|entry| entry.file_name())
                    .collect::<Vec<_>>()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn leader(cluster: &Cluster) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let described = cluster.succeed(&["topic", "describe", "orders", "--json"], b"")?;
        let topic: Value = serde_json::from_str(&described)?;
        if let Some(id) = topic["partition_states"][0]["leader"]["id"].as_u64() {
            return Ok(id);
        }
        ensure!(Instant::now() < deadline, "nobody leads: {described}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until all nodes say that all is well.
fn wait_well(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = cluster.client(&["cluster", "status"], b"")?;
        if status.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        ensure!(Instant::now() < deadline, "{text}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Stops all nodes, which seals what is closed, does something, and starts them again.
fn stopped(cluster: &mut Cluster, then: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    for node in 1..=Cluster::FIRST {
        cluster.take(node)?.terminate()?;
    }
    then(cluster)?;
    for node in 1..=Cluster::FIRST {
        cluster.spawn(node)?;
    }
    for node in 1..=Cluster::FIRST {
        cluster.wait_ready(node)?;
    }
    wait_well(cluster)
}

fn verify(data: &Path) -> Result<()> {
    let output = run(Command::new(quipu()).args(["log", "verify"]).arg(data), b"")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}: {text}", data.display());
    Ok(())
}

#[test]
fn rot_is_repaired_by_itself_while_reads_and_writes_go_on() -> Result<()> {
    let dir = scratch()?;
    let mut cluster = Cluster::start(dir.path().to_owned())?;
    let config = ["--partitions", "1", "--config", "segment.bytes=16384"];
    cluster.succeed(&[&["topic", "create", "orders"], &config[..]].concat(), b"")?;
    produce(&cluster, 0..20)?;
    stopped(&mut cluster, |_| Ok(()))?;

    // While it runs, in the oldest segment of the leader, which a reader finds.
    let first = leader(&cluster)?;
    let segments = files(&cluster.data(first), "log")?;
    ensure!(segments.len() > 3, "too few segments: {segments:?}");
    let damaged = flip(&segments[0], 1000)?;
    has_all(&cluster, 20)?;
    produce(&cluster, 20..22)?;
    damaged.wait_whole()?;
    let aside = segments[0].with_added_extension("damaged");
    ensure!(aside.exists(), "the damaged bytes are kept");
    wait_well(&cluster)?;
    has_all(&cluster, 22)?;

    // While they are stopped, of two nodes, in different places: in what is sealed, a seal, and what is not sealed.
    let mut damaged = Vec::new();
    stopped(&mut cluster, |cluster| {
        let newest = files(&cluster.data(2), "log")?;
        let newest = newest.last().context("no segment")?;
        damaged.push(flip(newest, 100)?);
        damaged.push(flip(&files(&cluster.data(3), "log")?[1], 5000)?);
        let seal = files(&cluster.data(3), "seal")?;
        flip(&seal[2], 30).map(drop)
    })?;
    for damaged in &damaged {
        damaged.wait_whole()?;
    }
    produce(&cluster, 22..24)?;
    has_all(&cluster, 24)?;
    // The scrub has all of it read shortly after a start.
    wait_well(&cluster)?;
    for node in 1..=Cluster::FIRST {
        cluster.take(node)?.terminate()?;
        verify(&cluster.data(node))?;
    }
    Ok(())
}

#[test]
fn rot_in_the_metadata_of_a_node_is_repaired_at_its_start_and_then_it_serves() -> Result<()> {
    let dir = scratch()?;
    let mut cluster = Cluster::start(dir.path().to_owned())?;
    let mut damaged = Vec::new();
    stopped(&mut cluster, |cluster| {
        let data = cluster.data(2);
        let topics = fs::read_dir(data.join("topics"))?.count();
        ensure!(topics == 1, "{topics} topics, where only metadata was due");
        let logs = files(&data, "log")?;
        damaged.push(flip(logs.last().context("no segment")?, 100)?);
        Ok(())
    })?;
    for damaged in &damaged {
        damaged.wait_whole()?;
        let aside = damaged.path.with_added_extension("damaged");
        ensure!(aside.exists(), "the damaged bytes are kept");
    }
    cluster.succeed(&["topic", "create", "orders", "--partitions", "1"], b"")?;
    produce(&cluster, 0..2)?;
    has_all(&cluster, 2)?;
    // What it holds of the metadata carries a majority.
    cluster.take(1)?.kill()?;
    cluster.succeed(&["topic", "create", "others", "--partitions", "1"], b"")?;
    let described = cluster
        .node(2)?
        .succeed(&["topic", "describe", "others"], b"")?;
    ensure!(described.contains("others"), "{described}");
    has_all(&cluster, 2)
}
