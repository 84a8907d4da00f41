//! Partitions come to a node and leave it, and may come back.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

use quipu_model::{PartitionKey, TopicConfig};

use super::{OpenError, Store, format::io_error, partition_dir};
use crate::{PartitionLog, log::RecoveringLog, wal::StorageFailure};

/// How the names of directories end that are about to be removed.
pub(super) const GONE: &str = ".gone";

impl Store {
    /// Creates an empty partition, or gives the one that is there.
    ///
    /// # Errors
    /// Where its directory cannot be made.
    pub fn create_partition(
        &self,
        key: PartitionKey,
        config: TopicConfig,
    ) -> Result<Arc<PartitionLog>, OpenError> {
        let mut logs = self.create_partitions(&[(key, config)])?;
        logs.pop().ok_or_else(|| OpenError::Io {
            operation: "creating",
            path: partition_dir(key),
            error: io::ErrorKind::NotFound.into(),
        })
    }

    /// Does the same for many partitions together: each directory that gets new names is synced once.
    ///
    /// # Errors
    /// Where a directory cannot be made; some of the partitions may then be there.
    pub fn create_partitions(
        &self,
        wanted: &[(PartitionKey, TopicConfig)],
    ) -> Result<Vec<Arc<PartitionLog>>, OpenError> {
        let _alone = self.lifecycle.lock();
        let absent = |key: &PartitionKey| self.partition(*key).is_none();
        let dirs = wanted.iter().map(|(key, _)| key).filter(|key| absent(key));
        self.make_dirs(dirs.map(|key| partition_dir(*key)))?;
        wanted
            .iter()
            .map(|(key, config)| self.create_log(*key, config.clone()))
            .collect()
    }

    /// Makes directories whose names are durable: a start takes records of a partition without a directory for damage.
    fn make_dirs(&self, dirs: impl Iterator<Item = PathBuf>) -> Result<(), OpenError> {
        let mut parents = BTreeSet::new();
        for dir in dirs {
            let made = self.context.disk.create_dir_all(&dir);
            made.map_err(|error| io_error("creating", &dir, error))?;
            parents.extend(dir.ancestors().skip(1).map(Path::to_owned));
        }
        for parent in parents {
            let synced = self.context.disk.sync_dir(&parent);
            synced.map_err(|error| io_error("syncing", &parent, error))?;
        }
        Ok(())
    }

    fn create_log(
        &self,
        key: PartitionKey,
        config: TopicConfig,
    ) -> Result<Arc<PartitionLog>, OpenError> {
        if let Some(log) = self.partition(key) {
            log.set_config(config);
            return Ok(log);
        }
        let (disk, now) = (Arc::clone(&self.context.disk), self.context.clock.now());
        let dir = partition_dir(key);
        let mut recovering = RecoveringLog::new(disk, dir.clone(), key, config, now);
        recovering.begin_behind(self.context.wal.last_submitted());
        let log = recovering.finish(Arc::clone(&self.context));
        let log = log.map_err(|error| io_error("creating", &dir, error))?;
        self.partitions.write().insert(key, Arc::clone(&log));
        Ok(log)
    }

    /// Removes a partition and its files. No error where there is none. Blocks until that is durable. Handles to it take
    /// nothing more.
    ///
    /// # Errors
    /// Where the store has failed.
    pub fn remove_partition(&self, key: PartitionKey) -> Result<(), StorageFailure> {
        let _alone = self.lifecycle.lock();
        let Some(log) = self.partitions.write().remove(&key) else {
            return Ok(());
        };
        let (sender, flushed) = mpsc::sync_channel(1);
        let done = move |result| {
            let _ = sender.send(result);
        };
        log.remove(Box::new(done))?;
        self.context.wait_flushed(&flushed)?;
        self.set_aside(key)
    }

    /// Frees a removed partition's name, so that the partition can come back at once; removing the files can take a while.
    fn set_aside(&self, key: PartitionKey) -> Result<(), StorageFailure> {
        let dir = partition_dir(key);
        let removal = self.context.wal.last_submitted();
        let aside = dir.with_added_extension(format!("{removal}{GONE}"));
        // A checkpoint that captured the partition before its removal still uses the directory.
        let _no_checkpoint = self.context.checkpointing.lock();
        let disk = &self.context.disk;
        let renamed = match disk.rename(&dir, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed,
        };
        renamed
            .and_then(|()| disk.sync_dir(dir.parent().unwrap_or(Path::new(""))))
            .map_err(|error| self.context.wal.fail("remove", &dir, error))?;
        self.context.remove_dir(aside);
        Ok(())
    }
}
