//! A node: its metadata, its partitions, and the fronts through which clients reach them.
//!
//! The door is [`Broker`]: started from a [`BrokerConfig`], it serves until it is shut down, or until
//! [`Broker::failed`] says that the process must end.
#![forbid(unsafe_code)]

mod config;
mod core;
mod error;
mod grpc;
mod http;
mod memory;
mod metadata;
mod metrics;
mod node;
mod partitions;
#[cfg_attr(
    not(test),
    expect(dead_code, unused_imports, reason = "the node does not link yet")
)]
mod peer;
mod retention;

pub use config::BrokerConfig;
pub use error::{BrokerError, NodeAddress, NodeFailure, Outcome, Reason};
pub use node::{Addresses, Broker, StartError};
