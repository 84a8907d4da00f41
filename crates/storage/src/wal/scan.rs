//! Reading one file, in chunks: no byte of it may change meanwhile.

use bytes::Bytes;
use quipu_model::Position;

use super::{
    Lsn, WalFile,
    format::{ALIGNMENT, FILE_HEADER_LEN, FRAME_HEADER_LEN, FrameHeader},
};
use crate::OpenError;

const CHUNK: u64 = 1 << 20;

/// A file being read.
pub(super) struct Scan<'a> {
    file: &'a WalFile,
    chunk: Bytes,
    chunk_start: u64,
}

/// What was found behind the end of the valid records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remains {
    /// Nothing, or parts of a write that was never synced; they reach up to here.
    Torn { end: u64 },
    /// A record that was written after the missing one had been synced.
    Proof { position: u64, lsn: Lsn },
}

impl<'a> Scan<'a> {
    pub(super) fn new(file: &'a WalFile) -> Self {
        Self {
            file,
            chunk: Bytes::new(),
            chunk_start: 0,
        }
    }

    /// Bytes of the file; `None` where it is shorter.
    fn bytes(&mut self, position: u64, len: u64) -> Result<Option<Bytes>, OpenError> {
        let fits = position
            .checked_add(len)
            .is_some_and(|end| end <= self.file.len);
        if !fits {
            return Ok(None);
        }
        let chunk_end = self.chunk_start + self.chunk.len() as u64;
        if position < self.chunk_start || position + len > chunk_end {
            let size = len.max(CHUNK).min(self.file.len - position);
            let mut buffer = vec![0; size as usize];
            self.file
                .file
                .read_into(Position::new(position), &mut buffer)
                .map_err(|error| OpenError::Io {
                    operation: "read",
                    path: self.file.path.clone(),
                    error,
                })?;
            self.chunk = buffer.into();
            self.chunk_start = position;
        }
        let start = (position - self.chunk_start) as usize;
        Ok(Some(self.chunk.slice(start..start + len as usize)))
    }

    /// The frame at a position, whatever its checksum says.
    fn header(
        &mut self,
        position: u64,
    ) -> Result<Option<(FrameHeader, [u8; FRAME_HEADER_LEN])>, OpenError> {
        let Some(bytes) = self.bytes(position, FRAME_HEADER_LEN as u64)? else {
            return Ok(None);
        };
        let mut header = [0; FRAME_HEADER_LEN];
        header.copy_from_slice(&bytes);
        Ok(FrameHeader::decode(&header).map(|decoded| (decoded, header)))
    }

    /// The valid frame at a position, with its payload.
    pub(super) fn frame(
        &mut self,
        position: u64,
    ) -> Result<Option<(FrameHeader, Bytes)>, OpenError> {
        let Some((header, bytes)) = self.header(position)? else {
            return Ok(None);
        };
        let start = position + FRAME_HEADER_LEN as u64;
        let Some(payload) = self.bytes(start, u64::from(header.payload_len))? else {
            return Ok(None);
        };
        let valid = header.matches(self.file.sequence, &bytes, &payload);
        Ok(valid.then_some((header, payload)))
    }

    /// Looks at what lies from `position` on, where record `missing` is expected and not found.
    pub(super) fn remains(&mut self, position: u64, missing: Lsn) -> Result<Remains, OpenError> {
        let mut end = position;
        if let Some((header, _)) = self.header(position)?
            && header.lsn == missing
        {
            end = (position + header.frame_len()).min(self.file.len);
        }
        let mut at = position.max(FILE_HEADER_LEN as u64);
        while let Some(candidate) = self.next_candidate(at)? {
            at = candidate + ALIGNMENT as u64;
            let plausible = self
                .header(candidate)?
                .is_some_and(|(header, _)| header.lsn > missing);
            if !plausible {
                continue;
            }
            if let Some((header, _)) = self.frame(candidate)? {
                if header.durable_to >= missing {
                    return Ok(Remains::Proof {
                        position: candidate,
                        lsn: header.lsn,
                    });
                }
                end = end.max(candidate + header.frame_len());
                at = candidate + header.frame_len();
            }
        }
        Ok(Remains::Torn { end })
    }

    /// The next place at or behind `position`, a multiple of 8, where a frame may begin.
    fn next_candidate(&mut self, mut position: u64) -> Result<Option<u64>, OpenError> {
        const WORD: u64 = ALIGNMENT as u64;
        loop {
            let chunk_end = self.chunk_start + self.chunk.len() as u64;
            let inside = position >= self.chunk_start && position + WORD <= chunk_end;
            let len = if inside {
                chunk_end - position
            } else {
                CHUNK.min(self.file.len.saturating_sub(position))
            };
            let len = len / WORD * WORD;
            let Some(words) = self.bytes(position, len)?.filter(|_| len > 0) else {
                return Ok(None);
            };
            let found = words
                .chunks_exact(ALIGNMENT)
                .position(FrameHeader::may_begin_with);
            match found {
                Some(index) => return Ok(Some(position + index as u64 * WORD)),
                None => position += len,
            }
        }
    }
}
