//! Applied rows: a memtable over `state.redb`, and the writer that moves the one into the other.
//!
//! ```text
//! get    active, frozen, recent, then the file      the first that knows the row (a removal counts as knowing)
//! put    active
//! checkpoint()     active becomes frozen; a job carries it to the writer's thread
//! checkpointed()   the file has it: frozen becomes recent, reads see the file as it is now
//! install()        the range's rows leave active at once; a job carries the new ones
//! installed()      reads see the file as it is now
//! ```
//! Jobs must be written in the order in which they were made. Between `checkpoint` and `checkpointed` it makes no
//! difference whether a read finds a row in frozen or in the file: both have the same value. A frozen memtable that
//! still holds rows of a range for which `install` was called does no harm either: it is written before, and the
//! install removes them; reads of that range between `install` and `installed` see the old rows or nothing, and nobody
//! may ask. Nothing may be put there in that time.
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::install::{self, Left};
use super::open::{CHECKPOINT_KEY, Files, number_key};
use super::slice::KeptSlice;
use super::snapshot::{Merge, SnapshotRows};
use super::staging::Staging;
use super::tables::{Cause, File, ReadFault, SharedRange, Table, Tables, View};
use super::{Durable, FileKind, Trim, WriteError};
use crate::daemon::core::state::{Install, LogSeq, ReplicaMeta, State, StateError};
use crate::daemon::core::verify::{SLICES_AT_ONCE, Slice};
use crate::protocol::id::ShardId;
use crate::protocol::key::KeyRange;

/// Rows that are not in the file yet; `None` removes.
pub(super) type Memtable = BTreeMap<Bytes, Option<Bytes>>;

/// Applied rows. The thread that runs the core owns it.
pub struct Store {
    pub(super) active: Memtable,
    pub(super) frozen: Option<Arc<Memtable>>,
    /// What the file has too: the last checkpoint's rows, as a cache. The writer's thread holds them anyway.
    recent: Option<Arc<Memtable>>,
    pub(super) view: View,
    /// Slices that wait to be summed up.
    kept: BTreeMap<(ShardId, u64), KeptSlice>,
    /// Why the file can't be read any more.
    broken: Option<StateError>,
    state: File,
    files: Files,
    staging: Arc<Staging>,
    appended: Arc<AtomicU64>,
}

impl Store {
    pub(super) fn new(
        state: File,
        files: Files,
        staging: Arc<Staging>,
        appended: Arc<AtomicU64>,
    ) -> Result<Self, ReadFault> {
        Ok(Self {
            active: Memtable::new(),
            frozen: None,
            recent: None,
            view: state.view(Table::Rows)?,
            kept: BTreeMap::new(),
            broken: None,
            state,
            files,
            staging,
            appended,
        })
    }

    /// Freezes the memtable: what was put so far is what the job writes, with the replicas as they are now.
    ///
    /// # Panics
    /// If the last checkpoint's [`Store::checkpointed`] is still due.
    pub fn checkpoint(&mut self, replicas: Vec<ReplicaMeta>) -> CheckpointJob {
        assert!(self.frozen.is_none(), "one checkpoint at a time");
        let rows = Arc::new(std::mem::take(&mut self.active));
        self.frozen = Some(rows.clone());
        CheckpointJob {
            rows,
            replicas: self.stored(replicas),
        }
    }

    /// The job is on the disk: the frozen memtable may go.
    pub fn checkpointed(&mut self) {
        self.refresh();
        self.recent = self.frozen.take();
    }

    /// Drops the memtable's rows in the replica's old and new ranges; the job replaces those in the file. Until
    /// [`Store::installed`] nothing may be put there.
    pub fn install(&mut self, install: Install) -> InstallJob {
        let range = install.meta.shard.range.clone();
        let mut clear = install.clear;
        clear.push(range.clone());
        for (start, end) in clear.iter().flat_map(KeyRange::row_ranges_sorted) {
            remove_range(&mut self.active, &start, &end);
        }
        // Its rows of the range will not be the file's.
        self.recent = None;
        InstallJob {
            shard: install.meta.shard.id,
            left: Some(Left::new(&clear, &range, install.rows)),
            is_begun: false,
            replicas: self.stored(std::iter::once(install.meta).chain(install.also).collect()),
        }
    }

    /// The install of this shard is on the disk.
    pub fn installed(&mut self, _shard: ShardId) {
        // A checkpoint may have ended in between.
        self.recent = None;
        self.refresh();
    }

    /// The rows of a range exactly as they are now, whatever happens afterwards; for another thread.
    ///
    /// Costs a copy of the range's part of the active memtable (without the bytes of keys and values) at once; the rest
    /// is read as the iterator goes. It keeps the state file from reusing pages while it lives.
    pub fn snapshot(&self, range: &KeyRange) -> Result<SnapshotRows, StateError> {
        self.check()?;
        let mut rows = SnapshotRows::default();
        for (start, end) in range.row_ranges_sorted() {
            let bounds = (Bound::Included(&start[..]), Bound::Excluded(&end[..]));
            let active = self.active.range::<[u8], _>(bounds);
            let active = active
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect::<Vec<_>>();
            let frozen = self.frozen.as_ref();
            let frozen = frozen.map(|frozen| SharedRange::new(frozen.clone(), bounds.0, bounds.1));
            rows.push(active, frozen, self.view.range(&start, &end)?);
        }
        Ok(rows)
    }

    /// The slice that [`State::keep`] kept for this entry.
    pub fn take_kept(&mut self, shard: ShardId, index: u64) -> Option<KeptSlice> {
        self.kept.remove(&(shard, index))
    }

    /// Where snapshots to this node are staged.
    pub fn staging(&self) -> &Arc<Staging> {
        &self.staging
    }

    /// Size of both files. Unit: bytes.
    pub fn bytes(&self) -> u64 {
        (self.files.bytes)()
    }

    /// Rows in the memtable, frozen or not: what the next checkpoints have to write.
    pub fn memtable_rows(&self) -> usize {
        self.active.len() + self.frozen.as_ref().map_or(0, |frozen| frozen.len())
    }

    fn stored(&self, replicas: Vec<ReplicaMeta>) -> Vec<StoredReplica> {
        // The metas hold all that the core has given out for the log so far; what of it is synced is at most that.
        let covered = LogSeq(self.appended.load(Ordering::Acquire));
        let stored = |meta| StoredReplica { meta, covered };
        replicas.into_iter().map(stored).collect()
    }

    fn refresh(&mut self) {
        match self.state.view(Table::Rows) {
            Ok(view) => self.view = view,
            Err(fault) => self.broken = Some(fault.into()),
        }
    }

    pub(super) fn check(&self) -> Result<(), StateError> {
        match &self.broken {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

impl State for Store {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError> {
        if let Some(value) = self.active.get(key) {
            return Ok(value.clone());
        }
        if let Some(value) = self.frozen.as_ref().and_then(|frozen| frozen.get(key)) {
            return Ok(value.clone());
        }
        self.check()?;
        if let Some(value) = self.recent.as_ref().and_then(|recent| recent.get(key)) {
            return Ok(value.clone());
        }
        Ok(self.view.get(key)?)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&Bytes, &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StateError> {
        self.check()?;
        if start >= end {
            return Ok(());
        }
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let cloned = |(key, value): (&Bytes, &Option<Bytes>)| (key.clone(), value.clone());
        let active = self.active.range::<[u8], _>(bounds).map(cloned);
        let frozen = self.frozen.as_ref();
        let frozen = frozen.map(|frozen| frozen.range::<[u8], _>(bounds).map(cloned));
        let rows = Merge::new(active, frozen.into_iter().flatten(), self.view.range(start, end)?);
        for row in rows {
            let (key, value) = row?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn put(&mut self, key: Bytes, value: Option<Bytes>) {
        self.active.insert(key, value);
    }

    fn keep(&mut self, slice: Slice) {
        let key = (slice.shard, slice.index);
        let kept = KeptSlice::new(self, slice);
        self.kept.insert(key, kept);
        while self.kept.len() > SLICES_AT_ONCE {
            self.kept.pop_first();
        }
    }
}

fn remove_range(memtable: &mut Memtable, start: &Bytes, end: &Bytes) {
    // Two cuts and a join instead of a removal per row.
    let mut rest = memtable.split_off(start);
    let mut behind = rest.split_off(end);
    memtable.append(&mut behind);
}

/// A frozen memtable on its way to the disk.
pub struct CheckpointJob {
    rows: Arc<Memtable>,
    replicas: Vec<StoredReplica>,
}

/// A replica on its way to the disk, with those that it takes the place of.
pub struct InstallJob {
    shard: ShardId,
    left: Option<Left>,
    is_begun: bool,
    replicas: Vec<StoredReplica>,
}

/// Writes the state file. One thread owns it, and writes jobs in the order in which they were made.
pub struct StateWriter {
    file: File,
    files: Files,
    staging: Arc<Staging>,
    /// Shards with a meta in the file.
    shards: BTreeSet<ShardId>,
    covered: LogSeq,
    dead: bool,
    /// The last frozen memtable: freeing its hundred thousand rows is this thread's work, not the core's.
    retired: Option<Arc<Memtable>>,
}

impl StateWriter {
    pub(super) fn new(
        file: File,
        files: Files,
        staging: Arc<Staging>,
        shards: BTreeSet<ShardId>,
        covered: LogSeq,
    ) -> Self {
        Self {
            file,
            files,
            staging,
            shards,
            covered,
            dead: false,
            retired: None,
        }
    }

    /// Writes rows and metas in one synced transaction.
    pub fn checkpoint(&mut self, job: CheckpointJob) -> Result<Trim, WriteError> {
        self.retired = None;
        let trim = self.write("write a checkpoint", &job.replicas, |tables| {
            for (key, value) in job.rows.iter() {
                match value {
                    Some(value) => tables.put(Table::Rows, key, value)?,
                    None => tables.remove(Table::Rows, key)?,
                }
            }
            Ok(())
        })?;
        self.retired = Some(job.rows);
        Ok(trim)
    }

    /// Does the next piece of an install, in one synced transaction; `None` while there is more to do. Checkpoints that
    /// were made after the install may be written between two pieces: they hold nothing of its ranges and replicas.
    pub fn install(&mut self, job: &mut InstallJob) -> Result<Option<Trim>, WriteError> {
        let step = "install a snapshot";
        let left = job.left.take().expect("an install that is done is not asked for");
        let replicas = if job.is_begun { Vec::new() } else { job.replicas.clone() };
        let piece = match left.clone().piece(&self.file, &self.staging) {
            Ok(piece) => piece,
            Err(source) => return Err(self.failed(step, source)),
        };
        if !job.is_begun && !piece.is_last() {
            // From here on it is the new replica, and the record says what its rows lack.
            job.is_begun = true;
            self.write(step, &replicas, |tables| install::begin(job.shard, &left, tables))?;
            job.left = Some(left);
            return Ok(None);
        }
        self.write(step, &replicas, |tables| piece.write(job.shard, tables))?;
        job.left = piece.into_left();
        if job.left.is_some() {
            return Ok(None);
        }
        for replica in &job.replicas {
            self.staging.remove(replica.meta.shard.id, replica.meta.replica);
        }
        Ok(Some(trim_of(&job.replicas)))
    }

    fn write(
        &mut self,
        step: &'static str,
        replicas: &[StoredReplica],
        rows: impl FnOnce(&mut Tables<'_>) -> Result<(), Cause>,
    ) -> Result<Trim, WriteError> {
        if self.dead {
            return Err(WriteError::Dead {
                path: self.files.path(FileKind::State).clone(),
            });
        }
        self.shards.extend(replicas.iter().map(|replica| replica.meta.shard.id));
        let covered = replicas.iter().map(|replica| replica.covered).max();
        self.covered = self.covered.max(covered.unwrap_or_default());
        let checkpointed = Checkpointed {
            covered: self.covered,
            replicas: self.shards.len() as u64,
        };
        // With quick-repair: opening the file after a kill must not depend on its size.
        let written = self.file.write(true, |tables| {
            rows(tables)?;
            for replica in replicas {
                tables.put(
                    Table::Replicas,
                    &number_key(replica.meta.shard.id.0),
                    &replica.encode()?,
                )?;
            }
            tables.put(Table::About, &CHECKPOINT_KEY, &postcard::to_stdvec(&checkpointed)?)
        });
        match written {
            Ok(()) => Ok(trim_of(replicas)),
            Err(source) => Err(self.failed(step, source)),
        }
    }

    fn failed(&mut self, step: &'static str, source: Cause) -> WriteError {
        self.dead = true;
        WriteError::Failed {
            step,
            path: self.files.path(FileKind::State).clone(),
            source,
        }
    }
}

fn trim_of(replicas: &[StoredReplica]) -> Trim {
    let shards = replicas
        .iter()
        .map(|replica| (replica.meta.shard.id, replica.durable()));
    Trim {
        shards: shards.collect(),
    }
}

/// A row of the table of replicas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredReplica {
    pub(super) meta: ReplicaMeta,
    /// Hard states in log writes up to here are older than the meta's.
    pub(super) covered: LogSeq,
}

impl StoredReplica {
    fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_extend(self, vec![REPLICA_VERSION])
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self, String> {
        match value.split_first() {
            Some((&REPLICA_VERSION, content)) => postcard::from_bytes(content).map_err(|error| error.to_string()),
            Some((version, _)) => Err(format!("its version is {version}; this isxd reads {REPLICA_VERSION}")),
            None => Err("it is empty".to_owned()),
        }
    }

    pub(super) fn durable(&self) -> Durable {
        // What was written before a replica was destroyed is of no use to anybody. What comes later belongs to the next
        // replica of the shard on this node.
        let log_from = match self.meta.destroyed {
            true => self.meta.log_from.max(self.covered),
            false => self.meta.log_from,
        };
        Durable {
            applied: self.meta.applied,
            covered: self.covered,
            log_from,
        }
    }
}

/// Bookkeeping, written with each checkpoint and install.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpointed {
    /// Newest log write that was synced when any of the metas was made.
    pub(super) covered: LogSeq,
    /// Metas in the file.
    pub(super) replicas: u64,
}

/// First byte of a row of the table of replicas.
const REPLICA_VERSION: u8 = 1;
