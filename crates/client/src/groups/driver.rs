//! What keeps a member in its group: the session with the coordinator, signs of life, and partitions that come and go.

mod parts;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use quipu_model::Offset;
use quipu_proto::v1::{
    GroupMember, JoinGroup, LeaveGroup, ReleasePartitions, SessionHeartbeat, SessionRequest,
    TopicPartitions, session_request::Request, session_response::Response,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    admin::fetch_offsets,
    config::{GroupConfig, TopicPartition},
    coordinator,
    progress::{Progress, is_lost},
};
use crate::{
    OffsetAt, Result, Start,
    admin::list_offset,
    backoff::backoff,
    cluster::{FIRST_PAUSE, LAST_PAUSE, groups_client},
    error::{Error, ErrorReason, Outcome},
};

/// What the one who hands out records is to do.
#[derive(Debug)]
pub(super) enum Event {
    /// Begin to read there.
    Begin(Vec<(TopicPartition, Offset)>),
    /// Hand out no more of these, and say so with [`Command::LetGo`].
    Stop(Vec<TopicPartition>),
    /// Hand out no more of these: they are lost.
    Lost(Vec<TopicPartition>),
    /// The group cannot be joined.
    Failed(Error),
}

/// What the one who hands out records says.
#[derive(Debug)]
pub(super) enum Command {
    /// Nothing more of these is handed out, and what was is processed.
    LetGo(Vec<TopicPartition>),
    /// Leave the group, or, with an instance id, only go.
    Close,
}

/// Where a partition is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is found out where to begin. The number tells this time from others.
    Starting(u64),
    /// Records of it are handed out.
    Running,
    /// Records are still to be processed, and offsets to be stored.
    Stopping,
}

/// The newest assignment.
#[derive(Debug, Default)]
struct Assigned {
    epoch: u64,
    owned: BTreeSet<TopicPartition>,
    revoking: BTreeSet<TopicPartition>,
}

/// What a task of the driver's came to.
enum Done {
    Started(TopicPartition, u64, Result<Offset>),
    LetGo(Vec<TopicPartition>),
    Stored,
}

/// Why a session is over.
enum Ended {
    /// The member left.
    Left,
    /// The connection broke: another one goes on.
    Broken(Error),
    /// The member holds nothing any more.
    Out,
    /// It cannot be a member.
    Refused(Error),
}

pub(super) struct Driver {
    config: Arc<GroupConfig>,
    /// Topics that are begun at their first record, whatever is configured.
    earliest: HashSet<Arc<str>>,
    progress: Arc<Progress>,
    events: mpsc::UnboundedSender<Event>,
    commands: mpsc::UnboundedReceiver<Command>,
    assigned: Assigned,
    held: HashMap<TopicPartition, Stage>,
    starts: u64,
    tasks: JoinSet<Done>,
    /// Until when what is held is the member's for certain.
    lease: Option<Instant>,
    session_timeout: Duration,
    hint: Option<Box<str>>,
    storing: bool,
}

/// An open session.
struct Session {
    requests: mpsc::Sender<SessionRequest>,
    responses: Streaming<quipu_proto::v1::SessionResponse>,
    address: Box<str>,
    /// When each sign of life that is not answered yet was sent.
    sent: VecDeque<(u64, Instant)>,
    number: u64,
    interval: Duration,
}

/// Requests that wait to be sent: more than a member has to say at a time.
const MOST_REQUESTS: usize = 64;
/// How long a coordinator may take to take in a join.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);
/// How often a topic is asked for that a node does not know.
const NEW_TOPIC_TRIES: u32 = 10;
/// How long leaving may take.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) fn new(
        config: Arc<GroupConfig>,
        earliest: HashSet<Arc<str>>,
        progress: Arc<Progress>,
        events: mpsc::UnboundedSender<Event>,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self {
            session_timeout: config.session_timeout,
            config,
            earliest,
            progress,
            events,
            commands,
            assigned: Assigned::default(),
            held: HashMap::new(),
            starts: 0,
            tasks: JoinSet::new(),
            lease: None,
            hint: None,
            storing: false,
        }
    }

    /// Keeps the member in its group until it is closed.
    pub(super) async fn run(mut self) {
        let mut attempt = 0;
        self.rename();
        loop {
            let joined_before = self.lease;
            let ended = self.attend().await;
            self.progress.set_coordinator(None);
            match ended {
                Ended::Left => return,
                Ended::Out => {
                    self.lose_all();
                    self.rename();
                    attempt = 0;
                }
                Ended::Refused(error) => {
                    self.lose_all();
                    // Nobody listens any more.
                    let _ = self.events.send(Event::Failed(error));
                    return;
                }
                Ended::Broken(error) => {
                    tracing::debug!(group = self.progress.group(), %error, "the session is opened again");
                    self.hint = error.leader().map(Box::from);
                    if self.lease != joined_before {
                        attempt = 0;
                    }
                }
            }
            attempt += 1;
            let pause = Instant::now() + backoff(attempt, FIRST_PAUSE, LAST_PAUSE);
            if self.idle_until(pause).await.is_err() {
                return;
            }
        }
    }

    /// A member that was put out comes back under another name.
    fn rename(&mut self) {
        let random: [u64; 2] = rand::random();
        let id = format!("{:016x}{:016x}", random[0], random[1]);
        self.progress.set_member(GroupMember { id, epoch: 0 });
        self.assigned = Assigned::default();
    }

    /// Waits without a session. `Err`: it was closed.
    async fn idle_until(&mut self, until: Instant) -> Result<(), ()> {
        loop {
            let lease = self.lease;
            tokio::select! {
                () = sleep_until(until) => return Ok(()),
                () = expired(lease) => self.lapse(),
                Some(Ok(done)) = self.tasks.join_next() => { self.done(done); }
                command = self.commands.recv() => match command {
                    Some(Command::LetGo(partitions)) => self.let_go(partitions),
                    Some(Command::Close) | None => return Err(()),
                },
            }
        }
    }

    /// Nobody knows any more that the member is alive: what it held may be another one's.
    fn lapse(&mut self) {
        tracing::warn!(
            group = self.progress.group(),
            "the coordinator was not heard of in time: all partitions are given up"
        );
        self.lose_all();
        let member = self.progress.member();
        self.progress.set_member(GroupMember { epoch: 0, ..member });
        self.assigned = Assigned::default();
    }

    fn lose_all(&mut self) {
        self.lease = None;
        let lost: Vec<_> = self.held.drain().collect();
        self.lose(lost);
    }

    fn lose(&mut self, lost: Vec<(TopicPartition, Stage)>) {
        let running = lost.into_iter().filter_map(|(partition, stage)| {
            self.progress.end(&partition);
            (!matches!(stage, Stage::Starting(_))).then_some(partition)
        });
        let running: Vec<_> = running.collect();
        if running.is_empty() {
            return;
        }
        if let Some(listener) = &self.config.listener {
            listener.lost(&running);
        }
        let _ = self.events.send(Event::Lost(running));
    }

    /// Opens a session and keeps it as long as it goes.
    async fn attend(&mut self) -> Ended {
        // Whatever comes of it, what is held is held no longer than the coordinator thinks.
        let patience = Instant::now() + JOIN_PATIENCE;
        let patience = self.lease.map_or(patience, |lease| lease.min(patience));
        let mut session = match timeout_at(patience, self.open()).await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => return self.judge(error),
            Err(_) => {
                return Ended::Broken(Error::timed_out(
                    "the coordinator did not answer",
                    Outcome::Indefinite,
                ));
            }
        };
        let mut beats = tokio::time::interval(session.interval);
        let auto_commit = self.config.auto_commit.unwrap_or(Duration::MAX);
        let mut commits = next_commit(auto_commit);
        loop {
            let lease = self.lease;
            let step = tokio::select! {
                message = session.responses.message() => match message {
                    Ok(Some(message)) => self.take(&mut session, message.response).await,
                    Ok(None) => Err(Ended::Broken(Error::unreachable("the session was ended"))),
                    Err(status) => Err(Ended::Broken(Error::from_status(&session.address, &status))),
                },
                _ = beats.tick() => {
                    if self.progress.busy_for() > self.config.max_poll_interval {
                        return self.step_back(&session).await;
                    }
                    if self.progress.inquire() {
                        // Nothing begins, but whoever waits for a record wakes up of it, and asks again.
                        let _ = self.events.send(Event::Begin(Vec::new()));
                    }
                    session.beat().await
                }
                () = expired(lease) => {
                    self.lapse();
                    Err(Ended::Broken(Error::unreachable("the coordinator is silent")))
                }
                Some(Ok(done)) = self.tasks.join_next() => match self.done(done) {
                    Some(released) => self.release(&session, &released).await,
                    None => Ok(()),
                },
                () = &mut commits => {
                    commits = next_commit(auto_commit);
                    self.store();
                    Ok(())
                }
                command = self.commands.recv() => match command {
                    Some(Command::LetGo(partitions)) => { self.let_go(partitions); Ok(()) }
                    Some(Command::Close) | None => return self.leave(session).await,
                },
            };
            match step {
                Ok(()) => {}
                Err(Ended::Broken(error)) => return self.judge(error),
                Err(ended) => return ended,
            }
        }
    }

    /// What an error means for the member.
    fn judge(&self, error: Error) -> Ended {
        if is_lost(&error) {
            return Ended::Out;
        }
        match error.is_retryable() || error.is(ErrorReason::GroupLimit) {
            true => Ended::Broken(error),
            false => Ended::Refused(error),
        }
    }

    async fn open(&mut self) -> Result<Session> {
        let cluster = Arc::clone(self.progress.cluster());
        let address = match self.hint.take() {
            Some(address) => address,
            None => coordinator::find(&cluster, self.progress.group()).await?,
        };
        let channel = cluster.channel(&address)?;
        let (requests, receiver) = mpsc::channel(MOST_REQUESTS);
        let sent_at = Instant::now();
        let join = SessionRequest {
            request: Some(Request::Join(self.join())),
        };
        // There is room for the first.
        let _ = requests.send(join).await;
        let opened = groups_client(channel)
            .session(ReceiverStream::new(receiver))
            .await;
        let failed = |status: &tonic::Status| Error::from_status(&address, status);
        let mut responses = opened.map_err(|status| failed(&status))?.into_inner();
        let first = responses
            .message()
            .await
            .map_err(|status| failed(&status))?;
        match first.and_then(|message| message.response) {
            Some(Response::Joined(joined)) => {
                let milliseconds = |ms: u32| Duration::from_millis(u64::from(ms.max(1)));
                self.session_timeout = milliseconds(joined.session_timeout_ms);
                self.lease = Some(sent_at + self.session_timeout);
                self.progress.set_coordinator(Some(address.clone()));
                Ok(Session {
                    requests,
                    responses,
                    address,
                    sent: VecDeque::new(),
                    number: 0,
                    interval: milliseconds(joined.heartbeat_interval_ms),
                })
            }
            Some(Response::Error(error)) => Err(Error::from_proto(error)),
            Some(_) => Err(Error::malformed(
                "the coordinator does not answer a join with its own",
            )),
            None => Err(Error::unreachable("the session was ended")),
        }
    }

    fn join(&self) -> JoinGroup {
        let config = &self.config;
        let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let member = self.progress.member();
        JoinGroup {
            group: config.group.clone(),
            member_id: member.id,
            epoch: member.epoch,
            instance_id: config.instance_id.clone().unwrap_or_default(),
            client_id: match &*config.client_id {
                "" => self.progress.cluster().client_id().to_owned(),
                own => own.to_owned(),
            },
            rack: config.rack.clone(),
            topics: config.topics.clone(),
            pattern: config.pattern.clone().unwrap_or_default(),
            assignor: config.assignor.name().to_owned(),
            // 0 would be the default.
            session_timeout_ms: milliseconds(config.session_timeout).max(1),
            rebalance_timeout_ms: milliseconds(config.rebalance_timeout).max(1),
        }
    }

    async fn take(
        &mut self,
        session: &mut Session,
        response: Option<Response>,
    ) -> Result<(), Ended> {
        match response {
            Some(Response::Heartbeat(SessionHeartbeat { number })) => {
                while let Some((sent, at)) = session.sent.front().copied()
                    && sent <= number
                {
                    session.sent.pop_front();
                    self.lease = self.lease.max(Some(at + self.session_timeout));
                }
                Ok(())
            }
            Some(Response::Assignment(assignment)) => {
                self.assigned = Assigned {
                    epoch: assignment.epoch,
                    owned: named(assignment.owned),
                    revoking: named(assignment.revoking),
                };
                let member = self.progress.member();
                self.progress.set_member(GroupMember {
                    epoch: assignment.epoch,
                    ..member
                });
                let free = self.reconcile();
                self.release(session, &free).await
            }
            Some(Response::Error(error)) => Err(Ended::Broken(Error::from_proto(error))),
            // A join is answered once; what a later version says is passed over.
            Some(Response::Joined(_)) | None => Ok(()),
        }
    }

    async fn release(&self, session: &Session, partitions: &[TopicPartition]) -> Result<(), Ended> {
        if partitions.is_empty() {
            return Ok(());
        }
        let mut topics: HashMap<&str, Vec<u32>> = HashMap::new();
        for (topic, partition) in partitions {
            topics.entry(topic).or_default().push(*partition);
        }
        let topics = topics
            .into_iter()
            .map(|(topic, partitions)| TopicPartitions {
                topic: topic.to_owned(),
                partitions,
            });
        let release = ReleasePartitions {
            epoch: self.assigned.epoch,
            topics: topics.collect(),
        };
        session.say(Request::Release(release)).await
    }

    /// Leaves partitions to others while nobody asks for records.
    async fn step_back(&mut self, session: &Session) -> Ended {
        tracing::warn!(
            group = self.progress.group(),
            "nobody asked for a record in {:?}: all partitions are given up until somebody does",
            self.config.max_poll_interval
        );
        self.lose_all();
        let _ = session.say(Request::Leave(LeaveGroup {})).await;
        self.rename();
        while !self.progress.busy_for().is_zero() {
            tokio::select! {
                () = self.progress.asked.notified() => {}
                command = self.commands.recv() => match command {
                    // All of it is lost.
                    Some(Command::LetGo(_)) => {}
                    Some(Command::Close) | None => return Ended::Left,
                },
            }
        }
        Ended::Broken(Error::unreachable("the member had left"))
    }

    async fn leave(&mut self, mut session: Session) -> Ended {
        let held = self.held.drain();
        let running = held.filter(|(_, stage)| !matches!(stage, Stage::Starting(_)));
        let running: Vec<_> = running.map(|(partition, _)| partition).collect();
        if let Some(listener) = &self.config.listener
            && !running.is_empty()
        {
            listener.revoked(&running).await;
        }
        // With an instance id, the place is kept for the one that comes next.
        if self.config.instance_id.is_none() {
            let leaving = async {
                session.say(Request::Leave(LeaveGroup {})).await.ok();
                while let Ok(Some(_)) = session.responses.message().await {}
            };
            // Where nobody answers, the member is timed out.
            let _ = timeout(LEAVE_PATIENCE, leaving).await;
        }
        Ended::Left
    }
}

impl Session {
    async fn say(&self, request: Request) -> Result<(), Ended> {
        let request = SessionRequest {
            request: Some(request),
        };
        let said = self.requests.send(request).await;
        said.map_err(|_| Ended::Broken(Error::unreachable("the session was ended")))
    }

    async fn beat(&mut self) -> Result<(), Ended> {
        self.number += 1;
        self.sent.push_back((self.number, Instant::now()));
        // A coordinator that answers none of so many is silent: the lease ends it.
        if self.sent.len() > MOST_REQUESTS {
            self.sent.pop_front();
        }
        let number = self.number;
        self.say(Request::Heartbeat(SessionHeartbeat { number }))
            .await
    }
}

async fn expired(lease: Option<Instant>) {
    match lease {
        Some(lease) => sleep_until(lease).await,
        None => std::future::pending().await,
    }
}

fn next_commit(every: Duration) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    match every {
        Duration::MAX => Box::pin(std::future::pending()),
        every => Box::pin(sleep(every)),
    }
}

fn named(topics: Vec<TopicPartitions>) -> BTreeSet<TopicPartition> {
    let named = topics.into_iter().flat_map(|topic| {
        let name: Arc<str> = topic.topic.into();
        let partitions = topic.partitions.into_iter();
        partitions.map(move |partition| (Arc::clone(&name), partition))
    });
    named.collect()
}

/// Where to begin in a partition.
async fn beginning(
    progress: &Progress,
    (topic, partition): &TopicPartition,
    start: Start,
) -> Result<Offset> {
    let (cluster, group) = (progress.cluster(), progress.group());
    let named = [(topic.as_ref(), *partition)];
    let stored = fetch_offsets(cluster, group, progress.coordinator(), &named).await?;
    if let Some(stored) = stored.first() {
        return Ok(stored.offset);
    }
    let at = |at| list_offset(cluster, topic, *partition, at);
    Ok(match start {
        Start::Offset(offset) => offset,
        Start::Earliest => at(OffsetAt::Earliest).await?.offset,
        Start::Latest => at(OffsetAt::Latest).await?.offset,
        Start::Timestamp(time) => at(OffsetAt::Timestamp(time)).await?.offset,
        Start::FromEnd(records) => {
            let earliest = at(OffsetAt::Earliest).await?.offset;
            let latest = at(OffsetAt::Latest).await?.offset;
            Offset::new(latest.get().saturating_sub(records)).max(earliest)
        }
    })
}
