//! `quipu log dump`.

use std::{
    io::{BufWriter, Write, stdout},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use quipu_model::{Position, RecordBatch, batch::BatchHeader};
use quipu_storage::{
    inspect::{DumpItem, dump},
    io::{Disk, DiskFile, OpenMode, RealDisk},
};

use crate::format::Format;

pub(super) fn run(path: &Path, records: bool) -> Result<()> {
    ensure!(path.is_file(), "{} is no file", path.display());
    let (dir, name) = (path.parent().unwrap_or(Path::new("")), path.file_name());
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    let name = Path::new(name.unwrap_or_default());
    let disk = RealDisk::new(dir).with_context(|| dir.display().to_string())?;
    let file = disk
        .open(name, OpenMode::Read)
        .with_context(|| path.display().to_string())?;
    let mut out = BufWriter::new(stdout().lock());
    let mut outcome = Ok(());
    let dumped = dump(&disk, name, &mut |item| {
        if outcome.is_ok() {
            outcome = show(&mut out, &item, records.then_some(&*file));
        }
    });
    // What could be read is shown before what could not.
    out.flush()?;
    outcome?;
    Ok(dumped?)
}

fn show(out: &mut impl Write, item: &DumpItem, file: Option<&dyn DiskFile>) -> Result<()> {
    writeln!(out, "{item}")?;
    if let (DumpItem::Batch { position, header }, Some(file)) = (item, file) {
        for record in read_batch(file, *position, header)?.records()? {
            out.write_all(b"  ")?;
            Format::Json.write(out, "", 0, &record?)?;
        }
    }
    Ok(())
}

fn read_batch(
    file: &dyn DiskFile,
    position: Position,
    header: &BatchHeader,
) -> Result<RecordBatch> {
    let mut bytes = vec![0; header.total_len()];
    file.read_into(position, &mut bytes)?;
    Ok(RecordBatch::from_bytes(bytes.into())?)
}
