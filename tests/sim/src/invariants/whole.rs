//! What rotted on a minority's disks is as it was, before long, and nothing else on any disk is wrong.

use std::time::Duration;

use quipu_model::NodeId;
use quipu_storage::{OpenError, inspect::Problem};

use super::{Check, violated};

const NAME: &str = "whole";
/// How long it may take where all is well: found by the scrub, and tried again after others could not be reached.
pub(crate) const BECOMES_WHOLE: Duration = Duration::from_secs(150);

pub(crate) fn in_time(ailing: &[String]) -> Check {
    if ailing.is_empty() {
        return Ok(());
    }
    let seconds = BECOMES_WHOLE.as_secs();
    let all = ailing.join("; ");
    violated(
        NAME,
        format!("not whole {seconds} s after all was well: {all}"),
    )
}

pub(crate) fn on_disk(node: NodeId, found: &Result<Vec<Problem>, OpenError>) -> Check {
    match found {
        Ok(problems) if problems.is_empty() => Ok(()),
        found => violated(NAME, format!("on the disk of node {node}: {found:?}")),
    }
}
