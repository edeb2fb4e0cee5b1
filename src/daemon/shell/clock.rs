//! The clocks that the core is told.
use rustix::time::{ClockId, clock_gettime};

use crate::daemon::core::time::{Clock, Time};

/// Both clocks now. The monotonic one counts while the machine sleeps: a lease that slept through its end is over.
pub(super) fn now() -> Clock {
    let wall = clock_gettime(ClockId::Realtime);
    Clock {
        now: monotonic(),
        wall_ms: (wall.tv_sec as u64).saturating_mul(1000) + wall.tv_nsec as u64 / 1_000_000,
    }
}

/// The monotonic one only.
pub(super) fn monotonic() -> Time {
    let boot = clock_gettime(ClockId::Boottime);
    Time((boot.tv_sec as u64).saturating_mul(1_000_000_000) + boot.tv_nsec as u64)
}
