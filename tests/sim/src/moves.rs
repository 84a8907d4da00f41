//! Partitions move to other nodes: an operator asks, and each partition's leader does it in the broker's steps.

use std::{collections::BTreeSet, time::Duration};

use quipu_model::{NodeId, PartitionKey};
use quipu_replication::{AppendError, Partition, Settled};

use crate::{
    cluster::Cluster, luck::Luck, mutants::Mutant, placement::Assignment, rot::most_are_sound,
    trace::note,
};

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
        let Some(wanted) = draw(&cluster, key, &mut luck) else {
            continue;
        };
        note!(cluster.trace, "MOVE p{} to {wanted:?}", key.partition);
        cluster.placement.begin(key, wanted);
    }
}

/// Where a partition may move that is not there: also back to where it was.
pub(crate) fn candidates(cluster: &Cluster, key: PartitionKey) -> Vec<NodeId> {
    let held = cluster.placement.replicas(key);
    let elsewhere = |node: &NodeId| !held.contains(node);
    cluster.nodes.iter().copied().filter(elsewhere).collect()
}

/// Mostly as many replicas as before, of which one is on another node; `None` where there is no node to go to.
fn draw(cluster: &Cluster, key: PartitionKey, luck: &mut Luck) -> Option<Vec<NodeId>> {
    let mut wanted = cluster.placement.replicas(key);
    let mut others = candidates(cluster, key);
    let (out, more) = match luck.within(0..10) {
        0 => (1, 0),
        1 => (0, 1),
        2 => (2, 2),
        _ => (1, 1),
    };
    if others.len() < more {
        return None;
    }
    for _ in 0..out.min(wanted.len()) {
        let leaves = luck.within(0..wanted.len() as u64) as usize;
        wanted.remove(leaves);
    }
    for _ in 0..more {
        let joins = luck.within(0..others.len() as u64) as usize;
        wanted.push(others.remove(joins));
    }
    // What no sound replica is left to give is lost, whoever moves it.
    (!wanted.is_empty() && most_are_sound(cluster, key, &wanted, None)).then_some(wanted)
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
            Ok(None) => {}
            Ok(Some(settled)) if cluster.network.reaches_majority(node, &cluster.nodes) => {
                note!(cluster.trace, "p{part} is on {:?}", wanted.replicas);
                cluster.placement.finish(key, &wanted.replicas, settled);
            }
            Ok(Some(_)) => {}
            Err(error) => note!(cluster.trace, "p{part} does not move yet: {error}"),
        }
    }
}

/// Does what can be done at once towards a move; once it is done, where the group stands.
async fn step(
    cluster: &Cluster,
    leader: &Partition,
    node: NodeId,
    assignment: &Assignment,
) -> Result<Option<Settled>, AppendError> {
    let wanted: BTreeSet<NodeId> = assignment.replicas.iter().copied().collect();
    let members = leader.members().borrow().clone();
    if cluster.mutant == Some(Mutant::FinishesUnmoved) {
        return leader.settled(&members.voters, PATIENCE).await;
    }
    if members.voters != wanted || members.changing {
        for joins in wanted.difference(&members.voters) {
            if !members.learners.contains(joins) {
                leader.add_learner(*joins, PATIENCE).await?;
            }
        }
        let may_vote = |member: &NodeId| may_vote(leader, node, assignment, *member);
        if !wanted.iter().all(may_vote) && cluster.mutant != Some(Mutant::VotesTooEarly) {
            return Ok(None);
        }
        leader.change_voters(&assignment.replicas, PATIENCE).await?;
    }
    for learner in members.learners.difference(&wanted) {
        leader.remove_learner(*learner, PATIENCE).await?;
    }
    leader.settled(&wanted, PATIENCE).await
}

/// Whether a replica has nearly all that the leader has, and what it must have to vote.
fn may_vote(leader: &Partition, node: NodeId, assignment: &Assignment, member: NodeId) -> bool {
    let needed = assignment.settled.map(|settled| settled.index);
    let progress = leader.progress();
    member == node
        || progress.iter().any(|follower| {
            let last = follower.last.map_or(0, |last| last.get());
            let near = |matched: u64| matched + NEAR > last;
            follower.node == member
                && follower.matched >= needed
                && follower.matched.is_some_and(|index| near(index.get()))
        })
}
