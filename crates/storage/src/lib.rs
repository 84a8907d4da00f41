//! One node's disk: a write-ahead log shared by all partitions, and a log of segments for each of them.
//!
//! The door is [`Store`]: opened from a data directory ([`UnrecoveredStore::open`], then
//! [`recover`](UnrecoveredStore::recover)), it hands out a [`PartitionLog`] for each partition. An append writes the batch to
//! its segment through the page cache and queues it for the write-ahead log, which makes the records of all partitions durable
//! together; a checkpoint later lets the write-ahead log forget them. Reads lend slices of the segments' maps.

pub mod inspect;
pub mod io;
mod log;
mod store;
mod wal;

pub use log::{
    AppendError, Applied, BadCopy, Control, ControlKind, DamagedLog, EntryInfo, EntryKind,
    LogEntry, LogState, MAX_PRODUCER_BATCHES, Mending, PartitionLog, Payload, ProducerBatch,
    ProducerTail, ReadBatches, ReadError, RepairError, Reservation, ReserveError, RetentionPolicy,
    TimestampedOffset, check_copied,
};
pub use store::{OpenError, PartitionDamage, RecoveryReport, Store, StoreConfig, UnrecoveredStore};
pub use wal::{Completion, StorageFailure};
