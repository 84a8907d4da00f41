//! What the messages between replicas carry, in the model's terms: what a transport encodes and decodes. openraft's own types
//! stay inside this crate.

use bytes::Bytes;
use openraft::{
    alias::{SnapshotMetaOf, SnapshotOf},
    raft::{self, StreamAppendError, TransferLeaderError},
};
use quipu_model::{LogId, NodeId, Offset, RaftIndex, Term, Vote};
use quipu_storage::{BadManifest, LogEntry};

use crate::{
    network::{
        AppendRequest, AppendResponse, SleepRequest, SleepResponse, SnapshotRequest,
        SnapshotResponse, TransferRequest, TransferResponse, VoteRequest, VoteResponse,
    },
    state_machine::Manifest,
    type_config::{
        RaftLogId, StoredMembership, Types, UnknownBytes, decode_membership, encode_membership,
        from_log_entry, from_raft_id, from_raft_vote, to_log_entry, to_raft_id, to_raft_vote,
    },
};

/// A message cannot be what a replica of this version sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a peer's message cannot be taken: {0}")]
pub struct BadMessage(#[source] BadPart);

/// What of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum BadPart {
    #[error(transparent)]
    Unknown(UnknownBytes),
    #[error(transparent)]
    Manifest(BadManifest),
    #[error("entry {0} does not follow the one before it in the leader's log")]
    Order(LogId),
}

impl From<UnknownBytes> for BadMessage {
    fn from(error: UnknownBytes) -> Self {
        Self(BadPart::Unknown(error))
    }
}

impl From<BadManifest> for BadMessage {
    fn from(error: BadManifest) -> Self {
        Self(BadPart::Manifest(error))
    }
}

/// What an [`AppendRequest`] carries.
#[derive(Clone, Debug)]
pub struct AppendParts {
    /// The vote by which the sender leads.
    pub leader: Vote,
    /// The entry before the first of `entries`.
    pub previous: Option<LogId>,
    /// Up to where the leader knows entries to be committed.
    pub committed: Option<LogId>,
    /// In the order of the log; batches as the leader's log holds them. None: a heartbeat.
    pub entries: Vec<LogEntry>,
}

impl AppendParts {
    fn check_order(&self) -> Result<(), BadMessage> {
        let (mut index, mut term) = match self.previous {
            Some(previous) => (previous.index.next(), previous.term),
            None => (RaftIndex::default(), Term::default()),
        };
        for LogEntry { id, .. } in &self.entries {
            if id.index != index || id.term < term || id.term > self.leader.term {
                return Err(BadMessage(BadPart::Order(*id)));
            }
            (index, term) = (index.next(), id.term);
        }
        Ok(())
    }
}

/// What an [`AppendResponse`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendOutcome {
    /// The follower's log agrees with the leader's up to here, and is flushed.
    Matched(Option<LogId>),
    /// The follower has another entry, or none, where the request's previous one should be.
    Conflict(LogId),
    /// The follower has given a later leader its vote.
    HigherVote(Vote),
}

/// What a [`VoteRequest`] carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteParts {
    /// The term that the candidate stands in, and itself.
    pub candidate: Vote,
    /// The last entry of the candidate's log.
    pub last: Option<LogId>,
    /// Whether the leader itself asked the candidate to stand.
    pub transfer: bool,
}

/// What a [`VoteResponse`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteOutcome {
    /// The voter's vote as it is now.
    pub vote: Vote,
    /// Whether the candidate has it.
    pub granted: bool,
    /// The last entry of the voter's log.
    pub last: Option<LogId>,
}

/// What a [`SnapshotRequest`] carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotParts {
    /// The vote by which the sender leads.
    pub leader: Vote,
    /// The last entry that the snapshot stands for.
    pub last: Option<LogId>,
    /// The entry that made the group's members what they are.
    pub members_at: Option<LogId>,
    /// The group's members, in the encoding of the log's membership entries.
    pub members: Bytes,
    /// The offset at which records go on.
    pub next_offset: Offset,
    /// What the log up to there is made of, in storage's encoding; empty where there is nothing to copy.
    pub manifest: Bytes,
}

/// What a [`TransferRequest`] carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferParts {
    /// The vote by which the sender leads.
    pub leader: Vote,
    /// Who is to lead.
    pub to: NodeId,
    /// What that node's log must hold first.
    pub last: Option<LogId>,
}

/// What a [`TransferResponse`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferOutcome {
    /// The replica stands for leader.
    Accepted,
    /// The replica knows of another leader than the sender.
    VoteChanged {
        /// The sender's vote.
        expected: Vote,
        /// The replica's.
        actual: Vote,
    },
    /// The replica lacks entries.
    LogNotFlushed {
        /// What it should hold.
        expected: Option<LogId>,
        /// What it holds.
        actual: Option<LogId>,
    },
}

/// What a [`SleepRequest`] carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepParts {
    /// The vote by which the sender leads.
    pub leader: Vote,
    /// Its last entry, which it knows to be on all members.
    pub last: LogId,
}

/// What a [`SleepResponse`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepOutcome {
    /// The replica sleeps until something wakes it.
    Agreed,
    /// The replica does not stand where the leader thinks, or has reason to doubt the leader.
    Refused,
}

fn from_id(id: Option<RaftLogId>) -> Option<LogId> {
    id.as_ref().map(from_raft_id)
}

fn to_id(id: Option<LogId>) -> Option<RaftLogId> {
    id.map(to_raft_id)
}

impl AppendRequest {
    /// What it carries; a batch's bytes are shared, not copied.
    ///
    /// # Errors
    /// Where an entry has no bytes to send.
    pub fn into_parts(self) -> Result<AppendParts, BadMessage> {
        let entries = self.0.entries.into_iter();
        Ok(AppendParts {
            leader: from_raft_vote(&self.0.vote),
            previous: from_id(self.0.prev_log_id),
            committed: from_id(self.0.leader_commit),
            entries: entries
                .map(|entry| Ok(to_log_entry(entry)?.entry))
                .collect::<Result<_, UnknownBytes>>()?,
        })
    }

    /// The request that carries these.
    ///
    /// # Errors
    /// Where an entry's bytes are of a form unknown here, or the entries do not follow one another as in a leader's log.
    pub fn from_parts(parts: AppendParts) -> Result<Self, BadMessage> {
        parts.check_order()?;
        let entries = parts.entries.into_iter().map(from_log_entry);
        Ok(Self(raft::AppendEntriesRequest {
            vote: to_raft_vote(parts.leader),
            prev_log_id: to_id(parts.previous),
            entries: entries.collect::<Result<_, _>>()?,
            leader_commit: to_id(parts.committed),
        }))
    }
}

impl From<AppendResponse> for AppendOutcome {
    fn from(response: AppendResponse) -> Self {
        match response.0 {
            Ok(matched) => Self::Matched(from_id(matched)),
            Err(StreamAppendError::Conflict(at)) => Self::Conflict(from_raft_id(&at)),
            Err(StreamAppendError::HigherVote(vote)) => Self::HigherVote(from_raft_vote(&vote)),
        }
    }
}

impl From<AppendOutcome> for AppendResponse {
    fn from(outcome: AppendOutcome) -> Self {
        Self(match outcome {
            AppendOutcome::Matched(matched) => Ok(to_id(matched)),
            AppendOutcome::Conflict(at) => Err(StreamAppendError::Conflict(to_raft_id(at))),
            AppendOutcome::HigherVote(vote) => {
                Err(StreamAppendError::HigherVote(to_raft_vote(vote)))
            }
        })
    }
}

impl From<VoteRequest> for VoteParts {
    fn from(request: VoteRequest) -> Self {
        Self {
            candidate: from_raft_vote(&request.0.vote),
            last: from_id(request.0.last_log_id),
            transfer: request.0.leadership_transfer,
        }
    }
}

impl From<VoteParts> for VoteRequest {
    fn from(parts: VoteParts) -> Self {
        let mut request = raft::VoteRequest::new(to_raft_vote(parts.candidate), to_id(parts.last));
        request.leadership_transfer = parts.transfer;
        Self(request)
    }
}

impl From<VoteResponse> for VoteOutcome {
    fn from(response: VoteResponse) -> Self {
        Self {
            vote: from_raft_vote(&response.0.vote),
            granted: response.0.vote_granted,
            last: from_id(response.0.last_log_id),
        }
    }
}

impl From<VoteOutcome> for VoteResponse {
    fn from(outcome: VoteOutcome) -> Self {
        let vote = to_raft_vote(outcome.vote);
        Self(raft::VoteResponse::new(
            vote,
            to_id(outcome.last),
            outcome.granted,
        ))
    }
}

impl From<SnapshotRequest> for SnapshotParts {
    fn from(request: SnapshotRequest) -> Self {
        let (vote, snapshot) = request.0;
        let members = &snapshot.meta.last_membership;
        Self {
            leader: from_raft_vote(&vote),
            last: from_id(snapshot.meta.last_log_id),
            members_at: from_id(*members.log_id()),
            members: encode_membership(members.membership()),
            next_offset: snapshot.snapshot.next_offset,
            manifest: snapshot
                .snapshot
                .log
                .map(|log| log.encode())
                .unwrap_or_default(),
        }
    }
}

impl SnapshotRequest {
    /// The request that carries these.
    ///
    /// # Errors
    /// Where the members are of a form unknown here.
    pub fn from_parts(parts: &SnapshotParts) -> Result<Self, BadMessage> {
        let members = decode_membership(&parts.members)?;
        let snapshot = SnapshotOf::<Types, Manifest> {
            meta: SnapshotMetaOf::<Types> {
                last_log_id: to_id(parts.last),
                last_membership: StoredMembership::new(to_id(parts.members_at), members),
            },
            snapshot: Manifest {
                next_offset: parts.next_offset,
                log: match parts.manifest.is_empty() {
                    true => None,
                    false => Some(quipu_storage::Manifest::decode(parts.manifest.clone())?),
                },
            },
        };
        Ok(Self((to_raft_vote(parts.leader), snapshot)))
    }
}

impl From<SnapshotResponse> for Vote {
    fn from(response: SnapshotResponse) -> Self {
        from_raft_vote(&response.0.vote)
    }
}

impl From<Vote> for SnapshotResponse {
    fn from(vote: Vote) -> Self {
        Self(raft::SnapshotResponse::new(to_raft_vote(vote)))
    }
}

impl From<TransferRequest> for TransferParts {
    fn from(request: TransferRequest) -> Self {
        Self {
            leader: from_raft_vote(request.0.from_leader()),
            to: NodeId::new(*request.0.to_node_id()),
            last: from_id(request.0.last_log_id().copied()),
        }
    }
}

impl From<TransferParts> for TransferRequest {
    fn from(parts: TransferParts) -> Self {
        let (leader, to) = (to_raft_vote(parts.leader), parts.to.get());
        Self(raft::TransferLeaderRequest::new(
            leader,
            to,
            to_id(parts.last),
        ))
    }
}

impl From<TransferResponse> for TransferOutcome {
    fn from(response: TransferResponse) -> Self {
        match response.0 {
            Ok(()) => Self::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => Self::VoteChanged {
                expected: from_raft_vote(&expected),
                actual: from_raft_vote(&actual),
            },
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => Self::LogNotFlushed {
                expected: from_id(expected),
                actual: from_id(actual),
            },
        }
    }
}

impl From<TransferOutcome> for TransferResponse {
    fn from(outcome: TransferOutcome) -> Self {
        Self(match outcome {
            TransferOutcome::Accepted => Ok(()),
            TransferOutcome::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged {
                    expected: to_raft_vote(expected),
                    actual: to_raft_vote(actual),
                })
            }
            TransferOutcome::LogNotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed {
                    expected: to_id(expected),
                    actual: to_id(actual),
                })
            }
        })
    }
}

impl From<SleepRequest> for SleepParts {
    fn from(request: SleepRequest) -> Self {
        request.0
    }
}

impl From<SleepParts> for SleepRequest {
    fn from(parts: SleepParts) -> Self {
        Self(parts)
    }
}

impl From<SleepResponse> for SleepOutcome {
    fn from(response: SleepResponse) -> Self {
        response.0
    }
}

impl From<SleepOutcome> for SleepResponse {
    fn from(outcome: SleepOutcome) -> Self {
        Self(outcome)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quipu_model::{LogId, NodeId, Offset, Term, Vote};
    use quipu_storage::{Control, ControlKind, LogEntry, Payload};

    use super::{
        AppendOutcome, AppendParts, AppendRequest, AppendResponse, SnapshotParts, SnapshotRequest,
        TransferOutcome, TransferResponse,
    };

    const VOTE: Vote = Vote {
        term: Term::new(7),
        node: NodeId::new(2),
        committed: true,
    };

    fn trim(bytes: &'static [u8]) -> AppendParts {
        let control = Control {
            kind: ControlKind::Trim,
            bytes: Bytes::from_static(bytes),
        };
        AppendParts {
            leader: VOTE,
            previous: Some(LogId::new(6, 9)),
            committed: None,
            entries: vec![LogEntry {
                id: LogId::new(7, 10),
                payload: Payload::Control(control),
            }],
        }
    }

    #[test]
    fn a_request_is_made_of_its_parts_again() {
        let parts = trim(&[0, 0, 0, 0, 0, 0, 1, 2]);
        let again = AppendRequest::from_parts(parts.clone()).unwrap();
        let again = again.into_parts().unwrap();
        assert_eq!(format!("{again:?}"), format!("{parts:?}"));
    }

    #[test]
    fn entries_and_members_of_an_unknown_form_are_refused() {
        let refused = AppendRequest::from_parts(trim(b"short")).unwrap_err();
        assert!(refused.to_string().contains("trim"), "{refused}");
        let parts = SnapshotParts {
            leader: VOTE,
            last: None,
            members_at: None,
            members: Bytes::from_static(&[9, 1, 2]),
            next_offset: Offset::ZERO,
            manifest: Bytes::new(),
        };
        assert!(SnapshotRequest::from_parts(&parts).is_err());
    }

    #[test]
    fn every_answer_is_made_of_its_outcome_again() {
        let (low, high) = (LogId::new(1, 2), LogId::new(3, 4));
        for outcome in [
            AppendOutcome::Matched(None),
            AppendOutcome::Matched(Some(high)),
            AppendOutcome::Conflict(low),
            AppendOutcome::HigherVote(VOTE),
        ] {
            assert_eq!(AppendOutcome::from(AppendResponse::from(outcome)), outcome);
        }
        let other = Vote {
            committed: false,
            ..VOTE
        };
        for outcome in [
            TransferOutcome::Accepted,
            TransferOutcome::VoteChanged {
                expected: VOTE,
                actual: other,
            },
            TransferOutcome::LogNotFlushed {
                expected: Some(high),
                actual: Some(low),
            },
        ] {
            assert_eq!(
                TransferOutcome::from(TransferResponse::from(outcome)),
                outcome
            );
        }
    }
}
