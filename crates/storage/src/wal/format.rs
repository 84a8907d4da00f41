//! The bytes of a write-ahead log file. All numbers are little-endian.
//!
//! A file is named after its sequence number, which no two files ever share, and begins with a header:
//!
//! ```text
//!  0        8        12       16           24          32         60      64
//!  | magic  | version| zero   | sequence   | first lsn | zeros    | crc32 |
//! ```
//!
//! The first lsn is 0 in a file that is prepared but holds no record yet. The checksum covers all bytes before it; magic,
//! version and checksum stand there in every version.
//!
//! Frames follow, each at a multiple of 8 bytes:
//!
//! ```text
//!  0       1      2       4                 8       16           24       40          44      48     56      64            72
//!  | magic | kind | zero  | payload length  | lsn   | durable-to | topic  | partition | crc32 | term | index | base offset | payload, padded to 8
//! ```
//!
//! The checksum covers the file's sequence number (which the frame does not repeat), the header without the checksum, and
//! the payload: a frame that a recycled file kept from its earlier life is never taken for one of the new life.

use quipu_model::{LogId, Offset, PartitionId, PartitionKey, TopicId};

use super::{Lsn, RecordKind, WalRecord};

pub(super) const FORMAT_VERSION: u32 = 1;
pub(super) const FILE_HEADER_LEN: usize = 64;
pub(super) const FRAME_HEADER_LEN: usize = 72;
pub(super) const ALIGNMENT: usize = 8;
const FILE_MAGIC: &[u8; 8] = b"QUIPUWAL";
const FRAME_MAGIC: u8 = 0xA5;
const CRC_AT: usize = 44;

/// What a file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileHeader {
    /// Written by this version or an older one.
    Known {
        sequence: u64,
        /// `None` in a file prepared for later.
        first: Option<Lsn>,
    },
    /// Written by a newer version.
    Newer { version: u32 },
    /// Not a header, or not what was written.
    Invalid,
}

pub(super) fn encode_file_header(sequence: u64, first: Option<Lsn>) -> [u8; FILE_HEADER_LEN] {
    let mut bytes = [0; FILE_HEADER_LEN];
    bytes[..8].copy_from_slice(FILE_MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    bytes[24..32].copy_from_slice(&first.map_or(0, Lsn::get).to_le_bytes());
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

pub(super) fn decode_file_header(bytes: &[u8; FILE_HEADER_LEN]) -> FileHeader {
    if &bytes[..8] != FILE_MAGIC || u32_at(bytes, 60) != crc32fast::hash(&bytes[..60]) {
        return FileHeader::Invalid;
    }
    let version = u32_at(bytes, 8);
    if version > FORMAT_VERSION {
        return FileHeader::Newer { version };
    }
    let first = u64_at(bytes, 24);
    FileHeader::Known {
        sequence: u64_at(bytes, 16),
        first: (first > 0).then_some(Lsn(first)),
    }
}

/// A frame's header, its checksum not yet compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) kind: RecordKind,
    pub(super) payload_len: u32,
    pub(super) lsn: Lsn,
    /// Every record up to and including this one was synced before this frame was written.
    pub(super) durable_to: Lsn,
    pub(super) key: PartitionKey,
    pub(super) log_id: LogId,
    pub(super) base_offset: Offset,
    crc: u32,
}

impl FrameHeader {
    /// Whether a frame may begin with these bytes: a quick look before [`FrameHeader::decode`].
    pub(super) fn may_begin_with(bytes: &[u8]) -> bool {
        matches!(bytes, [FRAME_MAGIC, kind, 0, 0, ..] if RecordKind::from_byte(*kind).is_some())
    }

    /// Reads a header; `None` where it can't be one.
    pub(super) fn decode(bytes: &[u8; FRAME_HEADER_LEN]) -> Option<Self> {
        if !Self::may_begin_with(bytes) {
            return None;
        }
        let mut topic = [0; 16];
        topic.copy_from_slice(&bytes[24..40]);
        let header = Self {
            kind: RecordKind::from_byte(bytes[1])?,
            payload_len: u32_at(bytes, 4),
            lsn: Lsn(u64_at(bytes, 8)),
            durable_to: Lsn(u64_at(bytes, 16)),
            key: PartitionKey {
                topic: TopicId::from_bytes(topic),
                partition: PartitionId::new(u32_at(bytes, 40)),
            },
            log_id: LogId::new(u64_at(bytes, 48), u64_at(bytes, 56)),
            base_offset: Offset::new(u64_at(bytes, 64)),
            crc: u32_at(bytes, CRC_AT),
        };
        (header.durable_to < header.lsn).then_some(header)
    }

    /// Whether the frame is what was written to the file of this sequence number.
    pub(super) fn matches(
        &self,
        sequence: u64,
        bytes: &[u8; FRAME_HEADER_LEN],
        payload: &[u8],
    ) -> bool {
        self.crc == frame_crc(sequence, bytes, &[payload])
    }

    /// The frame's bytes with payload and padding.
    pub(super) fn frame_len(&self) -> u64 {
        frame_len(u64::from(self.payload_len))
    }
}

/// The bytes that a payload takes with header and padding.
pub(super) fn frame_len(payload: u64) -> u64 {
    (FRAME_HEADER_LEN as u64 + payload).next_multiple_of(ALIGNMENT as u64)
}

/// A record's payload bytes.
pub(super) fn payload_len(record: &WalRecord) -> u64 {
    record.payload.iter().map(|piece| piece.len() as u64).sum()
}

/// A frame's header. The payload is at most `u32::MAX` bytes.
pub(super) fn encode_frame_header(
    sequence: u64,
    lsn: Lsn,
    durable_to: Lsn,
    record: &WalRecord,
) -> [u8; FRAME_HEADER_LEN] {
    let mut bytes = [0; FRAME_HEADER_LEN];
    bytes[0] = FRAME_MAGIC;
    bytes[1] = record.kind as u8;
    bytes[4..8].copy_from_slice(&(payload_len(record) as u32).to_le_bytes());
    bytes[8..16].copy_from_slice(&lsn.get().to_le_bytes());
    bytes[16..24].copy_from_slice(&durable_to.get().to_le_bytes());
    bytes[24..40].copy_from_slice(record.key.topic.as_bytes());
    bytes[40..44].copy_from_slice(&record.key.partition.get().to_le_bytes());
    bytes[48..56].copy_from_slice(&record.log_id.term.get().to_le_bytes());
    bytes[56..64].copy_from_slice(&record.log_id.index.get().to_le_bytes());
    bytes[64..72].copy_from_slice(&record.base_offset.get().to_le_bytes());
    let crc = frame_crc(sequence, &bytes, &[&record.payload[0], &record.payload[1]]);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn frame_crc(sequence: u64, header: &[u8; FRAME_HEADER_LEN], payload: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&sequence.to_le_bytes());
    crc.update(&header[..CRC_AT]);
    crc.update(&header[CRC_AT + 4..]);
    for piece in payload {
        crc.update(piece);
    }
    crc.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut array = [0; 4];
    array.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(array)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut array = [0; 8];
    array.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(array)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn record() -> WalRecord {
        WalRecord {
            key: PartitionKey {
                topic: TopicId::from_bytes([0x11; 16]),
                partition: PartitionId::new(2),
            },
            kind: RecordKind::Batch,
            log_id: LogId::new(3, 4),
            base_offset: Offset::new(5),
            payload: [Bytes::from_static(b"ab"), Bytes::from_static(b"c")],
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay_what_they_are() {
        let header = encode_frame_header(9, Lsn(7), Lsn(6), &record());
        let expected = [
            &[0xA5, 1, 0, 0, 3, 0, 0, 0][..],
            &7u64.to_le_bytes(),
            &6u64.to_le_bytes(),
            &[0x11; 16],
            &2u32.to_le_bytes(),
            &GOLDEN_FRAME_CRC.to_le_bytes(),
            &3u64.to_le_bytes(),
            &4u64.to_le_bytes(),
            &5u64.to_le_bytes(),
        ]
        .concat();
        assert_eq!(header[..], expected);
        assert_eq!(frame_len(3), 80);

        let file = encode_file_header(9, Some(Lsn(7)));
        let mut expected = [0; 64];
        expected[..8].copy_from_slice(b"QUIPUWAL");
        expected[8] = 1;
        expected[16] = 9;
        expected[24] = 7;
        expected[60..].copy_from_slice(&GOLDEN_FILE_CRC.to_le_bytes());
        assert_eq!(file, expected);
    }
    const GOLDEN_FRAME_CRC: u32 = 0x1bd91d9b;
    const GOLDEN_FILE_CRC: u32 = 0x6179388d;

    #[test]
    fn a_newer_file_is_told_from_a_damaged_one() {
        let mut bytes = encode_file_header(9, None);
        assert_eq!(
            decode_file_header(&bytes),
            FileHeader::Known {
                sequence: 9,
                first: None
            }
        );
        bytes[8] = 2;
        assert_eq!(decode_file_header(&bytes), FileHeader::Invalid);
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode_file_header(&bytes), FileHeader::Newer { version: 2 });
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_found() {
        let header = encode_frame_header(9, Lsn(7), Lsn(6), &record());
        let decoded = FrameHeader::decode(&header).unwrap();
        assert!(decoded.matches(9, &header, b"abc"));
        assert!(!decoded.matches(8, &header, b"abc"), "of an earlier life");
        for bit in 0..FRAME_HEADER_LEN * 8 {
            let mut flipped = header;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let found = FrameHeader::decode(&flipped)
                .is_none_or(|header| !header.matches(9, &flipped, b"abc"));
            assert!(found, "bit {bit}");
        }
        assert!(!decoded.matches(9, &header, b"abd"));
    }

    proptest! {
        #[test]
        fn frames_read_back_as_written(
            sequence: u64, lsn in 1u64.., topic: [u8; 16], partition: u32, term: u64, index: u64, offset: u64,
            kind in 1u8..=8, first: Vec<u8>, second: Vec<u8>,
        ) {
            let record = WalRecord {
                key: PartitionKey {
                    topic: TopicId::from_bytes(topic),
                    partition: PartitionId::new(partition),
                },
                kind: RecordKind::from_byte(kind).unwrap(),
                log_id: LogId::new(term, index),
                base_offset: Offset::new(offset),
                payload: [first.clone().into(), second.clone().into()],
            };
            let bytes = encode_frame_header(sequence, Lsn(lsn), Lsn(lsn - 1), &record);
            let header = FrameHeader::decode(&bytes).unwrap();
            prop_assert!(header.matches(sequence, &bytes, &[first, second].concat()));
            prop_assert_eq!(
                (header.key, header.kind, header.log_id, header.base_offset, header.lsn),
                (record.key, record.kind, record.log_id, record.base_offset, Lsn(lsn))
            );
        }

        #[test]
        fn no_bytes_break_the_decoders(bytes: [[u8; 24]; 3]) {
            let frame: [u8; FRAME_HEADER_LEN] = bytes.concat().try_into().unwrap();
            let _ = FrameHeader::decode(&frame).map(|header| header.frame_len());
            let mut file = [0; FILE_HEADER_LEN];
            file.copy_from_slice(&frame[..FILE_HEADER_LEN]);
            decode_file_header(&file);
        }
    }
}
