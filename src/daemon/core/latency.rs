//! How long something took over the last few seconds, in counts by size: no floats, a kilobyte, the same on every run.
use super::time::{Span, Time};
use crate::protocol::message::WriteLatency;

/// Buckets per power of two: a value is known to an eighth.
const FINE: usize = 8;
/// From 8 us to over two hours.
const BUCKETS: usize = 30 * FINE;
/// Half of what is looked back at.
const TURN_EVERY: Span = Span::secs(2);

/// Latencies of the last two to four seconds.
#[derive(Debug, Clone)]
pub struct Latencies {
    now: [u32; BUCKETS],
    before: [u32; BUCKETS],
    turned: Time,
}

impl Latencies {
    /// None yet.
    pub fn new(now: Time) -> Self {
        Self {
            now: [0; BUCKETS],
            before: [0; BUCKETS],
            turned: now,
        }
    }

    /// Counts one.
    pub fn add(&mut self, now: Time, took: Span) {
        self.turn(now);
        self.now[bucket_of(took.0 / 1_000)] += 1;
    }

    /// What ninety-nine of a hundred stayed below, and how many there were.
    pub fn p99(&mut self, now: Time) -> WriteLatency {
        self.turn(now);
        let counts = || {
            self.now
                .iter()
                .zip(&self.before)
                .map(|(a, b)| u64::from(*a) + u64::from(*b))
        };
        let count: u64 = counts().sum();
        let mut above = count / 100;
        let mut p99_us = 0;
        for (bucket, held) in counts().enumerate().rev() {
            if held > above {
                p99_us = top_of(bucket);
                break;
            }
            above -= held;
        }
        WriteLatency { p99_us, count }
    }

    fn turn(&mut self, now: Time) {
        let passed = now.since(self.turned);
        if passed < TURN_EVERY {
            return;
        }
        let last = std::mem::replace(&mut self.now, [0; BUCKETS]);
        let is_recent = passed.0 < 2 * TURN_EVERY.0;
        self.before = if is_recent { last } else { [0; BUCKETS] };
        self.turned = now;
    }
}

fn bucket_of(us: u64) -> usize {
    let us = us.max(FINE as u64);
    let power = us.ilog2() as usize;
    let fine = (us >> (power - 3)) as usize - FINE;
    ((power - 3) * FINE + fine).min(BUCKETS - 1)
}

/// The largest value of a bucket. Unit: us.
fn top_of(bucket: usize) -> u64 {
    let (power, fine) = (bucket / FINE, (bucket % FINE) as u64);
    ((FINE as u64 + fine + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_to_an_eighth() {
        for us in (8..100_000).chain([1_000_000, 59_000_000]) {
            let top = top_of(bucket_of(us));
            assert!(us <= top && top <= us + us / 8, "{us} {top}");
        }
    }

    #[test]
    fn the_slowest_hundredth_is_left_out_and_old_ones_are_forgotten() {
        let mut latencies = Latencies::new(Time(0));
        let at = |ms: u64| Time(0) + Span::millis(ms);
        for n in 0..1_000 {
            let took = if n % 200 == 0 { Span::secs(1) } else { Span::millis(5) };
            latencies.add(at(n), took);
        }
        let seen = latencies.p99(at(1_000));
        assert_eq!(seen.count, 1_000);
        assert!((5_000..5_700).contains(&seen.p99_us), "{seen:?}");
        for n in 0..30 {
            latencies.add(at(1_000 + n), Span::millis(40));
        }
        let seen = latencies.p99(at(2_500));
        assert!((40_000..45_000).contains(&seen.p99_us), "{seen:?}");
        assert_eq!(latencies.p99(at(10_000)), WriteLatency { p99_us: 0, count: 0 });
    }
}
