//! Offsets by position or time.

use quipu_model::{Offset, PartitionId, TimestampMs};

use super::Core;
use crate::{
    error::{BrokerError, Reason},
    metadata::internal_topic,
};

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OffsetQuery {
    /// The first offset still kept.
    Earliest,
    /// The offset after the last committed record.
    Latest,
    /// The first record with this timestamp or a later one.
    At(TimestampMs),
}

/// An offset found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListedOffset {
    pub(crate) offset: Offset,
    /// The record's timestamp, where a record was looked for and found.
    pub(crate) timestamp: Option<TimestampMs>,
}

/// Up to where records are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeleteBefore {
    /// This offset, which stays.
    Offset(Offset),
    /// All that is committed.
    HighWatermark,
}

impl Core {
    /// Deletes the records of a partition before an offset, on all replicas. Answers with the first offset then kept, which may
    /// be a later one.
    ///
    /// # Errors
    /// Where the partition is not led here, or the offset lies behind what is committed.
    pub(crate) async fn delete_records(
        &self,
        topic: &str,
        partition: PartitionId,
        before: DeleteBefore,
    ) -> Result<Offset, BrokerError> {
        let found = self.find(topic, partition)?;
        let topic = &found.topic.topic;
        if topic.name.is_internal() {
            return Err(internal_topic(&topic.name));
        }
        let partition = &found.running.partition;
        if let Some(error) = self.led_elsewhere(partition) {
            return Err(error);
        }
        let end = *partition.high_watermark().borrow();
        let before = match before {
            DeleteBefore::Offset(offset) => offset,
            DeleteBefore::HighWatermark => end,
        };
        if before > end {
            return Err(BrokerError::new(
                Reason::OffsetOutOfRange,
                format!(
                    "offset {before} is out of range: partition {} of {} holds offsets {} to {end}",
                    partition.key().partition,
                    topic.name,
                    partition.start_offset()
                ),
            ));
        }
        let deleting = partition.delete_before(before);
        deleting.await.map_err(|error| self.append_error(error))
    }

    /// Looks up an offset. Where no record is as late as the time asked for, it is the latest offset.
    ///
    /// # Errors
    /// Where the partition is not served.
    pub(crate) async fn list_offset(
        &self,
        topic: &str,
        partition: PartitionId,
        query: OffsetQuery,
    ) -> Result<ListedOffset, BrokerError> {
        let found = self.find(topic, partition)?;
        let partition = &found.running.partition;
        if let Some(error) = self.led_elsewhere(partition) {
            return Err(error);
        }
        let bare = |offset| ListedOffset {
            offset,
            timestamp: None,
        };
        let latest = *partition.high_watermark().borrow();
        Ok(match query {
            OffsetQuery::Earliest => bare(partition.start_offset()),
            OffsetQuery::Latest => bare(latest),
            OffsetQuery::At(timestamp) => {
                let record = partition.offset_for_timestamp(timestamp).await?;
                record.map_or(bare(latest), |record| ListedOffset {
                    offset: record.offset,
                    timestamp: Some(record.timestamp),
                })
            }
        })
    }
}
