//! When to stop trying for a while. Knows the time only as it is told.

use std::time::Duration;

use tokio::time::Instant;

/// When a worker stops taking records for a while: what its handler needs seems to be away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// So many transient failures in a row, at least 1. 20.
    pub failures: u32,
    /// How long until one record is tried again; twice as long each time that fails. 1 s.
    pub pause: Duration,
    /// The longest pause. 1 min.
    pub longest_pause: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures: 20,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
        }
    }
}

/// What may be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    All,
    /// One record, to see whether it works again.
    Probe,
    /// Nothing before this time.
    After(Instant),
    /// Nothing before the probe is back.
    Probing,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
        pause: Duration,
    },
    /// A record is being tried.
    Probing {
        pause: Duration,
    },
}

/// Stops after a run of failures, and tries one record at a time until one succeeds.
#[derive(Debug)]
pub(super) struct Breaker {
    config: Option<BreakerConfig>,
    state: State,
}

impl Breaker {
    /// Without a configuration, one that never stops.
    pub(super) fn new(config: Option<BreakerConfig>) -> Self {
        Self {
            config,
            state: State::Closed { failures: 0 },
        }
    }

    pub(super) fn permit(&self, now: Instant) -> Permit {
        match self.state {
            State::Closed { .. } => Permit::All,
            State::Open { until, .. } if now < until => Permit::After(until),
            State::Open { .. } => Permit::Probe,
            State::Probing { .. } => Permit::Probing,
        }
    }

    /// The record that was permitted as a probe is begun.
    pub(super) fn probe(&mut self) {
        if let State::Open { pause, .. } = self.state {
            self.state = State::Probing { pause };
        }
    }

    /// A record's attempt is over. While stopped, only the probe's counts: others were begun before.
    pub(super) fn attempted(&mut self, failed: bool, was_probe: bool, now: Instant) {
        let Some(config) = self.config else {
            return;
        };
        self.state = match (self.state, failed) {
            (State::Closed { .. }, false) => State::Closed { failures: 0 },
            (State::Closed { failures }, true) if failures + 1 < config.failures => State::Closed {
                failures: failures + 1,
            },
            (State::Closed { .. }, true) => State::Open {
                until: now + config.pause,
                pause: config.pause,
            },
            (State::Probing { .. }, false) if was_probe => State::Closed { failures: 0 },
            (State::Probing { pause }, true) if was_probe => {
                let pause = pause.saturating_mul(2).min(config.longest_pause);
                State::Open {
                    until: now + pause,
                    pause,
                }
            }
            (state, _) => state,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{Breaker, BreakerConfig, Permit};

    fn breaker() -> Breaker {
        Breaker::new(Some(BreakerConfig {
            failures: 3,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(3),
        }))
    }

    #[test]
    fn a_run_of_failures_stops_it_and_single_ones_do_not() {
        let (mut breaker, now) = (breaker(), Instant::now());
        for failed in [true, true, false, true, true, false] {
            breaker.attempted(failed, false, now);
            assert_eq!(breaker.permit(now), Permit::All);
        }
        for _ in 0..3 {
            breaker.attempted(true, false, now);
        }
        let until = now + Duration::from_secs(1);
        assert_eq!(breaker.permit(now), Permit::After(until));
        assert_eq!(breaker.permit(until), Permit::Probe);
    }

    #[test]
    fn pauses_grow_until_a_probe_succeeds() {
        let (mut breaker, mut now) = (breaker(), Instant::now());
        for _ in 0..3 {
            breaker.attempted(true, false, now);
        }
        for seconds in [1, 2, 3, 3] {
            let until = now + Duration::from_secs(seconds);
            assert_eq!(breaker.permit(now), Permit::After(until));
            now = until;
            assert_eq!(breaker.permit(now), Permit::Probe);
            breaker.probe();
            assert_eq!(breaker.permit(now), Permit::Probing);
            // What was begun before says nothing about now.
            breaker.attempted(false, false, now);
            breaker.attempted(true, false, now);
            assert_eq!(breaker.permit(now), Permit::Probing);
            breaker.attempted(true, true, now);
        }
        now += Duration::from_secs(3);
        breaker.probe();
        breaker.attempted(false, true, now);
        assert_eq!(breaker.permit(now), Permit::All);
        breaker.attempted(true, false, now);
        assert_eq!(breaker.permit(now), Permit::All, "a new run begins");
    }

    #[test]
    fn without_a_configuration_it_never_stops() {
        let (mut breaker, now) = (Breaker::new(None), Instant::now());
        for _ in 0..1000 {
            breaker.attempted(true, false, now);
        }
        assert_eq!(breaker.permit(now), Permit::All);
    }
}
