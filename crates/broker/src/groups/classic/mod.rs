//! A group whose members assign its partitions among themselves: Kafka's classic protocol.
//!
//! For each generation the members first join, each with the protocols that it speaks. The coordinator chooses one that all speak, and a
//! leader, which is told what the others say of themselves. Then they sync: the leader hands in what each is assigned, and each is
//! answered with its part. Who comes, goes or falls silent begins the next generation; the others hear of it at their next heartbeat.
//!
//! A generation is stored once its members are assigned something: one that was only begun is begun anew after a failover.

mod check;
mod embedded;
mod ends;
mod member;
mod request;
mod stored;
mod sync;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;

use self::member::{Held, Member, protocols_size};
pub use self::{
    member::{ClassicJoin, Protocol},
    request::{ClassicMember, ClassicSync, Joined, JoinedMember, Synced},
    view::{ClassicDescription, ClassicMemberView},
};
pub(crate) use self::{
    request::{Reply, Ticket},
    stored::StoredClassicMember,
};
use super::{
    consumer::Scene,
    names::{GroupError, MemberId, Moment},
    records::Stored,
};

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nobody has joined; some may have been told an id.
    Empty,
    /// Members are to join, or to join again.
    Joining {
        by: Duration,
        gathering: Option<Gathering>,
    },
    /// The leader is to say what each is assigned, and each to ask for it.
    Syncing { by: Duration },
    /// Each is assigned something, and is to ask for it.
    Stable { by: Duration },
}

/// The first to join waits for others, so that there is one generation and not one for each.
#[derive(Clone, Copy, Debug)]
struct Gathering {
    until: Duration,
    /// Whether somebody came since it was last looked at.
    grew: bool,
}

/// The members of a group that assign its partitions among themselves.
#[derive(Debug)]
pub(super) struct ClassicGroup {
    generation: u64,
    protocol_type: Box<str>,
    protocol: Box<str>,
    leader: Option<MemberId>,
    members: BTreeMap<MemberId, Member>,
    /// Ids that were told, until when they are expected to join.
    promised: BTreeMap<MemberId, Duration>,
    phase: Phase,
    /// Of whom something is stored.
    stored: BTreeSet<MemberId>,
    /// Whether what is stored of the group itself is out of date.
    unstored: bool,
}

impl ClassicGroup {
    /// The most members.
    const MOST_MEMBERS: usize = 1000;
    /// The most bytes that members say of themselves and are assigned: they are stored together.
    const MOST_BYTES: usize = 8 << 20;
    /// How long the first to join waits for others, and again as long as others come.
    const GATHERING: Duration = Duration::from_millis(500);

    pub(super) fn new(generation: u64) -> Self {
        Self {
            generation,
            protocol_type: "".into(),
            protocol: "".into(),
            leader: None,
            members: BTreeMap::new(),
            promised: BTreeMap::new(),
            phase: Phase::Empty,
            stored: BTreeSet::new(),
            unstored: false,
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The generation as members know it.
    fn number(&self) -> i32 {
        (self.generation & 0x7fff_ffff) as i32
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether nobody has to do with it any more.
    pub(super) fn is_over(&self) -> bool {
        self.members.is_empty() && self.promised.is_empty()
    }

    /// About what its members take in memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let members = self.members.values().map(Member::size);
        members.sum::<usize>() + 512 * self.promised.len()
    }

    pub(super) fn state(&self) -> &'static str {
        match self.phase {
            Phase::Empty => "EMPTY",
            Phase::Joining { .. } => "PREPARING_REBALANCE",
            Phase::Syncing { .. } => "COMPLETING_REBALANCE",
            Phase::Stable { .. } => "STABLE",
        }
    }

    pub(super) fn protocol_type(&self) -> &str {
        &self.protocol_type
    }

    pub(super) fn protocol(&self) -> &str {
        &self.protocol
    }

    pub(super) fn leader(&self) -> Option<&MemberId> {
        self.leader.as_ref()
    }

    /// Whether what is stored of the group itself is out of date. It is taken to be up to date from now on.
    pub(super) fn take_unstored(&mut self) -> bool {
        std::mem::take(&mut self.unstored)
    }

    /// When [`ClassicGroup::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let members = self.members.values();
        let silent = members.filter(|member| member.held.is_none());
        let silent = silent.map(|member| member.expires);
        let phase = match self.phase {
            Phase::Empty => None,
            Phase::Joining { by, gathering } => {
                Some(gathering.map_or(by, |gathering| gathering.until.min(by)))
            }
            Phase::Syncing { by } => Some(by),
            Phase::Stable { by } => self.members.values().any(|m| !m.synced).then_some(by),
        };
        let promised = self.promised.values().copied();
        silent.chain(promised).chain(phase).min()
    }

    /// Takes in what was stored of the group.
    pub(super) fn replay_group(
        &mut self,
        generation: u64,
        (protocol_type, protocol): (Box<str>, Box<str>),
        leader: Option<MemberId>,
    ) {
        self.generation = generation;
        self.protocol_type = protocol_type;
        self.protocol = protocol;
        self.leader = leader;
    }

    /// Takes in what was stored of a member.
    pub(super) fn replay_member(&mut self, id: MemberId, stored: Option<StoredClassicMember>) {
        let Some(stored) = stored else {
            self.members.remove(&id);
            self.stored.remove(&id);
            return;
        };
        self.stored.insert(id.clone());
        let member = Member {
            instance: stored.instance,
            client: stored.client,
            client_host: stored.client_host,
            session_timeout: stored.session_timeout,
            rebalance_timeout: stored.rebalance_timeout,
            // Named once all is replayed.
            protocols: vec![Protocol {
                name: "".into(),
                metadata: stored.metadata,
            }],
            assignment: stored.assignment,
            expires: Duration::MAX,
            held: None,
            synced: true,
        };
        self.members.insert(id, member);
    }

    /// Begins after what was stored: all members have their whole time to be heard of.
    pub(super) fn begin(&mut self, scene: &mut Scene<'_>) {
        for member in self.members.values_mut() {
            member.renew(scene.now.elapsed);
            for protocol in &mut member.protocols {
                protocol.name = self.protocol.clone();
            }
        }
        if !self.members.is_empty() {
            self.phase = Phase::Stable { by: Duration::MAX };
        }
    }

    /// A member joins, or joins again. It is answered at once, or when the others have.
    pub(super) fn join(&mut self, scene: &mut Scene<'_>, ticket: Ticket, join: ClassicJoin) {
        if let Err(error) = self.admit(scene, ticket, join) {
            scene.effects.reply(ticket, Reply::Refused(error));
        }
    }

    fn admit(
        &mut self,
        scene: &mut Scene<'_>,
        ticket: Ticket,
        join: ClassicJoin,
    ) -> Result<(), GroupError> {
        join.check()?;
        let twin = join.instance.as_deref().and_then(|it| self.twin(it));
        self.check_protocols(join.member.as_ref().or(twin.as_ref()), &join)?;
        self.check_bytes(protocols_size(&join.protocols))?;
        match (&join.member, twin) {
            (None, Some(twin)) => self.replace(scene, ticket, &twin, join),
            (None, None) => {
                self.check_room()?;
                let id = join.fresh.clone();
                if join.comes_again && join.instance.is_none() {
                    let until = scene.now.elapsed + join.session_timeout;
                    self.promised.insert(id.clone(), until);
                    return Err(GroupError::MemberIdRequired(id));
                }
                self.add(scene, ticket, id, join);
            }
            (Some(id), None) if self.promised.remove(id).is_some() => {
                self.add(scene, ticket, id.clone(), join);
            }
            (Some(id), _) => {
                let id = id.clone();
                self.check_identity(&id, join.instance.as_deref())?;
                self.rejoin(scene, ticket, &id, join);
            }
        }
        Ok(())
    }

    fn add(&mut self, scene: &mut Scene<'_>, ticket: Ticket, id: MemberId, join: ClassicJoin) {
        self.protocol_type = join.protocol_type.clone();
        self.members.insert(id, Member::new(join, ticket));
        if let Phase::Joining {
            gathering: Some(gathering),
            ..
        } = &mut self.phase
        {
            gathering.grew = true;
        }
        self.rebalance(scene);
    }

    /// One that is a member joins again.
    fn rejoin(&mut self, scene: &mut Scene<'_>, ticket: Ticket, id: &MemberId, join: ClassicJoin) {
        let leads = self.leader.as_ref() == Some(id);
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        let same = member.protocols == join.protocols;
        let in_place = match self.phase {
            // Its answer was lost.
            Phase::Syncing { .. } => same,
            // A leader that joins again wants to assign anew.
            Phase::Stable { .. } => same && !leads,
            Phase::Joining { .. } | Phase::Empty => false,
        };
        if in_place {
            member.renew(scene.now.elapsed);
            let leader = self.leader.clone().unwrap_or_else(|| id.clone());
            let joined = self.joined(id, leader);
            scene.effects.reply(ticket, Reply::Joined(joined));
            return;
        }
        let old = member.held.take();
        self.protocol_type = join.protocol_type.clone();
        member.update(join, ticket);
        refuse(scene, old, GroupError::RebalanceInProgress);
        self.rebalance(scene);
    }

    /// A member comes with the instance id of another one and takes its place.
    fn replace(
        &mut self,
        scene: &mut Scene<'_>,
        ticket: Ticket,
        twin: &MemberId,
        join: ClassicJoin,
    ) {
        let Some(mut member) = self.members.remove(twin) else {
            return;
        };
        let instance = member.instance.clone().unwrap_or_default();
        refuse(
            scene,
            member.held.take(),
            GroupError::FencedInstance(instance),
        );
        let (id, may_skip) = (join.fresh.clone(), join.may_skip_assignment);
        tracing::debug!(group = %scene.group, old = %twin, new = %id, "a member took another one's place");
        self.protocol_type = join.protocol_type.clone();
        member.update(join, ticket);
        self.members.insert(id.clone(), member);
        let led = self.leader.as_ref() == Some(twin);
        if led {
            self.leader = Some(id.clone());
        }
        let stays = matches!(self.phase, Phase::Stable { .. }) && self.choose() == self.protocol;
        if !stays {
            self.rebalance(scene);
            return;
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.held = None;
            member.renew(scene.now.elapsed);
        }
        // One that cannot be told to assign nothing is told that another one leads.
        let leader = match led && !may_skip {
            true => twin.clone(),
            false => self.leader.clone().unwrap_or_else(|| twin.clone()),
        };
        let joined = Joined {
            skip_assignment: leader == id,
            ..self.joined(&id, leader)
        };
        scene.effects.reply(ticket, Reply::Joined(joined));
        self.store(scene);
    }

    /// The answer to a member that is in this generation.
    fn joined(&self, id: &MemberId, leader: MemberId) -> Joined {
        let mut members = Vec::new();
        if leader == *id {
            members.extend(self.members.iter().map(|(id, member)| JoinedMember {
                id: id.clone(),
                instance: member.instance.clone(),
                metadata: member.metadata(&self.protocol),
            }));
        }
        Joined {
            generation: self.number(),
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader,
            member: id.clone(),
            skip_assignment: false,
            members,
        }
    }

    /// Lets members join anew, if they are not at it.
    fn rebalance(&mut self, scene: &mut Scene<'_>) {
        let now = scene.now.elapsed;
        match self.phase {
            Phase::Joining { .. } => {}
            Phase::Empty => {
                let gathering = Some(Gathering {
                    until: now + Self::GATHERING,
                    grew: false,
                });
                let by = now + self.rebalance_timeout();
                self.phase = Phase::Joining { by, gathering };
            }
            Phase::Syncing { .. } | Phase::Stable { .. } => {
                for member in self.members.values_mut() {
                    if let Some(Held::Sync(_)) = member.held {
                        refuse(scene, member.held.take(), GroupError::RebalanceInProgress);
                        member.renew(now);
                    }
                }
                let by = now + self.rebalance_timeout();
                let gathering = None;
                self.phase = Phase::Joining { by, gathering };
            }
        }
        self.advance(scene);
    }

    /// Begins the next generation once all have joined.
    fn advance(&mut self, scene: &mut Scene<'_>) {
        let Phase::Joining { gathering, .. } = self.phase else {
            return;
        };
        let all = gathering.is_none()
            && self.promised.is_empty()
            && self.members.values().all(Member::has_joined);
        if all || self.members.is_empty() {
            self.begin_generation(scene);
        }
    }

    /// Begins the next generation with those that have joined.
    fn begin_generation(&mut self, scene: &mut Scene<'_>) {
        let now = scene.now.elapsed;
        // One with an instance id keeps its place until its session ends.
        self.members.retain(|id, member| {
            let stays = member.has_joined() || member.instance.is_some();
            if !stays {
                tracing::info!(group = %scene.group, member = %id, "a member did not join again in time");
            }
            stays
        });
        if self.members.is_empty() {
            self.end(scene);
            return;
        }
        let by = now + self.rebalance_timeout();
        let mut joined = self
            .members
            .iter()
            .filter(|(_, member)| member.has_joined());
        let Some(first) = joined.next().map(|(id, _)| id.clone()) else {
            let gathering = None;
            self.phase = Phase::Joining { by, gathering };
            return;
        };
        let leader = self.leader.take();
        let leader = leader.filter(|id| self.members.get(id).is_some_and(Member::has_joined));
        let leader = leader.unwrap_or(first);
        self.leader = Some(leader.clone());
        self.generation += 1;
        self.protocol = self.choose();
        self.phase = Phase::Syncing { by };
        let mut answers = Vec::new();
        for (id, member) in &mut self.members {
            member.synced = false;
            if let Some(Held::Join(ticket)) = member.held.take() {
                member.renew(now);
                answers.push((ticket, id.clone()));
            }
        }
        tracing::debug!(group = %scene.group, generation = self.generation, members = self.members.len(), "a generation begins");
        for (ticket, id) in answers {
            let joined = self.joined(&id, leader.clone());
            scene.effects.reply(ticket, Reply::Joined(joined));
        }
    }

    /// Nobody is left.
    fn end(&mut self, scene: &mut Scene<'_>) {
        self.generation += 1;
        self.phase = Phase::Empty;
        self.leader = None;
        self.store(scene);
    }

    /// A member gives a sign of life.
    ///
    /// # Errors
    /// Where it is not known in this generation, or is to join the next one.
    pub(super) fn heartbeat(
        &mut self,
        now: Moment,
        member: &ClassicMember,
    ) -> Result<(), GroupError> {
        self.check_member(member)?;
        self.renew(now, &member.id);
        match self.phase {
            Phase::Joining { .. } => Err(GroupError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    /// Whether a member may store offsets. It is a sign of life.
    ///
    /// # Errors
    /// Where it may not.
    pub(super) fn check_commit(
        &mut self,
        now: Moment,
        member: &ClassicMember,
    ) -> Result<(), GroupError> {
        self.check_member(member)?;
        if let Phase::Syncing { .. } = self.phase {
            return Err(GroupError::RebalanceInProgress);
        }
        self.renew(now, &member.id);
        Ok(())
    }

    /// The protocol that most members want of those that all speak.
    fn choose(&self) -> Box<str> {
        let spoken = |name: &str| self.members.values().all(|member| member.speaks(name));
        let mut votes = BTreeMap::<&str, usize>::new();
        for member in self.members.values() {
            let mut protocols = member.protocols.iter();
            if let Some(best) = protocols.find(|protocol| spoken(&protocol.name)) {
                *votes.entry(&best.name).or_default() += 1;
            }
        }
        let most = votes.values().max().copied();
        let chosen = votes.into_iter().find(|(_, votes)| Some(*votes) == most);
        chosen.map_or_else(Box::default, |(name, _)| name.into())
    }

    /// How long members have to join again.
    fn rebalance_timeout(&self) -> Duration {
        let timeouts = self.members.values().map(|member| member.rebalance_timeout);
        timeouts.max().unwrap_or_default()
    }

    /// Stores the members of this generation.
    fn store(&mut self, scene: &mut Scene<'_>) {
        let mut stored = |member: &MemberId, value| {
            let (group, member) = (scene.group.clone(), member.clone());
            scene.effects.records.push(match value {
                None => Stored::Member {
                    group,
                    member,
                    value: None,
                },
                Some(value) => Stored::ClassicMember {
                    group,
                    member,
                    value,
                },
            });
        };
        for gone in self
            .stored
            .iter()
            .filter(|id| !self.members.contains_key(id))
        {
            stored(gone, None);
        }
        for (id, member) in &self.members {
            let value = StoredClassicMember {
                instance: member.instance.clone(),
                client: member.client.clone(),
                client_host: member.client_host.clone(),
                session_timeout: member.session_timeout,
                rebalance_timeout: member.rebalance_timeout,
                metadata: member.metadata(&self.protocol),
                assignment: member.assignment.clone(),
            };
            stored(id, Some(value));
        }
        self.stored = self.members.keys().cloned().collect();
        self.unstored = true;
    }
}

/// Answers a request that waits in vain.
fn refuse(scene: &mut Scene<'_>, held: Option<Held>, error: GroupError) {
    if let Some(Held::Join(ticket) | Held::Sync(ticket)) = held {
        scene.effects.reply(ticket, Reply::Refused(error));
    }
}

#[cfg(test)]
mod tests;
