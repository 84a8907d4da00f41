//! The task that reads, hands out work, and stores how far it got.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use quipu_model::{Offset, batch::Record as StoredRecord};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{
    Handle, WorkerConfig,
    attempt::Shared,
    breaker::{Breaker, Permit},
    config::Order,
    router::Router,
    schedule::{Lane, Schedule, Ticket, WindowId},
    subscription::Subscription,
    work::Work,
};
use crate::{
    ConsumerRecord, GroupConsumer, RecordChunk, Result, TopicPartition,
    error::Error,
    groups::{Step, is_lost},
};

/// The share of the buffer that a partition has at least, in bytes.
const LEAST_SHARE: usize = 64 << 10;

/// A record that is not due yet.
struct Held {
    due: Instant,
    offset: Offset,
    bytes: usize,
    work: Arc<Work>,
}

/// A partition that is the member's.
struct Place {
    window: WindowId,
    /// Its records wait until they are due.
    waits: bool,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// So much is read ahead that nothing more is for now.
    full: bool,
    /// It is to be let go once nothing of it is worked on, and what is not even begun by this time is not waited for.
    stopping: Option<Instant>,
    stored: Option<Offset>,
}

/// What a task came to.
enum Done {
    Worked {
        ticket: Ticket,
        failed: bool,
        was_probe: bool,
    },
    Stored {
        offsets: Vec<(TopicPartition, Offset)>,
        result: Result<()>,
        /// The partition that can be let go now.
        let_go: Option<(TopicPartition, WindowId)>,
    },
}

pub(super) struct Run {
    shared: Arc<Shared>,
    subscription: Subscription,
    consumer: GroupConsumer,
    schedule: Schedule<Arc<Work>>,
    places: HashMap<TopicPartition, Place>,
    partitions: HashMap<WindowId, TopicPartition>,
    breaker: Breaker,
    tasks: JoinSet<Done>,
    /// How many records are worked on.
    working: usize,
    storing: bool,
    /// When the first of what is held is due.
    next_due: Option<Instant>,
}

impl Run {
    pub(super) fn new(
        config: WorkerConfig,
        subscription: Subscription,
        consumer: GroupConsumer,
        router: Router,
        handle: Handle,
    ) -> Self {
        Self {
            subscription,
            consumer,
            schedule: Schedule::default(),
            places: HashMap::new(),
            partitions: HashMap::new(),
            breaker: Breaker::new(config.breaker),
            tasks: JoinSet::new(),
            working: 0,
            storing: false,
            next_due: None,
            shared: Arc::new(Shared {
                handle,
                router,
                config,
            }),
        }
    }

    /// Works until it is closed, or cannot go on.
    pub(super) async fn run(mut self, mut closed: oneshot::Receiver<()>) -> Result<()> {
        let mut commits = interval(self.shared.config.commit_interval);
        commits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.release_due();
            let retry_at = self.dispatch();
            tokio::select! {
                biased;
                _ = &mut closed => break,
                _ = commits.tick() => {
                    self.store();
                    self.halt_late();
                }
                () = until(self.next_due) => {}
                () = until(retry_at) => {}
                Some(done) = self.tasks.join_next() => {
                    self.take(done);
                    while let Some(done) = self.tasks.try_join_next() {
                        self.take(done);
                    }
                }
                step = self.consumer.next_step() => match step {
                    Some(Ok(step)) => self.follow(step),
                    Some(Err(error)) => return Err(error),
                    None => return Err(Error::unreachable("the group was left: start a new worker")),
                },
            }
        }
        self.drain().await
    }

    /// Waits for what is being worked on, and leaves the group.
    async fn drain(mut self) -> Result<()> {
        for place in self.places.values_mut() {
            self.schedule.stop(place.window);
            place.held.clear();
        }
        let drain_timeout = self.shared.config.drain_timeout;
        if timeout(drain_timeout, self.finish()).await.is_err() {
            tracing::warn!(
                records = self.working,
                "records are still being worked on: they are worked on again elsewhere"
            );
        }
        let due = self.due_offsets();
        let stored = self.consumer.storing(due).await;
        self.tasks.shutdown().await;
        // Nothing is left to store.
        let _ = self.consumer.close().await;
        let flushed = self.shared.router.stores.producer().close().await;
        stored.and(flushed)
    }

    /// Works until nothing is left to be worked on.
    async fn finish(&mut self) {
        loop {
            let retry_at = self.dispatch();
            let mut windows = self.partitions.keys();
            if self.working == 0 && windows.all(|window| self.schedule.is_idle(*window)) {
                return;
            }
            tokio::select! {
                () = until(retry_at) => {}
                Some(done) = self.tasks.join_next() => self.take(done),
            }
        }
    }

    fn follow(&mut self, step: Step) {
        match step {
            Step::Begun(partitions) => partitions.into_iter().for_each(|p| self.begin(p)),
            Step::Stopped(partitions) => partitions.into_iter().for_each(|p| self.stop(p)),
            Step::Lost(partitions) => partitions.iter().for_each(|p| self.forget(p)),
            Step::Records(chunk) => self.read(chunk),
        }
    }

    fn begin(&mut self, partition: TopicPartition) {
        self.forget(&partition);
        let window = self.schedule.open();
        let place = Place {
            window,
            waits: self.subscription.waits(&partition.0),
            held: VecDeque::new(),
            held_bytes: 0,
            full: false,
            stopping: None,
            stored: None,
        };
        self.places.insert(partition.clone(), place);
        self.partitions.insert(window, partition);
    }

    /// Reads no more of a partition, and lets go of it when what is being worked on is finished.
    fn stop(&mut self, partition: TopicPartition) {
        let Some(place) = self.places.get_mut(&partition) else {
            self.consumer.let_go(vec![partition]);
            return;
        };
        place.stopping = Some(Instant::now() + self.shared.config.drain_timeout);
        place.held.clear();
        place.held_bytes = 0;
        let window = place.window;
        self.schedule.stop(window);
        self.let_go_if_idle(window);
    }

    /// Begins nothing more of partitions that were to be let go long ago: a record may wait for the breaker.
    fn halt_late(&mut self) {
        let now = Instant::now();
        let late = |place: &&Place| place.stopping.is_some_and(|by| by <= now);
        let late: Vec<_> = self
            .places
            .values()
            .filter(late)
            .map(|p| p.window)
            .collect();
        for window in late {
            if !self.schedule.is_idle(window) {
                self.schedule.halt(window);
                self.let_go_if_idle(window);
            }
        }
    }

    fn let_go_if_idle(&mut self, window: WindowId) {
        let Some(partition) = self.partitions.get(&window) else {
            return;
        };
        let stopping = self
            .places
            .get(partition)
            .is_some_and(|p| p.stopping.is_some());
        if !stopping || !self.schedule.is_idle(window) {
            return;
        }
        let done_to = self.schedule.done_to(window);
        let offsets = done_to.map(|offset| (partition.clone(), offset));
        let let_go = Some((partition.clone(), window));
        self.spawn_storing(offsets.into_iter().collect(), let_go);
    }

    fn forget(&mut self, partition: &TopicPartition) {
        if let Some(place) = self.places.remove(partition) {
            self.schedule.close(place.window);
            self.partitions.remove(&place.window);
        }
    }

    fn read(&mut self, chunk: RecordChunk) {
        let partition = (Arc::clone(&chunk.topic), chunk.partition);
        let Some(place) = self.places.get_mut(&partition) else {
            return;
        };
        for record in chunk.records {
            let bytes = size(&record);
            let offset = record.offset;
            let record = ConsumerRecord {
                topic: Arc::clone(&partition.0),
                partition: partition.1,
                offset,
                timestamp: record.timestamp,
                key: record.key,
                value: record.value,
                headers: record.headers,
            };
            let (work, due) = self.subscription.work(record);
            let work = Arc::new(work);
            match due {
                None => {
                    let lane = lane(self.shared.config.order, &work);
                    self.schedule.add(place.window, offset, lane, bytes, work);
                }
                Some(due) => {
                    place.held_bytes += bytes;
                    self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
                    place.held.push_back(Held {
                        due,
                        offset,
                        bytes,
                        work,
                    });
                }
            }
        }
        self.throttle(&partition);
    }

    /// Takes up what is due by now. Of a partition the first record holds up the others: all wait equally long, but for the jitter.
    fn release_due(&mut self) {
        let now = Instant::now();
        if self.next_due.is_none_or(|due| due > now) {
            return;
        }
        self.next_due = None;
        for place in self.places.values_mut() {
            while let Some(held) = place.held.pop_front_if(|held| held.due <= now) {
                place.held_bytes -= held.bytes;
                let lane = lane(self.shared.config.order, &held.work);
                self.schedule
                    .add(place.window, held.offset, lane, held.bytes, held.work);
            }
            let due = place.held.front().map(|held| held.due);
            self.next_due = match (self.next_due, due) {
                (Some(next), Some(due)) => Some(next.min(due)),
                (next, due) => next.or(due),
            };
        }
    }

    /// Reads less of a partition of which much is read ahead, and more again later. What waits long is not kept in memory meanwhile.
    fn throttle(&mut self, partition: &TopicPartition) {
        let partitions = self.places.len().max(1);
        let Some(place) = self.places.get_mut(partition) else {
            return;
        };
        let config = &self.shared.config;
        let share = (config.buffer_bytes / partitions).max(LEAST_SHARE);
        let (records, bytes) = self.schedule.outstanding(place.window);
        let (records, bytes) = (records + place.held.len(), bytes + place.held_bytes);
        let full = match place.full {
            false => records >= config.window || bytes >= share,
            true => records > config.window / 2 || bytes > share / 2,
        };
        if full == std::mem::replace(&mut place.full, full) || place.stopping.is_some() {
            return;
        }
        let (topic, number) = partition;
        if !place.waits {
            self.consumer.hold(topic, *number, full);
            return;
        }
        // A partition that is not the member's any more is told of next.
        let _ = match full {
            true => self.consumer.pause(topic, *number),
            false => self.consumer.resume(topic, *number),
        };
    }

    /// Begins to work on as many records as may be. Where the breaker is open: when to look again.
    fn dispatch(&mut self) -> Option<Instant> {
        while self.working < self.shared.config.concurrency {
            let probes = match self.breaker.permit(Instant::now()) {
                Permit::All => false,
                Permit::Probe => true,
                Permit::Probing => return None,
                Permit::After(until) => return Some(until),
            };
            let (ticket, work) = self.schedule.next()?;
            if probes {
                self.breaker.probe();
            }
            self.working += 1;
            let shared = Arc::clone(&self.shared);
            self.tasks.spawn(async move {
                Done::Worked {
                    ticket,
                    failed: shared.work_on(&work).await,
                    was_probe: probes,
                }
            });
        }
        None
    }

    fn take(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                // A bug of our own: what handlers do was caught before.
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        };
        match done {
            Done::Worked {
                ticket,
                failed,
                was_probe,
            } => {
                self.working -= 1;
                self.breaker.attempted(failed, was_probe, Instant::now());
                self.schedule.finish(ticket);
                if let Some(partition) = self.partitions.get(&ticket.window).cloned() {
                    self.throttle(&partition);
                    self.let_go_if_idle(ticket.window);
                }
            }
            Done::Stored {
                offsets,
                result,
                let_go,
            } => self.stored(offsets, result, let_go),
        }
    }

    fn stored(
        &mut self,
        offsets: Vec<(TopicPartition, Offset)>,
        result: Result<()>,
        let_go: Option<(TopicPartition, WindowId)>,
    ) {
        match result {
            Ok(()) => {
                for (partition, offset) in offsets {
                    if let Some(place) = self.places.get_mut(&partition) {
                        place.stored = Some(offset);
                    }
                }
            }
            Err(error) if is_lost(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "offsets were not stored, and are the next time");
            }
        }
        let Some((partition, window)) = let_go else {
            self.storing = false;
            return;
        };
        if self
            .places
            .get(&partition)
            .is_some_and(|place| place.window == window)
        {
            self.forget(&partition);
            self.consumer.let_go(vec![partition]);
        }
    }

    fn store(&mut self) {
        if self.storing {
            return;
        }
        let due = self.due_offsets();
        if !due.is_empty() {
            self.storing = true;
            self.spawn_storing(due, None);
        }
    }

    fn spawn_storing(
        &mut self,
        offsets: Vec<(TopicPartition, Offset)>,
        let_go: Option<(TopicPartition, WindowId)>,
    ) {
        let storing = self.consumer.storing(offsets.clone());
        self.tasks.spawn(async move {
            Done::Stored {
                offsets,
                result: storing.await,
                let_go,
            }
        });
    }

    /// How far partitions are done, where that is not stored yet.
    fn due_offsets(&self) -> Vec<(TopicPartition, Offset)> {
        let due = self.places.iter().filter_map(|(partition, place)| {
            let done_to = self.schedule.done_to(place.window)?;
            (place.stored != Some(done_to)).then(|| (partition.clone(), done_to))
        });
        due.collect()
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn lane(order: Order, work: &Work) -> Lane {
    match order {
        Order::Key => work.record.key.clone(),
        Order::Partition => Some(Bytes::new()),
    }
}

fn size(record: &StoredRecord) -> usize {
    let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    length(&record.key) + length(&record.value)
}
