//! What was acknowledged and read while faults went on, and the check of it: offsets give the order, so it is one pass.

use std::{collections::HashMap, fmt};

/// What a record says of itself: who sent it, as that producer's how-manieth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Sent {
    pub(crate) producer: u16,
    pub(crate) sequence: u32,
}

impl Sent {
    /// The bytes that are stored, at least `size`.
    pub(crate) fn value(self, size: usize) -> Vec<u8> {
        let mut value = format!("{}:{}:", self.producer, self.sequence).into_bytes();
        value.resize(value.len().max(size), b'.');
        value
    }

    /// What stored bytes say; `None` where no producer wrote them.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(value).ok()?.split(':');
        let producer = parts.next()?.parse().ok()?;
        let sequence = parts.next()?.parse().ok()?;
        let rest = parts.next()?;
        let whole = rest.bytes().all(|byte| byte == b'.') && parts.next().is_none();
        whole.then_some(Self { producer, sequence })
    }
}

/// What must never be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Acknowledged or read, and absent at the end.
    Lost,
    /// One record of a producer at two offsets.
    Doubled,
    /// Records of one producer in one partition, not in the order they were sent in.
    Reordered,
    /// An offset with one record, and later with another.
    Changed,
    /// An offset without a record.
    Gap,
    /// A record that was refused for good, and is stored all the same.
    Refused,
    /// A record that nobody sent.
    Foreign,
}

/// One violation: what, where, whose, and under which fault it was acknowledged or first seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) partition: u32,
    pub(crate) offset: Option<u64>,
    pub(crate) sent: Option<Sent>,
    pub(crate) round: u16,
    pub(crate) note: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: partition {}", self.kind, self.partition)?;
        if let Some(offset) = self.offset {
            write!(f, ", offset {offset}")?;
        }
        if let Some(sent) = self.sent {
            let Sent { producer, sequence } = sent;
            write!(f, ", producer {producer}, sequence {sequence}")?;
        }
        write!(f, ", round {}: {}", self.round, self.note)
    }
}

/// How an offset's record was first seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Acknowledged,
    Read,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    sent: Sent,
    round: u16,
    how: How,
}

/// Counts, for the report.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Records acknowledged.
    pub(crate) acknowledged: u64,
    /// Of these, those whose offset the broker did not remember.
    pub(crate) unplaced: u64,
    /// Records that may be stored or not.
    pub(crate) indefinite: u64,
    /// Records that are not stored.
    pub(crate) refused: u64,
    /// Records read while the faults went on.
    pub(crate) read: u64,
}

/// Everything that was promised. Memory: 16 bytes an offset and 4 a record sent.
#[derive(Debug)]
pub(crate) struct History {
    /// The first record seen at each offset of each partition.
    seen: Vec<Vec<Option<Seen>>>,
    unplaced: Vec<(u32, Sent, u16)>,
    refused: HashMap<Sent, u16>,
    /// The next sequence of each producer.
    next: Vec<u32>,
    round: u16,
    counts: Counts,
    violations: Vec<Violation>,
}

impl History {
    pub(crate) fn new(partitions: u32, producers: u16) -> Self {
        Self {
            seen: (0..partitions).map(|_| Vec::new()).collect(),
            unplaced: Vec::new(),
            refused: HashMap::new(),
            next: vec![0; producers.into()],
            round: 0,
            counts: Counts::default(),
            violations: Vec::new(),
        }
    }

    /// What is noted from now on belongs to this round.
    pub(crate) fn enter(&mut self, round: u16) {
        self.round = round;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// What was found so far.
    pub(crate) fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// How many offsets of a partition are known.
    pub(crate) fn known(&self, partition: u32) -> u64 {
        self.seen[partition as usize].len() as u64
    }

    /// A producer's next record.
    pub(crate) fn send(&mut self, producer: u16) -> Sent {
        let next = &mut self.next[usize::from(producer)];
        let sequence = *next;
        *next += 1;
        Sent { producer, sequence }
    }

    pub(crate) fn acknowledged(&mut self, partition: u32, offset: Option<u64>, sent: Sent) {
        self.counts.acknowledged += 1;
        match offset {
            Some(offset) => self.see(partition, offset, sent, How::Acknowledged),
            None => {
                self.counts.unplaced += 1;
                self.unplaced.push((partition, sent, self.round));
            }
        }
    }

    /// A record was not acknowledged; `definite`: it is certainly not stored.
    pub(crate) fn failed(&mut self, sent: Sent, definite: bool) {
        if definite {
            self.counts.refused += 1;
            self.refused.insert(sent, self.round);
        } else {
            self.counts.indefinite += 1;
        }
    }

    /// A consumer read a value where it expected the offset `expected`.
    pub(crate) fn read(&mut self, partition: u32, expected: u64, offset: u64, value: &[u8]) {
        self.counts.read += 1;
        if offset != expected {
            let note = format!("a consumer came here from offset {expected}");
            self.violate(Kind::Gap, partition, Some(offset), None, note);
        }
        match Sent::parse(value) {
            Some(sent) => self.see(partition, offset, sent, How::Read),
            None => self.foreign(partition, offset, value),
        }
    }

    fn foreign(&mut self, partition: u32, offset: u64, value: &[u8]) {
        let note = format!("it says {:?}", String::from_utf8_lossy(value));
        self.violate(Kind::Foreign, partition, Some(offset), None, note);
    }

    fn see(&mut self, partition: u32, offset: u64, sent: Sent, how: How) {
        let seen = &mut self.seen[partition as usize];
        let at = offset as usize;
        if seen.len() <= at {
            seen.resize(at + 1, None);
        }
        let now = Seen {
            sent,
            round: self.round,
            how,
        };
        let before = *seen[at].get_or_insert(now);
        if before.sent != sent {
            let note = changed(before, sent, how);
            self.violate(Kind::Changed, partition, Some(offset), Some(sent), note);
        }
    }

    fn violate(
        &mut self,
        kind: Kind,
        partition: u32,
        offset: Option<u64>,
        sent: Option<Sent>,
        note: String,
    ) {
        self.violations.push(Violation {
            kind,
            partition,
            offset,
            sent,
            round: self.round,
            note,
        });
    }

    /// Begins to check the log as it is read back; `reading` names the copy in what is reported.
    pub(crate) fn check(&mut self, reading: &str) -> Check<'_> {
        let placed = self.next.iter().map(|next| vec![false; *next as usize]);
        Check {
            placed: placed.collect(),
            last: HashMap::new(),
            partition: 0,
            expected: 0,
            reading: reading.to_owned(),
            history: self,
        }
    }
}

fn changed(before: Seen, now: Sent, how: How) -> String {
    format!(
        "it had producer {}, sequence {} ({:?} in round {}), now {:?} with producer {}, sequence {}",
        before.sent.producer,
        before.sent.sequence,
        before.how,
        before.round,
        how,
        now.producer,
        now.sequence
    )
}

/// The pass over the log: all records of partition 0, then of 1, and so on; then [`Check::finish`].
#[derive(Debug)]
pub(crate) struct Check<'a> {
    history: &'a mut History,
    /// Which sequences of each producer were met.
    placed: Vec<Vec<bool>>,
    /// The last sequence of each producer in the partition at hand.
    last: HashMap<u16, u32>,
    partition: u32,
    /// The next offset.
    expected: u64,
    reading: String,
}

impl Check<'_> {
    /// Takes the log's next record.
    pub(crate) fn record(&mut self, partition: u32, offset: u64, value: &[u8]) {
        while self.partition < partition {
            self.end_partition();
        }
        if offset != self.expected {
            let note = format!("{}: the records from {} on", self.reading, self.expected);
            self.history
                .violate(Kind::Gap, partition, Some(offset), None, note);
            self.lose(self.expected, offset);
        }
        self.expected = offset + 1;
        match Sent::parse(value) {
            Some(sent) => self.place(offset, sent),
            None => self.history.foreign(partition, offset, value),
        }
    }

    fn place(&mut self, offset: u64, sent: Sent) {
        let partition = self.partition;
        let seen = self.history.seen[partition as usize].get(offset as usize);
        let seen = seen.copied().flatten();
        let round = seen.map_or(self.history.round, |seen| seen.round);
        let mut found = Vec::new();
        match seen {
            Some(before) if before.sent != sent => {
                found.push((Kind::Changed, round, changed(before, sent, How::Read)));
            }
            Some(_) => {}
            // Other copies must have it too.
            None => self.history.see(partition, offset, sent, How::Read),
        }
        if let Some(&refused) = self.history.refused.get(&sent) {
            found.push((Kind::Refused, refused, "it was refused".to_owned()));
        }
        found.extend(self.order(sent).map(|(kind, note)| (kind, round, note)));
        for (kind, round, note) in found {
            self.history.violations.push(Violation {
                kind,
                partition,
                offset: Some(offset),
                sent: Some(sent),
                round,
                note: format!("{}: {note}", self.reading),
            });
        }
    }

    /// Notes that a record was met, and says what is wrong with its place.
    fn order(&mut self, sent: Sent) -> Option<(Kind, String)> {
        let producer = self.placed.get_mut(usize::from(sent.producer));
        let placed = producer.and_then(|all| all.get_mut(sent.sequence as usize));
        match placed {
            None => return Some((Kind::Foreign, "never sent".to_owned())),
            Some(placed) if *placed => {
                return Some((Kind::Doubled, "a second time".to_owned()));
            }
            Some(placed) => *placed = true,
        }
        let last = self.last.entry(sent.producer).or_insert(sent.sequence);
        let behind = *last;
        *last = sent.sequence.max(behind);
        (behind > sent.sequence).then(|| (Kind::Reordered, format!("behind sequence {behind}")))
    }

    /// What was seen at offsets that the log lacks is lost.
    fn lose(&mut self, from: u64, to: u64) {
        let seen = &self.history.seen[self.partition as usize];
        let range = (from as usize).min(seen.len())..(to as usize).min(seen.len());
        for at in range {
            let Some(before) = self.history.seen[self.partition as usize][at] else {
                continue;
            };
            self.history.violations.push(Violation {
                kind: Kind::Lost,
                partition: self.partition,
                offset: Some(at as u64),
                sent: Some(before.sent),
                round: before.round,
                note: format!("{}: {:?}, and gone", self.reading, before.how),
            });
        }
    }

    fn end_partition(&mut self) {
        self.lose(self.expected, u64::MAX);
        self.partition += 1;
        self.expected = 0;
        self.last.clear();
    }

    /// Ends the pass. The offsets after each partition's last record are what other replicas are compared with.
    pub(crate) fn finish(mut self) {
        while (self.partition as usize) < self.history.seen.len() {
            self.end_partition();
        }
        for (partition, sent, round) in std::mem::take(&mut self.history.unplaced) {
            if !self.placed[usize::from(sent.producer)][sent.sequence as usize] {
                self.history.violations.push(Violation {
                    kind: Kind::Lost,
                    partition,
                    offset: None,
                    sent: Some(sent),
                    round,
                    note: format!("{}: acknowledged without an offset, and gone", self.reading),
                });
            }
            self.history.unplaced.push((partition, sent, round));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{History, Kind, Sent};

    fn sent(producer: u16, sequence: u32) -> Sent {
        Sent { producer, sequence }
    }

    /// Two partitions, two producers that have sent ten records each.
    fn history() -> History {
        let mut history = History::new(2, 2);
        for _ in 0..10 {
            history.send(0);
            history.send(1);
        }
        history
    }

    /// Checks a log of (partition, offset, producer, sequence).
    fn kinds(history: &mut History, log: &[(u32, u64, u16, u32)]) -> Vec<Kind> {
        let mut check = history.check("the leaders");
        for &(partition, offset, producer, sequence) in log {
            check.record(partition, offset, &sent(producer, sequence).value(30));
        }
        check.finish();
        history.violations().iter().map(|v| v.kind).collect()
    }

    #[test]
    fn a_value_tells_who_sent_it() {
        for size in [0, 100] {
            let value = sent(3, 77).value(size);
            assert!(value.len() >= size);
            assert_eq!(Sent::parse(&value), Some(sent(3, 77)));
        }
        for wrong in ["", "1:2", "x:1:", "1:2:y", "1:2:.:"] {
            assert_eq!(Sent::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_whole_log_passes_whatever_was_indefinite() {
        let mut history = history();
        history.acknowledged(0, Some(0), sent(0, 0));
        history.acknowledged(1, None, sent(1, 4));
        history.failed(sent(0, 1), false);
        history.failed(sent(0, 2), false);
        history.failed(sent(0, 5), true);
        let log = [(0, 0, 0, 0), (0, 1, 0, 2), (0, 2, 1, 3), (1, 0, 1, 4)];
        assert_eq!(kinds(&mut history, &log), []);
    }

    #[test]
    fn an_acknowledged_record_that_is_absent_is_lost() {
        let mut at_the_end = history();
        at_the_end.enter(7);
        at_the_end.acknowledged(0, Some(0), sent(0, 0));
        at_the_end.acknowledged(0, Some(1), sent(0, 1));
        assert_eq!(kinds(&mut at_the_end, &[(0, 0, 0, 0)]), [Kind::Lost]);
        let found = &at_the_end.violations()[0];
        assert_eq!(
            found.to_string(),
            "Lost: partition 0, offset 1, producer 0, sequence 1, round 7: the leaders: Acknowledged, and gone"
        );

        let mut without_offset = history();
        without_offset.acknowledged(1, None, sent(1, 4));
        assert_eq!(kinds(&mut without_offset, &[]), [Kind::Lost]);

        let mut whole_partition = history();
        whole_partition.acknowledged(1, Some(0), sent(1, 4));
        assert_eq!(
            kinds(&mut whole_partition, &[(0, 0, 0, 0)]),
            [Kind::Lost],
            "of a partition that is empty at the end"
        );
    }

    #[test]
    fn a_record_that_was_read_and_is_gone_is_lost() {
        let mut history = history();
        history.read(0, 0, 0, &sent(0, 0).value(0));
        assert_eq!(kinds(&mut history, &[]), [Kind::Lost]);
    }

    #[test]
    fn a_record_at_two_offsets_is_doubled() {
        let log = [(0, 0, 0, 0), (0, 1, 0, 1), (0, 2, 0, 0)];
        assert_eq!(kinds(&mut history(), &log), [Kind::Doubled]);
        let across = [(0, 0, 0, 0), (1, 0, 0, 0)];
        assert_eq!(kinds(&mut history(), &across), [Kind::Doubled]);
    }

    #[test]
    fn a_producers_records_out_of_order_are_reordered() {
        let log = [(0, 0, 0, 1), (0, 1, 1, 0), (0, 2, 0, 0)];
        assert_eq!(kinds(&mut history(), &log), [Kind::Reordered]);
        let apart = [(0, 0, 0, 1), (1, 0, 0, 0)];
        assert_eq!(
            kinds(&mut history(), &apart),
            [],
            "partitions have their own order"
        );
    }

    #[test]
    fn an_offset_with_two_records_is_changed() {
        let mut between = history();
        between.acknowledged(0, Some(0), sent(0, 0));
        between.read(0, 0, 0, &sent(1, 0).value(0));
        assert_eq!(between.violations()[0].kind, Kind::Changed);

        let mut at_the_end = history();
        at_the_end.read(0, 0, 0, &sent(1, 0).value(0));
        assert_eq!(kinds(&mut at_the_end, &[(0, 0, 0, 0)]), [Kind::Changed]);
    }

    #[test]
    fn an_offset_without_a_record_is_a_gap() {
        assert_eq!(kinds(&mut history(), &[(0, 1, 0, 0)]), [Kind::Gap]);
        let mut lost = history();
        lost.acknowledged(0, Some(1), sent(0, 1));
        let log = [(0, 0, 0, 0), (0, 2, 0, 2)];
        assert_eq!(kinds(&mut lost, &log), [Kind::Gap, Kind::Lost]);

        let mut reading = history();
        reading.read(0, 4, 5, &sent(0, 0).value(0));
        assert_eq!(reading.violations()[0].kind, Kind::Gap);
    }

    #[test]
    fn a_refused_record_that_is_stored_is_found() {
        let mut history = history();
        history.failed(sent(0, 0), true);
        assert_eq!(kinds(&mut history, &[(0, 0, 0, 0)]), [Kind::Refused]);
    }

    #[test]
    fn a_record_that_nobody_sent_is_found() {
        assert_eq!(kinds(&mut history(), &[(0, 0, 0, 10)]), [Kind::Foreign]);
        assert_eq!(kinds(&mut history(), &[(0, 0, 9, 0)]), [Kind::Foreign]);
        let mut reading = history();
        reading.read(0, 0, 0, b"rubbish");
        assert_eq!(reading.violations()[0].kind, Kind::Foreign);
    }

    #[test]
    fn each_copy_is_checked_anew() {
        let mut history = history();
        history.acknowledged(0, Some(0), sent(0, 0));
        assert_eq!(kinds(&mut history, &[(0, 0, 0, 0)]), []);
        assert_eq!(
            kinds(&mut history, &[(0, 0, 0, 1)]),
            [Kind::Changed],
            "another replica, another record"
        );
    }
}
