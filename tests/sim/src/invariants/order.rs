//! A producer's records are in the order in which it sent them, and offsets have no gaps.

use std::collections::BTreeMap;

use quipu_model::{NodeId, Offset, ProducerId, RecordBatch};

use super::{Check, violated};
use crate::load::Numbered;

const NAME: &str = "order";

/// The number that is due of each producer.
#[derive(Debug, Default)]
pub(super) struct Order {
    due: BTreeMap<ProducerId, u64>,
}

impl Order {
    pub(super) fn appended(&mut self, batch: &RecordBatch, numbered: &Numbered) -> Check {
        let producer = batch.header().producer_id;
        let due = self.due.entry(producer).or_default();
        if numbered.first != *due {
            return violated(
                NAME,
                format!(
                    "producer {producer}'s record {} is at offset {} where {due} was due",
                    numbered.first,
                    batch.header().base_offset
                ),
            );
        }
        *due = numbered.last + 1;
        Ok(())
    }
}

/// Of what was read from `from` on, the first batch holds it, and each further one follows the one before.
pub(super) fn follows(
    node: NodeId,
    from: Offset,
    next: Option<Offset>,
    batch: &RecordBatch,
) -> Check {
    let (base, end) = (batch.header().base_offset, batch.header().next_offset());
    let holds = match next {
        Some(next) => base == next,
        None => base <= from && from < end,
    };
    if holds {
        return Ok(());
    }
    let due = next.unwrap_or(from);
    violated(
        NAME,
        format!("node {node} shows offsets {base} to {end} where {due} was due"),
    )
}

/// The same where records may be gone: the first batch holds what was due or comes after it.
pub(super) fn goes_on(
    node: NodeId,
    from: Offset,
    next: Option<Offset>,
    batch: &RecordBatch,
) -> Check {
    let (base, end) = (batch.header().base_offset, batch.header().next_offset());
    if end > from && next.is_none_or(|next| base >= next) {
        return Ok(());
    }
    let due = next.unwrap_or(from);
    violated(
        NAME,
        format!("node {node} shows offsets {base} to {end} where {due} was due"),
    )
}
