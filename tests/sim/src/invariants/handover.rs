//! In a cluster that is whole, leadership is handed over where it is asked for, and the next record is acknowledged soon.

use std::time::Duration;

use quipu_model::{NodeId, PartitionKey};
use quipu_replication::AppendError;

use super::{Check, violated};

const NAME: &str = "handover";
/// How long the next record may take. An election that nobody asked for takes longer.
pub(crate) const PAUSE: Duration = Duration::from_millis(1500);

pub(crate) fn check(
    key: PartitionKey,
    to: NodeId,
    handed: &Result<(), AppendError>,
    pause: Option<Duration>,
) -> Check {
    match (handed, pause) {
        (Ok(()), Some(pause)) if pause <= PAUSE => Ok(()),
        _ => violated(
            NAME,
            format!("{key} was handed over to {to}: {handed:?}, and stood still for {pause:?}"),
        ),
    }
}
