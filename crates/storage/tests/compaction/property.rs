//! Any order of things.

use proptest::prelude::*;
use quipu_model::{Offset, batch::Compression};

use super::subject::{New, Subject};

#[derive(Clone, Debug)]
enum Op {
    Append {
        records: Vec<New>,
        codec: Compression,
        producer: i64,
    },
    Control,
    Checkpoint,
    Purge,
    Steps(usize),
    Compact,
    Wait(u64),
    Read {
        from: u64,
        max_bytes: usize,
    },
    Trim(u64),
    Reopen,
    Crash(u64),
}

fn record() -> impl Strategy<Value = New> {
    let key = prop_oneof![30 => (0..12_u8).prop_map(Some), 1 => Just(None)];
    let value = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..400).prop_map(Some),
        1 => Just(None)
    ];
    (key, value)
}

fn op() -> impl Strategy<Value = Op> {
    let codec = prop::sample::select(&Compression::ALL[..]);
    let append = (prop::collection::vec(record(), 1..12), codec, -1..4_i64);
    prop_oneof![
        20 => append.prop_map(|(records, codec, producer)| Op::Append { records, codec, producer }),
        1 => Just(Op::Control),
        2 => Just(Op::Checkpoint),
        3 => Just(Op::Purge),
        4 => (1..30_usize).prop_map(Op::Steps),
        4 => Just(Op::Compact),
        2 => (1..15_000_u64).prop_map(Op::Wait),
        4 => (any::<u64>(), 0..5000_usize).prop_map(|(from, max_bytes)| Op::Read { from, max_bytes }),
        1 => any::<u64>().prop_map(Op::Trim),
        1 => Just(Op::Reopen),
        2 => any::<u64>().prop_map(Op::Crash),
    ]
}

fn run(subject: &mut Subject, op: Op) {
    let offset_in = |subject: &Subject, any: u64| {
        let (start, end) = (subject.start(), subject.log.state().end_offset);
        Offset::new(start.get() + any % (end.since(start) + 1))
    };
    match op {
        Op::Append {
            records,
            codec,
            producer,
        } => subject.append(&records, codec, producer),
        Op::Control => subject.control(),
        Op::Checkpoint => subject.store.as_ref().unwrap().checkpoint().unwrap(),
        Op::Purge => subject.purge(),
        Op::Steps(steps) => {
            let _ = (0..steps).take_while(|_| subject.hand.step()).count();
            subject.check();
        }
        Op::Compact => {
            subject.compact();
            subject.check();
        }
        Op::Wait(ms) => subject.clock.advance(std::time::Duration::from_millis(ms)),
        Op::Read { from, max_bytes } => {
            let from = offset_in(subject, from);
            let all = subject.read(subject.start(), 1 << 20);
            let later: Vec<_> = all.into_iter().filter(|r| r.offset >= from).collect();
            assert_eq!(subject.read(from, max_bytes), later);
        }
        Op::Trim(before) => {
            let before = offset_in(subject, before);
            subject.log.trim(before).unwrap();
        }
        Op::Reopen => {
            subject.reopen();
            subject.check();
        }
        Op::Crash(seed) => {
            subject.crash(seed);
            subject.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_comes_to_the_same(
        seed in any::<u64>(),
        // A few keys a pass, or all of them.
        memory_bytes in prop_oneof![Just(100_usize), Just(1 << 20)],
        ops in prop::collection::vec(op(), 1..80),
    ) {
        let mut subject = Subject::new(seed, memory_bytes);
        for op in ops {
            run(&mut subject, op);
        }
        subject.compact();
        subject.check();
        subject.crash(seed);
        subject.compact();
        subject.check();
        subject.check_compact();
    }
}
