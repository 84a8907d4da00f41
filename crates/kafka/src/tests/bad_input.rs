//! What a client gets for what is not the protocol, or lies: the protocol's own error or a closed connection, and the next one is served.

use std::time::Duration;

use bytes::Bytes;
use quipu_model::{
    TimestampMs,
    batch::{BatchBuilder, Compression, MAX_UNCOMPRESSED_BYTES},
};
use tokio::io::AsyncWriteExt;

use super::{METADATA_VERSION, batch, connect, error_and_offset, with_node};
use crate::{
    KafkaConfig,
    error::ErrorCode,
    wire::{
        Writer,
        messages::{metadata_request::MetadataRequest, request_header::RequestHeader},
    },
};

#[test]
fn what_is_not_the_protocol_is_closed() {
    with_node(KafkaConfig::default(), |address| async move {
        let bad: [&[u8]; 9] = [
            // TLS, HTTP, a length past the limit, a negative one, one too short for a header.
            &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01],
            b"GET / HTTP/1.1\r\n\r\n",
            &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 9],
            &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9],
            &[0, 0, 0, 4, 0, 0, 0, 9],
            // 4 MiB and a byte, of which only Produce may have so much.
            &[0, 0x40, 0, 1, 0, 3, 0, 1, 0, 0, 0, 1],
            // A version that is not served, where the client was told which ones are.
            &[0, 0, 0, 10, 0, 3, 0, 99, 0, 0, 0, 1, 0, 0],
            // An unknown key, and a count that lies.
            &[0, 0, 0, 10, 0x7f, 0xff, 0, 0, 0, 0, 0, 1, 0, 0],
            &[
                0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff,
            ],
        ];
        for bytes in bad {
            let mut client = connect(address).await;
            client.stream.write_all(bytes).await.unwrap();
            assert!(client.is_closed().await, "{bytes:?}");
        }
    });
}

#[test]
fn who_sends_slowly_or_nothing_is_closed() {
    let config = KafkaConfig {
        idle_timeout: Duration::from_millis(300),
        request_timeout: Duration::from_millis(300),
        ..KafkaConfig::default()
    };
    with_node(config, |address| async move {
        for bytes in [&[][..], &[0], &[0, 0, 1, 0, 0, 3, 0, 1, 0]] {
            let mut client = connect(address).await;
            client.stream.write_all(bytes).await.unwrap();
            assert!(client.is_closed().await, "{bytes:?}");
        }
    });
}

#[test]
fn who_sends_byte_by_byte_is_closed() {
    let config = KafkaConfig {
        request_timeout: Duration::from_millis(300),
        ..KafkaConfig::default()
    };
    with_node(config, |address| async move {
        let mut client = connect(address).await;
        client.stream.write_all(&[0, 0, 4, 0]).await.unwrap();
        // It would take a minute to come in.
        while client.stream.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_request_that_ends_early_is_not_done() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let whole = metadata_request();
        for length in 1..whole.len() {
            let mut cut = connect(address).await;
            cut.stream.write_all(&whole[..length]).await.unwrap();
            cut.stream.shutdown().await.unwrap();
            assert!(cut.is_closed().await, "{length}");
        }
        client.ask_metadata(7, "orders").await;
        assert_eq!(client.receive().await.0, 7);
    });
}

/// A request for what is known of all topics.
fn metadata_request() -> Bytes {
    let mut writer = Writer::default();
    let header = RequestHeader {
        request_api_key: MetadataRequest::KEY,
        request_api_version: METADATA_VERSION,
        correlation_id: 1,
        client_id: Some("test".into()),
    };
    header.encode(&mut writer, 1);
    MetadataRequest::default().encode(&mut writer, METADATA_VERSION);
    Bytes::from(writer.into_frame().concat())
}

#[test]
fn more_requests_than_are_at_work_at_a_time_are_all_answered_in_order() {
    let config = KafkaConfig {
        max_pipelined: 2,
        ..KafkaConfig::default()
    };
    with_node(config, |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        for id in 0..100 {
            client.produce(id, -1, "orders", batch("a")).await;
        }
        for id in 0..100 {
            let (answered, body) = client.receive().await;
            assert_eq!(answered, id);
            assert_eq!(error_and_offset(body), (0, i64::from(id)));
        }
    });
}

#[test]
fn who_asks_and_asks_and_takes_no_answers_is_closed() {
    let config = KafkaConfig {
        request_timeout: Duration::from_millis(300),
        ..KafkaConfig::default()
    };
    with_node(config, |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let many = metadata_request().repeat(100);
        // The node reads no more than it can answer: the pipes between fill up, and it gives up.
        while client.stream.write_all(&many).await.is_ok() {}
        let mut other = connect(address).await;
        other.ask_metadata(7, "orders").await;
        assert_eq!(other.receive().await.0, 7);
    });
}

#[test]
fn a_bad_batch_is_refused_and_the_connection_goes_on() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let mut damaged = batch("a").to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        client.produce(1, -1, "orders", damaged.into()).await;
        client.produce(2, 7, "orders", batch("a")).await;
        client.produce(3, -1, "nowhere", batch("a")).await;
        client.produce(4, -1, "orders", batch("a")).await;
        let mut errors = Vec::new();
        for _ in 0..4 {
            errors.push(error_and_offset(client.receive().await.1).0);
        }
        assert_eq!(
            errors,
            [
                ErrorCode::InvalidRecord.code(),
                ErrorCode::InvalidRequiredAcks.code(),
                ErrorCode::UnknownTopicOrPartition.code(),
                0
            ]
        );
    });
}

/// The right checksum for what stands behind it.
fn sealed(mut bytes: Vec<u8>) -> Bytes {
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

#[test]
fn a_batch_that_lies_is_refused_and_the_connection_goes_on() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let sound = batch("knot");
        let with = |at: usize, bytes: &[u8]| {
            let mut changed = sound.to_vec();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            sealed(changed)
        };
        let length = |change: i32| {
            let said = i32::from_be_bytes(sound[8..12].try_into().unwrap());
            with(8, &(said + change).to_be_bytes())
        };
        let lies = [
            // Nothing, less than a header, cut short.
            Bytes::new(),
            sound.slice(..20),
            sound.slice(..sound.len() - 1),
            // Lengths: too long, too short, none, negative, as large as can be.
            length(1),
            length(-1),
            with(8, &0_i32.to_be_bytes()),
            with(8, &(-1_i32).to_be_bytes()),
            with(8, &i32::MAX.to_be_bytes()),
            // Counts: of more records than there are, of none, negative, as many as can be.
            with(57, &2_i32.to_be_bytes()),
            with(57, &0_i32.to_be_bytes()),
            with(57, &(-1_i32).to_be_bytes()),
            with(57, &i32::MAX.to_be_bytes()),
            // Another layout, a codec that nobody knows, and one that the bytes are not of.
            with(16, &[9]),
            with(22, &[7]),
            with(22, &[4]),
        ];
        for (number, lie) in lies.into_iter().enumerate() {
            client.produce(1, -1, "orders", lie).await;
            let (error, offset) = error_and_offset(client.receive().await.1);
            assert_ne!(error, 0, "{number}");
            assert_eq!(offset, -1, "{number}");
        }
        client.produce(2, -1, "orders", sound.clone()).await;
        assert_eq!(error_and_offset(client.receive().await.1), (0, 0));
    });
}

#[test]
fn a_compressed_bomb_is_refused_and_the_connection_goes_on() {
    with_node(KafkaConfig::default(), |address| async move {
        let mut client = connect(address).await;
        client.create("orders").await;
        let value = vec![0; MAX_UNCOMPRESSED_BYTES + 1];
        for codec in [Compression::Zstd, Compression::Gzip, Compression::Lz4] {
            let mut bomb = BatchBuilder::new(codec);
            bomb.append(TimestampMs::new(1), None, Some(&value), &[]);
            let bomb = bomb.build().unwrap().into_bytes();
            assert!(bomb.len() < 1 << 20, "{codec}: {}", bomb.len());
            client.produce(1, -1, "orders", bomb).await;
            let refused = error_and_offset(client.receive().await.1);
            let invalid = ErrorCode::InvalidRecord.code();
            assert_eq!(refused, (invalid, -1), "{codec}");
        }
        client.produce(2, -1, "orders", batch("a")).await;
        assert_eq!(error_and_offset(client.receive().await.1), (0, 0));
    });
}
