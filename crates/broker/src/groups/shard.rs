//! What runs beside a replica of the internal topic: while the replica leads, it loads the groups of its partition and serves them.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use quipu_model::{
    LeaderEpoch, NodeId,
    batch::{BatchBuilder, Compression, split_batches},
};
use quipu_replication::{AppendError, Partition};
use quipu_storage::{ReadError, io::Clock};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    classic::{Reply, Ticket},
    coordinator::{Coordinator, Effects, Limits, Notice},
    names::{GroupId, MemberId, Moment},
    records::{DecodeError, Stored},
    topics::TopicsView,
    writer::{Answer, Writer},
};
use crate::{
    core::CONFIRMATION,
    error::{BrokerError, Outcome, Reason},
};

/// An event for a coordinator, and what gives its answer.
type Work = Box<dyn FnOnce(&mut Coordinator, Moment, &mut Effects) -> Answer + Send>;

/// How a shard is reached at present.
#[derive(Clone)]
enum State {
    /// The replica does not lead.
    Elsewhere,
    Loading,
    Serving(Serving),
}

/// How its coordinator is reached, and where and when that leads.
#[derive(Clone)]
struct Serving {
    events: mpsc::Sender<Work>,
    partition: Partition,
    epoch: LeaderEpoch,
}

/// The groups of one partition, as others on this node reach them.
pub(super) struct Shard {
    state: RwLock<State>,
    sessions: Mutex<Sessions>,
    opened: AtomicU64,
    /// Who waits for an answer that comes later.
    waiting: Mutex<HashMap<Ticket, oneshot::Sender<Result<Reply, BrokerError>>>>,
}

/// The session of each member that has one here: its number, and the newest notice.
type Sessions = HashMap<(GroupId, MemberId), (u64, watch::Sender<Option<Notice>>)>;

/// A request that waits for its answer, until it is given or nobody waits any more.
struct Waiting<'a> {
    shard: &'a Shard,
    ticket: Ticket,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shard.waiting.lock().remove(&self.ticket);
    }
}

/// A member's connection to its coordinator. It ends when another one of the same member is opened, or the coordinator ends.
pub(crate) struct Session {
    shard: Arc<Shard>,
    member: (GroupId, MemberId),
    number: u64,
    notices: watch::Receiver<Option<Notice>>,
}

impl Session {
    /// The next notice; what was not taken before it is left out, since each says all. `None`: the session has ended.
    pub(crate) async fn notice(&mut self) -> Option<Notice> {
        loop {
            self.notices.changed().await.ok()?;
            let notice = self.notices.borrow_and_update().clone();
            if notice.is_some() {
                return notice;
            }
        }
    }

    /// Lets something happen to the member's group.
    ///
    /// # Errors
    /// Where the coordinator has ended.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        event: impl FnOnce(&mut Coordinator, &GroupId, &MemberId, Moment, &mut Effects) -> T
        + Send
        + 'static,
    ) -> Result<T, BrokerError> {
        let (group, member) = self.member.clone();
        let calling = self.shard.call(move |coordinator, now, effects| {
            event(coordinator, &group, &member, now, effects)
        });
        calling.await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut sessions = self.shard.sessions.lock();
        let open = sessions.get(&self.member);
        if open.is_some_and(|(number, _)| *number == self.number) {
            sessions.remove(&self.member);
        }
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").finish_non_exhaustive()
    }
}

impl Shard {
    /// Events that wait for the coordinator; more are refused as overload.
    const QUEUE: usize = 4096;

    pub(super) fn new() -> Self {
        Self {
            state: RwLock::new(State::Elsewhere),
            sessions: Mutex::default(),
            opened: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }

    fn set(&self, state: State) {
        let serves = matches!(state, State::Serving(_));
        *self.state.write() = state;
        if !serves {
            self.sessions.lock().clear();
            self.waiting.lock().clear();
        }
    }

    /// Opens the session of a member.
    ///
    /// # Errors
    /// Where this node does not coordinate the partition's groups.
    pub(super) fn open(
        self: &Arc<Self>,
        group: &GroupId,
        member: &MemberId,
    ) -> Result<Session, BrokerError> {
        let member = (group.clone(), member.clone());
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let (sender, notices) = watch::channel(None);
        let state = self.state.read();
        match *state {
            State::Serving(_) => {
                let mut sessions = self.sessions.lock();
                sessions.insert(member.clone(), (number, sender));
            }
            State::Loading => return Err(loading()),
            State::Elsewhere => return Err(not_coordinator()),
        }
        drop(state);
        Ok(Session {
            shard: Arc::clone(self),
            member,
            number,
            notices,
        })
    }

    fn notify(&self, group: GroupId, member: MemberId, notice: Notice) {
        if let Some((_, sender)) = self.sessions.lock().get(&(group, member)) {
            sender.send_replace(Some(notice));
        }
    }

    /// Lets an event happen and waits for its answer, which comes when all that it rests on is stored.
    ///
    /// # Errors
    /// Where this node does not coordinate the partition's groups, or could not store what came of it.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        event: impl FnOnce(&mut Coordinator, Moment, &mut Effects) -> T + Send + 'static,
    ) -> Result<T, BrokerError> {
        let (tell, told) = oneshot::channel();
        let work: Work = Box::new(move |coordinator, now, effects| {
            let answer = event(coordinator, now, effects);
            // Who asked may have given up.
            Box::new(move |stored| drop(tell.send(stored.map(|()| answer))))
        });
        match self.serving()?.events.try_send(work) {
            // Where it was dropped, nobody knows whether it was stored.
            Ok(()) => told.await.unwrap_or_else(|_| {
                Err(BrokerError {
                    outcome: Outcome::Indefinite,
                    ..not_coordinator()
                })
            }),
            Err(mpsc::error::TrySendError::Full(_)) => Err(BrokerError::new(
                Reason::Overloaded,
                "the coordinator has too many requests waiting: retry shortly",
            )),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(not_coordinator()),
        }
    }

    fn serving(&self) -> Result<Serving, BrokerError> {
        match &*self.state.read() {
            State::Elsewhere => Err(not_coordinator()),
            State::Loading => Err(loading()),
            State::Serving(serving) => Ok(serving.clone()),
        }
    }

    /// Looks at what the coordinator knows: nobody else knows better, since a majority follows it still.
    ///
    /// # Errors
    /// As [`Shard::call`], and where that is not certain: one that was deposed and does not know it yet would tell of offsets that
    /// are out of date, or of none, upon which a consumer begins anew.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Coordinator) -> T + Send + 'static,
    ) -> Result<T, BrokerError> {
        let Serving {
            partition, epoch, ..
        } = self.serving()?;
        let seen = self.call(|coordinator, _, _| look(coordinator)).await?;
        // Afterwards: who leads still, in the same epoch, has led when it was looked at.
        match partition.confirm(epoch, CONFIRMATION).await {
            Ok(()) => Ok(seen),
            Err(_) => Err(not_coordinator()),
        }
    }

    /// Lets an event happen and waits for the reply that comes of it, now or later.
    ///
    /// # Errors
    /// As [`Shard::call`], and where it ceases to coordinate before it replies.
    pub(super) async fn ask(
        &self,
        event: impl FnOnce(&mut Coordinator, Ticket, Moment, &mut Effects) + Send + 'static,
    ) -> Result<Reply, BrokerError> {
        let ticket = Ticket(self.opened.fetch_add(1, Ordering::Relaxed));
        let (tell, told) = oneshot::channel();
        self.waiting.lock().insert(ticket, tell);
        let _waiting = Waiting {
            shard: self,
            ticket,
        };
        let asking = self.call(move |coordinator, now, effects| {
            event(coordinator, ticket, now, effects);
        });
        asking.await?;
        told.await.unwrap_or_else(|_| Err(not_coordinator()))
    }

    fn reply(&self, ticket: Ticket, reply: Result<Reply, BrokerError>) {
        if let Some(tell) = self.waiting.lock().remove(&ticket) {
            // Who asked may have given up.
            drop(tell.send(reply));
        }
    }

    /// Whether groups are being loaded here.
    pub(super) fn is_loading(&self) -> bool {
        matches!(*self.state.read(), State::Loading)
    }
}

pub(crate) fn not_coordinator() -> BrokerError {
    BrokerError::new(
        Reason::NotCoordinator,
        "this node does not coordinate the group: ask the one that does, or retry shortly",
    )
}

fn loading() -> BrokerError {
    BrokerError::new(
        Reason::CoordinatorLoading,
        "this node is loading what the group has stored: retry shortly",
    )
}

/// Why groups were not loaded, or are served no longer.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    /// The replica ceased to lead, or leads in another epoch.
    #[error("it does not lead any more")]
    Deposed,
    #[error(transparent)]
    Write(#[from] AppendError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the record batches in {0} cannot be read: {1}")]
    Batch(String, quipu_model::batch::BatchError),
    #[error("a record in {0} cannot be read: {1}")]
    Record(String, DecodeError),
    #[error(transparent)]
    Other(#[from] BrokerError),
}

/// What serves a shard.
pub(super) struct Server {
    pub(super) node: NodeId,
    pub(super) partition: Partition,
    pub(super) stopped: CancellationToken,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: Limits,
    pub(super) shard: Arc<Shard>,
    pub(super) topics: watch::Receiver<Arc<TopicsView>>,
    pub(super) started: Instant,
}

impl Server {
    const READ_BYTES: usize = 1 << 20;
    /// How many events are handled between two looks at what else is due.
    const EVENTS_AT_A_TIME: usize = 256;
    /// Before loading is tried again that failed.
    const PAUSE: Duration = Duration::from_millis(200);
    const BARRIER_TIMEOUT: Duration = Duration::from_secs(10);

    /// Runs until the replica stops.
    pub(super) async fn run(self) {
        tokio::select! {
            () = self.stopped.cancelled() => {}
            () = self.lead_and_follow() => {}
        }
        self.shard.set(State::Elsewhere);
    }

    async fn lead_and_follow(&self) {
        let mut leadership = self.partition.leadership();
        let mut failed = false;
        loop {
            let leads = leadership
                .wait_for(|now| now.leader == Some(self.node) && now.ready)
                .await;
            let Ok(epoch) = leads.map(|now| now.epoch) else {
                return;
            };
            self.shard.set(State::Loading);
            let stopped = tokio::select! {
                stopped = self.lead(epoch, failed) => stopped,
                _ = leadership.wait_for(|now| now.epoch != epoch || !now.ready) => Stopped::Deposed,
            };
            self.shard.set(State::Elsewhere);
            failed = !matches!(stopped, Stopped::Deposed);
            if failed {
                tracing::warn!(key = %self.partition.key(), error = %stopped, "groups are loaded anew");
                self.shard.set(State::Loading);
                tokio::time::sleep(Self::PAUSE).await;
            }
        }
    }

    /// Loads the groups and serves them in one epoch.
    async fn lead(&self, epoch: LeaderEpoch, failed: bool) -> Stopped {
        if failed && let Err(stopped) = self.settle(epoch).await {
            return stopped;
        }
        let coordinator = match self.load().await {
            Ok(coordinator) => coordinator,
            Err(stopped) => return stopped,
        };
        let mut writer = Writer::new(self.partition.clone(), epoch);
        let stopped = self.serve(coordinator, epoch, &mut writer).await;
        let error = match stopped {
            Ok(never) => match never {},
            Err(Stopped::Write(error)) => {
                let told = write_error(&error);
                writer.fail(&told);
                return Stopped::Write(error);
            }
            Err(stopped) => stopped,
        };
        writer.fail(&not_coordinator());
        error
    }

    /// Waits until what was on its way when storing failed is stored, or never will be: behind a record that says nothing.
    async fn settle(&self, epoch: LeaderEpoch) -> Result<(), Stopped> {
        let mut nothing = BatchBuilder::new(Compression::None);
        nothing.append(self.clock.now(), Some(b""), None, &[]);
        let batch = nothing.build().map_err(BrokerError::from)?;
        let appending = self
            .partition
            .append_in(epoch, batch, Self::BARRIER_TIMEOUT);
        appending.await?;
        Ok(())
    }

    /// Replays what is stored.
    async fn load(&self) -> Result<Coordinator, Stopped> {
        let key = || self.partition.key().to_string();
        let mut coordinator = Coordinator::new(self.limits.clone());
        let end = *self.partition.high_watermark().borrow();
        let mut next = self.partition.start_offset();
        while next < end {
            let read = self.partition.read(next, Self::READ_BYTES).await?;
            for batch in split_batches(read.bytes) {
                let batch = batch.map_err(|error| Stopped::Batch(key(), error))?;
                let records = batch
                    .records()
                    .map_err(|error| Stopped::Batch(key(), error))?;
                for record in records {
                    let record = record.map_err(|error| Stopped::Batch(key(), error))?;
                    let stored = Stored::decode(record.key.as_deref(), record.value.as_deref())
                        .map_err(|error| Stopped::Record(key(), error))?;
                    if let Some(stored) = stored {
                        coordinator.replay(stored);
                    }
                }
            }
            next = read.next_offset;
            // Others are to have their turn while much is loaded.
            tokio::task::yield_now().await;
        }
        Ok(coordinator)
    }

    async fn serve(
        &self,
        mut coordinator: Coordinator,
        epoch: LeaderEpoch,
        writer: &mut Writer,
    ) -> Result<std::convert::Infallible, Stopped> {
        let (sender, mut events) = mpsc::channel(Shard::QUEUE);
        self.shard.set(State::Serving(Serving {
            events: sender,
            partition: self.partition.clone(),
            epoch,
        }));
        let mut topics = self.topics.clone();
        let first = Arc::clone(&topics.borrow_and_update());
        self.happen(writer, |now, effects| {
            coordinator.begin(now, first, effects)
        });
        let mut turn: Vec<Work> = Vec::new();
        loop {
            writer.flush()?;
            let due = coordinator.next_deadline().map(|due| self.started + due);
            let tick = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                done = writer.done() => done?,
                () = tick => {
                    self.happen(writer, |now, effects| coordinator.tick(now, effects));
                }
                Ok(()) = topics.changed() => {
                    let view = Arc::clone(&topics.borrow_and_update());
                    self.happen(writer, |now, effects| {
                        coordinator.topics_changed(now, view, effects);
                    });
                }
                _ = events.recv_many(&mut turn, Self::EVENTS_AT_A_TIME), if writer.has_room() => {
                    self.handle(&mut coordinator, &mut turn, writer);
                }
            }
        }
    }

    /// Lets something happen that nobody asked for.
    fn happen(&self, writer: &mut Writer, event: impl FnOnce(Moment, &mut Effects)) {
        let (now, mut effects) = (self.now(), Effects::default());
        event(now, &mut effects);
        let records = std::mem::take(&mut effects.records);
        writer.take(&records, now.wall, self.tell(effects));
    }

    /// What tells members what they are to know, once it is stored.
    fn tell(&self, effects: Effects) -> Option<Answer> {
        let Effects {
            notices, replies, ..
        } = effects;
        if notices.is_empty() && replies.is_empty() {
            return None;
        }
        let shard = Arc::clone(&self.shard);
        Some(Box::new(move |stored| {
            if stored.is_ok() {
                for (group, member, notice) in notices {
                    shard.notify(group, member, notice);
                }
            }
            for (ticket, reply) in replies {
                shard.reply(ticket, stored.clone().map(|()| reply));
            }
        }))
    }

    fn handle(&self, coordinator: &mut Coordinator, turn: &mut Vec<Work>, writer: &mut Writer) {
        let now = self.now();
        // One that nobody follows any more may be deposed without knowing it: what it would say may be out of date.
        let followed = self.partition.is_followed();
        for work in turn.drain(..) {
            if !followed {
                // Dropping it answers that this is not the coordinator.
                continue;
            }
            let mut effects = Effects::default();
            let answer = work(coordinator, now, &mut effects);
            let records = std::mem::take(&mut effects.records);
            // The answer first: who joins hears that it did before it hears what it owns.
            writer.take(&records, now.wall, Some(answer));
            writer.take(&[], now.wall, self.tell(effects));
        }
    }

    fn now(&self) -> Moment {
        Moment {
            elapsed: self.started.elapsed(),
            wall: self.clock.now(),
        }
    }
}

fn write_error(error: &AppendError) -> BrokerError {
    let outcome = match error.is_definite() {
        true => Outcome::Definite,
        false => Outcome::Indefinite,
    };
    match error {
        AppendError::NotLeader { .. } | AppendError::LeadershipLost { .. } => BrokerError {
            outcome,
            ..not_coordinator()
        },
        error => BrokerError {
            outcome,
            ..BrokerError::new(
                Reason::CoordinatorLoading,
                format!("{error}: retry shortly"),
            )
        },
    }
}
