//! A node that was removed from its cluster: how it comes to know, and what it does then.

use std::{sync::Arc, time::Duration};

use futures::future::pending;
use tokio::sync::watch;

use super::Registration;
use crate::{core::Core, partitions::stop_partitions, peer::PeerLinks};

/// Waits for this node's removal. Often the metadata says it; but others cease to speak with a removed node at once, so it may
/// not hear of it, or may have been down. Then they refuse it, and it asks.
#[derive(Debug)]
pub(crate) struct Removal {
    pub(crate) core: Arc<Core>,
    pub(crate) links: Arc<PeerLinks>,
    pub(crate) registration: Arc<Registration>,
    /// Why another node refuses this one.
    pub(crate) refusal: watch::Receiver<Option<String>>,
}

impl Removal {
    /// Between two questions.
    const PAUSE: Duration = Duration::from_secs(5);

    /// Runs until the node stops or was removed. A removed node ends all that it does in the cluster, and stays, so that it can
    /// say why it is not ready: whoever ended with an error would be started again.
    pub(crate) async fn run(self) {
        let core = &self.core;
        let mut told = core.removed.subscribe();
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = core.metadata.removal_of(core.node) => {}
            // The sender lives as long as the core.
            _ = told.wait_for(|removed| *removed) => {}
            () = self.asked() => {}
        }
        core.removed.send_replace(true);
        tracing::warn!(
            node = %core.node,
            "this node was removed from the cluster and takes no part in it any more: it may be shut down, and its data directory deleted"
        );
        core.serving.cancel();
        self.links.shutdown().await;
        stop_partitions(&core.table).await;
    }

    /// Asks the cluster whenever another node refused this one, until it says that this one was removed.
    async fn asked(&self) {
        let mut refusal = self.refusal.clone();
        while refusal.changed().await.is_ok() {
            if self.registration.finds_removal(&self.core.metadata).await {
                return;
            }
            tokio::time::sleep(Self::PAUSE).await;
        }
        pending().await
    }
}
