//! Groups without traffic are silent, and wake when the node of their leader is lost.

use std::time::Duration;

use quipu_model::{NodeId, PartitionKey};

use super::{Check, violated};

/// How long it is listened whether anything is said.
pub(crate) const LISTENS: Duration = Duration::from_secs(3);
/// How long a group may be without a leader whose last one was lost in its sleep.
pub(crate) const WAKES: Duration = Duration::from_secs(8);

pub(crate) fn silent(messages: u64) -> Check {
    if messages == 0 {
        return Ok(());
    }
    let detail = format!("{messages} messages were sent though nothing was to be said");
    violated("silent", detail)
}

pub(crate) fn wakes(key: PartitionKey, lost: NodeId, leads: bool, state: &str) -> Check {
    if leads {
        return Ok(());
    }
    let seconds = WAKES.as_secs();
    violated(
        "wakes",
        format!("{key} slept, and has no leader {seconds} s after node {lost} was lost: {state}"),
    )
}
