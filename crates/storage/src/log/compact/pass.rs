//! One compaction of a partition, cut into steps.

use std::{collections::VecDeque, io, ops::Range, sync::Arc};

use quipu_model::{Offset, RecordBatch};

use super::{
    clean::{Rule, Tails, Verdict, unreadable},
    keys::KeyTable,
    output::Output,
    plan::Plan,
    source::Source,
};
use crate::{
    PartitionDamage, StorageFailure,
    io::read_whole,
    log::{
        PartitionLog, ProducerTable,
        append::is_full,
        segment::{Segment, SegmentError},
        state::Compacted,
        tables::load_producers,
    },
};

/// Why a pass ended early. What it did until then stays; another one begins anew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    /// The log was trimmed, cut or removed meanwhile.
    #[error("the log changed meanwhile")]
    Changed,
    #[error("no room to write a compacted segment: {0}")]
    Full(io::Error),
    #[error("a segment could not be read: {0}")]
    Unreadable(io::Error),
    #[error(transparent)]
    Damaged(#[from] Arc<PartitionDamage>),
    #[error(transparent)]
    Failed(#[from] StorageFailure),
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) is_done: bool,
}

/// Segments that become one.
struct Group {
    /// In the plan.
    members: Range<usize>,
    /// The one that is read.
    at: usize,
    source: Source,
    /// Created once something is to be written: a segment that loses nothing stays.
    output: Option<Output>,
    tombstones: u64,
}

enum Phase {
    /// The keys of a segment of the plan are noted.
    Mapping(usize, Source),
    /// The first group is cleaned.
    Cleaning(VecDeque<Group>),
}

/// A compaction under way. It holds no lock between steps.
pub(crate) struct Pass {
    log: Arc<PartitionLog>,
    plan: Plan,
    keys: KeyTable,
    /// The keys are those of the records below this offset.
    mapped_to: Offset,
    tails: Tails,
    phase: Phase,
    /// Of segments whose places others took, since a checkpoint was asked for.
    replaced_bytes: u64,
}

impl Pass {
    /// `memory_bytes` bounds the table of keys; beside it a pass holds a few times 256 KiB, or its largest batch,
    /// uncompressed.
    pub(crate) fn begin(log: Arc<PartitionLog>, plan: Plan, memory_bytes: usize) -> Self {
        let end = plan
            .segments
            .last()
            .map_or(plan.dirty_from, |last| last.next_offset());
        let first_dirty = plan
            .segments
            .partition_point(|segment| segment.next_offset() <= plan.dirty_from);
        let begin = plan
            .segments
            .get(first_dirty)
            .map_or(end, |segment| segment.base.max(plan.dirty_from));
        let known = plan
            .segments
            .last()
            .and_then(|last| load_producers(&*log.context.disk, last));
        Self {
            keys: KeyTable::new(begin, end.since(begin), memory_bytes),
            mapped_to: end,
            tails: Tails::new(known),
            phase: Phase::Mapping(first_dirty, Source::default()),
            log,
            plan,
            replaced_bytes: 0,
        }
    }

    /// Which partition is compacted.
    pub(crate) fn log(&self) -> &Arc<PartitionLog> {
        &self.log
    }

    /// Does a piece of the work: about 32 KiB of batches, or one batch.
    ///
    /// # Errors
    /// The pass is over then; files that it was writing are removed.
    pub(crate) fn step(&mut self) -> Result<Progress, PassError> {
        self.log.check_undamaged()?;
        let stepped = match &self.phase {
            Phase::Mapping(..) => self.map(),
            Phase::Cleaning(_) => self.clean(),
        };
        if stepped.is_err() {
            self.discard();
        }
        self.settle(!matches!(stepped, Ok(Progress { is_done: false, .. })));
        stepped
    }

    /// Asks for a checkpoint where much waits for one, or the pass is over. Each syncs what all partitions wrote.
    fn settle(&mut self, is_over: bool) {
        let context = &self.log.context;
        let is_much = context.is_worth_checkpoint(self.replaced_bytes);
        if is_much || is_over && self.replaced_bytes > 0 {
            self.replaced_bytes = 0;
            context.request_checkpoint();
        }
    }

    fn discard(&mut self) {
        if let Phase::Cleaning(groups) = &mut self.phase
            && let Some(output) = groups.front_mut().and_then(|group| group.output.take())
        {
            self.log.context.remove_files_now(&output.files());
        }
    }

    /// Notes the keys of the next chunk.
    fn map(&mut self) -> Result<Progress, PassError> {
        let Phase::Mapping(at, source) = &mut self.phase else {
            return Ok(Progress::default());
        };
        let Some(segment) = self.plan.segments.get(*at) else {
            self.phase = Phase::Cleaning(self.groups());
            return Ok(Progress::default());
        };
        let (batches, read_bytes) = source
            .chunk(segment)
            .map_err(|error| read_failed(&self.log, segment, error))?;
        if batches.is_empty() {
            (*at, *source) = (*at + 1, Source::default());
        }
        let dirty_from = self.plan.dirty_from;
        let mut full = None;
        for batch in batches.iter().filter(|b| !b.header().is_control()) {
            if batch.header().next_offset() <= dirty_from {
                continue;
            }
            let visited = batch.visit(|record| {
                if let Some(key) = record.key
                    && record.offset >= dirty_from
                    && full.is_none()
                    && !self.keys.note(key, record.offset)
                {
                    full = Some(record.offset);
                }
            });
            visited.map_err(|error| PassError::Unreadable(unreadable(&segment.path, &error)))?;
            if full.is_some() {
                break;
            }
        }
        if let Some(full) = full {
            self.mapped_to = full;
            self.phase = Phase::Cleaning(self.groups());
        }
        Ok(Progress {
            read_bytes,
            ..Progress::default()
        })
    }

    /// Which segments become one: as many as fit, as long as all or none of them wait for their tombstones' time. Otherwise that
    /// time would begin anew whenever a small segment is compacted together with what is new.
    fn groups(&self) -> VecDeque<Group> {
        let mut groups: VecDeque<Group> = VecDeque::new();
        let mut bytes = 0;
        for (at, segment) in self.plan.segments.iter().enumerate() {
            if segment.base >= self.mapped_to {
                break;
            }
            let kind = self.kind(segment);
            let fits =
                kind != Kind::Waiting && bytes + segment.len() <= self.plan.config.segment_bytes;
            match groups.back_mut() {
                Some(group) if fits && self.kind_at(group.at) == kind => {
                    group.members.end = at + 1;
                    bytes += segment.len();
                }
                _ => {
                    bytes = segment.len();
                    groups.push_back(Group {
                        members: at..at + 1,
                        at,
                        source: Source::default(),
                        output: None,
                        tombstones: 0,
                    });
                }
            }
        }
        if self.keys.is_empty() {
            // Nothing new: only tombstones go.
            groups.retain(|group| {
                let members = &self.plan.segments[group.members.clone()];
                members.iter().any(|segment| {
                    self.is_expired(segment)
                        && segment
                            .compacted()
                            .is_some_and(|known| known.tombstones > 0)
                        || segment.next_offset() > self.plan.dirty_from
                })
            });
        }
        groups
    }

    fn kind_at(&self, at: usize) -> Kind {
        self.plan
            .segments
            .get(at)
            .map_or(Kind::New, |segment| self.kind(segment))
    }

    fn kind(&self, segment: &Segment) -> Kind {
        match segment.compacted() {
            None => Kind::New,
            Some(known) if known.tombstones == 0 || self.is_expired(segment) => Kind::Settled,
            Some(_) => Kind::Waiting,
        }
    }

    fn is_expired(&self, segment: &Segment) -> bool {
        segment.compacted().is_some_and(|known| {
            let age = self.plan.now.get().saturating_sub(known.at.get());
            u64::try_from(age).is_ok_and(|age| age >= self.plan.config.delete_retention_ms)
        })
    }

    /// Cleans the next chunk of the first group.
    fn clean(&mut self) -> Result<Progress, PassError> {
        let Phase::Cleaning(groups) = &self.phase else {
            return Ok(Progress::default());
        };
        let Some(group) = groups.front() else {
            self.log
                .note_compacted_to(self.plan.installs, self.mapped_to)?;
            return Ok(Progress {
                is_done: true,
                ..Progress::default()
            });
        };
        if group.at == group.members.end {
            return self.finish_group();
        }
        let segment = Arc::clone(&self.plan.segments[group.at]);
        if group.members.len() > 1 && group.output.is_none() {
            self.begin_output()?;
        }
        let expired = self.is_expired(&segment);
        let Phase::Cleaning(groups) = &mut self.phase else {
            return Ok(Progress::default());
        };
        let Some(group) = groups.front_mut() else {
            return Ok(Progress::default());
        };
        let (batches, read_bytes) = group
            .source
            .chunk(&segment)
            .map_err(|error| read_failed(&self.log, &segment, error))?;
        if batches.is_empty() {
            (group.at, group.source) = (group.at + 1, Source::default());
        }
        let rule = Rule {
            keys: &self.keys,
            mapped_to: self.mapped_to,
            tails: &self.tails,
            tombstones_expired: expired,
            end: self.plan.segments[group.members.end - 1].next_offset(),
        };
        let index_interval = self.plan.config.index_interval_bytes;
        let lost = group.take(batches, &rule, &self.log, (&segment, index_interval))?;
        if lost {
            // The first record that goes: all before it is read again, and written.
            self.begin_output()?;
            return Ok(Progress {
                read_bytes,
                ..Progress::default()
            });
        }
        let written_bytes = match &mut group.output {
            Some(output) => output
                .write()
                .map_err(|error| write_failed(&self.log, error))?,
            None => 0,
        };
        Ok(Progress {
            read_bytes,
            written_bytes,
            is_done: false,
        })
    }

    /// Creates the file that the first group is written to, and begins the group anew.
    fn begin_output(&mut self) -> Result<(), PassError> {
        let Phase::Cleaning(groups) = &mut self.phase else {
            return Ok(());
        };
        let Some(group) = groups.front_mut() else {
            return Ok(());
        };
        let members = &self.plan.segments[group.members.clone()];
        let output = Output::create(&self.log, &members[0]);
        *group = Group {
            members: group.members.clone(),
            at: group.members.start,
            source: Source::default(),
            output: Some(output.map_err(|error| write_failed(&self.log, error))?),
            tombstones: 0,
        };
        Ok(())
    }

    /// Puts what was written of the first group in its place.
    fn finish_group(&mut self) -> Result<Progress, PassError> {
        let Phase::Cleaning(groups) = &mut self.phase else {
            return Ok(Progress::default());
        };
        let Some(mut group) = groups.pop_front() else {
            return Ok(Progress::default());
        };
        let members = &self.plan.segments[group.members.clone()];
        let (Some(first), Some(last)) = (members.first(), members.last()) else {
            return Ok(Progress::default());
        };
        let since = members
            .iter()
            .map(|member| member.compacted().map(|known| known.at));
        let since = since.max().flatten().unwrap_or(self.plan.now);
        let compacted = (last.next_offset() <= self.mapped_to).then_some(Compacted {
            at: since,
            tombstones: group.tombstones,
        });
        let Some(output) = group.output.take() else {
            if let Some(compacted) = compacted {
                self.log
                    .note_compacted(self.plan.installs, first, compacted)?;
            }
            return Ok(Progress::default());
        };
        let (disk, files) = (&*self.log.context.disk, output.files());
        let producers = read_whole(disk, &last.path.with_extension("producers")).ok();
        let producers = producers.filter(|bytes| ProducerTable::decode(bytes).is_some());
        let finished = output
            .finish(disk, producers.as_deref())
            .map_err(|error| write_failed(&self.log, error))
            .and_then(|segment| {
                assert_eq!(
                    segment.next_offset(),
                    last.next_offset(),
                    "a compacted segment ends where those that it stands for did"
                );
                segment.set_compacted(compacted);
                segment.note_scrubbed(self.log.context.clock.monotonic());
                self.log.switch(self.plan.installs, members, segment)
            });
        if let Err(error) = finished {
            self.log.context.remove_files_now(&files);
            return Err(error);
        }
        let replaced = members.iter().map(|member| member.len());
        self.replaced_bytes += replaced.sum::<u64>();
        Ok(Progress::default())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Never compacted whole.
    New,
    /// Compacted, with tombstones that have to be kept for a while.
    Waiting,
    /// Compacted, with nothing that time will change.
    Settled,
}

impl Group {
    /// Takes the next batches of a member, as far as they stay. `true`: something goes, and there is no file yet to write the rest
    /// to.
    fn take(
        &mut self,
        batches: Vec<RecordBatch>,
        rule: &Rule<'_>,
        log: &PartitionLog,
        (segment, index_interval): (&Segment, u32),
    ) -> Result<bool, PassError> {
        for batch in batches {
            let (verdict, tombstones) = rule
                .apply(batch)
                .map_err(|error| PassError::Unreadable(unreadable(&segment.path, &error)))?;
            self.tombstones += tombstones;
            let staying = match (verdict, &mut self.output) {
                (Verdict::Same(batch), Some(output)) | (Verdict::Less(batch), Some(output)) => {
                    Some((output, batch))
                }
                (Verdict::Same(_) | Verdict::Empty, None)
                | (Verdict::Empty | Verdict::Gone, Some(_)) => None,
                (Verdict::Less(_) | Verdict::Gone, None) => return Ok(true),
            };
            if let Some((output, batch)) = staying {
                output
                    .push(&batch, index_interval)
                    .map_err(|error| write_failed(log, error))?;
            }
        }
        Ok(false)
    }
}

fn write_failed(log: &PartitionLog, error: io::Error) -> PassError {
    if is_full(&error) {
        return PassError::Full(error);
    }
    let dir = log.inner.lock().core.dir.clone();
    log.fail("compact", dir, error).into()
}

/// Rot ends the partition, here as where anyone else meets it.
fn read_failed(log: &PartitionLog, segment: &Arc<Segment>, error: SegmentError) -> PassError {
    match log.read_error(segment, error) {
        crate::ReadError::Damaged(damage) => damage.into(),
        crate::ReadError::Io { error, .. } => PassError::Unreadable(error),
        crate::ReadError::OutOfRange { .. } => PassError::Changed,
    }
}
