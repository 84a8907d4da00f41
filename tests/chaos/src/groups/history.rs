//! What members of groups had and processed, and the check of it, as it comes: one pass, in the order in which it was noted.

use std::{collections::BTreeMap, fmt};

/// Violations kept; of more, only the number is known.
const MOST_KEPT: usize = 100;

/// What must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Two members had a partition at one time.
    Shared,
    /// A record was passed over: an owner went on behind it, or it is stored as processed and nobody did.
    Skipped,
    /// An owner processed a record after one that follows it.
    Reordered,
    /// The group's offset was less than before.
    Backwards,
    /// Never processed by the group.
    Unprocessed,
}

/// A partition as one group reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) group: u16,
    pub(crate) partition: u32,
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    pub(crate) round: u16,
    pub(crate) note: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { group, partition } = self.place;
        write!(
            f,
            "{:?}: group {group}, partition {partition}, round {}: {}",
            self.kind, self.round, self.note
        )
    }
}

#[derive(Clone, Debug, Default)]
struct Progress {
    /// By offset.
    processed: Vec<bool>,
    /// Everything before is processed.
    through: u64,
    /// The newest offset of the group that was seen.
    stored: u64,
    /// Members that have the partition, each with the offset that its run is to go on with.
    owners: BTreeMap<u32, Option<u64>>,
}

/// Counts, for the report.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Records processed, those that were processed again included.
    pub(crate) processed: u64,
    pub(crate) again: u64,
    /// Times that a member got a partition.
    pub(crate) owned: u64,
    /// Times that the groups' offsets of all partitions were fetched.
    pub(crate) fetched: u64,
}

/// Everything that groups did. Memory: a byte an offset and group.
#[derive(Debug)]
pub(crate) struct History {
    partitions: u32,
    /// By group, then by partition.
    progress: Vec<Progress>,
    round: u16,
    counts: Counts,
    kept: Vec<Violation>,
    found: u64,
}

impl History {
    pub(crate) fn new(groups: u16, partitions: u32) -> Self {
        let places = usize::from(groups) * partitions as usize;
        Self {
            partitions,
            progress: vec![Progress::default(); places],
            round: 0,
            counts: Counts::default(),
            kept: Vec::new(),
            found: 0,
        }
    }

    /// What is noted from now on belongs to this round.
    pub(crate) fn enter(&mut self, round: u16) {
        self.round = round;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// What was found, as far as it is kept, and how much that was.
    pub(crate) fn violations(&self) -> (&[Violation], u64) {
        (&self.kept, self.found)
    }

    /// Before which offset everything is processed.
    pub(crate) fn through(&self, place: Place) -> u64 {
        self.progress[self.at(place)].through
    }

    /// The group's offset, as last seen.
    pub(crate) fn stored(&self, place: Place) -> u64 {
        self.progress[self.at(place)].stored
    }

    /// A member gets a partition.
    pub(crate) fn begin(&mut self, place: Place, member: u32) {
        self.counts.owned += 1;
        let at = self.at(place);
        let owners = &mut self.progress[at].owners;
        let others: Vec<u32> = owners.keys().copied().filter(|m| *m != member).collect();
        owners.insert(member, None);
        if !others.is_empty() {
            let note = format!("member {member} got it while {others:?} had it");
            self.violate(Kind::Shared, place, note);
        }
    }

    /// A member has a partition no more, if it had it.
    pub(crate) fn end(&mut self, place: Place, member: u32) {
        let at = self.at(place);
        self.progress[at].owners.remove(&member);
    }

    /// A member has nothing any more.
    pub(crate) fn gone(&mut self, member: u32) {
        for progress in &mut self.progress {
            progress.owners.remove(&member);
        }
    }

    /// A member processed a record.
    pub(crate) fn process(&mut self, place: Place, member: u32, offset: u64) {
        self.counts.processed += 1;
        let at = self.at(place);
        let progress = &mut self.progress[at];
        let through = progress.through;
        let run = progress.owners.get_mut(&member);
        let due = run.and_then(|due| due.replace(offset + 1));
        let wrong = match due {
            // What a member got before a partition was taken from it, it may process after.
            None if offset <= through => None,
            None => Some((
                Kind::Skipped,
                format!("begun at {offset}, processed to {through}"),
            )),
            Some(due) if offset == due => None,
            Some(due) if offset > due => Some((Kind::Skipped, format!("{offset} came for {due}"))),
            Some(due) => Some((Kind::Reordered, format!("{offset} came for {due}"))),
        };
        self.counts.again += u64::from(progress.mark(offset));
        if let Some((kind, what)) = wrong {
            self.violate(kind, place, format!("member {member}: {what}"));
        }
    }

    /// The group's offset of a partition was seen, by the one who looked at it before too.
    pub(crate) fn fetch(&mut self, place: Place, offset: u64) {
        let at = self.at(place);
        let progress = &mut self.progress[at];
        let (before, through) = (progress.stored, progress.through);
        progress.stored = offset;
        if offset < before {
            let note = format!("offset {offset} is stored, before it was {before}");
            self.violate(Kind::Backwards, place, note);
        }
        if offset > through {
            let note = format!("offset {offset} is stored, processed is all to {through}");
            self.violate(Kind::Skipped, place, note);
        }
    }

    /// All offsets of a group were fetched.
    pub(crate) fn fetched(&mut self) {
        self.counts.fetched += 1;
    }

    /// Nothing more comes: a partition ends before this offset.
    pub(crate) fn finish(&mut self, place: Place, end: u64) {
        let through = self.through(place);
        if through < end {
            let note = format!("from {through} on, of a partition that ends at {end}");
            self.violate(Kind::Unprocessed, place, note);
        }
    }

    fn at(&self, place: Place) -> usize {
        usize::from(place.group) * self.partitions as usize + place.partition as usize
    }

    fn violate(&mut self, kind: Kind, place: Place, note: String) {
        self.found += 1;
        if self.kept.len() < MOST_KEPT {
            self.kept.push(Violation {
                kind,
                place,
                round: self.round,
                note,
            });
        }
    }
}

impl Progress {
    /// Notes that a record is processed; whether it was before.
    fn mark(&mut self, offset: u64) -> bool {
        let at = offset as usize;
        if self.processed.len() <= at {
            self.processed.resize(at + 1, false);
        }
        let before = std::mem::replace(&mut self.processed[at], true);
        while self.processed.get(self.through as usize) == Some(&true) {
            self.through += 1;
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::{History, Kind, Place};

    const PLACE: Place = Place {
        group: 1,
        partition: 2,
    };

    fn history() -> History {
        History::new(2, 3)
    }

    fn process(history: &mut History, member: u32, offsets: impl IntoIterator<Item = u64>) {
        for offset in offsets {
            history.process(PLACE, member, offset);
        }
    }

    fn kinds(history: &History) -> Vec<Kind> {
        let (kept, _) = history.violations();
        kept.iter().map(|violation| violation.kind).collect()
    }

    #[test]
    fn a_partition_that_is_handed_over_and_processed_again_in_part_is_sound() {
        let mut history = history();
        history.begin(PLACE, 7);
        process(&mut history, 7, 0..10);
        history.fetch(PLACE, 6);
        history.end(PLACE, 7);
        history.begin(PLACE, 8);
        process(&mut history, 8, 6..12);
        // The one before had been handed this before it lost the partition.
        process(&mut history, 7, [10]);
        history.fetch(PLACE, 6);
        history.fetch(PLACE, 12);
        history.gone(8);
        history.begin(PLACE, 9);
        process(&mut history, 9, 12..13);
        history.finish(PLACE, 13);
        assert_eq!(kinds(&history), []);
        assert_eq!(history.counts().again, 5);
    }

    #[test]
    fn two_owners_at_one_time_are_found() {
        let mut history = history();
        history.begin(PLACE, 7);
        history.begin(Place { group: 0, ..PLACE }, 8);
        history.begin(PLACE, 7);
        assert_eq!(kinds(&history), [], "another group's, and its own");
        history.begin(PLACE, 8);
        assert_eq!(kinds(&history), [Kind::Shared]);
    }

    #[test]
    fn a_record_that_an_owner_passes_over_is_skipped() {
        let mut within = history();
        within.begin(PLACE, 7);
        process(&mut within, 7, [0, 1, 3]);
        assert_eq!(kinds(&within), [Kind::Skipped]);

        let mut between = history();
        between.begin(PLACE, 7);
        process(&mut between, 7, 0..4);
        between.end(PLACE, 7);
        between.begin(PLACE, 8);
        process(&mut between, 8, [5]);
        assert_eq!(kinds(&between), [Kind::Skipped]);
    }

    #[test]
    fn what_is_stored_as_processed_and_was_not_is_skipped() {
        let mut history = history();
        history.begin(PLACE, 7);
        process(&mut history, 7, 0..4);
        history.fetch(PLACE, 5);
        assert_eq!(kinds(&history), [Kind::Skipped]);
    }

    #[test]
    fn an_owner_that_goes_back_is_found() {
        let mut history = history();
        history.begin(PLACE, 7);
        process(&mut history, 7, [0, 1, 2, 1]);
        assert_eq!(kinds(&history), [Kind::Reordered]);
    }

    #[test]
    fn an_offset_that_goes_back_is_found() {
        let mut history = history();
        history.begin(PLACE, 7);
        process(&mut history, 7, 0..4);
        for offset in [3, 3, 2] {
            history.fetch(PLACE, offset);
        }
        assert_eq!(kinds(&history), [Kind::Backwards]);
    }

    #[test]
    fn what_nobody_processed_is_found() {
        let mut history = history();
        history.begin(PLACE, 7);
        process(&mut history, 7, 0..4);
        history.finish(PLACE, 5);
        history.finish(Place { group: 0, ..PLACE }, 0);
        assert_eq!(kinds(&history), [Kind::Unprocessed]);
    }

    #[test]
    fn violations_are_counted_where_they_are_not_kept() {
        let mut history = history();
        for member in 0..201 {
            history.begin(PLACE, member);
        }
        let (kept, found) = history.violations();
        assert_eq!((kept.len(), found), (100, 200));
    }
}
