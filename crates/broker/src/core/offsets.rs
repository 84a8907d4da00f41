//! Offsets by position or time.

use quipu_model::{LeaderEpoch, Offset, PartitionId, TimestampMs};

use super::Core;
use crate::{
    error::{BrokerError, Reason},
    metadata::internal_topic,
};

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetQuery {
    /// The first offset still kept.
    Earliest,
    /// The offset after the last committed record.
    Latest,
    /// The first record with this timestamp or a later one.
    At(TimestampMs),
    /// The first of the records with the greatest timestamp.
    Newest,
}

/// Where an epoch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    /// The newest epoch that is not newer than the one asked for.
    pub epoch: LeaderEpoch,
    /// The first offset of a later epoch; where there is none, the high watermark.
    pub end: Offset,
}

/// An offset found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    pub offset: Offset,
    /// The record's timestamp, where a record was looked for and found.
    pub timestamp: Option<TimestampMs>,
}

impl Core {
    /// Deletes the records of a partition before an offset (`None`: all that is committed), for good, on all replicas. Answers with
    /// the first offset then kept, which may be a later one.
    ///
    /// # Errors
    /// Where the partition is not led here, or the offset lies behind what is committed.
    pub(crate) async fn delete_records(
        &self,
        topic: &str,
        partition: PartitionId,
        before: Option<Offset>,
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
        let before = before.unwrap_or(end);
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
            OffsetQuery::Newest => {
                let record = partition.newest_record().await?;
                record.map_or(bare(latest), |record| ListedOffset {
                    offset: record.offset,
                    timestamp: Some(record.timestamp),
                })
            }
        })
    }

    /// Looks up where an epoch ends; `None` where it is newer than all that there were.
    ///
    /// # Errors
    /// Where the partition is not served.
    pub(crate) async fn end_of_epoch(
        &self,
        topic: &str,
        partition: PartitionId,
        epoch: LeaderEpoch,
    ) -> Result<Option<EpochEnd>, BrokerError> {
        let found = self.find(topic, partition)?;
        let partition = &found.running.partition;
        if let Some(error) = self.led_elsewhere(partition) {
            return Err(error);
        }
        let end = partition.end_of_epoch(epoch).await?;
        Ok(end.map(|found| EpochEnd {
            epoch: found.term.leader_epoch(),
            end: found.end,
        }))
    }
}
