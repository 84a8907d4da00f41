//! What a message says of itself, in its record's headers.

use std::collections::BTreeMap;

use bytes::Bytes;
use quipu_model::{TimestampMs, batch::RecordHeader};

const SPEC_VERSION: &str = "1.0";
const CONTENT_TYPE: &str = "content-type";
const STRUCTURED: &str = "application/cloudevents";

/// What a message says of itself: a [CloudEvents 1.0](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md) event's
/// attributes. They travel as headers in the
/// [Kafka binding's binary mode](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md#32-binary-content-mode):
/// `ce_id`, `ce_type`, `ce_source`, `ce_specversion`, `ce_time`, `content-type` and so on; the record's value is the data as it is.
///
/// ```
/// use quipu_client::{Envelope, Record, borrow_headers};
///
/// let envelope = Envelope::new("order.placed", "/shop/berlin");
/// let headers = envelope.to_headers()?;
/// let headers = borrow_headers(&headers);
/// let record = Record::new("orders").value(b"2 apples").headers(&headers);
/// # let _ = record;
/// # Ok::<(), quipu_client::EnvelopeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Tells the message from all others of its source (`ce_id`).
    pub id: String,
    /// What it is about (`ce_type`), such as `order.placed`.
    pub event_type: String,
    /// Who says it: a URI or a path (`ce_source`).
    pub source: String,
    /// The version of the data's form (`ce_dataversion`; Quipu's own, CloudEvents has none).
    pub version: Option<String>,
    /// When it happened (`ce_time`).
    pub time: Option<TimestampMs>,
    /// What all messages of one business transaction share (`ce_correlationid`).
    pub correlation_id: Option<String>,
    /// The data's media type (`content-type`).
    pub content_type: Option<String>,
    /// The trace that it belongs to (`ce_traceparent`, `ce_tracestate`).
    pub trace: Option<TraceContext>,
    /// All other attributes, by their names without `ce_`.
    pub extensions: BTreeMap<String, String>,
}

/// A [W3C trace context](https://www.w3.org/TR/trace-context/).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// `traceparent`: version, trace id, parent id and flags, in lower-case hex: `00-…-…-01`.
    pub parent: String,
    /// `tracestate`.
    pub state: Option<String>,
}

/// Why headers are no envelope, or an envelope can't be put into headers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// A header that must be there is not.
    #[error("the header {name} is missing: the record is no CloudEvents message in binary mode")]
    Missing {
        /// The header.
        name: &'static str,
    },
    /// A header stands twice.
    #[error("the header {name} stands more than once: send it once")]
    Repeated {
        /// The header.
        name: String,
    },
    /// A header has no value, an empty one, or bytes that are not UTF-8.
    #[error("the header {name} is empty or not UTF-8 text: give it a value or leave it out")]
    NoText {
        /// The header.
        name: String,
    },
    /// A value is not of the form that it must have.
    #[error("the header {name} is {value:?}: write {expected}")]
    BadValue {
        /// The header.
        name: String,
        /// At most its first 64 characters.
        value: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// The event stands in the record's value.
    #[error(
        "the content type is {content_type:?}: the event stands in the record's value (structured mode), which only binary mode is read from"
    )]
    Structured {
        /// The content type.
        content_type: String,
    },
}

/// Headers as [`Record::headers`](crate::Record::headers) takes them.
pub fn borrow_headers(headers: &[RecordHeader]) -> Vec<(&str, Option<&[u8]>)> {
    let borrowed = headers
        .iter()
        .map(|header| (header.key_str(), header.value.as_deref()));
    borrowed.collect()
}

impl Envelope {
    /// An envelope with a random id.
    pub fn new(event_type: impl Into<String>, source: impl Into<String>) -> Self {
        Self {
            id: format!("{:032x}", rand::random::<u128>()),
            event_type: event_type.into(),
            source: source.into(),
            version: None,
            time: None,
            correlation_id: None,
            content_type: None,
            trace: None,
            extensions: BTreeMap::new(),
        }
    }

    /// The headers that say all this.
    ///
    /// # Errors
    /// Where an attribute is empty or not of the form that it must have.
    pub fn to_headers(&self) -> Result<Vec<RecordHeader>, EnvelopeError> {
        let mut headers = vec![header("ce_specversion", SPEC_VERSION)];
        let mut put = |name: &str, value: &str| {
            check(name, value)?;
            headers.push(header(name, value));
            Ok(())
        };
        put("ce_id", &self.id)?;
        put("ce_type", &self.event_type)?;
        put("ce_source", &self.source)?;
        if let Some(time) = self.time {
            let text = time.to_rfc3339();
            put("ce_time", &text.unwrap_or_else(|| time.get().to_string()))?;
        }
        let trace = self.trace.as_ref();
        let optional = [
            ("ce_dataversion", self.version.as_deref()),
            ("ce_correlationid", self.correlation_id.as_deref()),
            (CONTENT_TYPE, self.content_type.as_deref()),
            ("ce_traceparent", trace.map(|trace| trace.parent.as_str())),
            (
                "ce_tracestate",
                trace.and_then(|trace| trace.state.as_deref()),
            ),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                put(name, value)?;
            }
        }
        for (name, value) in &self.extensions {
            put(&format!("ce_{name}"), value)?;
        }
        // An extension may have the name of an attribute.
        attributes(&headers).map(|_| headers)
    }

    /// What these headers say; those that are none of CloudEvents are passed over.
    ///
    /// # Errors
    /// Where a header that must be there is missing, or one is not what it must be.
    pub fn from_headers(headers: &[RecordHeader]) -> Result<Self, EnvelopeError> {
        let mut found = attributes(headers)?;
        let mut take = |name: &'static str| found.remove(name);
        let must = |name, value: Option<String>| value.ok_or(EnvelopeError::Missing { name });
        must("ce_specversion", take("ce_specversion"))?;
        let (parent, state) = (take("ce_traceparent"), take("ce_tracestate"));
        let time = take("ce_time");
        let mut envelope = Self {
            id: must("ce_id", take("ce_id"))?,
            event_type: must("ce_type", take("ce_type"))?,
            source: must("ce_source", take("ce_source"))?,
            version: take("ce_dataversion"),
            time: time.and_then(|text| TimestampMs::parse_rfc3339(&text)),
            correlation_id: take("ce_correlationid"),
            content_type: take(CONTENT_TYPE),
            trace: parent.map(|parent| TraceContext { parent, state }),
            extensions: BTreeMap::new(),
        };
        let extensions = found.into_iter().filter_map(|(name, value)| {
            let name = name.strip_prefix("ce_")?;
            Some((name.to_owned(), value))
        });
        envelope.extensions.extend(extensions);
        Ok(envelope)
    }
}

/// The headers that are CloudEvents', each checked.
fn attributes(headers: &[RecordHeader]) -> Result<BTreeMap<String, String>, EnvelopeError> {
    let mut found = BTreeMap::new();
    for header in headers {
        let name = header.key_str();
        if !name.starts_with("ce_") && name != CONTENT_TYPE {
            continue;
        }
        let no_text = || EnvelopeError::NoText {
            name: name.to_owned(),
        };
        let value = header.value.as_deref().ok_or_else(no_text)?;
        let value = str::from_utf8(value).map_err(|_| no_text())?;
        check(name, value)?;
        let before = found.insert(name.to_owned(), value.to_owned());
        if before.is_some() {
            return Err(EnvelopeError::Repeated {
                name: name.to_owned(),
            });
        }
    }
    Ok(found)
}

/// Whether an attribute may have this value.
fn check(name: &str, value: &str) -> Result<(), EnvelopeError> {
    let bad = |expected| {
        Err(EnvelopeError::BadValue {
            name: name.chars().take(64).collect(),
            value: value.chars().take(64).collect(),
            expected,
        })
    };
    if value.is_empty() {
        return Err(EnvelopeError::NoText {
            name: name.to_owned(),
        });
    }
    match name {
        "ce_specversion" if value != SPEC_VERSION => bad("1.0, the version that is understood"),
        "ce_time" if TimestampMs::parse_rfc3339(value).is_none() => {
            bad("a time as RFC 3339 does: 2026-11-24T10:00:00Z")
        }
        "ce_traceparent" if !is_trace_parent(value) => {
            bad("version, trace id, parent id and flags in lower-case hex: 00-…-…-01")
        }
        CONTENT_TYPE if is_structured(value) => Err(EnvelopeError::Structured {
            content_type: value.chars().take(64).collect(),
        }),
        CONTENT_TYPE => Ok(()),
        _ if !is_attribute(name) => bad("attributes' names as ce_ and letters a-z and digits"),
        _ => Ok(()),
    }
}

fn is_structured(content_type: &str) -> bool {
    let start = content_type.get(..STRUCTURED.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(STRUCTURED))
}

fn is_attribute(header: &str) -> bool {
    let name = header.strip_prefix("ce_").unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !name.is_empty() && name.bytes().all(plain)
}

/// A version that is not known yet may have more behind the flags.
fn is_trace_parent(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut next = |length: usize| {
        let part = parts.next().unwrap_or_default();
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (part.len() == length && part.bytes().all(hex)).then_some(part)
    };
    let is_not_zero = |part: &str| part.bytes().any(|byte| byte != b'0');
    let version = next(2);
    let ids = [next(32), next(16)];
    let flags = next(2);
    let ids_given = ids.iter().all(|id| id.is_some_and(is_not_zero));
    let ends = parts.next().is_none() || version != Some("00");
    version.is_some_and(|version| version != "ff") && ids_given && flags.is_some() && ends
}

fn header(name: &str, value: &str) -> RecordHeader {
    RecordHeader {
        key: Bytes::copy_from_slice(name.as_bytes()),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::{Envelope, EnvelopeError, RecordHeader, TimestampMs, TraceContext, header};

    /// The example of the binding's section 3.2.5.
    fn example() -> Vec<RecordHeader> {
        [
            ("ce_specversion", "1.0"),
            ("ce_type", "com.example.someevent"),
            ("ce_source", "/mycontext/subcontext"),
            ("ce_id", "1234-1234-1234"),
            ("ce_time", "2018-04-05T03:56:24Z"),
            ("content-type", "application/avro"),
        ]
        .map(|(name, value)| header(name, value))
        .to_vec()
    }

    fn with(name: &str, value: &str) -> Vec<RecordHeader> {
        let mut headers = example();
        headers.retain(|header| header.key_str() != name);
        headers.push(header(name, value));
        headers
    }

    #[test]
    fn the_bindings_example_is_understood() {
        let mut headers = example();
        headers.push(header("unrelated", "x"));
        let envelope = Envelope::from_headers(&headers).unwrap();
        assert_eq!(envelope.id, "1234-1234-1234");
        assert_eq!(envelope.event_type, "com.example.someevent");
        assert_eq!(envelope.source, "/mycontext/subcontext");
        assert_eq!(envelope.time, Some(TimestampMs::new(1_522_900_584_000)));
        assert_eq!(envelope.content_type.as_deref(), Some("application/avro"));
        assert_eq!(envelope.trace, None);
        assert!(envelope.extensions.is_empty());
    }

    #[test]
    fn whatever_is_said_arrives() {
        let mut said = Envelope {
            version: Some("3".to_owned()),
            time: Some(TimestampMs::new(1_795_514_400_250)),
            correlation_id: Some("txn-abc-123".to_owned()),
            content_type: Some("application/json".to_owned()),
            trace: Some(TraceContext {
                parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
                state: Some("rojo=00f067aa0ba902b7".to_owned()),
            }),
            ..Envelope::new("order.placed", "/größe/\"x\"")
        };
        said.extensions
            .insert("causationid".to_owned(), "a b".to_owned());
        let headers = said.to_headers().unwrap();
        assert_eq!(Envelope::from_headers(&headers), Ok(said));
        let least = Envelope::new("t", "s");
        let headers = least.to_headers().unwrap();
        assert_eq!(headers.len(), 4);
        assert_eq!(Envelope::from_headers(&headers), Ok(least));
    }

    #[test]
    fn what_is_missing_is_named() {
        for name in ["ce_specversion", "ce_type", "ce_source", "ce_id"] {
            let mut headers = example();
            headers.retain(|header| header.key_str() != name);
            let missing = Err(EnvelopeError::Missing { name });
            assert_eq!(Envelope::from_headers(&headers), missing);
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (name, value) in [
            ("ce_specversion", "0.3"),
            ("ce_id", ""),
            ("ce_time", "yesterday"),
            ("ce_Upper", "x"),
            ("ce_", "x"),
            ("ce_with_underscore", "x"),
            ("ce_correlationid", ""),
            ("ce_traceparent", "00-1-2-3"),
            (
                "ce_traceparent",
                "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            ),
            (
                "ce_traceparent",
                "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            ),
            (
                "ce_traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            ),
            ("content-type", "Application/CloudEvents+json"),
        ] {
            let refused = Envelope::from_headers(&with(name, value));
            assert!(refused.is_err(), "{name}: {value}");
        }
        let mut twice = example();
        twice.push(header("ce_id", "other"));
        let repeated = Envelope::from_headers(&twice);
        assert!(matches!(repeated, Err(EnvelopeError::Repeated { .. })));
        let mut bytes = with("ce_id", "x");
        bytes.last_mut().unwrap().value = Some(b"\xff".as_slice().into());
        let no_text = Envelope::from_headers(&bytes);
        assert!(matches!(no_text, Err(EnvelopeError::NoText { .. })));
        let mut none = with("ce_id", "x");
        none.last_mut().unwrap().value = None;
        assert!(Envelope::from_headers(&none).is_err());
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let good = Envelope::new("t", "s");
        let mut named = good.clone();
        named
            .extensions
            .insert("Not-One".to_owned(), "x".to_owned());
        let timed = Envelope {
            time: Some(TimestampMs::new(i64::MAX)),
            ..good.clone()
        };
        let structured = Envelope {
            content_type: Some("application/cloudevents+json".to_owned()),
            ..good.clone()
        };
        let nameless = Envelope {
            id: String::new(),
            ..good.clone()
        };
        let mut twice = good;
        twice.extensions.insert("id".to_owned(), "x".to_owned());
        for bad in [named, timed, structured, nameless, twice] {
            assert!(bad.to_headers().is_err(), "{bad:?}");
        }
    }
}
