//! Groups whose members come and go, and the look at what the groups have stored.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use quipu_client::GroupConfig;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    history::{History, Place},
    member::{Member, Notes, Who},
};
use crate::{
    load::{Load, TOPIC},
    pulse::Pulses,
};

/// How often a group's offsets are fetched.
const LOOK: Duration = Duration::from_millis(50);
/// How long a group may take to get somewhere once all is well.
const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);
/// A member that does not ask for a record for so long gives its partitions up.
const POLL_INTERVAL: Duration = Duration::from_millis(1500);
/// The shortest and the longest time between two changes of a group, in milliseconds.
const CHANGES: std::ops::Range<u64> = 200..1200;
/// The same for how long a member stalls.
const STALLS: std::ops::Range<u64> = 500..4000;

/// How many, and how they behave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) groups: u16,
    /// Members of each group, at most.
    pub(crate) members: usize,
    pub(crate) partitions: u32,
    /// Whether members lose patience soon, so that a short run sees them do so, or as late as they do by default.
    pub(crate) hasty: bool,
}

/// A group's members, each at a place of its own.
#[derive(Debug)]
struct Group {
    number: u16,
    members: Vec<Option<Member>>,
    rng: StdRng,
}

#[derive(Debug)]
struct Shared {
    size: Size,
    notes: Arc<Notes>,
    /// Whether members come and go.
    churning: AtomicBool,
    over: AtomicBool,
    next_number: Mutex<u32>,
}

/// All groups. They read the load's topic.
#[derive(Debug)]
pub(crate) struct Crowd {
    shared: Arc<Shared>,
    groups: Vec<JoinHandle<Result<()>>>,
}

pub(crate) fn name(group: u16) -> String {
    format!("group-{group}")
}

impl Crowd {
    /// Starts all members.
    pub(crate) fn start(size: Size, load: &Load, seed: u64) -> Self {
        let notes = Notes {
            history: Mutex::new(History::new(size.groups, size.partitions)),
            pulses: Mutex::new(Pulses::new(size.groups, size.partitions)),
            load: load.shared(),
        };
        let shared = Arc::new(Shared {
            size,
            notes: Arc::new(notes),
            churning: AtomicBool::new(false),
            over: AtomicBool::new(false),
            next_number: Mutex::default(),
        });
        let groups = (0..size.groups).map(|number| {
            let group = Group {
                number,
                members: (0..size.members).map(|_| None).collect(),
                rng: StdRng::seed_from_u64(seed.wrapping_add(number.into())),
            };
            let shared = Arc::clone(&shared);
            thread::spawn(move || group.live(&shared))
        });
        let groups = groups.collect();
        for group in 0..size.groups {
            load.look_at_group(name(group), LOOK, looker(&shared, group));
        }
        Self { shared, groups }
    }

    pub(crate) fn history<T>(&self, look: impl FnOnce(&mut History) -> T) -> T {
        look(&mut self.shared.notes.history.lock())
    }

    pub(crate) fn pulses<T>(&self, look: impl FnOnce(&mut Pulses) -> T) -> T {
        look(&mut self.shared.notes.pulses.lock())
    }

    /// From now on members come and go, or all are there and stay.
    pub(crate) fn churn(&self, churning: bool) {
        self.shared.churning.store(churning, Ordering::Relaxed);
    }

    /// Each group's partitions.
    pub(crate) fn places(&self) -> Vec<Place> {
        let Size {
            groups, partitions, ..
        } = self.shared.size;
        let all = (0..groups)
            .flat_map(|group| (0..partitions).map(move |partition| Place { group, partition }));
        all.collect()
    }

    /// Waits until every group has stored that it is past these ends, which are by partition.
    ///
    /// # Errors
    /// Where one is not in time.
    pub(crate) fn wait_stored(&self, ends: &[u64]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let behind = self.history(|history| {
                let behind =
                    |place: &Place| history.stored(*place) < ends[place.partition as usize];
                let place = self.places().into_iter().find(behind)?;
                Some((place, history.stored(place), history.through(place)))
            });
            let Some((place, stored, through)) = behind else {
                return Ok(());
            };
            if Instant::now() > deadline {
                bail!(
                    "stuck: {PATIENCE:?} after all was well, {place:?} is at {stored}, processed to {through}, of {}",
                    ends[place.partition as usize]
                );
            }
            thread::sleep(POLL);
        }
    }

    /// Lets all members leave.
    ///
    /// # Errors
    /// Where a group's thread failed.
    pub(crate) fn end(self) -> Result<History> {
        self.shared.over.store(true, Ordering::Relaxed);
        for group in self.groups {
            let ended = group.join();
            ended.map_err(|_| anyhow::anyhow!("a group's thread panicked"))??;
        }
        let empty = History::new(0, 0);
        Ok(std::mem::replace(
            &mut self.shared.notes.history.lock(),
            empty,
        ))
    }
}

/// Takes in a group's offsets, by partition; whether to look again.
fn looker(shared: &Arc<Shared>, group: u16) -> impl FnMut(&[(u32, u64)]) -> bool + Send + 'static {
    let shared = Arc::clone(shared);
    move |offsets| {
        let mut history = shared.notes.history.lock();
        if shared.over.load(Ordering::Relaxed) {
            return false;
        }
        for &(partition, offset) in offsets {
            history.fetch(Place { group, partition }, offset);
        }
        history.fetched();
        true
    }
}

impl Group {
    /// Lets members come and go until all is over.
    fn live(mut self, shared: &Shared) -> Result<()> {
        while !shared.over.load(Ordering::Relaxed) {
            if shared.churning.load(Ordering::Relaxed) {
                self.change(shared)?;
                let pause = self.rng.random_range(CHANGES);
                thread::sleep(Duration::from_millis(pause));
            } else {
                for at in 0..self.members.len() {
                    if self.members[at].is_none() {
                        self.join(shared, at)?;
                    }
                }
                thread::sleep(POLL);
            }
        }
        self.members.drain(..).flatten().for_each(Member::leave);
        Ok(())
    }

    fn change(&mut self, shared: &Shared) -> Result<()> {
        let at = self.rng.random_range(0..self.members.len());
        let Some(member) = self.members[at].take() else {
            return self.join(shared, at);
        };
        match self.rng.random_range(0..3) {
            0 => member.leave(),
            1 => member.drop_dead(),
            _ => {
                let time = self.rng.random_range(STALLS);
                member.stall(Duration::from_millis(time));
                self.members[at] = Some(member);
            }
        }
        Ok(())
    }

    fn join(&mut self, shared: &Shared, at: usize) -> Result<()> {
        let mut numbers = shared.next_number.lock();
        let number = *numbers;
        *numbers += 1;
        drop(numbers);
        let mut config = GroupConfig {
            auto_commit: Some(Duration::from_millis(200)),
            // The first is the same whenever it comes back.
            instance_id: (at == 0).then(|| "first".to_owned()),
            ..GroupConfig::new(name(self.number), TOPIC)
        };
        if shared.size.hasty {
            config.session_timeout = Duration::from_secs(3);
            config.rebalance_timeout = Duration::from_secs(10);
            config.max_poll_interval = POLL_INTERVAL;
        }
        let who = Who {
            group: self.number,
            number,
            notes: Arc::clone(&shared.notes),
        };
        let client = shared.notes.load.client(number as usize);
        let member = Member::start(who, client, config).context("starting a member")?;
        self.members[at] = Some(member);
        Ok(())
    }
}
