//! The one store of a node, for both drivers.
//!
//! ```text
//! core --put--> memtable --checkpoint--> state.redb     rows, one ReplicaMeta per shard, in one transaction
//!   `---Persist-------------------------> log.redb      one row per group commit, holding all shards' entries
//! ```
//! * **`log.redb`** is the node's write-ahead log. Each [`LogWriter::append`] writes one row and syncs it; a row goes
//!   when nothing in it counts any more (see [`log`]).
//! * **`state.redb`** holds the applied rows behind a memtable. [`Store::checkpoint`] freezes the memtable,
//!   [`StateWriter::checkpoint`] writes it out sorted with the replicas' metas: rows and applied indexes are one unit.
//! * After a crash the log is replayed from each replica's applied index ([`Recovered`]).
//!
//! Two files because redb has one writer per file: a checkpoint never delays a commit of the log.
//!
//! What is promised: an append or checkpoint that returned is on the disk; one that did not return is there whole or
//! not at all; every value is checked against a checksum that binds it to its place before it is handed out; a failed
//! write or sync ends the handle, and nothing is retried on it; a store is never "started fresh" over an identity.
//! What is not: damage to redb's own pages that makes a row *vanish* is only found when redb verifies its pages (after
//! a crash of the log file; [`open`] says when else), by the counts of replicas and log rows kept here, or by
//! comparing state between replicas.
//!
//! Snapshots on their way to this node lie in a third place, `staging/`, until they are whole and installed.
//!
//! Parts: `tables` (tables of checked values over redb or the model), `open` and `files` (from a directory to a store),
//! `log`, `state`, `snapshot`, `chunk`, `staging` and `install` (snapshots out and in), and for the simulator `sim_disk`, `model` and `fault`.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::daemon::core::state::{LogSeq, StateError, StoreIdentity};
use crate::protocol::id::{ClusterId, NodeId, ShardId};

mod chunk;
mod fault;
mod files;
mod install;
pub mod log;
mod model;
mod open;
mod sim_disk;
mod slice;
mod snapshot;
mod staging;
mod state;
mod tables;
#[cfg(test)]
mod tests;

pub use crate::daemon::core::state::Recovered;
pub use chunk::{CHUNK_BYTES, Outgoing, OutgoingPart};
pub use files::{open, open_telling};
pub use log::LogWriter;
pub use open::{Opened, StoreIdentityCheck};
pub use sim_disk::{SimDisk, SimFile};
pub use slice::KeptSlice;
pub use snapshot::SnapshotRows;
pub use staging::{Stage, StageError, Staging};
pub use state::{CheckpointJob, InstallJob, StateWriter, Store};

use tables::{Cause, ReadFault};

/// Which file of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum FileKind {
    Log,
    State,
}

impl FileKind {
    fn name(self) -> &'static str {
        match self {
            FileKind::Log => "log.redb",
            FileKind::State => "state.redb",
        }
    }
}

/// Why a store was not opened. Nothing was changed, except where it says so.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A call to the operating system failed.
    #[error("cannot {step} `{path}`")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else has it open.
    #[error(
        "the store in `{path}` is in use by another process; two on one store would ruin it: stop the other isxd, or give this one another data_dir"
    )]
    InUse {
        /// The directory or file.
        path: PathBuf,
    },
    /// No store, and none was to be made.
    #[error("there is no store in `{path}`: check data_dir, or start the node as a founder or by joining a cluster")]
    Absent {
        /// The directory.
        path: PathBuf,
    },
    /// One of two files.
    #[error(
        "`{path}` holds {present} but not {missing}: half of this node's memory is lost, and to go on without it could break promises made to its peers; restore {missing}, or move {present} away and let the node join anew"
    )]
    Half {
        /// The directory.
        path: PathBuf,
        /// The file that is there.
        present: &'static str,
        /// The file that is not.
        missing: &'static str,
    },
    /// Another node's or cluster's.
    #[error(
        "the store of `{path}` belongs to node {} of cluster {}; this is node {node} of cluster {cluster}: check data_dir, [node] id and [cluster] id", found.node, found.cluster
    )]
    Foreign {
        /// The state file.
        path: PathBuf,
        /// Whose it is.
        found: StoreIdentity,
        /// Whose it should be.
        cluster: ClusterId,
        /// Whose it should be.
        node: NodeId,
    },
    /// The two files were not made together.
    #[error(
        "`{state}` (node {}, store {:x}) and `{log}` (node {}, store {:x}) do not belong together: one of them was replaced", state_owner.node, state_owner.store_id, log_owner.node, log_owner.store_id
    )]
    Unrelated {
        /// The state file.
        state: PathBuf,
        /// Whose it is.
        state_owner: StoreIdentity,
        /// The log file.
        log: PathBuf,
        /// Whose it is.
        log_owner: StoreIdentity,
    },
    /// One file under the other's name.
    #[error("`{path}` is a {found} under another name: put the files back where they were")]
    Swapped {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Made by a newer or much older isxd.
    #[error(
        "`{path}` has format {found}; this isxd reads {oldest} to {newest}: use the isxd that wrote it, or a newer one"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// What this build reads.
        oldest: u32,
        /// What this build reads.
        newest: u32,
    },
    /// Not a store's file, cut short, or damaged.
    #[error(
        "`{path}` is not a whole store file: it is damaged, cut short, or something else under this name; do not delete it before you know which; a node whose store is lost is replaced by letting it join anew"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        #[source]
        source: Cause,
    },
    /// One row is damaged.
    #[error(
        "{row} in `{path}` is damaged; this node cannot know what it promised: let it join anew, its peers have the data"
    )]
    Row {
        /// The file.
        path: PathBuf,
        /// Which row.
        row: String,
        /// What is wrong with it.
        #[source]
        source: Cause,
    },
    /// The log lost its end.
    #[error(
        "`{path}` ends at write {last}, but the state file was made when write {needed} was there: the log was replaced or restored from an older copy; restore both files from one moment, or let the node join anew"
    )]
    LogBehind {
        /// The log file.
        path: PathBuf,
        /// Its last write.
        last: LogSeq,
        /// What the state file has seen.
        needed: LogSeq,
    },
    /// An install that a crash interrupted could not be finished.
    #[error(
        "cannot finish installing a snapshot of {shard} in `{path}`, which was under way when this node stopped; the next start tries again; where what is staged is damaged or gone let the node join anew, its peers have the data"
    )]
    Install {
        /// The state file.
        path: PathBuf,
        /// The shard.
        shard: ShardId,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A new store could not be made.
    #[error("cannot make the new store file `{path}`; what was begun is removed at the next start")]
    Create {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Cause,
    },
}

/// A write did not become durable. The handle is dead: what lies on the disk is only known after opening it again, so
/// the node must stop without another acknowledgement.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The write or its sync failed, now.
    #[error("cannot {step} in `{path}`")]
    Failed {
        /// What was to be written.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// An earlier one failed; nothing was tried.
    #[error("`{path}` had a failed write before; it takes no more until isxd is started again")]
    Dead {
        /// The file.
        path: PathBuf,
    },
}

impl From<ReadFault> for StateError {
    fn from(fault: ReadFault) -> Self {
        match fault {
            ReadFault::Checksum { key } => StateError::Checksum {
                key: format!("`{}`", key.escape_ascii()),
            },
            ReadFault::Failed(cause) => StateError::Io(cause.to_string()),
        }
    }
}

/// Which log writes the state file has made superfluous: travels from [`StateWriter`] to [`LogWriter::trim`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trim {
    shards: Vec<(ShardId, Durable)>,
}

/// What the state file holds of one shard, durably.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Durable {
    /// Entries up to here are in the rows.
    applied: u64,
    /// Hard states of log writes up to here are in the meta.
    covered: LogSeq,
    /// Log writes up to here hold nothing that counts.
    log_from: LogSeq,
}
