//! The records that every golden batch holds, from `tests/golden/batch/records.json`.

use quipu_model::{
    ProducerEpoch, ProducerId, RecordBatch, Sequence, TimestampMs,
    batch::{BatchBuilder, Compression},
};
use serde_json::Value;

/// What the golden batches hold.
pub(crate) struct Described {
    /// The batch's producer id, epoch and first sequence number.
    pub(crate) producer: (ProducerId, ProducerEpoch, Sequence),
    /// Its records.
    pub(crate) records: Vec<Record>,
}

/// One record.
pub(crate) struct Record {
    /// Its timestamp.
    pub(crate) timestamp: TimestampMs,
    /// Its key.
    pub(crate) key: Option<Vec<u8>>,
    /// Its value.
    pub(crate) value: Option<Vec<u8>>,
    /// Its headers.
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Described {
    /// Reads the description.
    pub(crate) fn load() -> Self {
        let text = include_str!("../../../../tests/golden/batch/records.json");
        let json: Value = serde_json::from_str(text).expect("records.json is JSON");
        let number = |field: &str| json["producer"][field].as_i64().expect("a number");
        let records = json["records"].as_array().expect("a list of records");
        Self {
            producer: (
                ProducerId::new(number("id")),
                ProducerEpoch::new(number("epoch") as i16),
                Sequence::new(number("sequence") as i32),
            ),
            records: records.iter().map(record).collect(),
        }
    }

    /// A batch of the records.
    pub(crate) fn build(&self, codec: Compression) -> RecordBatch {
        let mut builder = BatchBuilder::new(codec);
        for record in &self.records {
            let headers = record.headers.iter();
            let headers: Vec<_> = headers.map(|(k, v)| (k.as_str(), v.as_deref())).collect();
            builder.append(
                record.timestamp,
                record.key.as_deref(),
                record.value.as_deref(),
                &headers,
            );
        }
        let (id, epoch, sequence) = self.producer;
        builder.set_producer(id, epoch, sequence);
        builder.build().expect("the described records make a batch")
    }
}

fn record(json: &Value) -> Record {
    let headers = json["headers"].as_array().expect("a list of headers");
    let header = |json: &Value| {
        let key = json["key"].as_str().expect("a header's key");
        (key.to_owned(), bytes(&json["value"]))
    };
    Record {
        timestamp: TimestampMs::new(json["timestamp"].as_i64().expect("a timestamp")),
        key: bytes(&json["key"]),
        value: bytes(&json["value"]),
        headers: headers.iter().map(header).collect(),
    }
}

/// Bytes are null, or a pattern and how often it is repeated.
fn bytes(json: &Value) -> Option<Vec<u8>> {
    let hex = json.get("hex")?.as_str().expect("hexadecimal digits");
    let times = json["times"].as_u64().expect("a count") as usize;
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("two digits");
    let pattern: Vec<u8> = (0..hex.len()).step_by(2).map(digit).collect();
    Some(pattern.repeat(times))
}
