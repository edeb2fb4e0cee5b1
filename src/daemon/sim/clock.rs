//! What a simulated machine's clocks show: the monotonic one runs a little fast or slow, the wall clock says anything.
use crate::daemon::core::time::{Clock, Span, Time};

/// Furthest a rate may be from true: two clocks then differ by less than the tenth that `limits::LEASE` allows.
/// Unit: parts per million.
pub const DRIFT_PPM_MAX: i64 = 45_000;
/// Wall time at the start of a simulation, so that labels look like dates. Unit: ms since 1970.
pub const WALL_START_MS: u64 = 1_800_000_000_000;

/// The clocks of one machine.
#[derive(Debug, Clone)]
pub struct MachineClock {
    true_base: Time,
    shown_base: Time,
    rate_ppm: u64,
    wall_offset_ms: i64,
}

impl MachineClock {
    /// A machine whose monotonic clock shows `shown` at the true time `now`.
    pub fn new(now: Time, shown: Time, drift_ppm: i64) -> Self {
        Self {
            true_base: now,
            shown_base: shown,
            rate_ppm: rate(drift_ppm),
            wall_offset_ms: 0,
        }
    }

    /// What the clocks show at the true time `now`.
    pub fn read(&self, now: Time) -> Clock {
        let passed = now.since(self.true_base).0 as u128 * self.rate_ppm as u128 / 1_000_000;
        let wall = (WALL_START_MS + now.0 / 1_000_000) as i64 + self.wall_offset_ms;
        Clock {
            now: self.shown_base + Span(passed as u64),
            wall_ms: wall.max(0) as u64,
        }
    }

    /// The first true time at which the monotonic clock shows `shown` or later.
    pub fn when(&self, shown: Time) -> Time {
        if shown.0 == u64::MAX {
            return shown;
        }
        let ahead = shown.since(self.shown_base).0 as u128 * 1_000_000;
        self.true_base + Span(ahead.div_ceil(self.rate_ppm as u128) as u64)
    }

    /// From `now` on the monotonic clock runs at another rate.
    pub fn set_drift(&mut self, now: Time, drift_ppm: i64) {
        self.shown_base = self.read(now).now;
        self.true_base = now;
        self.rate_ppm = rate(drift_ppm);
    }

    /// The machine was switched off and on: its monotonic clock starts anew.
    pub fn reboot(&mut self, now: Time, shown: Time) {
        self.shown_base = shown;
        self.true_base = now;
    }

    /// Somebody set the wall clock.
    pub fn set_wall_offset(&mut self, offset_ms: i64) {
        self.wall_offset_ms = offset_ms;
    }
}

fn rate(drift_ppm: i64) -> u64 {
    assert!(
        drift_ppm.abs() <= DRIFT_PPM_MAX,
        "a drift of {drift_ppm} ppm is over the bound"
    );
    (1_000_000 + drift_ppm) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_met_exactly_at_every_rate() {
        for drift in [-DRIFT_PPM_MAX, -1, 0, 7, DRIFT_PPM_MAX] {
            let clock = MachineClock::new(Time(1_000), Time(77), drift);
            for shown in [77, 78, 1_000_000, 123_456_789_123] {
                let at = clock.when(Time(shown));
                assert!(clock.read(at).now >= Time(shown));
                assert!(at == Time(1_000) || clock.read(at - Span(1)).now < Time(shown));
            }
        }
    }

    #[test]
    fn a_change_of_rate_does_not_jump() {
        let mut clock = MachineClock::new(Time(0), Time(0), 40_000);
        let before = clock.read(Time(1_000_000)).now;
        clock.set_drift(Time(1_000_000), -40_000);
        assert_eq!(clock.read(Time(1_000_000)).now, before);
        clock.set_wall_offset(i64::MIN / 2);
        assert_eq!(clock.read(Time(1_000_000)).wall_ms, 0);
    }
}
