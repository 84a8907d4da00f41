//! Reading the log back: which records stand, and whether what does not is a torn end or damage.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use parking_lot::Mutex;
use quipu_model::{LogId, Offset, PartitionKey, Position};

use super::{
    DIRECTORY, Lsn, RecordKind, Wal, WalConfig, WalFile, file_path,
    format::{FILE_HEADER_LEN, FORMAT_VERSION, FileHeader, FrameHeader, decode_file_header},
    metrics::WalMetrics,
    parse_file_name,
    scan::{Remains, Scan},
    shared::{Backlog, LiveFile, Shared, State},
    spares,
};
use crate::{
    OpenError,
    io::{Clock, Disk, DiskFile, OpenMode, Workers},
};

const REWRITE_BYTES: usize = 1 << 20;

/// A record that the log held when it was opened.
#[derive(Clone, Debug)]
pub(crate) struct ReplayedRecord {
    pub(crate) lsn: Lsn,
    pub(crate) key: PartitionKey,
    pub(crate) kind: RecordKind,
    pub(crate) log_id: LogId,
    pub(crate) base_offset: Offset,
    pub(crate) payload: Bytes,
}

impl ReplayedRecord {
    pub(super) fn new(header: &FrameHeader, payload: Bytes) -> Self {
        Self {
            lsn: header.lsn,
            key: header.key,
            kind: header.kind,
            log_id: header.log_id,
            base_offset: header.base_offset,
            payload,
        }
    }
}

/// What a replay found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WalReport {
    /// Records visited, marks included.
    pub(crate) records: u64,
    /// Their bytes, frames included.
    pub(crate) bytes: u64,
    /// Bytes of the torn end, which was never acknowledged.
    pub(crate) torn_bytes: u64,
}

/// A log whose files are of known formats, but not yet read.
#[derive(Debug)]
pub(crate) struct UnrecoveredWal {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    config: WalConfig,
    /// In the order of their sequence numbers.
    files: Vec<(WalFile, FileHeader)>,
}

/// A file with records.
#[derive(Clone, Debug)]
struct Used {
    file: WalFile,
    first: Lsn,
}

/// Where the valid records end.
struct End {
    /// In the last file with records.
    position: u64,
    /// The record that was not found.
    missing: Lsn,
    /// Where the records begin whose durability is not known.
    unsure_from: Option<u64>,
}

impl UnrecoveredWal {
    /// Lists the log's files and reads their headers; changes nothing. Files that are opened only to be read are not to be
    /// replayed.
    ///
    /// # Errors
    /// Where a file can't be read or a newer version wrote it.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: WalConfig,
        mode: OpenMode,
    ) -> Result<Self, OpenError> {
        let directory = Path::new(DIRECTORY);
        let names = match disk.list(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            names => names.map_err(failed("list", directory))?,
        };
        let mut files = Vec::new();
        for sequence in names.iter().filter_map(|name| parse_file_name(name)) {
            let path = file_path(sequence);
            let (file, len, header) = open_file(disk.as_ref(), &path, mode)?;
            let file = WalFile {
                sequence,
                path,
                file,
                len,
            };
            files.push((file, header));
        }
        Ok(Self {
            disk,
            clock,
            config,
            files,
        })
    }

    /// Visits all records behind `after` in their order, cuts a torn end off, and opens the log for writing, by `workers`.
    ///
    /// # Errors
    /// What `visit` answers; [`OpenError::Damaged`] where records are missing that were once durable. Nothing was changed
    /// then.
    pub(crate) fn replay(
        self,
        after: Lsn,
        workers: &dyn Workers,
        visit: &mut dyn FnMut(ReplayedRecord) -> Result<(), OpenError>,
    ) -> Result<(Wal, WalReport), OpenError> {
        let used = self.used();
        let (report, end, backlog) = self.read(&used, after, visit)?;
        let wal = self.resume(used, &end, after, backlog, workers)?;
        Ok((wal, report))
    }

    /// Visits all records behind `after` in their order, and changes nothing.
    ///
    /// # Errors
    /// As for [`Self::replay`].
    pub(crate) fn verify(
        &self,
        after: Lsn,
        visit: &mut dyn FnMut(ReplayedRecord) -> Result<(), OpenError>,
    ) -> Result<WalReport, OpenError> {
        Ok(self.read(&self.used(), after, visit)?.0)
    }

    fn read(
        &self,
        used: &[Used],
        after: Lsn,
        visit: &mut dyn FnMut(ReplayedRecord) -> Result<(), OpenError>,
    ) -> Result<(WalReport, End, Backlog), OpenError> {
        let mut replay = Replay {
            after,
            visit,
            report: WalReport::default(),
            backlog: Backlog::default(),
            durable: Lsn::default(),
            unsure: VecDeque::new(),
        };
        let end = match used.iter().rposition(|used| used.first <= after.next()) {
            Some(start) => self.replay_files(&used[start..], &mut replay)?,
            None if used.is_empty() => End {
                position: 0,
                missing: Lsn::new(1),
                unsure_from: None,
            },
            None => return Err(self.gap(None, after.next(), &used[0])),
        };
        replay.report.torn_bytes = self.torn_bytes(used.last(), &end)?;
        if end.missing <= after {
            let path = used
                .last()
                .map_or(DIRECTORY.into(), |used| used.file.path.clone());
            return Err(OpenError::Damaged {
                path,
                position: end.position,
                detail: format!(
                    "the write-ahead log ends before record {}, though a checkpoint covers all up to {after}",
                    end.missing
                ),
            });
        }
        let Replay {
            report, backlog, ..
        } = replay;
        Ok((report, end, backlog))
    }

    fn used(&self) -> Vec<Used> {
        self.files
            .iter()
            .filter_map(|(file, header)| match header {
                FileHeader::Known {
                    sequence,
                    first: Some(first),
                } if *sequence == file.sequence => Some(Used {
                    file: file.clone(),
                    first: *first,
                }),
                _ => None,
            })
            .collect()
    }

    fn replay_files(&self, used: &[Used], replay: &mut Replay<'_>) -> Result<End, OpenError> {
        let mut missing = used[0].first;
        let mut position = 0;
        for (index, current) in used.iter().enumerate() {
            if current.first != missing {
                let before = index.checked_sub(1).map(|index| (&used[index], position));
                return Err(self.gap(before, missing, current));
            }
            (position, missing) = replay.file(current)?;
        }
        // A file whose first record is not known to be durable has a header that is not, either.
        let unsure_from = replay.unsure.front().map(|(lsn, position)| {
            let is_first = used.last().is_some_and(|used| used.first == *lsn);
            if is_first { 0 } else { *position }
        });
        Ok(End {
            position,
            missing,
            unsure_from,
        })
    }

    /// The damage where a file's header says that `missing` was durable, and it is not there.
    fn gap(&self, before: Option<(&Used, u64)>, missing: Lsn, next: &Used) -> OpenError {
        let from = before.map_or(0, |(used, _)| used.file.sequence);
        let unreadable = self.files.iter().find(|(file, header)| {
            *header == FileHeader::Invalid && (from..next.file.sequence).contains(&file.sequence)
        });
        let (path, position) = match (unreadable, before) {
            (Some((file, _)), _) => (&file.path, 0),
            (None, Some((used, position))) => (&used.file.path, position),
            (None, None) => (&next.file.path, 0),
        };
        OpenError::Damaged {
            path: path.clone(),
            position,
            detail: format!(
                "record {missing} of the write-ahead log can't be read here, and {} begins with record {}, written after that one was synced",
                next.file.path.display(),
                next.first
            ),
        }
    }

    /// How much lies behind the end, where that is but a torn write.
    fn torn_bytes(&self, last: Option<&Used>, end: &End) -> Result<u64, OpenError> {
        let mut torn = 0;
        if let Some(last) = last {
            torn += remains(&last.file, end.position, end.missing)?;
        }
        let behind = last.map_or(0, |last| last.file.sequence);
        for (file, header) in &self.files {
            if file.sequence > behind && *header == FileHeader::Invalid {
                torn += remains(file, 0, end.missing)?;
            }
        }
        Ok(torn)
    }

    fn resume(
        self,
        used: Vec<Used>,
        end: &End,
        after: Lsn,
        backlog: Backlog,
        workers: &dyn Workers,
    ) -> Result<Wal, OpenError> {
        let directory = Path::new(DIRECTORY);
        if !self.disk.exists(directory) {
            self.disk
                .create_dir_all(directory)
                .and_then(|()| self.disk.sync_dir(Path::new("")))
                .map_err(failed("create", directory))?;
        }
        if let (Some(last), Some(from)) = (used.last(), end.unsure_from) {
            rewrite(&last.file, from, end.position)
                .map_err(failed("write again", &last.file.path))?;
        }
        let mut state = State {
            next: end.missing,
            last_submitted: end.missing.previous(),
            flushed: end.missing.previous(),
            backlog,
            next_sequence: self.files.last().map_or(1, |(file, _)| file.sequence + 1),
            ..State::default()
        };
        self.sort_unused(used.last(), &mut state);
        if state.spares.is_empty() {
            self.first_file(&mut state)?;
        } else {
            // A prepared file of before may have a name that is not durable yet.
            let synced = self.disk.sync_dir(directory);
            synced.map_err(failed("sync", directory))?;
        }
        state.live = used
            .into_iter()
            .map(|Used { file, first }| LiveFile { file, first })
            .collect();
        state.recycle(after);
        let shared = Shared {
            disk: self.disk,
            clock: self.clock,
            config: self.config,
            metrics: WalMetrics::default(),
            state: Mutex::new(state),
            writer: OnceLock::new(),
            preparer: OnceLock::new(),
        };
        Wal::start(Arc::new(shared), workers).map_err(failed("start the workers of", directory))
    }

    /// Takes over prepared files, and removes those that hold nothing and are of no use.
    fn sort_unused(&self, last: Option<&Used>, state: &mut State) {
        let behind = last.map_or(0, |last| last.file.sequence);
        for (file, header) in &self.files {
            let prepared = FileHeader::Known {
                sequence: file.sequence,
                first: None,
            };
            let fits = file.sequence > behind && file.len == self.config.file_bytes;
            if *header == prepared && fits {
                state.spares.push_back(file.clone());
            } else if !matches!(header, FileHeader::Known { sequence, first: Some(_) } if *sequence == file.sequence)
            {
                spares::remove_unused(self.disk.as_ref(), &file.path);
            }
        }
    }

    /// A file that is quick to make, so that an empty directory opens at once. A full disk does not keep the log from
    /// opening, only from taking records.
    fn first_file(&self, state: &mut State) -> Result<(), OpenError> {
        let sequence = state.allocate_sequence();
        let disk = self.disk.as_ref();
        let made = spares::allocate(disk, sequence, self.config.file_bytes)
            .and_then(|spare| spares::finish(disk, &spare).map(|()| spare));
        match made {
            Ok(spare) => state.spares.push_back(spare),
            Err(error) if spares::is_full(&error) => state.disk_full = Some(error.to_string()),
            Err(error) => return Err(failed("create", &file_path(sequence))(error)),
        }
        Ok(())
    }
}

/// A replay under way.
struct Replay<'a> {
    after: Lsn,
    visit: &'a mut dyn FnMut(ReplayedRecord) -> Result<(), OpenError>,
    report: WalReport,
    backlog: Backlog,
    /// The last record known to be durable.
    durable: Lsn,
    /// The number and place of each record behind it in the file being read.
    unsure: VecDeque<(Lsn, u64)>,
}

impl Replay<'_> {
    /// Reads a file's records; where they end, and the record that was expected there.
    fn file(&mut self, used: &Used) -> Result<(u64, Lsn), OpenError> {
        self.durable = self.durable.max(used.first.previous());
        self.unsure.clear();
        let mut scan = Scan::new(&used.file);
        let mut position = FILE_HEADER_LEN as u64;
        let mut expected = used.first;
        while let Some((header, payload)) = scan.frame(position)? {
            if header.lsn != expected {
                break;
            }
            self.durable = self.durable.max(header.durable_to);
            self.unsure.push_back((header.lsn, position));
            let durable = self.durable;
            while self
                .unsure
                .pop_front_if(|(lsn, _)| *lsn <= durable)
                .is_some()
            {}
            position += header.frame_len();
            expected = expected.next();
            if header.lsn > self.after {
                self.record(&header, payload)?;
            }
        }
        Ok((position, expected))
    }

    fn record(&mut self, header: &FrameHeader, payload: Bytes) -> Result<(), OpenError> {
        self.report.records += 1;
        self.report.bytes += header.frame_len();
        self.backlog.add(header.lsn, header.frame_len());
        (self.visit)(ReplayedRecord::new(header, payload))
    }
}

/// How much lies from `from` on, where record `missing` is expected and not found.
///
/// # Errors
/// [`OpenError::Damaged`] where that record was once durable.
pub(super) fn remains(file: &WalFile, from: u64, missing: Lsn) -> Result<u64, OpenError> {
    match Scan::new(file).remains(from, missing)? {
        Remains::Torn { end } => Ok(end - from),
        Remains::Proof { position, lsn } => Err(OpenError::Damaged {
            path: file.path.clone(),
            position: from,
            detail: format!(
                "record {missing} of the write-ahead log can't be read here, and record {lsn} at {position} was written after that one was synced"
            ),
        }),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |error| OpenError::Io {
        operation,
        path,
        error,
    }
}

/// A file, its length, and what its first bytes say.
///
/// # Errors
/// Where it can't be read or a newer version wrote it.
pub(super) fn open_file(
    disk: &dyn Disk,
    path: &Path,
    mode: OpenMode,
) -> Result<(Arc<dyn DiskFile>, u64, FileHeader), OpenError> {
    let file = disk.open(path, mode).map_err(failed("open", path))?;
    let len = file.len().map_err(failed("measure", path))?;
    let mut bytes = [0; FILE_HEADER_LEN];
    let header = if len < FILE_HEADER_LEN as u64 {
        FileHeader::Invalid
    } else {
        file.read_into(Position::new(0), &mut bytes)
            .map_err(failed("read", path))?;
        decode_file_header(&bytes)
    };
    if let FileHeader::Newer { version } = header {
        return Err(OpenError::NewerFormat {
            path: path.to_owned(),
            found: version,
            supported: FORMAT_VERSION,
        });
    }
    Ok((file, len, header))
}

/// Writes bytes again that were read from the page cache but may never have reached the disk (after a failed sync, not
/// even another sync brings them there), and syncs.
fn rewrite(file: &WalFile, mut from: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; REWRITE_BYTES];
    while from < end {
        let step = (end - from).min(REWRITE_BYTES as u64);
        let piece = &mut buffer[..step as usize];
        file.file.read_into(Position::new(from), piece)?;
        file.file.write_at(Position::new(from), &[piece])?;
        from += step;
    }
    file.file.sync()
}
