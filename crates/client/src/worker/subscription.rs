//! The topics that a worker reads, and what their records are.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use quipu_model::TimestampMs;
use tokio::time::Instant;

use super::{
    WorkerConfig, names,
    router::longest,
    trail::{self, Trail},
    work::Work,
};
use crate::{ConsumerRecord, Result, error::Error, producer::now};

/// What a topic's records are.
#[derive(Clone, Debug)]
enum Role {
    /// Records as the application sent them.
    Source,
    /// Records of that topic that failed, each to be tried when it is due, at the latest after so long.
    Retry { of: Arc<str>, longest: Duration },
    /// Records for that topic, each to be passed on when it is due, at the latest after so long.
    Delay { to: Arc<str>, longest: Duration },
}

/// The topics that a worker reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subscription {
    roles: HashMap<Arc<str>, Role>,
}

impl Subscription {
    /// The topics of a configuration, and those in which their records wait for another attempt.
    pub(super) fn with_retries(config: &WorkerConfig) -> Result<Self> {
        let mut roles: HashMap<Arc<str>, Role> = HashMap::new();
        let group = &config.group.group;
        for topic in &config.group.topics {
            let of: Arc<str> = topic.as_str().into();
            for delay in &config.retry_delays {
                let longest = longest(*delay);
                let name = names::retry_topic(topic, group, *delay)?;
                let role = Role::Retry {
                    of: Arc::clone(&of),
                    longest,
                };
                roles.insert(name.into(), role);
            }
            // So that it is not found too late.
            names::dead_letter_topic(topic, group)?;
        }
        for topic in &config.group.topics {
            let before = roles.insert(topic.as_str().into(), Role::Source);
            if before.is_some_and(|role| !matches!(role, Role::Source)) {
                return Err(Error::invalid(format_args!(
                    "{topic} is a retry topic of this worker's own: leave it out"
                )));
            }
        }
        Ok(Self { roles })
    }

    /// Adds a topic whose records are to be passed on to another, after at most so long.
    pub(crate) fn add_delay(&mut self, topic: String, to: &str, longest: Duration) {
        let to = to.into();
        self.roles.insert(topic.into(), Role::Delay { to, longest });
    }

    pub(super) fn topics(&self) -> Vec<String> {
        self.roles
            .keys()
            .map(|topic| topic.as_ref().to_owned())
            .collect()
    }

    /// The topics that records were put into before anybody knew of them: none may be passed over.
    pub(super) fn waiting_topics(&self) -> HashSet<Arc<str>> {
        let topics = self.roles.keys().filter(|topic| self.waits(topic));
        topics.cloned().collect()
    }

    /// Whether a topic's records wait until they are due.
    pub(super) fn waits(&self, topic: &str) -> bool {
        !matches!(self.roles.get(topic), None | Some(Role::Source))
    }

    /// What is to be done for a record, and from when on.
    pub(super) fn work(&self, record: ConsumerRecord) -> (Work, Option<Instant>) {
        match self.roles.get(&record.topic) {
            None | Some(Role::Source) => (first_attempt(record), None),
            Some(Role::Retry { of, longest }) => {
                let due = due(&record, *longest);
                (next_attempt(record, of), Some(due))
            }
            Some(Role::Delay { to, longest }) => {
                let due = due(&record, *longest);
                let topic = Arc::clone(to);
                (first_attempt(ConsumerRecord { topic, ..record }), Some(due))
            }
        }
    }
}

/// When a record is due by this process's clock. However wrong that or the sender's is: not later than the longest delay.
fn due(record: &ConsumerRecord, longest: Duration) -> Instant {
    let due = trail::due_at(&record.headers).unwrap_or(TimestampMs::NONE);
    let wait = due.get().saturating_sub(now().get());
    let wait = Duration::from_millis(u64::try_from(wait).unwrap_or(0));
    Instant::now() + wait.min(longest)
}

fn first_attempt(record: ConsumerRecord) -> Work {
    Work {
        record,
        attempt: 1,
        first_failed_at: None,
    }
}

fn next_attempt(record: ConsumerRecord, of: &Arc<str>) -> Work {
    let (trail, headers) = Trail::read(record.headers);
    let record = ConsumerRecord {
        topic: Arc::clone(of),
        headers,
        ..record
    };
    // Somebody else put it there.
    let Some(trail) = trail else {
        return first_attempt(record);
    };
    Work {
        record: ConsumerRecord {
            partition: trail.partition,
            offset: trail.offset,
            timestamp: trail.timestamp,
            ..record
        },
        attempt: trail.attempts.saturating_add(1),
        first_failed_at: Some(trail.first_failed_at),
    }
}
