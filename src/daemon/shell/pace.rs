//! How fast this node's copies leave: one bucket of bytes for all of them, filled at the rate that the core names.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What may leave at once after a pause. Unit: fraction of a second's rate.
const BURST: u64 = 8;

/// The bucket.
pub(super) struct CopyPace {
    /// Unit: bytes per second.
    rate: AtomicU64,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    /// Below zero: what was taken ahead. Unit: bytes.
    level: i64,
    filled: Instant,
}

impl CopyPace {
    pub(super) fn new(rate: u64) -> Self {
        Self {
            rate: AtomicU64::new(rate),
            bucket: Mutex::new(Bucket {
                level: 0,
                filled: Instant::now(),
            }),
        }
    }

    /// Takes effect with the next bytes.
    pub(super) fn set(&self, rate: u64) {
        self.rate.store(rate.max(1), Ordering::Relaxed);
    }

    /// Until so many bytes may leave. Whoever comes next waits for what is taken here, too: the rate is kept however many
    /// ask.
    pub(super) async fn take(&self, bytes: u64) {
        let wait = self.wait_for(bytes, Instant::now());
        if wait > Duration::ZERO {
            tokio::time::sleep(wait).await;
        }
    }

    fn wait_for(&self, bytes: u64, now: Instant) -> Duration {
        let rate = self.rate.load(Ordering::Relaxed);
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(bucket.filled).as_nanos();
        bucket.filled = bucket.filled.max(now);
        let gained = (u128::from(rate) * passed / 1_000_000_000) as i64;
        bucket.level = bucket.level.saturating_add(gained).min((rate / BURST) as i64);
        bucket.level -= bytes as i64;
        if bucket.level >= 0 {
            return Duration::ZERO;
        }
        Duration::from_nanos((u128::from(bucket.level.unsigned_abs()) * 1_000_000_000 / u128::from(rate)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_takers_share_one_rate() {
        let pace = CopyPace::new(1_000_000);
        let mut now = Instant::now();
        let start = now;
        for _ in 0..100 {
            now += pace.wait_for(100_000, now);
        }
        let took = now.duration_since(start).as_millis();
        assert!((9_800..10_100).contains(&took), "10 MB at 1 MB/s took {took} ms");
        // A pause is worth an eighth of a second and not more.
        now += Duration::from_secs(60);
        let start = now;
        for _ in 0..10 {
            now += pace.wait_for(100_000, now);
        }
        let took = now.duration_since(start).as_millis();
        assert!((860..890).contains(&took), "{took} ms");
        pace.set(10_000_000);
        let start = now;
        for _ in 0..100 {
            now += pace.wait_for(100_000, now);
        }
        let took = now.duration_since(start).as_millis();
        // What passed since the last bytes counts at the new rate.
        assert!((890..1_010).contains(&took), "{took} ms");
    }
}
