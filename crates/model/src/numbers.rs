//! Newtypes for the numbers of a log.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// Wraps a bare number.
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The bare number, for encoding and printing.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A record's place in a partition: the first record of a partition has offset 0. At most `i64::MAX`, the bound of
    /// the record-batch format.
    Offset(u64)
}
number! {
    /// A byte's place in a file.
    Position(u64)
}
number! {
    /// An entry's place in a partition's Raft log. Batches, blank, membership and trim entries each take one.
    RaftIndex(u64)
}
number! {
    /// A Raft term. Clients see it as [`LeaderEpoch`].
    Term(u64)
}
number! {
    /// The Raft term as clients and record batches carry it; -1 means unknown.
    LeaderEpoch(i32)
}
number! {
    /// The identity of an idempotent producer; -1 means the batch is not idempotent.
    ProducerId(i64)
}
number! {
    /// The incarnation of a producer id: a higher one fences all lower ones.
    ProducerEpoch(i16)
}
number! {
    /// A record's number within one producer id, epoch and partition. It wraps from `i32::MAX` to 0.
    Sequence(i32)
}
number! {
    /// Milliseconds since the Unix epoch; -1 means none.
    TimestampMs(i64)
}

impl Offset {
    /// The first offset of a partition.
    pub const ZERO: Self = Self(0);

    /// The offset `count` records later. Saturates.
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// How many records lie from `earlier` up to here; 0 where `earlier` is not earlier.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Position {
    /// The position `bytes` later. Saturates.
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl RaftIndex {
    /// The next index.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Term {
    /// The term as clients see it. Terms past `i32::MAX` saturate: the format has no room for more.
    pub fn leader_epoch(self) -> LeaderEpoch {
        LeaderEpoch(i32::try_from(self.0).unwrap_or(i32::MAX))
    }
}

impl ProducerId {
    /// The id of batches that are not idempotent.
    pub const NONE: Self = Self(-1);

    /// Whether the id names an idempotent producer.
    pub const fn is_some(self) -> bool {
        self.0 >= 0
    }
}

impl Sequence {
    /// The sequence `count` records later, wrapping from `i32::MAX` to 0 as Kafka's does.
    pub const fn plus(self, count: u32) -> Self {
        Self(((self.0 as i64 + count as i64) % (i32::MAX as i64 + 1)) as i32)
    }
}

impl TimestampMs {
    /// No timestamp.
    pub const NONE: Self = Self(-1);
}

/// The identity of a Raft entry: the term of the leader that made it, and its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// The term in which a leader made the entry.
    pub term: Term,
    /// The entry's place in the Raft log.
    pub index: RaftIndex,
}

impl LogId {
    /// The id of entry `index` of `term`.
    pub const fn new(term: u64, index: u64) -> Self {
        Self {
            term: Term(term),
            index: RaftIndex(index),
        }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

/// A Raft vote: in `term` this replica supports `node`; `committed` once a quorum has granted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Vote {
    /// The term voted in.
    pub term: Term,
    /// The candidate (or leader) voted for.
    pub node: crate::NodeId,
    /// Whether the candidate is known to have won.
    pub committed: bool,
}

#[cfg(test)]
mod tests {
    use super::{LeaderEpoch, Offset, Position, ProducerId, Sequence, Term};

    #[test]
    fn sequences_wrap_from_the_largest_to_zero() {
        let last = Sequence::new(i32::MAX);
        assert_eq!(last.plus(0), last);
        assert_eq!(last.plus(1), Sequence::new(0));
        assert_eq!(Sequence::new(i32::MAX - 2).plus(5), Sequence::new(2));
        assert_eq!(Sequence::new(7).plus(i32::MAX as u32), Sequence::new(6));
        assert_eq!(last.plus(u32::MAX), Sequence::new(i32::MAX - 1));
    }

    #[test]
    fn offsets_and_positions_saturate_at_their_ends() {
        assert_eq!(Offset::ZERO.plus(3).since(Offset::new(1)), 2);
        assert_eq!(Offset::new(1).since(Offset::new(3)), 0);
        assert_eq!(Offset::new(u64::MAX).plus(1), Offset::new(u64::MAX));
        assert_eq!(Position::new(u64::MAX).plus(1), Position::new(u64::MAX));
    }

    #[test]
    fn terms_that_the_format_has_no_room_for_saturate() {
        assert_eq!(Term::new(5).leader_epoch(), LeaderEpoch::new(5));
        assert_eq!(
            Term::new(1 << 40).leader_epoch(),
            LeaderEpoch::new(i32::MAX)
        );
    }

    #[test]
    fn only_producer_ids_from_zero_up_name_a_producer() {
        assert!(ProducerId::new(0).is_some());
        assert!(!ProducerId::NONE.is_some());
    }
}
