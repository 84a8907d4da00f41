//! Snappy as Kafka frames it: the stream format of xerial's `snappy-java`, and bare blocks.
//!
//! A stream is a 16-byte header and then blocks, each a big-endian length and that many bytes of one snappy block.

use std::io;

/// 0x82, "SNAPPY", 0; then format version 1 and the oldest version that can read it, 1.
const STREAM_HEADER: [u8; 16] = *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
/// What tells a stream. The versions do not: some writers have them little-endian.
const MAGIC_LEN: usize = 8;
/// How many plain bytes `snappy-java` puts in one block.
const BLOCK_LEN: usize = 32 << 10;
/// No element of a block stands for more than this many times its own length: a copy of 64 bytes takes 3.
const MAX_RATIO: usize = 22;

/// Appends `plain` to `out` as a stream.
pub(super) fn compress(plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut encoder = snap::raw::Encoder::new();
    out.extend_from_slice(&STREAM_HEADER);
    for chunk in plain.chunks(BLOCK_LEN) {
        let length_at = out.len();
        let block_at = length_at + 4;
        out.resize(block_at + snap::raw::max_compress_len(chunk.len()), 0);
        let written = encoder.compress(chunk, &mut out[block_at..])?;
        out.truncate(block_at + written);
        out[length_at..block_at].copy_from_slice(&(written as u32).to_be_bytes());
    }
    Ok(())
}

/// Why a stream cannot be read on.
pub(super) enum Error {
    /// A block is larger than all that may come.
    TooLarge,
    /// The bytes are not snappy's.
    Corrupt(io::Error),
}

impl From<snap::Error> for Error {
    fn from(error: snap::Error) -> Self {
        Self::Corrupt(error.into())
    }
}

/// Decompresses block by block.
pub(super) struct Reader<'a> {
    /// What is left of the stream, or the one bare block.
    rest: &'a [u8],
    framed: bool,
    limit: usize,
    block: Vec<u8>,
    /// How much of `block` was handed out.
    taken: usize,
}

impl<'a> Reader<'a> {
    /// Reads a stream or one bare block. A block of more than `limit` plain bytes is refused before it is read.
    pub(super) fn new(compressed: &'a [u8], limit: usize) -> Self {
        let framed = compressed.len() >= STREAM_HEADER.len()
            && compressed.starts_with(&STREAM_HEADER[..MAGIC_LEN]);
        Self {
            rest: if framed {
                &compressed[STREAM_HEADER.len()..]
            } else {
                compressed
            },
            framed,
            limit,
            block: Vec::new(),
            taken: 0,
        }
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        while self.taken == self.block.len() && !self.rest.is_empty() {
            let block = self.next_block()?;
            self.decompress(block)?;
        }
        let read = buffer.len().min(self.block.len() - self.taken);
        buffer[..read].copy_from_slice(&self.block[self.taken..self.taken + read]);
        self.taken += read;
        Ok(read)
    }

    fn next_block(&mut self) -> Result<&'a [u8], Error> {
        if !self.framed {
            return Ok(std::mem::take(&mut self.rest));
        }
        let cut = || Error::Corrupt(io::ErrorKind::UnexpectedEof.into());
        let (length, rest) = self.rest.split_first_chunk().ok_or_else(cut)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (block, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        self.rest = rest;
        Ok(block)
    }

    fn decompress(&mut self, block: &[u8]) -> Result<(), Error> {
        let length = snap::raw::decompress_len(block)?;
        if length > block.len().saturating_mul(MAX_RATIO) {
            return Err(Error::Corrupt(io::Error::other(
                "a block claims to be larger than its bytes can say",
            )));
        }
        if length > self.limit {
            return Err(Error::TooLarge);
        }
        self.block.resize(length, 0);
        self.taken = 0;
        snap::raw::Decoder::new().decompress(block, &mut self.block)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use crate::batch::{BatchError, Compression};

    #[test]
    fn bare_blocks_are_read_too() {
        let plain = b"as some clients write it, as some clients write it".repeat(2000);
        let bare = snap::raw::Encoder::new().compress_vec(&plain).unwrap();
        let again = Compression::Snappy.decompress(&bare.into(), 1 << 20);
        assert_eq!(again.unwrap(), plain);
    }

    #[test]
    fn a_block_that_lies_about_its_length_is_refused_before_memory_is_taken() {
        // The block's varint length says 32 MiB, and one literal byte follows.
        let block = [0x80, 0x80, 0x80, 0x10, 0x00, b'x'];
        let refused = Compression::Snappy.decompress(&Bytes::copy_from_slice(&block), 64 << 20);
        assert!(
            matches!(refused, Err(BatchError::Codec { .. })),
            "{refused:?}"
        );
    }
}
