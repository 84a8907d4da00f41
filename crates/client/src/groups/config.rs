//! How a member of a group behaves.

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;

use crate::{ConsumerConfig, OutOfRange, Result, Start, error::Error};

/// A topic and a partition of it.
pub type TopicPartition = (Arc<str>, u32);

/// How the coordinator assigns partitions; what most members of the group want is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assignor {
    /// As many to each, and as few as possible change hands.
    #[default]
    Uniform,
    /// The same, and where it makes no difference, to a member in the rack of one of the partition's replicas.
    Rack,
    /// Of each topic a run of partitions to each member.
    Range,
}

impl Assignor {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Rack => "rack",
            Self::Range => "range",
        }
    }
}

/// Hears of partitions that come and go. Nothing of it is called while records are handed out, but on a task of its own.
pub trait RebalanceListener: Send + Sync + 'static {
    /// Records of these follow from now on.
    fn assigned(&self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }

    /// Nothing more of these is handed out; they go to other members when this returns. What was handed out last was asked for the
    /// next of: it counts as processed.
    fn revoked<'a>(&'a self, partitions: &'a [TopicPartition]) -> BoxFuture<'a, ()> {
        let _ = partitions;
        Box::pin(std::future::ready(()))
    }

    /// These were taken away, and may be another member's already: what of them is still being processed is processed there
    /// again.
    fn lost(&self, partitions: &[TopicPartition]) {
        let _ = partitions;
    }
}

/// How a member of a group behaves.
#[derive(Clone)]
pub struct GroupConfig {
    /// The group's name.
    pub group: String,
    /// The topics to read, whether they exist yet or not.
    pub topics: Vec<String>,
    /// A regular expression: topics whose whole name it matches are read too.
    pub pattern: Option<String>,
    /// Where to begin in a partition for which the group has stored no offset. [`Start::Earliest`].
    pub start: Start,
    /// How often is stored how far records were processed: one counts as processed when the next is asked for. `None`: only
    /// what [`GroupConsumer::commit`](crate::GroupConsumer::commit) stores. 1 s.
    pub auto_commit: Option<Duration>,
    /// Where it is given, a member that starts anew within the session timeout gets what it had, and closing gives nothing away.
    /// No two members that run may have the same.
    pub instance_id: Option<String>,
    /// What others are told of the member. What the [client](crate::ClientConfig) calls itself.
    pub client_id: String,
    /// Where the member stands.
    pub rack: String,
    /// How partitions are assigned.
    pub assignor: Assignor,
    /// A member that the coordinator does not hear of for so long is timed out, 1 s to 1 h. 15 s.
    pub session_timeout: Duration,
    /// So is one that does not let go of a partition for so long, 1 s to 1 h. 5 min.
    pub rebalance_timeout: Duration,
    /// A member that does not ask for another record for so long leaves its partitions to others until it asks again. 5 min.
    pub max_poll_interval: Duration,
    /// How records are read. Where those that come next for the group are no longer kept, it goes on with the first that are.
    pub consumer: ConsumerConfig,
    /// Hears of partitions that come and go.
    pub listener: Option<Arc<dyn RebalanceListener>>,
}

impl GroupConfig {
    /// Defaults, for a group and a topic.
    pub fn new(group: impl Into<String>, topic: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            topics: vec![topic.into()],
            pattern: None,
            start: Start::Earliest,
            auto_commit: Some(Duration::from_secs(1)),
            instance_id: None,
            client_id: String::new(),
            rack: String::new(),
            assignor: Assignor::default(),
            session_timeout: Duration::from_secs(15),
            rebalance_timeout: Duration::from_secs(300),
            max_poll_interval: Duration::from_secs(300),
            consumer: ConsumerConfig {
                out_of_range: OutOfRange::Earliest,
                ..ConsumerConfig::default()
            },
            listener: None,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        self.consumer.check()?;
        let short = |time: &Duration| time.is_zero();
        if self.auto_commit.as_ref().is_some_and(short) || short(&self.max_poll_interval) {
            return Err(Error::invalid(
                "auto_commit and max_poll_interval must be longer than nothing",
            ));
        }
        if self.group.is_empty() {
            return Err(Error::invalid("the group has no name"));
        }
        Ok(())
    }
}

impl fmt::Debug for GroupConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupConfig")
            .field("group", &self.group)
            .field("topics", &self.topics)
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}
