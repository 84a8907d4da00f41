//! How far a group has read.

use std::collections::BTreeMap;

use quipu_model::{LeaderEpoch, Offset, PartitionKey, TimestampMs};

use super::names::GroupError;

/// How far a group has read a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The offset of the next record to read.
    pub offset: Offset,
    /// The epoch of the leader that the record before it came from.
    pub leader_epoch: Option<LeaderEpoch>,
    pub metadata: Box<str>,
    /// When it was stored.
    pub at: TimestampMs,
}

impl Committed {
    /// The longest metadata, in bytes.
    pub const MOST_METADATA_BYTES: usize = 4096;

    /// # Errors
    /// Where the offset or the metadata is out of bounds.
    pub(super) fn check(&self) -> Result<(), GroupError> {
        if i64::try_from(self.offset.get()).is_err() {
            return Err(GroupError::Invalid(format!(
                "offset {} is refused: there is none past {}",
                self.offset,
                i64::MAX
            )));
        }
        if self.metadata.len() > Self::MOST_METADATA_BYTES {
            return Err(GroupError::MetadataTooLong {
                length: self.metadata.len(),
                most: Self::MOST_METADATA_BYTES,
            });
        }
        Ok(())
    }

    /// About what it takes in memory, in bytes.
    fn size(&self) -> usize {
        128 + self.metadata.len()
    }
}

/// A group's offsets.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    by_partition: BTreeMap<PartitionKey, Committed>,
}

impl Offsets {
    pub(super) fn get(&self, partition: PartitionKey) -> Option<&Committed> {
        self.by_partition.get(&partition)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PartitionKey, &Committed)> {
        self.by_partition.iter().map(|(key, value)| (*key, value))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_partition.is_empty()
    }

    /// Sets or, without a value, forgets an offset. By how many bytes that grew what is kept, and by how many it shrank it.
    pub(super) fn set(
        &mut self,
        partition: PartitionKey,
        value: Option<Committed>,
    ) -> (usize, usize) {
        let grown = value.as_ref().map_or(0, Committed::size);
        let old = match value {
            Some(value) => self.by_partition.insert(partition, value),
            None => self.by_partition.remove(&partition),
        };
        (grown, old.map_or(0, |old| old.size()))
    }
}
