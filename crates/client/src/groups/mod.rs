//! Consumer groups: what they have read, and reading as one.

mod admin;
mod coordinator;

pub use self::admin::{
    GroupDescription, GroupListing, GroupOffset, MemberDescription, TopicPartitions,
};
