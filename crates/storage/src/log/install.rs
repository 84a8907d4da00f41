//! Putting another replica's log in this one's place: one record of the write-ahead log, before which a start finds the old one
//! and after which the new.

use std::{io, path::PathBuf, sync::Arc};

use bytes::{BufMut, Bytes};
use quipu_model::{LogId, TimestampMs};

use super::{
    AppendError, Incoming, Inner, ManifestSegment, PartitionLog, STATE_FORMAT, SegmentState,
    cut::files_of,
    incoming::{Arrived, INCOMING_DIR, path_of},
    seal::Seal,
    segment::{Segment, generation_of},
};
use crate::{
    io::read_whole,
    wal::{Completion, RecordKind},
};

impl PartitionLog {
    /// Puts a log that is all here in this one's place. It ends then with the manifest's last entry, before which Raft asks for
    /// nothing any more; all up to there counts as applied, with these members. `done` is called once that is durable. Where
    /// the log holds that entry already, nothing happens. Blocks.
    ///
    /// # Errors
    /// Where the log changed meanwhile so that something is missing, or the partition or the store has failed.
    pub fn install(
        &self,
        incoming: &Incoming,
        members: Option<(LogId, Bytes)>,
        done: Completion,
    ) -> Result<(), AppendError> {
        self.check_undamaged()?;
        self.put_in_place(incoming, members, done)
    }

    pub(super) fn put_in_place(
        &self,
        incoming: &Incoming,
        members: Option<(LogId, Bytes)>,
        done: Completion,
    ) -> Result<(), AppendError> {
        let manifest = &incoming.manifest;
        let segments = self
            .move_in(incoming)
            .map_err(|(path, error)| self.not_moved(path, error))?;
        let mut inner = self.inner.lock();
        inner.check_taking()?;
        self.check_whole(&inner, incoming)?;
        let gone = inner
            .core
            .install(manifest, segments, members.as_ref())
            .map_err(|error| self.append_error(error))?;
        inner.recent.clear();
        inner.unopened.clear();
        inner.applied = (Some(manifest.last), members);
        let record = self.record(
            RecordKind::Install,
            manifest.last,
            manifest.end_offset,
            [state_of(&inner, self.key), Bytes::new()],
        );
        inner.obsolete.extend(files_of(&gone));
        self.submit(&mut inner, vec![record], done)?;
        let dir = inner.core.dir.join(INCOMING_DIR);
        drop(inner);
        if let Err(error) = self.context.disk.remove_dir_all(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "could not remove a directory that is no longer needed");
        }
        self.context.request_checkpoint();
        Ok(())
    }

    fn not_moved(&self, path: PathBuf, error: io::Error) -> AppendError {
        // A partition that was removed has no directory any more: that is no failure.
        let ended = self.inner.lock().check_taking().err();
        ended
            .unwrap_or_else(|| self.fail("rename", path, error))
            .into()
    }

    /// What was copied goes under its name in the log, durably; until the log says so, a start removes it.
    fn move_in(&self, incoming: &Incoming) -> Result<Vec<Arc<Segment>>, (PathBuf, io::Error)> {
        let (disk, dir) = (&self.context.disk, self.inner.lock().core.dir.clone());
        let names = disk.list(&dir).map_err(|error| (dir.clone(), error))?;
        let generation = self.next_generation(&names);
        let mut segments = Vec::new();
        for arrived in &incoming.arrived {
            let fetched = match arrived {
                Arrived::Kept(kept) => {
                    segments.push(Arc::clone(kept));
                    continue;
                }
                Arrived::Fetched(fetched) => *fetched,
            };
            let state = named(fetched, generation);
            for ending in ["log", "index", "producers", "seal"] {
                let (from, to) = (path_of(self, fetched, ending), state.path(&dir, ending));
                if disk.exists(&from) {
                    disk.rename(&from, &to).map_err(|error| (from, error))?;
                }
            }
            let path = state.path(&dir, "log");
            let opened = self.open_moved(&state, path.clone());
            segments.push(opened.map_err(|error| (path, error))?);
        }
        disk.sync_dir(&dir).map_err(|error| (dir, error))?;
        Ok(segments)
    }

    /// A generation that no file of the partition has, nor will have: a compaction may name one at the same time.
    pub(super) fn next_generation(&self, names: &[String]) -> u32 {
        let newest = names.iter().map(|name| generation_of(name)).max();
        let core = &mut self.inner.lock().core;
        core.newest_generation = core.newest_generation.max(newest.unwrap_or_default()) + 1;
        core.newest_generation
    }

    fn open_moved(&self, state: &SegmentState, path: PathBuf) -> io::Result<Arc<Segment>> {
        let disk = &*self.context.disk;
        let seal = read_whole(disk, &path.with_extension("seal"))?;
        let seal = Seal::decode(&seal).map_err(io::Error::other)?;
        let created: TimestampMs = state.created;
        let segment = Segment::open_sealed(disk, path, (state.first.term, created), seal)?;
        Ok(Arc::new(segment))
    }

    fn check_whole(&self, inner: &Inner, incoming: &Incoming) -> Result<(), AppendError> {
        let manifest = &incoming.manifest;
        let held = |arrived: &Arrived| match arrived {
            Arrived::Kept(kept) => inner.core.segments().any(|here| Arc::ptr_eq(here, kept)),
            Arrived::Fetched(_) => true,
        };
        if incoming.is_whole() && incoming.arrived.iter().all(held) {
            return Ok(());
        }
        let detail = "segments of another replica's log are missing: they are to be copied again";
        Err(AppendError::Discontinuous {
            key: self.key,
            id: manifest.last,
            detail: detail.to_owned(),
        })
    }
}

fn named(segment: ManifestSegment, generation: u32) -> SegmentState {
    SegmentState {
        base: segment.base,
        next_offset: segment.next_offset,
        first: segment.first,
        sealed: true,
        bytes: segment.bytes,
        created: segment.created,
        generation,
        // What is dropped is the sender's to say no more: its tombstones are kept here as long as if they had just come.
        compacted: None,
    }
}

fn state_of(inner: &Inner, key: quipu_model::PartitionKey) -> Bytes {
    let mut payload = Vec::new();
    payload.put_u32_le(STATE_FORMAT);
    inner.partition_state(key).encode(&mut payload);
    payload.into()
}
