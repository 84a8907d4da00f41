//! Consumer groups: what they have read, and reading as one.

mod admin;
mod config;
mod consumer;
mod coordinator;
mod driver;
mod progress;

pub use self::admin::{
    GroupDescription, GroupListing, GroupOffset, MemberDescription, TopicPartitions,
};
pub use self::{
    config::{Assignor, GroupConfig, RebalanceListener, TopicPartition},
    consumer::GroupConsumer,
};
pub(crate) use self::{consumer::Step, progress::is_lost};
