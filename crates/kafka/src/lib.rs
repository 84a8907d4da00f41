//! The Kafka wire protocol, over the broker's protocol-neutral core.
//!
//! The door is [`KafkaListener`]: bound before the node starts, since the cluster is told its address, and then attached to the
//! node with [`Broker::attach`](quipu_broker::Broker::attach).
#![forbid(unsafe_code)]

mod api;
mod config;
mod connection;
mod dispatch;
mod error;
mod frame;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod wire;

pub use dispatch::{served, try_frame};
pub use server::{KafkaConfig, KafkaListener};
