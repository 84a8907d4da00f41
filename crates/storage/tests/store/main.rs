//! The store through its door, on a disk that fails: what was acknowledged is there and right, or it is said that it is not.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails where it stands"
)]

mod cut;
mod damage;
mod failing_disk;
mod full_disk;
mod golden;
mod inspect;
mod open;
mod partitions;
mod repair;
mod replace;
mod support;
mod take_over;
mod time;
