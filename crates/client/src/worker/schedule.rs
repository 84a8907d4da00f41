//! Which records may be worked on now, and how far each partition is done. Knows neither time nor network.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use quipu_model::Offset;

/// A partition, from when it became the member's to when it was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WindowId(u64);

/// A record that is being worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) window: WindowId,
    /// Its number among the window's records.
    number: u64,
}

/// Records of one lane are worked on one after the other, in order; those of none whenever there is room.
pub(super) type Lane = Option<Bytes>;

/// Which records may be worked on now, and how far each partition is done.
#[derive(Debug)]
pub(super) struct Schedule<R> {
    windows: HashMap<WindowId, Window<R>>,
    opened: u64,
    ready: VecDeque<Ticket>,
}

#[derive(Debug)]
struct Window<R> {
    /// The number of the first slot.
    first: u64,
    slots: VecDeque<Slot<R>>,
    /// The number of each lane's last record.
    lanes: HashMap<Bytes, u64>,
    waiting: usize,
    running: usize,
    bytes: usize,
    /// Everything before it is done.
    done_to: Option<Offset>,
}

#[derive(Debug)]
struct Slot<R> {
    offset: Offset,
    lane: Lane,
    bytes: usize,
    stage: Stage<R>,
    /// The number of the lane's next record.
    next_in_lane: Option<u64>,
}

#[derive(Debug)]
enum Stage<R> {
    Waiting(R),
    Running,
    Done,
    /// It is never worked on.
    Dropped,
}

impl<R> Default for Schedule<R> {
    fn default() -> Self {
        Self {
            windows: HashMap::new(),
            opened: 0,
            ready: VecDeque::new(),
        }
    }
}

impl<R> Schedule<R> {
    /// Begins with a partition.
    pub(super) fn open(&mut self) -> WindowId {
        self.opened += 1;
        let id = WindowId(self.opened);
        let window = Window {
            first: 0,
            slots: VecDeque::new(),
            lanes: HashMap::new(),
            waiting: 0,
            running: 0,
            bytes: 0,
            done_to: None,
        };
        self.windows.insert(id, window);
        id
    }

    /// Takes the next record of a partition in. One of a partition that was given up is dropped.
    pub(super) fn add(
        &mut self,
        id: WindowId,
        offset: Offset,
        lane: Lane,
        bytes: usize,
        record: R,
    ) {
        let Some(window) = self.windows.get_mut(&id) else {
            return;
        };
        let number = window.first + window.slots.len() as u64;
        let before = lane
            .clone()
            .and_then(|lane| window.lanes.insert(lane, number));
        match before.and_then(|before| window.slot(before)) {
            Some(slot) => slot.next_in_lane = Some(number),
            None => self.ready.push_back(Ticket { window: id, number }),
        }
        window.bytes += bytes;
        window.waiting += 1;
        window.slots.push_back(Slot {
            offset,
            lane,
            bytes,
            stage: Stage::Waiting(record),
            next_in_lane: None,
        });
    }

    /// A record to work on now, if there is one.
    pub(super) fn next(&mut self) -> Option<(Ticket, R)> {
        while let Some(ticket) = self.ready.pop_front() {
            let Some(window) = self.windows.get_mut(&ticket.window) else {
                continue;
            };
            let Some(slot) = window.slot(ticket.number) else {
                continue;
            };
            // What was dropped meanwhile is not.
            if let Stage::Waiting(_) = slot.stage
                && let Stage::Waiting(record) = std::mem::replace(&mut slot.stage, Stage::Running)
            {
                window.waiting -= 1;
                window.running += 1;
                return Some((ticket, record));
            }
        }
        None
    }

    /// A record is done with.
    pub(super) fn finish(&mut self, ticket: Ticket) {
        let Some(window) = self.windows.get_mut(&ticket.window) else {
            return;
        };
        let Some(slot) = window.slot(ticket.number) else {
            return;
        };
        debug_assert!(matches!(slot.stage, Stage::Running), "it was handed out");
        slot.stage = Stage::Done;
        let (next, lane) = (slot.next_in_lane, slot.lane.take());
        window.running -= 1;
        match (next, lane) {
            (Some(number), _) => self.ready.push_back(Ticket { number, ..ticket }),
            (None, Some(lane)) => {
                window.lanes.remove(&lane);
            }
            (None, None) => {}
        }
        window.advance();
    }

    /// Nothing more of a partition is to be begun, but for what stands before the last record that was: it would be done in vain.
    pub(super) fn stop(&mut self, id: WindowId) {
        if let Some(window) = self.windows.get_mut(&id) {
            window.stop();
        }
    }

    /// Nothing at all is to be begun of a partition.
    pub(super) fn halt(&mut self, id: WindowId) {
        if let Some(window) = self.windows.get_mut(&id) {
            window.halt();
        }
    }

    /// Forgets a partition.
    pub(super) fn close(&mut self, id: WindowId) {
        self.windows.remove(&id);
    }

    /// Whether nothing of a partition is being worked on, or is going to be.
    pub(super) fn is_idle(&self, id: WindowId) -> bool {
        let window = self.windows.get(&id);
        window.is_none_or(|window| window.waiting + window.running == 0)
    }

    /// How many records of a partition are not behind it yet, and their bytes.
    pub(super) fn outstanding(&self, id: WindowId) -> (usize, usize) {
        let window = self.windows.get(&id);
        window.map_or((0, 0), |window| (window.slots.len(), window.bytes))
    }

    /// The offset before which everything of a partition is done. `None`: nothing was finished yet.
    pub(super) fn done_to(&self, id: WindowId) -> Option<Offset> {
        self.windows.get(&id)?.done_to
    }
}

impl<R> Window<R> {
    fn slot(&mut self, number: u64) -> Option<&mut Slot<R>> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(index)
    }

    /// Leaves behind what is done, up to the first that is not.
    fn advance(&mut self) {
        while let Some(slot) = self.slots.front()
            && matches!(slot.stage, Stage::Done)
        {
            self.done_to = Some(slot.offset.plus(1));
            self.bytes -= slot.bytes;
            self.slots.pop_front();
            self.first += 1;
        }
    }

    fn stop(&mut self) {
        while let Some(slot) = self
            .slots
            .pop_back_if(|slot| matches!(slot.stage, Stage::Waiting(_)))
        {
            self.bytes -= slot.bytes;
            self.waiting -= 1;
        }
    }

    fn halt(&mut self) {
        for slot in &mut self.slots {
            if matches!(slot.stage, Stage::Waiting(_)) {
                slot.stage = Stage::Dropped;
            }
        }
        self.waiting = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;
    use quipu_model::Offset;
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::{Schedule, Ticket, WindowId};

    fn lane(key: &str) -> Option<Bytes> {
        (!key.is_empty()).then(|| Bytes::copy_from_slice(key.as_bytes()))
    }

    /// A window with a record for each key, in order; an empty one is no key.
    fn filled(keys: &[&'static str]) -> (Schedule<u64>, WindowId) {
        let mut schedule = Schedule::default();
        let window = schedule.open();
        for (offset, key) in (0..).zip(keys) {
            schedule.add(window, Offset::new(offset), lane(key), 10, offset);
        }
        (schedule, window)
    }

    fn all(schedule: &mut Schedule<u64>) -> Vec<(Ticket, u64)> {
        std::iter::from_fn(|| schedule.next()).collect()
    }

    fn offsets(handed: &[(Ticket, u64)]) -> Vec<u64> {
        handed.iter().map(|(_, offset)| *offset).collect()
    }

    #[test]
    fn of_a_key_one_record_is_worked_on_at_a_time_and_without_a_key_all() {
        let (mut schedule, _) = filled(&["a", "a", "b", "", "", "a"]);
        let handed = all(&mut schedule);
        assert_eq!(offsets(&handed), [0, 2, 3, 4]);
        schedule.finish(handed[0].0);
        let second = all(&mut schedule);
        assert_eq!(offsets(&second), [1]);
        schedule.finish(second[0].0);
        assert_eq!(offsets(&all(&mut schedule)), [5]);
    }

    #[test]
    fn only_the_run_of_finished_records_from_the_start_counts() {
        let (mut schedule, window) = filled(&["", "", "", ""]);
        let handed = all(&mut schedule);
        assert_eq!(schedule.done_to(window), None);
        for (finished, done_to) in [(2, None), (0, Some(1)), (1, Some(3)), (3, Some(4))] {
            schedule.finish(handed[finished].0);
            assert_eq!(schedule.done_to(window), done_to.map(Offset::new));
        }
        assert_eq!(schedule.outstanding(window), (0, 0));
    }

    #[test]
    fn holes_between_offsets_hold_nothing_up() {
        let mut schedule = Schedule::default();
        let window = schedule.open();
        for offset in [7, 100, 3000] {
            schedule.add(window, Offset::new(offset), None, 1, offset);
        }
        let handed = all(&mut schedule);
        schedule.finish(handed[1].0);
        schedule.finish(handed[0].0);
        assert_eq!(schedule.done_to(window), Some(Offset::new(101)));
    }

    #[test]
    fn a_stopped_partition_hands_out_only_what_closes_gaps() {
        let (mut schedule, window) = filled(&["a", "a", "b", "b", "c"]);
        let mut handed: Vec<_> = [schedule.next(), schedule.next()]
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(offsets(&handed), [0, 2]);
        schedule.stop(window);
        for _ in 0..2 {
            assert!(!schedule.is_idle(window));
            handed
                .drain(..)
                .for_each(|(ticket, _)| schedule.finish(ticket));
            handed = all(&mut schedule);
        }
        assert!(schedule.is_idle(window) && handed.is_empty());
        assert_eq!(schedule.done_to(window), Some(Offset::new(3)));
        assert_eq!(schedule.outstanding(window), (0, 0));
    }

    #[test]
    fn a_halted_partition_hands_out_nothing_and_counts_up_to_the_first_gap() {
        let (mut schedule, window) = filled(&["a", "a", "b", "b"]);
        let handed = all(&mut schedule);
        assert_eq!(offsets(&handed), [0, 2]);
        schedule.halt(window);
        assert!(!schedule.is_idle(window));
        for (ticket, _) in handed {
            schedule.finish(ticket);
        }
        assert!(schedule.is_idle(window));
        assert!(schedule.next().is_none());
        assert_eq!(schedule.done_to(window), Some(Offset::new(1)));
        schedule.close(window);
        assert_eq!(schedule.done_to(window), None);
    }

    #[test]
    fn what_of_a_former_time_finishes_late_changes_nothing() {
        let (mut schedule, window) = filled(&["a", "a"]);
        let handed = all(&mut schedule);
        schedule.close(window);
        let again = schedule.open();
        schedule.add(again, Offset::new(0), lane("a"), 10, 0);
        schedule.finish(handed[0].0);
        assert_eq!(schedule.done_to(again), None);
        assert_eq!(offsets(&all(&mut schedule)), [0]);
    }

    /// Whatever order records finish in: each is handed out once, of a key in order and alone, and what counts as done is.
    #[test]
    fn under_any_order_of_finishing_the_promises_hold() {
        for seed in 0..200 {
            let mut random = SmallRng::seed_from_u64(seed);
            let (mut schedule, windows) = (Schedule::default(), 2);
            let windows: Vec<_> = (0..windows).map(|_| schedule.open()).collect();
            let mut added = vec![0; windows.len()];
            let mut running: Vec<(Ticket, (usize, u64, u64))> = Vec::new();
            let mut finished = vec![vec![false; 100]; windows.len()];
            let mut newest: HashMap<(usize, u64), u64> = HashMap::new();
            while running.len() + added.iter().sum::<usize>() < 200 || !running.is_empty() {
                let at = random.random_range(0..windows.len());
                if added[at] < 100 && random.random_bool(0.5) {
                    let (offset, key) = (added[at] as u64, random.random_range(0..5_u64));
                    let key_bytes = (key > 0).then(|| Bytes::from(key.to_string()));
                    let record = (at, offset, key);
                    schedule.add(windows[at], Offset::new(offset), key_bytes, 1, record);
                    added[at] += 1;
                }
                if random.random_bool(0.5)
                    && let Some((ticket, (at, offset, key))) = schedule.next()
                {
                    let alone = |(_, (a, _, k)): &(_, (usize, u64, u64))| (*a, *k) != (at, key);
                    assert!(key == 0 || running.iter().all(alone));
                    let before = newest.insert((at, key), offset);
                    assert!(key == 0 || before.is_none_or(|before| before < offset));
                    running.push((ticket, (at, offset, key)));
                }
                if !running.is_empty() && random.random_bool(0.5) {
                    let which = random.random_range(0..running.len());
                    let (ticket, (at, offset, _)) = running.swap_remove(which);
                    schedule.finish(ticket);
                    assert!(!std::mem::replace(&mut finished[at][offset as usize], true));
                    let run = finished[at].iter().take_while(|done| **done).count() as u64;
                    let done_to = (run > 0).then(|| Offset::new(run));
                    assert_eq!(schedule.done_to(windows[at]), done_to);
                }
                if added.iter().all(|added| *added == 100) && running.is_empty() {
                    while let Some((ticket, record)) = schedule.next() {
                        running.push((ticket, record));
                    }
                }
            }
            assert!(finished.iter().flatten().all(|done| *done), "seed {seed}");
        }
    }
}
