//! The node's write-ahead log: one row per group commit, holding the entries and hard states of all shards in it.
//!
//! A commit costs about the same whatever it holds (100 us and a sync), and a row per entry ten times a row per commit,
//! hence one row. The price is that a row can only go when *nothing* in it counts any more:
//!
//! * an entry counts until the shard's rows include it in `state.redb`, or a later log write replaced it;
//! * a hard state counts until the shard's meta in `state.redb` is newer, or a later log write has another one;
//! * nothing of a shard counts in writes up to its meta's `log_from` (a snapshot took their place), nor in any write
//!   before the meta that says that the replica is destroyed.
//!
//! Rows go in any order: a shard that is stuck holds back the rows with its own entries, not the log. That raises one
//! danger. Say that row 1 has entries 5 and 6 of a shard, row 2 replaces 5 and thereby ends the log there, and 5 is
//! applied. Row 2 is not needed any more; row 1 neither, but it stays because of another shard. After a restart entry
//! 6 would be back. So, whenever a row goes while older entries of one of its shards stay behind, a *floor* is written
//! in the same transaction: no log write of this shard up to here holds an entry that counts.
//!
//! Rows are removed along with later appends, a few at a time and oldest first. The newest row always stays, so the
//! sequence never begins anew.
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use raft::eraftpb::HardState;
use serde::{Deserialize, Serialize};

use super::open::{Files, number_key, row_error};
use super::state::StoredReplica;
use super::tables::{Cause, File, Table};
use super::{Durable, FileKind, OpenError, Trim, WriteError};
use crate::daemon::core::state::{LogBatch, LogSeq, ShardWrite};
use crate::protocol::id::ShardId;

/// Writes the log. One thread owns it.
pub struct LogWriter {
    file: File,
    files: Files,
    index: LogIndex,
    last: LogSeq,
    /// Tells the other half of the store what is synced.
    appended: Arc<AtomicU64>,
    dead: bool,
    /// Kept for the next row.
    buffer: Vec<u8>,
}

impl LogWriter {
    pub(super) fn new(file: File, files: Files, index: LogIndex, last: LogSeq, appended: Arc<AtomicU64>) -> Self {
        Self {
            file,
            files,
            index,
            last,
            appended,
            dead: false,
            buffer: Vec::new(),
        }
    }

    /// Writes all batches as one row and syncs it; returns the last sequence in it. Removes some rows that count no
    /// more on the way. After an error the log takes nothing more.
    ///
    /// # Panics
    /// If the sequences don't rise.
    pub fn append(&mut self, batches: &[(LogSeq, LogBatch)]) -> Result<LogSeq, WriteError> {
        let mut seq = self.last;
        for (next, _) in batches {
            assert!(*next > seq, "log write {next} is not newer than {seq}");
            seq = *next;
        }
        if batches.is_empty() {
            return Ok(seq);
        }
        if self.dead {
            return Err(WriteError::Dead {
                path: self.files.path(FileKind::Log).clone(),
            });
        }

        let (gone, floors) = self.index.take_droppable(REMOVALS_PER_APPEND);
        let row = LogRow {
            rows: self.index.rows.len() as u64 + 1,
            batches,
        };
        self.buffer.clear();
        self.buffer.push(ROW_VERSION);
        let encoded = postcard::serialize_with_flavor(&row, Buffer(&mut self.buffer));
        encoded.expect("plain data with known lengths goes into memory");
        let buffer = &self.buffer;
        let written = self.file.write(false, |tables| {
            for row in &gone {
                tables.remove(Table::Log, &number_key(*row))?;
            }
            for (shard, floor) in &floors {
                tables.put(Table::Floors, &number_key(shard.0), &floor.0.to_le_bytes())?;
            }
            tables.put(Table::Log, &number_key(seq.0), buffer)
        });
        if let Err(source) = written {
            self.dead = true;
            return Err(WriteError::Failed {
                step: "append to the log",
                path: self.files.path(FileKind::Log).clone(),
                source,
            });
        }
        if self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
        self.index.add(seq, batches);
        self.last = seq;
        self.appended.store(seq.0, Ordering::Release);
        Ok(seq)
    }

    /// Notes what the state file has now; rows that count no more go with the next appends.
    pub fn trim(&mut self, trim: Trim) -> Result<(), WriteError> {
        for (shard, durable) in trim.shards {
            self.index.set_durable(shard, durable);
        }
        Ok(())
    }

    /// Rows in the file, those that only wait to be removed included.
    pub fn rows(&self) -> usize {
        self.index.rows.len()
    }
}

/// What the log file held.
pub(super) struct ReadLog {
    pub(super) batches: Vec<(LogSeq, LogBatch)>,
    pub(super) index: LogIndex,
    /// The newest row.
    pub(super) last_row: LogSeq,
}

/// Reads the log, and keeps what still counts for `replicas`.
pub(super) fn read_log(file: &File, files: &Files, replicas: &[StoredReplica]) -> Result<ReadLog, OpenError> {
    let path = files.path(FileKind::Log);
    let damaged = |source: Cause| OpenError::Damaged {
        path: path.clone(),
        source,
    };
    let bad_row = |row: String, source: Cause| OpenError::Row {
        path: path.clone(),
        row,
        source,
    };

    let mut index = LogIndex::default();
    for replica in replicas {
        index.durable.insert(replica.meta.shard.id, replica.durable());
    }
    let mut floors = BTreeMap::new();
    let view = file.view(Table::Floors).map_err(|fault| damaged(fault.into()))?;
    for row in view.all().map_err(|fault| damaged(fault.into()))? {
        let (key, value) = row.map_err(|fault| row_error(path, "floor of shard", fault))?;
        let (Ok(shard), Ok(floor)) = (<[u8; 8]>::try_from(&key[..]), <[u8; 8]>::try_from(&value[..])) else {
            return Err(bad_row(
                format!("floor `{}`", key.escape_ascii()),
                "it is not a number".into(),
            ));
        };
        floors.insert(ShardId(u64::from_be_bytes(shard)), LogSeq(u64::from_le_bytes(floor)));
    }

    let mut kept = Kept::new(replicas);
    let mut last_row = LogSeq(0);
    let mut rows = (0, 0);
    let view = file.view(Table::Log).map_err(|fault| damaged(fault.into()))?;
    for row in view.all().map_err(|fault| damaged(fault.into()))? {
        let (key, value) = row.map_err(|fault| row_error(path, "log write", fault))?;
        let seq = match <[u8; 8]>::try_from(&key[..]) {
            Ok(number) => LogSeq(u64::from_be_bytes(number)),
            Err(_) => {
                return Err(bad_row(
                    format!("log write `{}`", key.escape_ascii()),
                    "its key is no number".into(),
                ));
            }
        };
        let row = decode(&value).map_err(|source| bad_row(format!("log write {seq}"), source))?;
        rows = (rows.0 + 1, row.rows);
        let mut batches = row.batches;
        for (seq, batch) in &mut batches {
            for write in &mut batch.shards {
                let durable = index.durable.get(&write.shard).copied().unwrap_or_default();
                if *seq <= durable.log_from {
                    write.entries.clear();
                    write.hard_state = None;
                    write.complete = false;
                }
                if floors.get(&write.shard).is_some_and(|floor| *seq <= *floor) {
                    write.entries.clear();
                }
            }
        }
        index.add(seq, &batches);
        last_row = seq;
        kept.add(batches);
    }
    // The newest row says how many there are: a damaged tree may skip some.
    if rows.0 != rows.1 {
        return Err(damaged(
            format!(
                "its last row says that there are {} rows; {} were found",
                rows.1, rows.0
            )
            .into(),
        ));
    }
    Ok(ReadLog {
        batches: kept.batches(),
        index,
        last_row,
    })
}

/// Log writes as read, without what counts no more.
struct Kept<'r> {
    replicas: BTreeMap<ShardId, &'r StoredReplica>,
    batches: Vec<(LogSeq, LogBatch)>,
    /// Where each shard's entries are.
    places: BTreeMap<ShardId, Vec<(usize, usize)>>,
}

impl<'r> Kept<'r> {
    fn new(replicas: &'r [StoredReplica]) -> Self {
        Self {
            replicas: replicas
                .iter()
                .map(|replica| (replica.meta.shard.id, replica))
                .collect(),
            batches: Vec::new(),
            places: BTreeMap::new(),
        }
    }

    fn add(&mut self, batches: Vec<(LogSeq, LogBatch)>) {
        for (seq, mut batch) in batches {
            let at = self.batches.len();
            for (n, write) in batch.shards.iter_mut().enumerate() {
                let replica = self.replicas.get(&write.shard);
                if let Some(first) = write.entries.first() {
                    let first = first.index;
                    // What this write replaces goes first: when its own entries are applied and left out, those that
                    // it replaced must not come back.
                    let places = self.places.entry(write.shard).or_default();
                    while let Some(&(batch, n)) = places.last() {
                        let entries = &mut self.batches[batch].1.shards[n].entries;
                        entries.truncate(entries.partition_point(|entry| entry.index < first));
                        if !entries.is_empty() {
                            break;
                        }
                        places.pop();
                    }
                    let applied = replica.map_or(0, |replica| replica.meta.applied);
                    let applied = write.entries.partition_point(|entry| entry.index <= applied);
                    write.entries.drain(..applied);
                    if !write.entries.is_empty() {
                        places.push((at, n));
                    }
                }
                if let (Some(replica), Some(hard_state)) = (replica, &write.hard_state)
                    && (seq <= replica.covered || !is_newer(hard_state, &replica.meta.hard_state))
                {
                    write.hard_state = None;
                }
            }
            self.batches.push((seq, batch));
        }
    }

    fn batches(mut self) -> Vec<(LogSeq, LogBatch)> {
        for (_, batch) in &mut self.batches {
            batch
                .shards
                .retain(|write| !write.entries.is_empty() || write.hard_state.is_some());
        }
        self.batches.retain(|(_, batch)| !batch.shards.is_empty());
        self.batches
    }
}

/// Whether a replica's hard state was made after another one of the same replica. A meta may hold one that is newer than
/// the log's: it was given out for the log, and the checkpoint was on the disk first.
fn is_newer(hard_state: &HardState, than: &HardState) -> bool {
    let order = |state: &HardState| (state.term, state.vote != 0, state.commit);
    order(hard_state) > order(than)
}

/// Which rows the file has, and what in them still counts.
#[derive(Debug, Default)]
pub(super) struct LogIndex {
    rows: BTreeMap<u64, Row>,
    shards: BTreeMap<ShardId, VecDeque<Item>>,
    durable: BTreeMap<ShardId, Durable>,
    /// Rows in which nothing counts.
    droppable: BTreeSet<u64>,
}

#[derive(Debug)]
struct Row {
    /// Shards of which something here counts.
    live: usize,
    /// Shards of which something is here.
    shards: Vec<ShardId>,
}

/// One shard's part of one row.
#[derive(Debug)]
struct Item {
    row: u64,
    /// Last write in the row that speaks of the shard.
    seq: LogSeq,
    /// First and last of its entries that no later write replaced.
    entries: Option<(u64, u64)>,
    /// Whether its hard state is the latest in the log.
    hard_state: bool,
    live: bool,
}

impl Item {
    fn counts(&self, durable: Durable) -> bool {
        let entries = self.entries.is_some_and(|(_, last)| last > durable.applied);
        let hard_state = self.hard_state && self.seq > durable.covered;
        self.seq > durable.log_from && (entries || hard_state)
    }
}

impl LogIndex {
    /// A row that is on the disk.
    fn add(&mut self, row: LogSeq, batches: &[(LogSeq, LogBatch)]) {
        let row = row.0;
        let mut touched = BTreeSet::new();
        self.rows.insert(
            row,
            Row {
                live: 0,
                shards: Vec::new(),
            },
        );
        for (seq, batch) in batches {
            for write in &batch.shards {
                self.add_write(row, *seq, write);
                touched.insert(write.shard);
            }
        }
        for &shard in &touched {
            let durable = self.durable.get(&shard).copied().unwrap_or_default();
            let item = self.shards.get_mut(&shard).and_then(VecDeque::back_mut);
            let item = item.expect("added above");
            item.live = item.counts(durable);
            if item.live {
                self.rows.get_mut(&row).expect("inserted above").live += 1;
            }
        }
        let entry = self.rows.get_mut(&row).expect("inserted above");
        entry.shards = touched.into_iter().collect();
        if entry.live == 0 {
            self.droppable.insert(row);
        }
    }

    fn add_write(&mut self, row: u64, seq: LogSeq, write: &ShardWrite) {
        let durable = self.durable.get(&write.shard).copied().unwrap_or_default();
        let items = self.shards.entry(write.shard).or_default();
        let mut item = match items.pop_back() {
            Some(item) if item.row == row => item,
            last => {
                items.extend(last);
                Item {
                    row,
                    seq,
                    entries: None,
                    hard_state: false,
                    live: false,
                }
            }
        };
        item.seq = seq;
        if let (Some(first), Some(last)) = (write.entries.first(), write.entries.last()) {
            item.entries = Some(match item.entries {
                Some((before, _)) if before < first.index => (before, last.index),
                _ => (first.index, last.index),
            });
            for item in items.iter_mut().rev() {
                let Some((low, high)) = item.entries else { continue };
                if high < first.index {
                    break;
                }
                item.entries = (low < first.index).then(|| (low, first.index - 1));
                release(&mut self.rows, &mut self.droppable, item, durable);
            }
        }
        if write.hard_state.is_some() {
            item.hard_state = true;
            if let Some(item) = items.iter_mut().rev().find(|item| item.hard_state) {
                item.hard_state = false;
                release(&mut self.rows, &mut self.droppable, item, durable);
            }
        }
        items.push_back(item);
    }

    fn set_durable(&mut self, shard: ShardId, durable: Durable) {
        self.durable.insert(shard, durable);
        for item in self.shards.get_mut(&shard).into_iter().flatten() {
            release(&mut self.rows, &mut self.droppable, item, durable);
        }
    }

    /// Up to `count` rows that may go now, oldest first, and the floors to be written with their removal.
    fn take_droppable(&mut self, count: usize) -> (Vec<u64>, BTreeMap<ShardId, LogSeq>) {
        let gone = self.droppable.iter().copied().take(count).collect::<Vec<_>>();
        let mut floors = BTreeMap::new();
        for &row in &gone {
            self.droppable.remove(&row);
            let shards = self.rows.remove(&row).map(|row| row.shards).unwrap_or_default();
            for shard in shards {
                let Some(items) = self.shards.get_mut(&shard) else {
                    continue;
                };
                let Ok(at) = items.binary_search_by_key(&row, |item| item.row) else {
                    continue;
                };
                let item = items.remove(at).expect("found on the line above");
                // Had all of its entries been replaced, the write that replaced them would also replace what lies
                // before, as far as this one did.
                if item.entries.is_some() && at > 0 {
                    floors.insert(shard, item.seq);
                }
                if items.is_empty() {
                    self.shards.remove(&shard);
                }
            }
        }
        (gone, floors)
    }
}

/// Lets go of an item that counts no more.
fn release(rows: &mut BTreeMap<u64, Row>, droppable: &mut BTreeSet<u64>, item: &mut Item, durable: Durable) {
    if !item.live || item.counts(durable) {
        return;
    }
    item.live = false;
    if let Some(row) = rows.get_mut(&item.row) {
        row.live -= 1;
        if row.live == 0 {
            droppable.insert(item.row);
        }
    }
}

/// A row's content, behind the version byte.
#[derive(Serialize, Deserialize)]
struct LogRow<B> {
    /// Rows in the file, this one included.
    rows: u64,
    batches: B,
}

fn decode(value: &[u8]) -> Result<LogRow<Vec<(LogSeq, LogBatch)>>, Cause> {
    match value.split_first() {
        Some((&ROW_VERSION, content)) => Ok(postcard::from_bytes(content)?),
        Some((version, _)) => Err(format!("its version is {version}; this isxd reads {ROW_VERSION}").into()),
        None => Err("it is empty".into()),
    }
}

/// Lets postcard write many bytes at a time.
struct Buffer<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Buffer<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// First byte of a row.
const ROW_VERSION: u8 = 1;
/// More than one, or a backlog would never shrink; few, or a commit would wait for the clearing of a whole checkpoint's
/// worth of rows. Unit: rows.
const REMOVALS_PER_APPEND: usize = 16;
/// Unit: bytes.
const BUFFER_BYTES_KEPT: usize = 1 << 20;
