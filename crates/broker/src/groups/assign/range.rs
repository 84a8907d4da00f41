//! Of each topic a run of partitions to each member.

use quipu_model::PartitionKey;

use super::Candidate;
use crate::groups::topics::TopicView;

/// Each partition and the place of its member among the candidates.
pub(super) fn assign(
    candidates: &[Candidate<'_>],
    topics: &[&TopicView],
) -> Vec<(PartitionKey, usize)> {
    let mut assigned = Vec::new();
    for topic in topics {
        let mut takers: Vec<usize> = (0..candidates.len())
            .filter(|at| candidates[*at].subscribed.contains(&topic.id))
            .collect();
        takers.sort_by_key(|at| (candidates[*at].name, candidates[*at].id));
        let (each, more) = (
            topic.racks.len() / takers.len(),
            topic.racks.len() % takers.len(),
        );
        let mut partitions = topic.partitions();
        for (place, at) in takers.into_iter().enumerate() {
            let count = each + usize::from(place < more);
            let run = partitions.by_ref().take(count);
            assigned.extend(run.map(|partition| (partition, at)));
        }
    }
    assigned
}
