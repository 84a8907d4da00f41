//! `quipu log dump`.

use std::{
    io::{BufWriter, Write, stdout},
    path::Path,
};

use anyhow::{Context, Result};
use quipu_model::{Position, batch::BatchHeader};

use super::segment::Segment;
use crate::format::Format;

pub(super) fn run(path: &Path, records: bool) -> Result<()> {
    let mut out = BufWriter::new(stdout().lock());
    let mut segment = Segment::open(path)?;
    let named = || format!("{} is no segment, or damaged", path.display());
    loop {
        let next = segment.next();
        if next.is_err() {
            // What could be read is shown before what could not.
            out.flush()?;
        }
        let Some((position, batch)) = next.with_context(named)? else {
            break;
        };
        header(&mut out, position, batch.header())?;
        if records {
            for record in batch.records().with_context(named)? {
                out.write_all(b"  ")?;
                Format::Json.write(&mut out, "", 0, &record.with_context(named)?)?;
            }
        }
    }
    writeln!(out, "end, and {} bytes of room behind it", segment.rest())?;
    out.flush()?;
    Ok(())
}

fn header(out: &mut impl Write, position: Position, header: &BatchHeader) -> std::io::Result<()> {
    write!(
        out,
        "position {position}: offsets {} to {}, {} records, {} bytes, {:?}, epoch {}, timestamps {} to {}, crc {:08x}",
        header.base_offset,
        header.last_offset(),
        header.record_count,
        header.total_len(),
        header.compression(),
        header.leader_epoch,
        header.base_timestamp,
        header.max_timestamp,
        header.crc,
    )?;
    if header.producer_id.is_some() {
        write!(
            out,
            ", producer {} epoch {} sequence {}",
            header.producer_id, header.producer_epoch, header.base_sequence
        )?;
    }
    writeln!(out)
}
