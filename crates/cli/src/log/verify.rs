//! `quipu log verify`.

use std::{
    io::{Write, stdout},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use quipu_storage::{
    inspect::verify,
    io::{Disk, RealDisk},
};

pub(super) fn run(dir: &Path) -> Result<()> {
    ensure!(
        dir.join("topics").is_dir(),
        "{} is no data directory: it has no topics in it",
        dir.display()
    );
    let disk: Arc<dyn Disk> =
        Arc::new(RealDisk::new(dir).with_context(|| dir.display().to_string())?);
    let report = verify(&disk)?;
    let mut out = stdout().lock();
    for problem in &report.problems {
        writeln!(out, "DAMAGED: {problem}")?;
    }
    for index in &report.stale_indexes {
        let index = index.display();
        writeln!(
            out,
            "not as it was written, and made again when it is needed: {index}"
        )?;
    }
    writeln!(
        out,
        "{} partitions, {} segments, {} batches in {} bytes, {} records in the write-ahead log",
        report.partitions, report.segments, report.batches, report.bytes, report.wal_records
    )?;
    let problems = report.problems.len();
    ensure!(
        problems == 0,
        "{problems} damaged places; nothing was changed: a node of a cluster gets damaged segments from other replicas when it starts; \
         bring other files back from a copy, or replace the node"
    );
    writeln!(out, "none damaged")?;
    Ok(())
}
