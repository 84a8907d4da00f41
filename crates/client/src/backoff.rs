//! How long to wait before the next try.

use std::time::Duration;

/// The wait before try number `attempt` (the first retry is 1): doubling from `first` up to `most`, each drawn from its
/// upper half so that clients which failed together do not come back together.
pub(crate) fn backoff(attempt: u32, first: Duration, most: Duration) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    let full = first.saturating_mul(1 << doublings).min(most);
    full.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::backoff;

    #[test]
    fn waits_grow_to_the_bound_and_stay_within_their_upper_half() {
        let (first, most) = (Duration::from_millis(10), Duration::from_secs(1));
        for (attempt, full) in [(1, 10), (2, 20), (5, 160), (8, 1000), (u32::MAX, 1000)] {
            let wait = backoff(attempt, first, most);
            let full = Duration::from_millis(full);
            assert!(
                wait >= full / 2 && wait <= full,
                "attempt {attempt}: {wait:?}"
            );
        }
    }
}
