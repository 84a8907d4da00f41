use std::sync::mpsc;

use proptest::prelude::*;
use quipu_model::{PartitionId, TimestampMs, TopicId};

use super::{reader::WalReport, *};
use crate::{
    OpenError,
    io::{Disk, FaultyDisk, ManualClock, OpenMode, RealDisk, SystemClock, Threads},
};

const SMALL: WalConfig = WalConfig {
    file_bytes: 2048,
    max_bytes: 1 << 20,
};

fn record(index: u64, payload: Vec<u8>) -> WalRecord {
    let at = payload.len() / 2;
    let payload = Bytes::from(payload);
    WalRecord {
        key: PartitionKey {
            topic: TopicId::from_bytes([7; 16]),
            partition: PartitionId::new(1),
        },
        kind: RecordKind::Batch,
        log_id: LogId::new(1, index),
        base_offset: Offset::new(index * 10),
        payload: [payload.slice(..at), payload.slice(at..)],
    }
}

/// A payload that tells its index, of a length that follows from it.
fn payload(index: u64) -> Vec<u8> {
    let len = (index * 7919 % 900) as usize;
    index
        .to_le_bytes()
        .into_iter()
        .cycle()
        .take(8 + len)
        .collect()
}

fn numbered(index: u64) -> WalRecord {
    record(index, payload(index))
}

fn open(
    disk: &FaultyDisk,
    config: WalConfig,
    after: Lsn,
) -> Result<(Wal, WalReport, Vec<ReplayedRecord>), OpenError> {
    let clock = Arc::new(ManualClock::new(TimestampMs::new(0)));
    let mut records = Vec::new();
    let (wal, report) =
        UnrecoveredWal::open(Arc::new(disk.clone()), clock, config, OpenMode::Write)?.replay(
            after,
            &Threads,
            &mut |record| {
                records.push(record);
                Ok(())
            },
        )?;
    records.retain(|record| record.kind != RecordKind::Mark);
    Ok((wal, report, records))
}

/// The indexes of records, each checked to be what was written.
fn indexes(records: &[ReplayedRecord]) -> Vec<u64> {
    let indexes: Vec<u64> = records.iter().map(|r| r.log_id.index.get()).collect();
    for (record, index) in records.iter().zip(&indexes) {
        assert_eq!(record.payload, payload(*index));
        assert_eq!(record.base_offset, Offset::new(index * 10));
    }
    assert!(records.is_sorted_by(|a, b| a.lsn < b.lsn));
    indexes
}

type Outcome = mpsc::Receiver<Result<(), StorageFailure>>;

fn submit(wal: &Wal, records: Vec<WalRecord>) -> Outcome {
    let (send, outcome) = mpsc::channel();
    let done = Box::new(move |result| {
        // The test may have stopped to listen.
        let _ = send.send(result);
    });
    // A refused submission also answers through `done`.
    let _ = wal.submit(records, done);
    outcome
}

fn append(wal: &Wal, indexes: std::ops::Range<u64>) {
    for index in indexes {
        submit(wal, vec![numbered(index)]).recv().unwrap().unwrap();
    }
}

#[test]
fn what_was_submitted_comes_back_in_order() {
    let disk = FaultyDisk::new(1);
    let (wal, _, records) = open(&disk, SMALL, Lsn::default()).unwrap();
    assert!(records.is_empty());
    append(&wal, 0..5);
    submit(&wal, vec![numbered(5), numbered(6)])
        .recv()
        .unwrap()
        .unwrap();
    assert!(wal.flushed() >= wal.last_submitted());
    let mark = wal.last_submitted();
    submit(&wal, Vec::new()).recv().unwrap().unwrap();
    assert_eq!(wal.last_submitted(), mark);
    wal.close().unwrap();
    disk.crash();
    let (wal, report, records) = open(&disk, SMALL, Lsn::default()).unwrap();
    assert_eq!(indexes(&records), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(report.torn_bytes, 0);
    append(&wal, 7..9);
    wal.close().unwrap();
    let third = records[2].lsn;
    let (_, _, records) = open(&disk, SMALL, third).unwrap();
    assert_eq!(indexes(&records), [3, 4, 5, 6, 7, 8]);
}

#[test]
fn all_that_gathers_during_a_sync_is_made_durable_by_one() {
    let disk = FaultyDisk::new(1);
    let config = WalConfig {
        file_bytes: 1 << 20,
        ..SMALL
    };
    let (wal, _, _) = open(&disk, config, Lsn::default()).unwrap();
    append(&wal, 0..1);
    let (entered, has_entered) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    wal.submit(
        vec![numbered(1)],
        Box::new(move |result| {
            result.unwrap();
            entered.send(()).unwrap();
            released.recv().unwrap();
        }),
    )
    .unwrap();
    has_entered.recv().unwrap();
    let mut last = None;
    let mut order = Vec::new();
    for index in 2..500 {
        last = Some(submit(&wal, vec![numbered(index)]));
        order.push(wal.last_submitted());
    }
    assert!(order.is_sorted());
    let before = disk.file_bytes(file_path(1)).unwrap();
    release.send(()).unwrap();
    last.unwrap().recv().unwrap().unwrap();
    assert!(disk.file_bytes(file_path(1)).unwrap() != before);
    wal.close().unwrap();
    let (_, _, records) = open(&disk, config, Lsn::default()).unwrap();
    assert_eq!(indexes(&records), (0..500).collect::<Vec<_>>());
    // All frames of the gathered group carry the mark of the group before: the proof that one sync did it.
    let bytes = disk.file_bytes(file_path(1)).unwrap();
    let durable_to = |lsn: u64| {
        let mut found = None;
        for at in (64..bytes.len() - 72).step_by(8) {
            let header: [u8; 72] = bytes[at..at + 72].try_into().unwrap();
            if let Some(frame) = format::FrameHeader::decode(&header)
                && frame.lsn.get() == lsn
            {
                found = Some(frame.durable_to);
            }
        }
        found.unwrap()
    };
    let (first, last) = (records[2].lsn.get(), records[499].lsn.get());
    assert_eq!(durable_to(first), durable_to(last));
}

#[test]
fn the_log_lives_in_a_few_files_for_ever() {
    let disk = FaultyDisk::new(1);
    let (wal, _, _) = open(&disk, SMALL, Lsn::default()).unwrap();
    let mut most = 0;
    for index in 0..400 {
        append(&wal, index..index + 1);
        if index % 5 == 0 {
            wal.recycle(wal.flushed());
            assert_eq!(wal.live_bytes(), 0);
        }
        most = most.max(disk.list(Path::new(DIRECTORY)).unwrap().len());
    }
    assert!(most <= 16, "{most} files");
    let covered = wal.flushed();
    append(&wal, 400..403);
    assert!(wal.live_bytes() > 0);
    wal.close().unwrap();
    disk.crash();
    let (_, _, records) = open(&disk, SMALL, covered).unwrap();
    assert_eq!(indexes(&records), [400, 401, 402]);
}

#[test]
fn crashes_lose_nothing_acknowledged_and_keep_a_prefix_of_the_rest() {
    for seed in 0..60 {
        let mut disk = FaultyDisk::new(seed);
        let mut known: Vec<u64> = Vec::new();
        let mut next = 0;
        let mut covered = Lsn::default();
        for generation in 0..8 {
            let (wal, _, records) = open(&disk, SMALL, covered).unwrap();
            let found = indexes(&records);
            assert_eq!(found, known, "seed {seed} generation {generation}");
            let mut acknowledged = known.len();
            let mut outcomes = Vec::new();
            for step in 0..(seed + generation) % 7 {
                let count = 1 + (seed + step) % 3;
                let records = (next..next + count).map(numbered).collect();
                known.extend(next..next + count);
                next += count;
                let outcome = submit(&wal, records);
                if step % 2 == generation % 2 {
                    outcome.recv().unwrap().unwrap();
                    acknowledged = known.len();
                } else {
                    outcomes.push((outcome, known.len()));
                }
            }
            disk = disk.fork(seed * 100 + generation);
            // Those that were answered before the fork count; later ones may, too, but the copy does not know them.
            drop(outcomes);
            disk.crash();
            drop(wal);
            let looked = disk.fork(0);
            let (wal, _, records) = open(&looked, SMALL, covered).unwrap();
            let found = indexes(&records);
            assert!(found.len() >= acknowledged, "seed {seed}: lost");
            assert_eq!(found, known[..found.len()], "seed {seed}: not a prefix");
            known.truncate(found.len());
            if generation == 4
                && let Some(last) = records.last()
            {
                covered = last.lsn;
                known.clear();
            }
            drop(wal);
        }
    }
}

/// Runs a workload against a disk on which a call fails; then crashes in several ways and looks.
fn survive(plan: impl Fn(&FaultyDisk)) -> bool {
    let disk = FaultyDisk::new(3);
    let (wal, _, _) = open(&disk, SMALL, Lsn::default()).unwrap();
    plan(&disk);
    let (told, failures) = mpsc::channel();
    wal.on_failure(Box::new(move |failure| told.send(failure).unwrap()));
    let mut acknowledged = 0;
    for index in 0..12 {
        match submit(&wal, vec![numbered(index)]).recv().unwrap() {
            Ok(()) => {
                assert_eq!(acknowledged, index, "nothing after a failure");
                acknowledged += 1;
            }
            Err(_) => assert!(wal.failure().is_some()),
        }
    }
    let failed = wal.close().is_err();
    assert_eq!(failures.try_iter().count(), usize::from(failed));
    for seed in 0..8 {
        let crashed = disk.fork(seed);
        if seed > 0 {
            crashed.crash();
        }
        let (wal, _, records) = open(&crashed, SMALL, Lsn::default()).unwrap();
        let found = indexes(&records);
        assert!(found.len() as u64 >= acknowledged);
        assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>());
        // What was served once stays, whatever happens next.
        drop(wal);
        crashed.crash();
        let (_, _, again) = open(&crashed, SMALL, Lsn::default()).unwrap();
        assert_eq!(indexes(&again), found);
    }
    failed
}

#[test]
fn no_failing_sync_loses_what_was_acknowledged() {
    let failed = (1..60).filter(|n| survive(|disk| disk.fail_sync_at(*n)));
    assert!(failed.count() > 10);
}

#[test]
fn no_failing_write_loses_what_was_acknowledged() {
    let failed = (1..60).filter(|n| survive(|disk| disk.fail_write_at(*n)));
    assert!(failed.count() > 10);
}

#[test]
fn no_flipped_bit_shortens_what_was_synced() {
    let disk = FaultyDisk::new(1);
    let (wal, _, _) = open(&disk, SMALL, Lsn::default()).unwrap();
    append(&wal, 0..8);
    wal.close().unwrap();
    let (wal, _, _) = open(&disk, SMALL, Lsn::default()).unwrap();
    append(&wal, 8..10);
    wal.close().unwrap();
    let (mut damaged, mut unharmed) = (0, 0);
    for name in disk.list(Path::new(DIRECTORY)).unwrap() {
        let path = Path::new(DIRECTORY).join(name);
        for byte in 0..disk.file_bytes(&path).unwrap().len() as u64 {
            let flipped = disk.fork(0);
            flipped.flip_bit(&path, byte, (byte % 8) as u8);
            let before = flipped.writes();
            match open(&flipped, SMALL, Lsn::default()) {
                Ok((_, _, records)) => {
                    assert_eq!(indexes(&records), (0..10).collect::<Vec<_>>());
                    unharmed += 1;
                }
                Err(OpenError::Damaged { path: named, .. }) => {
                    assert_eq!(named, path, "byte {byte}");
                    assert_eq!(flipped.writes(), before);
                    damaged += 1;
                }
                Err(other) => panic!("byte {byte} of {}: {other}", path.display()),
            }
        }
    }
    assert!(damaged > 1000 && unharmed > 1000, "{damaged} {unharmed}");
}

#[test]
fn the_mark_of_an_idle_log_is_durable_before_the_next_file_begins() {
    let disk = FaultyDisk::new(1);
    let (wal, _, _) = open(&disk, SMALL, Lsn::default()).unwrap();
    append(&wal, 0..1);
    let marked = format::frame_len(payload(0).len() as u64) as usize + format::FILE_HEADER_LEN;
    while disk.file_bytes(file_path(1)).unwrap()[marked] == 0 {
        std::thread::yield_now();
    }
    let large = record(1, vec![1; 1900]);
    submit(&wal, vec![large]).recv().unwrap().unwrap();
    for seed in 0..20 {
        let crashed = disk.fork(seed);
        crashed.crash();
        let (_, _, records) = open(&crashed, SMALL, Lsn::default()).unwrap();
        assert_eq!(records.len(), 2);
    }
}

#[test]
fn a_file_is_kept_until_its_successor_holds_a_durable_record() {
    let disk = FaultyDisk::new(1);
    disk.create_dir_all(Path::new(DIRECTORY)).unwrap();
    let live = |sequence, first| shared::LiveFile {
        file: spares::allocate(&disk, sequence, 2048).unwrap(),
        first: Lsn(first),
    };
    let mut state = shared::State {
        live: [live(1, 1), live(2, 8)].into(),
        flushed: Lsn(7),
        ..shared::State::default()
    };
    state.recycle(Lsn(7));
    assert!(state.retired.is_empty());
    state.flushed = Lsn(8);
    state.recycle(Lsn(6));
    assert!(state.retired.is_empty());
    state.recycle(Lsn(7));
    assert_eq!(state.retired.len(), 1);
    state.recycle(Lsn(8));
    assert_eq!(state.live.len(), 1, "the file that is written to stays");
}

#[test]
fn a_checkpoint_that_is_ahead_of_the_log_is_damage() {
    let disk = FaultyDisk::new(1);
    let lost = open(&disk, SMALL, Lsn::new(1));
    assert!(matches!(lost, Err(OpenError::Damaged { .. })));
    let (wal, _, _) = open(&disk, SMALL, Lsn::default()).unwrap();
    append(&wal, 0..3);
    wal.close().unwrap();
    let last = wal.flushed();
    drop(open(&disk, SMALL, last).unwrap());
    let lost = open(&disk, SMALL, last.next());
    assert!(matches!(lost, Err(OpenError::Damaged { .. })));
}

#[test]
fn a_file_of_a_newer_version_is_left_alone() {
    let disk = FaultyDisk::new(1);
    disk.create_dir_all(Path::new(DIRECTORY)).unwrap();
    let file = disk
        .open(&file_path(1), crate::io::OpenMode::CreateNew)
        .unwrap();
    let mut header = format::encode_file_header(1, None);
    header[8] = 2;
    let crc = crc32fast::hash(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    file.write_at(quipu_model::Position::new(0), &[&header])
        .unwrap();
    let refused = open(&disk, SMALL, Lsn::default());
    assert!(matches!(
        refused,
        Err(OpenError::NewerFormat {
            found: 2,
            supported: 1,
            ..
        })
    ));
}

#[test]
fn a_record_larger_than_a_file_is_kept_too() {
    let disk = FaultyDisk::new(1);
    let (wal, _, _) = open(&disk, SMALL, Lsn::default()).unwrap();
    append(&wal, 0..2);
    let large = vec![9; 10_000];
    submit(&wal, vec![record(2, large.clone()), numbered(3)])
        .recv()
        .unwrap()
        .unwrap();
    wal.close().unwrap();
    let (_, _, records) = open(&disk, SMALL, Lsn::default()).unwrap();
    assert_eq!(records[2].payload, large);
    assert_eq!(records.len(), 4);
}

#[test]
fn a_full_disk_is_told_before_the_write_and_heals() {
    let disk = FaultyDisk::new(1);
    let (wal, _, _) = open(&disk, SMALL, Lsn::default()).unwrap();
    disk.set_capacity(2048);
    let mut index = 0;
    let full = loop {
        match wal.has_room(1000) {
            Ok(()) => append(&wal, index..index + 1),
            Err(ReserveError::Busy) => std::thread::yield_now(),
            Err(error) => break error,
        }
        index += 1;
    };
    assert!(matches!(full, ReserveError::DiskFull { .. }), "{full}");
    let waiting = submit(&wal, vec![record(99, vec![1; 1900])]);
    disk.set_capacity(1 << 20);
    waiting.recv().unwrap().unwrap();
    assert!(wal.failure().is_none());
    wal.close().unwrap();
}

#[test]
fn room_ends_where_a_checkpoint_is_due_and_returns_after_it() {
    let disk = FaultyDisk::new(1);
    let config = WalConfig {
        file_bytes: 1 << 20,
        max_bytes: 10_000,
    };
    let (wal, _, _) = open(&disk, config, Lsn::default()).unwrap();
    wal.has_room(5000).unwrap();
    submit(&wal, vec![record(0, vec![1; 9000])])
        .recv()
        .unwrap()
        .unwrap();
    assert!(matches!(wal.has_room(5000), Err(ReserveError::Busy)));
    wal.recycle(wal.last_submitted());
    wal.has_room(5000).unwrap();
}

#[test]
fn dropping_the_log_answers_everybody_and_ends_its_threads() {
    let disk = FaultyDisk::new(1);
    let (wal, _, _) = open(&disk, SMALL, Lsn::default()).unwrap();
    let outcomes: Vec<Outcome> = (0..50)
        .map(|index| submit(&wal, vec![numbered(index)]))
        .collect();
    drop(wal);
    let writes = disk.writes();
    for outcome in outcomes {
        outcome.recv().expect("an answer").ok();
    }
    assert_eq!(disk.writes(), writes);
}

#[test]
fn the_log_works_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::new(dir.path()).unwrap());
    let config = WalConfig {
        file_bytes: 1 << 20,
        max_bytes: 8 << 20,
    };
    let open = |records: &mut Vec<u64>| {
        let clock = Arc::new(SystemClock::default());
        let unrecovered =
            UnrecoveredWal::open(disk.clone(), clock, config, OpenMode::Write).unwrap();
        let visit = &mut |record: ReplayedRecord| {
            if record.kind == RecordKind::Batch {
                records.push(record.log_id.index.get());
            }
            Ok(())
        };
        unrecovered.replay(Lsn::default(), &Threads, visit).unwrap()
    };
    let (wal, _) = open(&mut Vec::new());
    let outcomes: Vec<Outcome> = (0..5000)
        .map(|index| submit(&wal, vec![numbered(index)]))
        .collect();
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.recv().unwrap().is_ok())
    );
    drop(wal);
    let mut records = Vec::new();
    let (wal, _) = open(&mut records);
    wal.close().unwrap();
    assert_eq!(records, (0..5000).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_submissions_come_back_whole(
        groups in prop::collection::vec(prop::collection::vec(0usize..3000, 0..5), 0..12),
        file_bytes in 200u64..6000,
    ) {
        let config = WalConfig { file_bytes, ..SMALL };
        let disk = FaultyDisk::new(1);
        let (wal, _, _) = open(&disk, config, Lsn::default()).unwrap();
        let mut expected = Vec::new();
        for group in groups {
            let records: Vec<WalRecord> = group
                .into_iter()
                .map(|len| record(expected.len() as u64, vec![len as u8; len]))
                .collect();
            expected.extend(records.iter().map(|record| record.payload.concat()));
            wal.submit(records, Box::new(|result| result.unwrap())).unwrap();
        }
        wal.close().unwrap();
        disk.crash();
        let (_, _, records) = open(&disk, config, Lsn::default()).unwrap();
        let found: Vec<Vec<u8>> = records.iter().map(|record| record.payload.to_vec()).collect();
        prop_assert_eq!(found, expected);
    }
}
