//! What the topics are called through which records that failed go.

use std::{fmt::Write, time::Duration};

use quipu_model::TopicName;

use crate::{Result, error::Error};

/// Where a group's records of a topic wait for so long: `orders.billing.retry.5s`.
pub(super) fn retry_topic(topic: &str, group: &str, delay: Duration) -> Result<String> {
    checked(format!("{topic}.{}.retry.{}", escaped(group), short(delay)))
}

/// Where a group's records of a topic go that failed for good: `orders.billing.dead`.
///
/// # Errors
/// Where the name is longer than a topic's may be.
pub fn dead_letter_topic(topic: &str, group: &str) -> Result<String> {
    checked(format!("{topic}.{}.dead", escaped(group)))
}

/// Where records for a topic wait for so long that are to be delivered later: `orders.delay.10s`.
pub(crate) fn delay_topic(topic: &str, delay: Duration) -> Result<String> {
    checked(format!("{topic}.delay.{}", short(delay)))
}

fn checked(name: String) -> Result<String> {
    match TopicName::new(&name) {
        Ok(_) => Ok(name),
        Err(error) => Err(Error::invalid(format_args!(
            "{error}; it is made of the topic's and the group's name: shorten one"
        ))),
    }
}

/// A group's name as a part of a topic's, without a dot, so that two groups never share a topic: what may not stand there is `_` and two
/// hex digits a byte.
fn escaped(group: &str) -> String {
    let bytes = group.as_bytes();
    let is_hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    let mut name = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        let looks_escaped = bytes
            .get(at + 1..at + 3)
            .is_some_and(|next| next.iter().all(is_hex));
        match byte {
            b'_' if !looks_escaped => name.push('_'),
            b'-' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => name.push(char::from(*byte)),
            // Writing to a string does not fail.
            _ => drop(write!(name, "_{byte:02x}")),
        }
    }
    name
}

/// A duration in the largest unit that says it exactly.
fn short(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let exact = units
        .iter()
        .find(|(unit, _)| ms > 0 && ms.is_multiple_of(*unit));
    match exact {
        Some((unit, name)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use super::{dead_letter_topic, delay_topic, escaped, retry_topic};

    #[test]
    fn names_tell_topic_group_and_delay() {
        for (ms, name) in [
            (250, "orders.billing.retry.250ms"),
            (5_000, "orders.billing.retry.5s"),
            (90_000, "orders.billing.retry.90s"),
            (600_000, "orders.billing.retry.10m"),
            (86_400_000, "orders.billing.retry.24h"),
        ] {
            let delay = Duration::from_millis(ms);
            assert_eq!(retry_topic("orders", "billing", delay).unwrap(), name);
        }
        let delay = delay_topic("orders", Duration::from_secs(10)).unwrap();
        assert_eq!(delay, "orders.delay.10s");
    }

    #[test]
    fn no_two_topics_and_groups_share_one() {
        let (topics, groups) = (
            ["a", "a.b", "a.b_2ec", "a._"],
            [
                "c",
                "b.c",
                "b_2ec",
                "b_c",
                "_",
                "__",
                "_2e",
                "_5f2e",
                ".",
                "ü",
                "",
                "my group",
                "my_deed",
                "my_20group",
            ],
        );
        let names: HashSet<_> = topics
            .iter()
            .flat_map(|topic| groups.map(|group| dead_letter_topic(topic, group).unwrap()))
            .collect();
        assert_eq!(names.len(), topics.len() * groups.len());
        assert_eq!(escaped("billing_v2-eu"), "billing_v2-eu");
    }

    #[test]
    fn a_name_that_is_too_long_is_told_beforehand() {
        let group = "g".repeat(245);
        assert!(dead_letter_topic("t", &group).is_err());
    }
}
