//! The task behind a producer: it owns every lane and every connection, so that nothing about order needs a lock.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use quipu_model::Offset;
use quipu_proto::v1::{self, ProduceRequest, ProduceResponse, produce_request::Payload};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    Acks,
    accumulator::{Accumulator, Partition},
    connection::Connection,
    delivery::BatchState,
    identity::{self, Identity},
    lane::{Lane, Phase, Search},
};
use crate::{Result, cluster::Cluster, error::Error, topics::Led};

/// What producers ask for.
#[derive(Debug)]
pub(super) enum Command {
    /// A partition has news.
    Wake(Arc<Partition>),
    /// Send everything; the answer is all that is under way.
    Flush(oneshot::Sender<Vec<Arc<BatchState>>>),
    /// Send everything, then end.
    Close(oneshot::Sender<()>),
}

/// What tasks report.
#[derive(Debug)]
pub(super) enum Event {
    Response(ProduceResponse),
    Disconnected {
        address: Box<str>,
        generation: u64,
        error: Error,
    },
    Located {
        lane: usize,
        leader: Result<Led>,
    },
    /// Another node leads than the one that is silent since then.
    Replaced {
        lane: usize,
        since: Instant,
        led: Led,
    },
    Identified {
        lane: usize,
        identity: Result<Identity>,
    },
}

struct Sender {
    accumulator: Arc<Accumulator>,
    cluster: Arc<Cluster>,
    /// The identity that lanes begin with.
    identity: Option<Identity>,
    lanes: HashMap<usize, Lane>,
    /// The partitions that have lanes, by topic and number: one that was forgotten and learnt again has several.
    known: HashSet<(Arc<str>, u32)>,
    connections: HashMap<Box<str>, Connection>,
    generations: u64,
    requests: u32,
    timers: BTreeSet<(Instant, usize)>,
    events: mpsc::UnboundedSender<Event>,
    closing: Option<Vec<oneshot::Sender<()>>>,
}

/// Starts the task; it ends when told to, or when all senders of commands are gone and nothing is left to send.
pub(super) fn spawn(
    accumulator: Arc<Accumulator>,
    cluster: Arc<Cluster>,
    identity: Option<Identity>,
) -> mpsc::UnboundedSender<Command> {
    let (commands, incoming) = mpsc::unbounded_channel();
    let (events, reported) = mpsc::unbounded_channel();
    let sender = Sender {
        accumulator,
        cluster,
        identity,
        lanes: HashMap::new(),
        known: HashSet::new(),
        connections: HashMap::new(),
        generations: 0,
        requests: 0,
        timers: BTreeSet::new(),
        events,
        closing: None,
    };
    tokio::spawn(sender.run(incoming, reported));
    commands
}

impl Sender {
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut events: mpsc::UnboundedReceiver<Event>,
    ) {
        let mut commands_open = true;
        while !self.is_finished() {
            let timer = self.timers.first().map(|(at, _)| *at);
            tokio::select! {
                Some(event) = events.recv() => self.on_event(event),
                command = commands.recv(), if commands_open => match command {
                    Some(command) => self.on_command(command),
                    None => {
                        commands_open = false;
                        self.close(None);
                    }
                },
                () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => {
                    self.on_timer(Instant::now());
                }
            }
        }
        // Dropping the replies inside `closing` tells whoever waits.
    }

    /// Whether everything is settled, and no record can come any more.
    fn is_finished(&mut self) -> bool {
        if self.closing.is_none() || self.lanes.values().any(Lane::has_work) {
            return false;
        }
        let finished = self.accumulator.close();
        if !finished {
            self.send_everything();
        }
        finished
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Wake(partition) => {
                let index = self.lane_of(&partition);
                self.drive(index);
            }
            Command::Flush(reply) => {
                let states = self.send_everything();
                // Whoever asked may have stopped waiting.
                let _ = reply.send(states);
            }
            Command::Close(reply) => self.close(Some(reply)),
        }
    }

    fn close(&mut self, reply: Option<oneshot::Sender<()>>) {
        self.closing.get_or_insert_default().extend(reply);
        self.send_everything();
    }

    fn lane_of(&mut self, partition: &Arc<Partition>) -> usize {
        self.lanes.entry(partition.index).or_insert_with(|| {
            let topic = Arc::clone(&partition.topic);
            let first = self.known.insert((topic, partition.id));
            match self.identity {
                // Under the identity of the lane before, its numbers would be those of other records.
                Some(_) if !first => Lane::unidentified(Arc::clone(partition)),
                identity => Lane::new(Arc::clone(partition), identity),
            }
        });
        partition.index
    }

    /// Makes every open batch ready, sends what may be sent, and returns all that is under way.
    fn send_everything(&mut self) -> Vec<Arc<BatchState>> {
        for partition in self.accumulator.partitions() {
            if partition.oldest().is_some() {
                self.lane_of(&partition);
            }
        }
        let mut states = Vec::new();
        for lane in self.lanes.values() {
            lane.partition.flush();
            states.extend(lane.states());
        }
        let lanes: Vec<usize> = self.lanes.keys().copied().collect();
        for index in lanes {
            self.drive(index);
        }
        states
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Response(response) => self.on_response(response),
            Event::Disconnected {
                address,
                generation,
                error,
            } => {
                let current = self.connections.get(&address);
                if current.is_some_and(|current| current.generation == generation) {
                    self.disconnect(&address, &error);
                }
            }
            Event::Located {
                lane: index,
                leader,
            } => {
                if let Some(lane) = self.lanes.get_mut(&index) {
                    lane.located(leader, &self.accumulator);
                }
                self.drive(index);
            }
            Event::Replaced {
                lane: index,
                since,
                led,
            } => self.leave(index, since, led),
            Event::Identified {
                lane: index,
                identity,
            } => {
                if let Some(lane) = self.lanes.get_mut(&index) {
                    match identity {
                        Ok(identity) => {
                            lane.identify(identity);
                            lane.phase = Phase::Waiting(Instant::now());
                        }
                        Err(error) => lane.lookup_failed(&self.accumulator, error),
                    }
                }
                self.drive(index);
            }
        }
    }

    /// An answer that came through a connection which was given up since is to a flight that is no more.
    fn on_response(&mut self, response: ProduceResponse) {
        let index = lane_of_correlation(response.correlation_id);
        let Some(lane) = self.lanes.get_mut(&index) else {
            return;
        };
        let throttle = Duration::from_millis(response.throttle_time_ms.into());
        let throttled = lane.leader.clone().filter(|_| !throttle.is_zero());
        if throttled.is_none() {
            lane.flow_freely(Instant::now());
        }
        match response.error {
            None => {
                let base = response.base_offset.map(Offset::new);
                let room = &self.accumulator.room;
                lane.acknowledged(room, response.correlation_id, base, Instant::now());
            }
            Some(error) => {
                let error = Error::from_proto(error);
                tracing::debug!(topic = %lane.partition.topic, partition = lane.partition.id, %error, "batch refused");
                lane.refused(
                    &self.accumulator,
                    response.correlation_id,
                    error,
                    Instant::now(),
                );
            }
        }
        if let Some(broker) = throttled {
            self.hold_back(&broker, Instant::now() + throttle);
        }
        self.drive(index);
    }

    /// Sends nothing more to a broker before then: the client is past its quota there.
    fn hold_back(&mut self, broker: &str, until: Instant) {
        let lanes = self.lanes.values_mut();
        for lane in lanes.filter(|lane| lane.leader.as_deref() == Some(broker)) {
            lane.hold_back(until);
        }
    }

    /// Gives a connection up: everything in flight through it goes back to its lane.
    fn disconnect(&mut self, address: &str, error: &Error) {
        tracing::warn!(address, %error, "lost the connection to a broker");
        self.connections.remove(address);
        let now = Instant::now();
        let mut affected = Vec::new();
        for (index, lane) in &mut self.lanes {
            if lane.leader.as_deref() == Some(address) {
                lane.disconnected(error, now);
                affected.push(*index);
            }
        }
        for index in affected {
            self.drive(index);
        }
    }

    /// Leaves a leader that is silent for one that was elected since. Its connection ends where no other lane uses it: it
    /// might go on holding batches.
    fn leave(&mut self, index: usize, since: Instant, led: Led) {
        let Some(lane) = self.lanes.get_mut(&index) else {
            return;
        };
        let (topic, partition) = (Arc::clone(&lane.partition.topic), lane.partition.id);
        let to = led.address.clone();
        if let Some(left) = lane.replaced(led, since, Instant::now()) {
            tracing::warn!(%topic, partition, from = %left, %to, "a silent leader was replaced");
            let mut lanes = self.lanes.values();
            if !lanes.any(|lane| lane.leader.as_deref() == Some(&*left)) {
                self.connections.remove(&left);
            }
        }
        self.drive(index);
    }

    /// Asks the other brokers about a silent leader, until it answers.
    fn search(&mut self, index: usize) {
        let Some(lane) = self.lanes.get_mut(&index) else {
            return;
        };
        let (Some(silent), Some(since)) = (lane.leader.clone(), lane.silent_since) else {
            return;
        };
        let (cluster, events) = (Arc::clone(&self.cluster), self.events.clone());
        let (partition, epoch) = (Arc::clone(&lane.partition), lane.epoch);
        let task = tokio::spawn(async move {
            let newer = cluster.await_newer_leader(&partition.topic, partition.id, &silent, epoch);
            let led = newer.await;
            let _ = events.send(Event::Replaced {
                lane: index,
                since,
                led,
            });
        });
        lane.search = Some(Search(task));
    }

    fn on_timer(&mut self, now: Instant) {
        while let Some((at, index)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(lane) = self.lanes.get_mut(&index) {
                lane.armed = None;
            }
            self.drive(index);
        }
    }

    /// Does for a lane whatever can be done now, and sets its timer.
    fn drive(&mut self, index: usize) {
        let now = Instant::now();
        let Some(lane) = self.lanes.get_mut(&index) else {
            return;
        };
        let config = &self.accumulator.config;
        let unanswered = lane.expire(&self.accumulator, now);
        if (unanswered || lane.is_stuck(config, now))
            && let Some(address) = lane.leader.clone()
        {
            let error =
                Error::unreachable(format_args!("{address} does not answer produce requests"));
            // Drives this lane too, which is then not stuck any more.
            return self.disconnect(&address, &error);
        }
        if lane.is_to_search(now) {
            self.search(index);
        }
        let Some(lane) = self.lanes.get_mut(&index) else {
            return;
        };
        lane.finish_draining(&self.accumulator.config, now);
        if let Phase::Waiting(until) = lane.phase
            && now >= until
            && lane.has_work()
        {
            self.prepare(index);
        }
        self.send_batches(index, now);
        self.arm(index, now);
    }

    /// Gets a lane what it lacks before it can flow.
    fn prepare(&mut self, index: usize) {
        let Some(lane) = self.lanes.get_mut(&index) else {
            return;
        };
        let cluster = Arc::clone(&self.cluster);
        let events = self.events.clone();
        lane.begin_epoch();
        if lane.needs_identity() {
            lane.phase = Phase::Identifying;
            tokio::spawn(async move {
                let identity = identity::init(&cluster).await;
                let _ = events.send(Event::Identified {
                    lane: index,
                    identity,
                });
            });
        } else if lane.leader.is_none() {
            lane.phase = Phase::Locating;
            let partition = Arc::clone(&lane.partition);
            let not_before = lane.leader_not_before;
            tokio::spawn(async move {
                let found = cluster.await_leader(&partition.topic, partition.id, not_before);
                let leader = found.await;
                let _ = events.send(Event::Located {
                    lane: index,
                    leader,
                });
            });
        } else {
            lane.phase = Phase::Flowing;
        }
    }

    fn send_batches(&mut self, index: usize, now: Instant) {
        loop {
            let correlation = correlation(index, self.requests);
            let Some(lane) = self.lanes.get_mut(&index) else {
                return;
            };
            let Some(leader) = lane.leader.clone() else {
                return;
            };
            let Some(batch) = lane.next_batch(&self.accumulator, now, correlation) else {
                return;
            };
            self.requests = self.requests.wrapping_add(1);
            let config = &self.accumulator.config;
            let request = ProduceRequest {
                correlation_id: correlation,
                topic: lane.partition.topic.as_ref().to_owned(),
                partition: lane.partition.id,
                acks: acks(config.acks).into(),
                timeout_ms: u32::try_from(config.request_timeout.as_millis()).unwrap_or(u32::MAX),
                payload: Some(Payload::Batch(batch.into_bytes())),
            };
            match self.connection(&leader) {
                Ok(connection) => connection.send(request),
                Err(error) => return self.disconnect(&leader, &error),
            }
        }
    }

    fn connection(&mut self, address: &str) -> Result<&Connection> {
        if !self.connections.contains_key(address) {
            let channel = self.cluster.dial(address)?;
            self.generations += 1;
            let events = self.events.clone();
            let cluster = Arc::clone(&self.cluster);
            let generation = self.generations;
            let connection = Connection::open(cluster, channel, address.into(), generation, events);
            self.connections.insert(address.into(), connection);
        }
        self.connections
            .get(address)
            .ok_or_else(|| Error::unreachable("the connection is gone"))
    }

    fn arm(&mut self, index: usize, now: Instant) {
        let Some(lane) = self.lanes.get_mut(&index) else {
            return;
        };
        let deadline = lane.deadline(&self.accumulator.config, now);
        if lane.armed == deadline {
            return;
        }
        if let Some(armed) = lane.armed.take() {
            self.timers.remove(&(armed, index));
        }
        if let Some(deadline) = deadline {
            self.timers.insert((deadline, index));
            lane.armed = Some(deadline);
        }
    }
}

/// A request's number, which names its lane in the upper half: lanes are numbered by the partitions of one process's topics.
fn correlation(lane: usize, request: u32) -> u64 {
    (lane as u64) << 32 | u64::from(request)
}

fn lane_of_correlation(correlation: u64) -> usize {
    (correlation >> 32) as usize
}

fn acks(acks: Acks) -> v1::Acks {
    match acks {
        Acks::All => v1::Acks::All,
        Acks::Leader => v1::Acks::Leader,
        Acks::None => v1::Acks::None,
    }
}
