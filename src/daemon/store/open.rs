//! From two files to a store: whose they are, what they hold, what of it still counts.
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::install;
use super::log::{LogWriter, read_log};
use super::staging::{Area, Staging};
use super::state::{Checkpointed, StateWriter, Store, StoredReplica};
use super::tables::{File, ReadFault, Table};
use super::{FileKind, OpenError};
use crate::daemon::core::state::{Recovered, StoreIdentity};
use crate::protocol::id::{ClusterId, NodeId};

/// Whose store is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreIdentityCheck {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Make the store where there is none, with this (random) `store_id`. `None`: it must be there.
    pub create: Option<u128>,
}

impl StoreIdentityCheck {
    pub(super) fn identity(&self, store_id: u128) -> StoreIdentity {
        StoreIdentity {
            cluster: self.cluster,
            node: self.node,
            store_id,
        }
    }
}

/// An open store, in parts for the threads that own them.
pub struct Opened {
    /// Whose it is.
    pub identity: StoreIdentity,
    /// Applied rows; for the thread that runs the core.
    pub store: Store,
    /// The log; for the log thread.
    pub log: LogWriter,
    /// The state file; for the checkpoint thread.
    pub writer: StateWriter,
    /// What the core starts from.
    pub recovered: Recovered,
    /// The how manieth start of this store it is, from 1 on.
    pub life: u64,
}

/// Where the files are, and what keeps others away from them.
#[derive(Clone)]
pub(super) struct Files {
    pub(super) log: PathBuf,
    pub(super) state: PathBuf,
    /// How large they are together. Unit: bytes.
    pub(super) bytes: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// The locked directory; unlocked when the last part of the store is dropped.
    pub(super) _lock: Option<Arc<std::fs::File>>,
}

impl Files {
    pub(super) fn simulated(bytes: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self {
            log: FileKind::Log.name().into(),
            state: FileKind::State.name().into(),
            bytes: Arc::new(bytes),
            _lock: None,
        }
    }

    pub(super) fn path(&self, kind: FileKind) -> &PathBuf {
        match kind {
            FileKind::Log => &self.log,
            FileKind::State => &self.state,
        }
    }
}

/// Who a file belongs to, as written in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Owner {
    kind: FileKind,
    identity: StoreIdentity,
}

/// Makes an empty file ours.
pub(super) fn format(file: &File, kind: FileKind, identity: &StoreIdentity) -> Result<(), OpenError> {
    let owner = Owner {
        kind,
        identity: *identity,
    };
    let result = file.write(true, |tables| {
        let of_kind = match kind {
            FileKind::Log => &Table::OF_LOG[..],
            FileKind::State => &Table::OF_STATE[..],
        };
        for &table in of_kind {
            tables.create(table)?;
        }
        tables.put(Table::About, &FORMAT_KEY, &FORMAT.to_le_bytes())?;
        tables.put(Table::About, &OWNER_KEY, &postcard::to_stdvec(&owner)?)
    });
    result.map_err(|source| OpenError::Create {
        path: kind.name().into(),
        source,
    })
}

/// Whose file it is; refuses formats that this build doesn't read and files in each other's place.
pub(super) fn owner(file: &File, kind: FileKind, path: &std::path::Path) -> Result<StoreIdentity, OpenError> {
    let damaged = |source| OpenError::Damaged {
        path: path.to_owned(),
        source,
    };
    let about = file.view(Table::About).map_err(|fault| damaged(fault.into()))?;
    let value = |key: &Bytes| -> Result<Bytes, OpenError> {
        let found = about.get(key).map_err(|fault| damaged(fault.into()))?;
        found.ok_or_else(|| damaged("it holds a redb database, but not one that isxd made".into()))
    };
    let format = value(&FORMAT_KEY)?;
    let found = u32::from_le_bytes(
        format[..]
            .try_into()
            .map_err(|_| damaged("its format number is not a number".into()))?,
    );
    if !(FORMAT_OLDEST..=FORMAT).contains(&found) {
        return Err(OpenError::Format {
            path: path.to_owned(),
            found,
            oldest: FORMAT_OLDEST,
            newest: FORMAT,
        });
    }
    let owner: Owner = postcard::from_bytes(&value(&OWNER_KEY)?).map_err(|error| damaged(error.into()))?;
    if owner.kind != kind {
        return Err(OpenError::Swapped {
            path: path.to_owned(),
            found: owner.kind.name(),
        });
    }
    Ok(owner.identity)
}

/// Checks both files against each other and against what is expected, and reads what they hold.
pub(super) fn assemble(
    log: File,
    state: File,
    staging: Area,
    files: Files,
    expected: StoreIdentityCheck,
    progress: &dyn Fn(),
) -> Result<Opened, OpenError> {
    let identity = owner(&state, FileKind::State, &files.state)?;
    let log_identity = owner(&log, FileKind::Log, &files.log)?;
    if identity != log_identity {
        return Err(OpenError::Unrelated {
            state: files.state,
            state_owner: identity,
            log: files.log,
            log_owner: log_identity,
        });
    }
    if (identity.cluster, identity.node) != (expected.cluster, expected.node) {
        return Err(OpenError::Foreign {
            path: files.state,
            found: identity,
            cluster: expected.cluster,
            node: expected.node,
        });
    }

    let staging = Arc::new(Staging::new(staging));
    install::finish(&state, &files, &staging, progress)?;
    let (replicas, checkpointed) = read_state(&state, &files)?;
    let read = read_log(&log, &files, &replicas)?;
    // Each checkpoint names the last log write that was synced when it was frozen. A log that ends before it has lost
    // what this node acknowledged: it was replaced, or restored from an older copy than the state.
    if read.last_row < checkpointed.covered {
        return Err(OpenError::LogBehind {
            path: files.log,
            last: read.last_row,
            needed: checkpointed.covered,
        });
    }
    // `log_from` of an install may lie ahead of what had been written: those numbers are used up, too.
    let reserved = replicas.iter().map(|replica| replica.meta.log_from).max();
    let last_seq = read.last_row.max(reserved.unwrap_or_default());

    let appended = Arc::new(AtomicU64::new(read.last_row.0));
    let shards = replicas.iter().map(|replica| replica.meta.shard.id).collect();
    let recovered = Recovered {
        replicas: replicas.into_iter().map(|replica| replica.meta).collect(),
        log: read.batches,
        last_seq,
    };
    let life = begin_life(&state, &files.state)?;
    let store = Store::new(state.clone(), files.clone(), staging.clone(), appended.clone()).map_err(|fault| {
        OpenError::Damaged {
            path: files.state.clone(),
            source: fault.into(),
        }
    })?;
    Ok(Opened {
        identity,
        store,
        log: LogWriter::new(log, files.clone(), read.index, last_seq, appended),
        writer: StateWriter::new(state, files, staging, shards, checkpointed.covered),
        recovered,
        life,
    })
}

/// Counts this start, durably, before anybody can be told of it.
fn begin_life(state: &File, path: &std::path::Path) -> Result<u64, OpenError> {
    let damaged = |source| OpenError::Damaged {
        path: path.to_owned(),
        source,
    };
    let about = state.view(Table::About).map_err(|fault| damaged(fault.into()))?;
    let before = match about.get(&LIFE_KEY).map_err(|fault| damaged(fault.into()))? {
        Some(bytes) => u64::from_le_bytes(
            bytes[..]
                .try_into()
                .map_err(|_| damaged("its count of starts is not a number".into()))?,
        ),
        None => 0,
    };
    drop(about);
    let life = before + 1;
    let written = state.write(true, |tables| tables.put(Table::About, &LIFE_KEY, &life.to_le_bytes()));
    written.map_err(|source| OpenError::Create {
        path: path.to_owned(),
        source,
    })?;
    Ok(life)
}

/// Replicas and bookkeeping of the state file.
fn read_state(state: &File, files: &Files) -> Result<(Vec<StoredReplica>, Checkpointed), OpenError> {
    let path = &files.state;
    let damaged = |source| OpenError::Damaged {
        path: path.to_owned(),
        source,
    };
    let about = state.view(Table::About).map_err(|fault| damaged(fault.into()))?;
    let checkpointed = match about.get(&CHECKPOINT_KEY).map_err(|fault| damaged(fault.into()))? {
        Some(bytes) => postcard::from_bytes(&bytes).map_err(|error| damaged(error.into()))?,
        None => Checkpointed::default(),
    };
    let view = state.view(Table::Replicas).map_err(|fault| damaged(fault.into()))?;
    let mut replicas = Vec::new();
    for row in view.all().map_err(|fault| damaged(fault.into()))? {
        let (key, value) = row.map_err(|fault| row_error(path, "replica", fault))?;
        let replica = StoredReplica::decode(&value).map_err(|error| OpenError::Row {
            path: path.to_owned(),
            row: format!("replica {}", key.escape_ascii()),
            source: error.into(),
        })?;
        replicas.push(replica);
    }
    // A replica that vanishes from a damaged tree would come back empty and vote again.
    if replicas.len() as u64 != checkpointed.replicas {
        return Err(damaged(
            format!(
                "it should list {} replicas and lists {}",
                checkpointed.replicas,
                replicas.len()
            )
            .into(),
        ));
    }
    Ok((replicas, checkpointed))
}

/// A row that could not be read, while opening.
pub(super) fn row_error(path: &std::path::Path, what: &str, fault: ReadFault) -> OpenError {
    let row = match &fault {
        ReadFault::Checksum { key } => match <[u8; 8]>::try_from(key.as_ref()) {
            Ok(number) => format!("{what} {}", u64::from_be_bytes(number)),
            Err(_) => format!("{what} `{}`", key.escape_ascii()),
        },
        ReadFault::Failed(_) => format!("a {what}"),
    };
    OpenError::Row {
        path: path.to_owned(),
        row,
        source: fault.into(),
    }
}

/// Key of a table whose keys are numbers.
pub(super) fn number_key(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// The format this build writes. One number for both files.
pub(super) const FORMAT: u32 = 2;
/// The oldest format it reads.
pub(super) const FORMAT_OLDEST: u32 = 2;
const FORMAT_KEY: Bytes = Bytes::from_static(b"format");
const LIFE_KEY: Bytes = Bytes::from_static(b"life");
const OWNER_KEY: Bytes = Bytes::from_static(b"owner");
pub(super) const CHECKPOINT_KEY: Bytes = Bytes::from_static(b"checkpoint");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_keys_sort_like_numbers() {
        let mut numbers = vec![65_536, 1, u64::MAX, 256, 0, 255];
        numbers.sort_by_key(|&number| number_key(number));
        assert_eq!(numbers, [0, 1, 255, 256, 65_536, u64::MAX]);
    }
}
