//! The two threads that write: one appends to the log, one writes checkpoints and installs snapshots. Neither waits for
//! the other, and the driver waits for neither.
//!
//! The log thread takes everything that has queued up since its last commit into one: batches form while the previous
//! sync is under way. A write that fails is the end of the node: what a failed sync left on disk can't be known, so it
//! must not be tried again.
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use super::inbox::{Inbox, Report};
use super::telemetry::{Counters, count};
use crate::daemon::core::state::{LogBatch, LogSeq};
use crate::daemon::store::{CheckpointJob, InstallJob, LogWriter, StateWriter, Trim, WriteError};
use crate::protocol::id::ShardId;

/// Most writes that go into one commit: bounds how long the first of them waits.
const COMMIT_WRITES_MAX: usize = 1024;

/// What the disk threads report.
pub(super) enum DiskReport {
    /// The log is synced up to here.
    Persisted(LogSeq),
    /// A checkpoint is on disk.
    Checkpointed(Trim),
    /// A snapshot is installed.
    Installed(ShardId, Trim),
    /// A write failed, or a thread died.
    Failed { what: &'static str, why: String },
}

/// How far checkpoints step back behind the node's other work. Unit: steps of niceness, 19 is the furthest.
const CHECKPOINT_NICENESS: i32 = 5;

enum LogJob {
    Append(Vec<(LogSeq, LogBatch)>),
    Trim(Trim),
}

enum StateJob {
    Checkpoint(CheckpointJob),
    Install(ShardId, InstallJob),
}

/// The driver's end of both threads.
pub(super) struct Disk {
    log: Option<Sender<LogJob>>,
    state: Option<Sender<StateJob>>,
    threads: Vec<JoinHandle<()>>,
}

impl Disk {
    /// Starts the threads.
    pub(super) fn start(
        log: LogWriter,
        state: StateWriter,
        inbox: &Arc<Inbox>,
        counters: &Arc<Counters>,
    ) -> std::io::Result<Self> {
        let (log_sender, log_jobs) = channel();
        let (state_sender, state_jobs) = channel();
        let reports = Reports {
            what: "the log",
            inbox: inbox.clone(),
        };
        let counters = counters.clone();
        let log_thread = std::thread::Builder::new()
            .name("isx-log".to_owned())
            .spawn(move || reports.run(|reports| write_log(log, &log_jobs, reports, &counters)))?;
        let reports = Reports {
            what: "the state file",
            inbox: inbox.clone(),
        };
        let state_thread = std::thread::Builder::new()
            .name("isx-checkpoint".to_owned())
            .spawn(move || reports.run(|reports| write_state(state, &state_jobs, reports)))?;
        Ok(Self {
            log: Some(log_sender),
            state: Some(state_sender),
            threads: vec![log_thread, state_thread],
        })
    }

    /// Appends to the log; a `Persisted` follows.
    pub(super) fn append(&self, batches: Vec<(LogSeq, LogBatch)>) {
        self.log_job(LogJob::Append(batches));
    }

    /// Drops log rows that are not needed any more.
    pub(super) fn trim(&self, trim: Trim) {
        self.log_job(LogJob::Trim(trim));
    }

    /// Writes a checkpoint; a `Checkpointed` follows.
    pub(super) fn checkpoint(&self, job: CheckpointJob) {
        self.state_job(StateJob::Checkpoint(job));
    }

    /// Installs a snapshot; an `Installed` follows.
    pub(super) fn install(&self, shard: ShardId, job: InstallJob) {
        self.state_job(StateJob::Install(shard, job));
    }

    /// Lets the threads finish what they were given, and waits for them.
    pub(super) fn finish(mut self) {
        self.log = None;
        self.state = None;
        for thread in self.threads.drain(..) {
            // It has reported its panic, if any.
            let _ = thread.join();
        }
    }

    // A thread that is gone has said why in its last report.
    fn log_job(&self, job: LogJob) {
        if let Some(log) = &self.log {
            let _ = log.send(job);
        }
    }

    fn state_job(&self, job: StateJob) {
        if let Some(state) = &self.state {
            let _ = state.send(job);
        }
    }
}

fn write_log(
    mut log: LogWriter,
    jobs: &Receiver<LogJob>,
    reports: &Reports,
    counters: &Counters,
) -> Result<(), WriteError> {
    let mut batches: Vec<(LogSeq, LogBatch)> = Vec::new();
    while let Ok(first) = jobs.recv() {
        let mut trims = Vec::new();
        let mut take = |job, batches: &mut Vec<_>| match job {
            LogJob::Append(more) => batches.extend(more),
            LogJob::Trim(trim) => trims.push(trim),
        };
        take(first, &mut batches);
        while batches.len() < COMMIT_WRITES_MAX
            && let Ok(next) = jobs.try_recv()
        {
            take(next, &mut batches);
        }
        for trim in trims {
            log.trim(trim)?;
        }
        if !batches.is_empty() {
            let seq = log.append(&batches)?;
            batches.clear();
            count(&counters.log_commits);
            reports.push(DiskReport::Persisted(seq));
        }
    }
    Ok(())
}

fn write_state(mut state: StateWriter, jobs: &Receiver<StateJob>, reports: &Reports) -> Result<(), WriteError> {
    // Nobody waits for a checkpoint: it yields to the log and to requests. On Linux this is the thread's own priority.
    if let Err(error) = rustix::process::nice(CHECKPOINT_NICENESS) {
        tracing::debug!("checkpoints run at full priority: {error}");
    }
    let mut installs: VecDeque<(ShardId, InstallJob)> = VecDeque::new();
    let mut is_closed = false;
    while !is_closed || !installs.is_empty() {
        // Between two pieces of an install a checkpoint may be written: others' memtables must not wait for it.
        let job = if installs.is_empty() {
            jobs.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            jobs.try_recv()
        };
        match job {
            Ok(StateJob::Checkpoint(job)) => reports.push(DiskReport::Checkpointed(state.checkpoint(job)?)),
            Ok(StateJob::Install(shard, job)) => {
                installs.push_back((shard, job));
                continue;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => is_closed = true,
        }
        if let Some((shard, job)) = installs.front_mut() {
            let shard = *shard;
            if let Some(trim) = state.install(job)? {
                installs.pop_front();
                reports.push(DiskReport::Installed(shard, trim));
            }
        }
    }
    Ok(())
}

/// Where a thread reports, its own death included.
struct Reports {
    what: &'static str,
    inbox: Arc<Inbox>,
}

impl Reports {
    fn push(&self, report: DiskReport) {
        self.inbox.push(Report::Disk(report));
    }

    fn run(self, work: impl FnOnce(&Self) -> Result<(), WriteError>) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&self)));
        let why = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "the thread panicked".to_owned(),
        };
        self.push(DiskReport::Failed { what: self.what, why });
    }
}

/// An error with its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
