//! How far a group has read.

use std::collections::BTreeMap;

use quipu_model::{LeaderEpoch, Offset, PartitionKey, TimestampMs};

use super::names::GroupError;

/// Where a group goes on with a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// With the record of this offset.
    At(Offset),
    /// As its client does that has no offset. The number is below 0, and means something to that client only: kafkajs stores -2 to
    /// begin with the first record, and -1 to begin at the end.
    Open(i64),
}

impl Place {
    /// As Kafka's protocol has it.
    pub fn of(number: i64) -> Self {
        u64::try_from(number).map_or(Self::Open(number), |offset| Self::At(Offset::new(offset)))
    }

    /// As Kafka's protocol has it.
    pub fn number(self) -> i64 {
        match self {
            // Larger ones are refused.
            Self::At(offset) => i64::try_from(offset.get()).unwrap_or(i64::MAX),
            Self::Open(number) => number,
        }
    }
}

/// How far a group has read a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub place: Place,
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
        if let Place::At(offset) = self.place
            && i64::try_from(offset.get()).is_err()
        {
            return Err(GroupError::Invalid(format!(
                "offset {offset} is refused: there is none past {}",
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
