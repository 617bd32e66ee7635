//! Waits between retries: doubling, capped, with jitter, so that many clients do not come back at once.
//!
//! Called by whoever retries towards another party. Knows neither the clock nor a source of randomness: the caller
//! gives the latter and does the sleeping.

use std::time::Duration;

/// Endless iterator of waits: each drawn from the upper half of a span that doubles up to a cap.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    span: Duration,
    roll: fn() -> u64,
}

impl Backoff {
    /// Starts at `first` and doubles up to `cap`; `roll` gives evenly spread numbers (`|| fastrand::u64(..)`).
    pub const fn new(first: Duration, cap: Duration, roll: fn() -> u64) -> Self {
        Self {
            first,
            cap,
            span: first,
            roll,
        }
    }

    /// Begins again at the first wait, after the other party has answered.
    pub const fn reset(&mut self) {
        self.span = self.first;
    }

    /// The next wait: between half the span and the whole of it.
    pub fn next_wait(&mut self) -> Duration {
        let span = self.span.min(self.cap);
        self.span = span.saturating_mul(2);
        let half = span / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX - 1);
        half.saturating_add(Duration::from_nanos((self.roll)() % (nanos + 1)))
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.next_wait())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lowest_roll_waits_half_of_a_doubling_span_up_to_the_cap() {
        let waits: Vec<_> = Backoff::new(SECOND, 5 * SECOND, || 0).take(5).collect();
        let millis: Vec<_> = waits.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [500, 1000, 2000, 2500, 2500]);
    }

    #[test]
    fn no_roll_exceeds_the_span() {
        for roll in [|| 1, || u64::MAX, || 500_000_000, || 999_999_999_999] {
            let mut backoff = Backoff::new(SECOND, 4 * SECOND, roll);
            for span in [1, 2, 4, 4] {
                let wait = backoff.next_wait();
                assert!(
                    wait <= span * SECOND && wait >= span * SECOND / 2,
                    "{wait:?} of {span} s"
                );
            }
        }
    }

    #[test]
    fn reset_begins_again() {
        let mut backoff = Backoff::new(SECOND, 8 * SECOND, || 0);
        let first = backoff.next_wait();
        assert!(backoff.by_ref().nth(2).unwrap() > first);
        backoff.reset();
        assert_eq!(backoff.next_wait(), first);
    }

    #[test]
    fn zero_and_huge_spans_do_not_overflow() {
        let mut none = Backoff::new(Duration::ZERO, Duration::ZERO, || u64::MAX);
        assert_eq!(none.next_wait(), Duration::ZERO);
        let mut huge = Backoff::new(Duration::MAX, Duration::MAX, || u64::MAX);
        assert!(huge.next_wait() >= Duration::MAX / 2);
        assert!(huge.next_wait() >= Duration::MAX / 2);
    }
}
