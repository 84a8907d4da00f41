//! What a request may claim, and that what is written can be read.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    DecodeError, Reader, Writer,
    messages::{
        fetch_request::{FetchPartition, FetchRequest, FetchTopic},
        fetch_response::{FetchResponse, FetchableTopicResponse, LeaderIdAndEpoch, PartitionData},
        metadata_request::{MetadataRequest, MetadataRequestTopic},
        produce_request::ProduceRequest,
    },
};

fn frame(parts: Vec<Bytes>) -> Bytes {
    let whole = parts.concat();
    Bytes::from(whole).slice(4..)
}

#[test]
fn requests_survive_in_every_version() {
    for version in FetchRequest::VERSIONS.0..=FetchRequest::VERSIONS.1 {
        let request = FetchRequest {
            max_wait_ms: 500,
            min_bytes: 1,
            max_bytes: 1 << 20,
            topics: vec![FetchTopic {
                topic: if version < 13 { "a".into() } else { "".into() },
                topic_id: if version < 13 { [0; 16] } else { [7; 16] },
                partitions: vec![FetchPartition {
                    partition: 3,
                    fetch_offset: 1 << 40,
                    partition_max_bytes: 1 << 20,
                    ..FetchPartition::default()
                }],
            }],
            ..FetchRequest::default()
        };
        let mut writer = Writer::default();
        request.encode(&mut writer, version);
        let mut reader = Reader::new(frame(writer.into_frame()));
        assert_eq!(
            FetchRequest::decode(&mut reader, version),
            Ok(request),
            "{version}"
        );
    }
}

#[test]
fn responses_lend_records_and_survive() {
    let records = Bytes::from(vec![9; 5000]);
    let response = FetchResponse {
        session_id: 5,
        responses: vec![FetchableTopicResponse {
            topic_id: [7; 16],
            partitions: vec![PartitionData {
                high_watermark: 12,
                current_leader: LeaderIdAndEpoch {
                    leader_id: 2,
                    leader_epoch: 9,
                },
                records: Some(records.clone()),
                ..PartitionData::default()
            }],
            ..FetchableTopicResponse::default()
        }],
        ..FetchResponse::default()
    };
    let mut writer = Writer::default();
    response.encode(&mut writer, 16);
    let parts = writer.into_frame();
    assert!(parts.iter().any(|part| part.as_ptr() == records.as_ptr()));
    let mut reader = Reader::new(frame(parts));
    assert_eq!(FetchResponse::decode(&mut reader, 16), Ok(response));
}

#[test]
fn a_count_that_lies_is_refused_before_memory_is_taken() {
    for count in [i32::MAX, 1 << 20, 5, -2] {
        let mut request = BytesMut::new();
        request.put_i32(count);
        request.put_slice(&[0, 0, 0, 0]);
        let mut reader = Reader::new(request.freeze());
        let read = MetadataRequest::decode(&mut reader, 1);
        assert_eq!(read, Err(DecodeError::BadLength), "{count}");
    }
}

#[test]
fn elements_that_take_far_more_than_their_bytes_are_refused() {
    // One byte each on the wire, in a request of the newest layout.
    let mut request = BytesMut::new();
    let count: u32 = 60_000;
    request.put_u8((count + 1) as u8 | 0x80);
    request.put_u8(((count + 1) >> 7) as u8 | 0x80);
    request.put_u8(((count + 1) >> 14) as u8);
    request.put_bytes(0, count as usize);
    let mut reader = Reader::new(request.freeze());
    let read = ProduceRequest::decode(&mut reader, 9);
    assert!(read.is_err());
    let mut reader = Reader::new(Bytes::from(vec![0; 100]));
    let read = reader.array(false, |_| Ok([0_u8; 4096]));
    assert_eq!(read, Ok(Some(Vec::new())));
    let mut lying = BytesMut::new();
    lying.put_i32(64);
    lying.put_bytes(0, 64);
    let mut reader = Reader::new(lying.freeze());
    let read = reader.array(false, |_| Ok([0_u8; 4096]));
    assert_eq!(read, Err(DecodeError::TooManyElements));
}

#[test]
fn topics_by_short_names_are_within_what_a_request_may_take() {
    for version in [0, 13] {
        let topic = |number: u32| MetadataRequestTopic {
            name: Some((&*format!("{}", number % 10)).into()),
            ..MetadataRequestTopic::default()
        };
        let request = MetadataRequest {
            topics: Some((0..10_000).map(topic).collect()),
            ..MetadataRequest::default()
        };
        let mut writer = Writer::default();
        request.encode(&mut writer, version);
        let mut reader = Reader::new(frame(writer.into_frame()));
        let read = MetadataRequest::decode(&mut reader, version);
        assert_eq!(
            read.map(|read| read.topics.map(|topics| topics.len())),
            Ok(Some(10_000))
        );
    }
}

#[test]
fn a_request_cut_short_anywhere_is_refused() {
    let request = MetadataRequest {
        topics: Some(vec![MetadataRequestTopic {
            name: Some("abc".into()),
            ..MetadataRequestTopic::default()
        }]),
        ..MetadataRequest::default()
    };
    let mut writer = Writer::default();
    request.encode(&mut writer, 12);
    let whole = frame(writer.into_frame());
    for length in 0..whole.len() {
        let mut reader = Reader::new(whole.slice(..length));
        assert!(
            MetadataRequest::decode(&mut reader, 12).is_err(),
            "{length}"
        );
    }
}
