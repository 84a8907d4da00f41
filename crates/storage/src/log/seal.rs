//! The seal of a closed segment: a checksum for each block of its bytes, so that no flipped bit in any of them is served.
//!
//! ```text
//! "QUIPUSEA" | format u32 | block bytes u32 | base offset u64 | next offset u64 | first Raft index u64
//! | newest timestamp i64 | data bytes u64 | CRC-32 of the index file u32 | block count u32
//! | CRC-32 of each block u32 … | CRC-32 of all before it u32                                     (little-endian)
//! ```

use bytes::{Buf, BufMut};
use quipu_model::{Offset, Position, RaftIndex, TimestampMs};

const MAGIC: &[u8; 8] = b"QUIPUSEA";
const FORMAT: u32 = 1;

/// How many bytes a checksum covers: small enough that reading one batch checks little more than it.
pub(crate) const BLOCK_BYTES: u64 = 64 << 10;

/// The checksums of a segment's blocks, taken from the bytes as they were appended: whatever happens to them on their way to the
/// disk and back, a seal made of these tells.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockCrcs {
    full: Vec<u32>,
    last: crc32fast::Hasher,
    last_bytes: u64,
}

impl BlockCrcs {
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = (BLOCK_BYTES - self.last_bytes) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.last.update(now);
            self.last_bytes += now.len() as u64;
            if self.last_bytes == BLOCK_BYTES {
                self.full.push(std::mem::take(&mut self.last).finalize());
                self.last_bytes = 0;
            }
            bytes = later;
        }
    }

    pub(super) fn finish(mut self) -> Vec<u32> {
        if self.last_bytes > 0 {
            self.full.push(self.last.finalize());
        }
        self.full
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) base: Offset,
    pub(crate) next_offset: Offset,
    pub(crate) first_index: RaftIndex,
    pub(crate) newest: TimestampMs,
    pub(crate) data_bytes: u64,
    pub(crate) index_crc: u32,
    pub(crate) block_crcs: Vec<u32>,
}

impl Seal {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(72 + self.block_crcs.len() * 4);
        out.put_slice(MAGIC);
        out.put_u32_le(FORMAT);
        out.put_u32_le(BLOCK_BYTES as u32);
        out.put_u64_le(self.base.get());
        out.put_u64_le(self.next_offset.get());
        out.put_u64_le(self.first_index.get());
        out.put_i64_le(self.newest.get());
        out.put_u64_le(self.data_bytes);
        out.put_u32_le(self.index_crc);
        out.put_u32_le(self.block_crcs.len() as u32);
        for crc in &self.block_crcs {
            out.put_u32_le(*crc);
        }
        let crc = crc32fast::hash(&out);
        out.put_u32_le(crc);
        out
    }

    /// What [`Self::encode`] wrote, or what is wrong with the bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (body, crc) = bytes
            .split_last_chunk::<4>()
            .ok_or("the seal is cut short")?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err("the seal's own checksum does not match");
        }
        Self::decode_checked(body)
            .ok_or("the seal's fields do not fit each other, or its format is newer")
    }

    fn decode_checked(body: &[u8]) -> Option<Self> {
        let mut rest = body.strip_prefix(MAGIC.as_slice())?;
        let known = rest.try_get_u32_le().ok()? == FORMAT
            && u64::from(rest.try_get_u32_le().ok()?) == BLOCK_BYTES;
        let mut seal = Self {
            base: Offset::new(rest.try_get_u64_le().ok()?),
            next_offset: Offset::new(rest.try_get_u64_le().ok()?),
            first_index: RaftIndex::new(rest.try_get_u64_le().ok()?),
            newest: TimestampMs::new(rest.try_get_i64_le().ok()?),
            data_bytes: rest.try_get_u64_le().ok()?,
            index_crc: rest.try_get_u32_le().ok()?,
            block_crcs: Vec::new(),
        };
        let count = rest.try_get_u32_le().ok()? as usize;
        let fits = rest.len() == count.checked_mul(4)?
            && count as u64 == seal.data_bytes.div_ceil(BLOCK_BYTES);
        seal.block_crcs = rest
            .chunks_exact(4)
            .map(|crc| u32::from_le_bytes([crc[0], crc[1], crc[2], crc[3]]))
            .collect();
        (known && fits).then_some(seal)
    }

    /// One number for all the bytes.
    pub(crate) fn checksum(&self) -> u32 {
        let mut all = crc32fast::Hasher::new();
        for crc in &self.block_crcs {
            all.update(&crc.to_le_bytes());
        }
        all.finalize()
    }

    /// The whole blocks around a range, clipped to the data: what must be read to check the range.
    pub(crate) fn blocks_around(&self, position: Position, len: usize) -> std::ops::Range<u64> {
        let start = position.get() / BLOCK_BYTES * BLOCK_BYTES;
        let end = (position.get() + len as u64).next_multiple_of(BLOCK_BYTES);
        start..end.min(self.data_bytes)
    }

    /// Checks whole blocks that begin at `start`; on a mismatch, the position of the first bad block.
    pub(crate) fn check(&self, start: u64, blocks: &[u8]) -> Result<(), Position> {
        let first = (start / BLOCK_BYTES) as usize;
        for (at, block) in blocks.chunks(BLOCK_BYTES as usize).enumerate() {
            if self.block_crcs.get(first + at) != Some(&crc32fast::hash(block)) {
                return Err(Position::new(start + at as u64 * BLOCK_BYTES));
            }
        }
        Ok(())
    }
}
