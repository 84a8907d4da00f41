//! Members of a group share partitions: no two process one at a time, no record is skipped, and an offset that was stored stays.

use std::collections::BTreeMap;

use quipu_broker::front::MemberId;
use quipu_model::{Offset, PartitionKey};
use tokio::time::Instant;

use super::{Check, violated};

/// What the members of the group have done.
#[derive(Debug, Default)]
pub(super) struct Shared {
    partitions: BTreeMap<PartitionKey, Work>,
}

/// What became of a partition that members share.
#[derive(Debug)]
struct Work {
    /// Whose it is, and until when, unless that member is heard of again.
    owner: Option<(MemberId, Instant)>,
    /// All records before it were processed.
    processed: Offset,
    /// The newest offset whose commit was acknowledged.
    stored: Offset,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            owner: None,
            processed: Offset::ZERO,
            stored: Offset::ZERO,
        }
    }
}

impl Shared {
    /// The newest offset that is known to be stored.
    pub(super) fn stored(&self, partition: PartitionKey) -> Offset {
        let work = self.partitions.get(&partition);
        work.map_or(Offset::ZERO, |work| work.stored)
    }

    /// A member was told that an offset is stored.
    pub(super) fn committed(&mut self, partition: PartitionKey, offset: Offset) {
        let work = self.partitions.entry(partition).or_default();
        work.stored = work.stored.max(offset);
    }

    /// A member was told to go on at an offset, when `stored` was known to be stored.
    pub(super) fn begins(
        &mut self,
        (member, partition): (&MemberId, PartitionKey),
        at: Offset,
        stored: Offset,
    ) -> Check {
        let work = self.partitions.entry(partition).or_default();
        if at < stored {
            let detail = format!(
                "{member} goes on with {partition} at {at}, and {stored} was acknowledged before"
            );
            return violated("committed", detail);
        }
        if at > work.processed {
            let detail = format!(
                "{member} goes on with {partition} at {at}, and it was processed up to {} only",
                work.processed
            );
            return violated("skipped", detail);
        }
        Ok(())
    }

    /// A member processes the records before `to`. The partition is its own until then, by all that it knows.
    pub(super) fn processes(
        &mut self,
        (member, partition): (&MemberId, PartitionKey),
        to: Offset,
        until: Instant,
    ) -> Check {
        let work = self.partitions.entry(partition).or_default();
        let other = work.owner.as_ref().filter(|(owner, _)| owner != member);
        if let Some((owner, theirs)) = other
            && *theirs > Instant::now()
        {
            let detail = format!("{member} processes {partition}, and so does {owner}");
            return violated("exclusive", detail);
        }
        work.owner = Some((member.clone(), until));
        work.processed = work.processed.max(to);
        Ok(())
    }

    /// A member processes a partition no longer.
    pub(super) fn lets_go(&mut self, (member, partition): (&MemberId, PartitionKey)) {
        let work = self.partitions.entry(partition).or_default();
        if work
            .owner
            .as_ref()
            .is_some_and(|(owner, _)| owner == member)
        {
            work.owner = None;
        }
    }
}
