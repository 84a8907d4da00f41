//! A node: its metadata, its partitions, and the fronts through which clients reach them.
//!
//! The door is [`Broker`]: started from a [`BrokerConfig`], it serves until it is shut down, or until
//! [`Broker::failed`] says that the process must end.
#![forbid(unsafe_code)]

mod cluster;
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
mod peer;
mod retention;
mod standing;
mod startup;

pub use config::{BrokerConfig, Membership};
pub use error::{BrokerError, NodeAddress, NodeFailure, Outcome, Reason};
pub use node::{Addresses, Broker};
pub use startup::StartError;
