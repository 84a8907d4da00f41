//! What compaction promises, one by one.

use std::time::Duration;

use quipu_model::{CleanupPolicy, Offset, Share, TimestampMs, batch::Compression};
use quipu_storage::{PartitionLog, RetentionPolicy};

use super::subject::{KEY, New, RETENTION_MS, START_MS, Subject};

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn of(key: u8, value: &[u8]) -> New {
    (Some(key), Some(value.to_vec()))
}

/// Closes the active segment.
fn roll(subject: &Subject) {
    let far = TimestampMs::new(subject.now() + subject.config.segment_ms as i64);
    subject.log.roll_if_due(far).unwrap();
}

fn keys(subject: &Subject) -> Vec<(u64, u8)> {
    let read = subject.read(subject.start(), 1 << 20);
    let key = |key: &bytes::Bytes| *key.last().unwrap();
    read.iter()
        .map(|record| (record.offset.get(), record.key.as_ref().map_or(b'-', key)))
        .collect()
}

fn has_compaction_to_do(log: &PartitionLog, now: i64) -> bool {
    let end = log.state().end_offset;
    log.compaction_point(end, TimestampMs::new(now)).is_some()
}

#[test]
fn the_newest_record_of_each_key_is_kept_where_it_was() {
    let mut subject = Subject::new(1, 1 << 20);
    subject.append(
        &[of(1, b"a"), of(2, b"b"), (None, None), of(1, b"c")],
        Compression::None,
        -1,
    );
    subject.append(&[of(3, b"d"), of(2, b"e")], Compression::Zstd, -1);
    roll(&subject);
    subject.append(&[of(3, b"not closed yet")], Compression::None, -1);
    subject.compact();
    let expected = [(2, b'-'), (3, 1), (4, 3), (5, 2), (6, 3)];
    assert_eq!(keys(&subject), expected);
    for from in 0..7 {
        let later: Vec<_> = subject
            .read(Offset::new(from), 1)
            .iter()
            .map(|r| r.offset.get())
            .collect();
        let expected: Vec<_> = [2, 3, 4, 5, 6].into_iter().filter(|o| *o >= from).collect();
        assert_eq!(later, expected, "from {from}");
    }
    subject.store.as_ref().unwrap().checkpoint().unwrap();
    subject.crash(1);
    assert_eq!(keys(&subject), expected);
}

#[test]
fn a_tombstone_outlives_what_it_deletes_for_as_long_as_is_set() {
    let mut subject = Subject::new(1, 1 << 20);
    subject.append(
        &[of(1, b"a"), (Some(1), None), of(2, b"b")],
        Compression::None,
        -1,
    );
    roll(&subject);
    subject.clock.advance(ms(5 * RETENTION_MS as u64));
    subject.compact();
    assert_eq!(
        keys(&subject),
        [(1, 1), (2, 2)],
        "its time begins once what it deletes is gone"
    );
    subject.clock.advance(ms(RETENTION_MS as u64 - 1));
    subject.compact();
    subject.reopen();
    assert_eq!(keys(&subject), [(1, 1), (2, 2)]);
    subject.clock.advance(ms(1));
    subject.compact();
    assert_eq!(keys(&subject), [(2, 2)]);
}

#[test]
fn small_segments_that_come_and_go_do_not_keep_tombstones() {
    let mut subject = Subject::new(1, 1 << 20);
    subject.append(&[(Some(1), None)], Compression::None, -1);
    roll(&subject);
    for round in 0..12 {
        subject.append(&[of(2, &[round])], Compression::None, -1);
        roll(&subject);
        subject.compact();
        subject.clock.advance(ms(RETENTION_MS as u64 / 10));
    }
    subject.compact();
    assert!(keys(&subject).iter().all(|(_, key)| *key != 1));
    assert!(subject.log.state().segments <= 3, "they become one");
}

#[test]
fn young_records_wait_for_the_least_lag_and_old_ones_no_longer_than_the_greatest() {
    let mut subject = Subject::new(1, 1 << 20);
    subject.config.min_compaction_lag_ms = 1000;
    subject.config.max_compaction_lag_ms = 5000;
    subject.config.min_cleanable_dirty_ratio = Share::from_millionths(900_000);
    subject.log.set_config(subject.config.clone());
    subject.append(
        &[of(1, b"a"), of(1, b"b"), of(2, &[0; 2000])],
        Compression::None,
        -1,
    );
    roll(&subject);
    subject.append(&[of(9, b"later")], Compression::None, -1);
    assert!(!has_compaction_to_do(&subject.log, START_MS + 999));
    subject.clock.advance(ms(1000));
    subject.compact();
    assert_eq!(keys(&subject), [(1, 1), (2, 2), (3, 9)]);
    // A tenth of it is dirty: not enough, for a while.
    subject.append(&[of(9, b"again")], Compression::None, -1);
    let now = subject.now();
    subject.clock.advance(ms(4999));
    subject
        .log
        .roll_if_due(TimestampMs::new(subject.now()))
        .unwrap();
    assert!(!has_compaction_to_do(&subject.log, now + 3000));
    subject.clock.advance(ms(1));
    subject.compact();
    assert_eq!(keys(&subject), [(1, 1), (2, 2), (4, 9)]);
}

#[test]
fn what_raft_may_still_ask_for_is_not_touched() {
    let mut subject = Subject::new(1, 1 << 20);
    subject.append(&[of(1, b"a"), of(1, b"b")], Compression::None, -1);
    roll(&subject);
    subject.store.as_ref().unwrap().checkpoint().unwrap();
    subject.hand.finish();
    assert_eq!(keys(&subject).len(), 2);
    subject.compact();
    assert_eq!(keys(&subject).len(), 1);
}

#[test]
fn a_topic_may_be_compacted_and_trimmed_too() {
    let mut subject = Subject::new(1, 1 << 20);
    subject.config.cleanup = CleanupPolicy {
        delete: true,
        compact: true,
    };
    subject.log.set_config(subject.config.clone());
    for round in 0..6 {
        let records: Vec<_> = (0..8).map(|key| of(key, &[round; 300])).collect();
        subject.append(&records, Compression::None, 1);
    }
    roll(&subject);
    subject.compact();
    subject.check();
    let policy = RetentionPolicy {
        max_age_ms: Some(1000),
        ..RetentionPolicy::default()
    };
    subject.append(&[of(1, b"new")], Compression::None, 1);
    subject.clock.advance(ms(2000));
    let now = TimestampMs::new(subject.now());
    let point = subject.log.retention_point(policy, now).unwrap();
    subject.log.trim(point).unwrap();
    assert_eq!(keys(&subject), [(48, 1)]);
    subject.store.as_ref().unwrap().checkpoint().unwrap();
    subject.crash(4);
    assert_eq!(keys(&subject), [(48, 1)]);
}

#[test]
fn a_full_disk_puts_it_off_and_leaves_nothing_behind() {
    let mut subject = Subject::new(1, 1 << 20);
    for round in 0..6 {
        let records: Vec<_> = (0..8).map(|key| of(key, &[round; 300])).collect();
        subject.append(&records, Compression::None, 1);
    }
    roll(&subject);
    subject.purge();
    subject.store.as_ref().unwrap().checkpoint().unwrap();
    let dir = format!("topics/{}/{}", KEY.topic, KEY.partition);
    let files = |subject: &Subject| {
        use quipu_storage::io::Disk as _;
        let mut names = subject.disk.list(dir.as_ref()).unwrap();
        names.retain(|name| name.ends_with(".log"));
        names
    };
    let before = files(&subject);
    subject.disk.set_capacity(0);
    subject.hand.finish();
    assert_eq!(files(&subject), before);
    assert!(subject.store.as_ref().unwrap().failure().is_none());
    subject.disk.set_capacity(u64::MAX);
    subject.hand.finish();
    assert_eq!(keys(&subject).len(), 8);
    subject.store.as_ref().unwrap().checkpoint().unwrap();
}

#[test]
fn the_first_record_at_or_after_a_time_is_found_among_those_that_stay() {
    let mut subject = Subject::new(1, 1 << 20);
    for round in 0..60_u8 {
        subject.append(&[of(round % 7, &[round; 200])], Compression::None, -1);
        subject.clock.advance(ms(10));
    }
    roll(&subject);
    subject.compact();
    let left = subject.read(Offset::ZERO, 1 << 20);
    assert!(left.len() < 30);
    let end = subject.log.state().end_offset;
    for wanted in (START_MS - 5..START_MS + 620).step_by(5) {
        let expected = left.iter().find(|record| record.timestamp.get() >= wanted);
        let found = subject
            .log
            .offset_for_timestamp(TimestampMs::new(wanted), end)
            .unwrap();
        assert_eq!(
            found.map(|f| f.offset),
            expected.map(|r| r.offset),
            "{wanted}"
        );
    }
}

#[test]
fn replicas_compacted_at_different_times_come_to_the_same() {
    let mut early = Subject::new(1, 1 << 20);
    let mut late = Subject::new(2, 200);
    for round in 0..40_u8 {
        let records: Vec<_> = (0..6)
            .map(|at| {
                (
                    Some((round * 5 + at) % 16),
                    (at != 3).then(|| vec![round; 90]),
                )
            })
            .collect();
        for subject in [&mut early, &mut late] {
            subject.append(&records, Compression::Lz4, 2);
        }
        if round % 8 == 7 {
            early.compact();
        }
    }
    for subject in [&early, &late] {
        roll(subject);
        for _ in 0..2 {
            subject.compact();
            subject.clock.advance(ms(RETENTION_MS as u64));
        }
        subject.compact();
    }
    let read = |subject: &Subject| subject.read(Offset::ZERO, 1 << 20);
    assert_eq!(read(&early), read(&late));
}
