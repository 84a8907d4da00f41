//! Members that behave, and some that do not, against a coordinator that fails over at any time.

use std::{collections::BTreeMap, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{Join, Spec};
use crate::groups::{
    coordinator::Notice,
    names::{GroupError, MemberId},
};

mod world;

use self::world::{Client, REBALANCE, World};

#[test]
fn one_joins_or_leaves_a_hundred_and_nobody_else_hears_of_it() {
    let mut world = World::new(&[300]);
    for _ in 0..100 {
        world.start(None);
        world.settle();
    }
    world.check_balanced();
    let before: BTreeMap<_, _> = world
        .ids()
        .into_iter()
        .map(|id| (id.clone(), world.clients[&id].held.clone()))
        .collect();
    let new = world.start(None);
    let told = world.clients.values().filter(|c| c.inbox.is_some()).count();
    // The new one, and the two that give.
    assert_eq!(told, 3);
    world.settle();
    world.check_balanced();
    assert_eq!(world.clients[&new].held.len(), 2);
    for (id, held) in &before {
        let now = &world.clients[id].held;
        assert!(now.is_subset(held), "{id} was given something");
    }
    world.leave(&new);
    let told = world.clients.values().filter(|c| c.inbox.is_some()).count();
    assert_eq!(told, 2);
    world.settle();
    world.check_balanced();
}

#[test]
fn who_subscribes_to_nothing_is_refused() {
    let mut world = World::new(&[2]);
    let join = Join {
        member: MemberId::new("m").unwrap(),
        epoch: 0,
        spec: Spec {
            pattern: None,
            ..World::spec(None)
        },
    };
    let joined = world.event(
        |coordinator, group, now, effects| coordinator.join(now, group, join, effects),
        |_| None,
    );
    assert!(matches!(joined, Err(GroupError::Invalid(_))));
}

#[test]
fn a_partition_is_given_only_after_its_owner_let_go_or_was_timed_out() {
    let mut world = World::new(&[2]);
    let first = world.start(None);
    world.settle();
    let held: Vec<_> = world.clients[&first].held.iter().copied().collect();
    let second = world.start(None);
    world.see(&second);
    assert!(world.clients[&second].held.is_empty());
    world.see(&first);
    let gone = *held
        .iter()
        .find(|p| !world.clients[&first].held.contains(p))
        .unwrap();
    let epoch = world.clients[&first].epoch;
    // What it has read it may still say while it lets go.
    assert!(world.commits(&first, epoch, gone));
    assert!(!world.commits(&second, epoch, gone));
    world.let_go(&first);
    world.see(&second);
    assert!(world.clients[&second].held.contains(&gone));
    assert!(!world.commits(&first, epoch, gone));
    let epoch = world.clients[&second].epoch;
    assert!(world.commits(&second, epoch, gone));
    // The first is heard of no more.
    while world.clients.contains_key(&first) {
        world.heartbeat(&second);
        world.pass(Duration::from_secs(1));
        world.check_single_owners();
    }
    world.settle();
    assert_eq!(world.clients[&second].held.len(), 2);
}

#[test]
fn who_does_not_let_go_in_time_is_put_out() {
    let mut world = World::new(&[2]);
    let first = world.start(None);
    world.settle();
    let second = world.start(None);
    for _ in 0..REBALANCE.as_secs() {
        world.see(&second);
        for id in [&first, &second] {
            world.heartbeat(id);
        }
        assert!(world.clients[&second].held.is_empty());
        world.pass(Duration::from_secs(1));
    }
    assert!(matches!(
        world.clients[&first].inbox,
        Some(Notice::Fenced(_))
    ));
    // It may not have heard of it: until it must know by itself, nobody gets what it had.
    while world.clients.contains_key(&first) {
        assert!(world.clients[&second].held.is_empty());
        world.heartbeat(&second);
        world.pass(Duration::from_secs(1));
        world.see(&second);
        world.check_single_owners();
    }
    assert_eq!(world.clients[&second].held.len(), 2);
}

#[test]
fn a_commit_from_before_a_partition_was_given_away_and_back_is_refused() {
    let mut world = World::new(&[2]);
    let first = world.start(None);
    world.settle();
    let old = world.clients[&first].epoch;
    let held = world.clients[&first].held.clone();
    let second = world.start(None);
    world.settle();
    let moved = *world.clients[&second].held.first().unwrap();
    world.leave(&second);
    world.settle();
    assert_eq!(world.clients[&first].held, held);
    assert!(!world.commits(&first, old, moved));
    let kept = *held.iter().find(|p| **p != moved).unwrap();
    assert!(world.commits(&first, old, kept));
    let new = world.clients[&first].epoch;
    assert!(world.commits(&first, new, moved));
}

#[test]
fn one_with_an_instance_id_comes_back_to_what_it_had_and_its_other_self_is_put_out() {
    let mut world = World::new(&[8]);
    let old = world.start(Some("a"));
    let others = [world.start(None), world.start(None), world.start(None)];
    world.settle();
    let held = world.clients[&old].held.clone();
    let before: Vec<_> = others.iter().map(|id| world.clients[id].epoch).collect();
    let new = world.start(Some("a"));
    assert!(matches!(
        world.clients[&old].inbox,
        Some(Notice::Fenced(GroupError::Replaced(_)))
    ));
    world.settle();
    assert_eq!(world.clients[&new].held, held);
    let after: Vec<_> = others.iter().map(|id| world.clients[id].epoch).collect();
    assert_eq!(before, after);
}

#[test]
fn topics_and_partitions_that_come_later_are_given_out() {
    let mut world = World::new(&[2]);
    let (first, second) = (world.start(None), world.start(None));
    world.settle();
    for partitions in [&[4][..], &[4, 6]] {
        world.change_topics(partitions);
        world.settle();
        world.check_balanced();
    }
    assert_eq!(world.clients[&first].held.len(), 5);
    assert_eq!(world.clients[&second].held.len(), 5);
}

#[test]
fn a_failover_moves_nothing() {
    let mut world = World::new(&[20, 7]);
    for _ in 0..6 {
        world.start(None);
        world.settle();
    }
    let held = |world: &World| {
        let clients = world.clients.iter();
        let held: Vec<_> = clients
            .map(|(id, c)| (id.clone(), c.held.clone()))
            .collect();
        held
    };
    let before = held(&world);
    for _ in 0..3 {
        world.fail_over(false);
        world.settle();
        assert_eq!(held(&world), before);
    }
    let members = world.ids();
    for id in &members {
        let partition = *world.clients[id].held.first().unwrap();
        let epoch = world.clients[id].epoch;
        assert!(world.commits(id, epoch, partition));
    }
}

/// What comes next of a group, by luck.
fn step(world: &mut World, random: &mut SmallRng) {
    let ids = world.ids();
    let chosen = (!ids.is_empty()).then(|| ids[random.random_range(0..ids.len())].clone());
    match (random.random_range(0..30), chosen) {
        (0, _) if ids.len() < 6 => drop(world.start(None)),
        (1, _) if ids.len() < 6 => drop(world.start(Some("static"))),
        (2, Some(id)) => world.leave(&id),
        // It dies without a word.
        (3, Some(id)) => drop(world.clients.remove(&id)),
        (4, Some(id)) => drop(world.join(&id)),
        (5, _) => world.fail_over(random.random()),
        (6, _) => {
            world.change_topics(&[random.random_range(3..8), random.random_range(0..5)]);
        }
        (7..10, Some(id)) => world.heartbeat(&id),
        (10..14, Some(id)) => world.see(&id),
        (14..18, Some(id)) => world.let_go(&id),
        (18..22, Some(id)) => world.work(&id, random.random_range(1..4)),
        (22..24, _) if !world.sent.is_empty() => {
            world.arrive(random.random_range(0..world.sent.len()));
        }
        (24..27, _) => world.store(random.random_range(1..4)),
        _ => world.pass(Duration::from_millis(random.random_range(0..1000))),
    }
    // One that takes another one's place knows that there is none.
    let replaced = |c: &Client| matches!(c.inbox, Some(Notice::Fenced(GroupError::Replaced(_))));
    world.clients.retain(|_, client| !replaced(client));
    world.check_single_owners();
}

#[test]
fn under_any_churn_no_partition_is_processed_twice_no_offset_goes_back_and_in_the_end_all_are() {
    for seed in 0..400 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut world = World::new(&[5, 3]);
        world.is_slow = seed % 2 == 1;
        for _ in 0..400 {
            step(&mut world, &mut random);
        }
        for _ in 0..60 {
            for id in world.ids() {
                world.heartbeat(&id);
            }
            world.settle();
            world.pass(Duration::from_secs(1));
            world.check_single_owners();
        }
        if world.clients.is_empty() {
            world.start(None);
            world.settle();
        }
        world.check_balanced();
    }
}
