//! What a record that failed carries with it: where it came from, how often it was tried, and why it failed.

use std::sync::Arc;

use bytes::Bytes;
use quipu_model::{Offset, TimestampMs, batch::RecordHeader};

/// Headers of this prefix are the worker's own.
const PREFIX: &str = "quipu-";
const TOPIC: &str = "quipu-origin-topic";
const PARTITION: &str = "quipu-origin-partition";
const OFFSET: &str = "quipu-origin-offset";
const TIMESTAMP: &str = "quipu-origin-timestamp-ms";
const GROUP: &str = "quipu-group";
const ATTEMPTS: &str = "quipu-attempts";
const FIRST_FAILED: &str = "quipu-first-failed-ms";
const FAILED: &str = "quipu-failed-ms";
const CAUSE: &str = "quipu-cause";
const DUE: &str = "quipu-due-ms";
const DELIVER_AT: &str = "quipu-deliver-at-ms";
const VALUE_LEFT: &str = "quipu-value-left";
const REDRIVEN: &str = "quipu-redriven";
const REDRIVEN_FOR: &str = "quipu-redriven-for";

/// A cause is cut after so many bytes: it must fit beside any record.
const LONGEST_CAUSE: usize = 1024;

/// Where a record that failed came from, and what became of it since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trail {
    /// The topic that it was first read from.
    pub topic: Arc<str>,
    /// The partition there.
    pub partition: u32,
    /// Its offset there.
    pub offset: Offset,
    /// Its timestamp there.
    pub timestamp: TimestampMs,
    /// The group whose worker failed at it.
    pub group: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it first failed.
    pub first_failed_at: TimestampMs,
    /// When it failed last.
    pub failed_at: TimestampMs,
    /// Why it failed last, up to 1024 bytes.
    pub cause: String,
}

impl Trail {
    /// The headers that say so, before those that the record had of its own.
    pub(crate) fn headers(&self, own: &[RecordHeader]) -> Vec<RecordHeader> {
        let text = |name, value: String| header(name, value.into());
        let mut headers = vec![
            text(TOPIC, self.topic.as_ref().to_owned()),
            text(PARTITION, self.partition.to_string()),
            text(OFFSET, self.offset.get().to_string()),
            text(TIMESTAMP, self.timestamp.get().to_string()),
            text(GROUP, self.group.clone()),
            text(ATTEMPTS, self.attempts.to_string()),
            text(FIRST_FAILED, self.first_failed_at.get().to_string()),
            text(FAILED, self.failed_at.get().to_string()),
            text(CAUSE, cut(&self.cause).to_owned()),
        ];
        headers.extend_from_slice(own);
        headers
    }

    /// The trail in these headers, and those that are the record's own. `None` for the trail where it is not whole.
    pub(crate) fn read(headers: Vec<RecordHeader>) -> (Option<Self>, Vec<RecordHeader>) {
        let trail = Self::parse(&headers);
        let own = headers.into_iter();
        let own = own.filter(|header| !is_a_workers(header.key_str()));
        (trail, own.collect())
    }

    fn parse(headers: &[RecordHeader]) -> Option<Self> {
        let number = |name| text(headers, name)?.parse().ok();
        let time = |name| number(name).map(TimestampMs::new);
        Some(Self {
            topic: text(headers, TOPIC)?.into(),
            partition: text(headers, PARTITION)?.parse().ok()?,
            offset: Offset::new(text(headers, OFFSET)?.parse().ok()?),
            timestamp: time(TIMESTAMP)?,
            group: text(headers, GROUP)?.to_owned(),
            attempts: text(headers, ATTEMPTS)?.parse().ok()?,
            first_failed_at: time(FIRST_FAILED)?,
            failed_at: time(FAILED)?,
            cause: text(headers, CAUSE)?.to_owned(),
        })
    }
}

/// Says when a record is to be tried, or passed on.
pub(crate) fn due(at: TimestampMs) -> RecordHeader {
    header(DUE, at.get().to_string().into())
}

/// Says when a record is to be delivered to the topic that it is for.
pub(crate) fn deliver_at(at: TimestampMs) -> RecordHeader {
    header(DELIVER_AT, at.get().to_string().into())
}

/// When a record is to be delivered, where its headers say so.
pub(crate) fn delivered_at(headers: &[RecordHeader]) -> Option<TimestampMs> {
    text(headers, DELIVER_AT)?
        .parse()
        .ok()
        .map(TimestampMs::new)
}

/// When a record is to be tried or passed on, where its headers say so.
pub(crate) fn due_at(headers: &[RecordHeader]) -> Option<TimestampMs> {
    text(headers, DUE)?.parse().ok().map(TimestampMs::new)
}

/// Says that a dead letter lacks the record's value and headers.
pub(crate) fn value_left() -> RecordHeader {
    header(VALUE_LEFT, "true".into())
}

/// Whether a dead letter lacks the record's value and headers.
pub(crate) fn is_value_left(headers: &[RecordHeader]) -> bool {
    text(headers, VALUE_LEFT).is_some()
}

/// Says beside a record's own headers which dead letter it comes from, and of which group: two records that say the same are one.
pub(crate) fn redriven(own: Vec<RecordHeader>, from: String, group: &str) -> Vec<RecordHeader> {
    let mut headers = own;
    headers.retain(|header| ![REDRIVEN, REDRIVEN_FOR].contains(&header.key_str()));
    headers.push(header(REDRIVEN, from.into()));
    headers.push(header(REDRIVEN_FOR, group.to_owned().into()));
    headers
}

/// The group for which a record was taken from its dead letters.
pub(crate) fn redriven_for(headers: &[RecordHeader]) -> Option<&str> {
    text(headers, REDRIVEN_FOR)
}

/// Whether a header is of a worker, which leaves the record when it goes back to its topic. Whence it was redriven stays with it.
fn is_a_workers(name: &str) -> bool {
    name.starts_with(PREFIX)
        && [
            TOPIC,
            PARTITION,
            OFFSET,
            TIMESTAMP,
            GROUP,
            ATTEMPTS,
            FIRST_FAILED,
            FAILED,
            CAUSE,
            DUE,
            DELIVER_AT,
            VALUE_LEFT,
        ]
        .contains(&name)
}

/// The first header of this name.
fn text<'a>(headers: &'a [RecordHeader], name: &str) -> Option<&'a str> {
    let header = headers.iter().find(|header| header.key == name)?;
    str::from_utf8(header.value.as_deref()?).ok()
}

fn header(name: &'static str, value: Bytes) -> RecordHeader {
    RecordHeader {
        key: Bytes::from_static(name.as_bytes()),
        value: Some(value),
    }
}

fn cut(cause: &str) -> &str {
    &cause[..cause.floor_char_boundary(LONGEST_CAUSE)]
}

#[cfg(test)]
mod tests {
    use quipu_model::{Offset, TimestampMs};

    use super::{Trail, due, due_at, header, redriven, redriven_for};

    fn trail() -> Trail {
        Trail {
            topic: "orders".into(),
            partition: 3,
            offset: Offset::new(17),
            timestamp: TimestampMs::new(5),
            group: "billing".to_owned(),
            attempts: 2,
            first_failed_at: TimestampMs::new(6),
            failed_at: TimestampMs::new(7),
            cause: "größer\nals gedacht".to_owned(),
        }
    }

    #[test]
    fn a_record_gets_its_own_headers_back() {
        let own = vec![
            header("quipu-mine", "x".into()),
            header("a", "1".into()),
            header("a", "2".into()),
        ];
        let mut headers = trail().headers(&own);
        headers.push(due(TimestampMs::new(9)));
        assert_eq!(due_at(&headers), Some(TimestampMs::new(9)));
        let (read, rest) = Trail::read(headers);
        assert_eq!(read, Some(trail()));
        assert_eq!(rest, own);
    }

    #[test]
    fn half_a_trail_is_none() {
        let mut headers = trail().headers(&[]);
        headers.pop();
        assert_eq!(Trail::read(headers), (None, Vec::new()));
        let mut headers = trail().headers(&[]);
        headers[1].value = Some("many".into());
        assert_eq!(Trail::read(headers).0, None);
    }

    #[test]
    fn a_long_cause_is_cut_between_characters() {
        let long = Trail {
            cause: "ü".repeat(2000) + "x",
            ..trail()
        };
        let (read, _) = Trail::read(long.headers(&[]));
        assert_eq!(read.unwrap().cause, "ü".repeat(512));
    }

    #[test]
    fn whence_a_record_was_redriven_stays_with_it() {
        let from = |letter: &str| redriven(Vec::new(), letter.to_owned(), "billing");
        let from = redriven(
            from("before"),
            "orders.billing.dead/1/2".to_owned(),
            "billing",
        );
        assert_eq!(from.len(), 2);
        let (_, rest) = Trail::read(trail().headers(&from));
        assert_eq!(rest, from);
        assert_eq!(redriven_for(&rest), Some("billing"));
    }
}
