//! Members that do as Kafka's clients do, against a coordinator that may fail over, and all that may happen in each phase.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use quipu_model::{PartitionId, PartitionKey, TimestampMs, TopicId};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{ClassicJoin, ClassicMember, ClassicSync, Joined, Protocol, Reply, Synced, Ticket};
use crate::groups::{
    coordinator::{Commit, Committer, Coordinator, Effects, Limits},
    names::{GroupError, GroupId, MemberId, Moment},
    offsets::{Committed, Place},
    records::Stored,
};

mod world;

use self::world::{Stage, World};

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(100);

#[test]
fn those_who_come_together_make_one_generation() {
    let world = World::with_three();
    let described = world.coordinator.describe(&world.group).unwrap();
    assert_eq!(described.members.len(), 3);
    assert_eq!((described.epoch, &*described.assignor), (1, "range"));
    assert_eq!(
        world.clients.values().filter(|client| client.leads).count(),
        1
    );
}

/// Brings a settled group of three into a state, with clients that do nothing by themselves from then on.
fn in_state(state: &str) -> World {
    let mut world = World::with_three();
    match state {
        "Stable" => {}
        "PreparingRebalance" => {
            world.start("d", None);
            world.run_to(state);
        }
        "CompletingRebalance" => {
            // A leader that joins again and does not sync.
            let leader = world.leader();
            world.client(leader).metadata = Bytes::from_static(b"m2");
            world.join(leader);
            while world.state() != state {
                world.now += STEP;
                for name in ["a", "b", "c"] {
                    if name != leader {
                        world.act(name);
                    }
                }
            }
        }
        other => panic!("{other}"),
    }
    world
}

#[test]
fn whatever_happens_in_whatever_state_those_that_are_left_settle() {
    for state in ["PreparingRebalance", "CompletingRebalance", "Stable"] {
        for event in 0..9 {
            let mut world = in_state(state);
            assert_eq!(world.state(), state);
            let (leader, follower) = (world.leader(), world.follower());
            match event {
                0 => world.start("e", None),
                1 => assert_eq!(world.leave(follower), Ok(())),
                2 => assert_eq!(world.leave(leader), Ok(())),
                3 => world.client(follower).silent = true,
                4 => world.client(leader).silent = true,
                5 => {
                    world.client(follower).metadata = Bytes::from_static(b"m3");
                    world.join(follower);
                }
                6 => world.start("e", Some("i")),
                7 => world.fail_over(false),
                _ => {
                    // The answer is lost: the client asks again, with the same.
                    world.client(follower).stage = Stage::Outside;
                }
            }
            world.run(Duration::from_secs(60));
            world.assert_settled();
            let left = world
                .clients
                .values()
                .filter(|client| !client.silent)
                .count();
            let described = world.coordinator.describe_classic(&world.group).unwrap();
            assert_eq!(described.members.len(), left, "{state}, {event}");
        }
    }
}

#[test]
fn when_all_have_left_nothing_is_kept() {
    for state in ["PreparingRebalance", "CompletingRebalance", "Stable"] {
        for silent in [false, true] {
            let mut world = in_state(state);
            for name in world.clients.keys().copied().collect::<Vec<_>>() {
                match silent {
                    true => world.client(name).silent = true,
                    // One may have been told an id only, or not even that.
                    false => drop(world.leave(name)),
                }
            }
            world.run(Duration::from_secs(60));
            assert_eq!(world.coordinator.list(), []);
            world.fail_over(true);
            assert_eq!(world.coordinator.list(), []);
        }
    }
}

#[test]
fn what_comes_from_an_earlier_generation_or_from_nobody_is_refused() {
    let mut world = World::with_three();
    let old = world.member("a");
    world.start("d", None);
    world.run(Duration::from_secs(5));
    world.assert_settled();
    let stale = Err(GroupError::StaleGeneration { given: 1 });
    assert_eq!(world.commit(old.clone()), stale);
    let beat = world.event(|c, group, now, _| c.heartbeat_classic(now, group, &old));
    assert_eq!(beat, stale);
    let newest = world.member("a");
    assert_eq!(world.commit(newest.clone()), Ok(()));
    let nobody = ClassicMember {
        id: MemberId::new("nobody").unwrap(),
        ..newest
    };
    let unknown = Err(GroupError::UnknownMember(nobody.id.clone()));
    assert_eq!(world.commit(nobody), unknown);
}

#[test]
fn nobody_commits_between_two_generations_but_those_of_the_one_before_may_until_then() {
    let mut world = in_state("PreparingRebalance");
    let member = world.member("a");
    assert_eq!(world.commit(member), Ok(()));
    let mut world = in_state("CompletingRebalance");
    let follower = world.follower();
    world.act(follower);
    let member = world.member(follower);
    assert_eq!(world.commit(member), Err(GroupError::RebalanceInProgress));
}

#[test]
fn who_comes_without_an_id_is_told_one_and_it_is_waited_for_only_so_long() {
    let mut world = World::new();
    world.start("a", None);
    world.join("a");
    let Stage::Joins(ticket) = world.clients["a"].stage else {
        panic!("it does not join")
    };
    let reply = world.replies[&ticket].clone();
    assert!(matches!(
        reply,
        Reply::Refused(GroupError::MemberIdRequired(_))
    ));
    // It never comes again.
    world.client("a").silent = true;
    world.run(SESSION + STEP);
    assert_eq!(world.coordinator.list(), []);
    // What it was told is void by now.
    world.client("a").silent = false;
    world.run(Duration::from_secs(3));
    world.assert_settled();
}

#[test]
fn a_member_that_speaks_no_common_protocol_is_refused_and_the_others_go_on() {
    let mut world = World::with_three();
    world.start("d", None);
    world.client("d").protocols = vec!["other"];
    let (ticket, join) = (world.ticket(), world.wish("d"));
    world.event(|c, group, now, effects| c.join_classic(now, group, (ticket, join), effects));
    assert_eq!(
        world.replies[&ticket],
        Reply::Refused(GroupError::OtherProtocol)
    );
    // One of another type, and one that offers nothing.
    for (kind, count) in [("connect", 2), ("consumer", 0)] {
        world.client("d").protocols = vec!["range", "sticky"];
        let (ticket, mut join) = (world.ticket(), world.wish("d"));
        join.protocol_type = kind.into();
        join.protocols.truncate(count);
        world.event(|c, group, now, effects| c.join_classic(now, group, (ticket, join), effects));
        assert_eq!(
            world.replies[&ticket],
            Reply::Refused(GroupError::OtherProtocol)
        );
    }
    world.clients.remove("d");
    world.run(Duration::from_secs(5));
    world.assert_settled();
    assert_eq!(world.clients["a"].generation, 1);
    // One that speaks only the second one turns the others to it.
    world.start("d", None);
    world.client("d").protocols = vec!["sticky"];
    world.run(Duration::from_secs(5));
    world.assert_settled();
    let described = world.coordinator.describe_classic(&world.group).unwrap();
    assert_eq!(&*described.protocol, "sticky");
}

#[test]
fn a_static_member_that_starts_anew_gets_what_it_had_and_nobody_else_hears_of_it() {
    let mut world = World::new();
    for (name, instance) in [("a", "i"), ("b", "j"), ("c", "k")] {
        world.start(name, Some(instance));
    }
    world.run(Duration::from_secs(3));
    world.assert_settled();
    for name in ["a", "b", "c"] {
        let (old, had) = (world.member(name), world.clients[name].assigned.clone());
        let instance = old.instance.clone();
        world.run(Duration::from_secs(2));
        world.start(name, instance.as_deref());
        world.run(Duration::from_secs(5));
        world.assert_settled();
        assert_eq!(world.clients[name].assigned, had);
        assert_ne!(Some(&old.id), world.clients[name].id.as_ref());
        // The one before is fenced.
        let fenced = Err(GroupError::FencedInstance(instance.clone().unwrap()));
        assert_eq!(world.commit(old.clone()), fenced);
        let left = world.event(|c, group, now, effects| {
            c.leave_classic(now, group, (Some(&old.id), instance.as_deref()), effects)
        });
        assert_eq!(left, fenced);
        world.fail_over(true);
    }
    assert!(world.clients.values().all(|client| client.generation == 1));
    // It is sent away by its instance id alone.
    let left = world
        .event(|c, group, now, effects| c.leave_classic(now, group, (None, Some("i")), effects));
    assert_eq!(left, Ok(()));
    let unknown = world
        .event(|c, group, now, effects| c.leave_classic(now, group, (None, Some("i")), effects));
    assert_eq!(unknown, Err(GroupError::UnknownInstance("i".into())));
}

#[test]
fn a_static_member_keeps_its_place_until_its_session_ends() {
    let mut world = World::new();
    world.start("a", Some("i"));
    world.start("b", Some("j"));
    world.run(Duration::from_secs(3));
    world.client("b").silent = true;
    world.run(SESSION / 2);
    let count = |world: &World| {
        let described = world.coordinator.describe_classic(&world.group);
        described.unwrap().members.len()
    };
    assert_eq!(count(&world), 2);
    world.run(SESSION);
    assert_eq!(count(&world), 1);
    world.assert_settled();
}

#[test]
fn who_never_asks_for_its_part_is_out() {
    let mut world = World::with_three();
    world.start("d", None);
    while !matches!(world.clients["b"].stage, Stage::Joins(_)) {
        world.step();
    }
    // From now on it gives signs of life and nothing else.
    world.client("b").silent = true;
    world.client("b").generation = 2;
    world.run_to("Stable");
    let mut beats = 0;
    while world.heartbeat("b") != Err(GroupError::UnknownMember(world.member("b").id)) {
        world.run(Duration::from_secs(2));
        beats += 1;
        assert!(beats < 20, "it is still a member");
    }
    world.run(Duration::from_secs(10));
    world.assert_settled();
}

#[test]
fn members_and_what_they_say_are_bounded() {
    let mut world = World::new();
    world.start("a", None);
    let mut refused = 0;
    for _ in 0..1100 {
        let (ticket, mut join) = (world.ticket(), world.wish("a"));
        join.comes_again = false;
        world.event(|c, group, now, effects| c.join_classic(now, group, (ticket, join), effects));
        let reply = world.replies.get(&ticket);
        refused += usize::from(matches!(
            reply,
            Some(Reply::Refused(GroupError::Full { .. }))
        ));
    }
    assert_eq!(refused, 100);
    let mut world = World::new();
    world.start("a", None);
    for number in 0.. {
        let (ticket, mut join) = (world.ticket(), world.wish("a"));
        join.comes_again = false;
        join.protocols[0].metadata = Bytes::from(vec![0; 1 << 20]);
        world.event(|c, group, now, effects| c.join_classic(now, group, (ticket, join), effects));
        if let Some(Reply::Refused(GroupError::Full { .. })) = world.replies.get(&ticket) {
            break;
        }
        assert!(number < 10, "it takes in without a bound");
    }
    for timeout in [0, 999, 1_800_001] {
        let (ticket, mut join) = (world.ticket(), world.wish("a"));
        join.session_timeout = Duration::from_millis(timeout);
        world.event(|c, group, now, effects| c.join_classic(now, group, (ticket, join), effects));
        let reply = &world.replies[&ticket];
        assert!(
            matches!(reply, Reply::Refused(GroupError::SessionTimeout { .. })),
            "{reply:?}"
        );
    }
}

#[test]
fn clients_that_come_and_go_at_random_settle_whatever_fails() {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    for seed in 0..40 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut world = World::new();
        for _ in 0..60 {
            let name = NAMES[random.random_range(0..NAMES.len())];
            let known = world.clients.contains_key(name);
            match random.random_range(0..10) {
                0 => world.fail_over(random.random()),
                1 | 2 if known => drop(world.leave(name)),
                3 if known => {
                    let client = world.client(name);
                    client.silent = !client.silent;
                }
                // It ends without a word, and starts anew perhaps.
                4 if known => drop(world.clients.remove(name)),
                5 if known && world.clients[name].stage != Stage::Fenced => {
                    world.client(name).metadata = vec![random.random()].into();
                    world.client(name).stage = Stage::Outside;
                }
                _ if !known => {
                    let instance = (name < "c").then_some(name);
                    world.start(name, instance);
                }
                _ => {}
            }
            world.run(Duration::from_millis(random.random_range(100..5000)));
        }
        world.start("last", None);
        world.run(Duration::from_secs(90));
        world.assert_settled();
    }
}
