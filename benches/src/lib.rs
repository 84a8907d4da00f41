//! Measures Quipu beside the limits of the machine it runs on, in one run: what a bare gRPC stream moves and what a bare disk
//! syncs. `src/bin/end_to_end.rs` is the driver.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark measures the real machine"
)]

pub mod bare;
pub mod batches;
pub mod broker;
pub mod disk;
pub mod load;
pub mod process;
pub mod report;
pub mod scenarios;
