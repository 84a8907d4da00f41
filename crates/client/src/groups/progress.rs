//! How far a member has got, shared between who hands out records and who stores offsets.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use quipu_model::Offset;
use quipu_proto::v1::GroupMember;
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::Instant,
};

use super::{
    admin::{GroupOffset, commit_offsets},
    config::TopicPartition,
};
use crate::{
    Result,
    cluster::Cluster,
    error::{Error, ErrorReason},
};

#[derive(Debug, Default)]
struct Place {
    /// The next record to process.
    processed: Option<Offset>,
    stored: Option<Offset>,
}

/// How far a member has got.
#[derive(Debug)]
pub(super) struct Progress {
    cluster: Arc<Cluster>,
    group: String,
    member: Mutex<GroupMember>,
    /// Who coordinates the group, as long as the member's session is open there.
    coordinator: Mutex<Option<Box<str>>>,
    places: Mutex<HashMap<TopicPartition, Place>>,
    /// Offsets are stored one after the other: none may overtake another.
    storing: AsyncMutex<()>,
    /// Since when whoever was handed a record, or was to show that he asks for one, has not asked.
    busy_since: Mutex<Option<Instant>>,
    /// Somebody asks for records again after a long time.
    pub(super) asked: Notify,
}

impl Progress {
    pub(super) fn new(cluster: Arc<Cluster>, group: String) -> Self {
        Self {
            cluster,
            group,
            member: Mutex::default(),
            coordinator: Mutex::default(),
            places: Mutex::default(),
            storing: AsyncMutex::default(),
            busy_since: Mutex::default(),
            asked: Notify::new(),
        }
    }

    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    pub(super) fn group(&self) -> &str {
        &self.group
    }

    pub(super) fn member(&self) -> GroupMember {
        self.member.lock().clone()
    }

    pub(super) fn set_member(&self, member: GroupMember) {
        *self.member.lock() = member;
    }

    pub(super) fn coordinator(&self) -> Option<Box<str>> {
        self.coordinator.lock().clone()
    }

    pub(super) fn set_coordinator(&self, address: Option<Box<str>>) {
        *self.coordinator.lock() = address;
    }

    /// Reading of a partition begins.
    pub(super) fn begin(&self, partition: TopicPartition) {
        self.places.lock().insert(partition, Place::default());
    }

    /// A partition is not the member's any more.
    pub(super) fn end(&self, partition: &TopicPartition) {
        self.places.lock().remove(partition);
    }

    /// Everything before `next` is processed.
    pub(super) fn processed(&self, partition: &TopicPartition, next: Offset) {
        if let Some(place) = self.places.lock().get_mut(partition) {
            place.processed = Some(next);
        }
    }

    /// Somebody was handed a record.
    pub(super) fn handed(&self) {
        *self.busy_since.lock() = Some(Instant::now());
    }

    /// Somebody asks for a record.
    pub(super) fn asks(&self) {
        *self.busy_since.lock() = None;
        self.asked.notify_one();
    }

    /// Whoever asks for records is to show it, unless that is open already; whether he is to be told.
    pub(super) fn inquire(&self) -> bool {
        let mut since = self.busy_since.lock();
        let open = since.is_some();
        since.get_or_insert_with(Instant::now);
        !open
    }

    /// For how long nobody has asked for a record.
    pub(super) fn busy_for(&self) -> Duration {
        let since = *self.busy_since.lock();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Stores how far these partitions, or all, are processed, where that is not stored yet.
    ///
    /// # Errors
    /// Where the coordinator refuses it, or does not answer in time.
    pub(super) async fn store(&self, only: Option<&[TopicPartition]>) -> Result<()> {
        let _turn = self.storing.lock().await;
        let due: Vec<(TopicPartition, Offset)> = {
            let places = self.places.lock();
            let wanted = places
                .iter()
                .filter(|(partition, _)| only.is_none_or(|only| only.contains(partition)));
            let due = wanted.filter(|(_, place)| place.processed != place.stored);
            due.filter_map(|(partition, place)| Some((partition.clone(), place.processed?)))
                .collect()
        };
        self.store_all(&due).await
    }

    /// Stores these offsets.
    ///
    /// # Errors
    /// Where the coordinator refuses them, or does not answer in time.
    pub(super) async fn store_offsets(&self, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        let _turn = self.storing.lock().await;
        self.store_all(offsets).await
    }

    async fn store_all(&self, offsets: &[(TopicPartition, Offset)]) -> Result<()> {
        if offsets.is_empty() {
            return Ok(());
        }
        let named = offsets.iter().map(|((topic, partition), offset)| {
            GroupOffset::new(topic.as_ref(), *partition, *offset)
        });
        let named: Vec<_> = named.collect();
        let member = Some(self.member());
        let coordinator = self.coordinator();
        commit_offsets(&self.cluster, &self.group, coordinator, member, &named).await?;
        let mut places = self.places.lock();
        for (partition, offset) in offsets {
            if let Some(place) = places.get_mut(partition) {
                place.stored = Some(*offset);
            }
        }
        Ok(())
    }
}

/// Whether an offset was refused because the partition is not the member's any more: whoever has it now goes on from what was
/// stored before.
pub(crate) fn is_lost(error: &Error) -> bool {
    [
        ErrorReason::PartitionNotOwned,
        ErrorReason::MemberFenced,
        ErrorReason::UnknownMember,
    ]
    .into_iter()
    .any(|reason| error.is(reason))
}
