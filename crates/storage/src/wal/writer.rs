//! The worker that writes: one call and one sync for all that has gathered.

use std::{io, ops::Range, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use quipu_model::{LogId, Offset, PartitionKey, Position};

use super::{
    DIRECTORY, Lsn, RecordKind, StorageFailure, WalFile, WalRecord,
    format::{ALIGNMENT, FRAME_HEADER_LEN, encode_file_header, encode_frame_header, payload_len},
    shared::{Item, LiveFile, Shared, State, room, stopped},
};
use crate::io::{Rest, Worker};

/// A group takes no more records from here on, so that the first of them does not wait for too many others.
const GROUP_BYTES: u64 = 8 << 20;
/// Payloads below this are copied: cheaper than a slice of their own.
const COPIED_BYTES: u64 = 256;
/// How long the log must have been idle to be marked.
const IDLE: Duration = Duration::from_millis(20);

/// The file that is written to.
struct Active {
    file: WalFile,
    /// Where the next frame goes; 0 in a file that still bears the header of a prepared one.
    position: u64,
}

impl Active {
    fn new(file: WalFile) -> Self {
        Self { file, position: 0 }
    }

    fn room(&self) -> u64 {
        room(self.file.len, self.position)
    }
}

enum Step {
    Write(Vec<Item>),
    Refuse(Vec<Item>, StorageFailure),
    Mark(Lsn),
    Roll(Lsn),
    Rest(Rest),
    Stop,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    /// `None` until the first record.
    active: Option<Active>,
    /// Whether a mark follows the last group.
    marked: bool,
    scratch: Vec<u8>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            active: None,
            marked: true,
            scratch: Vec::new(),
        }
    }

    fn next_step(&self, rested: bool) -> Step {
        let mut state = self.shared.state.lock();
        if state.abandoned {
            return Step::Stop;
        }
        if let Some(failure) = state.failure.clone() {
            if !state.queue.is_empty() {
                state.queued_bytes = 0;
                return Step::Refuse(state.queue.drain(..).collect(), failure);
            }
            return if state.closing {
                Step::Stop
            } else {
                Step::Rest(Rest::UntilWoken)
            };
        }
        if !state.queue.is_empty() {
            return self.take_group(&mut state);
        }
        match (self.marked, state.closing) {
            (true, true) => Step::Stop,
            (true, false) => Step::Rest(Rest::UntilWoken),
            (false, false) if !rested => Step::Rest(Rest::For(IDLE)),
            (false, _) => {
                let lsn = state.next;
                state.next = lsn.next();
                Step::Mark(lsn)
            }
        }
    }

    /// Takes what fits the group and the file from the front of the queue.
    fn take_group(&self, state: &mut State) -> Step {
        let mut bytes = 0;
        let mut count = 0;
        // A record that is larger than a file gets a file of its own, which grows.
        let room = self.active.as_ref().map_or(0, Active::room);
        let fresh = self
            .active
            .as_ref()
            .is_some_and(|active| active.position == 0);
        for item in &state.queue {
            let more = item.frame_len();
            let fits = bytes + more <= room || (fresh && bytes == 0);
            if !fits || (bytes > 0 && bytes + more > GROUP_BYTES) {
                break;
            }
            bytes += more;
            count += 1;
        }
        if count == 0 {
            return Step::Roll(state.queue[0].lsn);
        }
        state.queued_bytes -= bytes;
        state.active_room = room.saturating_sub(bytes);
        // Counted before they are written, so that the sum of what is live never dips.
        if bytes > 0 {
            let last = state.queue[count - 1].lsn;
            state.backlog.add(last, bytes);
        }
        Step::Write(state.queue.drain(..count).collect())
    }

    fn commit(&mut self, items: Vec<Item>) {
        let started = self.shared.clock.monotonic();
        let records: Vec<(Lsn, &WalRecord)> = items
            .iter()
            .filter_map(|item| Some((item.lsn, item.record.as_ref()?)))
            .collect();
        let Some(&(last, _)) = records.last() else {
            return complete(items, &Ok(()));
        };
        let written = self.write(&records).and_then(|bytes| {
            self.sync(last)?;
            Ok(bytes)
        });
        if let Ok(bytes) = written {
            let metrics = &self.shared.metrics;
            let took = self.shared.clock.monotonic().saturating_sub(started);
            metrics.group_records.observe(records.len() as f64);
            metrics.group_bytes.observe(bytes as f64);
            metrics.flush_seconds.observe(took.as_secs_f64());
            metrics.bytes.inc_by(bytes);
            self.marked = false;
        }
        complete(items, &written.map(|_| ()));
    }

    fn mark(&mut self, lsn: Lsn) {
        let mark = WalRecord {
            key: PartitionKey::default(),
            kind: RecordKind::Mark,
            log_id: LogId::default(),
            base_offset: Offset::ZERO,
            payload: [Bytes::new(), Bytes::new()],
        };
        // A failure is latched; no one waits for a mark.
        if self.write(&[(lsn, &mark)]).is_ok() {
            self.marked = true;
            let mut state = self.shared.state.lock();
            state.backlog.add(lsn, FRAME_HEADER_LEN as u64);
            state.active_room = self.active.as_ref().map_or(0, Active::room);
        }
    }

    /// Goes on to the next file; rests where none is ready.
    fn roll(&mut self, first: Lsn) -> Rest {
        // The new file's header says that all before it is durable: make a mark so, too.
        let flushed = self.shared.state.lock().flushed;
        if flushed < first.previous() && self.sync(first.previous()).is_err() {
            return Rest::No;
        }
        let mut state = self.shared.state.lock();
        let filling = state.filling;
        let Some(file) = state
            .spares
            .pop_front_if(|file| Some(file.sequence) != filling)
        else {
            state.spare_awaited = true;
            let full = state.disk_full.clone().filter(|_| state.closing);
            drop(state);
            if let Some(detail) = full {
                let error = io::Error::new(io::ErrorKind::StorageFull, detail);
                self.shared.fail("prepare", Path::new(DIRECTORY), error);
                return Rest::No;
            }
            self.shared.wake_preparer();
            return Rest::UntilWoken;
        };
        state.spare_awaited = false;
        let active = self.active.insert(Active::new(file.clone()));
        state.active_room = active.room();
        state.live.push_back(LiveFile { file, first });
        drop(state);
        self.shared.wake_preparer();
        Rest::No
    }

    /// Writes frames with one call, the first of a file together with its header. The bytes written.
    fn write(&mut self, records: &[(Lsn, &WalRecord)]) -> Result<u64, StorageFailure> {
        let Some(active) = &mut self.active else {
            return Ok(0);
        };
        let durable_to = self.shared.state.lock().flushed;
        self.scratch.clear();
        let pieces = encode(&mut self.scratch, active, durable_to, records);
        let slices = pieces.slices(&self.scratch);
        let bytes: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        let end = active.position + bytes;
        let WalFile { file, path, .. } = &active.file;
        let grown = if end > active.file.len {
            file.allocate(end)
        } else {
            Ok(())
        };
        grown
            .and_then(|()| file.write_at(Position::new(active.position), &slices))
            .map_err(|error| self.shared.fail("write", path, error))?;
        active.position = end;
        active.file.len = active.file.len.max(end);
        Ok(bytes)
    }

    fn sync(&self, last: Lsn) -> Result<(), StorageFailure> {
        if let Some(Active { file, .. }) = &self.active {
            file.file
                .sync()
                .map_err(|error| self.shared.fail("sync", &file.path, error))?;
            self.shared.state.lock().flushed = last;
        }
        Ok(())
    }

    fn stop(&mut self) {
        let mut state = self.shared.state.lock();
        let abandoned = state.abandoned;
        let flushed = state.flushed < state.next.previous();
        let last = state.next.previous();
        let failed = state.failure.is_some();
        state.writer_ended = true;
        let queue: Vec<Item> = state.queue.drain(..).collect();
        state.queued_bytes = 0;
        drop(state);
        complete(queue, &Err(stopped()));
        if !abandoned && !failed && flushed {
            // The last mark; a failure is latched for `close` to report.
            let _latched = self.sync(last);
        }
        self.shared.wake_all();
    }
}

impl Worker for Writer {
    fn step(&mut self, rested: bool) -> Rest {
        match self.next_step(rested) {
            Step::Write(items) => self.commit(items),
            Step::Refuse(items, failure) => complete(items, &Err(failure)),
            Step::Mark(lsn) => self.mark(lsn),
            Step::Roll(first) => return self.roll(first),
            Step::Rest(rest) => return rest,
            Step::Stop => {
                self.stop();
                return Rest::Ended;
            }
        }
        Rest::No
    }
}

/// Puts headers, padding and small payloads into the scratch buffer, and says between which bytes of it the large
/// payloads go.
fn encode<'a>(
    scratch: &mut Vec<u8>,
    active: &Active,
    durable_to: Lsn,
    records: &[(Lsn, &'a WalRecord)],
) -> Pieces<'a> {
    let sequence = active.file.sequence;
    if active.position == 0 {
        let first = records.first().map(|(lsn, _)| *lsn);
        scratch.extend_from_slice(&encode_file_header(sequence, first));
    }
    let mut pieces = Pieces::default();
    for (lsn, record) in records {
        scratch.extend_from_slice(&encode_frame_header(sequence, *lsn, durable_to, record));
        let payload_len = payload_len(record);
        for payload in &record.payload {
            if payload_len < COPIED_BYTES {
                scratch.extend_from_slice(payload);
            } else {
                pieces.lend(payload, scratch.len());
            }
        }
        let padding = payload_len.next_multiple_of(ALIGNMENT as u64) - payload_len;
        scratch.extend_from_slice(&[0; ALIGNMENT][..padding as usize]);
    }
    pieces
}

fn complete(items: Vec<Item>, result: &Result<(), StorageFailure>) {
    for item in items {
        if let Some(done) = item.done {
            done(result.clone());
        }
    }
}

/// The pieces of a write: runs of the scratch buffer, and payloads where they lie.
#[derive(Default)]
struct Pieces<'a> {
    pieces: Vec<(Range<usize>, &'a Bytes)>,
    scratched: usize,
}

impl<'a> Pieces<'a> {
    /// Adds what the scratch buffer has gained, up to `scratch_len`, and a payload behind it.
    fn lend(&mut self, payload: &'a Bytes, scratch_len: usize) {
        self.pieces.push((self.scratched..scratch_len, payload));
        self.scratched = scratch_len;
    }

    fn slices<'s>(&self, scratch: &'s [u8]) -> Vec<&'s [u8]>
    where
        'a: 's,
    {
        let mut slices: Vec<&'s [u8]> = self
            .pieces
            .iter()
            .flat_map(|(run, payload)| [&scratch[run.clone()], &payload[..]])
            .filter(|slice| !slice.is_empty())
            .collect();
        slices.push(&scratch[self.scratched..]);
        slices
    }
}
