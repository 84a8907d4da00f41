//! Compaction against a model: whatever happens, what readers see comes to the same newest record of each key.

#![allow(clippy::unwrap_used, reason = "tests")]

mod crash_points;
mod hand;
mod promises;
mod property;
mod repair;
mod subject;
