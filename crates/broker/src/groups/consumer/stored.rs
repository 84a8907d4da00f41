//! A member as it is stored.

use std::{collections::BTreeMap, time::Duration};

use quipu_model::{PartitionId, PartitionKey, TopicId};
use quipu_proto::internal::v1::{HeartbeatMember, MemberValue, OwnedPartition, OwnedTopic};

use super::{Spec, member::Heard};
use crate::groups::records::DecodeError;

/// What is stored of a member.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredMember {
    pub(crate) spec: Spec,
    /// Since which epoch it owns each partition.
    pub(crate) owned: BTreeMap<PartitionKey, u64>,
    /// In which epoch it was asked to let go of some of that.
    pub(crate) revoking: BTreeMap<PartitionKey, u64>,
    /// Of one that comes by heartbeats.
    pub(crate) heard: Option<Heard>,
}

fn milliseconds(duration: Duration) -> u32 {
    // At most an hour.
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

impl From<&StoredMember> for MemberValue {
    fn from(member: &StoredMember) -> Self {
        let spec = &member.spec;
        let mut owned = BTreeMap::<TopicId, Vec<OwnedPartition>>::new();
        for (key, since) in &member.owned {
            owned.entry(key.topic).or_default().push(OwnedPartition {
                partition: key.partition.get(),
                since: *since,
                revoked: member.revoking.get(key).copied().unwrap_or_default(),
            });
        }
        let owned = owned.into_iter().map(|(topic, partitions)| OwnedTopic {
            topic_id: topic.as_bytes().to_vec().into(),
            partitions,
        });
        let text = |text: &Option<Box<str>>| text.as_deref().unwrap_or_default().to_owned();
        Self {
            instance_id: text(&spec.instance),
            client_id: spec.client.to_string(),
            rack: spec.rack.to_string(),
            topics: spec.topics.iter().map(ToString::to_string).collect(),
            pattern: text(&spec.pattern),
            assignor: spec.assignor.to_string(),
            session_timeout_ms: milliseconds(spec.session_timeout),
            rebalance_timeout_ms: milliseconds(spec.rebalance_timeout),
            owned: owned.collect(),
            classic: None,
            heartbeats: member.heard.map(|heard| HeartbeatMember {
                client_host: spec.client_host.to_string(),
                epoch: heard.epoch,
                before: heard.before,
                away: heard.away,
            }),
        }
    }
}

impl TryFrom<MemberValue> for StoredMember {
    type Error = DecodeError;

    fn try_from(value: MemberValue) -> Result<Self, DecodeError> {
        let some = |text: String| (!text.is_empty()).then(|| text.into_boxed_str());
        let (mut owned, mut revoking) = (BTreeMap::new(), BTreeMap::new());
        for topic in value.owned {
            let id = <[u8; 16]>::try_from(&topic.topic_id[..]);
            let id = id.map_err(|_| DecodeError::Field("the topic's id"))?;
            for found in topic.partitions {
                let key = PartitionKey {
                    topic: TopicId::from_bytes(id),
                    partition: PartitionId::new(found.partition),
                };
                owned.insert(key, found.since);
                if found.revoked > 0 {
                    revoking.insert(key, found.revoked);
                }
            }
        }
        let (client_host, heard) = match value.heartbeats {
            None => (String::new(), None),
            Some(member) => {
                let heard = Heard {
                    epoch: member.epoch,
                    before: member.before,
                    away: member.away,
                };
                (member.client_host, Some(heard))
            }
        };
        Ok(Self {
            spec: Spec {
                instance: some(value.instance_id),
                client: value.client_id.into(),
                client_host: client_host.into(),
                rack: value.rack.into(),
                topics: value.topics.into_iter().map(Into::into).collect(),
                pattern: some(value.pattern),
                // One of a later version counts as none.
                assignor: value.assignor.parse().unwrap_or_default(),
                session_timeout: Duration::from_millis(value.session_timeout_ms.into()),
                rebalance_timeout: Duration::from_millis(value.rebalance_timeout_ms.into()),
            },
            owned,
            revoking,
            heard,
        })
    }
}
