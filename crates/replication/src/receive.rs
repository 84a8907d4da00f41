//! What another node's replica of the same partition says to this one: the other end of [`crate::Transport`].

use futures::{
    StreamExt,
    future::ready,
    stream::{self, BoxStream},
};

use crate::{
    error::AppendError,
    network::{
        AppendRequest, AppendResponse, SnapshotRequest, SnapshotResponse, TransferRequest,
        TransferResponse, VoteRequest, VoteResponse,
    },
    partition::Partition,
};

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
        match self.raft() {
            Ok(raft) => raft
                .stream_append(requests.map(|request| request.0))
                .map(|answer| answer.map(AppendResponse).map_err(failed))
                .boxed(),
            Err(error) => stream::once(ready(Err(error))).boxed(),
        }
    }

    /// A candidate asks for this replica's vote.
    pub async fn receive_vote(&self, request: VoteRequest) -> Result<VoteResponse, AppendError> {
        let answer = self.raft()?.vote(request.0).await;
        answer.map(VoteResponse).map_err(failed)
    }

    /// A replica asks whether it would get this one's vote.
    pub async fn receive_pre_vote(
        &self,
        request: VoteRequest,
    ) -> Result<VoteResponse, AppendError> {
        let answer = self.raft()?.pre_vote(request.0).await;
        answer.map(VoteResponse).map_err(failed)
    }

    /// A leader no longer has the entries that this replica lacks: it goes on after them, without the records in them.
    pub async fn receive_snapshot(
        &self,
        request: SnapshotRequest,
    ) -> Result<SnapshotResponse, AppendError> {
        let (vote, snapshot) = request.0;
        let answer = self.raft()?.install_full_snapshot(vote, snapshot).await;
        answer.map(SnapshotResponse).map_err(failed)
    }

    /// A leader wants this replica to lead.
    pub async fn receive_transfer(
        &self,
        request: TransferRequest,
    ) -> Result<TransferResponse, AppendError> {
        let answer = self.raft()?.handle_transfer_leader(request.0).await;
        answer.map(TransferResponse).map_err(failed)
    }
}
