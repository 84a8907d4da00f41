//! Classic groups as they are shown.

use bytes::Bytes;

use super::{ClassicGroup, Member, Phase, embedded};
use crate::groups::{
    assign::Assignor,
    consumer::{Assignment, MemberView, Spec},
    names::MemberId,
    topics::TopicsView,
};

/// All about a classic group but its offsets.
#[derive(Clone, Debug)]
pub struct ClassicDescription {
    /// As Kafka names it.
    pub state: &'static str,
    pub protocol_type: Box<str>,
    pub protocol: Box<str>,
    pub members: Vec<ClassicMemberView>,
}

/// A member of a classic group as it is shown.
#[derive(Clone, Debug)]
pub struct ClassicMemberView {
    pub id: MemberId,
    pub instance: Option<Box<str>>,
    pub client: Box<str>,
    pub client_host: Box<str>,
    pub metadata: Bytes,
    pub assignment: Bytes,
}

impl ClassicGroup {
    /// As Kafka's clients are shown it: who is assigned what, where that is settled.
    pub(in crate::groups) fn describe(&self) -> ClassicDescription {
        let settled = matches!(self.phase, Phase::Stable { .. });
        let shown = |bytes: Bytes| if settled { bytes } else { Bytes::new() };
        let members = self.members.iter();
        let members = members.map(|(id, member)| ClassicMemberView {
            id: id.clone(),
            instance: member.instance.clone(),
            client: member.client.clone(),
            client_host: member.client_host.clone(),
            metadata: shown(member.metadata(&self.protocol)),
            assignment: shown(member.assignment.clone()),
        });
        ClassicDescription {
            state: match self.phase {
                Phase::Empty => "Empty",
                Phase::Joining { .. } => "PreparingRebalance",
                Phase::Syncing { .. } => "CompletingRebalance",
                Phase::Stable { .. } => "Stable",
            },
            protocol_type: self.protocol_type.clone(),
            protocol: if settled {
                self.protocol.clone()
            } else {
                "".into()
            },
            members: members.collect(),
        }
    }

    /// Its members in the terms of groups whose partitions the coordinator assigns, as far as they speak to each other as consumers.
    pub(in crate::groups) fn members(&self, topics: &TopicsView) -> Vec<MemberView> {
        let members = self.members.iter();
        let view = |(id, member): (&MemberId, &Member)| {
            let subscribed = embedded::subscription(&member.metadata(&self.protocol));
            let owned = embedded::assignment(&member.assignment).into_iter();
            let owned = owned.filter_map(|(name, numbers)| {
                let partitions = topics.get(&name)?.partitions();
                Some(partitions.filter(move |key| numbers.contains(&key.partition.get())))
            });
            MemberView {
                id: id.clone(),
                spec: Spec {
                    instance: member.instance.clone(),
                    client: member.client.clone(),
                    client_host: member.client_host.clone(),
                    rack: "".into(),
                    topics: subscribed.into_iter().collect(),
                    pattern: None,
                    assignor: Assignor::default(),
                    session_timeout: member.session_timeout,
                    rebalance_timeout: member.rebalance_timeout,
                },
                assignment: Assignment {
                    epoch: self.generation,
                    owned: owned.flatten().collect(),
                    revoking: Vec::new(),
                },
                target: Vec::new(),
            }
        };
        members.map(view).collect()
    }
}
