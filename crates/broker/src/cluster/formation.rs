//! The first start of a cluster's first nodes.

use std::{collections::HashSet, time::Duration};

use quipu_model::NodeId;
use tokio::sync::watch;

use super::NodeHost;

/// How often it is said what is waited for.
const REMINDER: Duration = Duration::from_secs(10);

/// How a cluster's first start ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Formation {
    /// The group may be formed.
    Ready,
    /// Another node knows this one with another data directory.
    Refused(String),
}

/// Waits until so many of the other `voters` know this node that every majority has one of them. A node whose data directory is
/// empty may have been a voter before, and lost it: then whoever was in a majority with it refuses it, and it must not vote as
/// one that had promised nothing.
pub(crate) async fn form(host: &NodeHost, voters: &[NodeId]) -> Formation {
    let needed = voters.len() - majority(voters.len()) + 1;
    let others: HashSet<NodeId> = voters.iter().copied().filter(|n| *n != host.node).collect();
    let needed = needed.min(others.len());
    let (mut linked, mut refusal) = (host.linked.subscribe(), host.refusal.subscribe());
    loop {
        let enough = |linked: &HashSet<NodeId>| linked.intersection(&others).count() >= needed;
        tokio::select! {
            biased;
            reason = refused(&mut refusal) => return Formation::Refused(reason),
            ready = linked.wait_for(enough) => if ready.is_ok() { return Formation::Ready },
            () = tokio::time::sleep(REMINDER) => {}
        }
        let missing: Vec<_> = others
            .difference(&linked.borrow())
            .map(|node| node.get())
            .collect();
        tracing::info!(
            ?missing,
            needed,
            "the cluster's first start waits for other voters"
        );
    }
}

fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

async fn refused(refusal: &mut watch::Receiver<Option<String>>) -> String {
    match refusal
        .wait_for(Option::is_some)
        .await
        .map(|reason| reason.clone())
    {
        Ok(Some(reason)) => reason,
        // The sender lives as long as the host.
        _ => std::future::pending().await,
    }
}
