//! The codecs that a batch's records may be compressed with, all bounded on the way back.

use std::{
    fmt,
    io::{self, Read, Write},
    str::FromStr,
};

use bytes::Bytes;
use flate2::{read::MultiGzDecoder, write::GzEncoder};
use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

use super::{BatchError, snappy};

/// The level at which zstd and its Kafka clients compress unless told otherwise.
const ZSTD_LEVEL: i32 = 3;
/// Frames that look back further than 8 MiB (levels above 19) are refused: what every decoder must support by RFC 8878,
/// and the most that a few bytes can make us set aside.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// The first room made for decompressed bytes, in bytes.
const FIRST_ROOM: usize = 4096;

/// How a batch's records are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Snappy, in the framing of xerial's `snappy-java`; the bare block format is read too.
    Snappy,
    /// The LZ4 frame format.
    Lz4,
    /// Zstandard (RFC 8878), with a window of up to 8 MiB.
    Zstd,
}

/// The name of no codec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown compression {name:?}: use none, gzip, snappy, lz4 or zstd")]
pub struct UnknownCompression {
    name: String,
}

impl Compression {
    /// Every codec.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The attribute bits that name the codec.
    pub(super) const BITS: u16 = 0b111;

    /// The codec that a batch's attributes name; `None` where there is no such codec.
    pub const fn from_bits(attributes: u16) -> Option<Self> {
        match attributes & Self::BITS {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The attribute bits that name this codec.
    pub const fn bits(self) -> u16 {
        self as u16
    }

    /// The codec's name, as [`FromStr`] reads it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Appends `plain`, compressed, to `out`.
    ///
    /// # Errors
    /// [`BatchError::Codec`] where the codec fails.
    pub fn compress(self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), BatchError> {
        match self {
            Self::None => out.write_all(plain),
            Self::Gzip => gzip(plain, out),
            Self::Snappy => snappy::compress(plain, out),
            Self::Lz4 => lz4(plain, out),
            Self::Zstd => zstd(plain, out),
        }
        .map_err(|e| self.error(&e))
    }

    /// `compressed`, decompressed: without a copy where this is [`Self::None`].
    ///
    /// # Errors
    /// [`BatchError::TooLarge`] once there are more than `limit` bytes (no more memory than that is taken, the codec's
    /// window aside); [`BatchError::Codec`] where the codec refuses them.
    pub fn decompress(self, compressed: &Bytes, limit: usize) -> Result<Bytes, BatchError> {
        if self == Self::None {
            return if compressed.len() > limit {
                Err(BatchError::TooLarge { limit })
            } else {
                Ok(compressed.clone())
            };
        }
        let mut source = Decompressor::new(self, compressed, limit)?;
        let mut plain = vec![
            0;
            FIRST_ROOM
                .max(compressed.len())
                .min(limit.saturating_add(1))
        ];
        let mut filled = 0;
        loop {
            let read = source.read(&mut plain[filled..])?;
            if read == 0 {
                break;
            }
            filled += read;
            if filled == plain.len() {
                // One byte past the limit, so that there is always room to notice what is too much.
                plain.resize(filled.saturating_mul(2).min(limit.saturating_add(1)), 0);
            }
        }
        plain.truncate(filled);
        Ok(plain.into())
    }

    fn error(self, error: &io::Error) -> BatchError {
        BatchError::Codec {
            codec: self,
            message: error.to_string(),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|codec| codec.name() == name)
            .ok_or_else(|| UnknownCompression {
                name: name.chars().take(64).collect(),
            })
    }
}

/// Decompresses step by step, up to a bound.
pub(super) struct Decompressor<'a> {
    codec: Compression,
    source: Source<'a>,
    limit: usize,
    left: usize,
}

enum Source<'a> {
    None(&'a [u8]),
    Gzip(MultiGzDecoder<&'a [u8]>),
    Snappy(snappy::Reader<'a>),
    Lz4(Box<FrameDecoder<&'a [u8]>>),
    Zstd(zstd::Decoder<'static, &'a [u8]>),
}

impl<'a> Decompressor<'a> {
    pub(super) fn new(
        codec: Compression,
        compressed: &'a [u8],
        limit: usize,
    ) -> Result<Self, BatchError> {
        let source = match codec {
            Compression::None => Source::None(compressed),
            Compression::Gzip => Source::Gzip(MultiGzDecoder::new(compressed)),
            Compression::Snappy => Source::Snappy(snappy::Reader::new(compressed, limit)),
            Compression::Lz4 => Source::Lz4(Box::new(FrameDecoder::new(compressed))),
            Compression::Zstd => {
                let decoder = zstd::Decoder::with_buffer(compressed).and_then(|mut decoder| {
                    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                    Ok(decoder)
                });
                Source::Zstd(decoder.map_err(|e| codec.error(&e))?)
            }
        };
        Ok(Self {
            codec,
            source,
            limit,
            left: limit,
        })
    }

    /// Fills `buffer` from its start with some of the next bytes and says how many; 0 at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, BatchError> {
        let read = match &mut self.source {
            Source::None(plain) => plain.read(buffer),
            Source::Gzip(decoder) => decoder.read(buffer),
            Source::Snappy(decoder) => match decoder.read(buffer) {
                Ok(read) => Ok(read),
                Err(snappy::Error::TooLarge) => {
                    return Err(BatchError::TooLarge { limit: self.limit });
                }
                Err(snappy::Error::Corrupt(e)) => Err(e),
            },
            Source::Lz4(decoder) => decoder.read(buffer).and_then(|read| {
                // The reader stops behind one frame; a batch holds no more than one.
                if read == 0 && !buffer.is_empty() && !decoder.get_ref().is_empty() {
                    return Err(io::Error::other("bytes follow the frame"));
                }
                Ok(read)
            }),
            Source::Zstd(decoder) => decoder.read(buffer),
        }
        .map_err(|e| self.codec.error(&e))?;
        self.left = self
            .left
            .checked_sub(read)
            .ok_or(BatchError::TooLarge { limit: self.limit })?;
        Ok(read)
    }
}

fn gzip(plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut encoder = GzEncoder::new(out, flate2::Compression::default());
    encoder.write_all(plain)?;
    encoder.finish().map(drop)
}

/// As Kafka's Java client frames it: independent blocks of 64 KiB, no checksums (the batch has its own).
fn lz4(plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let info = FrameInfo::new()
        .block_size(BlockSize::Max64KB)
        .block_mode(BlockMode::Independent);
    let mut encoder = FrameEncoder::with_frame_info(info, out);
    encoder.write_all(plain)?;
    encoder.finish().map(drop).map_err(io::Error::other)
}

fn zstd(plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
    encoder.set_pledged_src_size(Some(plain.len() as u64))?;
    encoder.write_all(plain)?;
    encoder.finish().map(drop)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{BatchError, Compression};

    #[test]
    fn names_and_bits_lead_back_to_the_codec() {
        for codec in Compression::ALL {
            assert_eq!(codec.name().parse(), Ok(codec));
            assert_eq!(Compression::from_bits(codec.bits() | 0xfff8), Some(codec));
        }
        assert!("GZIP".parse::<Compression>().is_err());
        assert_eq!(Compression::from_bits(5), None);
    }

    #[test]
    fn decompression_stops_at_the_limit() {
        let plain = vec![0; 1 << 20];
        for codec in Compression::ALL {
            let mut compressed = Vec::new();
            codec.compress(&plain, &mut compressed).unwrap();
            let compressed = Bytes::from(compressed);
            let exact = codec.decompress(&compressed, plain.len()).unwrap();
            assert_eq!(exact, plain, "{codec}");
            for limit in [0, 1, 65536, plain.len() - 1] {
                assert_eq!(
                    codec.decompress(&compressed, limit),
                    Err(BatchError::TooLarge { limit }),
                    "{codec}"
                );
            }
        }
    }

    #[test]
    fn a_zstd_frame_with_a_huge_window_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        std::io::Write::write_all(&mut encoder, b"small").unwrap();
        let frame = Bytes::from(encoder.finish().unwrap());
        assert!(matches!(
            Compression::Zstd.decompress(&frame, 1 << 20),
            Err(BatchError::Codec {
                codec: Compression::Zstd,
                ..
            })
        ));
    }
}
