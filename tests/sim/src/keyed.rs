//! What producers send to a compacted partition: of each record, all follows from its producer and its number, which a header tells.

use quipu_model::{
    ProducerId, RecordBatch, TimestampMs,
    batch::{BatchBuilder, Record},
};

use crate::{
    clock::EPOCH_MS,
    invariants::{Violation, violated},
    load,
    luck::Luck,
};

/// So few that each is written again and again.
const KEYS: u64 = 60;
const NUMBER: &str = "n";

/// A record's key, a number below [`KEYS`], and whether it has no value.
pub(crate) fn key(producer: ProducerId, number: u64) -> (u64, bool) {
    let mut luck = Luck::stream(number, 1 << 32 | producer.get() as u64);
    (luck.within(0..KEYS), luck.per_mille(100))
}

fn value(producer: ProducerId, number: u64) -> Option<Vec<u8>> {
    let (_, is_tombstone) = key(producer, number);
    (!is_tombstone).then(|| load::value(producer, number))
}

pub(crate) fn append(builder: &mut BatchBuilder, producer: ProducerId, number: u64) {
    let (key, _) = key(producer, number);
    builder.append(
        TimestampMs::new(EPOCH_MS),
        Some(&key.to_be_bytes()),
        value(producer, number).as_deref(),
        &[(NUMBER, Some(&number.to_be_bytes()))],
    );
}

/// The records of a batch that are left, with their numbers. Each must be what its producer sent.
pub(crate) fn records(batch: &RecordBatch) -> Result<Vec<(Record, u64)>, Violation> {
    let producer = batch.header().producer_id;
    let spoilt = |detail: &dyn std::fmt::Debug| {
        let at = batch.header().base_offset;
        violated("unchanged", format!("a batch at {at} holds {detail:?}"))
    };
    let records = match batch.records() {
        Ok(records) => records,
        Err(error) => return spoilt(&error),
    };
    let mut numbered = Vec::new();
    for record in records {
        let record = match record {
            Ok(record) => record,
            Err(error) => return spoilt(&error),
        };
        let header = record.headers.first().and_then(|h| h.value.as_deref());
        let number = header.and_then(<[u8]>::first_chunk);
        let Some(number) = number.map(|bytes| u64::from_be_bytes(*bytes)) else {
            return spoilt(&record);
        };
        let key = key(producer, number).0.to_be_bytes();
        let sent = value(producer, number);
        if record.key.as_deref() != Some(&key) || record.value.as_deref() != sent.as_deref() {
            return spoilt(&record);
        }
        numbered.push((record, number));
    }
    Ok(numbered)
}
