//! The record batch codec.

use anyhow::{Result, ensure};
use bytes::Bytes;
use quipu_model::RecordBatch;

use crate::{
    Target,
    mutate::Random,
    samples::{batches, mutated},
};

pub(crate) struct Batches {
    samples: Vec<Vec<u8>>,
}

impl Batches {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            samples: batches()?,
        })
    }
}

impl Target for Batches {
    /// What is accepted can be read whole, with as many records as it says.
    fn feed(&mut self, random: &mut Random) -> Result<()> {
        let bytes = Bytes::from(mutated(&self.samples, random));
        let Ok(batch) = RecordBatch::from_bytes(bytes.clone()) else {
            return Ok(());
        };
        ensure!(batch.bytes() == &bytes, "a batch of other bytes");
        let accepted = batch.validate_records().is_ok();
        let Ok(records) = batch.records() else {
            ensure!(!accepted, "accepted, but its records can't be had");
            return Ok(());
        };
        let mut next = batch.header().base_offset;
        let mut count = 0;
        for record in records {
            let Ok(record) = record else {
                ensure!(!accepted, "accepted, but record {count} can't be read");
                return Ok(());
            };
            // Compaction leaves holes, and the order.
            let in_turn = record.offset >= next && record.offset < batch.header().next_offset();
            ensure!(in_turn, "an offset out of turn");
            next = record.offset.plus(1);
            count += 1;
        }
        ensure!(
            !accepted || count == u64::from(batch.header().record_count),
            "accepted with {count} records"
        );
        Ok(())
    }
}
