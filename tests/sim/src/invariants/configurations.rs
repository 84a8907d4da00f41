//! Two configurations that follow each other have a set of voters in common, so that no two majorities are disjoint.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Buf;
use quipu_model::{LogId, NodeId, RaftIndex, Term};
use quipu_storage::{Control, ControlKind, LogEntry, Payload};

use super::{Check, violated};

const NAME: &str = "configurations";

type Voters = BTreeSet<NodeId>;

/// The configurations that leaders sent, by the entries that they are in: as many sets of voters as must agree.
#[derive(Debug, Default)]
pub(super) struct Configurations {
    of: BTreeMap<(Term, RaftIndex), Vec<Voters>>,
}

/// A configuration that was not seen before.
pub(super) struct New {
    pub(super) at: LogId,
    /// Who votes by it and did not by the one before.
    pub(super) joining: Voters,
}

impl Configurations {
    /// An entry arrived somewhere.
    pub(super) fn arrived(&mut self, entry: &LogEntry) -> Result<Option<New>, super::Violation> {
        let Some(sets) = voters(entry) else {
            return Ok(None);
        };
        let LogId { term, index } = entry.id;
        if self.of.contains_key(&(term, index)) {
            return Ok(None);
        }
        // Of one term, so that it is certain that the one comes after the other in one log.
        let earlier = self.of.range(..(term, index)).next_back();
        let before = earlier.filter(|((before, _), _)| *before == term);
        let mut joining = Voters::new();
        if let Some((_, before)) = before {
            follows(entry.id, before, &sets)?;
            joining.extend(sets.iter().flatten());
            joining.retain(|node| !before.iter().any(|set| set.contains(node)));
        }
        self.of.insert((term, index), sets);
        Ok(Some(New {
            at: entry.id,
            joining,
        }))
    }
}

fn follows(at: LogId, before: &[Voters], now: &[Voters]) -> Check {
    if before.iter().any(|set| now.contains(set)) {
        return Ok(());
    }
    violated(NAME, format!("{at:?} has voters {now:?} after {before:?}"))
}

/// The sets of voters in an entry that says who votes: see `docs/on-disk-format.md`.
fn voters(entry: &LogEntry) -> Option<Vec<Voters>> {
    let Payload::Control(Control {
        kind: ControlKind::Membership,
        bytes,
    }) = &entry.payload
    else {
        return None;
    };
    let mut bytes = &bytes[1..];
    let sets = bytes.get_u8();
    let set = |_| {
        let count = bytes.get_u16();
        (0..count).map(|_| NodeId::new(bytes.get_u64())).collect()
    };
    Some((0..sets).map(set).collect())
}
