//! The newest offset of each key, in bounded memory.

use std::hash::{BuildHasher, Hasher, RandomState};

use quipu_model::Offset;

/// What a slot takes: 16 bytes of hash, 4 of offset.
const SLOT_BYTES: usize = 20;

/// How full the table may be, in percent: searches grow long behind that.
const MOST_FULL: usize = 90;

/// An open-addressed table from a key's hash to an offset.
///
/// Keys are told apart by 128 bits of SipHash under a secret of this table's own, so that nobody can make two keys meet, and by chance
/// they do not.
pub(super) struct KeyTable {
    /// 0: free.
    hashes: Vec<u128>,
    /// Less `first`.
    offsets: Vec<u32>,
    first: Offset,
    len: usize,
    most: usize,
    secret: RandomState,
}

impl KeyTable {
    /// A table for at most `records` records from an offset on, in at most `memory_bytes` (but with room for one key).
    pub(super) fn new(first: Offset, records: u64, memory_bytes: usize) -> Self {
        let wanted = usize::try_from(records).unwrap_or(usize::MAX);
        let wanted = wanted.saturating_mul(100) / MOST_FULL + 2;
        let slots = wanted.min(memory_bytes / SLOT_BYTES).max(2);
        Self {
            hashes: vec![0; slots],
            offsets: vec![0; slots],
            first,
            len: 0,
            most: (slots * MOST_FULL / 100).max(1),
            secret: RandomState::new(),
        }
    }

    /// Notes that a key stands at an offset, which is later than all before. `false` where there is no room for it.
    pub(super) fn note(&mut self, key: &[u8], offset: Offset) -> bool {
        let Ok(distance) = u32::try_from(offset.since(self.first)) else {
            return false;
        };
        let hash = self.hash(key);
        let slot = self.slot_of(hash);
        if self.hashes[slot] == 0 {
            if self.len == self.most {
                return false;
            }
            self.hashes[slot] = hash;
            self.len += 1;
        }
        self.offsets[slot] = distance;
        true
    }

    /// The newest offset noted of a key.
    pub(super) fn newest(&self, key: &[u8]) -> Option<Offset> {
        if self.len == 0 {
            return None;
        }
        let slot = self.slot_of(self.hash(key));
        (self.hashes[slot] != 0).then(|| self.first.plus(self.offsets[slot].into()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where a hash stands, or would.
    fn slot_of(&self, hash: u128) -> usize {
        let slots = self.hashes.len();
        // The upper half decides, scaled: as even as a remainder, without a division.
        let mut slot = (((hash >> 64) * slots as u128) >> 64) as usize;
        while self.hashes[slot] != 0 && self.hashes[slot] != hash {
            slot += 1;
            if slot == slots {
                slot = 0;
            }
        }
        slot
    }

    fn hash(&self, key: &[u8]) -> u128 {
        let half = |which: u8| {
            let mut hasher = self.secret.build_hasher();
            hasher.write_u8(which);
            hasher.write(key);
            u128::from(hasher.finish())
        };
        (half(0) << 64 | half(1)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use quipu_model::Offset;

    use super::{KeyTable, SLOT_BYTES};

    #[test]
    fn the_newest_of_each_key_is_found_and_nothing_else() {
        let first = Offset::new(1 << 40);
        let mut table = KeyTable::new(first, 5000, usize::MAX);
        let mut model = HashMap::new();
        for n in 0..5000_u64 {
            let key = (n * n % 1777).to_be_bytes();
            let offset = first.plus(n);
            assert!(table.note(&key, offset));
            model.insert(key, offset);
        }
        for n in 0..4000_u64 {
            let key = n.to_be_bytes();
            assert_eq!(table.newest(&key), model.get(&key).copied(), "{n}");
        }
    }

    #[test]
    fn a_full_table_takes_no_more_keys_but_newer_offsets() {
        let mut table = KeyTable::new(Offset::ZERO, u64::MAX, 100 * SLOT_BYTES);
        let taken = (0..1000_u64).take_while(|n| table.note(&n.to_be_bytes(), Offset::new(*n)));
        assert_eq!(taken.count(), 90);
        assert!(table.note(&7_u64.to_be_bytes(), Offset::new(2000)));
        assert_eq!(table.newest(&7_u64.to_be_bytes()), Some(Offset::new(2000)));
        assert_eq!(table.newest(&500_u64.to_be_bytes()), None);
        let far = Offset::new(u64::from(u32::MAX) + 1);
        assert!(!table.note(&7_u64.to_be_bytes(), far));
    }

    #[test]
    fn the_smallest_table_takes_one_key() {
        let mut table = KeyTable::new(Offset::ZERO, 0, 0);
        assert!(table.is_empty());
        assert!(table.note(b"", Offset::new(3)));
        assert!(!table.note(b"x", Offset::new(4)));
        assert_eq!(table.newest(b""), Some(Offset::new(3)));
    }
}
