//! Requests that are answered.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use quipu_model::batch::{Record as StoredRecord, RecordHeader};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{error::Elapsed, timeout},
};

use crate::{
    Assignment, Client, Consumer, ConsumerConfig, Failure, OutOfRange, Producer, ProducerConfig,
    Record, Result, Start, Work, Worker, WorkerConfig, borrow_headers, error::Error,
};

const REPLY_TOPIC: &str = "quipu-reply-topic";
const REPLY_PARTITION: &str = "quipu-reply-partition";
const CORRELATION_ID: &str = "quipu-correlation-id";
const REFUSED: &str = "quipu-refused";

/// How a requester behaves.
#[derive(Clone, Debug)]
pub struct RequesterConfig {
    /// Where replies go.
    pub reply_topic: String,
    /// The partition there that this requester reads; others do best with others. One at random.
    pub partition: Option<u32>,
    /// How long a request waits for its reply. 30 s.
    pub timeout: Duration,
    /// How requests are sent. At once, without waiting for more.
    pub producer: ProducerConfig,
}

impl RequesterConfig {
    /// Defaults, for a reply topic.
    pub fn new(reply_topic: impl Into<String>) -> Self {
        Self {
            reply_topic: reply_topic.into(),
            partition: None,
            timeout: Duration::from_secs(30),
            producer: at_once(),
        }
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The reply's value.
    pub value: Option<Bytes>,
    /// The reply's headers.
    pub headers: Vec<RecordHeader>,
}

impl<T: Into<Bytes>> From<T> for Reply {
    fn from(value: T) -> Self {
        Self {
            value: Some(value.into()),
            headers: Vec::new(),
        }
    }
}

/// Why a request has no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// It could not be sent, or replies can't be read.
    #[error(transparent)]
    Failed(#[from] Error),
    /// No reply came in time. The request may be, or may have been, acted upon.
    #[error("no reply within {after:?}: it may still be acted upon")]
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// The responder says that it can't be done.
    #[error("the request was refused: {cause}")]
    Refused {
        /// Why.
        cause: String,
    },
}

/// Requests that wait, by correlation id.
type Pending = Arc<Mutex<HashMap<u128, oneshot::Sender<Result<Reply, RequestError>>>>>;

/// Sends requests and waits for their replies.
///
/// Replies come to one partition of the reply topic, which this reads from where it ends at the start; each is told by the random id that
/// its request was sent with. One that nobody waits for (any more, or in this process) is dropped.
///
/// ```no_run
/// use quipu_client::{Client, Record, Requester, RequesterConfig};
///
/// # async fn example() -> Result<(), quipu_client::RequestError> {
/// let client = Client::connect("localhost:9093").await?;
/// let requester = Requester::start(&client, RequesterConfig::new("price-replies")).await?;
/// let reply = requester.request(Record::new("price-requests").value(b"apples")).await?;
/// println!("{:?}", reply.value);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Requester {
    config: RequesterConfig,
    partition: u32,
    producer: Producer,
    pending: Pending,
    reading: JoinHandle<()>,
}

impl Requester {
    /// Begins to read replies.
    ///
    /// # Errors
    /// Where there is no such topic or partition.
    pub async fn start(client: &Client, config: RequesterConfig) -> Result<Self> {
        let described = client.admin().describe_topic(&config.reply_topic).await?;
        let partitions = u32::try_from(described.partitions.len()).unwrap_or(u32::MAX);
        let any = || rand::random_range(0..partitions.max(1));
        let partition = config.partition.unwrap_or_else(any);
        let mut consumer = client.consumer(ConsumerConfig {
            out_of_range: OutOfRange::Latest,
            ..ConsumerConfig::default()
        });
        let replies = Assignment::new(&config.reply_topic, partition, Start::Latest);
        consumer.assign([replies]).await?;
        let producer = client.producer(config.producer.clone()).await?;
        let pending = Pending::default();
        Ok(Self {
            config,
            partition,
            producer,
            reading: tokio::spawn(read(consumer, Arc::clone(&pending))),
            pending,
        })
    }

    /// Sends a request and waits for its reply.
    ///
    /// # Errors
    /// Where it can't be sent, no reply comes in time, or the responder refuses it.
    pub async fn request(&self, record: Record<'_>) -> Result<Reply, RequestError> {
        let id = rand::random::<u128>();
        let (sender, reply) = oneshot::channel();
        self.pending.lock().insert(id, sender);
        let _forget = Forget {
            pending: &self.pending,
            id,
        };
        if self.reading.is_finished() {
            return Err(unread());
        }
        let (id, partition) = (format!("{id:032x}"), self.partition.to_string());
        let mut headers = record.headers.to_vec();
        headers.extend([
            (CORRELATION_ID, Some(id.as_bytes())),
            (REPLY_TOPIC, Some(self.config.reply_topic.as_bytes())),
            (REPLY_PARTITION, Some(partition.as_bytes())),
        ]);
        let after = self.config.timeout;
        let asking = async {
            self.producer.send(record.headers(&headers)).await?.await?;
            reply.await.unwrap_or_else(|_| Err(unread()))
        };
        timeout(after, asking)
            .await
            .unwrap_or_else(|_: Elapsed| Err(RequestError::TimedOut { after }))
    }
}

impl Drop for Requester {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Nobody waits for a reply any more.
struct Forget<'a> {
    pending: &'a Pending,
    id: u128,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.lock().remove(&self.id);
    }
}

fn unread() -> RequestError {
    Error::unreachable("replies are not read any more: make a new requester").into()
}

/// Hands replies to those who wait for them.
async fn read(mut consumer: Consumer, pending: Pending) {
    while let Some(chunk) = consumer.next_batch().await {
        match chunk {
            Ok(chunk) => chunk.records.into_iter().for_each(|r| hand(r, &pending)),
            Err(error) => {
                let waiting: Vec<_> = pending.lock().drain().collect();
                for (_, waiting) in waiting {
                    // It gave up meanwhile.
                    let _ = waiting.send(Err(error.clone().into()));
                }
                return;
            }
        }
    }
}

fn hand(record: StoredRecord, pending: &Pending) {
    let id = text(&record.headers, CORRELATION_ID);
    let Some(id) = id.and_then(|id| u128::from_str_radix(id, 16).ok()) else {
        return;
    };
    let Some(waiting) = pending.lock().remove(&id) else {
        return;
    };
    let reply = match text(&record.headers, REFUSED) {
        Some(cause) => Err(RequestError::Refused {
            cause: cause.to_owned(),
        }),
        None => Ok(Reply {
            value: record.value,
            headers: record.headers,
        }),
    };
    // It gave up meanwhile.
    let _ = waiting.send(reply);
}

/// Answers requests: a [`Worker`] whose handler returns what is sent back.
#[derive(Clone, Copy, Debug)]
pub struct Responder;

impl Responder {
    /// Begins to answer. A reply is acknowledged before its request's offset is stored, so each request is answered at least once; one
    /// that fails for good is refused with its cause and goes to the dead letters, and one that may succeed later is tried again, as
    /// ever. What asks for no reply is handled all the same.
    ///
    /// # Errors
    /// As [`Worker::start`].
    pub async fn start<F, Replying>(
        client: &Client,
        config: WorkerConfig,
        handler: F,
    ) -> Result<Worker>
    where
        F: Fn(Arc<Work>) -> Replying + Send + Sync + 'static,
        Replying: Future<Output = Result<Reply, Failure>> + Send,
    {
        let producer = client.producer(at_once()).await?;
        let shared = Arc::new((handler, producer));
        let answer = move |work: Arc<Work>| {
            let shared = Arc::clone(&shared);
            async move {
                let (handler, producer) = shared.as_ref();
                match handler(Arc::clone(&work)).await {
                    Ok(reply) => send_back(producer, &work, reply).await,
                    Err(Failure::Permanent(cause)) => {
                        let refusal = Reply {
                            value: None,
                            headers: vec![header(REFUSED, cause.clone().into())],
                        };
                        send_back(producer, &work, refusal).await?;
                        Err(Failure::Permanent(cause))
                    }
                    Err(failure) => Err(failure),
                }
            }
        };
        Worker::start(client, config, answer).await
    }
}

/// Sends a reply where the request says, if it does.
async fn send_back(producer: &Producer, work: &Work, reply: Reply) -> Result<(), Failure> {
    let asked = &work.record.headers;
    let (Some(topic), Some(partition), Some(id)) = (
        text(asked, REPLY_TOPIC),
        text(asked, REPLY_PARTITION).and_then(|partition| partition.parse().ok()),
        text(asked, CORRELATION_ID),
    ) else {
        return Ok(());
    };
    let mut headers = reply.headers;
    headers.push(header(
        CORRELATION_ID,
        Bytes::copy_from_slice(id.as_bytes()),
    ));
    let headers = borrow_headers(&headers);
    let record = Record {
        value: reply.value.as_deref(),
        ..Record::new(topic).partition(partition).headers(&headers)
    };
    let sent = match producer.send(record).await {
        Ok(delivery) => delivery.await.map(drop),
        Err(error) => Err(error),
    };
    match sent {
        Err(error) if error.is_retryable() => Err(error.into()),
        // Whoever asked named a place that is none, or no more: there is nobody to tell.
        Err(error) => {
            tracing::warn!(topic, partition, %error, "a reply was not sent");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn at_once() -> ProducerConfig {
    ProducerConfig {
        linger: Duration::ZERO,
        ..ProducerConfig::default()
    }
}

fn text<'a>(headers: &'a [RecordHeader], name: &str) -> Option<&'a str> {
    let header = headers.iter().find(|header| header.key == name)?;
    str::from_utf8(header.value.as_deref()?).ok()
}

fn header(name: &'static str, value: Bytes) -> RecordHeader {
    RecordHeader {
        key: Bytes::from_static(name.as_bytes()),
        value: Some(value),
    }
}
