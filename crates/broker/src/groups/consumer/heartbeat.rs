//! Members without a session: they come by heartbeats, say in them what is new, and are answered with what they are to own.

use std::{collections::BTreeSet, time::Duration};

use quipu_model::{PartitionKey, TopicName};

use super::{Changes, ConsumerGroup, Member, Scene, Spec};
use crate::groups::names::{GroupError, MemberId};

/// A heartbeat. What is `None` is as it was.
#[derive(Clone, Debug)]
pub struct ConsumerHeartbeat {
    pub member: MemberId,
    /// The epoch that it was answered last; 0: it joins, and holds nothing.
    pub epoch: u64,
    pub instance: Option<Box<str>>,
    pub client: Box<str>,
    pub client_host: Box<str>,
    pub rack: Option<Box<str>>,
    pub rebalance_timeout: Option<Duration>,
    pub topics: Option<BTreeSet<Box<str>>>,
    /// Empty: none.
    pub pattern: Option<Box<str>>,
    pub assignor: Option<Box<str>>,
    /// What it holds.
    pub owned: Option<BTreeSet<PartitionKey>>,
}

/// What a heartbeat is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    pub epoch: u64,
    pub interval: Duration,
    /// What the member is to own; `None`: that is what it was told with the epoch that it named.
    pub assignment: Option<Vec<PartitionKey>>,
}

impl ConsumerHeartbeat {
    /// Whether it says all that there is to say, as one does that may have missed an answer.
    fn is_full(&self) -> bool {
        let subscribes = self.topics.is_some() || self.pattern.is_some();
        self.epoch == 0 || (self.rebalance_timeout.is_some() && subscribes && self.owned.is_some())
    }

    /// What the member says of itself by now.
    fn spec(&self, before: Option<&Spec>) -> Result<Spec, GroupError> {
        let mut spec = before.cloned().unwrap_or_else(Spec::of_heartbeats);
        if self.epoch == 0 {
            spec.instance = self.instance.clone();
            spec.client = self.client.clone();
            spec.client_host = self.client_host.clone();
        }
        if let Some(rack) = &self.rack {
            spec.rack = rack.clone();
        }
        if let Some(timeout) = self.rebalance_timeout {
            let (least, most) = (Spec::LEAST_TIMEOUT, Spec::MOST_TIMEOUT);
            spec.rebalance_timeout = timeout.clamp(least, most);
        }
        if let Some(topics) = &self.topics {
            // What can be no topic's name is as one of a topic that is not there.
            let named = topics.iter().filter(|name| TopicName::new(name).is_ok());
            spec.topics = named.cloned().collect();
        }
        if let Some(pattern) = &self.pattern {
            spec.pattern = Some(pattern.clone()).filter(|pattern| !pattern.is_empty());
        }
        if let Some(assignor) = &self.assignor {
            spec.assignor = assignor.parse()?;
        }
        Ok(spec)
    }
}

impl ConsumerGroup {
    /// A member gives a sign of life. `room`: whether there is any for more than is known already.
    ///
    /// # Errors
    /// Where it is not known, names an epoch that is not its own, or wants what is not given.
    pub(in crate::groups) fn beat(
        &mut self,
        scene: &mut Scene<'_>,
        room: Result<(), GroupError>,
        beat: &ConsumerHeartbeat,
    ) -> Result<HeartbeatAnswer, GroupError> {
        match beat.epoch {
            0 => self.check_joins(beat)?,
            _ => self.check_goes_on(beat)?,
        }
        let id = &beat.member;
        let before = self.members.get(id).map(|member| &member.spec);
        let spec = beat.spec(before)?;
        let is_news = beat.epoch == 0 || before != Some(&spec);
        let subscribed = match is_news {
            true => Some(room.and_then(|()| spec.resolve(scene.topics))?),
            false => None,
        };
        let mut changes = Changes {
            asks: Some((id.clone(), beat.epoch)),
            ..Changes::default()
        };
        if beat.epoch == 0 {
            self.appear(scene, id, &spec, &mut changes)?;
            changes.told.insert(id.clone());
        }
        let Some(member) = self.members.get_mut(id) else {
            return Err(GroupError::UnknownMember(id.clone()));
        };
        member.expires = scene.now.elapsed + member.spec.session_timeout;
        let heard = member.heard.get_or_insert_default();
        heard.away = false;
        let gone = gone(member, beat);
        let interval = member.spec.heartbeat_interval();
        if let Some(subscribed) = subscribed {
            self.update(scene.now, id, spec, subscribed, &mut changes);
        }
        self.let_go(id, &gone, &mut changes);
        match is_news {
            true => self.rebalance(scene, changes),
            false => {
                self.grant(&gone, &mut changes);
                self.settle(scene, changes);
            }
        }
        let member = self.members.get(id);
        let member = member.ok_or_else(|| GroupError::UnknownMember(id.clone()))?;
        let epoch = member.heard.map_or(0, |heard| heard.epoch);
        Ok(HeartbeatAnswer {
            epoch,
            interval,
            assignment: (beat.is_full() || beat.epoch != epoch).then(|| member.kept()),
        })
    }

    /// A member leaves. Where it comes back, what it owns is kept for its instance.
    ///
    /// # Errors
    /// Where it is not known, or has no instance id to come back with.
    pub(in crate::groups) fn depart(
        &mut self,
        scene: &mut Scene<'_>,
        id: &MemberId,
        instance: Option<&str>,
        comes_back: bool,
    ) -> Result<(), GroupError> {
        let known = self.identify(id, instance)?;
        if !comes_back {
            return self.leave(scene, id);
        }
        if known.spec.instance.is_none() {
            return Err(GroupError::Invalid(
                "only one with an instance id leaves for a while".to_owned(),
            ));
        }
        let mut changes = Changes::default();
        self.start_anew(id, &mut changes);
        if let Some(member) = self.members.get_mut(id) {
            let heard = member.heard.get_or_insert_default();
            heard.away = true;
            member.expires = scene.now.elapsed + member.spec.session_timeout;
        }
        self.rebalance(scene, changes);
        Ok(())
    }

    /// Whether a member may ask in an epoch for what the group has stored.
    ///
    /// # Errors
    /// Where it may not.
    pub(in crate::groups) fn check_epoch(
        &self,
        id: &MemberId,
        epoch: u64,
    ) -> Result<(), GroupError> {
        let member = self.members.get(id).filter(|member| !member.fenced);
        let member = member.ok_or_else(|| GroupError::UnknownMember(id.clone()))?;
        match member.heard {
            Some(heard) if heard.away || (heard.epoch != epoch && heard.before != epoch) => {
                Err(GroupError::OtherEpoch {
                    given: epoch,
                    known: heard.epoch,
                })
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// Where it is no member that comes by heartbeats, or another one has its instance id.
    fn identify(&self, id: &MemberId, instance: Option<&str>) -> Result<&Member, GroupError> {
        let known = self.members.get(id);
        let known = known.filter(|member| member.heard.is_some());
        match (known, instance) {
            (Some(known), None) => Ok(known),
            (Some(known), Some(_)) if known.spec.instance.as_deref() == instance => Ok(known),
            (_, Some(instance)) if self.twin(instance).is_some() => {
                Err(GroupError::FencedInstance(instance.into()))
            }
            _ => Err(GroupError::UnknownMember(id.clone())),
        }
    }

    /// # Errors
    /// Where another one has its instance id and has not said that it is away, or its own id is that of a session.
    fn check_joins(&self, beat: &ConsumerHeartbeat) -> Result<(), GroupError> {
        let away = |id: &MemberId| {
            let heard = self.members.get(id).and_then(|member| member.heard);
            heard.is_some_and(|heard| heard.away)
        };
        let twin = beat.instance.as_deref().and_then(|it| self.twin(it));
        if let (Some(twin), Some(instance)) = (twin, &beat.instance)
            && *twin != beat.member
            && !away(twin)
        {
            return Err(GroupError::UnreleasedInstance(instance.clone()));
        }
        match self.members.get(&beat.member) {
            Some(member) if member.heard.is_none() => Err(GroupError::Invalid(format!(
                "member {} is one that has a session",
                beat.member
            ))),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// Where it is not known, or its epoch is neither the one that it was answered last nor, if that answer was lost, the one before.
    fn check_goes_on(&self, beat: &ConsumerHeartbeat) -> Result<(), GroupError> {
        let member = self.identify(&beat.member, beat.instance.as_deref())?;
        self.check_epoch(&beat.member, beat.epoch)?;
        let heard = member.heard.unwrap_or_default();
        let holds = |partition: &PartitionKey| member.owned.contains_key(partition);
        let lost = || {
            let owned = beat.owned.as_ref();
            owned.is_some_and(|owned| owned.iter().all(holds))
        };
        match heard.epoch == beat.epoch || lost() {
            true => Ok(()),
            false => Err(GroupError::OtherEpoch {
                given: beat.epoch,
                known: heard.epoch,
            }),
        }
    }
}

/// What of that which it is to let go a member does not hold: it says so since it was asked to, or never heard that it got it.
fn gone(member: &Member, beat: &ConsumerHeartbeat) -> Vec<PartitionKey> {
    let Some(owned) = &beat.owned else {
        return Vec::new();
    };
    let revoking = member.revoking.iter();
    let gone = revoking.filter(|(partition, revocation)| {
        let since = member.owned.get(*partition);
        let unheard = since.is_some_and(|since| *since > beat.epoch);
        unheard || (revocation.told <= beat.epoch && !owned.contains(*partition))
    });
    gone.map(|(partition, _)| *partition).collect()
}

#[cfg(test)]
mod tests;
