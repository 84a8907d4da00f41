//! Reading a segment file from its beginning to its end.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use quipu_model::{Position, RecordBatch, TopicConfig, batch::BatchHeader};

/// The batches of a segment, with the position of each.
#[derive(Debug)]
pub(super) struct Segment {
    file: BufReader<File>,
    position: Position,
    length: u64,
}

impl Segment {
    #[allow(
        clippy::disallowed_methods,
        reason = "a tool for people reads the real file"
    )]
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = || path.display().to_string();
        let file = File::open(path).with_context(name)?;
        let length = file.metadata().with_context(name)?.len();
        Ok(Self {
            file: BufReader::with_capacity(1 << 20, file),
            position: Position::default(),
            length,
        })
    }

    /// Bytes behind the last batch: room that was set aside.
    pub(super) fn rest(&self) -> u64 {
        self.length.saturating_sub(self.position.get())
    }

    /// The next batch; `None` where the file ends, or only zeros follow.
    pub(super) fn next(&mut self) -> Result<Option<(Position, RecordBatch)>> {
        let at = self.position;
        let place = || format!("at position {at}");
        let mut bytes = vec![0; BatchHeader::LEN];
        let read = read_up_to(&mut self.file, &mut bytes).with_context(place)?;
        bytes.truncate(read);
        if bytes.iter().all(|byte| *byte == 0) {
            self.expect_zeros().with_context(place)?;
            return Ok(None);
        }
        let header = BatchHeader::parse(&bytes).with_context(place)?;
        let total = header.total_len();
        // A broker takes no larger batch: a length past this is rot, and not worth the memory.
        let most = TopicConfig::MAX_MESSAGE_BYTES_LIMIT as usize + BatchHeader::LEN;
        ensure!(total <= most, "at position {at}: a batch of {total} bytes");
        bytes.resize(total, 0);
        let rest = &mut bytes[BatchHeader::LEN..];
        self.file.read_exact(rest).with_context(place)?;
        let batch = RecordBatch::from_bytes(bytes.into()).with_context(place)?;
        self.position = at.plus(total as u64);
        Ok(Some((at, batch)))
    }

    fn expect_zeros(&mut self) -> Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = read_up_to(&mut self.file, &mut buffer)?;
            if buffer[..read].iter().any(|byte| *byte != 0) {
                bail!("zeros, with something behind them");
            }
            if read < buffer.len() {
                return Ok(());
            }
        }
    }
}

/// Fills the buffer as far as the file goes.
fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests make real files")]
mod tests {
    use quipu_model::{
        LeaderEpoch, Offset, TimestampMs,
        batch::{BatchBuilder, Compression},
    };

    use super::Segment;

    fn bytes(offsets: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for offset in offsets {
            let mut builder = BatchBuilder::new(Compression::None);
            builder.append(TimestampMs::new(1), None, Some(b"v"), &[]);
            let batch = builder.build().unwrap();
            let batch = batch.stamped(Offset::new(*offset), LeaderEpoch::new(1));
            bytes.extend_from_slice(batch.bytes());
        }
        bytes
    }

    fn read(bytes: &[u8]) -> anyhow::Result<(Vec<u64>, u64)> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("0.log");
        std::fs::write(&path, bytes)?;
        let mut segment = Segment::open(&path)?;
        let mut offsets = Vec::new();
        while let Some((_, batch)) = segment.next()? {
            offsets.push(batch.header().base_offset.get());
        }
        Ok((offsets, segment.rest()))
    }

    #[test]
    fn batches_up_to_the_room_behind_them() {
        let mut segment = bytes(&[0, 1, 2]);
        assert_eq!(read(&segment).unwrap(), (vec![0, 1, 2], 0));
        segment.resize(segment.len() + 100_000, 0);
        assert_eq!(read(&segment).unwrap(), (vec![0, 1, 2], 100_000));
        assert_eq!(read(b"").unwrap(), (vec![], 0));
    }

    #[test]
    fn damage_is_named_with_its_position() {
        let mut flipped = bytes(&[0, 1]);
        let second = flipped.len() / 2;
        flipped[second + 65] ^= 1;
        let refusal = format!("{:#}", read(&flipped).unwrap_err());
        assert!(refusal.contains(&format!("position {second}")), "{refusal}");
        let mut behind = bytes(&[0]);
        behind.resize(behind.len() + 100_000, 0);
        behind.push(1);
        assert!(read(&behind).is_err());
        let cut = bytes(&[0, 1]);
        assert!(read(&cut[..cut.len() - 1]).is_err());
    }
}
