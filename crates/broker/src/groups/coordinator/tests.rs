use std::{sync::Arc, time::Duration};

use quipu_model::{Offset, PartitionId, PartitionKey, TimestampMs, TopicId};

use super::{Commit, Committer, Coordinator, Effects, Limits};
use crate::groups::{
    ClassicMember,
    names::{GroupError, GroupId, MemberId, Moment},
    offsets::{Committed, Place},
};

fn at(seconds: u64) -> Moment {
    Moment {
        elapsed: Duration::from_secs(seconds),
        wall: TimestampMs::new(1_000_000 + seconds as i64 * 1000),
    }
}

fn group(name: &str) -> GroupId {
    GroupId::new(name).unwrap()
}

fn partition(number: u32) -> PartitionKey {
    PartitionKey {
        topic: TopicId::from_bytes([7; 16]),
        partition: PartitionId::new(number),
    }
}

fn offset(offset: u64) -> Committed {
    Committed {
        place: Place::At(Offset::new(offset)),
        leader_epoch: None,
        metadata: "".into(),
        at: TimestampMs::NONE,
    }
}

fn offsets(offsets: &[(u32, u64)]) -> Commit {
    let offsets = offsets.iter();
    let offsets = offsets.map(|(number, at)| (partition(*number), offset(*at)));
    Commit {
        committer: Committer::Outside,
        offsets: offsets.collect(),
    }
}

fn commit(
    coordinator: &mut Coordinator,
    second: u64,
    name: &str,
    of: &[(u32, u64)],
    effects: &mut Effects,
) -> Result<usize, GroupError> {
    let refused = coordinator.commit(at(second), &group(name), offsets(of), effects)?;
    Ok(refused.len())
}

fn stored(coordinator: &Coordinator, name: &str) -> Vec<(u32, u64)> {
    let offsets = coordinator.fetch(&group(name), None).into_iter();
    offsets
        .map(|(key, value)| (key.partition.get(), value.place.number() as u64))
        .collect()
}

fn small() -> Coordinator {
    let mut coordinator = Coordinator::new(Limits {
        groups: 2,
        bytes: 1 << 20,
        offsets_retention: Duration::from_secs(3600),
    });
    coordinator.begin(at(0), Arc::default(), &mut Effects::default());
    coordinator
}

/// librdkafka's new consumer says who it is also where it has assigned its partitions to itself.
#[test]
fn who_names_no_generation_stores_offsets_of_a_group_without_members() {
    let (mut coordinator, mut effects) = (Coordinator::new(Limits::default()), Effects::default());
    let named = |generation| Commit {
        committer: Committer::Classic(ClassicMember {
            id: MemberId::new("me").unwrap(),
            instance: None,
            generation,
        }),
        ..offsets(&[(0, 7)])
    };
    let error = coordinator.commit(at(1), &group("g"), named(1), &mut effects);
    assert!(matches!(
        error,
        Err(GroupError::StaleGeneration { given: 1 })
    ));
    let refused = coordinator.commit(at(2), &group("g"), named(-1), &mut effects);
    assert_eq!(refused.unwrap(), []);
    assert_eq!(stored(&coordinator, "g"), [(0, 7)]);
}

#[test]
fn what_was_stored_is_found_and_outlives_the_coordinator() {
    let mut coordinator = small();
    let mut effects = Effects::default();
    let at_first = commit(&mut coordinator, 1, "g", &[(0, 5), (1, 7)], &mut effects);
    assert_eq!(at_first, Ok(0));
    let later = commit(&mut coordinator, 2, "g", &[(0, 6)], &mut effects);
    assert_eq!(later, Ok(0));
    assert_eq!(stored(&coordinator, "g"), [(0, 6), (1, 7)]);
    assert_eq!(stored(&coordinator, "other"), []);
    let some = coordinator.fetch(&group("g"), Some(&[partition(1), partition(9)]));
    assert_eq!(some.len(), 1);

    let mut next = small();
    for record in effects.records {
        next.replay(record);
    }
    assert_eq!(stored(&next, "g"), [(0, 6), (1, 7)]);
    assert_eq!(next.bytes, coordinator.bytes);
}

#[test]
fn bad_offsets_are_refused_singly_and_others_are_stored() {
    let mut coordinator = small();
    let mut mixed = offsets(&[(0, 5), (1, u64::MAX), (2, 5)]);
    mixed.offsets[2].1.metadata = "x".repeat(4097).into();
    let refused = coordinator.commit(at(1), &group("g"), mixed, &mut Effects::default());
    let refused = refused.unwrap().into_iter();
    let refused: Vec<_> = refused.map(|(key, _)| key.partition.get()).collect();
    assert_eq!(refused, [1, 2]);
    assert_eq!(stored(&coordinator, "g"), [(0, 5)]);
}

#[test]
fn groups_are_bounded_and_come_and_go() {
    let mut coordinator = small();
    let mut effects = Effects::default();
    let store = |coordinator: &mut _, name: &str| {
        commit(coordinator, 1, name, &[(0, 1)], &mut Effects::default())
    };
    assert_eq!(store(&mut coordinator, "a"), Ok(0));
    assert_eq!(store(&mut coordinator, "b"), Ok(0));
    let refused = store(&mut coordinator, "c");
    assert!(
        matches!(refused, Err(GroupError::Full { .. })),
        "{refused:?}"
    );
    // Those that are there go on, and make room when they go.
    assert_eq!(store(&mut coordinator, "a"), Ok(0));
    coordinator.delete(&group("b"), &mut effects).unwrap();
    let gone = coordinator.describe(&group("b")).unwrap_err();
    assert_eq!(gone, GroupError::UnknownGroup(group("b")));
    assert_eq!(store(&mut coordinator, "c"), Ok(0));
    for name in ["a", "c"] {
        coordinator
            .delete_offsets(&group(name), &[partition(0), partition(1)], &mut effects)
            .unwrap();
    }
    assert_eq!(coordinator.list(), []);
    assert_eq!(coordinator.bytes, 0);
}

#[test]
fn bytes_are_bounded() {
    let mut coordinator = small();
    for number in 0.. {
        let mut large = offsets(&[(number, 1)]);
        large.offsets[0].1.metadata = "x".repeat(4096).into();
        let mut effects = Effects::default();
        if coordinator
            .commit(at(1), &group("g"), large, &mut effects)
            .is_err()
        {
            break;
        }
        assert!(number < 1000, "it takes in without a bound");
    }
}

#[test]
fn a_clock_that_is_years_off_forgets_nothing() {
    let mut coordinator = small();
    let mut effects = Effects::default();
    commit(&mut coordinator, 1, "g", &[(0, 5)], &mut effects).unwrap();
    let years_off = |seconds, years: i64| Moment {
        wall: TimestampMs::new(years * 365 * 24 * 3600 * 1000),
        ..at(seconds)
    };
    for (seconds, years) in [(61, 10), (122, -10)] {
        coordinator.tick(years_off(seconds, years), &mut effects);
        assert_eq!(stored(&coordinator, "g"), [(0, 5)]);
    }
    // Nor does one with such a clock that takes over.
    let mut next = Coordinator::new(coordinator.limits.clone());
    for record in effects.records.drain(..) {
        next.replay(record);
    }
    next.begin(years_off(200, 10), Arc::default(), &mut effects);
    next.tick(years_off(261, 10), &mut effects);
    assert_eq!(stored(&next, "g"), [(0, 5)]);
    // By and by they are as old as they may be.
    next.tick(years_off(200 + 3662, 10), &mut effects);
    assert_eq!(next.list(), []);
}

#[test]
fn offsets_that_nobody_renews_expire() {
    let mut coordinator = small();
    let mut effects = Effects::default();
    commit(&mut coordinator, 0, "g", &[(0, 5), (1, 5)], &mut effects).unwrap();
    commit(&mut coordinator, 3000, "g", &[(1, 6)], &mut effects).unwrap();
    assert_eq!(coordinator.next_deadline(), Some(Duration::from_secs(60)));
    coordinator.tick(at(3600), &mut effects);
    assert_eq!(stored(&coordinator, "g"), [(0, 5), (1, 6)]);
    coordinator.tick(at(3661), &mut effects);
    assert_eq!(stored(&coordinator, "g"), [(1, 6)]);
    coordinator.tick(at(7000), &mut effects);
    assert_eq!(coordinator.list(), []);
    assert_eq!(coordinator.next_deadline(), None);
}
