//! A broker in memory: one topic at first, the rules of idempotent producers, and a script of what goes wrong. It is reached through
//! in-memory pipes, so that tests run under tokio's paused clock. Several brokers can share a log: whatever one stored, all have.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::unwrap_used,
    reason = "each test program uses a part of it"
)]

mod admin;
mod groups;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use quipu_client::{Client, ClientConfig, ErrorReason};
use quipu_model::{LeaderEpoch, Offset, ProducerId, RecordBatch, batch::Record};
use quipu_proto::v1::{
    self,
    admin_server::AdminServer,
    groups_server::GroupsServer,
    list_offsets_request::At,
    log_server::{Log, LogServer},
    produce_request::Payload,
    *,
};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};
use tonic_types::{ErrorDetails, StatusExt};

pub const TOPIC: &str = "t";

/// What happens to a produce request.
#[derive(Clone, Debug)]
pub enum Fate {
    /// It is answered as a broker answers.
    Served,
    /// It is answered as a broker answers, so much later.
    Delayed(Duration),
    /// It is answered as a broker answers, which asks for a wait.
    Throttled(Duration),
    /// It is refused, and not stored.
    Refused(ErrorReason, bool),
    /// The stream breaks before it is stored.
    LostBefore,
    /// The stream breaks after it was stored: the answer is lost.
    LostAfter,
    /// It is never answered, and not stored.
    Swallowed,
    /// It is stored, and never answered.
    Unanswered,
    /// It is never answered, and stored when the test says so.
    Late,
}

type Script = Box<dyn FnMut(u64) -> Fate + Send>;

pub struct Broker {
    address: &'static str,
    state: Arc<Mutex<State>>,
    script: Mutex<Script>,
    /// Who leads, and in which epoch, as far as it knows.
    leader: Mutex<(&'static str, i32)>,
    /// It answers nothing but what its script says.
    silent: AtomicBool,
    late: Mutex<Vec<ProduceRequest>>,
    requests: AtomicU64,
    /// For how many milliseconds readers are told to wait.
    throttle_fetches: AtomicU32,
    down: AtomicBool,
    end: Arc<watch::Sender<u64>>,
    connections: mpsc::Sender<io::Result<DuplexStream>>,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<String, Vec<Partition>>,
    next_producer: i64,
    fetches: u64,
    /// How far groups have read.
    offsets: BTreeMap<(String, String, u32), u64>,
}

impl State {
    fn partition(&mut self, topic: &str, partition: u32) -> &mut Partition {
        &mut self.topics.get_mut(topic).unwrap()[partition as usize]
    }
}

#[derive(Default)]
struct Partition {
    batches: Vec<RecordBatch>,
    end: u64,
    start: u64,
    producers: HashMap<i64, Producer>,
}

#[derive(Default)]
struct Producer {
    epoch: i16,
    next: i32,
    /// Base sequence and offset of the last five batches.
    last: VecDeque<(i32, u64)>,
}

impl Broker {
    pub fn start(partitions: usize, script: impl FnMut(u64) -> Fate + Send + 'static) -> Arc<Self> {
        let mut state = State::default();
        state.topics.insert(TOPIC.to_owned(), empty(partitions));
        let (state, end) = (Arc::new(Mutex::new(state)), Arc::default());
        Self::serve("fake:9093", state, end, Box::new(script))
    }

    /// Another broker with the same log.
    pub fn beside(
        &self,
        address: &'static str,
        script: impl FnMut(u64) -> Fate + Send + 'static,
    ) -> Arc<Self> {
        let (state, end) = (Arc::clone(&self.state), Arc::clone(&self.end));
        Self::serve(address, state, end, Box::new(script))
    }

    fn serve(
        address: &'static str,
        state: Arc<Mutex<State>>,
        end: Arc<watch::Sender<u64>>,
        script: Script,
    ) -> Arc<Self> {
        let (connections, incoming) = mpsc::channel(16);
        let broker = Arc::new(Self {
            address,
            state,
            script: Mutex::new(script),
            leader: Mutex::new(("fake:9093", 1)),
            silent: AtomicBool::new(false),
            late: Mutex::default(),
            requests: AtomicU64::new(0),
            throttle_fetches: AtomicU32::new(0),
            down: AtomicBool::new(false),
            end,
            connections,
        });
        let service = Services(Arc::clone(&broker));
        tokio::spawn(async move {
            let log = LogServer::new(service.clone()).max_decoding_message_size(64 << 20);
            Server::builder()
                .add_service(log)
                .add_service(AdminServer::new(service.clone()))
                .add_service(GroupsServer::new(service))
                .serve_with_incoming(ReceiverStream::new(incoming))
                .await
                .unwrap();
        });
        broker
    }

    pub fn client(self: &Arc<Self>) -> Client {
        Self::client_of([self])
    }

    /// A client that knows these.
    pub fn client_of<const N: usize>(brokers: [&Arc<Self>; N]) -> Client {
        let config = ClientConfig::new(&brokers.map(|broker| broker.address).join(","));
        let brokers = brokers.map(Arc::clone);
        let dial = move |address: &str| {
            let broker = brokers.iter().find(|broker| broker.address == address);
            broker.unwrap().channel()
        };
        Client::with_channels(config, dial).unwrap()
    }

    /// From now on it says that this one leads.
    pub fn tell_leader(&self, address: &'static str, epoch: i32) {
        *self.leader.lock() = (address, epoch);
    }

    /// From now on it answers nothing but what its script says.
    pub fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    /// Stores what comes late; why that was refused, where it was.
    pub fn store_late(&self) -> Vec<Option<ErrorReason>> {
        let late = std::mem::take(&mut *self.late.lock());
        let answers = late.iter().map(|request| self.append(request));
        answers
            .map(|answer| answer.error.map(|error| error.reason()))
            .collect()
    }

    async fn speak(&self) {
        if self.silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    fn channel(self: &Arc<Self>) -> Channel {
        let broker = Arc::clone(self);
        let connector = tower::service_fn(move |_| {
            let broker = Arc::clone(&broker);
            async move {
                if broker.down.load(Ordering::Relaxed) {
                    return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
                }
                let (ours, theirs) = tokio::io::duplex(1 << 20);
                broker.connections.send(Ok(theirs)).await.unwrap();
                Ok(TokioIo::new(ours))
            }
        });
        Endpoint::from_static("http://fake").connect_with_connector_lazy(connector)
    }

    /// From now on readers are told with each message to wait.
    pub fn throttle_fetches(&self, milliseconds: u32) {
        self.throttle_fetches.store(milliseconds, Ordering::Relaxed);
    }

    /// Whether connections are refused from now on.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    /// How many produce requests have come.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many fetch streams were opened.
    pub fn fetches(&self) -> u64 {
        self.state.lock().fetches
    }

    /// Forgets everything before an offset.
    pub fn trim(&self, partition: usize, start: u64) {
        let mut state = self.state.lock();
        let partition = state.partition(TOPIC, partition as u32);
        partition.start = start;
        partition
            .batches
            .retain(|batch| batch.header().next_offset().get() > start);
    }

    /// The values stored in a partition, as text.
    pub fn values(&self, partition: usize) -> Vec<String> {
        let records = self.records(TOPIC, partition as u32).into_iter();
        let values = records.map(|record| String::from_utf8(record.value.unwrap().to_vec()));
        values.map(Result::unwrap).collect()
    }

    /// The records stored in a partition; none where there is no such topic.
    pub fn records(&self, topic: &str, partition: u32) -> Vec<Record> {
        let state = self.state.lock();
        let Some(partitions) = state.topics.get(topic) else {
            return Vec::new();
        };
        let batches = partitions[partition as usize].batches.iter();
        let records = batches.flat_map(|batch| batch.records().unwrap());
        records.map(Result::unwrap).collect()
    }

    /// The topics that there are, by name.
    pub fn topics(&self) -> Vec<String> {
        self.state.lock().topics.keys().cloned().collect()
    }

    /// How far a group has read a partition.
    pub fn group_offset(&self, group: &str, topic: &str, partition: u32) -> Option<u64> {
        let key = (group.to_owned(), topic.to_owned(), partition);
        self.state.lock().offsets.get(&key).copied()
    }

    fn append(&self, request: &ProduceRequest) -> ProduceResponse {
        let Some(Payload::Batch(bytes)) = request.payload.clone() else {
            panic!("clients send batches");
        };
        let batch = RecordBatch::from_bytes(bytes).unwrap();
        batch.validate_records().unwrap();
        let mut state = self.state.lock();
        if !state.topics.contains_key(&request.topic) {
            return refusal(request, ErrorReason::UnknownTopic, false);
        }
        let partition = state.partition(&request.topic, request.partition);
        match partition.append(batch) {
            Ok((base, duplicate)) => {
                self.end.send_modify(|changes| *changes += 1);
                ProduceResponse {
                    correlation_id: request.correlation_id,
                    base_offset: Some(base),
                    duplicate,
                    ..ProduceResponse::default()
                }
            }
            Err(reason) => refusal(request, reason, false),
        }
    }

    /// The answer to a request, or `None` where the stream breaks.
    async fn produce_one(&self, request: ProduceRequest) -> Option<Option<ProduceResponse>> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let fate = (self.script.lock())(number);
        match fate {
            Fate::Served => Some(Some(self.append(&request))),
            Fate::Delayed(wait) => {
                tokio::time::sleep(wait).await;
                Some(Some(self.append(&request)))
            }
            Fate::Throttled(wait) => {
                let throttle_time_ms = wait.as_millis() as u32;
                Some(Some(ProduceResponse {
                    throttle_time_ms,
                    ..self.append(&request)
                }))
            }
            Fate::Refused(reason, retryable) => Some(Some(refusal(&request, reason, retryable))),
            Fate::LostBefore => None,
            Fate::LostAfter => {
                self.append(&request);
                None
            }
            Fate::Swallowed => Some(None),
            Fate::Late => {
                self.late.lock().push(request);
                Some(None)
            }
            Fate::Unanswered => {
                self.append(&request);
                Some(None)
            }
        }
    }

    fn read(&self, request: &FetchStreamRequest) -> Result<(Bytes, u64), Error> {
        let mut state = self.state.lock();
        let partition = state.partition(&request.topic, request.partition);
        if request.offset < partition.start || request.offset > partition.end {
            return Err(error(ErrorReason::OffsetOutOfRange, false));
        }
        let mut found = BytesMut::new();
        let mut next = request.offset;
        for batch in &partition.batches {
            let after = batch.header().next_offset().get();
            if after > request.offset && found.len() < 1000 {
                found.extend_from_slice(batch.bytes());
                next = after;
            }
        }
        Ok((found.freeze(), next))
    }
}

impl Partition {
    fn append(&mut self, batch: RecordBatch) -> Result<(u64, bool), ErrorReason> {
        let header = *batch.header();
        if header.producer_id != ProducerId::NONE {
            let producer = self.producers.entry(header.producer_id.get()).or_default();
            let epoch = header.producer_epoch.get();
            if epoch < producer.epoch {
                return Err(ErrorReason::ProducerFenced);
            }
            if epoch > producer.epoch {
                *producer = Producer {
                    epoch,
                    ..Producer::default()
                };
            }
            let sequence = header.base_sequence.get();
            if let Some((_, base)) = producer.last.iter().find(|(s, _)| *s == sequence) {
                return Ok((*base, true));
            }
            if sequence < producer.next {
                return Err(ErrorReason::DuplicateSequence);
            }
            if sequence > producer.next {
                return Err(ErrorReason::OutOfOrderSequence);
            }
            producer.next = header.base_sequence.plus(header.record_count).get();
            producer.last.push_back((sequence, self.end));
            if producer.last.len() > 5 {
                producer.last.pop_front();
            }
        }
        let base = self.end;
        self.end += u64::from(header.record_count);
        self.batches
            .push(batch.stamped(Offset::new(base), LeaderEpoch::new(1)));
        Ok((base, false))
    }
}

fn empty(partitions: usize) -> Vec<Partition> {
    (0..partitions).map(|_| Partition::default()).collect()
}

fn no_such_topic() -> Status {
    status(ErrorReason::UnknownTopic, false)
}

/// A definite refusal, as a call fails with it.
fn status(reason: ErrorReason, retryable: bool) -> Status {
    let retryable = retryable.to_string();
    let pairs = [("retryable", &*retryable), ("outcome", "DEFINITE")];
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let details =
        ErrorDetails::with_error_info(reason.as_str_name(), "quipu.dev", HashMap::from(pairs));
    let message = format!("scripted: {reason:?}");
    Status::with_error_details(tonic::Code::FailedPrecondition, message, details)
}

fn error(reason: ErrorReason, retryable: bool) -> Error {
    Error {
        reason: reason.into(),
        message: format!("scripted: {reason:?}"),
        retryable,
        outcome: Outcome::Definite.into(),
        leader: None,
    }
}

fn refusal(request: &ProduceRequest, reason: ErrorReason, retryable: bool) -> ProduceResponse {
    ProduceResponse {
        correlation_id: request.correlation_id,
        error: Some(error(reason, retryable)),
        ..ProduceResponse::default()
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Log for Services {
    type ProduceStreamStream = Answers<ProduceResponse>;
    type FetchStreamStream = Answers<FetchResponse>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let broker = Arc::clone(&self.0);
        let mut requests = request.into_inner();
        let (answers, outgoing) = mpsc::channel(1024);
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let answer = match broker.produce_one(request).await {
                    Some(Some(answer)) => Ok(answer),
                    Some(None) => continue,
                    None => Err(Status::unavailable("scripted: the stream breaks")),
                };
                let broken = answer.is_err();
                if answers.send(answer).await.is_err() || broken {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn produce(
        &self,
        request: Request<ProduceRequest>,
    ) -> Result<Response<ProduceResponse>, Status> {
        match self.0.produce_one(request.into_inner()).await {
            Some(Some(answer)) => match answer.error {
                Some(error) => Err(status(error.reason(), error.retryable)),
                None => Ok(Response::new(answer)),
            },
            Some(None) => std::future::pending().await,
            None => Err(Status::unavailable("scripted: the connection breaks")),
        }
    }

    async fn fetch_stream(
        &self,
        request: Request<FetchStreamRequest>,
    ) -> Result<Response<Self::FetchStreamStream>, Status> {
        let broker = Arc::clone(&self.0);
        broker.speak().await;
        broker.state.lock().fetches += 1;
        let mut request = request.into_inner();
        let (answers, outgoing) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut end = broker.end.subscribe();
            while request.end_offset.is_none_or(|end| request.offset < end) {
                end.borrow_and_update();
                let answer = match broker.read(&request) {
                    Ok((batches, next)) => {
                        if next == request.offset {
                            if end.changed().await.is_err() {
                                return;
                            }
                            continue;
                        }
                        request.offset = next;
                        FetchResponse {
                            batches,
                            throttle_time_ms: broker.throttle_fetches.load(Ordering::Relaxed),
                            ..FetchResponse::default()
                        }
                    }
                    Err(error) => FetchResponse {
                        error: Some(error),
                        ..FetchResponse::default()
                    },
                };
                let failed = answer.error.is_some();
                if answers.send(Ok(answer)).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn fetch(&self, _: Request<FetchRequest>) -> Result<Response<FetchResponse>, Status> {
        Err(Status::unimplemented("clients stream"))
    }

    async fn list_offsets(
        &self,
        request: Request<ListOffsetsRequest>,
    ) -> Result<Response<ListOffsetsResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.0.state.lock();
        let partition = state.partition(&request.topic, request.partition);
        let offset = match request.at {
            Some(At::Earliest(_)) => partition.start,
            _ => partition.end,
        };
        Ok(Response::new(ListOffsetsResponse {
            offset,
            timestamp_ms: None,
        }))
    }

    async fn init_producer_id(
        &self,
        _: Request<InitProducerIdRequest>,
    ) -> Result<Response<InitProducerIdResponse>, Status> {
        let mut state = self.0.state.lock();
        state.next_producer += 1;
        Ok(Response::new(InitProducerIdResponse {
            producer_id: state.next_producer,
            producer_epoch: 0,
        }))
    }
}

/// The broker's services: a handle for tasks that outlive a call.
#[derive(Clone)]
struct Services(Arc<Broker>);
