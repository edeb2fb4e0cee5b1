//! One simulated machine: a core, its store, its clocks, and the threads of a real driver as queues with latencies.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::clock::MachineClock;
use super::disk::Media;
use crate::daemon::core::input::Input;
use crate::daemon::core::node::{Node, NodeConfig};
use crate::daemon::core::state::{LogBatch, LogSeq, ReplicaMeta};
use crate::daemon::core::time::{Span, Time};
use crate::daemon::store::{CheckpointJob, InstallJob, LogWriter, StateWriter, Store};
use crate::protocol::hello::NodeHello;
use crate::protocol::id::{NodeId, ShardId};

/// A machine of the cluster.
pub(super) struct Machine {
    pub id: NodeId,
    pub config: NodeConfig,
    pub clock: MachineClock,
    pub media: Media,
    /// What runs on it; `None` while the process is down.
    pub process: Option<Process>,
    /// Counts processes: events for an earlier one are ignored.
    pub boot: u64,
    /// Faults that keep the process from being started.
    pub held_down: u32,
    /// Nothing runs before this time: it computes, or was stopped by a signal.
    pub busy_until: Time,
    /// The process is stopped by a signal until this time; what it hands out waits, too.
    pub stopped_until: Time,
    /// It has not run since it was last stopped.
    pub was_stopped: bool,
    /// How long one round of steps takes at most.
    pub round_max: Span,
    pub disk: DiskManner,
    /// Told to the node as free space. Unit: bytes.
    pub free_bytes: u64,
}

/// How a disk behaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct DiskManner {
    pub sync_min: Span,
    pub sync_max: Span,
    /// Writes end only after this time.
    pub stalled_until: Time,
    /// The next write fails.
    pub fails: bool,
    /// A scenario holds all writes back.
    pub held: bool,
}

/// A running `isxd`.
pub(super) struct Process {
    pub node: Node,
    pub store: Store,
    pub log: LogWriter,
    pub writer: StateWriter,
    /// Waits for the next round.
    pub inbox: VecDeque<Input>,
    pub round_is_due: bool,
    /// When the node wants to be woken, by its own clock; the event is in the schedule.
    pub wake_at: Time,
    /// Waits for the log thread.
    pub log_queue: Vec<(LogSeq, LogBatch)>,
    /// What the log thread is writing.
    pub log_writing: Vec<(LogSeq, LogBatch)>,
    /// What the state thread has to do, the first of them under way.
    pub state_jobs: VecDeque<StateJob>,
    /// Peers it believes it is connected to.
    pub connected: BTreeSet<NodeId>,
    /// What it says of itself.
    pub hello: NodeHello,
    /// The latest boot of each machine that it was greeted by.
    pub greeted: BTreeMap<usize, u64>,
    /// Machines whose connections it has ended for good.
    pub refused: BTreeSet<usize>,
    /// Its log is synced up to here.
    pub persisted: LogSeq,
    /// An operator asked it to stop.
    pub is_stopping: bool,
}

/// Work of the thread that writes the state file.
pub(super) enum StateJob {
    Checkpoint {
        job: CheckpointJob,
        metas: Vec<ReplicaMeta>,
    },
    Install {
        job: InstallJob,
        shard: ShardId,
        meta: Box<ReplicaMeta>,
    },
}

impl Machine {
    /// The first moment at or after `at` at which the process runs.
    pub fn runs_at(&self, at: Time) -> Time {
        at.max(self.busy_until).max(self.stopped_until)
    }
}
