//! Messages between the replicas of a group, over whatever transport the broker supplies.

use std::{
    fmt,
    future::{Future, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{
    Stream, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use openraft::{
    AnyError, EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    alias::{SnapshotOf, VoteOf},
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft,
};
use parking_lot::Mutex;
use quipu_model::{NodeId, Offset, PartitionKey};
use quipu_storage::PartitionLog;

use crate::{
    config::APPEND_PATIENCE,
    conflicts::Conflicts,
    parts::{SleepOutcome, SleepParts},
    state_machine::Manifest,
    type_config::Types,
};

type RaftError = RPCError<Types>;
type BoxResult<'a, T> = openraft::base::BoxFuture<'a, Result<T, RaftError>>;
type Appends<'a> =
    openraft::base::BoxStream<'a, Result<raft::StreamAppendResult<Types>, RaftError>>;

macro_rules! message {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        pub struct $name(pub(crate) $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}

message! {
    /// Entries from a leader; without any, a heartbeat.
    AppendRequest(raft::AppendEntriesRequest<Types>)
}
message! {
    /// What a follower answers to an [`AppendRequest`], in the order of the requests.
    AppendResponse(raft::StreamAppendResult<Types>)
}
message! {
    /// A candidate's request for a vote, or, before it becomes one, the question whether it would get it.
    VoteRequest(raft::VoteRequest<Types>)
}
message! {
    /// The answer to a [`VoteRequest`].
    VoteResponse(raft::VoteResponse<Types>)
}
message! {
    /// From where on a follower is to go on that is behind the log's start; or all that a replica has applied, for one whose log is
    /// damaged.
    SnapshotRequest((VoteOf<Types>, SnapshotOf<Types, Manifest>))
}
message! {
    /// The answer to a [`SnapshotRequest`].
    SnapshotResponse(raft::SnapshotResponse<Types>)
}
message! {
    /// A leader's wish that another replica lead.
    TransferRequest(raft::TransferLeaderRequest<Types>)
}
message! {
    /// The answer to a [`TransferRequest`].
    TransferResponse(raft::TransferLeaderResponse<Types>)
}

message! {
    /// A leader's wish that its group sleep.
    SleepRequest(SleepParts)
}
message! {
    /// The answer to a [`SleepRequest`].
    SleepResponse(SleepOutcome)
}

/// Asks a replica for batches as they stand in its log, to put them into another replica's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRequest {
    /// The offset of the first record wanted.
    pub from: Offset,
    /// Only whole batches below this.
    pub up_to: Offset,
    /// At most so many bytes, but at least one batch; a replica may give fewer.
    pub max_bytes: u32,
    /// Whether what is not known to be committed will do, and what is sound of a damaged log: for a repair, which knows which
    /// entries it wants.
    pub uncommitted: bool,
}

/// What a replica answers to a [`CopyRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyResponse {
    /// Whole batches, lent from the log. Whoever puts them into a log checks them first: see
    /// [`quipu_storage::check_copied`].
    Batches {
        /// The batches. The first may begin before the offset that was asked for. Empty where that was the end of the range.
        bytes: Bytes,
        /// Where to go on.
        next_offset: Offset,
    },
    /// Not all that was asked for is there.
    OutOfRange {
        /// The first offset that this replica still has.
        start: Offset,
        /// The offset after the last one that it knows to be committed.
        end: Offset,
    },
}

/// A message was not answered.
#[derive(Clone, Debug, thiserror::Error)]
#[error("node {node} was not reached: {reason}")]
pub struct TransportError {
    /// The node that the message was for.
    pub node: NodeId,
    /// What went wrong.
    pub reason: String,
}

/// A message on its way, and what it is answered with.
pub type Called<'a, T> = BoxFuture<'a, Result<T, TransportError>>;
/// A follower's answers, in the order of the requests.
pub type AppendAnswers = BoxStream<'static, Result<AppendResponse, TransportError>>;

/// Sends a group's messages to another node.
///
/// Every call must end within its `timeout`: a message that hangs holds its group up.
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Sends requests as they come and answers in their order. A follower that takes requests and does not answer for
    /// `timeout` is cut off with an error.
    fn append(
        &self,
        target: NodeId,
        key: PartitionKey,
        requests: BoxStream<'static, AppendRequest>,
        timeout: Duration,
    ) -> Called<'_, AppendAnswers>;
    /// Asks for a vote.
    fn vote(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: VoteRequest,
        timeout: Duration,
    ) -> Called<'_, VoteResponse>;
    /// Asks whether a vote would be granted. A transport must carry the question: an answer of its own would let a
    /// replica that was cut off disturb the others' leader.
    fn pre_vote(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: VoteRequest,
        timeout: Duration,
    ) -> Called<'_, VoteResponse>;
    /// Tells a follower from where on to go on.
    fn snapshot(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: SnapshotRequest,
        timeout: Duration,
    ) -> Called<'_, SnapshotResponse>;
    /// Asks a replica to lead.
    fn transfer_leader(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: TransferRequest,
        timeout: Duration,
    ) -> Called<'_, TransferResponse>;
    /// Asks a replica to sleep.
    fn sleep(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: SleepRequest,
        timeout: Duration,
    ) -> Called<'_, SleepResponse>;
    /// Asks a replica for a snapshot of all that it has applied, for one here whose log is damaged.
    fn take_over(
        &self,
        target: NodeId,
        key: PartitionKey,
        timeout: Duration,
    ) -> Called<'_, SnapshotRequest>;
    /// Asks a replica for batches. Many bytes may come of it: neither heartbeats nor fresh records may have to wait for them.
    fn copy(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: CopyRequest,
        timeout: Duration,
    ) -> Called<'_, CopyResponse>;
}

/// The transport of a node without peers: whatever is sent is unreachable.
#[derive(Clone, Copy, Debug)]
pub struct NoPeers;

fn no_peer<T: Send + 'static>(node: NodeId) -> Called<'static, T> {
    let reason = "this node runs alone".to_owned();
    Box::pin(ready(Err(TransportError { node, reason })))
}

impl Transport for NoPeers {
    fn append(
        &self,
        target: NodeId,
        _: PartitionKey,
        _: BoxStream<'static, AppendRequest>,
        _: Duration,
    ) -> Called<'_, AppendAnswers> {
        no_peer(target)
    }
    fn vote(
        &self,
        target: NodeId,
        _: PartitionKey,
        _: VoteRequest,
        _: Duration,
    ) -> Called<'_, VoteResponse> {
        no_peer(target)
    }
    fn pre_vote(
        &self,
        target: NodeId,
        _: PartitionKey,
        _: VoteRequest,
        _: Duration,
    ) -> Called<'_, VoteResponse> {
        no_peer(target)
    }
    fn snapshot(
        &self,
        target: NodeId,
        _: PartitionKey,
        _: SnapshotRequest,
        _: Duration,
    ) -> Called<'_, SnapshotResponse> {
        no_peer(target)
    }
    fn transfer_leader(
        &self,
        target: NodeId,
        _: PartitionKey,
        _: TransferRequest,
        _: Duration,
    ) -> Called<'_, TransferResponse> {
        no_peer(target)
    }
    fn sleep(
        &self,
        target: NodeId,
        _: PartitionKey,
        _: SleepRequest,
        _: Duration,
    ) -> Called<'_, SleepResponse> {
        no_peer(target)
    }
    fn take_over(
        &self,
        target: NodeId,
        _: PartitionKey,
        _: Duration,
    ) -> Called<'_, SnapshotRequest> {
        no_peer(target)
    }
    fn copy(
        &self,
        target: NodeId,
        _: PartitionKey,
        _: CopyRequest,
        _: Duration,
    ) -> Called<'_, CopyResponse> {
        no_peer(target)
    }
}

/// Hands openraft a client for each of a group's other replicas.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) log: Arc<PartitionLog>,
    pub(crate) transport: Arc<dyn Transport>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Peer {
        Peer {
            target: NodeId::new(target),
            network: self.clone(),
            heartbeats: false,
            conflicts: Arc::default(),
        }
    }

    async fn new_heartbeat_client(&mut self, target: u64, _: &EmptyNode) -> Peer {
        Peer {
            target: NodeId::new(target),
            network: self.clone(),
            heartbeats: true,
            conflicts: Arc::default(),
        }
    }
}

/// One other replica of a group.
#[derive(Debug)]
pub(crate) struct Peer {
    target: NodeId,
    network: Network,
    /// Whether it carries heartbeats only, which need no entry.
    heartbeats: bool,
    conflicts: Arc<Mutex<Conflicts>>,
}

impl Peer {
    fn transport(&self) -> (&dyn Transport, NodeId, PartitionKey) {
        let network = &self.network;
        (&*network.transport, self.target, network.log.key())
    }

    /// What tells of a request whether the entries that its receiver lacks next were purged, or deleted with their segments. openraft reads
    /// nothing then, sends that, is told that it arrived, and does so for ever: as long as the stream goes on it keeps the
    /// entries it thinks are on their way from being purged, without which there is no snapshot instead of them.
    fn lacks_entries(
        &self,
    ) -> impl Fn(&raft::AppendEntriesRequest<Types>) -> bool + Send + 'static {
        let log = (!self.heartbeats).then(|| Arc::clone(&self.network.log));
        move |request| {
            let Some(log) = log.as_ref().filter(|_| request.entries.is_empty()) else {
                return false;
            };
            let next = request.prev_log_id.map_or(0, |id| id.index + 1);
            let deleted = log.purge_point().map(|(last, _)| last);
            deleted
                .max(log.state().last_purged)
                .is_some_and(|last| next <= last.index.get())
        }
    }
}

fn unreachable(error: TransportError) -> Unreachable<Types> {
    Unreachable::new(&AnyError::new(&error))
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = Manifest;

    async fn append_entries(
        &mut self,
        rpc: raft::AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<raft::AppendEntriesResponse<Types>, RaftError> {
        let requests = stream::once(ready(rpc)).boxed();
        let node = self.target;
        let mut answers = self.stream_append(requests, option).await?;
        let answer = answers.next().await.unwrap_or_else(|| {
            let reason = "the stream ended without an answer".to_owned();
            Err(unreachable(TransportError { node, reason }).into())
        })?;
        Ok(answer.into())
    }

    /// openraft waits before it tries again, after an error, where it is asked for the next request: without being asked it would
    /// try again at once, for ever.
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxResult<'s, Appends<'s>>
    where
        S: Stream<Item = raft::AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let lacks_entries = self.lacks_entries();
        let (transport, target, key) = self.transport();
        let patience = option.hard_ttl().max(APPEND_PATIENCE);
        let conflicts = (!self.heartbeats).then(|| Arc::clone(&self.conflicts));
        Box::pin(async move {
            let Some(first) = input.next().await else {
                return Ok(stream::empty().boxed() as Appends<'s>);
            };
            let cut = Arc::new(AtomicBool::new(false));
            let noted = Arc::clone(&cut);
            let requests = stream::once(ready(first)).chain(input);
            let requests = requests.take_while(move |request| {
                let lacks = lacks_entries(request);
                noted.fetch_or(lacks, Ordering::Relaxed);
                ready(!lacks)
            });
            let requests = requests.map(AppendRequest).boxed();
            let answers = transport
                .append(target, key, requests, patience)
                .await
                .map_err(unreachable)?;
            let answers = answers.map(move |answer| {
                let answer = answer.map_err(unreachable)?.0;
                let repeats = |conflicts: &Mutex<Conflicts>| conflicts.lock().repeats(&answer);
                if conflicts.as_deref().is_some_and(repeats) {
                    tracing::error!(partition = %key, node = %target, "a node lacks an entry that it had acknowledged, as after its data directory was replaced by an old copy: replace the node");
                    let reason = "it lacks an entry that it had acknowledged".to_owned();
                    let node = target;
                    return Err(unreachable(TransportError { node, reason }).into());
                }
                Ok(answer)
            });
            let deleted = stream::iter(std::iter::from_fn(move || {
                cut.swap(false, Ordering::Relaxed).then(|| {
                    let reason = "the entries that it lacks are no longer in the log".to_owned();
                    let node = target;
                    Err(unreachable(TransportError { node, reason }).into())
                })
            }));
            Ok(answers.chain(deleted).boxed() as Appends<'s>)
        })
    }

    async fn vote(
        &mut self,
        rpc: raft::VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<raft::VoteResponse<Types>, RaftError> {
        let (transport, target, key) = self.transport();
        let answer = transport.vote(target, key, VoteRequest(rpc), option.hard_ttl());
        Ok(answer.await.map_err(unreachable)?.0)
    }

    async fn pre_vote(
        &mut self,
        rpc: raft::VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<raft::VoteResponse<Types>, RaftError> {
        let (transport, target, key) = self.transport();
        let answer = transport.pre_vote(target, key, VoteRequest(rpc), option.hard_ttl());
        Ok(answer.await.map_err(unreachable)?.0)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, Manifest>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<raft::SnapshotResponse<Types>, StreamingError<Types>> {
        let (transport, target, key) = self.transport();
        let request = SnapshotRequest((vote, snapshot));
        let answer = transport.snapshot(target, key, request, option.hard_ttl());
        tokio::select! {
            closed = cancel => Err(closed.into()),
            answer = answer => Ok(answer.map_err(unreachable)?.0),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: raft::TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<raft::TransferLeaderResponse<Types>, RaftError> {
        let (transport, target, key) = self.transport();
        let request = TransferRequest(req);
        let answer = transport.transfer_leader(target, key, request, option.hard_ttl());
        Ok(answer.await.map_err(unreachable)?.0)
    }
}
