//! What is asked of a cluster that is whole again: moves end, leadership is handed over, and groups sleep and wake.

use std::{sync::atomic::Ordering, time::Duration};

use quipu_model::{NodeId, PartitionKey, Term, Vote};
use quipu_replication::{AppendError, Partition, TransferParts};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    cluster::{Cluster, Death, IDLE},
    invariants::{
        agreed::{self, Held, MOVES},
        handover,
        sleep::{LISTENS, WAKES, silent, wakes},
    },
    moves,
    mutants::Mutant,
    trace::note,
};

const STEP: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(10);
/// For so long nobody sleeps under a leader whose node was lost for a moment.
const FORGETS: Duration = Duration::from_secs(30);
/// How often leadership of each partition is handed over.
const HANDOVERS: usize = 3;

/// Moves every partition to as many replicas as it had in the beginning, and waits until it is there.
pub(crate) async fn settle(cluster: &Cluster, replicas: usize) {
    for key in &cluster.keys {
        let mut wanted = cluster.placement.replicas(*key);
        wanted.extend(moves::candidates(cluster, *key));
        wanted.truncate(replicas);
        if wanted != cluster.placement.replicas(*key) {
            cluster.placement.begin(*key, wanted);
        }
    }
    for key in &cluster.keys {
        let settled = || {
            let now = cluster.placement.latest(*key);
            now.is_some_and(|now| {
                !now.moving && agreed::is_agreed(&now.replicas, &held(cluster, *key))
            })
        };
        let settling = async {
            while !settled() {
                sleep(STEP * 10).await;
            }
        };
        // Looked at again below.
        drop(timeout(MOVES, settling).await);
        check_agreed(cluster, *key);
    }
}

/// A partition's replicas are those that are wanted, and no others.
pub(crate) fn check_agreed(cluster: &Cluster, key: PartitionKey) {
    if let Some(now) = cluster.placement.latest(key) {
        let held = held(cluster, key);
        let check = agreed::check(key, now.moving, &now.replicas, &held);
        cluster.invariants.note(check);
    }
}

fn held(cluster: &Cluster, key: PartitionKey) -> Vec<Held> {
    let held = |node: &NodeId| {
        let partition = cluster.network.partition(*node, key);
        let store = cluster.up(*node).map(|up| up.store);
        Held {
            node: *node,
            members: partition.map(|partition| partition.members().borrow().clone()),
            has_files: store.is_some_and(|store| store.partition(key).is_some()),
        }
    };
    cluster.nodes.iter().map(held).collect()
}

/// Hands leadership of every partition over, under load.
pub(crate) async fn hand_over(cluster: &Cluster) {
    for n in 0..HANDOVERS {
        for key in cluster.produced() {
            let Some((node, leader)) = ready(cluster, key).await else {
                continue;
            };
            let others = cluster.placement.replicas(key).into_iter();
            let others: Vec<NodeId> = others.filter(|other| *other != node).collect();
            if let Some(to) = others.get(n % others.len().max(1)) {
                hand_over_to(cluster, key, (node, &leader), *to).await;
            }
        }
    }
}

async fn hand_over_to(
    cluster: &Cluster,
    key: PartitionKey,
    (node, leader): (NodeId, &Partition),
    to: NodeId,
) {
    let term = Term::new(leader.leader().1.get().max(0) as u64);
    if cluster.mutant == Some(Mutant::TransfersToOneBehind) {
        cluster.network.block(node, to);
        sleep(Duration::from_secs(1)).await;
        cluster.network.unblock(node, to);
    }
    let begun = Instant::now();
    let mut asked = begun;
    let handing = async {
        if cluster.mutant == Some(Mutant::TransfersToOneBehind) {
            let parts = TransferParts {
                leader: Vote {
                    term,
                    node,
                    committed: true,
                },
                to,
                last: None,
            };
            let target = cluster.network.partition(to, key);
            let Some(target) = target else { return Ok(()) };
            return target.receive_transfer(parts.into()).await.map(drop);
        }
        loop {
            asked = Instant::now();
            match leader.transfer_leader(to, PATIENCE).await {
                // A leader of late may not know yet how far the others are.
                Err(AppendError::Refused { .. }) if begun.elapsed() < PATIENCE => {
                    sleep(STEP * 10).await;
                }
                handed => return handed,
            }
        }
    };
    let acknowledging = async {
        while cluster.invariants.acknowledged_in(key) <= term {
            sleep(STEP).await;
        }
        Instant::now()
    };
    let (handed, acknowledged) = tokio::join!(handing, timeout(PATIENCE * 2, acknowledging));
    let pause = acknowledged.ok().map(|at| at - asked);
    note!(
        cluster.trace,
        "p{} went from {node} to {to}: {handed:?}, pause {pause:?}",
        key.partition
    );
    let check = handover::check(key, to, &handed, pause);
    cluster.invariants.note(check);
}

/// Lets groups sleep, ends the node of a leader, and waits until others lead. Answers with the node that is down.
pub(crate) async fn sleep_and_wake(cluster: &Cluster) -> Option<NodeId> {
    cluster.quiet.store(true, Ordering::Relaxed);
    sleep(FORGETS + IDLE * 4).await;
    let before = cluster.network.messages();
    sleep(LISTENS).await;
    let messages = cluster.network.messages() - before;
    cluster.invariants.note(silent(messages));
    let key = cluster.keys.first()?;
    let (lost, _) = cluster.leader(*key)?;
    cluster.crash(lost, Death::Kill);
    for key in &cluster.keys {
        let leads = timeout(WAKES, ready(cluster, *key)).await.is_ok();
        let check = wakes(*key, lost, leads, &cluster.describe(*key));
        cluster.invariants.note(check);
    }
    cluster.quiet.store(false, Ordering::Relaxed);
    Some(lost)
}

/// Waits for a leader that is ready; `None` where none comes.
async fn ready(cluster: &Cluster, key: PartitionKey) -> Option<(NodeId, Partition)> {
    let waiting = async {
        loop {
            let leader = cluster.leader(key);
            if let Some(leader) = leader.filter(|(_, leader)| leader.leadership().borrow().ready) {
                return leader;
            }
            sleep(STEP).await;
        }
    };
    timeout(PATIENCE, waiting).await.ok()
}
