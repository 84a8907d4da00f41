//! What openraft works with here, and the conversions between its ids and the model's: nowhere else do the two meet.

use std::{collections::BTreeSet, fmt, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::{
    EmptyNode, EntryPayload, impls::leader_id_std, vote::leader_id_std::CommittedLeaderId,
};
use quipu_model::{LogId, NodeId, Offset, RecordBatch, Term, Vote};
use quipu_storage::{Control, ControlKind, EntryInfo, EntryKind, LogEntry, Payload, Reservation};

use crate::{flight::Flight, state_machine::StateMachine};

/// openraft's types here: one leader a term, so that a term is a leader epoch and an entry's id is a term and an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types;

impl openraft::RaftTypeConfig for Types {
    type D = Proposal;
    type R = Applied;
    type NodeId = u64;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Proposal, u64, EmptyNode>;
    type Entry = openraft::Entry<CommittedLeaderId<u64>, Self::Payload>;
    type AsyncRuntime = openraft::impls::TokioRuntime;
    type Responder<T>
        = Answer<T>
    where
        T: Send + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: Send + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type Raft = openraft::Raft<Types, StateMachine>;
pub(crate) type RaftEntry = openraft::alias::EntryOf<Types>;
pub(crate) type RaftLogId = openraft::alias::LogIdOf<Types>;
pub(crate) type RaftVote = openraft::alias::VoteOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, EmptyNode>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<Types>;
pub(crate) type WriteResult = openraft::raft::ClientWriteResult<Types>;

/// What an entry of the Raft log carries, besides Raft's own.
#[derive(Debug)]
pub(crate) enum Proposal {
    /// A batch with its bytes: on its way into this log, or out of it to a follower.
    Batch {
        batch: RecordBatch,
        /// Who waits for it, where this node proposed it.
        flight: Option<Arc<Flight>>,
        /// The room taken for it, or for all of a request whose last batch it is.
        room: Option<Reservation>,
    },
    /// A batch in the log, without its bytes: what applying needs.
    Stored { next: Offset },
    /// Records below the offset may go.
    Trim(Offset),
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch { batch, .. } => write!(f, "batch of {} bytes", batch.bytes().len()),
            Self::Stored { next } => write!(f, "batch up to {next}"),
            Self::Trim(before) => write!(f, "trim below {before}"),
        }
    }
}

/// That an entry was applied. Where it went is known to its [`Flight`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Applied;

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("applied")
    }
}

type OnAnswer<T> = Box<dyn FnOnce(Option<T>) + Send>;

/// Hears what became of a proposal, on the task that knows; `None` where that task ended first. It costs no task switch.
pub(crate) struct Answer<T>(Option<OnAnswer<T>>);

impl<T> Answer<T> {
    pub(crate) fn new(f: impl FnOnce(Option<T>) + Send + 'static) -> Self {
        Self(Some(Box::new(f)))
    }
}

impl<T: Send + 'static> openraft::raft::responder::Responder<Types, T> for Answer<T> {
    fn on_complete(mut self, result: T) {
        if let Some(f) = self.0.take() {
            f(Some(result));
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(f) = self.0.take() {
            f(None);
        }
    }
}

pub(crate) fn is_sole_voter(node: u64, membership: &Membership) -> bool {
    let mut voters = membership.voter_ids();
    voters.next() == Some(node) && voters.next().is_none()
}

pub(crate) fn to_raft_id(id: LogId) -> RaftLogId {
    RaftLogId::new(CommittedLeaderId::new(id.term.get()), id.index.get())
}

pub(crate) fn from_raft_id(id: &RaftLogId) -> LogId {
    LogId::new(id.leader_id.term, id.index)
}

pub(crate) fn to_raft_vote(vote: Vote) -> RaftVote {
    let (term, node) = (vote.term.get(), vote.node.get());
    if vote.committed {
        RaftVote::new_committed(term, node)
    } else {
        RaftVote::new(term, node)
    }
}

pub(crate) fn from_raft_vote(vote: &RaftVote) -> Vote {
    let leader = vote.leader_id();
    Vote {
        term: Term::new(leader.term),
        node: NodeId::new(leader.voted_for),
        committed: vote.is_committed(),
    }
}

/// An entry on its way into the log.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) entry: LogEntry,
    /// Who waits for it here.
    pub(crate) flight: Option<Arc<Flight>>,
    /// To be held until it is written.
    pub(crate) room: Option<Reservation>,
}

/// An entry as the log keeps it, with what came along with it.
pub(crate) fn to_log_entry(entry: RaftEntry) -> Result<Incoming, UnknownBytes> {
    let id = from_raft_id(&entry.log_id);
    let (mut waiting, mut taken) = (None, None);
    let payload = match entry.payload {
        EntryPayload::Blank => control(ControlKind::Blank, Bytes::new()),
        EntryPayload::Membership(membership) => {
            control(ControlKind::Membership, encode_membership(&membership))
        }
        EntryPayload::Normal(Proposal::Trim(before)) => control(
            ControlKind::Trim,
            Bytes::copy_from_slice(&before.get().to_be_bytes()),
        ),
        EntryPayload::Normal(Proposal::Batch {
            batch,
            flight,
            room,
        }) => {
            (waiting, taken) = (flight, room);
            if waiting.is_some() {
                Payload::Batch(batch)
            } else {
                Payload::Stamped(batch)
            }
        }
        EntryPayload::Normal(Proposal::Stored { .. }) => {
            return Err(UnknownBytes("an entry to append without its bytes"));
        }
    };
    Ok(Incoming {
        entry: LogEntry { id, payload },
        flight: waiting,
        room: taken,
    })
}

pub(crate) fn control(kind: ControlKind, bytes: Bytes) -> Payload {
    Payload::Control(Control { kind, bytes })
}

/// An entry as openraft knows it, with a batch's bytes.
pub(crate) fn from_log_entry(entry: LogEntry) -> Result<RaftEntry, UnknownBytes> {
    let payload = match entry.payload {
        Payload::Batch(batch) | Payload::Stamped(batch) => EntryPayload::Normal(Proposal::Batch {
            batch,
            flight: None,
            room: None,
        }),
        Payload::Control(control) => from_control(&control)?,
    };
    Ok(RaftEntry {
        log_id: to_raft_id(entry.id),
        payload,
    })
}

/// An entry as openraft knows it, without a batch's bytes.
pub(crate) fn from_entry_info(info: EntryInfo) -> Result<RaftEntry, UnknownBytes> {
    let payload = match info.kind {
        EntryKind::Batch { next, .. } => EntryPayload::Normal(Proposal::Stored { next }),
        EntryKind::Control(control) => from_control(&control)?,
    };
    Ok(RaftEntry {
        log_id: to_raft_id(info.id),
        payload,
    })
}

fn from_control(control: &Control) -> Result<EntryPayload<Proposal, u64, EmptyNode>, UnknownBytes> {
    match control.kind {
        ControlKind::Blank => Ok(EntryPayload::Blank),
        ControlKind::Membership => Ok(EntryPayload::Membership(decode_membership(&control.bytes)?)),
        ControlKind::Trim => Ok(EntryPayload::Normal(Proposal::Trim(decode_trim(
            &control.bytes,
        )?))),
    }
}

/// The offset that a trim entry names.
pub(crate) fn decode_trim(bytes: &[u8]) -> Result<Offset, UnknownBytes> {
    let before = <[u8; 8]>::try_from(bytes);
    let before = before.map_err(|_| UnknownBytes("a trim entry that is not an offset"))?;
    Ok(Offset::new(u64::from_be_bytes(before)))
}

/// Bytes in the log that this version did not write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Raft log holds {0}; run the version that wrote it, or replace this replica")]
pub(crate) struct UnknownBytes(&'static str);

impl From<UnknownBytes> for std::io::Error {
    fn from(error: UnknownBytes) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// The first byte of an encoded membership. A new form gets a new number.
const MEMBERSHIP_VERSION: u8 = 1;

/// Version (1 byte), number of voter sets (1: two while they change), each set, then the set of learners. A set is its
/// length (2 bytes) and the node ids (8 each), all big-endian.
pub(crate) fn encode_membership(membership: &Membership) -> Bytes {
    let sets = membership.get_joint_config();
    let mut out = BytesMut::new();
    out.put_u8(MEMBERSHIP_VERSION);
    // openraft makes one set, or two in a joint change.
    out.put_u8(sets.len() as u8);
    for set in sets {
        put_nodes(&mut out, set.iter().copied());
    }
    put_nodes(&mut out, membership.learner_ids());
    out.freeze()
}

fn put_nodes(out: &mut BytesMut, nodes: impl Iterator<Item = u64>) {
    let nodes: Vec<u64> = nodes.take(usize::from(u16::MAX)).collect();
    out.put_u16(nodes.len() as u16);
    for node in nodes {
        out.put_u64(node);
    }
}

pub(crate) fn decode_membership(mut bytes: &[u8]) -> Result<Membership, UnknownBytes> {
    const BAD: UnknownBytes = UnknownBytes("a membership of a form unknown here");
    if bytes.try_get_u8().map_err(|_| BAD)? != MEMBERSHIP_VERSION {
        return Err(BAD);
    }
    let sets = bytes.try_get_u8().map_err(|_| BAD)?;
    let voters = (0..sets)
        .map(|_| get_nodes(&mut bytes).ok_or(BAD))
        .collect::<Result<Vec<_>, _>>()?;
    let learners = get_nodes(&mut bytes).ok_or(BAD)?;
    if !bytes.is_empty() {
        return Err(BAD);
    }
    Ok(Membership::new_with_defaults(voters, learners))
}

fn get_nodes(bytes: &mut &[u8]) -> Option<BTreeSet<u64>> {
    let count = bytes.try_get_u16().ok()?;
    (0..count).map(|_| bytes.try_get_u64().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Membership, decode_membership, encode_membership};

    #[test]
    fn memberships_survive_their_encoding() {
        let sets = [
            vec![],
            vec![BTreeSet::from([1])],
            vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, u64::MAX])],
        ];
        for voters in sets {
            let membership = Membership::new_with_defaults(voters, [7, 8]);
            let bytes = encode_membership(&membership);
            assert_eq!(decode_membership(&bytes).unwrap(), membership);
        }
    }

    #[test]
    fn cut_or_lying_memberships_are_refused() {
        let membership = Membership::new_with_defaults(vec![BTreeSet::from([1, 2])], [3]);
        let bytes = encode_membership(&membership);
        for len in 0..bytes.len() {
            assert!(decode_membership(&bytes[..len]).is_err(), "{len}");
        }
        assert!(decode_membership(&[2, 0, 0, 0]).is_err());
        assert!(decode_membership(&[1, 1, 0xff, 0xff, 0]).is_err());
        assert!(decode_membership(&[&bytes[..], &[0]].concat()).is_err());
    }
}
