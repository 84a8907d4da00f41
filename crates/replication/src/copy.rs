//! Giving other replicas what they lack of the log.

use std::sync::Arc;

use quipu_storage::{ReadError, ReserveError};

use crate::{
    blocking::blocking,
    error::AppendError,
    network::{CopyRequest, CopyResponse, SnapshotRequest},
    partition::Partition,
    state_machine::snapshot_of,
    type_config::{from_raft_id, to_raft_vote},
};

/// The most bytes of one answer; a larger batch goes alone.
const COPY_BYTES: usize = 1 << 20;

impl Partition {
    /// Another replica lacks batches that this one may have. It is given what is committed here, or, for a repair, what is sound;
    /// for that, the range may go past the log's end. Whether this replica leads
    /// or even runs is no matter. The bytes are lent from the log's maps, and brought into memory before.
    ///
    /// # Errors
    /// Where the log is damaged, or the disk does not give the bytes.
    pub async fn receive_copy(&self, request: CopyRequest) -> Result<CopyResponse, AppendError> {
        let uncommitted = request.uncommitted;
        let end = match uncommitted {
            true => self.log().state().end_offset,
            false => self.inner().group.high_watermark(),
        };
        let CopyRequest { from, up_to, .. } = request;
        if from > end || (up_to > end && !uncommitted) {
            let start = self.start_offset();
            return Ok(CopyResponse::OutOfRange { start, end });
        }
        let max_bytes = COPY_BYTES.min(request.max_bytes as usize);
        let log = Arc::clone(self.log());
        let reading = blocking(&self.inner().store, move || {
            if uncommitted {
                return log.read_for_repair(from, max_bytes);
            }
            log.copy(from, max_bytes, up_to)
        });
        match reading.await.map_err(|error| failed(&error))? {
            Ok(read) => {
                self.inner()
                    .metrics
                    .copied_bytes
                    .inc_by(read.bytes.len() as u64);
                Ok(CopyResponse::Batches {
                    bytes: read.bytes,
                    next_offset: read.next_offset,
                })
            }
            // It was trimmed.
            Err(ReadError::OutOfRange { start, .. }) => Ok(CopyResponse::OutOfRange { start, end }),
            Err(ReadError::Damaged(damage)) => Err(ReserveError::Damaged(damage).into()),
            Err(error @ ReadError::Io { .. }) => Err(failed(&error)),
        }
    }

    /// A replica whose log is damaged, and cannot be repaired batch by batch, may take this one's in its place, up to what was
    /// applied here: that is committed, whether this replica leads or not. With it goes the vote by which this replica follows,
    /// or leads.
    ///
    /// # Errors
    /// Where this replica does not run, follows nobody, or has applied nothing.
    pub async fn receive_take_over(&self) -> Result<SnapshotRequest, AppendError> {
        self.running()?;
        let group = Arc::clone(&self.inner().group);
        let point = group.applied_point().map_err(|error| failed(&error))?;
        let point = point.ok_or_else(|| failed(&"nothing is applied here"))?;
        let leader = self.log().vote().filter(|vote| vote.committed);
        let leader = leader.ok_or_else(|| failed(&"no leader is known here"))?;
        let (last, end) = (from_raft_id(&point.last), point.next_offset);
        let reading = blocking(&self.inner().store, move || group.log.manifest(last, end));
        let log = reading.await.map_err(|error| failed(&error))?;
        let log = log.map_err(|error| failed(&error))?;
        Ok(SnapshotRequest((
            to_raft_vote(leader),
            snapshot_of(point, Some(log)),
        )))
    }
}

fn failed(error: &dyn std::fmt::Display) -> AppendError {
    AppendError::Fatal(error.to_string())
}
