//! The links to all other nodes.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::ready, stream::BoxStream};
use parking_lot::Mutex;
use quipu_model::{LeaderEpoch, NodeId, PartitionKey};
use quipu_proto::peer::v1::{Request, TakeOver, answer, request::Kind};
use quipu_replication::{
    AppendAnswers, AppendRequest, Called, CopyRequest, CopyResponse, SleepRequest, SleepResponse,
    SnapshotRequest, SnapshotResponse, TransferRequest, TransferResponse, Transport,
    TransportError, VoteRequest, VoteResponse,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Host,
    append::append,
    convert::{
        Bad, from_copy_answer, from_sleep_answer, from_snapshot, from_snapshot_answer,
        from_transfer_answer, from_vote_answer, to_copy, to_group, to_sleep, to_snapshot,
        to_transfer, to_vote_request,
    },
    cost,
    dial::{Lane, Peer},
    link::Haste,
};

#[derive(Debug, Default)]
struct State {
    host: Option<Arc<dyn Host>>,
    /// Where the others are; the same as in `linked`, once there is a host.
    addresses: HashMap<NodeId, String>,
    linked: HashMap<NodeId, Arc<Peer>>,
}

/// The links to all other nodes: the transport of this node's replicas.
#[derive(Debug)]
pub(crate) struct PeerLinks {
    node: NodeId,
    lane_bytes: usize,
    state: Mutex<State>,
    stop: CancellationToken,
    lanes: TaskTracker,
}

impl PeerLinks {
    /// For node `node`, not linked to any other; each lane is to hold `lane_bytes` of requests.
    pub(crate) fn new(node: NodeId, lane_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            node,
            lane_bytes,
            state: Mutex::default(),
            stop: CancellationToken::new(),
            lanes: TaskTracker::new(),
        })
    }

    /// Links are made from now on.
    pub(crate) fn start(&self, host: Arc<dyn Host>) {
        let mut state = self.state.lock();
        state.host = Some(host);
        self.link(&mut state);
    }

    /// Who the other nodes are, and where (`host:port`). Links to nodes that are not named end; a node whose address changed is
    /// dialled anew. This node itself may be among them.
    pub(crate) fn set_peers(&self, mut peers: HashMap<NodeId, String>) {
        peers.remove(&self.node);
        let mut state = self.state.lock();
        state.addresses = peers;
        self.link(&mut state);
    }

    fn link(&self, state: &mut State) {
        let Some(host) = state.host.as_ref().filter(|_| !self.stop.is_cancelled()) else {
            return;
        };
        let addresses = &state.addresses;
        state.linked.retain(|node, peer| {
            let stays = addresses.get(node) == Some(&peer.address);
            if !stays {
                peer.end();
            }
            stays
        });
        for (node, address) in addresses {
            if let Entry::Vacant(place) = state.linked.entry(*node) {
                let stop = self.stop.child_token();
                let host = Arc::clone(host);
                let peer = Peer::new(*node, address.clone(), stop, host, self.lane_bytes);
                for lane in Lane::ALL {
                    self.lanes.spawn(Arc::clone(&peer).keep(lane));
                }
                place.insert(peer);
            }
        }
    }

    /// Tells all linked nodes that this node leads these groups; nodes linked later are told by [`Host::led`].
    pub(crate) fn announce(&self, led: Vec<(PartitionKey, LeaderEpoch)>) {
        let state = self.state.lock();
        for peer in state.linked.values() {
            if let Ok(link) = peer.link(Lane::Control) {
                link.announce(&led);
            }
        }
    }

    /// Ends all links; no more are made.
    pub(crate) async fn shutdown(&self) {
        self.stop.cancel();
        self.lanes.close();
        self.lanes.wait().await;
        // The host may hold the links, too.
        *self.state.lock() = State::default();
    }

    fn peer(&self, node: NodeId) -> Result<Arc<Peer>, TransportError> {
        let peer = self.state.lock().linked.get(&node).cloned();
        peer.ok_or_else(|| {
            let reason = "its address is not known here".to_owned();
            TransportError { node, reason }
        })
    }

    /// A call with one answer.
    fn ask<A>(
        &self,
        (node, lane): (NodeId, Lane),
        key: PartitionKey,
        kind: Kind,
        timeout: Duration,
        read: impl FnOnce(answer::Kind) -> Option<Result<A, Bad>> + Send + 'static,
    ) -> Called<'static, A> {
        let peer = self.peer(node);
        async move {
            let peer = peer?;
            let answer = tokio::time::timeout(timeout, ask(&peer, lane, key, kind)).await;
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
            let answer = answer.and_then(|answer| match answer {
                answer::Kind::Failed(reason) => Err(reason),
                answer => read(answer)
                    .unwrap_or_else(|| Err("it was answered like another request".to_owned())),
            });
            answer.map_err(|reason| TransportError { node, reason })
        }
        .boxed()
    }
}

async fn ask(
    peer: &Peer,
    lane: Lane,
    key: PartitionKey,
    kind: Kind,
) -> Result<answer::Kind, String> {
    let link = peer.link(lane)?;
    let request = Request {
        group: Some(to_group(key)),
        last: true,
        kind: Some(kind),
        ..Request::default()
    };
    let cost = cost(&request);
    // Held until the answer is there; given back after the call was given up.
    let room = link.room(cost).await?;
    let mut call = link.call()?;
    call.send(request, cost, Arc::clone(&room), Haste::AtOnce);
    call.answer().await
}

impl Drop for PeerLinks {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Transport for PeerLinks {
    fn append(
        &self,
        target: NodeId,
        key: PartitionKey,
        requests: BoxStream<'static, AppendRequest>,
        timeout: Duration,
    ) -> Called<'_, AppendAnswers> {
        let begun = self.peer(target).and_then(|peer| {
            // Without a link nothing need be read from the log.
            let linked = peer.link(Lane::Control).map(drop);
            linked.map_err(|reason| TransportError {
                node: target,
                reason,
            })?;
            Ok(append(peer, key, requests, timeout))
        });
        ready(begun).boxed()
    }

    fn vote(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: VoteRequest,
        timeout: Duration,
    ) -> Called<'_, VoteResponse> {
        let kind = Kind::Vote(to_vote_request(request));
        self.ask((target, Lane::Control), key, kind, timeout, voted)
    }

    fn pre_vote(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: VoteRequest,
        timeout: Duration,
    ) -> Called<'_, VoteResponse> {
        let kind = Kind::PreVote(to_vote_request(request));
        self.ask((target, Lane::Control), key, kind, timeout, voted)
    }

    fn snapshot(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: SnapshotRequest,
        timeout: Duration,
    ) -> Called<'_, SnapshotResponse> {
        let kind = Kind::Snapshot(to_snapshot(request));
        self.ask(
            (target, Lane::Control),
            key,
            kind,
            timeout,
            |answer| match answer {
                answer::Kind::Snapshot(vote) => Some(Ok(from_snapshot_answer(vote))),
                _ => None,
            },
        )
    }

    fn transfer_leader(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: TransferRequest,
        timeout: Duration,
    ) -> Called<'_, TransferResponse> {
        let kind = Kind::Transfer(to_transfer(request));
        self.ask(
            (target, Lane::Control),
            key,
            kind,
            timeout,
            |answer| match answer {
                answer::Kind::Transfer(answer) => Some(from_transfer_answer(answer)),
                _ => None,
            },
        )
    }

    fn sleep(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: SleepRequest,
        timeout: Duration,
    ) -> Called<'_, SleepResponse> {
        let kind = Kind::Sleep(to_sleep(request));
        self.ask(
            (target, Lane::Control),
            key,
            kind,
            timeout,
            |answer| match answer {
                answer::Kind::Sleep(answer) => Some(Ok(from_sleep_answer(answer))),
                _ => None,
            },
        )
    }

    fn take_over(
        &self,
        target: NodeId,
        key: PartitionKey,
        timeout: Duration,
    ) -> Called<'_, SnapshotRequest> {
        let kind = Kind::TakeOver(TakeOver {});
        self.ask(
            (target, Lane::Control),
            key,
            kind,
            timeout,
            |answer| match answer {
                answer::Kind::TakeOver(all) => Some(from_snapshot(all)),
                _ => None,
            },
        )
    }

    fn copy(
        &self,
        target: NodeId,
        key: PartitionKey,
        request: CopyRequest,
        timeout: Duration,
    ) -> Called<'_, CopyResponse> {
        let lane = (target, Lane::Copies);
        let kind = Kind::Copy(to_copy(request));
        self.ask(lane, key, kind, timeout, |answer| match answer {
            answer::Kind::Copy(answer) => Some(from_copy_answer(answer)),
            _ => None,
        })
    }
}

fn voted(answer: answer::Kind) -> Option<Result<VoteResponse, Bad>> {
    match answer {
        answer::Kind::Vote(answer) => Some(from_vote_answer(answer)),
        _ => None,
    }
}
