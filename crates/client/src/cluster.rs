//! What the client knows of the cluster: connections, topics and their leaders.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use quipu_model::TopicConfig;
use quipu_proto::v1::{
    self, DescribeTopicRequest, admin_client::AdminClient, log_client::LogClient,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    ClientConfig, Outcome,
    backoff::backoff,
    error::{Error, Result, node_address},
};

/// The largest message taken from a broker: the largest batch that a topic may allow, and what frames it.
const MAX_MESSAGE_BYTES: usize = TopicConfig::MAX_MESSAGE_BYTES_LIMIT as usize + (64 << 10);

/// For how long a cluster between two leaders is asked again: longer than any election.
pub(crate) const ELECTION: Duration = Duration::from_secs(5);
/// How long a node may take to say who leads, where others can be asked.
const LOOKUP: Duration = Duration::from_secs(1);
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(10);
pub(crate) const LAST_PAUSE: Duration = Duration::from_millis(500);

/// Whether what was asked for did not happen, and may at another try.
fn may_be_repeated(error: &Error) -> bool {
    error.is_retryable() && error.outcome() == Outcome::Definite
}

/// Makes a channel to `host:port`; it connects when it is first used, and again whenever the connection broke.
pub(crate) type Dial = Arc<dyn Fn(&str) -> Result<Channel> + Send + Sync>;

pub(crate) struct Cluster {
    config: ClientConfig,
    dial: Dial,
    channels: Mutex<HashMap<String, Channel>>,
    topics: tokio::sync::Mutex<HashMap<Box<str>, TopicView>>,
    /// Which of the brokers is asked first: the one that answered last.
    first: AtomicUsize,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

struct TopicView {
    fetched_at: Instant,
    /// The leader's address of each partition.
    leaders: Vec<Option<Box<str>>>,
}

pub(crate) fn dial_tcp(config: &ClientConfig) -> Dial {
    let connect_timeout = config.connect_timeout;
    let keep_alive = config.keep_alive;
    Arc::new(move |address| {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|e| {
            Error::invalid(format_args!(
                "{address:?} is not a broker's address ({e}): write host:port"
            ))
        })?;
        Ok(endpoint
            .connect_timeout(connect_timeout)
            // The receiver's frame size decides the speed of downloads; HTTP/2's default of 16 KiB halves it.
            .max_frame_size(1 << 20)
            .http2_keep_alive_interval(keep_alive)
            .keep_alive_timeout(keep_alive)
            .connect_lazy())
    })
}

pub(crate) fn log_client(channel: Channel) -> LogClient<Channel> {
    LogClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

impl Cluster {
    pub(crate) fn new(config: ClientConfig, dial: Dial) -> Self {
        Self {
            config,
            dial,
            channels: Mutex::default(),
            topics: tokio::sync::Mutex::default(),
            first: AtomicUsize::new(0),
        }
    }

    /// A connection of the caller's own, for a stream whose unread bytes must not hold up anybody else's.
    pub(crate) fn dial(&self, address: &str) -> Result<Channel> {
        (self.dial)(address)
    }

    /// The connection to `address` that short calls share.
    pub(crate) fn channel(&self, address: &str) -> Result<Channel> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = self.dial(address)?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Calls one node, bounded by the request timeout.
    pub(crate) async fn call_at<T, F>(
        &self,
        address: &str,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let channel = self.channel(address)?;
        match timeout(self.config.request_timeout, call(channel)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Error::from_status(address, &status)),
            Err(_) => Err(Error::timed_out(
                format_args!(
                    "{address} did not answer within {:?}: is the broker there overloaded?",
                    self.config.request_timeout
                ),
                Outcome::Indefinite,
            )),
        }
    }

    /// Calls whichever bootstrap node answers, and the node that it names if it is not the one to ask. While all say that it did
    /// not happen and may later, as between two leaders, it asks again.
    pub(crate) async fn call<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let give_up_at = Instant::now() + ELECTION;
        let mut attempt = 0;
        loop {
            let error = match self.call_each(&call).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            attempt += 1;
            let wait = backoff(attempt, FIRST_PAUSE, LAST_PAUSE);
            let unreachable = error.reason() == crate::Reason::Unreachable;
            if unreachable || !may_be_repeated(&error) || Instant::now() + wait > give_up_at {
                return Err(error);
            }
            sleep(wait).await;
        }
    }

    async fn call_each<T, F>(&self, call: &impl Fn(Channel) -> F) -> Result<T>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut last = Error::invalid("no broker address was given");
        let brokers = &self.config.brokers;
        let first = self.first.load(Ordering::Relaxed);
        for turn in 0..brokers.len() {
            let at = (first + turn) % brokers.len();
            let Some(address) = brokers.get(at) else {
                break;
            };
            // A node that does not answer is not asked first again: that may have taken seconds.
            self.first.store(at, Ordering::Relaxed);
            match self.call_at(address, call).await {
                Ok(response) => return Ok(response),
                Err(error) => last = error,
            }
            if let Some(leader) = last.leader() {
                return self.call_at(leader, call).await;
            }
            if last.reason() != crate::Reason::Unreachable && !may_be_repeated(&last) {
                break;
            }
        }
        Err(last)
    }

    /// The number of a topic's partitions.
    pub(crate) async fn partition_count(&self, topic: &str) -> Result<u32> {
        let mut topics = self.topics.lock().await;
        let view = self.view(&mut topics, topic, None).await?;
        // The broker numbers partitions with 32 bits.
        Ok(view.leaders.len() as u32)
    }

    /// The address of a partition's leader, from what was learnt after `not_before` (or whenever it was).
    pub(crate) async fn leader(
        &self,
        topic: &str,
        partition: u32,
        not_before: Option<Instant>,
    ) -> Result<Box<str>> {
        let mut topics = self.topics.lock().await;
        let view = self.view(&mut topics, topic, not_before).await?;
        let leader = view.leaders.get(partition as usize).ok_or_else(|| {
            Error::invalid(format_args!(
                "topic {topic:?} has no partition {partition}: it has {}",
                view.leaders.len()
            ))
        })?;
        leader.clone().ok_or_else(|| {
            // Another node may know: this one may be cut off from those that elected a new leader.
            self.first.fetch_add(1, Ordering::Relaxed);
            Error::unreachable(format_args!(
                "partition {partition} of topic {topic:?} has no leader at this moment"
            ))
        })
    }

    /// Whom to read a partition from: its leader, or, where nobody leads, one of the given brokers after the other: each replica
    /// serves what it knows to be committed.
    pub(crate) async fn reader(
        &self,
        topic: &str,
        partition: u32,
        not_before: Option<Instant>,
        attempt: u32,
    ) -> Result<Box<str>> {
        let brokers = &self.config.brokers;
        match self.leader(topic, partition, not_before).await {
            Err(error) if error.reason() == crate::Reason::Unreachable => {
                let any = brokers.get(attempt as usize % brokers.len().max(1));
                any.map(|broker| broker.as_str().into()).ok_or(error)
            }
            leader => leader,
        }
    }

    /// Forgets what is known of a topic.
    pub(crate) async fn forget(&self, topic: &str) {
        self.topics.lock().await.remove(topic);
    }

    /// The map stays locked while a description is fetched: whoever else wants one then finds it fresh.
    async fn view<'a>(
        &self,
        topics: &'a mut HashMap<Box<str>, TopicView>,
        topic: &str,
        not_before: Option<Instant>,
    ) -> Result<&'a TopicView> {
        let fresh = topics
            .get(topic)
            .is_some_and(|view| not_before.is_none_or(|instant| view.fetched_at >= instant));
        if !fresh {
            let fetched_at = Instant::now();
            let description = self.describe_topic(topic).await?;
            topics.insert(topic.into(), TopicView::new(fetched_at, description));
        }
        topics
            .get(topic)
            .ok_or_else(|| Error::malformed("a topic's description is gone"))
    }

    pub(crate) async fn describe_topic(&self, topic: &str) -> Result<v1::DescribeTopicResponse> {
        let request = DescribeTopicRequest {
            name: topic.to_owned(),
        };
        // One that does not answer is not waited for while there are others to ask.
        let patience = match self.config.brokers.len() {
            0 | 1 => self.config.request_timeout,
            _ => self.config.request_timeout.min(LOOKUP),
        };
        self.call(|channel| {
            let request = request.clone();
            async move {
                let mut client = AdminClient::new(channel);
                let answer = timeout(patience, client.describe_topic(request)).await;
                answer.unwrap_or_else(|_| {
                    Err(Status::unavailable(format!("silent for {patience:?}")))
                })
            }
        })
        .await
    }
}

impl TopicView {
    fn new(fetched_at: Instant, description: v1::DescribeTopicResponse) -> Self {
        let count = description.partitions.len();
        let mut leaders = vec![None; count];
        for partition in description.partitions {
            if let Some(leader) = leaders.get_mut(partition.partition as usize) {
                *leader = partition.leader.and_then(node_address);
            }
        }
        Self {
            fetched_at,
            leaders,
        }
    }
}
