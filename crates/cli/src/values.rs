//! Values as they are written on the command line.

use std::{collections::HashMap, str::FromStr};

use clap::ValueEnum;
use quipu_client::{Acks, Compression};
use quipu_model::{Offset, TimestampMs};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AcksArg {
    /// On disk on a majority of the replicas
    All,
    /// Appended by the leader; may still be lost
    Leader,
    /// Nothing promised
    None,
}

impl From<AcksArg> for Acks {
    fn from(acks: AcksArg) -> Self {
        match acks {
            AcksArg::All => Self::All,
            AcksArg::Leader => Self::Leader,
            AcksArg::None => Self::None,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CompressionArg {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl From<CompressionArg> for Compression {
    fn from(compression: CompressionArg) -> Self {
        match compression {
            CompressionArg::None => Self::None,
            CompressionArg::Gzip => Self::Gzip,
            CompressionArg::Snappy => Self::Snappy,
            CompressionArg::Lz4 => Self::Lz4,
            CompressionArg::Zstd => Self::Zstd,
        }
    }
}

/// A place in a partition: `earliest`, `latest`, an offset, `-N` (so many before the end) or `@TIME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Earliest,
    Latest,
    Offset(Offset),
    FromEnd(u64),
    Time(TimestampMs),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is no place in a partition: write earliest, latest, an offset, -N for the last N records, or @TIME"
            )
        };
        if let Some(time) = text.strip_prefix('@') {
            return parse_time(time).map(Self::Time);
        }
        if let Some(count) = text.strip_prefix('-') {
            return digits(count).map(Self::FromEnd).ok_or_else(bad);
        }
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => match digits(text) {
                Some(offset) if i64::try_from(offset).is_ok() => {
                    Ok(Self::Offset(Offset::new(offset)))
                }
                _ => Err(bad()),
            },
        }
    }
}

/// Digits only: `str::parse` would take a sign.
fn digits(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn parse_time(text: &str) -> Result<TimestampMs, String> {
    if let Some(ms) = digits(text).and_then(|ms| i64::try_from(ms).ok()) {
        return Ok(TimestampMs::new(ms));
    }
    TimestampMs::parse_rfc3339(text).ok_or_else(|| {
        format!(
            "{text:?} is no time: write it as 2026-11-24T10:00:00Z, or in milliseconds since 1970"
        )
    })
}

/// A number of bytes: `4096`, `64KiB`, `1MiB`, `2GiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<usize, String> {
    let bad = || format!("{text:?} is no size: write bytes, or a number and KiB, MiB or GiB");
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit: usize = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err(bad()),
    };
    let number: usize = number.parse().map_err(|_| bad())?;
    number.checked_mul(unit).ok_or_else(bad)
}

/// `name=value`.
pub(crate) fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form name=value")),
    }
}

pub(crate) fn to_map(pairs: Vec<(String, String)>) -> HashMap<String, String> {
    pairs.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use quipu_model::{Offset, TimestampMs};

    use super::{Place, parse_bytes, parse_pair};

    #[test]
    fn places_in_every_form() {
        for (text, place) in [
            ("earliest", Place::Earliest),
            ("latest", Place::Latest),
            ("0", Place::Offset(Offset::new(0))),
            ("12345", Place::Offset(Offset::new(12345))),
            ("-10", Place::FromEnd(10)),
            (
                "@1700000000000",
                Place::Time(TimestampMs::new(1_700_000_000_000)),
            ),
            ("@1970-01-01T00:00:01Z", Place::Time(TimestampMs::new(1000))),
        ] {
            assert_eq!(text.parse(), Ok(place), "{text}");
        }
    }

    #[test]
    fn what_is_no_place_is_refused_with_the_forms_to_use() {
        for text in [
            "",
            "-",
            "--1",
            "+1",
            "1.5",
            "soon",
            "18446744073709551616",
            "@",
            "@yesterday",
        ] {
            let refusal = text.parse::<Place>().unwrap_err();
            assert!(refusal.contains("write"), "{text}: {refusal}");
        }
    }

    #[test]
    fn sizes_and_pairs() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("64KiB"), Ok(65536));
        assert_eq!(parse_bytes("1m"), Ok(1 << 20));
        assert!(parse_bytes("many").is_err());
        assert!(parse_bytes("99999999999999999999").is_err());
        assert_eq!(parse_pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(parse_pair("=b").is_err());
        assert!(parse_pair("a").is_err());
    }
}
