//! Offsets by position or time.

use quipu_model::{Offset, PartitionId, TimestampMs};

use super::Core;
use crate::error::BrokerError;

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetQuery {
    /// The first offset still kept.
    Earliest,
    /// The offset after the last committed record.
    Latest,
    /// The first record with this timestamp or a later one.
    At(TimestampMs),
}

/// An offset found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    pub offset: Offset,
    /// The record's timestamp, where a record was looked for and found.
    pub timestamp: Option<TimestampMs>,
}

impl Core {
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
