//! What was read once at an offset is read there always, on every node.

use std::collections::BTreeMap;

use quipu_model::{NodeId, Offset, RecordBatch, batch::BatchHeader};

use super::violated;
use crate::invariants::Violation;

pub(super) const NAME: &str = "unchanged";

/// The log as readers saw it.
#[derive(Debug, Default)]
pub(super) struct Log {
    batches: BTreeMap<Offset, BatchHeader>,
    end: Offset,
}

impl Log {
    /// Up to where it was seen.
    pub(super) fn end(&self) -> Offset {
        self.end
    }

    pub(super) fn batch(&self, base: Offset) -> Option<&BatchHeader> {
        self.batches.get(&base)
    }

    /// A node showed a batch. Whether nobody had seen it before.
    pub(super) fn seen(&mut self, node: NodeId, batch: &RecordBatch) -> Result<bool, Violation> {
        let header = batch.header();
        if header.base_offset >= self.end {
            // The checksum in the header was found to fit the rest.
            self.batches.insert(header.base_offset, *header);
            self.end = header.next_offset();
            return Ok(true);
        }
        match self.batches.get(&header.base_offset) {
            Some(before) if before == header => Ok(false),
            before => violated(
                NAME,
                format!("node {node} shows {header:?} where {before:?} was read before"),
            ),
        }
    }
}
