//! No acknowledged record is lost.

use std::collections::BTreeMap;

use quipu_model::{Offset, ProducerId, RecordBatch, Term, batch::BatchHeader};

use super::{Check, unchanged::Log, violated};
use crate::load::Numbered;

const NAME: &str = "acknowledged";

/// What a producer was told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acknowledgement {
    pub(crate) base: Offset,
    pub(crate) producer: ProducerId,
    /// The number of the first record, and how many there are.
    pub(crate) first: u64,
    pub(crate) records: u32,
    /// The term that the node was in which answered, or a later one.
    pub(crate) term: Term,
}

/// What was acknowledged, and not yet seen in the log.
#[derive(Debug, Default)]
pub(super) struct Acknowledged {
    waiting: BTreeMap<Offset, Acknowledgement>,
    /// The first numbers of what is in the log, by base offset.
    firsts: BTreeMap<Offset, u64>,
    records: u64,
}

impl Acknowledged {
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    pub(super) fn told(&mut self, told: Acknowledgement, log: &Log) -> Check {
        self.records += u64::from(told.records);
        if told.base < log.end() {
            return self.compare(&told, log.batch(told.base));
        }
        if let Some(other) = self.waiting.insert(told.base, told) {
            return violated(NAME, format!("{told:?} and {other:?} have one offset"));
        }
        Ok(())
    }

    pub(super) fn appended(&mut self, batch: &RecordBatch, numbered: &Numbered) -> Check {
        let header = batch.header();
        self.firsts.insert(header.base_offset, numbered.first);
        let end = header.next_offset();
        while let Some(entry) = self.waiting.first_entry()
            && *entry.key() < end
        {
            let told = entry.remove();
            let there = (told.base == header.base_offset).then_some(header);
            self.compare(&told, there)?;
        }
        Ok(())
    }

    fn compare(&self, told: &Acknowledgement, there: Option<&BatchHeader>) -> Check {
        let fits = there.is_some_and(|header| {
            header.producer_id == told.producer
                && header.record_count == told.records
                && self.firsts.get(&told.base) == Some(&told.first)
        });
        if fits {
            return Ok(());
        }
        violated(NAME, format!("{told:?}, but at its offset is {there:?}"))
    }

    /// All was read that there is.
    pub(super) fn ended(&self, log: &Log) -> Check {
        match self.waiting.values().next() {
            None => Ok(()),
            Some(lost) => violated(
                NAME,
                format!(
                    "{} batches are not there, the first: {lost:?}; the log ends at {}",
                    self.waiting.len(),
                    log.end()
                ),
            ),
        }
    }
}
