//! A cluster that is whole again goes on: every partition takes records, and its replicas become equal, within a bound.

use std::time::Duration;

use quipu_model::PartitionKey;

use super::{Check, violated};

const NAME: &str = "progress";
/// How long a healed cluster may take to acknowledge a record of every producer.
pub(crate) const TAKES_RECORDS: Duration = Duration::from_secs(30);
/// How long a group may take to store progress of every partition: until who was silent is timed out, and who is to let go, and
/// a while.
pub(crate) const GROUP_GOES_ON: Duration = Duration::from_secs(120);
/// How long its replicas may take to show the same end.
pub(crate) const BECOMES_EQUAL: Duration = Duration::from_secs(30);

pub(crate) fn takes_records(key: PartitionKey, did: bool, state: &str) -> Check {
    if did {
        return Ok(());
    }
    let seconds = TAKES_RECORDS.as_secs();
    violated(
        NAME,
        format!("{key} did not serve all its producers {seconds} s after all was well: {state}"),
    )
}

pub(crate) fn becomes_equal(key: PartitionKey, did: bool, state: &str) -> Check {
    if did {
        return Ok(());
    }
    let seconds = BECOMES_EQUAL.as_secs();
    violated(
        NAME,
        format!(
            "the replicas of {key} did not show one end {seconds} s after the last record: {state}"
        ),
    )
}

pub(crate) fn group_goes_on(did: bool, state: &str) -> Check {
    if did {
        return Ok(());
    }
    let seconds = GROUP_GOES_ON.as_secs();
    violated(
        NAME,
        format!("the group did not go on within {seconds} s after all was well: {state}"),
    )
}
