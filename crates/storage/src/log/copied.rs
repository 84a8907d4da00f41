//! What comes from another replica's log.

use bytes::Bytes;
use quipu_model::{
    Offset, Term,
    batch::{BatchError, BatchHeader, split_batches},
};

/// Why copied batches are not taken into a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCopy {
    /// They were changed on their way, or where they came from.
    #[error("a copied batch at byte {position}: {error}")]
    Batch {
        /// Among the bytes that came.
        position: usize,
        /// What is wrong with it.
        error: BatchError,
    },
    /// They are not what was asked for.
    #[error(
        "a copied batch holds offsets {base} to {last}, where {from} up to {up_to} were asked for"
    )]
    Offsets {
        /// The batch's first offset.
        base: Offset,
        /// Its last one.
        last: Offset,
        /// The first offset that was due.
        from: Offset,
        /// The one after the last that was.
        up_to: Offset,
    },
    /// No leader of such a term can have written it there.
    #[error("a copied batch at offset {base} carries a leader epoch that does not fit its place")]
    Epoch {
        /// The batch's first offset.
        base: Offset,
    },
}

/// Checks batches that another replica gave for the offsets from `from` up to, not including, `up_to`: whole ones with the right
/// checksums, in order, of terms that do not go back and lie within the two given. Offsets may be missing between them, where
/// compaction took the records away. Gives their headers.
///
/// # Errors
/// Where one is not so: nothing of them is to be written.
pub fn check_copied(
    bytes: &Bytes,
    (from, up_to): (Offset, Offset),
    (first, last): (Term, Term),
) -> Result<Vec<BatchHeader>, BadCopy> {
    let (mut due, mut epoch, mut position) = (from, first.leader_epoch(), 0);
    let mut headers = Vec::new();
    for batch in split_batches(bytes.clone()) {
        let batch = batch.map_err(|error| BadCopy::Batch { position, error })?;
        let header = *batch.header();
        let base = header.base_offset;
        if base < due || header.next_offset() > up_to {
            return Err(BadCopy::Offsets {
                base,
                last: header.last_offset(),
                from: due,
                up_to,
            });
        }
        if header.leader_epoch < epoch || header.leader_epoch > last.leader_epoch() {
            return Err(BadCopy::Epoch { base });
        }
        (due, epoch) = (header.next_offset(), header.leader_epoch);
        position += header.total_len();
        headers.push(header);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quipu_model::{
        LeaderEpoch, Offset, RecordBatch, Term, TimestampMs,
        batch::{BatchBuilder, Compression},
    };

    use super::{BadCopy, check_copied};

    /// Two records at an offset.
    fn batch(base: u64, epoch: i32) -> RecordBatch {
        let mut builder = BatchBuilder::new(Compression::None);
        for _ in 0..2 {
            builder.append(TimestampMs::new(1), None, Some(b"value"), &[]);
        }
        let batch = builder.build().unwrap();
        batch.stamped(Offset::new(base), LeaderEpoch::new(epoch))
    }

    fn check(batches: &[RecordBatch]) -> Result<usize, BadCopy> {
        let bytes: Vec<&[u8]> = batches.iter().map(|batch| &batch.bytes()[..]).collect();
        let bytes = Bytes::from(bytes.concat());
        let (range, terms) = (
            (Offset::new(10), Offset::new(16)),
            (Term::new(2), Term::new(3)),
        );
        check_copied(&bytes, range, terms).map(|headers| headers.len())
    }

    #[test]
    fn batches_in_order_are_taken_with_or_without_gaps() {
        assert_eq!(check(&[batch(10, 2), batch(12, 2), batch(14, 3)]), Ok(3));
        assert_eq!(check(&[batch(11, 2), batch(14, 3)]), Ok(2));
        assert_eq!(check(&[]), Ok(0));
    }

    #[test]
    fn what_does_not_fit_its_place_is_refused() {
        for wrong in [
            [batch(9, 2), batch(12, 2)],
            [batch(12, 2), batch(13, 2)],
            [batch(12, 2), batch(15, 2)],
        ] {
            assert!(matches!(check(&wrong), Err(BadCopy::Offsets { .. })));
        }
        for wrong in [
            [batch(10, 1), batch(12, 2)],
            [batch(10, 3), batch(12, 2)],
            [batch(10, 2), batch(12, 4)],
        ] {
            assert!(matches!(check(&wrong), Err(BadCopy::Epoch { .. })));
        }
    }

    #[test]
    fn a_changed_bit_or_a_missing_end_is_found() {
        let whole = batch(10, 2).into_bytes();
        let range = (
            (Offset::new(10), Offset::new(12)),
            (Term::new(2), Term::new(2)),
        );
        for at in 0..whole.len() {
            let mut changed = whole.to_vec();
            changed[at] ^= 4;
            let changed = check_copied(&changed.into(), range.0, range.1);
            assert!(changed.is_err(), "byte {at}");
            assert!(at == 0 || check_copied(&whole.slice(..at), range.0, range.1).is_err());
        }
    }
}
