//! Follows the metadata partition and keeps the image up to its high watermark.

use std::{collections::HashSet, sync::Arc};

use arc_swap::ArcSwap;
use quipu_model::{NodeId, Offset, TopicId, batch::split_batches};
use quipu_proto::internal::v1::metadata_record::Record;
use quipu_replication::Partition;
use quipu_storage::{ReadBatches, ReadError};
use tokio::sync::watch;

use super::{
    image::{ImageError, MetadataImage},
    quotas::{Rate, Traffic},
    records::{self, DecodeError},
};

/// The newest image, and up to where the metadata partition went into it. Readers take it without a lock.
#[derive(Debug)]
pub(crate) struct Metadata {
    image: ArcSwap<MetadataImage>,
    applied: watch::Sender<Offset>,
}

impl Metadata {
    pub(crate) fn new(metadata_voters: &[NodeId]) -> Self {
        Self {
            image: ArcSwap::from_pointee(MetadataImage::empty(metadata_voters)),
            applied: watch::Sender::new(Offset::ZERO),
        }
    }

    #[cfg(test)]
    pub(crate) fn of(image: MetadataImage) -> Self {
        Self {
            image: ArcSwap::from_pointee(image),
            applied: watch::Sender::new(Offset::ZERO),
        }
    }

    /// The newest image.
    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        self.image.load_full()
    }

    /// The rate to which a client is held, if it is.
    pub(crate) fn rate(&self, client: &str, traffic: Traffic) -> Option<Rate> {
        self.image.load().quotas.rate(client, traffic)
    }

    /// The offset after the last record in the image. The image is at least as new as what is read here.
    pub(crate) fn applied(&self) -> watch::Receiver<Offset> {
        self.applied.subscribe()
    }

    /// Waits until a node is no longer part of the cluster.
    pub(crate) async fn removal_of(&self, node: NodeId) {
        let is_removed = |_: &Offset| self.image().removed_nodes.contains(&node);
        // The sender lives as long as the image.
        let _ = self.applied().wait_for(is_removed).await;
    }
}

/// Why the metadata cannot be followed any further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplayError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("the record at offset {offset} is refused: {error}")]
    Record { offset: Offset, error: ImageError },
}

/// Reads the metadata partition into the image.
#[derive(Debug)]
pub(crate) struct Replayer {
    partition: Partition,
    metadata: Arc<Metadata>,
    image: MetadataImage,
    next: Offset,
    high_watermark: watch::Receiver<Offset>,
    deleted: HashSet<TopicId>,
}

impl Replayer {
    const READ_BYTES: usize = 1 << 20;

    pub(crate) fn new(partition: Partition, metadata: Arc<Metadata>) -> Self {
        Self {
            image: MetadataImage::clone(&metadata.image()),
            next: partition.start_offset(),
            high_watermark: partition.high_watermark(),
            partition,
            metadata,
            deleted: HashSet::new(),
        }
    }

    /// Takes in everything below the high watermark and publishes the image.
    pub(crate) async fn catch_up(&mut self) -> Result<(), ReplayError> {
        let end = *self.high_watermark.borrow_and_update();
        while self.next < end {
            let read = self.read().await?;
            for batch in split_batches(read.bytes) {
                let batch = batch.map_err(DecodeError::from)?;
                for (offset, record) in records::from_batch(&batch)? {
                    self.take_in(offset, record)?;
                }
            }
            self.next = read.next_offset;
        }
        self.metadata.image.store(Arc::new(self.image.clone()));
        self.metadata.applied.send_replace(self.next);
        Ok(())
    }

    /// The next batches; where the partition is damaged, once it was repaired from other replicas.
    async fn read(&self) -> Result<ReadBatches, ReadError> {
        loop {
            let read = self.partition.read(self.next, Self::READ_BYTES).await;
            if !matches!(read, Err(ReadError::Damaged(_))) || self.partition.is_alone() {
                return read;
            }
            self.partition.wait_sound().await;
            if self.partition.damage().is_some() {
                return read;
            }
        }
    }

    fn take_in(
        &mut self,
        offset: Offset,
        record: quipu_proto::internal::v1::MetadataRecord,
    ) -> Result<(), ReplayError> {
        if offset < self.next {
            return Ok(());
        }
        if let Some(Record::TopicDeleted(topic)) = &record.record
            && let Ok(id) = <[u8; 16]>::try_from(&topic.topic_id[..])
        {
            self.deleted.insert(TopicId::from_bytes(id));
        }
        match self.image.apply(record) {
            Err(error) if error.is_void() => {
                tracing::warn!(%offset, %error, "a metadata record is void");
                Ok(())
            }
            result => result.map_err(|error| ReplayError::Record { offset, error }),
        }
    }

    /// The topics whose deletion was replayed since the last call: their files may have outlived a crash.
    pub(crate) fn take_deleted(&mut self) -> HashSet<TopicId> {
        std::mem::take(&mut self.deleted)
    }

    /// Follows the partition for ever; returns when it cannot, or when the partition is gone.
    pub(crate) async fn follow(mut self) -> Result<(), ReplayError> {
        while self.high_watermark.changed().await.is_ok() {
            self.catch_up().await?;
            self.deleted.clear();
        }
        Ok(())
    }
}
