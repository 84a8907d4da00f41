//! Metadata records as record batches: one protobuf message a record's value.

use prost::Message;
use quipu_model::{
    Offset, RecordBatch, TimestampMs,
    batch::{BatchBuilder, BatchError, Compression},
};
use quipu_proto::internal::v1::{MetadataRecord, metadata_record::Record};

/// Why a metadata record cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("its batch is unreadable: {0}")]
    Batch(#[from] BatchError),
    #[error("the record at offset {offset} has no value")]
    NoValue { offset: Offset },
    #[error("the record at offset {offset} is unreadable: {error}")]
    Message {
        offset: Offset,
        error: prost::DecodeError,
    },
}

/// One batch of all `records`, which are taken in together or not at all.
pub(crate) fn to_batch(records: Vec<Record>, now: TimestampMs) -> Result<RecordBatch, BatchError> {
    let mut builder = BatchBuilder::new(Compression::None);
    for record in records {
        let message = MetadataRecord {
            record: Some(record),
        };
        builder.append(now, None, Some(&message.encode_to_vec()), &[]);
    }
    builder.build()
}

/// The records of a batch with their offsets.
pub(crate) fn from_batch(
    batch: &RecordBatch,
) -> Result<Vec<(Offset, MetadataRecord)>, DecodeError> {
    batch
        .records()?
        .map(|record| {
            let record = record?;
            let offset = record.offset;
            let value = record.value.ok_or(DecodeError::NoValue { offset })?;
            let message = MetadataRecord::decode(value)
                .map_err(|error| DecodeError::Message { offset, error })?;
            Ok((offset, message))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use quipu_model::{Offset, TimestampMs};
    use quipu_proto::internal::v1::{ProducerIdsReserved, metadata_record::Record};

    use super::{from_batch, to_batch};

    #[test]
    fn records_survive_their_batch() {
        let block = |next_id| {
            Record::ProducerIdsReserved(ProducerIdsReserved {
                node_id: 1,
                next_id,
            })
        };
        let batch = to_batch(vec![block(1000), block(2000)], TimestampMs::new(5)).unwrap();
        let records = from_batch(&batch).unwrap();
        let offsets: Vec<_> = records.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, [Offset::new(0), Offset::new(1)]);
        assert_eq!(records[1].1.record, Some(block(2000)));
    }
}
