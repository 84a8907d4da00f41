use std::collections::{BTreeMap, BTreeSet, HashMap};

use quipu_model::{PartitionId, PartitionKey, TopicId};

use super::{Assignor, Candidate, assign};
use crate::groups::{
    names::MemberId,
    topics::{TopicView, TopicsView},
};

type Assigned = BTreeMap<PartitionKey, MemberId>;

fn topic(number: u8) -> TopicId {
    TopicId::from_bytes([number; 16])
}

/// Topics 1 and on with so many partitions; partition p of each is led from rack "r(p mod 3)".
fn topics(partitions: &[u32]) -> TopicsView {
    let topics = (1..).zip(partitions).map(|(number, count)| {
        let racks = (0..*count).map(|partition| [format!("r{}", partition % 3).into()].into());
        let view = TopicView {
            id: topic(number),
            racks: racks.collect(),
        };
        (format!("t{number}").into(), view)
    });
    TopicsView::new(topics)
}

#[derive(Clone)]
struct Member {
    id: MemberId,
    rack: String,
    subscribed: BTreeSet<TopicId>,
}

fn member(number: usize, subscribed: &[u8]) -> Member {
    Member {
        id: MemberId::new(&format!("m{number:03}")).unwrap(),
        rack: format!("r{}", number % 3),
        subscribed: subscribed.iter().map(|number| topic(*number)).collect(),
    }
}

fn run(assignor: Assignor, members: &[Member], topics: &TopicsView, before: &Assigned) -> Assigned {
    let candidates = members.iter().map(|member| Candidate {
        id: &member.id,
        name: member.id.as_str(),
        rack: &member.rack,
        subscribed: &member.subscribed,
    });
    let candidates: Vec<_> = candidates.collect();
    let owner = |partition| before.get(&partition).cloned();
    assign(assignor, &candidates, topics, owner)
}

fn loads(assigned: &Assigned) -> HashMap<&MemberId, usize> {
    let mut loads = HashMap::new();
    for member in assigned.values() {
        *loads.entry(member).or_default() += 1;
    }
    loads
}

fn changed(before: &Assigned, after: &Assigned) -> usize {
    let moved = |(key, member): &(&PartitionKey, &MemberId)| before.get(key) != Some(*member);
    after.iter().filter(moved).count()
}

#[test]
fn one_of_a_hundred_comes_or_goes_and_only_its_share_moves() {
    for assignor in [Assignor::Uniform, Assignor::Rack] {
        let topics = topics(&[300]);
        let mut members: Vec<_> = (0..100).map(|number| member(number, &[1])).collect();
        let first = run(assignor, &members, &topics, &Assigned::new());
        assert_eq!(first.len(), 300);
        assert!(loads(&first).values().all(|load| *load == 3));
        assert_eq!(run(assignor, &members, &topics, &first), first);

        members.push(member(100, &[1]));
        let joined = run(assignor, &members, &topics, &first);
        assert_eq!(changed(&first, &joined), 2);
        members.remove(50);
        let left = run(assignor, &members, &topics, &joined);
        assert!(changed(&joined, &left) <= 3);
        assert!(loads(&left).values().all(|load| *load == 3));
    }
}

#[test]
fn everything_is_assigned_evenly_among_those_who_want_it_whatever_they_want() {
    let topics = topics(&[7, 1, 12, 5]);
    let wants: [&[u8]; 6] = [&[1], &[1, 2, 3], &[3], &[3, 4], &[2, 9], &[]];
    // Every subset of the members, one after the other, each from where the last one got to.
    for assignor in Assignor::ALL {
        let mut before = Assigned::new();
        for subset in 0_usize..64 {
            let chosen = (0..6).filter(|at| (subset ^ (subset >> 1)) & (1 << at) != 0);
            let members: Vec<_> = chosen.map(|at| member(at, wants[at])).collect();
            let assigned = run(assignor, &members, &topics, &before);
            let wanted: BTreeSet<_> = members.iter().flat_map(|m| &m.subscribed).collect();
            let views = wanted.into_iter().filter_map(|id| topics.by_id(*id));
            let all: Vec<_> = views.flat_map(TopicView::partitions).collect();
            let found: Vec<_> = assigned.keys().copied().collect();
            assert_eq!(found, all, "{assignor} {subset}");
            let by_id: HashMap<_, _> = members.iter().map(|m| (&m.id, m)).collect();
            for (key, owner) in &assigned {
                assert!(by_id[owner].subscribed.contains(&key.topic));
            }
            if assignor != Assignor::Range {
                let loads = loads(&assigned);
                let load = |m: &Member| loads.get(&m.id).copied().unwrap_or_default();
                for (key, owner) in &assigned {
                    let others = members.iter().filter(|m| m.subscribed.contains(&key.topic));
                    let fewest = others.map(load).min().unwrap_or_default();
                    assert!(loads[owner] <= fewest + 1, "{assignor} {subset}: {loads:?}");
                }
            }
            assert_eq!(run(assignor, &members, &topics, &assigned), assigned);
            before = assigned;
        }
    }
}

#[test]
fn range_keeps_partitions_of_the_same_number_together() {
    let topics = topics(&[5, 5]);
    let members = [member(2, &[1, 2]), member(1, &[1, 2])];
    let assigned = run(Assignor::Range, &members, &topics, &Assigned::new());
    for number in 0..5 {
        let of = |id| {
            let partition = PartitionId::new(number);
            assigned[&PartitionKey {
                topic: topic(id),
                partition,
            }]
                .as_str()
        };
        assert_eq!(of(1), of(2));
        assert_eq!(of(1), if number < 3 { "m001" } else { "m002" });
    }
}

#[test]
fn by_rack_partitions_go_to_members_near_their_leaders() {
    let topics = topics(&[12]);
    let members = [member(0, &[1]), member(1, &[1]), member(2, &[1])];
    let assigned = run(Assignor::Rack, &members, &topics, &Assigned::new());
    for (key, owner) in &assigned {
        let near = format!("m{:03}", key.partition.get() % 3);
        assert_eq!(owner.as_str(), near);
    }
    assert!(loads(&assigned).values().all(|load| *load == 4));
}

#[test]
fn names_of_assignors() {
    for assignor in Assignor::ALL {
        assert_eq!(assignor.name().parse(), Ok(assignor));
    }
    assert!("sticky".parse::<Assignor>().is_err());
}
