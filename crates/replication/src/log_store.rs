//! A partition's log, as openraft's log store.
//!
//! Appending queues and returns: the write-ahead log's thread reports when it is durable. Where this node is the group's only
//! voter, that is the commit, and the same thread lets readers see the records and answers who waits for them: openraft's
//! own way from there (through its I/O forwarder, its core and its state machine's worker) takes three task switches more
//! and follows behind.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds, RangeInclusive},
    sync::Arc,
};

use bytes::Bytes;
use futures::{Stream, stream};
use openraft::{
    EntryPayload, OptionalSend, RaftLogReader,
    entry::RaftEntry as _,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use quipu_model::{LogId, Offset, RaftIndex};
use quipu_storage::{ControlKind, LogEntry, Payload, Reservation};
use tokio::sync::oneshot;

use crate::{
    flight::Flight,
    group::Group,
    type_config::{
        Incoming, Membership, RaftEntry, RaftLogId, RaftVote, Types, control, from_entry_info,
        from_log_entry, from_raft_id, from_raft_vote, is_sole_voter, to_log_entry, to_raft_id,
        to_raft_vote,
    },
};

/// About how many bytes of entries are read at once for a follower.
const MAX_READ_BYTES: usize = 1 << 20;
/// How many entries are looked up at once for applying.
const APPLY_CHUNK: u64 = 256;

#[derive(Debug)]
pub(crate) struct LogStore {
    group: Arc<Group>,
    /// Whether this node is the only voter, as of the last entry appended.
    sole_voter: bool,
}

impl LogStore {
    /// `membership` is the newest in the log.
    pub(crate) fn new(group: Arc<Group>, membership: &Membership) -> Self {
        let sole_voter = is_sole_voter(group.node.get(), membership);
        Self { group, sole_voter }
    }
}

/// Entries on their way into the log, and who waits for them.
struct Appending {
    entries: Vec<LogEntry>,
    flights: Vec<Arc<Flight>>,
    /// Held until the batches are written.
    room: Vec<Reservation>,
    end: Offset,
}

impl Appending {
    fn add(&mut self, entry: RaftEntry) -> io::Result<()> {
        let Incoming {
            mut entry,
            flight,
            room,
        } = to_log_entry(entry)?;
        self.room.extend(room);
        if let Some(flight) = flight {
            if flight.is_cancelled() {
                // A batch before it was lost: in its place goes an entry that holds nothing. See `sequencer`.
                entry.payload = control(ControlKind::Blank, Bytes::new());
            } else {
                flight.place(self.end);
                self.flights.push(flight);
            }
        }
        if let Payload::Batch(batch) | Payload::Stamped(batch) = &entry.payload {
            let records = u64::from(batch.header().last_offset_delta) + 1;
            self.end = self.end.plus(records);
        }
        self.entries.push(entry);
        Ok(())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let state = self.group.log.state();
        Ok(LogState {
            last_purged_log_id: state.last_purged.map(to_raft_id),
            last_log_id: state.last.map(to_raft_id),
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader {
            group: Arc::clone(&self.group),
        }
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let (tell, told) = oneshot::channel();
        let done = Box::new(move |result| drop(tell.send(result)));
        self.group
            .log
            .save_vote(from_raft_vote(vote), done)
            .map_err(io::Error::other)?;
        told.await
            .map_err(|_| io::Error::other("the store was closed before the vote was durable"))?
            .map_err(io::Error::other)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut appending = Appending {
            entries: Vec::new(),
            flights: Vec::new(),
            room: Vec::new(),
            end: self.group.log.state().end_offset,
        };
        for entry in entries {
            if let EntryPayload::Membership(membership) = &entry.payload {
                self.sole_voter = is_sole_voter(self.group.node.get(), membership);
            }
            appending.add(entry)?;
        }
        let Appending {
            entries,
            flights,
            room,
            end,
        } = appending;
        let committed_by_flush = self
            .sole_voter
            .then(|| (Arc::clone(&self.group), flights.clone()));
        let done = Box::new(move |result: Result<(), quipu_storage::StorageFailure>| {
            if result.is_ok()
                && let Some((group, flights)) = committed_by_flush
            {
                group.advance(end);
                for flight in flights {
                    group.settle(&flight, None);
                }
            }
            callback.io_completed(result.map_err(io::Error::other));
        });
        self.group
            .log
            .append(entries, done)
            .map_err(io::Error::other)?;
        drop(room);
        for flight in flights {
            flight.appended();
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> Result<(), io::Error> {
        let last = last.as_ref().map(from_raft_id);
        let state = self.group.log.state();
        if last.map(|id| id.index) >= state.last.map(|id| id.index) {
            return Ok(());
        }
        // What was cut may have been the membership that the flag came from. False only costs time.
        self.sole_voter = false;
        self.group
            .log
            .truncate_after(last)
            .map_err(io::Error::other)
    }

    async fn purge(&mut self, upto: RaftLogId) -> Result<(), io::Error> {
        // Past the log's end, the log goes on where the snapshot that was installed ends: openraft purges after installing.
        let installed = self.group.snapshots.lock().current.clone();
        let next_offset = match installed {
            Some(point) if point.last == upto => point.next_offset,
            _ => self.group.log.state().end_offset,
        };
        self.group
            .log
            .purge(from_raft_id(&upto), next_offset)
            .map_err(io::Error::other)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct LogReader {
    group: Arc<Group>,
}

impl LogReader {
    /// The part of a range that the log holds.
    fn kept(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let state = self.group.log.state();
        let first_kept = state.last_purged.map_or(0, |id| id.index.get() + 1);
        let end_kept = state.last.map_or(0, |id| id.index.get() + 1);
        let first = match range.start_bound() {
            Bound::Included(&first) => first,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => u64::MAX,
        };
        (first.max(first_kept), end.min(end_kept))
    }

    fn infos(&self, first: u64, end: u64) -> io::Result<Vec<RaftEntry>> {
        if first >= end {
            return Ok(Vec::new());
        }
        self.group
            .log
            .entry_infos(RaftIndex::new(first), RaftIndex::new(end))
            .map_err(io::Error::other)?
            .into_iter()
            .map(|info| Ok(from_entry_info(info)?))
            .collect()
    }
}

impl RaftLogReader<Types> for LogReader {
    /// openraft calls this where it needs ids, memberships and what to apply: batches come without their bytes. With bytes
    /// they come from `limited_get_log_entries`, for followers.
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<RaftEntry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (first, end) = self.kept(&range);
        self.infos(first, end)
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.group.log.vote().map(to_raft_vote))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        let (first, end) = self.kept(&(start..end));
        if first >= end {
            return Ok(Vec::new());
        }
        let entries = self
            .group
            .log
            .entries(RaftIndex::new(first), RaftIndex::new(end), MAX_READ_BYTES)
            .map_err(io::Error::other)?;
        // A stream that was given up may still ask for what was purged since: it must not take what stands behind for that.
        // Of nothing, the network makes an error (`network::Peer::lacks_entries`).
        if entries.first().is_some_and(|e| e.id.index.get() != start) {
            return Ok(Vec::new());
        }
        entries
            .into_iter()
            .map(|entry| Ok(from_log_entry(entry)?))
            .collect()
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<RaftEntry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (first, end) = self.kept(&range);
        stream::iter(Infos {
            reader: self.clone(),
            chunk: Vec::new().into_iter(),
            next: first,
            end,
        })
    }

    async fn get_key_log_ids(
        &mut self,
        range: RangeInclusive<RaftLogId>,
    ) -> Result<Vec<RaftLogId>, io::Error> {
        let (first, last) = (range.start().index, range.end().index);
        let ids = self
            .group
            .log
            .key_log_ids(RaftIndex::new(first), RaftIndex::new(last));
        // The log names where terms begin; openraft wants where they end.
        let mut lasts = Vec::new();
        for pair in ids.windows(2) {
            if let [before, id] = pair
                && before.term != id.term
            {
                let end = LogId::new(before.term.get(), id.index.get() - 1);
                lasts.push(to_raft_id(end));
            }
        }
        lasts.extend(ids.last().copied().map(to_raft_id));
        Ok(lasts)
    }
}

/// Entries without their bytes, looked up chunk by chunk.
struct Infos {
    reader: LogReader,
    chunk: std::vec::IntoIter<RaftEntry>,
    next: u64,
    end: u64,
}

impl Iterator for Infos {
    type Item = io::Result<RaftEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(entry) = self.chunk.next() {
            return Some(Ok(entry));
        }
        if self.next >= self.end {
            return None;
        }
        let to = self.end.min(self.next + APPLY_CHUNK);
        match self.reader.infos(self.next, to) {
            Ok(entries) => {
                self.next = entries.last().map_or(self.end, |entry| entry.index() + 1);
                self.chunk = entries.into_iter();
                self.chunk.next().map(Ok)
            }
            Err(error) => {
                self.next = self.end;
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openraft::storage::RaftLogStorage as _;
    use openraft::{EntryPayload, RaftLogReader as _, entry::RaftEntry as _, storage::IOFlushed};
    use quipu_model::{Offset, TopicConfig};
    use quipu_storage::io::FaultyDisk;

    use super::LogStore;
    use crate::{
        flight::{Flight, Loss},
        group::Group,
        tests::{NODE, key, open, plain},
        type_config::{Membership, Proposal, RaftEntry, RaftLogId},
    };

    #[tokio::test]
    async fn a_batch_that_was_given_up_leaves_an_empty_entry_and_no_offset() {
        let store = open(Arc::new(FaultyDisk::new(1)));
        let log = store
            .create_partition(key(), TopicConfig::default())
            .unwrap();
        let group = Group::load(NODE, Arc::clone(&store), Arc::clone(&log)).unwrap();
        let mut log_store = LogStore::new(Arc::clone(&group), &Membership::default());
        let flights: Vec<_> = (0..3).map(|_| Flight::new()).collect();
        flights[1].cancel(Loss::Refused { leader: None });
        let entries: Vec<RaftEntry> = flights
            .iter()
            .zip(0..)
            .map(|(flight, index)| {
                let batch = plain(4);
                let room = log.reserve(batch.bytes().len() as u64).unwrap();
                let proposal = Proposal::Batch {
                    batch,
                    flight: Some(Arc::clone(flight)),
                    room: Some(room),
                };
                RaftEntry::new_normal(RaftLogId::new(1.into(), index), proposal)
            })
            .collect();
        log_store.append(entries, IOFlushed::noop()).await.unwrap();

        let mut reader = log_store.get_log_reader().await;
        let kept = reader.try_get_log_entries(..).await.unwrap();
        let blank = |entry: &RaftEntry| matches!(entry.payload, EntryPayload::Blank);
        assert_eq!(
            kept.iter().map(blank).collect::<Vec<_>>(),
            [false, true, false]
        );
        assert_eq!(log.state().end_offset, Offset::new(8));
        let outcomes = flights.iter().map(|flight| flight.settle(None).unwrap());
        assert_eq!(
            outcomes.collect::<Vec<_>>(),
            [
                Ok(Offset::ZERO),
                Err(Loss::Refused { leader: None }),
                Ok(Offset::new(4))
            ]
        );
    }

    #[tokio::test]
    async fn a_stream_that_is_behind_a_purge_gets_nothing_instead_of_what_stands_behind() {
        let store = open(Arc::new(FaultyDisk::new(1)));
        let log = store
            .create_partition(key(), TopicConfig::default())
            .unwrap();
        let group = Group::load(NODE, Arc::clone(&store), Arc::clone(&log)).unwrap();
        let mut log_store = LogStore::new(Arc::clone(&group), &Membership::default());
        let entry = |index| RaftEntry::new_blank(RaftLogId::new(1.into(), index));
        let entries: Vec<RaftEntry> = (0..9).map(entry).collect();
        log_store.append(entries, IOFlushed::noop()).await.unwrap();
        log_store.purge(RaftLogId::new(1.into(), 4)).await.unwrap();
        let mut reader = log_store.get_log_reader().await;
        let mut count = async |start| {
            reader
                .limited_get_log_entries(start, 9)
                .await
                .unwrap()
                .len()
        };
        assert_eq!([count(3).await, count(4).await, count(5).await], [0, 0, 4]);
    }
}
