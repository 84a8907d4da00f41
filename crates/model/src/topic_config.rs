//! What can be set for a topic.

use std::collections::BTreeMap;

use crate::topic_values::{CleanupPolicy, Share, TimestampType};

/// A topic's settings, by Kafka's names where Kafka has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// `retention.ms`: closed segments whose newest record is older are deleted; `None` (-1) keeps for ever.
    pub retention_ms: Option<u64>,
    /// `retention.bytes`: the oldest closed segments are deleted while the partition is larger; `None` (-1) is no bound.
    pub retention_bytes: Option<u64>,
    /// `retention.records`: the same by number of records; `None` (-1) is no bound.
    pub retention_records: Option<u64>,
    /// `segment.bytes`: a segment is closed before it grows past this many bytes.
    pub segment_bytes: u64,
    /// `segment.ms`: a segment is closed once its first record is this old, so that retention can reach it.
    pub segment_ms: u64,
    /// `max.message.bytes`: the largest record batch accepted, in bytes as sent.
    pub max_message_bytes: u32,
    /// `index.interval.bytes`: how many bytes of batches lie between two index entries.
    pub index_interval_bytes: u32,
    /// `cleanup.policy`: what becomes of old records.
    pub cleanup: CleanupPolicy,
    /// `delete.retention.ms`: how long a tombstone is kept once all that it deletes is gone, so that whoever reads from the start
    /// sees it if reading takes no longer.
    pub delete_retention_ms: u64,
    /// `min.compaction.lag.ms`: a segment is compacted once its newest record is this old.
    pub min_compaction_lag_ms: u64,
    /// `max.compaction.lag.ms`: a record is compacted once it is this old, however little there is to compact.
    pub max_compaction_lag_ms: u64,
    /// `min.cleanable.dirty.ratio`: compaction begins once this share of the bytes was not compacted yet.
    pub min_cleanable_dirty_ratio: Share,
    /// `message.timestamp.type`: whose clock timestamps are from.
    pub timestamp_type: TimestampType,
    /// `message.timestamp.before.max.ms`: a producer's timestamp that lies further back is refused.
    pub timestamp_before_max_ms: u64,
    /// `message.timestamp.after.max.ms`: one that lies further ahead is refused.
    pub timestamp_after_max_ms: u64,
}

/// The largest time that may be set, in milliseconds: for ever.
const MOST: u64 = i64::MAX as u64;

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            retention_ms: Some(7 * 24 * 60 * 60 * 1000),
            retention_bytes: None,
            retention_records: None,
            segment_bytes: 256 << 20,
            segment_ms: 7 * 24 * 60 * 60 * 1000,
            // One mebibyte of records and the batch's own header, as Kafka's default.
            max_message_bytes: (1 << 20) + 12,
            index_interval_bytes: 16 << 10,
            cleanup: CleanupPolicy::DELETE,
            delete_retention_ms: 24 * 60 * 60 * 1000,
            min_compaction_lag_ms: 0,
            max_compaction_lag_ms: Self::FOREVER_MS,
            min_cleanable_dirty_ratio: Share::from_millionths(500_000),
            timestamp_type: TimestampType::CreateTime,
            timestamp_before_max_ms: Self::FOREVER_MS,
            timestamp_after_max_ms: Self::FOREVER_MS,
        }
    }
}

/// Why a setting was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No setting has this name.
    #[error("unknown topic setting {name:?}: the settings are {}", TopicConfig::NAMES.join(", "))]
    UnknownName {
        /// The name given.
        name: String,
    },
    /// The value is not a number, or outside the bounds.
    #[error("{name}={value:?} is refused: {expected}")]
    BadValue {
        /// The setting.
        name: &'static str,
        /// The value given.
        value: String,
        /// What is accepted.
        expected: String,
    },
}

impl TopicConfig {
    /// What bounds a time no more than nothing does, in milliseconds.
    pub const FOREVER_MS: u64 = MOST;

    /// The names of all settings.
    pub const NAMES: [&'static str; 15] = [
        "retention.ms",
        "retention.bytes",
        "retention.records",
        "segment.bytes",
        "segment.ms",
        "max.message.bytes",
        "index.interval.bytes",
        "cleanup.policy",
        "delete.retention.ms",
        "min.compaction.lag.ms",
        "max.compaction.lag.ms",
        "min.cleanable.dirty.ratio",
        "message.timestamp.type",
        "message.timestamp.before.max.ms",
        "message.timestamp.after.max.ms",
    ];

    /// The largest batch that any topic may allow, in bytes: what a broker must be ready to take in one message.
    pub const MAX_MESSAGE_BYTES_LIMIT: u32 = 32 << 20;

    /// Defaults overridden by `settings`.
    ///
    /// # Errors
    /// On the first unknown name or refused value.
    pub fn from_settings<'a>(
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for (name, value) in settings {
            config.set(name, value)?;
        }
        Ok(config)
    }

    /// Sets one setting from its text.
    ///
    /// # Errors
    /// Where the name is unknown or the value refused; the settings are then as before.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        match name {
            "retention.ms" => self.retention_ms = optional("retention.ms", value)?,
            "retention.bytes" => self.retention_bytes = optional("retention.bytes", value)?,
            "retention.records" => self.retention_records = optional("retention.records", value)?,
            "segment.bytes" => self.segment_bytes = bounded("segment.bytes", value, 4096, 2 << 30)?,
            "segment.ms" => self.segment_ms = bounded("segment.ms", value, 1, MOST)?,
            "max.message.bytes" => {
                let most = u64::from(Self::MAX_MESSAGE_BYTES_LIMIT);
                self.max_message_bytes = bounded("max.message.bytes", value, 61, most)? as u32;
            }
            "index.interval.bytes" => {
                self.index_interval_bytes =
                    bounded("index.interval.bytes", value, 1, 1 << 30)? as u32;
            }
            _ => return self.set_cleanup(name, value),
        }
        Ok(())
    }

    /// Sets what compaction and timestamps go by.
    fn set_cleanup(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        match name {
            "cleanup.policy" => {
                let expected = "give delete, compact or compact,delete";
                let policy = CleanupPolicy::parse(value);
                self.cleanup = policy.ok_or_else(|| bad("cleanup.policy", value, expected))?;
            }
            "delete.retention.ms" => {
                self.delete_retention_ms = bounded("delete.retention.ms", value, 0, MOST)?;
            }
            "min.compaction.lag.ms" => {
                self.min_compaction_lag_ms = bounded("min.compaction.lag.ms", value, 0, MOST)?;
            }
            "max.compaction.lag.ms" => {
                self.max_compaction_lag_ms = bounded("max.compaction.lag.ms", value, 1, MOST)?;
            }
            "min.cleanable.dirty.ratio" => {
                let expected = "give a number from 0 to 1";
                let ratio = Share::parse(value);
                self.min_cleanable_dirty_ratio =
                    ratio.ok_or_else(|| bad("min.cleanable.dirty.ratio", value, expected))?;
            }
            "message.timestamp.type" => {
                self.timestamp_type = match value {
                    "CreateTime" => TimestampType::CreateTime,
                    "LogAppendTime" => TimestampType::LogAppendTime,
                    _ => {
                        let expected = "give CreateTime or LogAppendTime";
                        return Err(bad("message.timestamp.type", value, expected));
                    }
                }
            }
            "message.timestamp.before.max.ms" => {
                self.timestamp_before_max_ms =
                    bounded("message.timestamp.before.max.ms", value, 0, MOST)?;
            }
            "message.timestamp.after.max.ms" => {
                self.timestamp_after_max_ms =
                    bounded("message.timestamp.after.max.ms", value, 0, MOST)?;
            }
            _ => {
                return Err(ConfigError::UnknownName {
                    name: name.chars().take(64).collect(),
                });
            }
        }
        Ok(())
    }

    /// Every setting with its value as text, for describing a topic.
    pub fn settings(&self) -> BTreeMap<&'static str, String> {
        let optional =
            |value: Option<u64>| value.map_or_else(|| "-1".to_owned(), |v| v.to_string());
        BTreeMap::from([
            ("retention.ms", optional(self.retention_ms)),
            ("retention.bytes", optional(self.retention_bytes)),
            ("retention.records", optional(self.retention_records)),
            ("segment.bytes", self.segment_bytes.to_string()),
            ("segment.ms", self.segment_ms.to_string()),
            ("max.message.bytes", self.max_message_bytes.to_string()),
            (
                "index.interval.bytes",
                self.index_interval_bytes.to_string(),
            ),
            ("cleanup.policy", self.cleanup.to_string()),
            ("delete.retention.ms", self.delete_retention_ms.to_string()),
            (
                "min.compaction.lag.ms",
                self.min_compaction_lag_ms.to_string(),
            ),
            (
                "max.compaction.lag.ms",
                self.max_compaction_lag_ms.to_string(),
            ),
            (
                "min.cleanable.dirty.ratio",
                self.min_cleanable_dirty_ratio.to_string(),
            ),
            ("message.timestamp.type", self.timestamp_type.to_string()),
            (
                "message.timestamp.before.max.ms",
                self.timestamp_before_max_ms.to_string(),
            ),
            (
                "message.timestamp.after.max.ms",
                self.timestamp_after_max_ms.to_string(),
            ),
        ])
    }
}

fn optional(name: &'static str, value: &str) -> Result<Option<u64>, ConfigError> {
    if value == "-1" {
        return Ok(None);
    }
    bounded(name, value, 0, MOST).map(Some)
}

fn bounded(name: &'static str, value: &str, least: u64, most: u64) -> Result<u64, ConfigError> {
    match value.parse::<u64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(bad(
            name,
            value,
            format!("give a whole number from {least} to {most}"),
        )),
    }
}

fn bad(name: &'static str, value: &str, expected: impl Into<String>) -> ConfigError {
    ConfigError::BadValue {
        name,
        value: value.chars().take(64).collect(),
        expected: expected.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::{ConfigError, TopicConfig};

    #[test]
    fn settings_survive_a_round_trip_through_text() {
        let config = TopicConfig::from_settings([
            ("retention.ms", "-1"),
            ("segment.bytes", "65536"),
            ("cleanup.policy", "delete, compact"),
            ("min.cleanable.dirty.ratio", "0.01"),
            ("message.timestamp.type", "LogAppendTime"),
        ])
        .unwrap();
        assert_eq!(config.settings()["cleanup.policy"], "compact,delete");
        let text = config.settings();
        let again = TopicConfig::from_settings(text.iter().map(|(k, v)| (*k, v.as_str()))).unwrap();
        assert_eq!(config, again);
        assert_eq!(text.len(), TopicConfig::NAMES.len());
    }

    #[test]
    fn bad_settings_are_named() {
        let mut config = TopicConfig::default();
        assert!(matches!(
            config.set("retention", "1"),
            Err(ConfigError::UnknownName { .. })
        ));
        for bad in ["", "x", "-2", "0", "99999999999999999999"] {
            assert!(
                matches!(
                    config.set("segment.bytes", bad),
                    Err(ConfigError::BadValue { .. })
                ),
                "{bad}"
            );
        }
        for (name, value) in [
            ("cleanup.policy", "compact,dleete"),
            ("cleanup.policy", ""),
            ("min.cleanable.dirty.ratio", "1.1"),
            ("min.cleanable.dirty.ratio", "NaN"),
            ("message.timestamp.type", "createtime"),
        ] {
            let refused = config.set(name, value);
            assert!(
                matches!(refused, Err(ConfigError::BadValue { .. })),
                "{name}={value}"
            );
        }
        assert_eq!(config, TopicConfig::default());
    }
}
