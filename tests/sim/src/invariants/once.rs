//! No record is there twice, however often its producer sent it.

use std::collections::BTreeMap;

use quipu_model::{ProducerId, RecordBatch};

use super::{Check, violated};
use crate::load::Numbered;

const NAME: &str = "once";

/// The numbers of the last records seen.
#[derive(Debug, Default)]
pub(super) struct Once {
    last: BTreeMap<ProducerId, u64>,
}

impl Once {
    pub(super) fn appended(&mut self, batch: &RecordBatch, numbered: &Numbered) -> Check {
        let producer = batch.header().producer_id;
        if let Some(last) = self.last.get(&producer)
            && numbered.first <= *last
        {
            return violated(
                NAME,
                format!(
                    "producer {producer}'s record {} is at offset {} again",
                    numbered.first,
                    batch.header().base_offset
                ),
            );
        }
        self.last.insert(producer, numbered.last);
        Ok(())
    }
}
