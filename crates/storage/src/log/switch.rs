//! Compacted segments take others' places.

use std::sync::Arc;

use quipu_model::Offset;

use super::{
    Inner, PartitionLog, compact::PassError, core::ClosedSegment, cut::files_of, segment::Segment,
    state::Compacted,
};

/// # Errors
/// Where the log takes nothing more, or another one was put in its place: a pass over the old one must not speak of the new.
fn check_same(inner: &Inner, installs: u64) -> Result<(), PassError> {
    inner.check_taking()?;
    match inner.core.installs == installs {
        true => Ok(()),
        false => Err(PassError::Changed),
    }
}

impl PartitionLog {
    /// Lets a sealed segment take the places of closed ones that stand one behind the other. Readers that have one of these go on
    /// with it. The next checkpoint makes it durable, and removes the others' files.
    pub(super) fn switch(
        &self,
        installs: u64,
        members: &[Arc<Segment>],
        segment: Arc<Segment>,
    ) -> Result<(), PassError> {
        let mut inner = self.inner.lock();
        check_same(&inner, installs)?;
        let closed = &mut inner.core.closed;
        let start = closed
            .iter()
            .position(|closed| Some(&closed.segment.base) == members.first().map(|m| &m.base))
            .ok_or(PassError::Changed)?;
        let range = start..start + members.len();
        let there = closed.get(range.clone()).ok_or(PassError::Changed)?;
        let same = there
            .iter()
            .zip(members)
            .all(|(closed, member)| Arc::ptr_eq(&closed.segment, member));
        if !same {
            return Err(PassError::Changed);
        }
        let switched = ClosedSegment {
            segment,
            producers: None,
            block_crcs: None,
        };
        closed.splice(range, [switched]);
        inner.obsolete.extend(files_of(members));
        inner.captured = None;
        Ok(())
    }

    /// Notes that a segment has nothing that a pass takes away.
    pub(super) fn note_compacted(
        &self,
        installs: u64,
        segment: &Arc<Segment>,
        compacted: Compacted,
    ) -> Result<(), PassError> {
        let mut inner = self.inner.lock();
        check_same(&inner, installs)?;
        let holds = |closed: &ClosedSegment| Arc::ptr_eq(&closed.segment, segment);
        if !inner.core.closed.iter().any(holds) {
            return Err(PassError::Changed);
        }
        segment.set_compacted(Some(compacted));
        inner.captured = None;
        Ok(())
    }

    /// Notes how far a pass went that has done all it was to.
    pub(super) fn note_compacted_to(&self, installs: u64, to: Offset) -> Result<(), PassError> {
        let mut inner = self.inner.lock();
        check_same(&inner, installs)?;
        inner.core.compacted_to = inner.core.compacted_to.max(to);
        inner.captured = None;
        Ok(())
    }
}
