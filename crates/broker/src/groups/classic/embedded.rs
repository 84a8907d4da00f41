//! What consumers say to each other through the coordinator, read for people only: nothing rests on it.

use bytes::Buf;

/// The topics that a consumer says it subscribes to.
pub(super) fn subscription(mut bytes: &[u8]) -> Vec<Box<str>> {
    let mut topics = Vec::new();
    if let (Ok(_version), Ok(count)) = (bytes.try_get_i16(), bytes.try_get_i32()) {
        for _ in 0..count {
            let Some(topic) = text(&mut bytes) else { break };
            topics.push(topic);
        }
    }
    topics
}

/// The partitions that a consumer was assigned, by topic.
pub(super) fn assignment(mut bytes: &[u8]) -> Vec<(Box<str>, Vec<u32>)> {
    let mut topics = Vec::new();
    if let (Ok(_version), Ok(count)) = (bytes.try_get_i16(), bytes.try_get_i32()) {
        for _ in 0..count {
            let Some(topic) = text(&mut bytes) else { break };
            let Some(partitions) = numbers(&mut bytes) else {
                break;
            };
            topics.push((topic, partitions));
        }
    }
    topics
}

fn text(bytes: &mut &[u8]) -> Option<Box<str>> {
    let length = usize::try_from(bytes.try_get_i16().ok()?).ok()?;
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(std::str::from_utf8(text).ok()?.into())
}

fn numbers(bytes: &mut &[u8]) -> Option<Vec<u32>> {
    let count = bytes.try_get_i32().ok()?;
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(u32::try_from(bytes.try_get_i32().ok()?).ok()?);
    }
    Some(numbers)
}
