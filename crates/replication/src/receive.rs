//! What another node's replica of the same partition says to this one: the other end of [`crate::Transport`].

use std::time::Duration;

use futures::{
    StreamExt,
    future::ready,
    stream::{self, BoxStream},
};
use openraft::EntryPayload;
use quipu_model::NodeId;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    error::AppendError,
    network::{
        AppendRequest, AppendResponse, SleepRequest, SleepResponse, SnapshotRequest,
        SnapshotResponse, TransferRequest, TransferResponse, VoteRequest, VoteResponse,
    },
    partition::Partition,
    type_config::{Proposal, RaftEntry},
};

/// How long a leader's entries wait for room; then the leader is told, and sends them again later.
const ROOM_PATIENCE: Duration = Duration::from_millis(500);

fn failed(error: impl std::fmt::Display) -> AppendError {
    AppendError::Fatal(error.to_string())
}

/// # Errors
/// Where this replica does not run: the sender is to be told that it was not reached.
impl Partition {
    /// Entries from a leader. Answers come in the order of the requests; after the last, or after one that cannot be taken,
    /// the stream ends.
    pub fn receive_appends(
        &self,
        requests: BoxStream<'static, AppendRequest>,
    ) -> BoxStream<'static, Result<AppendResponse, AppendError>> {
        let raft = match self.raft() {
            Ok(raft) => raft,
            Err(error) => return stream::once(ready(Err(error))).boxed(),
        };
        let (refuse, mut refused) = oneshot::channel();
        let start = (requests, self.clone(), refuse);
        let requests = stream::unfold(start, |(mut requests, partition, refuse)| async move {
            let mut request = requests.next().await?.0;
            partition.inner().note_heard();
            match partition.take_room(&mut request.entries).await {
                Ok(()) => Some((request, (requests, partition, refuse))),
                Err(error) => {
                    // Where the answers are no longer read, nobody is to be told.
                    let _ = refuse.send(error);
                    None
                }
            }
        });
        let answers = raft
            .stream_append(requests)
            .map(|answer| answer.map(AppendResponse).map_err(failed));
        // Why the requests ended comes behind the answers to those before.
        let refusal = stream::once(ready(())).filter_map(move |()| {
            let refused = refused.try_recv();
            ready(refused.ok().map(Err))
        });
        answers.chain(refusal).boxed()
    }

    /// Takes room on the disk for a request's batches. The last of them holds it for all: entries that the log has already
    /// are dropped from the front.
    async fn take_room(&self, entries: &mut [RaftEntry]) -> Result<(), AppendError> {
        let mut bytes = 0;
        let mut last = None;
        for entry in entries {
            if let EntryPayload::Normal(Proposal::Batch { batch, room, .. }) = &mut entry.payload {
                bytes += batch.bytes().len() as u64;
                last = Some(room);
            }
        }
        if let Some(room) = last {
            let deadline = Instant::now() + ROOM_PATIENCE;
            *room = Some(self.reserve(bytes, deadline).await?);
        }
        Ok(())
    }

    /// A candidate asks for this replica's vote.
    pub async fn receive_vote(&self, request: VoteRequest) -> Result<VoteResponse, AppendError> {
        self.inner().wake();
        let running = self.running()?;
        if !self.log().may_vote() {
            return Ok(running.refusal().into());
        }
        let answer = running.raft.vote(request.0).await;
        answer.map(VoteResponse).map_err(failed)
    }

    /// A replica asks whether it would get this one's vote.
    pub async fn receive_pre_vote(
        &self,
        request: VoteRequest,
    ) -> Result<VoteResponse, AppendError> {
        let running = self.running()?;
        if !self.log().may_vote() || self.refuses_in_sleep(&running).await {
            return Ok(running.refusal().into());
        }
        let answer = running.raft.pre_vote(request.0).await;
        answer.map(VoteResponse).map_err(failed)
    }

    /// This replica lacks more than the leader sends it entry by entry: what is missing is copied from there first, and goes on
    /// from where it was cut off when the leader asks again.
    pub async fn receive_snapshot(
        &self,
        request: SnapshotRequest,
    ) -> Result<SnapshotResponse, AppendError> {
        self.inner().note_heard();
        let (vote, snapshot) = request.0;
        if let Some(log) = &snapshot.snapshot.log {
            let leader = NodeId::new(vote.leader_id().voted_for);
            self.copy_from(leader, log).await?;
        }
        let answer = self.raft()?.install_full_snapshot(vote, snapshot).await;
        answer.map(SnapshotResponse).map_err(failed)
    }

    /// A leader wants this replica to lead.
    pub async fn receive_transfer(
        &self,
        request: TransferRequest,
    ) -> Result<TransferResponse, AppendError> {
        self.inner().wake();
        if !self.log().may_vote() {
            return Err(failed(
                "it came back without its files, and lacks too much yet to lead",
            ));
        }
        let answer = self.raft()?.handle_transfer_leader(request.0).await;
        answer.map(TransferResponse).map_err(failed)
    }

    /// A leader wants this replica to sleep.
    pub async fn receive_sleep(&self, request: SleepRequest) -> Result<SleepResponse, AppendError> {
        self.running()?;
        Ok(self.inner().agree_to_sleep(request.into()).into())
    }
}
