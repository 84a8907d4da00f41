//! Why bytes are not a record batch, or records do not make one.

use super::Compression;

/// Why bytes are not a record batch that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end before the batch does.
    #[error("record batch truncated: it needs {needed} bytes, {found} are there")]
    Truncated {
        /// How many bytes the batch takes, as far as can be told.
        needed: usize,
        /// How many there are.
        found: usize,
    },
    /// There is more than one batch's bytes.
    #[error("{extra} bytes follow the record batch where exactly one batch is expected")]
    TrailingBytes {
        /// How many bytes follow.
        extra: usize,
    },
    /// The batch is of another format version.
    #[error("record batch of format {found}: only format 2 is served")]
    BadMagic {
        /// The version found.
        found: u8,
    },
    /// A header field has a value that no batch can have.
    #[error("record batch header: {field} is {found}, expected {expected}")]
    BadHeader {
        /// The field.
        field: &'static str,
        /// Its value.
        found: i64,
        /// What is accepted.
        expected: &'static str,
    },
    /// The checksum does not fit the bytes: they were damaged on the way or on disk.
    #[error(
        "record batch damaged: its CRC-32C says {stored:#010x}, its bytes give {computed:#010x}"
    )]
    CrcMismatch {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The batch is well formed, but of a kind that producers may not send.
    #[error("{what} are not served (attributes {attributes:#06x})")]
    NotServed {
        /// The kind.
        what: &'static str,
        /// The batch's attribute bits.
        attributes: u16,
    },
    /// A record is malformed.
    #[error("record {index} of the batch: {problem}")]
    BadRecord {
        /// The record's place in the batch, from 0.
        index: u32,
        /// What is wrong with it.
        problem: RecordProblem,
    },
    /// The bytes go on after the last record.
    #[error("the batch's records end early: more bytes follow the {count} that its header names")]
    BytesAfterRecords {
        /// How many records the header names.
        count: u32,
    },
    /// The records take more bytes than are allowed.
    #[error("the batch's records take more than {limit} bytes uncompressed: send smaller batches")]
    TooLarge {
        /// The bound, in bytes.
        limit: usize,
    },
    /// The codec refused the bytes, or to compress them.
    #[error("{codec}: {message}")]
    Codec {
        /// The codec.
        codec: Compression,
        /// What it said.
        message: String,
    },
    /// A batch was to be built of no records.
    #[error("a record batch holds at least one record")]
    Empty,
}

/// What is wrong with one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordProblem {
    /// The bytes end inside the record.
    #[error("the bytes end inside it")]
    EndsEarly,
    /// A variable-length number is longer than its type allows.
    #[error("a varint does not end where it must")]
    BadVarint,
    /// A length or count is below what it may be.
    #[error("{field} is {found}")]
    Negative {
        /// Which one.
        field: &'static str,
        /// Its value.
        found: i32,
    },
    /// The record's offset is not the one after its predecessor's.
    #[error("its offset delta is {found}, not its place in the batch")]
    OffsetDelta {
        /// The delta found.
        found: i32,
    },
    /// The record has no key, in a topic whose records need one.
    #[error(
        "it has no key, and the topic is compacted: its newest record of each key is kept, so give every record a key"
    )]
    NoKey,
    /// A header's key is not text.
    #[error("a header key is not UTF-8")]
    HeaderKeyNotUtf8,
    /// The record's length covers more than its fields.
    #[error("{extra} bytes follow its last header")]
    TrailingBytes {
        /// How many bytes follow.
        extra: usize,
    },
}
