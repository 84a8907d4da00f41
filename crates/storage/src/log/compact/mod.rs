//! Compaction: of closed segments, only the newest record of each key is kept.
//!
//! A [`Plan`] says which segments, a [`Pass`] does it, step by step. It first reads what was not compacted yet and notes the newest
//! offset of each key ([`keys`]), then goes through all segments from the oldest on and writes anew those that lose records.
//! Nothing is renumbered: a batch keeps its offsets, and where it would lose its last record it stays as an empty one if readers or
//! producers need it ([`clean`]).
//!
//! A new segment is written beside those that it stands for, under a name of its own, and sealed before it takes their place in
//! memory; a checkpoint makes that durable, all at once, and only then are the old files removed. A crash at any point leaves
//! one or the other. What was compacted when is a part of the same state, so that a tombstone never goes before what it deletes.
//!
//! Only what Raft has purged is compacted: whoever lacks it is given records, not entries.

mod clean;
mod keys;
mod output;
mod pass;
mod plan;
mod source;

pub(crate) use self::{
    pass::{Pass, PassError},
    plan::Plan,
};
