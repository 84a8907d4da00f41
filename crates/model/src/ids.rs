//! Names and identities.

use std::{fmt, sync::Arc};

use uuid::Uuid;

/// A topic's name: 1 to 249 characters of `[a-zA-Z0-9._-]`, not `.` nor `..` (Kafka's rule).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

/// Why a string is not a topic name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid topic name {name:?}: use 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-', and neither '.' nor '..'"
)]
pub struct InvalidTopicName {
    name: String,
}

impl TopicName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 249;

    /// Checks and wraps a name.
    ///
    /// # Errors
    /// Where the name breaks the rule above.
    pub fn new(name: &str) -> Result<Self, InvalidTopicName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let valid = !name.is_empty()
            && name.len() <= Self::MAX_LEN
            && name.bytes().all(allowed)
            && name != "."
            && name != "..";
        if valid {
            Ok(Self(name.into()))
        } else {
            // A rejected name is echoed in errors: bound what a caller can make us repeat.
            Err(InvalidTopicName {
                name: name.chars().take(64).collect(),
            })
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the topic is Quipu's own (`__…`): clients read such topics but do not write, create or delete them.
    pub fn is_internal(&self) -> bool {
        self.0.starts_with("__")
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A topic's identity for its whole life: a name that is deleted and created again gets another id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(Uuid);

impl TopicId {
    /// Wraps a UUID.
    pub const fn new(id: Uuid) -> Self {
        Self(id)
    }

    /// The id from its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The id's 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Reads the hyphenated form that [`fmt::Display`] writes; `None` where it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A partition's number within its topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(u32);

impl PartitionId {
    /// Wraps a bare number.
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// The bare number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A partition of the whole cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    /// The topic.
    pub topic: TopicId,
    /// The partition within it.
    pub partition: PartitionId,
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A broker's number, chosen by its operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u64);

impl NodeId {
    /// Wraps a bare number.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The bare number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::TopicName;

    #[test]
    fn topic_names_follow_kafkas_rule() {
        for good in [
            "a",
            "orders",
            "a.b_c-D9",
            "...",
            "__cluster_metadata",
            &"x".repeat(249),
        ] {
            assert!(TopicName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "../etc",
            "a b",
            "é",
            "a\0",
            &"x".repeat(250),
        ] {
            assert!(TopicName::new(bad).is_err(), "{bad}");
        }
    }
}
