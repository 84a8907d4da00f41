//! Which letters of a partition were redriven, small enough to be stored beside a group's offset.

use std::ops::Range;

/// What a group's offset may have beside it, in bytes.
const MOST_BYTES: usize = 4096;

/// Which letters of a partition were redriven: all before `next`, and some behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    next: u64,
    /// Apart from each other, in order, all behind `next`.
    beyond: Vec<Range<u64>>,
}

impl Taken {
    /// From what was stored. What is not understood counts as nothing: letters are redriven again then.
    pub(super) fn decode(next: u64, text: &str) -> Self {
        let mut taken = Self {
            next,
            beyond: Vec::new(),
        };
        let ranges = text.split(',').filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
            Some(first..last.checked_add(1)?)
        });
        for range in ranges {
            let is_behind = taken
                .beyond
                .last()
                .map_or(range.start > next, |last| range.start > last.end);
            if is_behind && range.start < range.end {
                taken.beyond.push(range);
            }
        }
        taken
    }

    /// All letters before this one are taken.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Those behind it. `None` where that is more than can be stored.
    pub(super) fn encode(&self) -> Option<String> {
        let ranges = self
            .beyond
            .iter()
            .map(|range| match range.end - range.start {
                1 => range.start.to_string(),
                _ => format!("{}-{}", range.start, range.end - 1),
            });
        let text = ranges.collect::<Vec<_>>().join(",");
        (text.len() <= MOST_BYTES).then_some(text)
    }

    pub(super) fn contains(&self, offset: u64) -> bool {
        offset < self.next || self.beyond.iter().any(|range| range.contains(&offset))
    }

    /// What is before the first letter that is still kept is as good as taken.
    pub(super) fn begin_at(&mut self, earliest: u64) {
        self.next = self.next.max(earliest);
        self.absorb();
    }

    pub(super) fn insert(&mut self, offset: u64) {
        if self.contains(offset) {
            return;
        }
        let at = self.beyond.partition_point(|range| range.end < offset);
        match self.beyond.get_mut(at) {
            Some(range) if range.end == offset => range.end += 1,
            Some(range) if range.start == offset + 1 => range.start = offset,
            _ => self.beyond.insert(at, offset..offset + 1),
        }
        if let Some(follower) = self.beyond.get(at + 1)
            && follower.start == self.beyond[at].end
        {
            self.beyond[at].end = follower.end;
            self.beyond.remove(at + 1);
        }
        self.absorb();
    }

    fn absorb(&mut self) {
        while let Some(first) = self.beyond.first()
            && first.start <= self.next
        {
            self.next = self.next.max(first.end);
            self.beyond.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::Taken;

    #[test]
    fn letters_taken_one_by_one_become_ranges_and_at_last_all() {
        let mut taken = Taken::default();
        for offset in [3, 5, 4, 9, 1] {
            taken.insert(offset);
        }
        assert_eq!(taken.encode().as_deref(), Some("1,3-5,9"));
        assert_eq!(taken.next(), 0);
        taken.insert(0);
        taken.insert(2);
        assert_eq!((taken.next(), taken.encode().as_deref()), (6, Some("9")));
        taken.begin_at(9);
        assert_eq!((taken.next(), taken.encode().as_deref()), (10, Some("")));
    }

    #[test]
    fn whatever_is_taken_is_remembered() {
        for seed in 0..100 {
            let mut random = SmallRng::seed_from_u64(seed);
            let (mut taken, mut all) = (Taken::default(), BTreeSet::new());
            for _ in 0..100 {
                let offset = random.random_range(0..150);
                taken.insert(offset);
                all.insert(offset);
                taken = Taken::decode(taken.next(), &taken.encode().unwrap());
                for offset in 0..152 {
                    assert_eq!(taken.contains(offset), all.contains(&offset), "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn nonsense_counts_as_nothing_and_too_much_is_refused() {
        let taken = Taken::decode(5, "x,3,7-6,8,8-9,18446744073709551615,20-");
        assert_eq!(taken.encode().as_deref(), Some("8"));
        let mut taken = Taken::default();
        for offset in 0..2000 {
            taken.insert(offset * 2 + 1);
        }
        assert_eq!(taken.encode(), None);
    }
}
