//! A segment that is written to take others' places.

use std::{io, path::PathBuf, sync::Arc};

use quipu_model::RecordBatch;

use crate::{
    io::{Disk, OpenMode},
    log::{
        PartitionLog,
        active::{ActiveSegment, StampedBatch},
        index::UNKNOWN_RAFT_INDEX,
        segment::Segment,
        state::SegmentState,
    },
};

const ENDINGS: [&str; 4] = ["log", "index", "producers", "seal"];

/// The segment on its way. Its file is there; no log knows it yet.
pub(super) struct Output {
    active: ActiveSegment,
    path: PathBuf,
}

impl Output {
    /// Creates the file of a segment that begins where `first` does, in a generation of its own: a crash may have left files of
    /// others, which the next checkpoint removes.
    pub(super) fn create(log: &PartitionLog, first: &Segment) -> io::Result<Self> {
        let dir = first.path.parent().unwrap_or(&first.path);
        let disk = &*log.context.disk;
        let state = SegmentState {
            generation: log.next_generation(&disk.list(dir)?),
            ..first.state()
        };
        let path = state.path(dir, ENDINGS[0]);
        let file = disk.open(&path, OpenMode::CreateNew)?;
        let segment = Segment::new(
            (first.base, state.first),
            (path.clone(), file),
            first.created,
        );
        Ok(Self {
            active: ActiveSegment::new(Arc::new(segment), 0, u64::MAX),
            path,
        })
    }

    /// Takes a batch, to be written by [`Self::write`].
    pub(super) fn push(&mut self, batch: &RecordBatch, index_interval: u32) -> io::Result<()> {
        let bytes = batch.bytes();
        self.active.allocate(bytes.len() as u64)?;
        self.active.push(
            StampedBatch {
                header: *batch.header(),
                prefix: bytes.slice(..quipu_model::batch::BatchHeader::STAMPED_LEN),
                body: bytes.slice(quipu_model::batch::BatchHeader::STAMPED_LEN..),
                base_offset: batch.header().base_offset,
                raft_index: UNKNOWN_RAFT_INDEX,
            },
            index_interval.into(),
        );
        Ok(())
    }

    /// Writes what was taken, and has the disk begin with it, so that the sync at the end finds little to do; how many bytes
    /// were written.
    pub(super) fn write(&mut self) -> io::Result<u64> {
        let before = self.active.segment.len();
        self.active.write_pending()?;
        if let Some((position, len)) = self.active.take_writeback() {
            self.active.segment.file.start_writeback(position, len);
        }
        Ok(self.active.segment.len() - before)
    }

    /// Makes the segment durable and seals it.
    pub(super) fn finish(
        self,
        disk: &dyn Disk,
        producers: Option<&[u8]>,
    ) -> io::Result<Arc<Segment>> {
        let (segment, crcs) = self.active.into_parts();
        segment.seal(disk, producers, crcs.as_deref())?;
        Ok(segment)
    }

    /// The files that there may be of it.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        ENDINGS
            .map(|ending| self.path.with_extension(ending))
            .into()
    }
}
