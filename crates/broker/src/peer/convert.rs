//! What replicas say, as the wire has it.

use bytes::Bytes;
use quipu_model::{LogId, NodeId, Offset, PartitionId, PartitionKey, RecordBatch, TopicId, Vote};
use quipu_proto::peer::v1::{
    self, Accepted, AppendAnswer, Copied, CopyAnswer, EntryKind, Group, Held, LogNotFlushed,
    Matched, TransferAnswer, VoteAnswer, VoteChanged, append_answer, copy_answer, transfer_answer,
};
use quipu_replication::{
    AppendOutcome, AppendParts, AppendRequest, AppendResponse, CopyRequest, CopyResponse,
    SleepOutcome, SleepParts, SleepRequest, SleepResponse, SnapshotParts, SnapshotRequest,
    TransferOutcome, TransferParts, TransferRequest, TransferResponse, VoteOutcome, VoteParts,
    VoteRequest, VoteResponse,
};
use quipu_storage::{Control, ControlKind, LogEntry, Payload};

/// What of a message is missing, or cannot be. One line for a person.
pub(super) type Bad = String;

fn required<T>(field: Option<T>, what: &str) -> Result<T, Bad> {
    field.ok_or_else(|| format!("a message without {what}"))
}

pub(super) fn to_group(key: PartitionKey) -> Group {
    Group {
        topic_id: Bytes::copy_from_slice(key.topic.as_bytes()),
        partition: key.partition.get(),
    }
}

pub(super) fn from_group(group: &Group) -> Result<PartitionKey, Bad> {
    let topic = <[u8; 16]>::try_from(&group.topic_id[..])
        .map_err(|_| format!("a topic id of {} bytes", group.topic_id.len()))?;
    Ok(PartitionKey {
        topic: TopicId::from_bytes(topic),
        partition: PartitionId::new(group.partition),
    })
}

fn to_id(id: LogId) -> v1::LogId {
    v1::LogId {
        term: id.term.get(),
        index: id.index.get(),
    }
}

fn from_id(id: v1::LogId) -> LogId {
    LogId::new(id.term, id.index)
}

fn to_vote(vote: Vote) -> v1::Vote {
    v1::Vote {
        term: vote.term.get(),
        node_id: vote.node.get(),
        committed: vote.committed,
    }
}

fn from_vote(vote: v1::Vote) -> Vote {
    Vote {
        term: quipu_model::Term::new(vote.term),
        node: NodeId::new(vote.node_id),
        committed: vote.committed,
    }
}

fn the_vote(vote: Option<v1::Vote>) -> Result<Vote, Bad> {
    required(vote, "a vote").map(from_vote)
}

pub(super) fn to_append(request: AppendRequest) -> Result<v1::Append, Bad> {
    let parts = request.into_parts().map_err(|error| error.to_string())?;
    Ok(v1::Append {
        leader: Some(to_vote(parts.leader)),
        previous: parts.previous.map(to_id),
        committed: parts.committed.map(to_id),
        entries: parts.entries.into_iter().map(to_entry).collect(),
    })
}

fn to_entry(entry: LogEntry) -> v1::Entry {
    let (kind, data) = match entry.payload {
        Payload::Batch(batch) | Payload::Stamped(batch) => (EntryKind::Batch, batch.into_bytes()),
        Payload::Control(control) => {
            let kind = match control.kind {
                ControlKind::Blank => EntryKind::Blank,
                ControlKind::Membership => EntryKind::Membership,
                ControlKind::Trim => EntryKind::Trim,
            };
            (kind, control.bytes)
        }
    };
    v1::Entry {
        term: entry.id.term.get(),
        index: entry.id.index.get(),
        kind: kind.into(),
        data,
    }
}

pub(super) fn from_append(append: v1::Append) -> Result<AppendRequest, Bad> {
    let entries = append.entries.into_iter().map(from_entry);
    let parts = AppendParts {
        leader: the_vote(append.leader)?,
        previous: append.previous.map(from_id),
        committed: append.committed.map(from_id),
        entries: entries.collect::<Result<_, Bad>>()?,
    };
    AppendRequest::from_parts(parts).map_err(|error| error.to_string())
}

fn from_entry(entry: v1::Entry) -> Result<LogEntry, Bad> {
    let id = LogId::new(entry.term, entry.index);
    let control = |kind| {
        let bytes = entry.data.clone();
        Payload::Control(Control { kind, bytes })
    };
    let payload = match entry.kind() {
        EntryKind::Batch => {
            let batch = RecordBatch::from_bytes(entry.data)
                .map_err(|error| format!("the batch of entry {id}: {error}"))?;
            Payload::Stamped(batch)
        }
        EntryKind::Blank => control(ControlKind::Blank),
        EntryKind::Membership => control(ControlKind::Membership),
        EntryKind::Trim => control(ControlKind::Trim),
        EntryKind::Unspecified => {
            let kind = entry.kind;
            return Err(format!(
                "entry {id} is of kind {kind}, which this version does not know: upgrade this node"
            ));
        }
    };
    Ok(LogEntry { id, payload })
}

pub(super) fn to_append_answer(answer: AppendResponse) -> AppendAnswer {
    let outcome = match answer.into() {
        AppendOutcome::Matched(id) => append_answer::Outcome::Matched(Matched {
            log_id: id.map(to_id),
        }),
        AppendOutcome::Conflict(id) => append_answer::Outcome::Conflict(to_id(id)),
        AppendOutcome::HigherVote(vote) => append_answer::Outcome::HigherVote(to_vote(vote)),
    };
    AppendAnswer {
        outcome: Some(outcome),
    }
}

pub(super) fn from_append_answer(answer: AppendAnswer) -> Result<AppendResponse, Bad> {
    let outcome = match required(answer.outcome, "an outcome")? {
        append_answer::Outcome::Matched(matched) => {
            AppendOutcome::Matched(matched.log_id.map(from_id))
        }
        append_answer::Outcome::Conflict(id) => AppendOutcome::Conflict(from_id(id)),
        append_answer::Outcome::HigherVote(vote) => AppendOutcome::HigherVote(from_vote(vote)),
    };
    Ok(outcome.into())
}

pub(super) fn to_vote_request(request: VoteRequest) -> v1::VoteRequest {
    let parts = VoteParts::from(request);
    v1::VoteRequest {
        candidate: Some(to_vote(parts.candidate)),
        last: parts.last.map(to_id),
        transfer: parts.transfer,
    }
}

pub(super) fn from_vote_request(request: v1::VoteRequest) -> Result<VoteRequest, Bad> {
    let parts = VoteParts {
        candidate: the_vote(request.candidate)?,
        last: request.last.map(from_id),
        transfer: request.transfer,
    };
    Ok(parts.into())
}

pub(super) fn to_vote_answer(answer: VoteResponse) -> VoteAnswer {
    let outcome = VoteOutcome::from(answer);
    VoteAnswer {
        vote: Some(to_vote(outcome.vote)),
        granted: outcome.granted,
        last: outcome.last.map(to_id),
    }
}

pub(super) fn from_vote_answer(answer: VoteAnswer) -> Result<VoteResponse, Bad> {
    let outcome = VoteOutcome {
        vote: the_vote(answer.vote)?,
        granted: answer.granted,
        last: answer.last.map(from_id),
    };
    Ok(outcome.into())
}

pub(super) fn to_snapshot(request: SnapshotRequest) -> v1::Snapshot {
    let parts = SnapshotParts::from(request);
    v1::Snapshot {
        leader: Some(to_vote(parts.leader)),
        last: parts.last.map(to_id),
        members_at: parts.members_at.map(to_id),
        members: parts.members,
        next_offset: parts.next_offset.get(),
    }
}

pub(super) fn from_snapshot(snapshot: v1::Snapshot) -> Result<SnapshotRequest, Bad> {
    let parts = SnapshotParts {
        leader: the_vote(snapshot.leader)?,
        last: snapshot.last.map(from_id),
        members_at: snapshot.members_at.map(from_id),
        members: snapshot.members,
        next_offset: Offset::new(snapshot.next_offset),
    };
    SnapshotRequest::from_parts(&parts).map_err(|error| error.to_string())
}

pub(super) fn to_snapshot_answer(answer: quipu_replication::SnapshotResponse) -> v1::Vote {
    to_vote(answer.into())
}

pub(super) fn from_snapshot_answer(vote: v1::Vote) -> quipu_replication::SnapshotResponse {
    from_vote(vote).into()
}

pub(super) fn to_transfer(request: TransferRequest) -> v1::Transfer {
    let parts = TransferParts::from(request);
    v1::Transfer {
        leader: Some(to_vote(parts.leader)),
        to_node_id: parts.to.get(),
        last: parts.last.map(to_id),
    }
}

pub(super) fn from_transfer(transfer: v1::Transfer) -> Result<TransferRequest, Bad> {
    let parts = TransferParts {
        leader: the_vote(transfer.leader)?,
        to: NodeId::new(transfer.to_node_id),
        last: transfer.last.map(from_id),
    };
    Ok(parts.into())
}

pub(super) fn to_sleep(request: SleepRequest) -> v1::Sleep {
    let parts = SleepParts::from(request);
    v1::Sleep {
        leader: Some(to_vote(parts.leader)),
        last: Some(to_id(parts.last)),
    }
}

pub(super) fn from_sleep(sleep: v1::Sleep) -> Result<SleepRequest, Bad> {
    let parts = SleepParts {
        leader: the_vote(sleep.leader)?,
        last: required(sleep.last, "a log id").map(from_id)?,
    };
    Ok(parts.into())
}

pub(super) fn to_sleep_answer(answer: SleepResponse) -> v1::SleepAnswer {
    v1::SleepAnswer {
        agreed: SleepOutcome::from(answer) == SleepOutcome::Agreed,
    }
}

pub(super) fn from_sleep_answer(answer: v1::SleepAnswer) -> SleepResponse {
    let outcome = match answer.agreed {
        true => SleepOutcome::Agreed,
        false => SleepOutcome::Refused,
    };
    outcome.into()
}

pub(super) fn to_copy(request: CopyRequest) -> v1::Copy {
    v1::Copy {
        from_offset: request.from.get(),
        up_to_offset: request.up_to.get(),
        max_bytes: request.max_bytes,
        uncommitted: request.uncommitted,
    }
}

pub(super) fn from_copy(copy: v1::Copy) -> CopyRequest {
    CopyRequest {
        from: Offset::new(copy.from_offset),
        up_to: Offset::new(copy.up_to_offset),
        max_bytes: copy.max_bytes,
        uncommitted: copy.uncommitted,
    }
}

pub(super) fn to_copy_answer(answer: CopyResponse) -> CopyAnswer {
    let outcome = match answer {
        CopyResponse::Batches { bytes, next_offset } => copy_answer::Outcome::Copied(Copied {
            next_offset: next_offset.get(),
            batches: bytes,
        }),
        CopyResponse::OutOfRange { start, end } => copy_answer::Outcome::Held(Held {
            start_offset: start.get(),
            end_offset: end.get(),
        }),
    };
    CopyAnswer {
        outcome: Some(outcome),
    }
}

pub(super) fn from_copy_answer(answer: CopyAnswer) -> Result<CopyResponse, Bad> {
    Ok(match required(answer.outcome, "an outcome")? {
        copy_answer::Outcome::Copied(copied) => CopyResponse::Batches {
            bytes: copied.batches,
            next_offset: Offset::new(copied.next_offset),
        },
        copy_answer::Outcome::Held(held) => CopyResponse::OutOfRange {
            start: Offset::new(held.start_offset),
            end: Offset::new(held.end_offset),
        },
    })
}

pub(super) fn to_transfer_answer(answer: TransferResponse) -> TransferAnswer {
    let outcome = match answer.into() {
        TransferOutcome::Accepted => transfer_answer::Outcome::Accepted(Accepted {}),
        TransferOutcome::VoteChanged { expected, actual } => {
            transfer_answer::Outcome::VoteChanged(VoteChanged {
                expected: Some(to_vote(expected)),
                actual: Some(to_vote(actual)),
            })
        }
        TransferOutcome::LogNotFlushed { expected, actual } => {
            transfer_answer::Outcome::LogNotFlushed(LogNotFlushed {
                expected: expected.map(to_id),
                actual: actual.map(to_id),
            })
        }
    };
    TransferAnswer {
        outcome: Some(outcome),
    }
}

pub(super) fn from_transfer_answer(answer: TransferAnswer) -> Result<TransferResponse, Bad> {
    let outcome = match required(answer.outcome, "an outcome")? {
        transfer_answer::Outcome::Accepted(Accepted {}) => TransferOutcome::Accepted,
        transfer_answer::Outcome::VoteChanged(changed) => TransferOutcome::VoteChanged {
            expected: the_vote(changed.expected)?,
            actual: the_vote(changed.actual)?,
        },
        transfer_answer::Outcome::LogNotFlushed(missing) => TransferOutcome::LogNotFlushed {
            expected: missing.expected.map(from_id),
            actual: missing.actual.map(from_id),
        },
    };
    Ok(outcome.into())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quipu_model::{LogId, NodeId, Offset, Term, Vote};
    use quipu_replication::{
        AppendOutcome, CopyRequest, CopyResponse, SleepOutcome, SleepParts, TransferOutcome,
        TransferParts, VoteOutcome, VoteParts,
    };

    const VOTE: Vote = Vote {
        term: Term::new(7),
        node: NodeId::new(2),
        committed: true,
    };
    const LAST: Option<LogId> = Some(LogId::new(6, 90));

    #[test]
    fn requests_come_through_as_they_were() {
        let vote = VoteParts {
            candidate: VOTE,
            last: LAST,
            transfer: true,
        };
        let wire = super::to_vote_request(vote.into());
        assert_eq!(
            VoteParts::from(super::from_vote_request(wire).unwrap()),
            vote
        );
        let transfer = TransferParts {
            leader: VOTE,
            to: NodeId::new(3),
            last: LAST,
        };
        let wire = super::to_transfer(transfer.into());
        assert_eq!(
            TransferParts::from(super::from_transfer(wire).unwrap()),
            transfer
        );
        assert!(super::from_transfer(Default::default()).is_err());

        let copy = CopyRequest {
            from: Offset::new(3),
            up_to: Offset::new(900),
            max_bytes: 77,
            uncommitted: true,
        };
        assert_eq!(super::from_copy(super::to_copy(copy)), copy);

        let sleep = SleepParts {
            leader: transfer.leader,
            last: LogId::new(6, 90),
        };
        let wire = super::to_sleep(sleep.into());
        assert_eq!(SleepParts::from(super::from_sleep(wire).unwrap()), sleep);
        assert!(super::from_sleep(Default::default()).is_err());
        for outcome in [SleepOutcome::Agreed, SleepOutcome::Refused] {
            let read = super::from_sleep_answer(super::to_sleep_answer(outcome.into()));
            assert_eq!(SleepOutcome::from(read), outcome);
        }
    }

    #[test]
    fn answers_come_through_as_they_were() {
        for copy in [
            CopyResponse::Batches {
                bytes: Bytes::from_static(b"batches"),
                next_offset: Offset::new(8),
            },
            CopyResponse::OutOfRange {
                start: Offset::new(1),
                end: Offset::new(8),
            },
        ] {
            let wire = super::to_copy_answer(copy.clone());
            assert_eq!(super::from_copy_answer(wire).unwrap(), copy);
        }
        assert!(super::from_copy_answer(Default::default()).is_err());

        let vote = VoteOutcome {
            vote: VOTE,
            granted: true,
            last: LAST,
        };
        let wire = super::to_vote_answer(vote.into());
        assert_eq!(
            VoteOutcome::from(super::from_vote_answer(wire).unwrap()),
            vote
        );
        for outcome in [
            AppendOutcome::Matched(None),
            AppendOutcome::Matched(LAST),
            AppendOutcome::Conflict(LogId::new(1, 2)),
            AppendOutcome::HigherVote(VOTE),
        ] {
            let wire = super::to_append_answer(outcome.into());
            let read = super::from_append_answer(wire).unwrap();
            assert_eq!(AppendOutcome::from(read), outcome);
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
                expected: LAST,
                actual: None,
            },
        ] {
            let wire = super::to_transfer_answer(outcome.into());
            let read = super::from_transfer_answer(wire).unwrap();
            assert_eq!(TransferOutcome::from(read), outcome);
        }
    }
}
