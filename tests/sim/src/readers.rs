//! A reader of every partition at every node, which also looks at the high watermark.

use std::time::Duration;

use bytes::Bytes;
use quipu_model::{NodeId, Offset, PartitionKey, Term};
use quipu_replication::Partition;
use quipu_storage::{ReadBatches, ReadError};

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
            if let Some((number, partition)) = network.served(self.node, self.key) {
                let mark = self.look(number, &partition).await;
                next = next.max(partition.start_offset());
                self.read(number, &partition, &mut next, mark).await;
            }
        }
    }

    async fn look(&self, number: u64, partition: &Partition) -> Offset {
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
        let life = (self.node, number);
        self.cluster
            .invariants
            .high_watermark(self.key, life, shown, leads);
        mark
    }

    async fn read(&self, number: u64, partition: &Partition, next: &mut Offset, mark: Offset) {
        let cluster = &self.cluster;
        let read = match cluster.mutant {
            Some(Mutant::ReadsPastTheMark) => self.read_to_the_end(*next),
            Some(Mutant::SkipsRecords) if mark > next.plus(50) => {
                Some(partition.read(next.plus(40), MOST_BYTES).await)
            }
            _ if mark > *next => Some(partition.read(*next, MOST_BYTES).await),
            _ => None,
        };
        let part = self.key.partition;
        match read {
            None => {}
            Some(Ok(read)) => {
                let to = read.next_offset;
                note!(
                    cluster.trace,
                    "reader {} p{part} from {next} to {to}",
                    self.node
                );
                let bytes = if cluster.mutant == Some(Mutant::FlipsBits) {
                    flip(&read.bytes)
                } else {
                    read.bytes
                };
                cluster.invariants.read(self.key, self.node, *next, bytes);
                *next = to;
            }
            // A node that died meanwhile has no disk to read from, and one that left has no files.
            Some(Err(_)) if self.served() != Some(number) => {}
            Some(Err(error)) => {
                note!(cluster.trace, "reader {} p{part}: {error}", self.node);
            }
        }
    }

    fn served(&self) -> Option<u64> {
        let served = self.cluster.network.served(self.node, self.key);
        served.map(|(number, _)| number)
    }

    /// What the log holds, committed or not.
    fn read_to_the_end(&self, next: Offset) -> Option<Result<ReadBatches, ReadError>> {
        let log = self.cluster.up(self.node)?.store.partition(self.key)?;
        let end = log.state().end_offset;
        (end > next).then(|| log.read(next, MOST_BYTES, end))
    }
}

/// The same bytes but for one bit in the middle.
fn flip(bytes: &[u8]) -> Bytes {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    bytes.into()
}
