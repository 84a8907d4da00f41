//! In the end all replicas hold the same bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use quipu_model::NodeId;

use super::{Check, violated};

const NAME: &str = "equal";

pub(super) fn check(logs: &BTreeMap<NodeId, Bytes>) -> Check {
    let mut all = logs.iter();
    let Some((first, expected)) = all.next() else {
        return Ok(());
    };
    for (node, log) in all {
        if log != expected {
            let pairs = log.iter().zip(expected.iter());
            let same = pairs.take_while(|(a, b)| a == b).count();
            return violated(
                NAME,
                format!(
                    "node {node} holds {} bytes and node {first} {}, equal up to byte {same}",
                    log.len(),
                    expected.len()
                ),
            );
        }
    }
    Ok(())
}
