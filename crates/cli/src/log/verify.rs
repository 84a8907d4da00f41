//! `quipu log verify`.

use std::{
    fs,
    io::{Write, stdout},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use quipu_model::Offset;

use super::segment::Segment;

pub(super) fn run(dir: &Path) -> Result<()> {
    let topics = dir.join("topics");
    ensure!(
        topics.is_dir(),
        "{} is no data directory: it has no topics in it",
        dir.display()
    );
    let mut out = stdout().lock();
    let (mut partitions, mut bad) = (0, 0);
    for topic in entries(&topics)? {
        for partition in entries(&topic)? {
            partitions += 1;
            let name = partition.strip_prefix(&topics).unwrap_or(&partition);
            match verify_partition(&partition) {
                Ok((batches, records)) => writeln!(
                    out,
                    "{}: {batches} batches, {records} records",
                    name.display()
                )?,
                Err(error) => {
                    bad += 1;
                    writeln!(out, "{}: DAMAGED: {error:#}", name.display())?;
                }
            }
        }
    }
    ensure!(
        bad == 0,
        "{bad} of {partitions} partitions are damaged; nothing was changed: bring the files back from a copy, or replace this replica"
    );
    writeln!(out, "{partitions} partitions, none damaged")?;
    Ok(())
}

fn verify_partition(dir: &Path) -> Result<(u64, u64)> {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|e| e == "log");
    let segments = entries(dir)?.into_iter().filter(is_segment);
    let mut expected: Option<Offset> = None;
    let (mut batches, mut records) = (0, 0);
    for path in segments {
        let named = || path.display().to_string();
        let mut segment = Segment::open(&path)?;
        while let Some((position, batch)) = segment.next().with_context(named)? {
            let header = batch.header();
            let base = header.base_offset;
            if let Some(expected) = expected {
                ensure!(
                    base == expected,
                    "{}, position {position}: offset {base} where {expected} was due",
                    path.display()
                );
            }
            batch.validate_records().with_context(named)?;
            expected = Some(header.next_offset());
            batches += 1;
            records += u64::from(header.record_count);
        }
    }
    Ok((batches, records))
}

/// What a directory holds, by name.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let named = || dir.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(named)? {
        found.push(entry.with_context(named)?.path());
    }
    found.sort();
    Ok(found)
}
