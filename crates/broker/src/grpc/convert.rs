//! Messages to and from the core's types.

use std::time::Duration;

use quipu_model::{
    PartitionId, RecordBatch, TimestampMs,
    batch::{BatchBuilder, Compression},
};
use quipu_proto::v1;
use quipu_replication::Acks;

use crate::{
    core::{
        Appended, Fetched, ListedOffset, NodeDescription, OffsetQuery, PartitionDescription,
        Payload, Produce,
    },
    error::{BrokerError, Reason},
    metadata::Topic,
};

/// Bytes in an answer where the client does not say.
const DEFAULT_MAX_BYTES: usize = 1 << 20;

pub(super) fn invalid(message: impl Into<String>) -> BrokerError {
    BrokerError::new(Reason::InvalidRequest, message)
}

/// Milliseconds from a request; 0 is unset.
fn milliseconds(value: u32) -> Option<Duration> {
    (value > 0).then(|| Duration::from_millis(value.into()))
}

/// Bytes from a request; 0 is unset.
pub(super) fn max_bytes(value: u32) -> usize {
    match value {
        0 => DEFAULT_MAX_BYTES,
        bytes => bytes as usize,
    }
}

fn acks(value: i32) -> Result<Acks, BrokerError> {
    match v1::Acks::try_from(value) {
        Ok(v1::Acks::Unspecified | v1::Acks::All) => Ok(Acks::All),
        Ok(v1::Acks::Leader) => Ok(Acks::Leader),
        Ok(v1::Acks::None) => Ok(Acks::None),
        Err(_) => Err(invalid(format!(
            "acks {value} is unknown: give ACKS_ALL, ACKS_LEADER or ACKS_NONE"
        ))),
    }
}

/// A produce request for the core; plain records are batched here.
pub(super) fn produce<'a>(
    topic: &'a str,
    request: ProduceFields,
    now: TimestampMs,
) -> Result<Produce<'a>, BrokerError> {
    let payload = match request.payload {
        Some(v1::produce_request::Payload::Batch(bytes)) => Payload::Encoded(bytes),
        Some(v1::produce_request::Payload::Records(records)) => {
            Payload::Built(batch_of(&records.records, now)?)
        }
        None => return Err(invalid("the request holds neither a batch nor records")),
    };
    Ok(Produce {
        topic,
        partition: PartitionId::new(request.partition),
        acks: acks(request.acks)?,
        timeout: milliseconds(request.timeout_ms),
        payload,
    })
}

/// A produce request without its topic, which the core only borrows.
pub(super) struct ProduceFields {
    partition: u32,
    acks: i32,
    timeout_ms: u32,
    payload: Option<v1::produce_request::Payload>,
}

/// Takes a request apart: correlation id, topic, the rest.
pub(super) fn take_apart(request: v1::ProduceRequest) -> (u64, String, ProduceFields) {
    let fields = ProduceFields {
        partition: request.partition,
        acks: request.acks,
        timeout_ms: request.timeout_ms,
        payload: request.payload,
    };
    (request.correlation_id, request.topic, fields)
}

fn batch_of(records: &[v1::PlainRecord], now: TimestampMs) -> Result<RecordBatch, BrokerError> {
    let mut builder = BatchBuilder::new(Compression::None);
    for record in records {
        let headers: Vec<_> = record
            .headers
            .iter()
            .map(|header| (header.key.as_str(), header.value.as_deref()))
            .collect();
        let timestamp = record.timestamp_ms.map_or(now, TimestampMs::new);
        if timestamp < TimestampMs::NONE {
            return Err(invalid(format!(
                "timestamp_ms {timestamp} is refused: give milliseconds since the Unix epoch, or leave it out"
            )));
        }
        builder.append(
            timestamp,
            record.key.as_deref(),
            record.value.as_deref(),
            &headers,
        );
    }
    Ok(builder.build()?)
}

/// How long to wait, as answers say it. Waits are bounded far below what fits.
pub(super) fn throttle_ms(wait: Duration) -> u32 {
    wait.as_millis() as u32
}

/// The answer to a produce request, after which the client is to wait.
pub(super) fn produce_response(
    correlation_id: u64,
    throttle: Duration,
    result: Result<Appended, BrokerError>,
) -> v1::ProduceResponse {
    match result {
        Ok(appended) => v1::ProduceResponse {
            correlation_id,
            error: None,
            base_offset: appended.base_offset.map(|offset| offset.get()),
            duplicate: appended.duplicate,
            throttle_time_ms: throttle_ms(throttle),
        },
        Err(error) => v1::ProduceResponse {
            correlation_id,
            error: Some(error.into()),
            base_offset: None,
            duplicate: false,
            throttle_time_ms: throttle_ms(throttle),
        },
    }
}

/// The answer to a fetch request, after which the client is to wait.
pub(super) fn fetch_response(fetched: Fetched, throttle: Duration) -> v1::FetchResponse {
    v1::FetchResponse {
        error: None,
        batches: fetched.batches,
        high_watermark: fetched.high_watermark.get(),
        log_start_offset: fetched.log_start.get(),
        throttle_time_ms: throttle_ms(throttle),
    }
}

impl From<ListedOffset> for v1::ListOffsetsResponse {
    fn from(listed: ListedOffset) -> Self {
        Self {
            offset: listed.offset.get(),
            timestamp_ms: listed.timestamp.map(|timestamp| timestamp.get()),
        }
    }
}

/// What a request for an offset asks for.
pub(super) fn offset_query(
    at: Option<v1::list_offsets_request::At>,
) -> Result<OffsetQuery, BrokerError> {
    use v1::list_offsets_request::At;
    match at {
        Some(At::Earliest(_)) => Ok(OffsetQuery::Earliest),
        Some(At::Latest(_)) => Ok(OffsetQuery::Latest),
        Some(At::TimestampMs(timestamp)) => Ok(OffsetQuery::At(TimestampMs::new(timestamp))),
        None => Err(invalid(
            "say which offset is asked for: earliest, latest or timestamp_ms",
        )),
    }
}

impl From<&Topic> for v1::Topic {
    fn from(topic: &Topic) -> Self {
        Self {
            name: topic.name.to_string(),
            id: topic.id.to_string(),
            partitions: topic.assignments.len() as u32,
            replication_factor: topic.replication_factor() as u32,
            config: topic
                .config
                .settings()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            internal: topic.name.is_internal(),
        }
    }
}

impl From<PartitionDescription> for v1::PartitionDescription {
    fn from(description: PartitionDescription) -> Self {
        Self {
            partition: description.partition.get(),
            leader: description.leader.map(v1::Node::from),
            leader_epoch: description.leader_epoch.get(),
            replicas: description.replicas.iter().map(|id| id.get()).collect(),
            log_start_offset: description.log_start.get(),
            high_watermark: description.high_watermark.get(),
            size_bytes: description.size_bytes,
            damage: description.trouble.unwrap_or_default(),
            leaving: description.leaving.iter().map(|id| id.get()).collect(),
            joining: description.joining.iter().map(|id| id.get()).collect(),
            lagging: description.lagging.iter().map(|id| id.get()).collect(),
        }
    }
}

impl From<&NodeDescription> for v1::NodeState {
    fn from(node: &NodeDescription) -> Self {
        Self {
            id: node.address.id.get(),
            rack: node.rack.clone(),
            reached: node.reached,
            draining: node.draining,
            metadata_voter: node.voter,
            replicas: node.replicas,
            leaders: node.leads,
            trouble: node.trouble.clone().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use quipu_model::TimestampMs;
    use quipu_proto::v1;

    use super::{produce, take_apart};
    use crate::{
        core::Payload,
        error::{BrokerError, Reason},
    };

    fn request(records: Vec<v1::PlainRecord>) -> v1::ProduceRequest {
        v1::ProduceRequest {
            topic: "t".to_owned(),
            payload: Some(v1::produce_request::Payload::Records(v1::PlainRecords {
                records,
            })),
            ..v1::ProduceRequest::default()
        }
    }

    fn convert(request: v1::ProduceRequest) -> Result<Payload, BrokerError> {
        let (_, topic, fields) = take_apart(request);
        produce(&topic, fields, TimestampMs::new(77)).map(|produce| produce.payload)
    }

    #[test]
    fn plain_records_become_a_valid_batch() {
        let header = v1::Header {
            key: "h".to_owned(),
            value: None,
        };
        let record = v1::PlainRecord {
            key: Some(b"k".as_slice().into()),
            value: None,
            headers: vec![header.clone(), header],
            timestamp_ms: None,
        };
        let dated = v1::PlainRecord {
            timestamp_ms: Some(5),
            ..record.clone()
        };
        let Payload::Built(batch) = convert(request(vec![record, dated])).unwrap() else {
            panic!("records are batched");
        };
        batch.validate_records().unwrap();
        let records: Vec<_> = batch.records().unwrap().map(Result::unwrap).collect();
        assert_eq!(records[0].timestamp, TimestampMs::new(77));
        assert_eq!(records[1].timestamp, TimestampMs::new(5));
        assert_eq!(records[0].key.as_deref(), Some(b"k".as_slice()));
        assert_eq!(records[0].value, None);
        assert_eq!(records[0].headers.len(), 2);
    }

    #[test]
    fn requests_that_say_nothing_are_refused() {
        let no_payload = v1::ProduceRequest::default();
        assert_eq!(
            convert(no_payload).unwrap_err().reason,
            Reason::InvalidRequest
        );
        let no_records = request(Vec::new());
        assert_eq!(
            convert(no_records).unwrap_err().reason,
            Reason::InvalidBatch
        );
        let unknown_acks = v1::ProduceRequest {
            acks: 9,
            ..request(vec![v1::PlainRecord::default()])
        };
        assert_eq!(
            convert(unknown_acks).unwrap_err().reason,
            Reason::InvalidRequest
        );
    }
}
