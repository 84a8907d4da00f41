//! Directories that earlier versions wrote are read as they were meant. `cargo run -p quipu-storage --example golden_store`
//! writes the one of this version's format; one that is committed is never written again.

use std::{path::Path, sync::Arc};

use quipu_model::{LogId, Offset, Term};
use quipu_storage::{
    UnrecoveredStore,
    io::{ManualClock, RealDisk},
};

use super::support::*;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn a_directory_of_version_1_is_read_as_it_was_written() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/store-v1");
    let directory = tempfile::tempdir().unwrap();
    copy(&golden, directory.path());
    let disk = Arc::new(RealDisk::new(directory.path()).unwrap());
    let clock = Arc::new(ManualClock::new(NOW));
    let (store, report) = UnrecoveredStore::open(disk, clock, small_store())
        .unwrap()
        .recover()
        .unwrap();
    assert!(report.damaged.is_empty(), "{:?}", report.damaged);
    let log = store.partition(key(0)).unwrap();
    // Five records and a control entry, checkpointed; the first segment sealed, cut below record 1; two more records and a
    // vote only in the write-ahead log.
    let expected: Vec<_> = (1..7).map(|n| value(n, 900)).collect();
    assert!(values(&log).unwrap() == expected);
    let state = log.state();
    assert_eq!(
        (state.start_offset, state.end_offset),
        (Offset::new(1), Offset::new(7))
    );
    assert_eq!(state.last, Some(LogId::new(2, 7)));
    assert_eq!(log.vote().map(|vote| vote.term), Some(Term::new(2)));
    assert_eq!(store.partitions().len(), 2);
    assert_eq!(
        values(&store.partition(key(1)).unwrap()).unwrap(),
        [b"alone"]
    );
}
