//! Damage, as long as the process lives and from one start to the next.
//!
//! What is found while the partition is served is left for the next start in a file of its directory, which is text like
//! `FORMAT`: `damaged 1`, `file <name>`, `position <number>`, `detail <one line>`, `crc <CRC-32 of the lines before, in hexadecimal>`.
//! It says that the partition is not to be served before it was checked, and repaired where that is needed.

use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use quipu_model::PartitionKey;

use super::{PartitionLog, append::is_full};
use crate::{
    PartitionDamage,
    io::{Disk, read_whole, replace_file},
    store::crc_line,
};

pub(super) const MARK_FILE: &str = "damaged";
const HEADER: &str = "damaged 1";

/// Set while a partition is damaged. Looked at before every read and append.
#[derive(Default)]
pub(super) struct DamageLatch {
    is_set: AtomicBool,
    damage: Mutex<Option<Arc<PartitionDamage>>>,
    told: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for DamageLatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DamageLatch").field(&self.damage).finish()
    }
}

impl DamageLatch {
    pub(super) fn new(damage: Option<PartitionDamage>) -> Self {
        Self {
            is_set: damage.is_some().into(),
            damage: Mutex::new(damage.map(Arc::new)),
            told: OnceLock::new(),
        }
    }

    pub(super) fn get(&self) -> Option<Arc<PartitionDamage>> {
        if !self.is_set.load(Ordering::Acquire) {
            return None;
        }
        self.damage.lock().clone()
    }

    /// What is set now, and whether that is this damage: the first one stays.
    pub(super) fn set(&self, found: PartitionDamage) -> (Arc<PartitionDamage>, bool) {
        let mut damage = self.damage.lock();
        if let Some(first) = &*damage {
            return (Arc::clone(first), false);
        }
        let found = Arc::clone(damage.insert(Arc::new(found)));
        self.is_set.store(true, Ordering::Release);
        drop(damage);
        if let Some(tell) = self.told.get() {
            tell();
        }
        (found, true)
    }

    /// Goes on with what was found since, or without damage. Nobody is told.
    pub(super) fn replace(&self, found: Option<PartitionDamage>) {
        let mut damage = self.damage.lock();
        self.is_set.store(found.is_some(), Ordering::Release);
        *damage = found.map(Arc::new);
    }

    /// Whom to tell. Set once: later calls do nothing.
    pub(super) fn on_set(&self, tell: Box<dyn Fn() + Send + Sync>) {
        let _ = self.told.set(tell);
    }
}

impl PartitionLog {
    /// Leaves word of the damage, if there still is any. A disk too full for it is no failure: the damage is found again.
    pub(crate) fn write_mark(&self) {
        // Repairs end, and partitions leave, with this lock held.
        let _alone = self.context.checkpointing.lock();
        let dir = {
            let inner = self.inner.lock();
            if inner.ended.is_some() {
                return;
            }
            inner.core.dir.clone()
        };
        let Some(damage) = self.damage() else { return };
        let path = dir.join(MARK_FILE);
        match replace_file(&*self.context.disk, &path, to_text(&damage).as_bytes()) {
            Ok(()) => {}
            Err(error) if is_full(&error) => {
                tracing::warn!(path = %path.display(), %error, "no room to note that a partition is damaged: free space on the disk");
            }
            Err(error) => drop(self.fail("write", path, error)),
        }
    }
}

fn to_text(damage: &PartitionDamage) -> String {
    let file = damage.path.file_name().unwrap_or_default();
    let detail: String = damage.detail.lines().collect::<Vec<_>>().join(" ");
    let lines = format!(
        "{HEADER}\nfile {}\nposition {}\ndetail {detail}\n",
        file.to_string_lossy(),
        damage.position,
    );
    let crc = crc_line(&lines);
    lines + &crc
}

/// What an earlier life left word of, if it did. A mark that is damaged itself is one all the same.
///
/// # Errors
/// Where the disk does not give the file.
pub(crate) fn read_mark(
    disk: &dyn Disk,
    dir: &Path,
    key: PartitionKey,
) -> io::Result<Option<PartitionDamage>> {
    let path = dir.join(MARK_FILE);
    let bytes = match read_whole(disk, &path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (file, position, detail) = parse(&bytes).unwrap_or_else(|| {
        let detail = "the note of an earlier damage does not match its checksum".to_owned();
        (MARK_FILE.to_owned(), 0, detail)
    });
    Ok(Some(PartitionDamage {
        key,
        path: dir.join(file),
        position,
        detail,
    }))
}

fn parse(bytes: &[u8]) -> Option<(String, u64, String)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (lines, crc) = text.split_at_checked(text.rfind("crc ")?)?;
    if crc != crc_line(lines) {
        return None;
    }
    let mut lines = lines.lines();
    (lines.next()? == HEADER).then_some(())?;
    let file = lines.next()?.strip_prefix("file ")?;
    let position = lines.next()?.strip_prefix("position ")?.parse().ok()?;
    let detail = lines.next()?.strip_prefix("detail ")?;
    Some((file.to_owned(), position, detail.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use quipu_model::PartitionKey;

    use super::{MARK_FILE, read_mark, to_text};
    use crate::{
        PartitionDamage,
        io::{Disk, FaultyDisk, replace_file},
    };

    #[test]
    fn a_mark_says_again_what_was_found_whatever_happened_to_it() {
        let disk = FaultyDisk::new(1);
        let dir = Path::new("topics/t/0");
        disk.create_dir_all(dir).unwrap();
        let key = PartitionKey::default();
        assert!(read_mark(&disk, dir, key).unwrap().is_none());
        let damage = PartitionDamage {
            key,
            path: dir.join("0-1.log"),
            position: 65_536,
            detail: "a block\ndoes not match".to_owned(),
        };
        let mark = dir.join(MARK_FILE);
        let text = to_text(&damage);
        replace_file(&disk, &mark, text.as_bytes()).unwrap();
        let read = read_mark(&disk, dir, key).unwrap().unwrap();
        assert_eq!((&read.path, read.position), (&damage.path, 65_536));
        assert_eq!(read.detail, "a block does not match");
        for byte in 0..text.len() as u64 {
            disk.flip_bit(&mark, byte, (byte % 7) as u8);
            assert!(read_mark(&disk, dir, key).unwrap().is_some(), "{byte}");
            disk.flip_bit(&mark, byte, (byte % 7) as u8);
        }
    }
}
