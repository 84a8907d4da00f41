//! From a directory to a store.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, atomic::AtomicBool},
};

use parking_lot::{Mutex, RwLock};
use quipu_model::{PartitionId, PartitionKey, TopicConfig, TopicId};

use super::{
    Context, OpenError, PartitionDamage, Store, StoreConfig, compactor,
    context::StoreMetrics,
    format::{self, FORMAT_FILE, RAFT_STATE_FILE, io_error},
    housekeeper,
    lifecycle::GONE,
    partition_dir,
};
use crate::{
    PartitionLog,
    io::{Clock, Disk, OpenMode, Threads, Workers},
    log::RecoveringLog,
    wal::{Lsn, RecordKind, UnrecoveredWal, WalConfig},
};

pub(crate) const LOCK_FILE: &str = "LOCK";
const TOPICS_DIR: &str = "topics";
const WAL_DIR: &str = "wal";

/// What recovery found and did.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    /// How many partitions the directory holds.
    pub partitions: usize,
    /// How many records of the write-ahead log were repeated.
    pub records_replayed: u64,
    /// And how many bytes they have.
    pub bytes_replayed: u64,
    /// Bytes of never acknowledged records that were cut off the write-ahead log's torn end.
    pub torn_bytes: u64,
    /// The partitions that are not served.
    pub damaged: Vec<PartitionDamage>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// A data directory that is locked and of a known format, but not yet read.
#[derive(Debug)]
pub struct UnrecoveredStore {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    config: StoreConfig,
    workers: Arc<dyn Workers>,
    directory_id: [u8; 16],
    lock: Box<dyn std::fmt::Debug + Send + Sync>,
}

impl UnrecoveredStore {
    /// Locks a data directory, creating it where it is absent or empty.
    ///
    /// # Errors
    /// Where it is in use, of a newer format, damaged, or cannot be reached. Nothing was changed then.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: StoreConfig,
    ) -> Result<Self, OpenError> {
        let lock = disk
            .lock(Path::new(LOCK_FILE))
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => OpenError::InUse,
                _ => io_error("locking", LOCK_FILE, error),
            })?;
        let directory_id = if disk.exists(Path::new(FORMAT_FILE)) {
            format::read_format(&*disk)?
        } else {
            create(&*disk)?
        };
        Ok(Self {
            disk,
            clock,
            config,
            workers: Arc::new(Threads),
            directory_id,
            lock,
        })
    }

    /// Has the store's background work done by `workers`; by threads, where nothing is said.
    #[must_use]
    pub fn with_workers(mut self, workers: Arc<dyn Workers>) -> Self {
        self.workers = workers;
        self
    }

    /// Loads the last checkpoint, replays the write-ahead log over it, and checks what is not sealed.
    ///
    /// # Errors
    /// Where what all partitions depend on is damaged, or the disk fails. Damage to one partition is in the report instead.
    pub fn recover(self) -> Result<(Store, RecoveryReport), OpenError> {
        let started = self.clock.monotonic();
        let found = self.list_partitions()?;
        let garbage = found.garbage;
        let (after, mut recovering) = self.load(found.keys)?;
        let wal_config = WalConfig {
            file_bytes: self.config.wal_file_bytes,
            max_bytes: self.config.wal_max_bytes,
        };
        let wal = UnrecoveredWal::open(
            Arc::clone(&self.disk),
            Arc::clone(&self.clock),
            wal_config,
            OpenMode::Write,
        )?;
        let (wal, replayed) = wal.replay(after, &*self.workers, &mut |record| {
            if record.kind == RecordKind::Mark {
                return Ok(());
            }
            let key = record.key;
            let log = recovering.entry(key).or_insert_with(|| {
                let mut log = new_log(&self.disk, &*self.clock, key);
                log.note_missing();
                log
            });
            log.replay(record)
                .map_err(|error| io_error("replaying into", partition_dir(key), error))
        })?;
        let context = Arc::new(Context {
            disk: self.disk,
            clock: self.clock,
            wal,
            workers: self.workers,
            config: self.config,
            metrics: StoreMetrics::new(),
            tasks: OnceLock::new(),
            compacting: OnceLock::new(),
            checkpoint_asked: AtomicBool::new(false),
            checkpointing: Mutex::new(()),
        });
        let logs = finish(recovering, &context)?;
        garbage.iter().for_each(|dir| context.remove_dir_now(dir));
        let report = RecoveryReport {
            partitions: logs.len(),
            records_replayed: replayed.records,
            bytes_replayed: replayed.bytes,
            torn_bytes: replayed.torn_bytes,
            damaged: logs
                .values()
                .filter_map(|log| log.damage())
                .map(|damage| (*damage).clone())
                .collect(),
            took_ms: (context.clock.monotonic() - started).as_millis() as u64,
        };
        let partitions = Arc::new(RwLock::new(logs));
        housekeeper::start(&context, &partitions)
            .and_then(|()| compactor::start(&context, &partitions))
            .map_err(|error| io_error("starting", "a thread", error))?;
        let store = Store {
            context,
            partitions,
            lifecycle: Mutex::default(),
            peers: super::peers::Peers::default(),
            directory_id: self.directory_id,
            lock: Mutex::new(Some(self.lock)),
        };
        Ok((store, report))
    }

    /// Every partition that has a directory, with what the last checkpoint knew of it.
    fn load(
        &self,
        keys: Vec<PartitionKey>,
    ) -> Result<(Lsn, HashMap<PartitionKey, RecoveringLog>), OpenError> {
        let (after, states) = format::read_raft_state(&*self.disk)?;
        let mut states: HashMap<_, _> =
            states.into_iter().map(|state| (state.key, state)).collect();
        let mut recovering = HashMap::new();
        for key in keys {
            let mut log = new_log(&self.disk, &*self.clock, key);
            log.settle_repairs()
                .map_err(|error| io_error("settling a repair in", partition_dir(key), error))?;
            if let Some(state) = states.remove(&key) {
                log.load(state);
            }
            recovering.insert(key, log);
        }
        for key in states.into_keys() {
            let mut log = new_log(&self.disk, &*self.clock, key);
            log.note_missing();
            recovering.insert(key, log);
        }
        Ok((after, recovering))
    }

    fn list_partitions(&self) -> Result<Found, OpenError> {
        let mut found = Found::default();
        for topic_name in self
            .disk
            .list(Path::new(TOPICS_DIR))
            .map_err(|error| io_error("listing", TOPICS_DIR, error))?
        {
            let Some(topic) = TopicId::parse(&topic_name) else {
                continue;
            };
            let dir = Path::new(TOPICS_DIR).join(&topic_name);
            let names = self
                .disk
                .list(&dir)
                .map_err(|error| io_error("listing", &dir, error))?;
            let numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
            if numbers.is_empty() {
                found.garbage.push(dir);
                continue;
            }
            let gone = names.iter().filter(|name| name.ends_with(GONE));
            found.garbage.extend(gone.map(|name| dir.join(name)));
            found
                .keys
                .extend(numbers.into_iter().map(|number| PartitionKey {
                    topic,
                    partition: PartitionId::new(number),
                }));
        }
        Ok(found)
    }
}

/// What stands below `topics`.
#[derive(Default)]
struct Found {
    keys: Vec<PartitionKey>,
    /// Directories of partitions that were removed, and of topics without any.
    garbage: Vec<PathBuf>,
}

fn new_log(disk: &Arc<dyn Disk>, clock: &dyn Clock, key: PartitionKey) -> RecoveringLog {
    let config = TopicConfig::default();
    RecoveringLog::new(
        Arc::clone(disk),
        partition_dir(key),
        key,
        config,
        clock.now(),
    )
}

/// Makes an empty directory a data directory: the format file goes last, since it is what says that the rest is there.
fn create(disk: &dyn Disk) -> Result<[u8; 16], OpenError> {
    // The write-ahead log begins once the format file is there.
    let holds_data = disk
        .list(Path::new(WAL_DIR))
        .is_ok_and(|names| !names.is_empty())
        || disk
            .list(Path::new(TOPICS_DIR))
            .is_ok_and(|names| !names.is_empty());
    if holds_data {
        let detail = "the file is missing, but the directory holds data".to_owned();
        return Err(OpenError::Damaged {
            path: FORMAT_FILE.into(),
            position: 0,
            detail,
        });
    }
    disk.create_dir_all(Path::new(TOPICS_DIR))
        .map_err(|error| io_error("creating", TOPICS_DIR, error))?;
    disk.sync_dir(Path::new(""))
        .map_err(|error| io_error("syncing", "the data directory", error))?;
    format::write_raft_state(disk, Lsn::default(), &[])
        .map_err(|error| io_error("writing", RAFT_STATE_FILE, error))?;
    format::create_format(disk)
}

/// Checks every partition, and drops those that were removed.
fn finish(
    recovering: HashMap<PartitionKey, RecoveringLog>,
    context: &Arc<Context>,
) -> Result<HashMap<PartitionKey, Arc<PartitionLog>>, OpenError> {
    let mut logs = HashMap::new();
    for (key, log) in recovering {
        let dir = partition_dir(key);
        if log.is_removed() {
            context.remove_dir_now(&dir);
            // Lest it come back once the write-ahead log no longer says that it is gone.
            let topic = dir.parent().unwrap_or(Path::new(""));
            if context.disk.exists(topic) {
                let synced = context.disk.sync_dir(topic);
                synced.map_err(|error| io_error("syncing", topic, error))?;
            }
            continue;
        }
        let log = log
            .finish(Arc::clone(context))
            .map_err(|error| io_error("checking", &dir, error))?;
        logs.insert(key, log);
    }
    Ok(logs)
}
