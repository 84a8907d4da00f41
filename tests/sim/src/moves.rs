//! Partitions move to other nodes: an operator asks, and each partition's leader does it in the broker's steps.

use std::{collections::BTreeSet, time::Duration};

use quipu_model::{NodeId, PartitionKey};
use quipu_replication::{AppendError, Partition};

use crate::{cluster::Cluster, luck::Luck, mutants::Mutant, placement::Assignment, trace::note};

const PATIENCE: Duration = Duration::from_secs(10);
/// How many entries a replica may lack and still be about to vote.
pub(crate) const NEAR: u64 = 100;

/// An operator who wants a partition elsewhere, again and again, and does not always wait until it is there.
pub(crate) async fn ask(cluster: Cluster, key: PartitionKey, mut luck: Luck) {
    loop {
        let pause = if luck.per_mille(150) {
            200..1500
        } else {
            4000..30_000
        };
        tokio::time::sleep(luck.millis(pause)).await;
        if cluster.lets_sleep(&mut luck) {
            continue;
        }
        let wanted = draw(&cluster, key, &mut luck);
        note!(cluster.trace, "MOVE p{} to {wanted:?}", key.partition);
        cluster.placement.begin(key, wanted);
    }
}

/// Mostly as many replicas as before, of which one is on another node.
fn draw(cluster: &Cluster, key: PartitionKey, luck: &mut Luck) -> Vec<NodeId> {
    let mut wanted = cluster.placement.replicas(key);
    let others = cluster.nodes.iter().copied();
    let mut others: Vec<NodeId> = others.filter(|node| !wanted.contains(node)).collect();
    let (out, more) = match luck.within(0..10) {
        0 => (1, 0),
        1 => (0, 1),
        2 => (2, 2),
        _ => (1, 1),
    };
    for _ in 0..out.min(wanted.len()) {
        let leaves = luck.within(0..wanted.len() as u64) as usize;
        wanted.remove(leaves);
    }
    for _ in 0..more.min(others.len()) {
        let joins = luck.within(0..others.len() as u64) as usize;
        wanted.push(others.remove(joins));
    }
    if wanted.is_empty() {
        wanted.push(*luck.pick(&cluster.nodes));
    }
    wanted
}

/// Sees to a partition's moves, wherever its leader is.
pub(crate) async fn see_to(cluster: Cluster, key: PartitionKey, mut luck: Luck) {
    loop {
        tokio::time::sleep(luck.millis(200..1500)).await;
        let Some((node, leader)) = cluster.leader(key) else {
            continue;
        };
        let Some(wanted) = cluster.placement.read_by(node, key) else {
            continue;
        };
        if !wanted.moving {
            continue;
        }
        let part = key.partition;
        match step(&cluster, &leader, node, &wanted).await {
            Ok(false) => {}
            Ok(true) if cluster.network.reaches_majority(node, &cluster.nodes) => {
                note!(cluster.trace, "p{part} is on {:?}", wanted.replicas);
                cluster.placement.finish(key, &wanted.replicas);
            }
            Ok(true) => {}
            Err(error) => note!(cluster.trace, "p{part} does not move yet: {error}"),
        }
    }
}

/// Does what can be done at once towards a move; whether it is done.
async fn step(
    cluster: &Cluster,
    leader: &Partition,
    node: NodeId,
    assignment: &Assignment,
) -> Result<bool, AppendError> {
    let wanted: BTreeSet<NodeId> = assignment.replicas.iter().copied().collect();
    let members = leader.members().borrow().clone();
    if cluster.mutant == Some(Mutant::FinishesUnmoved) {
        return Ok(true);
    }
    if members.voters != wanted || members.changing {
        for joins in wanted.difference(&members.voters) {
            if !members.learners.contains(joins) {
                leader.add_learner(*joins, PATIENCE).await?;
            }
        }
        let near = wanted.iter().all(|member| is_near(leader, node, *member));
        if !near && cluster.mutant != Some(Mutant::VotesTooEarly) {
            return Ok(false);
        }
        leader.change_voters(&assignment.replicas, PATIENCE).await?;
    }
    for learner in members.learners.difference(&wanted) {
        leader.remove_learner(*learner, PATIENCE).await?;
    }
    Ok(true)
}

/// Whether a replica has nearly all that the leader has.
fn is_near(leader: &Partition, node: NodeId, member: NodeId) -> bool {
    let progress = leader.progress();
    member == node
        || progress.iter().any(|follower| {
            let last = follower.last.map_or(0, |last| last.get());
            let near = |matched: u64| matched + NEAR > last;
            follower.node == member && follower.matched.is_some_and(|index| near(index.get()))
        })
}
