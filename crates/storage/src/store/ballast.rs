//! A file of no use but its size: on a full disk, giving it up makes the room in which a checkpoint can be written, and a
//! checkpoint is what lets deleted segments go.

use std::path::Path;

use crate::io::{Disk, OpenMode};

const FILE: &str = "ballast";

/// Enough for the states of some thousand partitions.
const BYTES: u64 = 4 << 20;

/// Gives the file up; tells whether there was one.
pub(super) fn drop_it(disk: &dyn Disk) -> bool {
    disk.exists(Path::new(FILE)) && disk.remove_file(Path::new(FILE)).is_ok()
}

/// Makes the file where there is none. That may fail, on a disk that is still full: then the next checkpoint tries again.
pub(super) fn take_on(disk: &dyn Disk) {
    if disk.exists(Path::new(FILE)) {
        return;
    }
    let made = disk
        .open(Path::new(FILE), OpenMode::CreateNew)
        .and_then(|file| file.allocate(BYTES));
    if let Err(error) = made {
        tracing::debug!(%error, "no room for ballast");
        drop_it(disk);
    }
}
