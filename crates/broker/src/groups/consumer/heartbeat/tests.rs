use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use self::world::{REBALANCE, SESSION, World, partition, topics};
use crate::groups::{
    assign::Assignor,
    consumer::{ConsumerHeartbeat, Join, Spec},
    coordinator::Notice,
    names::{GroupError, MemberId},
};

mod world;

fn member(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

#[test]
fn a_partition_is_handed_over_once_its_owner_says_that_it_has_let_go() {
    let mut world = World::new(&[2]);
    let first = world.start(None);
    world.reconcile(&first);
    assert_eq!(world.clients[&first].held.len(), 2);
    let second = world.start(None);
    assert!(world.clients[&second].target.is_empty());
    // It says what it processed when it joined, and hears that it is to let go.
    world.beat(&first, false);
    assert_eq!(world.clients[&first].target.len(), 1);
    for _ in 0..3 {
        world.beat(&second, false);
        assert!(world.clients[&second].target.is_empty());
    }
    world.reconcile(&first);
    world.beat(&first, false);
    world.beat(&second, false);
    world.reconcile(&second);
    world.check_single_owners();
    world.check_balanced();
}

#[test]
fn only_a_members_own_epoch_is_taken_and_the_one_before_if_the_answer_was_lost() {
    let mut world = World::new(&[4]);
    let id = world.start(None);
    let other = world.start(None);
    world.settle();
    world.depart(&other, false).unwrap();
    world.settle();
    let before = world.clients[&id].epoch;
    let second = world.start(None);
    // It does not hear that it is to let go.
    world.beat(&id, true);
    let held: Vec<_> = world.clients[&id].held.iter().copied().collect();
    let plain = world.send(&World::quiet(&id, before));
    assert!(
        matches!(plain, Err(GroupError::OtherEpoch { .. })),
        "{plain:?}"
    );
    let answer = world.send(&World::full(&id, before, &held)).unwrap();
    assert!(answer.epoch > before);
    assert_eq!(answer.assignment.map(|kept| kept.len()), Some(2));
    let foreign = [partition(99)];
    for beat in [
        World::full(&id, before - 1, &[]),
        World::full(&id, answer.epoch + 1, &held),
        World::full(&id, u64::MAX, &held),
        World::full(&id, before, &foreign),
    ] {
        let refused = world.send(&beat);
        assert!(
            matches!(refused, Err(GroupError::OtherEpoch { .. })),
            "{refused:?}"
        );
    }
    let stranger = world.send(&World::quiet(&member("x"), 1));
    assert!(matches!(stranger, Err(GroupError::UnknownMember(_))));
    world.settle();
    assert_eq!(world.clients[&second].held.len(), 2);
}

#[test]
fn an_instance_that_leaves_for_a_while_comes_back_to_what_it_had() {
    let mut world = World::new(&[8]);
    let old = world.start(Some("a"));
    let others = [world.start(None), world.start(None)];
    world.settle();
    let held = world.clients[&old].held.clone();
    let epochs = others.clone().map(|id| world.clients[&id].epoch);
    let second = ConsumerHeartbeat {
        instance: Some("a".into()),
        ..World::full(&member("other"), 0, &[])
    };
    let refused = world.send(&second);
    assert_eq!(refused, Err(GroupError::UnreleasedInstance("a".into())));
    world.depart(&old, true).unwrap();
    world.settle();
    let new = world.start(Some("a"));
    world.settle();
    assert_eq!(world.clients[&new].held, held);
    assert_eq!(epochs, others.map(|id| world.clients[&id].epoch));
    // The one before it is told that it has been replaced.
    let late = ConsumerHeartbeat {
        instance: Some("a".into()),
        ..World::quiet(&old, 1)
    };
    assert_eq!(
        world.send(&late),
        Err(GroupError::FencedInstance("a".into()))
    );
    // One that does not come back is timed out.
    world.depart(&new, true).unwrap();
    for _ in 0..SESSION.as_secs() {
        world.settle();
        world.pass(Duration::from_secs(1));
    }
    world.settle();
    world.check_balanced();
}

#[test]
fn who_does_not_let_go_in_time_is_out_and_who_leaves_is_at_once() {
    let mut world = World::new(&[2]);
    let first = world.start(None);
    world.reconcile(&first);
    world.beat(&first, false);
    let second = world.start(None);
    for _ in 0..REBALANCE.as_secs() {
        assert!(world.clients.contains_key(&first));
        world.beat(&first, false);
        world.beat(&second, false);
        assert!(world.clients[&second].target.is_empty());
        world.pass(Duration::from_secs(1));
    }
    // It hears of it, and joins anew.
    world.beat(&first, false);
    assert_eq!(world.clients[&first].epoch, 0);
    world.settle();
    world.check_balanced();
    let group = world.group.clone();
    let paused = world.event(|coordinator, _, now, effects| {
        coordinator.depart(now, &group, (&first, None), true, effects)
    });
    assert!(matches!(paused, Err(GroupError::Invalid(_))));
    world.depart(&first, false).unwrap();
    assert!(world.depart(&first, false).is_err());
    world.settle();
    world.check_balanced();
}

#[test]
fn the_time_to_let_go_begins_when_a_member_hears_of_it() {
    let mut world = World::new(&[2]);
    let first = world.start(None);
    world.reconcile(&first);
    world.beat(&first, false);
    let second = world.start(None);
    world.pass(Duration::from_secs(2));
    world.fail_over();
    world.pass(Duration::from_secs(4));
    world.beat(&first, false);
    world.pass(REBALANCE - Duration::from_secs(1));
    assert_ne!(world.clients[&first].epoch, 0);
    world.reconcile(&first);
    let told = world.clients[&first].epoch;
    world.beat(&first, false);
    assert!(world.clients[&first].epoch >= told);
    world.beat(&second, false);
    assert_eq!(world.clients[&second].target.len(), 1);
}

#[test]
fn what_can_be_no_topics_name_is_as_one_that_is_not_there() {
    let mut world = World::new(&[2]);
    let id = member("m");
    let both = ConsumerHeartbeat {
        pattern: None,
        topics: Some(["t1".into(), "not/a#name".into()].into()),
        ..World::full(&id, 0, &[])
    };
    let assignment = world.send(&both).unwrap().assignment;
    assert_eq!(assignment.unwrap().len(), 2);
}

#[test]
fn a_failover_keeps_epochs_and_assignments_and_what_is_being_let_go() {
    let mut world = World::new(&[6]);
    let first = world.start(None);
    world.settle();
    let second = world.start(None);
    world.beat(&first, false);
    world.reconcile(&first);
    // It has let go, and its word of it is lost with the coordinator.
    world.fail_over();
    let epoch = world.clients[&first].epoch;
    world.beat(&first, false);
    assert!(world.clients[&first].epoch >= epoch);
    world.beat(&second, false);
    world.reconcile(&second);
    world.check_single_owners();
    world.check_balanced();
    world.settle();
    let held = |world: &World| [&first, &second].map(|id| world.clients[id].held.clone());
    let before = held(&world);
    for _ in 0..3 {
        world.fail_over();
        world.settle();
        assert_eq!(held(&world), before);
    }
}

#[test]
fn offsets_are_taken_in_the_members_epoch_only() {
    let mut world = World::new(&[2]);
    let first = world.start(None);
    world.settle();
    let epoch = world.clients[&first].epoch;
    assert_eq!(world.commit(&first, epoch, 0), None);
    // Nobody has it.
    assert_eq!(world.commit(&first, epoch, 7), None);
    let ahead = world.commit(&first, epoch + 1, 0);
    assert!(matches!(ahead, Some(GroupError::OtherEpoch { .. })));
    let stranger = world.commit(&member("x"), epoch, 0);
    assert!(matches!(stranger, Some(GroupError::UnknownMember(_))));
    let second = world.start(None);
    world.settle();
    let moved = world.clients[&second].held.first().unwrap().partition.get();
    let late = world.commit(&first, epoch, moved);
    assert!(matches!(late, Some(GroupError::NotOwned(_))));
    for (epoch, fits) in [(epoch, false), (world.clients[&first].epoch, true)] {
        let group = world.group.clone();
        let checked = world.coordinator.check_epoch(&group, &first, epoch);
        assert_eq!(checked.is_ok(), fits);
    }
}

#[test]
fn members_with_a_session_and_members_with_heartbeats_share_one_group() {
    let mut world = World::new(&[6]);
    let beats = world.start(None);
    world.settle();
    let streams = member("streams");
    let spec = Spec {
        topics: ["t1".into()].into(),
        ..world.spec(&beats)
    };
    let join = Join {
        member: streams.clone(),
        epoch: 0,
        spec,
    };
    let again = join.clone();
    world
        .event(|coordinator, group, now, effects| coordinator.join(now, group, join, effects))
        .unwrap();
    world.settle();
    assert_eq!(world.clients[&beats].held.len(), 3);
    let told = world.event(|coordinator, group, now, effects| {
        coordinator.join(now, group, again, effects).unwrap();
        effects.notices.clone()
    });
    let [(_, _, Notice::Assigned(assignment))] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!(assignment.owned.len(), 3);
    let taken = world.send(&World::full(&streams, 0, &[]));
    assert!(matches!(taken, Err(GroupError::Invalid(_))));
    world
        .event(|coordinator, group, now, effects| coordinator.leave(now, group, &streams, effects))
        .unwrap();
    world.settle();
    world.check_balanced();
}

#[test]
fn a_heartbeat_that_wants_too_much_is_refused_or_bounded() {
    let mut world = World::new(&[2]);
    let full = || World::full(&member("m"), 0, &[]);
    let names = (0..10_000).map(|number| format!("t{number}").into());
    let many = ConsumerHeartbeat {
        topics: Some(names.collect()),
        ..full()
    };
    assert!(matches!(world.send(&many), Err(GroupError::Invalid(_))));
    let pattern = ConsumerHeartbeat {
        pattern: Some("(a{200}){200}".into()),
        ..full()
    };
    assert!(matches!(world.send(&pattern), Err(GroupError::Pattern(_))));
    let assignor = ConsumerHeartbeat {
        assignor: Some("magic".into()),
        ..full()
    };
    let refused = world.send(&assignor);
    assert!(matches!(refused, Err(GroupError::UnknownAssignor(_))));
    // Nothing of that has left a group behind.
    assert!(world.coordinator.list().is_empty());
    let slow = ConsumerHeartbeat {
        rebalance_timeout: Some(Duration::from_millis(i32::MAX as u64)),
        assignor: Some("range".into()),
        pattern: Some("".into()),
        topics: Some(BTreeSet::new()),
        ..full()
    };
    assert_eq!(world.send(&slow).unwrap().assignment, Some(Vec::new()));
    let spec = world.spec(&member("m"));
    assert_eq!(spec.rebalance_timeout, Duration::from_secs(3600));
    assert_eq!(spec.assignor, Assignor::Range);
    // What it says that it holds does not make it hold that.
    let greedy = ConsumerHeartbeat {
        epoch: 1,
        owned: Some((0..2).map(partition).collect()),
        ..slow
    };
    assert_eq!(world.send(&greedy).unwrap().assignment, Some(Vec::new()));
}

#[test]
fn a_group_takes_so_many_members_and_those_may_go_on() {
    let mut world = World::new(&[1]);
    let mut newest = 0;
    for number in 0..1000 {
        let id = member(&format!("m{number}"));
        newest = world.send(&World::full(&id, 0, &[])).unwrap().epoch;
    }
    let one_more = world.send(&World::full(&member("m"), 0, &[]));
    assert!(matches!(one_more, Err(GroupError::Full { .. })));
    let goes_on = world.send(&World::quiet(&member("m999"), newest));
    assert!(goes_on.is_ok());
}

#[test]
fn under_any_churn_no_partition_is_processed_twice_and_in_the_end_all_are() {
    for seed in 0..40 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut world = World::new(&[5, 3]);
        for _ in 0..400 {
            let ids = world.ids();
            let chosen = (!ids.is_empty()).then(|| ids[random.random_range(0..ids.len())].clone());
            match (random.random_range(0..24), chosen) {
                (0, _) if ids.len() < 6 => drop(world.start(None)),
                (1, _) if ids.len() < 6 => drop(world.start(Some("static"))),
                (2, Some(id)) => {
                    let comes_back = world.clients[&id].instance.is_some() && random.random();
                    drop(world.depart(&id, comes_back));
                }
                // It dies without a word.
                (3, Some(id)) => drop(world.clients.remove(&id)),
                (4, _) => world.fail_over(),
                (5, _) => {
                    world.topics = topics(&[random.random_range(3..8), random.random_range(0..5)]);
                    let topics = Arc::clone(&world.topics);
                    world.event(|coordinator, _, now, effects| {
                        coordinator.topics_changed(now, topics, effects);
                    });
                }
                (6..8, Some(id)) => world.beat(&id, true),
                (8..16, Some(id)) => world.beat(&id, false),
                (16..22, Some(id)) => world.reconcile(&id),
                _ => world.pass(Duration::from_millis(random.random_range(0..3000))),
            }
            world.check_single_owners();
        }
        for _ in 0..60 {
            world.settle();
            world.pass(Duration::from_secs(1));
        }
        if world.clients.is_empty() {
            world.start(None);
        }
        world.settle();
        world.check_balanced();
    }
}
