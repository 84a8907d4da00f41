//! What can be set for a topic.

use std::collections::BTreeMap;

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
}

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
    /// The names of all settings.
    pub const NAMES: [&'static str; 7] = [
        "retention.ms",
        "retention.bytes",
        "retention.records",
        "segment.bytes",
        "segment.ms",
        "max.message.bytes",
        "index.interval.bytes",
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
            "segment.ms" => self.segment_ms = bounded("segment.ms", value, 1, i64::MAX as u64)?,
            "max.message.bytes" => {
                let most = u64::from(Self::MAX_MESSAGE_BYTES_LIMIT);
                self.max_message_bytes = bounded("max.message.bytes", value, 61, most)? as u32;
            }
            "index.interval.bytes" => {
                self.index_interval_bytes =
                    bounded("index.interval.bytes", value, 1, 1 << 30)? as u32;
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
        ])
    }
}

fn optional(name: &'static str, value: &str) -> Result<Option<u64>, ConfigError> {
    if value == "-1" {
        return Ok(None);
    }
    bounded(name, value, 0, i64::MAX as u64).map(Some)
}

fn bounded(name: &'static str, value: &str, least: u64, most: u64) -> Result<u64, ConfigError> {
    match value.parse::<u64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(ConfigError::BadValue {
            name,
            value: value.chars().take(64).collect(),
            expected: format!("give a whole number from {least} to {most}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::{ConfigError, TopicConfig};

    #[test]
    fn settings_survive_a_round_trip_through_text() {
        let config =
            TopicConfig::from_settings([("retention.ms", "-1"), ("segment.bytes", "65536")])
                .unwrap();
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
        assert_eq!(config, TopicConfig::default());
    }
}
