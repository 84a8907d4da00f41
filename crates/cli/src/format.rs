//! Records as text.

use std::io::{self, Write};

use base64::{Engine, prelude::BASE64_STANDARD};
use clap::ValueEnum;
use quipu_model::batch::{Record, RecordHeader};
use serde::Serialize;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    /// Partition, offset, key and value, separated by tabs; '-' for no key or value, \xNN for what a terminal can't show
    Text,
    /// One object a line, with everything; bytes that are not text stand in key_base64 and value_base64
    Json,
    /// The value and a newline
    Raw,
}

impl Format {
    pub(crate) fn write(
        self,
        out: &mut impl Write,
        topic: &str,
        partition: u32,
        record: &Record,
    ) -> io::Result<()> {
        match self {
            Self::Text => text(out, partition, record),
            Self::Json => json(out, topic, partition, record),
            Self::Raw => {
                out.write_all(record.value.as_deref().unwrap_or_default())?;
                out.write_all(b"\n")
            }
        }
    }
}

fn text(out: &mut impl Write, partition: u32, record: &Record) -> io::Result<()> {
    write!(out, "{partition}\t{}\t", record.offset)?;
    escaped(out, record.key.as_deref())?;
    out.write_all(b"\t")?;
    escaped(out, record.value.as_deref())?;
    out.write_all(b"\n")
}

/// Text that neither breaks the line nor drives the terminal.
fn escaped(out: &mut impl Write, bytes: Option<&[u8]>) -> io::Result<()> {
    let Some(bytes) = bytes else {
        return out.write_all(b"-");
    };
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.write_all(b"\\\\")?,
                '\n' => out.write_all(b"\\n")?,
                '\r' => out.write_all(b"\\r")?,
                '\t' => out.write_all(b"\\t")?,
                c if c.is_control() => write!(out, "\\x{:02x}", u32::from(c))?,
                c => write!(out, "{c}")?,
            }
        }
        for byte in chunk.invalid() {
            write!(out, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

/// The fields' order is the lines'.
#[derive(Serialize)]
struct JsonRecord<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
    timestamp: i64,
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    headers: Vec<JsonHeader<'a>>,
}

#[derive(Serialize)]
struct JsonHeader<'a> {
    key: &'a str,
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

fn json(out: &mut impl Write, topic: &str, partition: u32, record: &Record) -> io::Result<()> {
    let (key, key_base64) = text_or_base64(record.key.as_deref());
    let (value, value_base64) = text_or_base64(record.value.as_deref());
    let record = JsonRecord {
        topic,
        partition,
        offset: record.offset.get(),
        timestamp: record.timestamp.get(),
        key,
        key_base64,
        value,
        value_base64,
        headers: record.headers.iter().map(json_header).collect(),
    };
    serde_json::to_writer(&mut *out, &record)?;
    out.write_all(b"\n")
}

fn json_header(header: &RecordHeader) -> JsonHeader<'_> {
    let (value, value_base64) = text_or_base64(header.value.as_deref());
    JsonHeader {
        // The format wants UTF-8 here, and the broker checks it.
        key: str::from_utf8(&header.key).unwrap_or_default(),
        value,
        value_base64,
    }
}

fn text_or_base64(bytes: Option<&[u8]>) -> (Option<&str>, Option<String>) {
    match bytes.map(|bytes| (bytes, str::from_utf8(bytes))) {
        None => (None, None),
        Some((_, Ok(text))) => (Some(text), None),
        Some((bytes, Err(_))) => (None, Some(BASE64_STANDARD.encode(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quipu_model::{
        Offset, TimestampMs,
        batch::{Record, RecordHeader},
    };

    use super::Format;

    fn record(key: Option<&'static [u8]>, value: Option<&'static [u8]>) -> Record {
        Record {
            offset: Offset::new(7),
            timestamp: TimestampMs::new(1234),
            key: key.map(Bytes::from_static),
            value: value.map(Bytes::from_static),
            headers: Vec::new(),
        }
    }

    fn print(format: Format, record: &Record) -> String {
        let mut out = Vec::new();
        format.write(&mut out, "t", 3, record).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_one_line_of_four_fields_whatever_the_bytes() {
        let plain = record(Some(b"k"), Some("größe".as_bytes()));
        assert_eq!(print(Format::Text, &plain), "3\t7\tk\tgröße\n");
        let wild = record(None, Some(b"a\tb\nc\\d\x1b[0m\xff"));
        assert_eq!(
            print(Format::Text, &wild),
            "3\t7\t-\ta\\tb\\nc\\\\d\\x1b[0m\\xff\n"
        );
    }

    #[test]
    fn json_has_everything_and_loses_no_byte() {
        let mut full = record(Some(b"k"), Some(b"\xff\x00"));
        full.headers = vec![RecordHeader {
            key: Bytes::from_static(b"h"),
            value: None,
        }];
        assert_eq!(
            print(Format::Json, &full),
            concat!(
                r#"{"topic":"t","partition":3,"offset":7,"timestamp":1234,"key":"k","value":null,"#,
                r#""value_base64":"/wA=","headers":[{"key":"h","value":null}]}"#,
                "\n"
            )
        );
        let tombstone = record(None, None);
        assert!(print(Format::Json, &tombstone).contains(r#""key":null,"value":null"#));
    }

    #[test]
    fn raw_is_the_value_and_a_newline() {
        assert_eq!(print(Format::Raw, &record(Some(b"k"), Some(b"v"))), "v\n");
        assert_eq!(print(Format::Raw, &record(None, None)), "\n");
    }
}
