//! Giving other replicas what they lack of the log.

use std::sync::Arc;

use quipu_storage::{ReadError, ReserveError};

use crate::{
    blocking::blocking,
    error::AppendError,
    network::{CopyRequest, CopyResponse},
    partition::Partition,
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
        let state = self.log().state();
        let end = match request.uncommitted {
            true => state.end_offset,
            false => self.inner().group.high_watermark(),
        };
        let start = state.start_offset;
        let CopyRequest { from, up_to, .. } = request;
        let up_to_end = up_to <= end || request.uncommitted;
        if from < start || from > end || !up_to_end || from > up_to {
            return Ok(CopyResponse::OutOfRange { start, end });
        }
        let max_bytes = COPY_BYTES.min(request.max_bytes as usize);
        let log = Arc::clone(self.log());
        let reading = blocking(&self.inner().store, move || {
            if request.uncommitted {
                return log.read_for_repair(from, max_bytes);
            }
            log.populate(from, max_bytes, up_to)?;
            log.read(from, max_bytes, up_to)
        });
        let failed = |error: &dyn std::fmt::Display| AppendError::Fatal(error.to_string());
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
            // It was trimmed meanwhile.
            Err(ReadError::OutOfRange { start, .. }) => Ok(CopyResponse::OutOfRange { start, end }),
            Err(ReadError::Damaged(damage)) => Err(ReserveError::Damaged(damage).into()),
            Err(error @ ReadError::Io { .. }) => Err(failed(&error)),
        }
    }
}
