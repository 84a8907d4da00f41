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
    self, DescribeTopicRequest, admin_client::AdminClient, groups_client::GroupsClient,
    log_client::LogClient,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::{
    ClientConfig, Outcome,
    backoff::backoff,
    error::{Error, Result},
    topics::TopicView,
};

/// The largest message taken from a broker: the largest batch that a topic may allow, and what frames it.
const MAX_MESSAGE_BYTES: usize = TopicConfig::MAX_MESSAGE_BYTES_LIMIT as usize + (64 << 10);

/// For how long a cluster between two leaders is asked again: longer than any election.
pub(crate) const ELECTION: Duration = Duration::from_secs(5);
/// How long a node may take to say who leads, where others can be asked.
const LOOKUP: Duration = Duration::from_secs(1);
/// Brokers remembered beside those that were given, and brokers asked about one thing, at most.
const MOST_LEARNT: usize = 32;
const MOST_ASKED: usize = 8;
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(10);
pub(crate) const LAST_PAUSE: Duration = Duration::from_millis(500);

/// Whether what was asked for did not happen, and may at another try.
pub(crate) fn may_be_repeated(error: &Error) -> bool {
    error.is_retryable() && error.outcome() == Outcome::Definite
}

/// Makes a channel to `host:port`; it connects when it is first used, and again whenever the connection broke.
pub(crate) type Dial = Arc<dyn Fn(&str) -> Result<Channel> + Send + Sync>;

/// Under what the client's name stands in a call's metadata.
const CLIENT_ID: &str = "quipu-client-id";
const LONGEST_CLIENT_ID: usize = 255;

pub(crate) struct Cluster {
    config: ClientConfig,
    client_id: MetadataValue<Ascii>,
    dial: Dial,
    channels: Mutex<HashMap<String, Channel>>,
    pub(super) topics: tokio::sync::Mutex<HashMap<Box<str>, TopicView>>,
    /// Brokers that others named.
    learnt: Mutex<Vec<String>>,
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

/// A node may coordinate many groups, and a group may have read many partitions.
pub(crate) fn groups_client(channel: Channel) -> GroupsClient<Channel> {
    GroupsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

impl Cluster {
    /// # Errors
    /// Where the client id is none.
    pub(crate) fn new(config: ClientConfig, dial: Dial) -> Result<Self> {
        Ok(Self {
            client_id: name(&config.client_id)?,
            config,
            dial,
            channels: Mutex::default(),
            topics: tokio::sync::Mutex::default(),
            learnt: Mutex::default(),
            first: AtomicUsize::new(0),
        })
    }

    /// What the application calls itself.
    pub(crate) fn client_id(&self) -> &str {
        &self.config.client_id
    }

    /// A call that says whose quota it takes from.
    pub(crate) fn named<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if !self.client_id.is_empty() {
            let name = self.client_id.clone();
            request.metadata_mut().insert(CLIENT_ID, name);
        }
        request
    }

    /// The brokers that are known: those that were given come first.
    pub(crate) fn brokers(&self) -> Vec<String> {
        let learnt = self.learnt.lock();
        self.config
            .brokers
            .iter()
            .chain(&*learnt)
            .cloned()
            .collect()
    }

    /// Remembers brokers that were named, so that those that were given need not be there for ever.
    pub(crate) fn learn<'a>(&self, addresses: impl Iterator<Item = &'a str>) {
        let mut learnt = self.learnt.lock();
        for address in addresses {
            let known = self.config.brokers.iter().chain(&*learnt);
            if !known.into_iter().any(|known| known == address) {
                if learnt.len() >= MOST_LEARNT {
                    learnt.remove(0);
                }
                learnt.push(address.to_owned());
            }
        }
    }

    /// Some brokers in the order in which they are to be asked, each with its place among all.
    pub(crate) fn in_turn(&self) -> Vec<(usize, String)> {
        let mut brokers: Vec<_> = self.brokers().into_iter().enumerate().collect();
        let first = self.first.load(Ordering::Relaxed) % brokers.len().max(1);
        brokers.rotate_left(first);
        brokers.truncate(MOST_ASKED);
        brokers
    }

    /// The broker in this place has answered: it is asked first from now on.
    pub(crate) fn ask_first(&self, place: usize) {
        self.first.store(place, Ordering::Relaxed);
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
        let mut told = None;
        for (place, address) in self.in_turn() {
            // A node that does not answer is not asked first again: that may have taken seconds.
            self.ask_first(place);
            let error = match self.call_at(&address, call).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if let Some(leader) = error.leader() {
                return self.call_at(leader, call).await;
            }
            let unreachable = error.reason() == crate::Reason::Unreachable;
            if !unreachable && !may_be_repeated(&error) {
                return Err(error);
            }
            // What one says tells more than that another was not reached.
            if told.is_none() || !unreachable {
                told = Some(error);
            }
        }
        Err(told.unwrap_or_else(|| Error::invalid("no broker address was given")))
    }

    pub(crate) async fn describe_topic(&self, topic: &str) -> Result<v1::DescribeTopicResponse> {
        let patience = self.lookup_patience();
        self.call(|channel| describe(channel, topic.to_owned(), patience))
            .await
    }

    /// What one node knows of a topic.
    pub(crate) async fn describe_at(
        &self,
        address: &str,
        topic: &str,
    ) -> Result<v1::DescribeTopicResponse> {
        let patience = self.lookup_patience();
        self.call_at(address, |channel| {
            describe(channel, topic.to_owned(), patience)
        })
        .await
    }

    /// One that does not answer is not waited for while there are others to ask.
    fn lookup_patience(&self) -> Duration {
        match self.brokers().len() {
            0 | 1 => self.config.request_timeout,
            _ => self.config.request_timeout.min(LOOKUP),
        }
    }
}

fn name(client_id: &str) -> Result<MetadataValue<Ascii>> {
    let is_visible = client_id.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_visible || client_id.len() > LONGEST_CLIENT_ID {
        return Err(Error::invalid(format_args!(
            "the client id {client_id:?} is none: give at most {LONGEST_CLIENT_ID} visible ASCII characters"
        )));
    }
    MetadataValue::try_from(client_id)
        .map_err(|error| Error::invalid(format_args!("the client id {client_id:?}: {error}")))
}

async fn describe(
    channel: Channel,
    name: String,
    patience: Duration,
) -> Result<tonic::Response<v1::DescribeTopicResponse>, Status> {
    let mut client = AdminClient::new(channel);
    let answer = timeout(
        patience,
        client.describe_topic(DescribeTopicRequest { name }),
    )
    .await;
    answer.unwrap_or_else(|_| Err(Status::unavailable(format!("silent for {patience:?}"))))
}
