//! Carries a group's messages over the network, in their parts, as a transport between processes does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream, stream::BoxStream};
use quipu_model::{NodeId, PartitionKey, Vote};
use quipu_replication::{
    AppendAnswers, AppendError, AppendOutcome, AppendParts, AppendRequest, AppendResponse, Called,
    CopyRequest, CopyResponse, Partition, SleepOutcome, SleepParts, SleepRequest, SleepResponse,
    SnapshotParts, SnapshotRequest, SnapshotResponse, TransferOutcome, TransferParts,
    TransferRequest, TransferResponse, Transport, TransportError, VoteOutcome, VoteParts,
    VoteRequest, VoteResponse,
};
use tokio::time::timeout;

use crate::{
    cluster::Cluster,
    mutants::{self, Mutant},
    network::Link,
    trace::note,
};

/// How many messages of a stream are under way at once.
const UNDER_WAY: usize = 32;
/// Of a thousand requests for a vote, so many arrive twice.
const TWICE: u64 = 100;
/// A second copy comes up to this many milliseconds later.
const LATER_MS: u64 = 2500;

/// What one life of a node sends with.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    pub(crate) node: NodeId,
    pub(crate) boot: u64,
    pub(crate) cluster: Cluster,
}

impl Wire {
    fn link(&self, to: NodeId) -> Link {
        Link {
            network: self.cluster.network.clone(),
            from: self.node,
            boot: self.boot,
            to,
        }
    }

    /// One message and its answer.
    fn call<T, F>(
        &self,
        to: NodeId,
        key: PartitionKey,
        within: Duration,
        deliver: impl Fn(Partition) -> F + Send + 'static,
    ) -> Called<'static, T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, AppendError>> + Send + 'static,
    {
        let link = self.link(to);
        let calling = {
            let link = link.clone();
            async move {
                link.there().await;
                let answer = deliver(link.reach(key)?).await;
                link.back().await;
                // Whoever asked may be no more.
                link.reach(key)?;
                answer.map_err(|error| link.lost(&error.to_string()))
            }
        };
        async move {
            match timeout(within, calling).await {
                Ok(answer) => answer,
                Err(_) => Err(link.lost("timed out")),
            }
        }
        .boxed()
    }

    /// A request for a vote, or the question whether one would be granted. Some arrive twice.
    fn ask(
        &self,
        to: NodeId,
        key: PartitionKey,
        request: VoteRequest,
        within: Duration,
        before: bool,
    ) -> Called<'static, VoteResponse> {
        let parts = VoteParts::from(request);
        let (cluster, from, mutant) = (self.cluster.clone(), self.node, self.cluster.mutant);
        let part = key.partition;
        cluster.invariants.takes_part(key, from);
        let deliver = move |partition: Partition| {
            let cluster = cluster.clone();
            async move {
                let trace = &cluster.trace;
                let what = if before { "would vote" } else { "vote" };
                let candidate = parts.candidate;
                note!(
                    trace,
                    "{from}>{to} p{part} {what} {candidate:?} last {:?}",
                    parts.last
                );
                let answer = if before {
                    partition.receive_pre_vote(parts.into()).await?
                } else {
                    partition.receive_vote(parts.into()).await?
                };
                let mut outcome = VoteOutcome::from(answer);
                if outcome.granted {
                    cluster.invariants.takes_part(key, to);
                }
                if !before && mutant == Some(Mutant::VotesTwice) {
                    outcome.granted = true;
                    outcome.vote = candidate;
                }
                note!(trace, "{to}>{from} p{part} {what} {outcome:?}");
                Ok(VoteResponse::from(outcome))
            }
        };
        if self.cluster.network.per_mille(TWICE) {
            let (again, link) = (deliver.clone(), self.link(to));
            let later = self.cluster.network.millis(LATER_MS);
            tokio::spawn(async move {
                tokio::time::sleep(later).await;
                link.there().await;
                if let Ok(partition) = link.reach(key) {
                    // Nobody hears the second answer.
                    drop(again(partition).await);
                }
            });
        }
        self.call(to, key, within, deliver)
    }

    /// Takes a request as it arrives.
    fn arrived(
        &self,
        to: NodeId,
        key: PartitionKey,
        request: AppendRequest,
    ) -> Result<AppendParts, TransportError> {
        let bad = |error: &dyn std::fmt::Display| TransportError {
            node: to,
            reason: error.to_string(),
        };
        let parts = request.into_parts().map_err(|error| bad(&error))?;
        let part = key.partition;
        note!(
            self.cluster.trace,
            "{}>{to} p{part} append t{} prev {:?} +{} committed {:?}",
            self.node,
            parts.leader.term,
            parts.previous,
            parts.entries.len(),
            parts.committed
        );
        self.cluster.invariants.leader_spoke(key, parts.leader);
        let parts = match self.cluster.mutant {
            Some(Mutant::AltersBatches) if to == NodeId::new(3) => mutants::alter(parts),
            Some(Mutant::SkipsTheJointStep) => mutants::skip_the_joint_step(parts),
            _ => parts,
        };
        let last = |node| self.cluster.last_index(node, key);
        self.cluster.invariants.appended(key, &parts.entries, last);
        Ok(parts)
    }
}

impl Transport for Wire {
    fn append(
        &self,
        target: NodeId,
        key: PartitionKey,
        requests: BoxStream<'static, AppendRequest>,
        within: Duration,
    ) -> Called<'_, AppendAnswers> {
        let link = self.link(target);
        let open = Arc::new(AtomicU64::new(0));
        let (wire, there, taken) = (self.clone(), link.clone(), Arc::clone(&open));
        let parts = requests
            .map(move |request| {
                taken.fetch_add(1, Ordering::Relaxed);
                let (wire, there) = (wire.clone(), there.clone());
                async move {
                    there.there().await;
                    there.reach(key)?;
                    wire.arrived(target, key, request)
                }
            })
            .buffered(UNDER_WAY);
        // A message that does not arrive ends the connection.
        let parts = parts
            .take_while(|parts| std::future::ready(parts.is_ok()))
            .filter_map(|parts| std::future::ready(parts.ok()))
            .boxed();
        let (cluster, from) = (self.cluster.clone(), self.node);
        let part = key.partition;
        async move {
            // Connecting takes its time, also to be refused.
            let connecting = async {
                link.there().await;
                link.back().await;
            };
            if timeout(within, connecting).await.is_err() {
                return Err(link.lost("no connection"));
            }
            let partition = link.reach(key)?;
            let answers = match cluster.mutant {
                Some(Mutant::AnswersBeforeFlush) => mutants::answer_at_once(partition, parts),
                Some(Mutant::ClaimsItsOldLog) => mutants::claim_all(partition, parts),
                _ => receive(partition, parts),
            };
            let back = link.clone();
            let answers = answers
                .map(move |answer| {
                    let (back, cluster) = (back.clone(), cluster.clone());
                    async move {
                        if matches!(answer, Ok(AppendOutcome::Matched(_))) {
                            cluster.invariants.takes_part(key, target);
                        }
                        back.back().await;
                        back.reach(key)?;
                        note!(cluster.trace, "{target}>{from} p{part} appended {answer:?}");
                        answer
                            .map(AppendResponse::from)
                            .map_err(|error| back.lost(&error.to_string()))
                    }
                })
                .buffered(UNDER_WAY)
                .boxed();
            Ok(cut_when_silent(answers, open, within, link))
        }
        .boxed()
    }

    fn vote(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: VoteRequest,
        within: Duration,
    ) -> Called<'_, VoteResponse> {
        self.ask(target, key, request, within, false)
    }

    fn pre_vote(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: VoteRequest,
        within: Duration,
    ) -> Called<'_, VoteResponse> {
        self.ask(target, key, request, within, true)
    }

    fn snapshot(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: SnapshotRequest,
        within: Duration,
    ) -> Called<'_, SnapshotResponse> {
        let parts = SnapshotParts::from(request);
        let part = key.partition;
        note!(
            self.cluster.trace,
            "{}>{target} p{part} {parts:?}",
            self.node
        );
        self.call(target, key, within, move |partition| {
            let request = SnapshotRequest::from_parts(&parts);
            async move {
                let request = request.map_err(|error| AppendError::Fatal(error.to_string()))?;
                let answer = partition.receive_snapshot(request).await?;
                Ok(Vote::from(answer).into())
            }
        })
    }

    fn transfer_leader(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: TransferRequest,
        within: Duration,
    ) -> Called<'_, TransferResponse> {
        let parts = TransferParts::from(request);
        let part = key.partition;
        note!(
            self.cluster.trace,
            "{}>{target} p{part} {parts:?}",
            self.node
        );
        self.call(target, key, within, move |partition| async move {
            let answer = partition.receive_transfer(parts.into()).await?;
            Ok(TransferOutcome::from(answer).into())
        })
    }

    fn sleep(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: SleepRequest,
        within: Duration,
    ) -> Called<'_, SleepResponse> {
        let parts = SleepParts::from(request);
        let part = key.partition;
        note!(
            self.cluster.trace,
            "{}>{target} p{part} {parts:?}",
            self.node
        );
        self.call(target, key, within, move |partition| async move {
            let answer = partition.receive_sleep(parts.into()).await?;
            Ok(SleepOutcome::from(answer).into())
        })
    }

    fn take_over(
        &self,
        target: NodeId,
        key: PartitionKey,
        within: Duration,
    ) -> Called<'_, SnapshotRequest> {
        let (cluster, from) = (self.cluster.clone(), self.node);
        let part = key.partition;
        note!(cluster.trace, "{from}>{target} p{part} wants all");
        self.call(target, key, within, move |partition| {
            let cluster = cluster.clone();
            async move {
                let all = SnapshotParts::from(partition.receive_take_over().await?);
                note!(cluster.trace, "{target}>{from} p{part} gives {all:?}");
                SnapshotRequest::from_parts(&all)
                    .map_err(|error| AppendError::Fatal(error.to_string()))
            }
        })
    }

    fn copy(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: CopyRequest,
        within: Duration,
    ) -> Called<'_, CopyResponse> {
        let part = key.partition;
        note!(
            self.cluster.trace,
            "{}>{target} p{part} {request:?}",
            self.node
        );
        self.call(target, key, within, move |partition| async move {
            partition.receive_copy(request).await
        })
    }
}

/// What a follower makes of requests.
pub(crate) type Outcomes = BoxStream<'static, Result<AppendOutcome, AppendError>>;

pub(crate) fn receive(partition: Partition, parts: BoxStream<'static, AppendParts>) -> Outcomes {
    let requests =
        parts.filter_map(|parts| std::future::ready(AppendRequest::from_parts(parts).ok()));
    partition
        .receive_appends(requests.boxed())
        .map(|answer| answer.map(AppendOutcome::from))
        .boxed()
}

/// Ends a stream on which requests stay without an answer.
fn cut_when_silent(
    answers: AppendAnswers,
    open: Arc<AtomicU64>,
    within: Duration,
    link: Link,
) -> AppendAnswers {
    stream::unfold(Some(answers), move |answers| {
        let (open, link) = (Arc::clone(&open), link.clone());
        async move {
            let mut answers = answers?;
            loop {
                let waiting = open.load(Ordering::Relaxed) > 0;
                match timeout(within, answers.next()).await {
                    Ok(Some(answer)) => {
                        open.fetch_sub(1, Ordering::Relaxed);
                        return Some((answer, Some(answers)));
                    }
                    Ok(None) => return None,
                    Err(_) if waiting => return Some((Err(link.lost("no answer")), None)),
                    Err(_) => {}
                }
            }
        }
    })
    .boxed()
}
