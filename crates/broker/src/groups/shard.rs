//! What runs beside a replica of the internal topic: while the replica leads, it loads the groups of its partition and serves them.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::RwLock;
use quipu_model::{
    LeaderEpoch, NodeId,
    batch::{BatchBuilder, Compression, split_batches},
};
use quipu_replication::{AppendError, Partition};
use quipu_storage::{ReadError, io::Clock};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    coordinator::{Coordinator, Effects, Limits},
    names::Moment,
    records::{DecodeError, Stored},
    writer::{Answer, Writer},
};
use crate::error::{BrokerError, Outcome, Reason};

/// An event for a coordinator, and what gives its answer.
type Work = Box<dyn FnOnce(&mut Coordinator, Moment, &mut Effects) -> Answer + Send>;

/// How a shard is reached at present.
#[derive(Clone)]
enum State {
    /// The replica does not lead.
    Elsewhere,
    Loading,
    Serving(mpsc::Sender<Work>),
}

/// The groups of one partition, as others on this node reach them.
pub(super) struct Shard {
    state: RwLock<State>,
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
        let sender = match &*self.state.read() {
            State::Elsewhere => return Err(not_coordinator()),
            State::Loading => return Err(loading()),
            State::Serving(sender) => sender.clone(),
        };
        match sender.try_send(work) {
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

    /// Whether groups are being loaded here.
    pub(super) fn is_loading(&self) -> bool {
        matches!(*self.state.read(), State::Loading)
    }
}

pub(super) fn not_coordinator() -> BrokerError {
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
        *self.shard.state.write() = State::Elsewhere;
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
            *self.shard.state.write() = State::Loading;
            let stopped = tokio::select! {
                stopped = self.lead(epoch, failed) => stopped,
                _ = leadership.wait_for(|now| now.epoch != epoch || !now.ready) => Stopped::Deposed,
            };
            *self.shard.state.write() = State::Elsewhere;
            failed = !matches!(stopped, Stopped::Deposed);
            if failed {
                tracing::warn!(key = %self.partition.key(), error = %stopped, "groups are loaded anew");
                *self.shard.state.write() = State::Loading;
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
        let stopped = self.serve(coordinator, &mut writer).await;
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
        coordinator.begin(self.now());
        Ok(coordinator)
    }

    async fn serve(
        &self,
        mut coordinator: Coordinator,
        writer: &mut Writer,
    ) -> Result<std::convert::Infallible, Stopped> {
        let (sender, mut events) = mpsc::channel(Shard::QUEUE);
        *self.shard.state.write() = State::Serving(sender);
        let mut turn: Vec<Work> = Vec::new();
        loop {
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
                    let (now, mut effects) = (self.now(), Effects::default());
                    coordinator.tick(now, &mut effects);
                    writer.take(&effects.records, now.wall, None);
                }
                _ = events.recv_many(&mut turn, Self::EVENTS_AT_A_TIME), if writer.has_room() => {
                    self.handle(&mut coordinator, &mut turn, writer);
                }
            }
            writer.flush()?;
        }
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
            writer.take(&effects.records, now.wall, Some(answer));
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
