//! What the wire carries is what was meant, and nothing else is taken.

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use prost::Message;
use quipu_proto::peer::v1::{
    Append, Entry, EntryKind, Group, Hello, Led, LogId, Request, Requests, Vote, VoteRequest,
    request::Kind,
};
use tonic::body::Body;

use super::super::frame::{MESSAGE_BYTES, Messages, encode_requests};

fn entry(bytes: usize) -> Entry {
    Entry {
        term: 3,
        index: 300,
        kind: EntryKind::Batch.into(),
        data: vec![7; bytes].into(),
    }
}

fn requests() -> Requests {
    let vote = Some(Vote {
        term: 3,
        node_id: 1,
        committed: true,
    });
    let group = Some(Group {
        topic_id: Bytes::from_static(&[7; 16]),
        partition: 2,
    });
    let append = |entries| {
        Kind::Append(Append {
            leader: vote,
            previous: Some(LogId { term: 2, index: 9 }),
            committed: None,
            entries,
        })
    };
    let request = |call, kind| Request {
        call,
        group: group.clone(),
        last: call == 2,
        kind: Some(kind),
    };
    Requests {
        hello: Some(Hello {
            version: 1,
            cluster_id: Some(Bytes::new()),
            ..Hello::default()
        }),
        requests: vec![
            request(1, append(vec![entry(0), entry(10), entry(5000)])),
            request(2, append(Vec::new())),
            request(
                3,
                Kind::Vote(VoteRequest {
                    candidate: vote,
                    ..VoteRequest::default()
                }),
            ),
            request(4, append(vec![entry(3 << 20), entry(1)])),
            Request::default(),
        ],
        led: vec![Led {
            group: group.clone(),
            leader_epoch: -1,
        }],
    }
}

async fn first(bytes: impl Into<Bytes>) -> Result<Option<Requests>, String> {
    let mut messages = Messages::new(Body::new(Full::new(bytes.into())));
    messages.next().await.map_err(|error| error.to_string())
}

fn framed(message: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::from(&[0][..]);
    bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

#[tokio::test]
async fn a_message_in_pieces_is_what_prost_would_send_and_shares_its_batches() {
    let message = requests();
    let pieces = encode_requests(&message);
    let Some(Kind::Append(append)) = &message.requests[0].kind else {
        panic!("not an append");
    };
    let shared = append.entries[2].data.as_ptr();
    assert!(pieces.iter().any(|piece| piece.as_ptr() == shared));
    let whole: BytesMut = pieces.into_iter().flatten().collect();
    assert_eq!(whole, framed(&message.encode_to_vec()));
    assert_eq!(first(whole).await, Ok(Some(message)));
}

#[tokio::test]
async fn a_message_is_read_from_frames_of_any_size_and_batches_that_lie_in_one_are_not_copied() {
    let message = requests();
    let whole = encode_requests(&message);
    let batch = whole.iter().find(|piece| piece.len() == 5000).unwrap();
    let batch = batch.as_ptr();
    let frames = whole
        .iter()
        .map(|piece| Ok::<_, tonic::Status>(piece.clone()));
    let frames = futures::stream::iter(frames.collect::<Vec<_>>());
    let frames = futures::StreamExt::map(frames, |piece| piece.map(http_body::Frame::data));
    let mut messages = Messages::new(Body::new(http_body_util::StreamBody::new(frames)));
    let read: Requests = messages.next().await.unwrap().unwrap();
    assert_eq!(read, message);
    let Some(Kind::Append(append)) = &read.requests[0].kind else {
        panic!("not an append");
    };
    assert_eq!(append.entries[2].data.as_ptr(), batch);
    assert!(messages.next::<Requests>().await.unwrap().is_none());

    let bytes: BytesMut = whole.into_iter().flatten().collect();
    for size in [1, 7, 4097] {
        let frames: Vec<_> = bytes
            .chunks(size)
            .map(|chunk| {
                Ok::<_, tonic::Status>(http_body::Frame::data(Bytes::copy_from_slice(chunk)))
            })
            .collect();
        let body = http_body_util::StreamBody::new(futures::stream::iter(frames));
        let read = Messages::new(Body::new(body)).next().await.unwrap();
        assert_eq!(read, Some(message.clone()), "frames of {size} bytes");
    }
}

#[tokio::test]
async fn rubbish_is_refused() {
    let refused = |bytes: &[u8]| {
        let bytes = Bytes::copy_from_slice(bytes);
        async move { first(bytes).await.unwrap_err() }
    };
    let whole = framed(&requests().encode_to_vec());
    for cut in [1, 4, 5, 6, 100, whole.len() - 1] {
        let error = refused(&whole[..cut]).await;
        assert!(error.contains("ended within a message"), "{cut}: {error}");
    }
    assert!(refused(&[1, 0, 0, 0, 0]).await.contains("flag 1"));
    let long = (MESSAGE_BYTES as u32 + 1).to_be_bytes();
    let error = refused(&[&[0], &long[..]].concat()).await;
    assert!(error.contains("the most is"), "{error}");
    // A field that claims more bytes than there are.
    refused(&framed(&[0x12, 0x7f, 1])).await;
    refused(&framed(&[0xff; 30])).await;
    // Two bytes each on the wire, and a hundred in memory.
    let error = refused(&framed(&[0x12, 0].repeat(1 << 17))).await;
    assert!(error.contains("131072 elements"), "{error}");
    let entries = [0x22, 0].repeat(1 << 17);
    let append = Request {
        kind: None,
        ..Request::default()
    };
    let mut request = append.encode_to_vec();
    prost::encoding::encode_key(4, prost::encoding::WireType::LengthDelimited, &mut request);
    prost::encode_length_delimiter(entries.len(), &mut request).unwrap();
    request.extend(entries);
    let mut message = vec![0x12];
    prost::encode_length_delimiter(request.len(), &mut message).unwrap();
    message.extend(request);
    let error = refused(&framed(&message)).await;
    assert!(error.contains("131072 elements"), "{error}");
}
