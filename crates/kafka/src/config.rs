//! Topic settings by Kafka's names: those that a topic has, and those that have one value here.

use std::collections::HashMap;

use quipu_broker::front::Topic;
use quipu_model::TopicConfig;

use crate::error::ErrorCode;

/// An error for the client, and a line for who sits before it.
pub(crate) type Refusal = (ErrorCode, String);

/// What a setting holds, as clients are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub(crate) enum ConfigType {
    Boolean = 1,
    String = 2,
    Int = 3,
    Long = 5,
    Double = 6,
    List = 7,
}

/// Where a setting's value is from, as clients are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub(crate) enum ConfigSource {
    Topic = 1,
    StaticBroker = 4,
    Default = 5,
}

/// What happens to a value that is given for a setting that no topic has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    /// Another one would promise what is not kept: it is refused.
    Refused,
    /// It is for tuning a broker that works otherwise: it changes nothing, and is not kept.
    Ignored,
}

/// A setting of Kafka's that no topic has here.
struct Fixed {
    name: &'static str,
    value: &'static str,
    kind: ConfigType,
    given: Given,
}

const fn fixed(name: &'static str, value: &'static str, kind: ConfigType) -> Fixed {
    Fixed {
        name,
        value,
        kind,
        given: Given::Refused,
    }
}

const fn ignored(name: &'static str, value: &'static str, kind: ConfigType) -> Fixed {
    Fixed {
        given: Given::Ignored,
        ..fixed(name, value, kind)
    }
}

/// `docs/kafka.md` says of each why.
const FIXED: &[Fixed] = &[
    fixed("compression.type", "producer", ConfigType::String),
    fixed(
        "unclean.leader.election.enable",
        "false",
        ConfigType::Boolean,
    ),
    fixed("remote.storage.enable", "false", ConfigType::Boolean),
    fixed(
        "leader.replication.throttled.replicas",
        "",
        ConfigType::List,
    ),
    fixed(
        "follower.replication.throttled.replicas",
        "",
        ConfigType::List,
    ),
    ignored("compression.gzip.level", "-1", ConfigType::Int),
    ignored("compression.lz4.level", "9", ConfigType::Int),
    ignored("compression.zstd.level", "3", ConfigType::Int),
    ignored("file.delete.delay.ms", "60000", ConfigType::Long),
    ignored("flush.messages", "1", ConfigType::Long),
    ignored("flush.ms", "9223372036854775807", ConfigType::Long),
    ignored("local.retention.bytes", "-2", ConfigType::Long),
    ignored("local.retention.ms", "-2", ConfigType::Long),
    ignored("preallocate", "true", ConfigType::Boolean),
    ignored("segment.index.bytes", "10485760", ConfigType::Int),
    ignored("segment.jitter.ms", "0", ConfigType::Long),
];

/// Its value follows from the number of replicas: a write is acknowledged by a majority.
const MIN_IN_SYNC: &str = "min.insync.replicas";

/// One of a topic's settings.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) value: String,
    pub(crate) kind: ConfigType,
    pub(crate) source: ConfigSource,
    pub(crate) read_only: bool,
}

fn own(name: &str) -> bool {
    TopicConfig::NAMES.contains(&name)
}

fn kind_of(name: &str) -> ConfigType {
    match FIXED.iter().find(|fixed| fixed.name == name) {
        Some(fixed) => fixed.kind,
        None if name == "cleanup.policy" => ConfigType::List,
        None if name == "message.timestamp.type" => ConfigType::String,
        None if name == "min.cleanable.dirty.ratio" => ConfigType::Double,
        None if name.ends_with("segment.bytes") || name.ends_with("message.bytes") => {
            ConfigType::Int
        }
        None => ConfigType::Long,
    }
}

/// All settings of a topic, by name.
pub(crate) fn settings_of(topic: &Topic) -> Vec<Setting> {
    let set = |name: &str| topic.settings.contains_key(name);
    let own_settings = topic.config.settings().into_iter();
    let mut settings: Vec<Setting> = own_settings
        .map(|(name, value)| Setting {
            name,
            value,
            kind: kind_of(name),
            source: if set(name) {
                ConfigSource::Topic
            } else {
                ConfigSource::Default
            },
            read_only: false,
        })
        .collect();
    let others = FIXED.iter().filter(|fixed| !own(fixed.name));
    settings.extend(others.map(|fixed| Setting {
        name: fixed.name,
        value: fixed.value.to_owned(),
        kind: fixed.kind,
        source: ConfigSource::Default,
        read_only: fixed.given == Given::Refused,
    }));
    settings.push(Setting {
        name: MIN_IN_SYNC,
        value: majority(topic.replication_factor()).to_string(),
        kind: ConfigType::Int,
        source: ConfigSource::Default,
        read_only: true,
    });
    settings.sort_by_key(|setting| setting.name);
    settings
}

fn majority(replicas: usize) -> usize {
    replicas / 2 + 1
}

/// What of the settings given for a topic is to be kept.
///
/// # Errors
/// Where one promises what is not kept. Those that a topic has are not looked at: whoever keeps them does.
pub(crate) fn to_keep(
    given: impl IntoIterator<Item = (String, String)>,
    replicas: usize,
) -> Result<HashMap<String, String>, Refusal> {
    let mut kept = HashMap::new();
    for (name, value) in given {
        if own(&name) || !is_fixed(&name, &value, replicas)? {
            kept.insert(name, value);
        }
    }
    Ok(kept)
}

/// Whether a setting has one value here, so that a value given for it is not kept.
///
/// # Errors
/// Where it promises what is not kept.
fn is_fixed(name: &str, value: &str, replicas: usize) -> Result<bool, Refusal> {
    let refused = |here: &str| {
        let value: String = value.chars().take(64).collect();
        let line = format!("{name}={value} is refused: here it is always {here}");
        (ErrorCode::InvalidConfig, line)
    };
    if name == MIN_IN_SYNC {
        let here = majority(replicas);
        return match value.parse::<usize>() {
            Ok(wanted) if (1..=here).contains(&wanted) => Ok(true),
            _ => Err(refused(&format!("{here}, a majority of the replicas"))),
        };
    }
    match FIXED.iter().find(|fixed| fixed.name == name) {
        Some(fixed) if fixed.given == Given::Refused && fixed.value != value => {
            Err(refused(fixed.value))
        }
        Some(_) => Ok(true),
        None => Ok(false),
    }
}

/// Whether a setting can be given at all, though it has one value here.
pub(crate) fn is_known(name: &str) -> bool {
    own(name) || name == MIN_IN_SYNC || FIXED.iter().any(|fixed| fixed.name == name)
}

#[cfg(test)]
mod tests {
    use super::to_keep;
    use crate::error::ErrorCode;

    fn given(name: &str, value: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), value.to_owned())]
    }

    #[test]
    fn what_a_topic_has_is_kept_and_what_is_always_so_is_not() {
        let kept = to_keep(given("retention.ms", "1000"), 1).unwrap();
        assert_eq!(kept["retention.ms"], "1000");
        for (name, value) in [("compression.type", "producer"), ("flush.messages", "7")] {
            assert!(to_keep(given(name, value), 1).unwrap().is_empty(), "{name}");
        }
        // Whoever keeps settings refuses it by name.
        assert_eq!(to_keep(given("no.such.thing", "1"), 1).unwrap().len(), 1);
    }

    #[test]
    fn a_promise_that_is_not_kept_is_refused() {
        assert!(to_keep(given("min.insync.replicas", "2"), 3).is_ok());
        for (name, value, replicas) in [
            ("min.insync.replicas", "3", 3),
            ("min.insync.replicas", "x", 3),
            ("compression.type", "zstd", 1),
        ] {
            let (error, line) = to_keep(given(name, value), replicas).unwrap_err();
            assert_eq!(error, ErrorCode::InvalidConfig);
            assert!(line.contains(name), "{line}");
        }
    }
}
