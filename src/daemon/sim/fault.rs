//! What goes wrong in a run, drawn from its seed: first which kinds of fault it has (some runs have one kind only, so
//! that none hides another), then when, where and for how long. Most are aimed at nodes that lead something.
use crate::daemon::core::limits::LOG_TAIL_ENTRIES_MAX;
use crate::daemon::core::node::Hibernation;
use crate::daemon::core::time::Span;

use super::network::Weather;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A process dies; what it had not synced is lost.
    Crash,
    /// All machines lose power at once.
    PowerCut,
    /// An operator stops a node and starts it again.
    Restart,
    /// A process stands still and goes on, with everything that arrived meanwhile.
    Pause,
    /// A machine has hardly any processor time.
    SlowNode,
    /// A disk takes long to sync.
    SlowDisk,
    /// A disk takes no write until the fault ends.
    StalledDisk,
    /// A write fails. The node must stop.
    FailedSync,
    /// A disk is nearly full.
    FullDisk,
    /// One node is cut off, clients on its side included.
    Isolate,
    /// The cluster is cut in two, clients on both sides.
    Partition,
    /// One direction between two nodes is cut.
    OneWay,
    /// Two nodes do not reach each other; both reach the others.
    Pair,
    /// A link comes and goes.
    Flap,
    /// Somebody sets a wall clock.
    WallClock,
    /// A monotonic clock changes its rate, within the stated bound.
    Drift,
    /// A client loses its way to some nodes.
    ClientCut,
    /// Bits of rows go bad on a disk, always on the same one: what a majority can make good again. Only where the
    /// conductor is there to do it.
    Rot,
    /// A machine is lost for good, once in a run, where every shard has a majority without it: its disk is gone, and it
    /// never comes back, or comes back with an empty one under its old name. Needs four machines and the conductor.
    Wipe,
    /// Everything is switched off, or sleeps, for hours or most of a year; messages from before come again after it. Only
    /// in plans that name it.
    Leap,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Fault; 17] = [
        Fault::Crash,
        Fault::PowerCut,
        Fault::Restart,
        Fault::Pause,
        Fault::SlowNode,
        Fault::SlowDisk,
        Fault::StalledDisk,
        Fault::FailedSync,
        Fault::FullDisk,
        Fault::Isolate,
        Fault::Partition,
        Fault::OneWay,
        Fault::Pair,
        Fault::Flap,
        Fault::WallClock,
        Fault::Drift,
        Fault::ClientCut,
    ];
}

/// The faults of one run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Kinds that this run has; empty for none.
    pub kinds: Vec<Fault>,
    /// Longest pause between two faults.
    pub gap_max: Span,
    /// Longest fault.
    pub length_max: Span,
    /// Faults aimed at a leader. Unit: per mille.
    pub aimed: u32,
    /// The network when nothing is cut.
    pub weather: Weather,
    /// Disks that take milliseconds instead of tenths of them.
    pub slow_disks: bool,
    /// Snapshots that break off. Unit: per mille.
    pub broken_snapshots: u32,
    /// Log entries kept for followers that are behind: few make many snapshots.
    pub log_tail: usize,
    /// Whether the directory's leader carries out operations and spreads copies by itself.
    pub conducts: bool,
    /// How eagerly groups sleep.
    pub hibernation: Hibernation,
    /// Sessions between entities end after they had nothing to say for so long.
    pub close_sessions_after: Span,
    /// Messages between entities that come again long after they were sent. Unit: per mille.
    pub late_copies: u32,
}

impl Plan {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Self {
            kinds: Vec::new(),
            gap_max: Span::secs(1),
            length_max: Span::secs(1),
            aimed: 0,
            weather: Weather::CALM,
            slow_disks: false,
            broken_snapshots: 0,
            log_tail: LOG_TAIL_ENTRIES_MAX,
            conducts: true,
            hibernation: Hibernation::USUAL,
            close_sessions_after: Span::millis(500),
            late_copies: 100,
        }
    }

    /// The faults of a run with this seed.
    pub fn drawn(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let share = [150, 300, 500, 800][rng.usize(..4)];
        let mut kinds: Vec<Fault> = Fault::ALL.into_iter().filter(|_| rng.u32(..1000) < share).collect();
        if kinds.is_empty() {
            kinds.push(Fault::ALL[rng.usize(..Fault::ALL.len())]);
        }
        let mut plan = Self {
            kinds,
            gap_max: Span::millis([800, 2_000, 5_000][rng.usize(..3)]),
            length_max: Span::millis([600, 2_500, 6_000][rng.usize(..3)]),
            aimed: [300, 700, 1000][rng.usize(..3)],
            weather: Weather::drawn(&mut rng),
            slow_disks: rng.u32(..4) == 0,
            broken_snapshots: [0, 0, 100, 400][rng.usize(..4)],
            log_tail: [LOG_TAIL_ENTRIES_MAX, 300, 60][rng.usize(..3)],
            conducts: rng.u32(..3) > 0,
            hibernation: Hibernation {
                after_ticks: [None, Some(3), Some(8), Some(20), Some(40)][rng.usize(..5)],
                wakes_per_tick: [1, 3, 50][rng.usize(..3)],
            },
            close_sessions_after: Span::millis([200, 1_000, 5_000][rng.usize(..3)]),
            late_copies: [0, 50, 300][rng.usize(..3)],
        };
        if plan.conducts && rng.u32(..4) == 0 {
            plan.kinds.push(Fault::Rot);
        }
        plan
    }

    /// Only these kinds, often, aimed at leaders.
    pub fn only(kinds: &[Fault]) -> Self {
        Self {
            kinds: kinds.to_vec(),
            gap_max: Span::millis(1_000),
            length_max: Span::millis(2_500),
            aimed: 900,
            ..Self::none()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_drawn_alone_and_with_others() {
        let plans: Vec<Plan> = (0..500).map(Plan::drawn).collect();
        for kind in Fault::ALL {
            assert!(
                plans.iter().filter(|plan| plan.kinds.contains(&kind)).count() > 100,
                "{kind:?}"
            );
        }
        assert!(plans.iter().any(|plan| plan.kinds.len() == 1));
        assert!(plans.iter().any(|plan| plan.kinds.len() > 12));
        assert!(plans.iter().all(|plan| !plan.kinds.is_empty()));
    }
}
