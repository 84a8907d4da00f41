//! Hears when this node begins or ceases to lead a partition.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use quipu_model::NodeId;
use tokio::sync::Notify;

use super::LeaderTable;
use crate::{metadata::Watcher, partitions::Running, peer::PeerLinks};

/// Tells other nodes what this one leads, and the steward that there may be something to do.
#[derive(Debug)]
pub(crate) struct LeadershipWatcher {
    pub(crate) node: NodeId,
    pub(crate) links: Arc<PeerLinks>,
    pub(crate) leaders: Arc<LeaderTable>,
    pub(crate) steward: Arc<Notify>,
    /// How often a replica here began to lead.
    pub(crate) leaderships: Counter,
}

impl Watcher for LeadershipWatcher {
    fn started(&self, running: &Running) {
        let node = self.node;
        let (links, leaders) = (Arc::clone(&self.links), Arc::clone(&self.leaders));
        let (steward, stopped) = (Arc::clone(&self.steward), running.stopped.clone());
        let (key, leaderships) = (running.partition.key(), self.leaderships.clone());
        let mut leadership = running.partition.leadership();
        leadership.mark_changed();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return,
                    changed = leadership.changed() => if changed.is_err() { return },
                }
                let now = *leadership.borrow_and_update();
                if let Some(leader) = now.leader {
                    leaders.heard(leader, &[(key, now.epoch)]);
                }
                if now.leader == Some(node) && now.ready {
                    leaderships.inc();
                    links.announce(vec![(key, now.epoch)]);
                    steward.notify_one();
                }
            }
        });
    }
}
