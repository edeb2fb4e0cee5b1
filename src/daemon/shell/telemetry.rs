//! Transitions as log lines, and the shell's own counters.
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::EnvFilter;

use crate::daemon::config::LogFormat;
use crate::daemon::core::event::Event;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What the shell counts, since start. Told in the node's status beside the core's counters.
        #[derive(Debug, Default)]
        pub(super) struct Counters { $($(#[$doc])* pub(super) $name: AtomicU64,)* }

        impl Counters {
            /// Those that are not zero, by name.
            pub(super) fn list(&self) -> Vec<(String, u64)> {
                let all = [$((concat!("shell.", stringify!($name)), &self.$name),)*];
                all.iter()
                    .map(|(name, count)| (String::from(*name), count.load(Ordering::Relaxed)))
                    .filter(|(_, count)| *count > 0)
                    .collect()
            }
        }
    };
}

counters! {
    /// Connections that were let in.
    connections,
    /// Handshakes that failed: no isx, no certificate of ours, too slow.
    handshakes_failed,
    /// Connections turned away because there were too many.
    connections_shed,
    /// Hellos that were refused: other cluster, other version, an id that was not proven.
    hellos_refused,
    /// Connections closed because what came in was no frame or no message.
    garbage,
    /// Connections closed because a frame was too long.
    frames_oversize,
    /// Connections closed because answers were not read.
    readers_shed,
    /// Requests by callers without a certificate that were not `Join`.
    nobody_refused,
    /// Messages to peers that were not connected.
    messages_unsent,
    /// Messages dropped because a peer took them too slowly.
    messages_shed,
    /// Answers that left too late for their lease.
    leases_missed,
    /// Rounds of the driver: wait, step, settle, drain.
    rounds,
    /// Commits of the log.
    log_commits,
    /// Snapshots that arrived damaged or were cut short.
    snapshots_failed,
}

/// Sends log lines of this process to standard error. Only the first call counts. `level` was checked with the
/// configuration.
pub fn log_to_stderr(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // systemd sets it when standard error is its journal.
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal();
    let is_json = match format {
        LogFormat::Auto => in_journal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    // Fails where somebody else set one before: a test, or a program that runs nodes inside.
    let _ = if is_json {
        lines.json().flatten_event(true).try_init()
    } else {
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        lines.with_ansi(colours).try_init()
    };
}

/// Counts one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Tells one transition.
pub(super) fn tell(event: &Event) {
    match event {
        Event::Role { shard, term, role, .. } => {
            tracing::info!(event = "role", %shard, term, role, "{event}");
        }
        Event::Split { left, right } => {
            tracing::info!(event = "split", left = %left.id, right = %right.id, "{event}");
        }
        Event::Changed { shard } => tracing::info!(event = "replicas", shard = %shard.id, "{event}"),
        Event::Frozen { shard, into } => tracing::info!(event = "frozen", %shard, %into, "{event}"),
        Event::Held { shard, for_ms } => tracing::info!(event = "held", %shard, for_ms, "{event}"),
        Event::BackAndForth { shard, from, to } => {
            tracing::warn!(event = "back_and_forth", %shard, %from, %to, "{event}")
        }
        Event::Thawed { shard } => tracing::info!(event = "thawed", %shard, "{event}"),
        Event::Merged { left, right } => tracing::info!(event = "merged", left = %left.id, %right, "{event}"),
        Event::Destroyed { shard, replica, why } => {
            tracing::info!(event = "destroyed", %shard, %replica, why, "{event}");
        }
        Event::Stalled { shard } => tracing::warn!(event = "stalled", %shard, "{event}"),
        Event::SnapshotStarted { shard, to, index } => {
            tracing::info!(event = "snapshot-started", %shard, %to, index, "{event}");
        }
        Event::SnapshotInstalled { shard, index, rows } => {
            tracing::info!(event = "snapshot-installed", %shard, index, rows, "{event}");
        }
        Event::ReplicaCreated { shard, replica } => {
            tracing::info!(event = "replica-created", %shard, %replica, "{event}");
        }
        // The network can make as many of these as it likes; the core counts them.
        Event::Dropped { from, why } => tracing::debug!(event = "dropped", %from, why, "{event}"),
        Event::Peer { node, alive } => tracing::info!(event = "peer", %node, alive, "{event}"),
        Event::Registered { node } => tracing::info!(event = "registered", %node, "{event}"),
        Event::Message { .. } | Event::Parked { .. } => tracing::trace!(event = "message", "{event}"),
        Event::Refused { node, why } => tracing::error!(event = "refused", %node, why, "{event}"),
        Event::Damage { shard, replica, why } => {
            tracing::error!(event = "damage", %shard, %replica, why, "{event}");
        }
        Event::Differs { shard, index, .. } => tracing::error!(event = "differs", %shard, index, "{event}"),
        Event::Quarantined { shard, replica } => {
            tracing::error!(event = "quarantined", %shard, %replica, "{event}");
        }
        Event::DiskPressure { refusing } => tracing::warn!(event = "disk-pressure", refusing, "{event}"),
    }
}
