//! Who becomes a voter has nearly all that its leader has.

use quipu_model::NodeId;

use super::{Check, configurations::New, violated};
use crate::moves::NEAR;

const NAME: &str = "caught-up";
/// How many entries a leader may append between looking and changing.
const MEANWHILE: u64 = 1000;

/// `last` is the index of a node's last entry, where the node is up.
pub(super) fn check(new: &New, last: impl Fn(NodeId) -> Option<u64>) -> Check {
    let index = new.at.index.get();
    for node in &new.joining {
        if let Some(last) = last(*node)
            && last + NEAR + MEANWHILE < index
        {
            let detail = format!("node {node} votes from entry {index} on and has {last} entries");
            return violated(NAME, detail);
        }
    }
    Ok(())
}
