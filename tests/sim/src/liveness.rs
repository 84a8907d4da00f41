//! What the broker's links tell replicas: which node is no longer heard of.

use std::{collections::BTreeMap, time::Duration};

use quipu_model::NodeId;
use tokio::time::Instant;

use crate::{cluster::Cluster, mutants::Mutant, trace::note};

const STEP: Duration = Duration::from_millis(250);
/// After how long without a word a link is given up.
const SILENCE: Duration = Duration::from_millis(1500);

/// What a node knows of another.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// Both nodes' lives.
    boots: (u64, Option<u64>),
    heard: Instant,
    lost: bool,
}

/// Tells every node that runs of each one that it lost.
pub(crate) async fn watch(cluster: Cluster) {
    let mut links = BTreeMap::<(NodeId, NodeId), Link>::new();
    loop {
        tokio::time::sleep(STEP).await;
        for node in &cluster.nodes {
            let Some(boot) = cluster.network.boot(*node) else {
                continue;
            };
            for other in cluster.nodes.iter().filter(|other| *other != node) {
                let boots = (boot, cluster.network.boot(*other));
                let now = Instant::now();
                let link = links.entry((*node, *other)).or_insert(Link {
                    boots,
                    heard: now,
                    lost: false,
                });
                if link.boots.0 != boot {
                    (link.heard, link.lost) = (now, false);
                }
                let ended = link.boots.1.is_some() && link.boots.1 != boots.1;
                link.boots = boots;
                if cluster.network.talks(*node, *other) {
                    (link.heard, link.lost) = (now, false);
                }
                if (ended || now - link.heard > SILENCE) && !link.lost {
                    link.lost = true;
                    tell(&cluster, *node, *other);
                }
            }
        }
    }
}

fn tell(cluster: &Cluster, node: NodeId, lost: NodeId) {
    if cluster.mutant == Some(Mutant::HidesLosses) {
        return;
    }
    if let Some(up) = cluster.up(node) {
        note!(cluster.trace, "node {node} lost node {lost}");
        up.replicator.node_lost(lost);
    }
}
