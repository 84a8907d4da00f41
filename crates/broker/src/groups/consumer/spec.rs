//! What a member says of itself when it joins.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use quipu_model::{TopicId, TopicName};
use regex::{Regex, RegexBuilder};

use crate::groups::{
    assign::Assignor,
    names::{GroupError, MOST_NAME_BYTES},
    topics::TopicsView,
};

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Stays the same when the member starts anew: it then gets what it had. Nobody else of the group may use it.
    pub instance: Option<Box<str>>,
    /// For people.
    pub client: Box<str>,
    /// Where it connects from, for people; empty: not said.
    pub client_host: Box<str>,
    /// Where it stands; empty: not said.
    pub rack: Box<str>,
    /// The topics that it subscribes to, whether they exist yet or not.
    pub topics: BTreeSet<Box<str>>,
    /// It also subscribes to every topic whose whole name this regular expression matches.
    pub pattern: Option<Box<str>>,
    pub assignor: Assignor,
    /// A member that is not heard of for so long is timed out.
    pub session_timeout: Duration,
    /// So is one that does not let go of a partition for so long.
    pub rebalance_timeout: Duration,
}

impl Spec {
    pub(crate) const DEFAULT_SESSION_TIMEOUT: Duration = Duration::from_secs(15);
    pub(crate) const DEFAULT_REBALANCE_TIMEOUT: Duration = Duration::from_secs(300);
    pub(super) const LEAST_TIMEOUT: Duration = Duration::from_secs(1);
    pub(super) const MOST_TIMEOUT: Duration = Duration::from_secs(60 * 60);
    /// Of a member that comes by heartbeats.
    const HEARTBEATS_SESSION_TIMEOUT: Duration = Duration::from_secs(45);
    const MOST_TOPICS: usize = 1000;
    const MOST_PATTERN_BYTES: usize = 1024;
    /// What a pattern may take in memory.
    const MOST_REGEX_BYTES: usize = 256 << 10;

    /// Of a member that comes by heartbeats and has not said anything yet.
    pub(super) fn of_heartbeats() -> Self {
        Self {
            instance: None,
            client: "".into(),
            client_host: "".into(),
            rack: "".into(),
            topics: BTreeSet::new(),
            pattern: None,
            assignor: Assignor::default(),
            session_timeout: Self::HEARTBEATS_SESSION_TIMEOUT,
            rebalance_timeout: Self::DEFAULT_REBALANCE_TIMEOUT,
        }
    }

    /// About what it takes in memory, in bytes.
    pub(super) fn size(&self) -> usize {
        let topics = self.topics.iter().map(|topic| 64 + topic.len());
        let texts =
            [&self.instance, &self.pattern].map(|text| text.as_ref().map_or(0, |t| t.len()));
        let texts: usize = texts.iter().sum();
        let said = self.client.len() + self.client_host.len() + self.rack.len();
        1024 + topics.sum::<usize>() + texts + said
    }

    /// How often the member is to give a sign of life.
    pub(crate) fn heartbeat_interval(&self) -> Duration {
        (self.session_timeout / 5).min(Duration::from_secs(3))
    }

    /// The topics that it gets partitions of, at present.
    ///
    /// # Errors
    /// Where it wants what is not given.
    pub(super) fn resolve(&self, topics: &TopicsView) -> Result<BTreeSet<TopicId>, GroupError> {
        self.check()?;
        self.resolve_with(topics, &mut HashMap::new())
    }

    /// The same, of one that was checked before. Patterns are kept for others that have the same.
    pub(super) fn resolve_with(
        &self,
        topics: &TopicsView,
        patterns: &mut HashMap<Box<str>, Regex>,
    ) -> Result<BTreeSet<TopicId>, GroupError> {
        let named = self.topics.iter().filter_map(|name| topics.get(name));
        let mut resolved: BTreeSet<TopicId> = named.map(|topic| topic.id).collect();
        if let Some(pattern) = &self.pattern {
            if !patterns.contains_key(pattern) {
                patterns.insert(pattern.clone(), compile(pattern)?);
            }
            let matches = |name: &str| patterns.get(pattern).is_some_and(|p| p.is_match(name));
            let found = topics.iter().filter(|(name, _)| matches(name));
            resolved.extend(found.map(|(_, topic)| topic.id));
        }
        Ok(resolved)
    }

    fn check(&self) -> Result<(), GroupError> {
        let invalid = |message: String| Err(GroupError::Invalid(message));
        let bounds = Self::LEAST_TIMEOUT..=Self::MOST_TIMEOUT;
        for (what, timeout) in [
            ("session", self.session_timeout),
            ("rebalance", self.rebalance_timeout),
        ] {
            if !bounds.contains(&timeout) {
                return invalid(format!(
                    "a {what} timeout of {timeout:?} is refused: give {:?} to {:?}",
                    Self::LEAST_TIMEOUT,
                    Self::MOST_TIMEOUT
                ));
            }
        }
        let instance = self.instance.as_deref().unwrap_or("-");
        for (what, text) in [
            ("an instance id", instance),
            ("a client id", &self.client),
            ("a rack", &self.rack),
        ] {
            if text.len() > MOST_NAME_BYTES {
                return invalid(format!(
                    "{what} of {} bytes is refused: give at most {MOST_NAME_BYTES}",
                    text.len()
                ));
            }
        }
        if self.topics.len() > Self::MOST_TOPICS {
            return invalid(format!(
                "a subscription to {} topics is refused: name at most {}, or give a pattern",
                self.topics.len(),
                Self::MOST_TOPICS
            ));
        }
        for topic in &self.topics {
            let name = TopicName::new(topic);
            let name = name.map_err(|error| GroupError::Invalid(error.to_string()))?;
            if name.is_internal() {
                return invalid(format!("{name} is the cluster's own: no group reads it"));
            }
        }
        Ok(())
    }
}

fn compile(pattern: &str) -> Result<Regex, GroupError> {
    if pattern.len() > Spec::MOST_PATTERN_BYTES {
        return Err(GroupError::Pattern(format!(
            "a pattern of {} bytes is refused: give at most {}",
            pattern.len(),
            Spec::MOST_PATTERN_BYTES
        )));
    }
    // It is to match the whole name, and must not end the group around it.
    RegexBuilder::new(pattern)
        .build()
        .and_then(|_| {
            RegexBuilder::new(&format!("^(?:{pattern})$"))
                .size_limit(Spec::MOST_REGEX_BYTES)
                .dfa_size_limit(Spec::MOST_REGEX_BYTES)
                .build()
        })
        .map_err(|error| {
            let error: String = error
                .to_string()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            GroupError::Pattern(format!("pattern {pattern:?} is refused: {error}"))
        })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use quipu_model::TopicId;

    use super::Spec;
    use crate::groups::{
        assign::Assignor,
        topics::{TopicView, TopicsView},
    };

    fn spec(topics: &[&str], pattern: Option<&str>) -> Spec {
        Spec {
            instance: None,
            client: "".into(),
            client_host: "".into(),
            rack: "".into(),
            topics: topics.iter().map(|topic| Box::from(*topic)).collect(),
            pattern: pattern.map(Box::from),
            assignor: Assignor::Uniform,
            session_timeout: Duration::from_secs(15),
            rebalance_timeout: Duration::from_secs(60),
        }
    }

    fn topics() -> TopicsView {
        let names = ["orders", "orders.eu", "payments"];
        TopicsView::new((1..).zip(names).map(|(number, name)| {
            let view = TopicView {
                id: TopicId::from_bytes([number; 16]),
                racks: vec![[].into()],
            };
            (Box::from(name), view)
        }))
    }

    fn resolved(spec: &Spec) -> BTreeSet<u8> {
        let topics = spec.resolve(&topics()).unwrap();
        topics.iter().map(|id| id.as_bytes()[0]).collect()
    }

    #[test]
    fn subscriptions_are_names_and_whole_matches_of_patterns() {
        assert_eq!(resolved(&spec(&["orders", "none"], None)), [1].into());
        assert_eq!(resolved(&spec(&[], Some("orders"))), [1].into());
        assert_eq!(resolved(&spec(&[], Some("orders|pay"))), [1].into());
        assert_eq!(
            resolved(&spec(&["payments"], Some("orders.*"))),
            [1, 2, 3].into()
        );
    }

    #[test]
    fn what_is_not_given_is_refused() {
        let mut bad = vec![
            spec(&["__cluster_metadata"], None),
            spec(&["a/b"], None),
            spec(&[], Some("(")),
            spec(&[], Some(")|(")),
            spec(&[], Some(&"x".repeat(1025))),
            spec(&[], Some("(a{200}){200}")),
            Spec {
                instance: Some("x".repeat(256).into()),
                ..spec(&["a"], None)
            },
        ];
        for timeout in [0, 999, 3_600_001, u64::MAX] {
            let timeout = Duration::from_millis(timeout);
            bad.push(Spec {
                session_timeout: timeout,
                ..spec(&["a"], None)
            });
            bad.push(Spec {
                rebalance_timeout: timeout,
                ..spec(&["a"], None)
            });
        }
        let many: Vec<String> = (0..1001).map(|number| format!("t{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        bad.push(spec(&many, None));
        for spec in bad {
            assert!(spec.resolve(&topics()).is_err(), "{spec:?}");
        }
    }
}
