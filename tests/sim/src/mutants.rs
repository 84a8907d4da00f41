//! Code that is wrong on purpose: each mutant must be caught by an invariant that is there for it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use futures::{StreamExt, channel::mpsc, stream::BoxStream};
use quipu_model::{
    ProducerEpoch,
    batch::{Retained, split_batches},
};
use quipu_replication::{AppendOutcome, AppendParts, Partition};
use quipu_storage::{ControlKind, Payload};

use crate::wire::{Outcomes, receive};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mutant {
    /// Disks answer a sync and do nothing, once a node is up.
    LosesSyncs,
    /// Followers answer appends before these are flushed.
    AnswersBeforeFlush,
    /// A replica votes for everyone who asks.
    VotesTwice,
    /// A producer gives what it sends again a new sequence.
    RenumbersRetries,
    /// A producer takes the leader's own append for an acknowledgement.
    TrustsTheLeader,
    /// Readers are shown what is not committed.
    ReadsPastTheMark,
    /// Creations, removals and renames of files are not made durable.
    SkipsNameSyncs,
    /// A node shows a reader what comes after the records it asked for.
    SkipsRecords,
    /// A node shows a reader other bytes than it holds.
    FlipsBits,
    /// A node comes back from a crash with an empty disk.
    ForgetsItsDisk,
    /// One node gets other batches than the leader holds.
    AltersBatches,
    /// Two nodes never reach each other or the others again.
    StaysCut,
    /// A node's leader shows a high watermark of zero once.
    MarkGoesBack,
    /// A replica becomes a voter before it has caught up.
    VotesTooEarly,
    /// A move is said to be done, and the old replicas are removed, before the voters changed.
    FinishesUnmoved,
    /// Followers go from the old voters to the new ones at once.
    SkipsTheJointStep,
    /// A replica that was removed goes on.
    StaysBehind,
    /// A replica that comes back to a node that it left knows nothing of that.
    ReturnsAsBefore,
    /// A replica that lost its files says that it has what it had.
    ClaimsItsOldLog,
    /// Leadership is handed over to a replica that lacks entries.
    TransfersToOneBehind,
    /// Replicas are not told of nodes that are lost.
    HidesLosses,
    /// Groups never sleep.
    StaysAwake,
    /// What rotted is said to be as it is to be.
    TrustsDisk,
    /// In the end nothing is shown of one key.
    ForgetsAKey,
    /// What a repair makes does not take the place of what rotted.
    LeavesRot,
    /// A member of a group goes on with partitions that it says it gave up.
    KeepsWhatItGave,
    /// A member of a group takes offsets for stored, whatever it is answered.
    CommitsBlindly,
}

impl Mutant {
    /// Whether it shows only where bytes rot.
    pub(crate) fn needs_rot(self) -> bool {
        matches!(self, Self::TrustsDisk | Self::LeavesRot)
    }

    /// Whether it shows only where partitions are compacted.
    pub(crate) fn needs_compaction(self) -> bool {
        self == Self::ForgetsAKey
    }

    /// Whether it shows only where there is a consumer group.
    pub(crate) fn needs_groups(self) -> bool {
        matches!(self, Self::KeepsWhatItGave | Self::CommitsBlindly)
    }

    /// The invariants of which one must catch it first.
    pub(crate) fn caught_by(self) -> &'static [&'static str] {
        match self {
            // Votes are lost with the rest: a node may then vote twice in a term.
            Self::LosesSyncs | Self::ForgetsItsDisk => &[
                "acknowledged",
                "one-leader",
                "unchanged",
                "high-watermark",
                "recovery",
                "equal",
                "progress",
            ],
            // openraft's leader may be the first to see a follower's log go back, or sends it nothing any more; and its group does
            // not sleep where it is told more than there is.
            Self::AnswersBeforeFlush => &[
                "acknowledged",
                "unchanged",
                "high-watermark",
                "panic",
                "silent",
                "progress",
            ],
            Self::VotesTwice => &["one-leader"],
            // What is out of order is refused, for ever where nothing comes that is due.
            Self::RenumbersRetries => &["once", "progress"],
            Self::TrustsTheLeader => &["acknowledged", "high-watermark"],
            Self::ReadsPastTheMark => &["unchanged", "acknowledged"],
            Self::SkipsNameSyncs => &["recovery", "acknowledged", "high-watermark"],
            Self::SkipsRecords => &["order"],
            Self::FlipsBits => &["unchanged"],
            Self::AltersBatches => &["unchanged", "equal"],
            Self::StaysCut => &["progress", "agreed", "handover"],
            Self::MarkGoesBack => &["high-watermark"],
            Self::VotesTooEarly => &["caught-up"],
            Self::FinishesUnmoved => &["agreed", "acknowledged", "progress"],
            Self::SkipsTheJointStep => &["configurations"],
            Self::StaysBehind => &["removed"],
            // It votes for who missed its moves, or leads itself.
            Self::ReturnsAsBefore => &["acknowledged", "one-leader", "unchanged", "high-watermark"],
            // A leader that takes a claim for true sends what comes after it, and is refused: such a replica never catches up,
            // and leadership is not handed over to it.
            Self::ClaimsItsOldLog => &[
                "handover",
                "acknowledged",
                "unchanged",
                "equal",
                "panic",
                "agreed",
                "caught-up",
                "progress",
            ],
            Self::TransfersToOneBehind => &["handover"],
            Self::HidesLosses => &["wakes"],
            Self::StaysAwake => &["silent"],
            // A replica that is changed may be shown to nobody, but copied from.
            Self::TrustsDisk => &["unchanged", "equal", "whole"],
            Self::LeavesRot => &["whole"],
            Self::ForgetsAKey => &["compacted"],
            Self::KeepsWhatItGave => &["exclusive"],
            Self::CommitsBlindly => &["committed"],
        }
    }
}

/// Says of every request that it was flushed as soon as it has arrived, once the first showed that the logs agree.
pub(crate) fn answer_at_once(
    partition: Partition,
    parts: BoxStream<'static, AppendParts>,
) -> Outcomes {
    let (tell, told) = mpsc::unbounded();
    let (early, agreed) = (tell.clone(), Arc::new(AtomicBool::new(false)));
    let agree = Arc::clone(&agreed);
    // Nobody listens any more where sending fails.
    let parts = parts.map(move |parts| {
        if agreed.load(Ordering::Relaxed) {
            let last = parts.entries.last().map(|entry| entry.id);
            let answer = AppendOutcome::Matched(last.or(parts.previous));
            let _ = early.unbounded_send(Ok(answer));
        }
        parts
    });
    let mut answers = receive(partition, parts.boxed());
    tokio::spawn(async move {
        if let Some(first) = answers.next().await {
            let agrees = matches!(first, Ok(AppendOutcome::Matched(_)));
            agree.store(agrees, Ordering::Relaxed);
            let _ = tell.unbounded_send(first);
        }
        while let Some(answer) = answers.next().await {
            if !agree.load(Ordering::Relaxed) {
                let _ = tell.unbounded_send(answer);
            }
        }
    });
    told.boxed()
}

/// Leaves out what there is of the first key.
pub(crate) fn forget_a_key(bytes: &Bytes) -> Bytes {
    let mut left = BytesMut::new();
    for batch in split_batches(bytes.clone()).flatten() {
        let kept = batch.retain(|record| record.key.is_some_and(|key| key != [0; 8]));
        let batch = match kept {
            Ok(Retained::All(_)) => batch,
            Ok(Retained::Some(less, _)) => less,
            Ok(Retained::None) | Err(_) => continue,
        };
        left.extend_from_slice(batch.bytes());
    }
    left.freeze()
}

/// Says of every request that the log agreed with it.
pub(crate) fn claim_all(partition: Partition, parts: BoxStream<'static, AppendParts>) -> Outcomes {
    let answers = receive(partition, parts);
    let claim = |answer| match answer {
        Ok(AppendOutcome::Conflict(at)) => Ok(AppendOutcome::Matched(Some(at))),
        answer => answer,
    };
    answers.map(claim).boxed()
}

/// Leaves out the old voters where a change asks for both majorities.
pub(crate) fn skip_the_joint_step(mut parts: AppendParts) -> AppendParts {
    for entry in &mut parts.entries {
        if let Payload::Control(control) = &mut entry.payload
            && control.kind == ControlKind::Membership
            && control.bytes[1] == 2
        {
            let before = 3 + 8 * usize::from(control.bytes[3]);
            let new = &control.bytes[1 + before..];
            control.bytes = [&[1, 1], new].concat().into();
        }
    }
    parts
}

/// Makes another batch of each, whose checksum fits.
pub(crate) fn alter(mut parts: AppendParts) -> AppendParts {
    for entry in &mut parts.entries {
        if let Payload::Stamped(batch) = &entry.payload {
            let header = batch.header();
            let epoch = ProducerEpoch::new(header.producer_epoch.get() + 1);
            let other = batch.with_producer(header.producer_id, epoch, header.base_sequence);
            entry.payload = Payload::Stamped(other);
        }
    }
    parts
}
