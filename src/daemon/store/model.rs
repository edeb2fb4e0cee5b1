//! A file of the store without redb: ordered maps, and a disk that can be told to fail. Most simulated seeds run on it.
//!
//! A commit writes and syncs in one go, so the unsynced half is at most the one commit that was under way when the
//! power went off; whether it survived is for `crash` to say.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::fault::{Switch, SyncOutcome};
use super::tables::{Cause, TABLES, Table};

type Map = Arc<BTreeMap<Bytes, Bytes>>;

/// A change of one table.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Put(Table, Bytes, Bytes),
    Remove(Table, Bytes),
    RemoveRange(Table, Bytes, Bytes),
}

/// The file, shared by all who have it open.
#[derive(Debug, Default)]
pub(super) struct ModelFile {
    content: Mutex<Content>,
}

#[derive(Debug, Default, Clone)]
struct Content {
    tables: [Map; TABLES],
    bytes: u64,
    /// Written, not synced: the power went off in between.
    unsynced: Vec<Op>,
    switch: Switch,
    is_trusting: bool,
}

/// The file as opened by one process, dead after a crash.
#[derive(Debug, Clone)]
pub(super) struct ModelHandle {
    file: Arc<ModelFile>,
    generation: u64,
    /// A planted bug: values are believed without their checksum.
    pub(super) is_trusting: bool,
}

impl ModelFile {
    /// Opens the file.
    pub(super) fn handle(self: &Arc<Self>) -> ModelHandle {
        let content = self.lock();
        ModelHandle {
            file: self.clone(),
            generation: content.switch.generation(),
            is_trusting: content.is_trusting,
        }
    }

    /// A planted bug: see `ModelHandle::is_trusting`.
    pub(super) fn trust(&self) {
        self.lock().is_trusting = true;
    }

    /// Unit: bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// An independent copy of what is synced.
    pub(super) fn image(&self) -> ModelFile {
        let mut content = self.lock().clone();
        content.unsynced.clear();
        content.switch = Switch::default();
        ModelFile {
            content: Mutex::new(content),
        }
    }

    /// Ends all handles. The commit that was under way happened or not, as `chance` has it.
    pub(super) fn crash(&self, chance: u64) {
        let mut content = self.lock();
        let unsynced = std::mem::take(&mut content.unsynced);
        if chance & 1 == 1 {
            content.apply(unsynced);
        }
        content.switch.next_generation();
    }

    /// What fails next.
    pub(super) fn switch(&self, set: impl FnOnce(&mut Switch)) {
        set(&mut self.lock().switch);
    }

    /// Flips one bit of one value, of any table or of this one; `None` where there is nothing to flip.
    pub(super) fn flip_bit(&self, chance: u64, only: Option<Table>) -> Option<String> {
        let mut content = self.lock();
        let is_meant = |number: usize| only.is_none_or(|table| table as usize == number);
        let tables = content.tables.iter().enumerate();
        let total: usize = tables
            .filter(|(number, _)| is_meant(*number))
            .map(|(_, table)| table.len())
            .sum();
        let mut pick = (chance % (total.max(1) as u64)) as usize;
        for (number, table) in content.tables.iter_mut().enumerate() {
            if !is_meant(number) {
                continue;
            }
            if pick >= table.len() {
                pick -= table.len();
                continue;
            }
            let (key, value) = table.iter().nth(pick)?;
            let (key, mut value) = (key.clone(), value.to_vec());
            let bit = (chance >> 32) as usize % (value.len() * 8);
            value[bit / 8] ^= 1 << (bit % 8);
            let told = format!("bit {bit} of `{}` in table {number}", key.escape_ascii());
            Arc::make_mut(table).insert(key, value.into());
            return Some(told);
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // A panic elsewhere leaves the content whole: every change below is made of complete map operations.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn apply(&mut self, operations: Vec<Op>) {
        for operation in operations {
            match operation {
                Op::Put(table, key, value) => {
                    self.bytes += (key.len() + value.len()) as u64;
                    let key_bytes = key.len();
                    if let Some(old) = Arc::make_mut(&mut self.tables[table as usize]).insert(key, value) {
                        self.bytes -= (key_bytes + old.len()) as u64;
                    }
                }
                Op::Remove(table, key) => self.remove(table, &key),
                Op::RemoveRange(table, start, end) => {
                    let range = self.tables[table as usize].range(start..end);
                    for key in range.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
                        self.remove(table, &key);
                    }
                }
            }
        }
    }

    fn remove(&mut self, table: Table, key: &Bytes) {
        if let Some(old) = Arc::make_mut(&mut self.tables[table as usize]).remove(key) {
            self.bytes -= (key.len() + old.len()) as u64;
        }
    }
}

impl ModelHandle {
    /// A table as it is now.
    pub(super) fn table(&self, table: Table) -> Result<Map, Cause> {
        let content = self.file.lock();
        content.switch.check(self.generation)?;
        Ok(content.tables[table as usize].clone())
    }

    /// Writes and syncs.
    pub(super) fn commit(&self, operations: Vec<Op>) -> Result<(), Cause> {
        let mut content = self.file.lock();
        content.switch.write(self.generation)?;
        match content.switch.sync(self.generation) {
            SyncOutcome::Synced => content.apply(operations),
            SyncOutcome::Failed(error) => {
                // What a failed sync left on the disk is unknown, too.
                content.unsynced = operations;
                return Err(error.into());
            }
        }
        Ok(())
    }
}
