//! When acknowledgements came: the longest time without one, and who still waits.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
struct Pulse {
    last: Instant,
    longest: Duration,
}

impl Pulse {
    fn new(now: Instant) -> Self {
        Self {
            last: now,
            longest: Duration::ZERO,
        }
    }

    fn beat(&mut self, now: Instant) {
        self.longest = self.longest_until(now);
        self.last = now;
    }

    fn longest_until(&self, now: Instant) -> Duration {
        self.longest.max(now.duration_since(self.last))
    }
}

/// The pulse of each partition, and of each producer in it.
#[derive(Debug)]
pub(crate) struct Pulses {
    partitions: Vec<Pulse>,
    /// By producer, then by partition.
    producers: Vec<Vec<Pulse>>,
}

impl Pulses {
    pub(crate) fn new(producers: u16, partitions: u32) -> Self {
        let pulses = vec![Pulse::new(Instant::now()); partitions as usize];
        Self {
            producers: vec![pulses.clone(); producers.into()],
            partitions: pulses,
        }
    }

    /// An acknowledgement came.
    pub(crate) fn beat(&mut self, producer: u16, partition: u32) {
        let now = Instant::now();
        self.partitions[partition as usize].beat(now);
        self.producers[usize::from(producer)][partition as usize].beat(now);
    }

    /// Begins to measure anew: pauses that last are counted from their own beginning.
    pub(crate) fn restart(&mut self) {
        let all = self.producers.iter_mut().flatten();
        all.chain(&mut self.partitions)
            .for_each(|pulse| pulse.longest = Duration::ZERO);
    }

    /// The longest time that any partition went without an acknowledgement.
    pub(crate) fn longest(&self) -> Duration {
        let now = Instant::now();
        let pauses = self.partitions.iter().map(|pulse| pulse.longest_until(now));
        pauses.max().unwrap_or_default()
    }

    /// The longest time that any producer went without one in any partition.
    pub(crate) fn longest_of_one(&self) -> Duration {
        let now = Instant::now();
        let all = self.producers.iter().flatten();
        let pauses = all.map(|pulse| pulse.longest_until(now));
        pauses.max().unwrap_or_default()
    }

    /// A producer and partition without an acknowledgement since `then`.
    pub(crate) fn silent_since(&self, then: Instant) -> Option<(usize, usize)> {
        let all = self.producers.iter().enumerate();
        let mut all = all.flat_map(|(producer, pulses)| {
            let pulses = pulses.iter().enumerate();
            pulses.map(move |(partition, pulse)| (producer, partition, pulse.last))
        });
        let silent = all.find(|(_, _, last)| *last <= then);
        silent.map(|(producer, partition, _)| (producer, partition))
    }
}
