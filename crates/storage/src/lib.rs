//! One node's disk: a write-ahead log shared by all partitions, and a log of segments for each of them.
//!
//! The door is [`Store`]: opened from a data directory ([`UnrecoveredStore::open`], then
//! [`recover`](UnrecoveredStore::recover)), it hands out a [`PartitionLog`] for each partition.
pub mod io;
mod log;
mod store;
mod wal;

pub use log::{
    AppendError, Control, ControlKind, EntryInfo, EntryKind, LogEntry, LogState, PartitionLog,
    Payload, ProducerTail, ReadBatches, ReadError, Reservation, ReserveError, RetentionPolicy,
    TimestampedOffset,
};
pub use store::{OpenError, PartitionDamage, RecoveryReport, Store, StoreConfig, UnrecoveredStore};
pub use wal::{Completion, StorageFailure};
