//! What a log remembers of idempotent producers: a pure function of the batches in it.

use std::collections::{HashMap, VecDeque};

use bytes::{Buf, BufMut};
use quipu_model::{Offset, ProducerEpoch, ProducerId, Sequence, TimestampMs, batch::BatchHeader};

use super::types::{ProducerBatch, ProducerTail};

/// How many of a producer's newest batches a log remembers: as many as a producer may have in flight (Kafka's bound).
pub const MAX_PRODUCER_BATCHES: usize = 5;

/// A producer that was silent for this long, by this node's clock (a batch's own timestamps are the producer's word, and
/// one from the far future would make all others look silent), is forgotten when a segment is closed.
const EXPIRY_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// At most this many producers are kept when a segment is closed, and at most twice as many at any time: the most recent
/// ones.
const MAX_PRODUCERS: usize = 50_000;

const MAGIC: &[u8; 8] = b"QUIPUPRD";
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
struct ProducerState {
    epoch: ProducerEpoch,
    last_timestamp: TimestampMs,
    batches: VecDeque<ProducerBatch>,
}

/// The newest batches of each producer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProducerTable {
    producers: HashMap<ProducerId, ProducerState>,
    newest: TimestampMs,
}

impl ProducerTable {
    /// Notes a batch that was appended with these header fields at `base_offset`.
    pub(super) fn note(&mut self, header: &BatchHeader, base_offset: Offset, now: TimestampMs) {
        self.newest = self.newest.max(now);
        if !header.producer_id.is_some() {
            return;
        }
        let state = self
            .producers
            .entry(header.producer_id)
            .or_insert_with(|| ProducerState {
                epoch: header.producer_epoch,
                last_timestamp: now,
                batches: VecDeque::with_capacity(1),
            });
        if state.epoch != header.producer_epoch {
            state.epoch = header.producer_epoch;
            state.batches.clear();
        }
        if state.batches.len() == MAX_PRODUCER_BATCHES {
            state.batches.pop_front();
        }
        state.last_timestamp = state.last_timestamp.max(now);
        state.batches.push_back(ProducerBatch {
            first: header.base_sequence,
            last: header.last_sequence(),
            base_offset,
        });
        if self.producers.len() > 2 * MAX_PRODUCERS {
            self.expire();
        }
    }

    pub(super) fn tail(&self, id: ProducerId) -> Option<ProducerTail> {
        let state = self.producers.get(&id)?;
        Some(ProducerTail {
            epoch: state.epoch,
            batches: state.batches.iter().copied().collect(),
        })
    }

    /// Where the batches begin that are remembered, in no order.
    pub(super) fn base_offsets(&self) -> Vec<Offset> {
        let batches = self.producers.values().flat_map(|state| &state.batches);
        batches.map(|batch| batch.base_offset).collect()
    }

    /// All producers, in the order of their ids.
    pub(crate) fn tails(&self) -> Vec<(ProducerId, ProducerTail)> {
        let mut ids: Vec<_> = self.producers.keys().copied().collect();
        ids.sort_unstable();
        ids.into_iter()
            .filter_map(|id| Some((id, self.tail(id)?)))
            .collect()
    }

    /// Forgets the silent and the too many.
    pub(super) fn expire(&mut self) {
        let oldest = self.newest.get().saturating_sub(EXPIRY_MS);
        self.producers
            .retain(|_, state| state.last_timestamp.get() >= oldest);
        if self.producers.len() > MAX_PRODUCERS {
            let mut ages: Vec<_> = self
                .producers
                .iter()
                .map(|(id, state)| (state.last_timestamp, *id))
                .collect();
            ages.sort_unstable();
            for (_, id) in &ages[..ages.len() - MAX_PRODUCERS] {
                self.producers.remove(id);
            }
        }
    }

    /// The `.producers` file: magic, format, count, producers, CRC-32 of all before it. Little-endian.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.producers.len() * 64);
        out.put_slice(MAGIC);
        out.put_u32_le(FORMAT);
        out.put_i64_le(self.newest.get());
        out.put_u32_le(self.producers.len() as u32);
        let mut sorted: Vec<_> = self.producers.iter().collect();
        sorted.sort_unstable_by_key(|(id, _)| **id);
        for (id, state) in sorted {
            out.put_i64_le(id.get());
            out.put_i16_le(state.epoch.get());
            out.put_i64_le(state.last_timestamp.get());
            out.put_u8(state.batches.len() as u8);
            for batch in &state.batches {
                out.put_i32_le(batch.first.get());
                out.put_i32_le(batch.last.get());
                out.put_u64_le(batch.base_offset.get());
            }
        }
        let crc = crc32fast::hash(&out);
        out.put_u32_le(crc);
        out
    }

    /// `None` where the bytes are not what [`Self::encode`] wrote: the table is then rebuilt from the batches.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut rest = body.strip_prefix(MAGIC.as_slice())?;
        if rest.try_get_u32_le().ok()? != FORMAT {
            return None;
        }
        let newest = TimestampMs::new(rest.try_get_i64_le().ok()?);
        let count = rest.try_get_u32_le().ok()?;
        let mut producers = HashMap::new();
        for _ in 0..count {
            let id = ProducerId::new(rest.try_get_i64_le().ok()?);
            let epoch = ProducerEpoch::new(rest.try_get_i16_le().ok()?);
            let last_timestamp = TimestampMs::new(rest.try_get_i64_le().ok()?);
            let batches = (0..rest.try_get_u8().ok()?).map(|_| {
                Some(ProducerBatch {
                    first: Sequence::new(rest.try_get_i32_le().ok()?),
                    last: Sequence::new(rest.try_get_i32_le().ok()?),
                    base_offset: Offset::new(rest.try_get_u64_le().ok()?),
                })
            });
            let batches = batches.collect::<Option<_>>()?;
            producers.insert(
                id,
                ProducerState {
                    epoch,
                    last_timestamp,
                    batches,
                },
            );
        }
        Some(Self { producers, newest })
    }
}
