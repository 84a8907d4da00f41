//! Where a partition is compacted, a record stands at one offset for ever, its producer's in their order; and in the end each replica
//! shows the newest of every key, but for tombstones, which go after a while.

use std::collections::BTreeMap;

use bytes::Bytes;
use quipu_model::{NodeId, Offset, ProducerId, RecordBatch, batch::split_batches};

use super::{Acknowledgement, Check, violated};
use crate::keyed;

const NAME: &str = "compacted";

/// A producer's record, by its number.
type Sent = (ProducerId, u64);

/// All records that were acknowledged or seen.
#[derive(Debug, Default)]
pub(super) struct Compacted {
    offsets: BTreeMap<Sent, Offset>,
    records: BTreeMap<Offset, Sent>,
    acknowledged: u64,
}

impl Compacted {
    /// How many records were acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(super) fn told(&mut self, told: &Acknowledgement) -> Check {
        self.acknowledged += u64::from(told.records);
        for n in 0..u64::from(told.records) {
            self.stands(told.base.plus(n), (told.producer, told.first + n))?;
        }
        Ok(())
    }

    /// A node showed a batch.
    pub(super) fn seen(&mut self, batch: &RecordBatch) -> Check {
        let producer = batch.header().producer_id;
        for (record, number) in keyed::records(batch)? {
            self.stands(record.offset, (producer, number))?;
        }
        Ok(())
    }

    fn stands(&mut self, offset: Offset, sent: Sent) -> Check {
        let elsewhere = self.offsets.insert(sent, offset);
        let other = self.records.insert(offset, sent);
        if elsewhere.is_some_and(|before| before != offset) || other.is_some_and(|it| it != sent) {
            return violated(
                NAME,
                format!("{sent:?} is at {offset}, where {other:?} was, and was at {elsewhere:?}"),
            );
        }
        let (producer, number) = sent;
        let before = self.offsets.range((producer, 0)..sent).next_back();
        let after = self
            .offsets
            .range((producer, number + 1)..=(producer, u64::MAX))
            .next();
        if before.is_some_and(|(_, at)| *at > offset) || after.is_some_and(|(_, at)| *at < offset) {
            return violated(
                NAME,
                format!("{sent:?} is at {offset}, between {before:?} and {after:?}"),
            );
        }
        Ok(())
    }

    /// The end of a run: all was read that is there.
    pub(super) fn ended(&self, logs: &BTreeMap<NodeId, Bytes>) -> Check {
        let records = self.records.iter();
        let newest: BTreeMap<u64, (Offset, bool)> = records
            .map(|(offset, (producer, number))| {
                let (key, is_tombstone) = keyed::key(*producer, *number);
                (key, (*offset, is_tombstone))
            })
            .collect();
        for (node, log) in logs {
            let mut shown = BTreeMap::new();
            for batch in split_batches(log.clone()).flatten() {
                for (record, number) in keyed::records(&batch)? {
                    let (key, _) = keyed::key(batch.header().producer_id, number);
                    shown.insert(key, record.offset);
                }
            }
            for (key, (offset, is_tombstone)) in &newest {
                match shown.get(key) {
                    Some(at) if at == offset => {}
                    None if *is_tombstone => {}
                    at => {
                        return violated(
                            NAME,
                            format!(
                                "node {node} shows key {key} at {at:?}, and it was last written at {offset}"
                            ),
                        );
                    }
                }
            }
        }
        Ok(())
    }
}
