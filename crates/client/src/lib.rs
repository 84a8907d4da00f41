//! Producer, consumer and admin client for Quipu, over gRPC.
//!
//! Write records, and learn where each was stored:
//!
//! ```no_run
//! use quipu_client::{Client, ProducerConfig, Record};
//!
//! # async fn example() -> quipu_client::Result<()> {
//! let client = Client::connect("localhost:9093").await?;
//! let producer = client.producer(ProducerConfig::default()).await?;
//!
//! // `send` only waits for room in the buffer; the delivery tells what became of the record.
//! let delivery = producer
//!     .send(Record::new("orders").key(b"customer-7").value(b"2 apples"))
//!     .await?;
//! let stored = delivery.await?;
//! println!("partition {}, offset {:?}", stored.partition, stored.offset);
//!
//! producer.close().await
//! # }
//! ```
//!
//! Read a partition from its beginning to where it ends now, and again from any offset or time:
//!
//! ```no_run
//! use futures::StreamExt;
//! use quipu_client::{Assignment, Client, ConsumerConfig, End, Start};
//!
//! # async fn example() -> quipu_client::Result<()> {
//! let client = Client::connect("localhost:9093").await?;
//! let mut consumer = client.consumer(ConsumerConfig::default());
//! consumer
//!     .assign([Assignment::new("orders", 0, Start::Earliest).until(End::Latest)])
//!     .await?;
//! while let Some(record) = consumer.next().await {
//!     let record = record?;
//!     println!("{} {:?}", record.offset, record.value);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Where throughput matters more than one record at a time, [`Consumer::next_batch`] hands out the records of a whole batch.
//!
//! Create a topic:
//!
//! ```no_run
//! use quipu_client::{Client, NewTopic};
//!
//! # async fn example() -> quipu_client::Result<()> {
//! let client = Client::connect("localhost:9093").await?;
//! client.admin().create_topic(NewTopic::new("orders").partitions(6)).await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod admin;
mod backoff;
mod client;
mod cluster;
mod consumer;
mod dead_letters;
mod delay;
mod envelope;
mod error;
mod groups;
mod leaders;
mod once;
mod producer;
mod requests;
mod topics;
mod worker;

pub use admin::{
    Admin, ClusterDescription, ListedOffset, NewTopic, Node, NodeState, OffsetAt,
    PartitionDescription, Quota, QuotaChange, Topic, TopicDescription,
};
pub use client::{Client, ClientConfig};
pub use consumer::{
    Assignment, Consumer, ConsumerConfig, ConsumerRecord, End, OutOfRange, RecordChunk, Start,
};
pub use dead_letters::{DeadLetter, DeadLetters, Letters, Redriven};
pub use delay::{DelayRelay, Delayed};
pub use envelope::{Envelope, EnvelopeError, TraceContext, borrow_headers};
pub use error::{Error, ErrorReason, Outcome, Reason, Result};
pub use groups::{
    Assignor, GroupConfig, GroupConsumer, GroupDescription, GroupListing, GroupOffset,
    MemberDescription, RebalanceListener, TopicPartition, TopicPartitions,
};
pub use once::Once;
pub use producer::{
    Acks, Delivery, NumberedProducer, Producer, ProducerConfig, Record, RecordMetadata, murmur2,
    partition_for_key,
};
pub use quipu_model::{
    LeaderEpoch, Offset, ProducerId, TimestampMs,
    batch::{Compression, Record as StoredRecord, RecordHeader},
};
pub use requests::{Reply, RequestError, Requester, RequesterConfig, Responder};
pub use worker::{
    BreakerConfig, Failure, Handler, Order, Trail, Work, Worker, WorkerConfig, dead_letter_topic,
    exponential_delays,
};
