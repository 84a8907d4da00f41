//! A reader of every partition at every node, which also looks at the high watermark.

use std::time::Duration;

use quipu_model::{NodeId, Offset, PartitionKey, Term};
use quipu_replication::Partition;

use crate::{cluster::Cluster, luck::Luck, mutants::Mutant, trace::note};

const MOST_BYTES: usize = 32 << 10;

pub(crate) struct Reader {
    pub(crate) cluster: Cluster,
    pub(crate) node: NodeId,
    pub(crate) key: PartitionKey,
    pub(crate) luck: Luck,
}

impl Reader {
    pub(crate) async fn run(mut self) {
        let mut next = Offset::ZERO;
        loop {
            tokio::time::sleep(self.luck.millis(20..400)).await;
            let network = &self.cluster.network;
            let (boot, partition) = (
                network.boot(self.node),
                network.partition(self.node, self.key),
            );
            if let (Some(boot), Some(partition)) = (boot, partition) {
                let mark = self.look(boot, &partition).await;
                next = next.max(partition.start_offset());
                self.read(boot, &partition, &mut next, mark).await;
            }
        }
    }

    async fn look(&self, boot: u64, partition: &Partition) -> Offset {
        let term = partition.leader().1;
        let leads = partition.is_leader()
            && partition
                .wait_leader(Duration::from_millis(1))
                .await
                .is_ok()
            && partition.leader().1 == term;
        let mark = *partition.high_watermark().borrow();
        let leads = leads.then(|| Term::new(term.get().max(0) as u64));
        let shown = match self.cluster.mutant {
            Some(Mutant::MarkGoesBack) if mark > Offset::new(500) => Offset::ZERO,
            _ => mark,
        };
        let life = (self.node, boot);
        self.cluster
            .invariants
            .high_watermark(self.key, life, shown, leads);
        mark
    }

    async fn read(&self, boot: u64, partition: &Partition, next: &mut Offset, mark: Offset) {
        let past = self.cluster.mutant == Some(Mutant::ReadsPastTheMark);
        let read = if past {
            let up = self.cluster.up(self.node);
            let Some(log) = up.and_then(|up| up.store.partition(self.key)) else {
                return;
            };
            let end = log.state().end_offset;
            if end <= *next {
                return;
            }
            log.read(*next, MOST_BYTES, end)
        } else if mark > *next {
            partition.read(*next, MOST_BYTES).await
        } else {
            return;
        };
        let cluster = &self.cluster;
        match read {
            Ok(read) => {
                note!(
                    cluster.trace,
                    "reader {} p{} from {next} to {}",
                    self.node,
                    self.key.partition,
                    read.next_offset
                );
                cluster
                    .invariants
                    .read(self.key, self.node, *next, read.bytes);
                *next = read.next_offset;
            }
            // A node that died meanwhile has no disk to read from.
            Err(_) if cluster.network.boot(self.node) != Some(boot) => {}
            Err(error) => {
                note!(
                    cluster.trace,
                    "reader {} p{}: {error}",
                    self.node,
                    self.key.partition
                );
            }
        }
    }
}
