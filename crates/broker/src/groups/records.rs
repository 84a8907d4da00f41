//! What the coordinator stores, as records of the internal topic.

use prost::Message;
use quipu_model::{LeaderEpoch, PartitionId, PartitionKey, TimestampMs, TopicId};
use quipu_proto::internal::v1::{
    GroupKey, GroupRecordKey, GroupValue, MemberKey, MemberValue, OffsetKey, OffsetValue,
    StoredGroupKind, group_record_key::Key,
};

use super::{
    classic::StoredClassicMember,
    consumer::StoredMember,
    names::{GroupId, MemberId},
    offsets::{Committed, Place},
};

/// What is stored of a group besides its offsets and members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredGroup {
    pub(crate) kind: StoredGroupKind,
    pub(crate) epoch: u64,
    /// Since when it has no members.
    pub(crate) empty_since: Option<TimestampMs>,
    /// Of a classic group.
    pub(crate) classic: Option<StoredClassic>,
}

/// What is stored of a classic group besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredClassic {
    pub(crate) protocol_type: Box<str>,
    pub(crate) protocol: Box<str>,
    pub(crate) leader: Option<MemberId>,
}

/// A change of what is stored. Without a value, what it names is no more.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stored {
    Offset {
        group: GroupId,
        partition: PartitionKey,
        value: Option<Committed>,
    },
    Group {
        group: GroupId,
        value: Option<StoredGroup>,
    },
    Member {
        group: GroupId,
        member: MemberId,
        value: Option<StoredMember>,
    },
    /// A member of a classic group. That it is no more is said as of any other member.
    ClassicMember {
        group: GroupId,
        member: MemberId,
        value: StoredClassicMember,
    },
}

/// Why a stored record cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error(transparent)]
    Message(#[from] prost::DecodeError),
    #[error("it has no key")]
    NoKey,
    #[error(
        "its key is of a kind that this version does not know: run the newer version that wrote it"
    )]
    UnknownKind,
    #[error("{0} is not what belongs there")]
    Field(&'static str),
}

impl Stored {
    /// Key and value of its record.
    pub(crate) fn encode(&self) -> (Vec<u8>, Option<Vec<u8>>) {
        let (key, value) = match self {
            Self::Offset {
                group,
                partition,
                value,
            } => {
                let key = Key::Offset(OffsetKey {
                    group: group.to_string(),
                    topic_id: partition.topic.as_bytes().to_vec().into(),
                    partition: partition.partition.get(),
                });
                let value = value
                    .as_ref()
                    .map(|value| encode_offset(value).encode_to_vec());
                (key, value)
            }
            Self::Group { group, value } => {
                let key = Key::Group(GroupKey {
                    group: group.to_string(),
                });
                let value = value.as_ref().map(encode_group);
                (key, value.map(|value| value.encode_to_vec()))
            }
            Self::Member {
                group,
                member,
                value,
            } => {
                let key = Key::Member(MemberKey {
                    group: group.to_string(),
                    member: member.to_string(),
                });
                let value = value
                    .as_ref()
                    .map(|value| MemberValue::from(value).encode_to_vec());
                (key, value)
            }
            Self::ClassicMember {
                group,
                member,
                value,
            } => {
                let key = Key::Member(MemberKey {
                    group: group.to_string(),
                    member: member.to_string(),
                });
                (key, Some(MemberValue::from(value).encode_to_vec()))
            }
        };
        (GroupRecordKey { key: Some(key) }.encode_to_vec(), value)
    }

    /// Reads a record; `None` where it says nothing.
    ///
    /// # Errors
    /// Where it is not one of these, or of a later version.
    pub(crate) fn decode(
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<Option<Self>, DecodeError> {
        let key = key.ok_or(DecodeError::NoKey)?;
        if key.is_empty() {
            return Ok(None);
        }
        match GroupRecordKey::decode(key)?.key {
            Some(Key::Offset(key)) => {
                let value = value.map(OffsetValue::decode).transpose()?;
                Ok(Some(Self::Offset {
                    group: group(&key.group)?,
                    partition: partition(&key.topic_id, key.partition)?,
                    value: value.map(decode_offset),
                }))
            }
            Some(Key::Group(key)) => {
                let value = value.map(GroupValue::decode).transpose()?;
                Ok(Some(Self::Group {
                    group: group(&key.group)?,
                    value: value.map(decode_group),
                }))
            }
            Some(Key::Member(key)) => {
                let mut value = value.map(MemberValue::decode).transpose()?;
                let group = group(&key.group)?;
                let member = MemberId::new(&key.member);
                let member = member.map_err(|_| DecodeError::Field("the member's name"))?;
                let classic = value.as_mut().and_then(|value| value.classic.take());
                Ok(Some(match (value, classic) {
                    (Some(value), Some(classic)) => Self::ClassicMember {
                        group,
                        member,
                        value: StoredClassicMember::new(value, classic),
                    },
                    (value, _) => Self::Member {
                        group,
                        member,
                        value: value.map(StoredMember::try_from).transpose()?,
                    },
                }))
            }
            None => Err(DecodeError::UnknownKind),
        }
    }
}

fn group(name: &str) -> Result<GroupId, DecodeError> {
    GroupId::new(name).map_err(|_| DecodeError::Field("the group's name"))
}

fn partition(topic: &[u8], partition: u32) -> Result<PartitionKey, DecodeError> {
    let topic = topic
        .try_into()
        .map_err(|_| DecodeError::Field("the topic's id"))?;
    Ok(PartitionKey {
        topic: TopicId::from_bytes(topic),
        partition: PartitionId::new(partition),
    })
}

fn encode_group(value: &StoredGroup) -> GroupValue {
    let classic = value.classic.as_ref();
    GroupValue {
        kind: value.kind.into(),
        epoch: value.epoch,
        empty_since_ms: value.empty_since.map(TimestampMs::get),
        protocol_type: classic.map_or_else(String::new, |it| it.protocol_type.to_string()),
        protocol: classic.map_or_else(String::new, |it| it.protocol.to_string()),
        leader: classic
            .and_then(|it| it.leader.as_ref())
            .map_or_else(String::new, MemberId::to_string),
    }
}

fn decode_group(value: GroupValue) -> StoredGroup {
    let kind = value.kind();
    StoredGroup {
        kind,
        epoch: value.epoch,
        empty_since: value.empty_since_ms.map(TimestampMs::new),
        classic: (kind == StoredGroupKind::ClassicKind).then(|| StoredClassic {
            protocol_type: value.protocol_type.into(),
            protocol: value.protocol.into(),
            leader: MemberId::new(&value.leader).ok(),
        }),
    }
}

fn encode_offset(value: &Committed) -> OffsetValue {
    OffsetValue {
        place: value.place.number(),
        leader_epoch: value.leader_epoch.map(LeaderEpoch::get),
        metadata: value.metadata.to_string(),
        committed_at_ms: value.at.get(),
    }
}

fn decode_offset(value: OffsetValue) -> Committed {
    Committed {
        place: Place::of(value.place),
        leader_epoch: value.leader_epoch.map(LeaderEpoch::new),
        metadata: value.metadata.into(),
        at: TimestampMs::new(value.committed_at_ms),
    }
}

#[cfg(test)]
mod tests {
    use quipu_model::{LeaderEpoch, PartitionId, PartitionKey, TimestampMs, TopicId};

    use super::{GroupId, Stored};
    use crate::groups::offsets::{Committed, Place};

    #[test]
    fn offsets_survive_their_record_and_keep_their_key() {
        let partition = PartitionKey {
            topic: TopicId::from_bytes([7; 16]),
            partition: PartitionId::new(3),
        };
        let stored = |value| Stored::Offset {
            group: GroupId::new("g").unwrap(),
            partition,
            value,
        };
        let full = |place| {
            stored(Some(Committed {
                place: Place::of(place),
                leader_epoch: Some(LeaderEpoch::new(0)),
                metadata: "m".into(),
                at: TimestampMs::new(5),
            }))
        };
        let gone = stored(None);
        assert_eq!(full(42).encode().0, gone.encode().0);
        for record in [full(42), full(-2), gone] {
            let (key, value) = record.encode();
            let read = Stored::decode(Some(&key), value.as_deref()).unwrap();
            assert_eq!(read, Some(record));
        }
        assert_eq!(Stored::decode(Some(b""), None).unwrap(), None);
        assert!(Stored::decode(None, None).is_err());
        assert!(Stored::decode(Some(b"\xff"), None).is_err());
    }
}
