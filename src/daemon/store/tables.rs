//! One file of the store as a few ordered tables of bytes, over redb or over the simulator's model.
//!
//! redb does not notice a flipped bit when it reads (measured: of 3,000 single-bit flips in a closed file, 44 % came
//! back as silently wrong data), so every value rests under a checksum that binds it to its table and key, made and
//! checked here and nowhere else: `crc32c(table, key length, key, value): u32 LE | value`.
use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition, WriteTransaction};

use super::model::{ModelHandle, Op};

/// What went wrong below the store, for the `#[source]` of its errors.
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A table. The number is part of each checksum: never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Table {
    /// Both files: format, identity; in the state file also the bookkeeping of the last checkpoint.
    About = 0,
    /// State file: shard -> `ReplicaMeta`.
    Replicas = 1,
    /// State file: the rows of all entities.
    Rows = 2,
    /// Log file: sequence -> one group commit.
    Log = 3,
    /// Log file: shard -> log writes up to here hold no entry that counts; see `log`.
    Floors = 4,
    /// State file: shard -> what is left of an install that has begun.
    Installs = 5,
}

/// Number of tables in the enum. Unit: tables.
pub(super) const TABLES: usize = 6;

impl Table {
    /// Tables of each file.
    pub(super) const OF_STATE: [Table; 4] = [Table::About, Table::Replicas, Table::Rows, Table::Installs];
    /// Tables of each file.
    pub(super) const OF_LOG: [Table; 3] = [Table::About, Table::Log, Table::Floors];

    fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(match self {
            Table::About => "about",
            Table::Replicas => "replicas",
            Table::Rows => "rows",
            Table::Log => "log",
            Table::Floors => "floors",
            Table::Installs => "installs",
        })
    }
}

/// Why a value could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFault {
    #[error("the value fails its checksum")]
    Checksum { key: Bytes },
    #[error("the file could not be read")]
    Failed(#[source] Cause),
}

impl ReadFault {
    fn failed(error: impl Into<redb::Error>) -> Self {
        ReadFault::Failed(Box::new(error.into()))
    }
}

/// redb met something that it takes for impossible, which is how it meets some kinds of damage.
#[derive(Debug, thiserror::Error)]
#[error("redb gave up on the file: {0}")]
struct GaveUp(String);

/// Runs `body` and makes an error of a panic: redb may panic on a damaged page, and damage is an answer, not a crash.
pub(super) fn guarded<T, E>(body: impl FnOnce() -> Result<T, E>, fault: impl FnOnce(Cause) -> E) -> Result<T, E> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(payload) => {
            let text = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            Err(fault(Box::new(GaveUp(text.to_owned()))))
        }
    }
}

/// An open file; clones are the same file.
#[derive(Clone)]
pub(super) enum File {
    Redb(Arc<Database>),
    Model(ModelHandle),
}

impl File {
    /// Makes all changes of `body` in one transaction and syncs it. After an error the file's content is unknown
    /// until it is opened again.
    ///
    /// `quick_repair` doubles the cost of a commit; without it, opening the file after a crash reads all of it.
    pub(super) fn write(
        &self,
        quick_repair: bool,
        body: impl FnOnce(&mut Tables<'_>) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        match self {
            File::Redb(database) => guarded(
                || {
                    let mut transaction = database.begin_write().map_err(redb::Error::from)?;
                    transaction
                        .set_durability(Durability::Immediate)
                        .map_err(redb::Error::from)?;
                    transaction.set_quick_repair(quick_repair);
                    body(&mut Tables::Redb(RedbTables {
                        transaction: &transaction,
                        open: Default::default(),
                    }))?;
                    transaction.commit().map_err(redb::Error::from)?;
                    Ok(())
                },
                |cause| cause,
            ),
            File::Model(model) => {
                let mut tables = Tables::Model(Vec::new());
                body(&mut tables)?;
                let Tables::Model(operations) = tables else {
                    unreachable!("made as a model two lines above")
                };
                Ok(model.commit(operations)?)
            }
        }
    }

    /// A table as it is now, for many reads.
    pub(super) fn view(&self, table: Table) -> Result<View, ReadFault> {
        Ok(match self {
            File::Redb(database) => guarded(
                || {
                    let transaction = database.begin_read().map_err(ReadFault::failed)?;
                    let opened = transaction.open_table(table.definition()).map_err(ReadFault::failed)?;
                    Ok(View::Redb { table, opened })
                },
                ReadFault::Failed,
            )?,
            File::Model(model) => View::Model {
                table,
                model: model.clone(),
            },
        })
    }
}

/// The tables inside a write.
#[allow(clippy::large_enum_variant)] // one at a time, on the stack
pub(super) enum Tables<'t> {
    Redb(RedbTables<'t>),
    Model(Vec<Op>),
}

/// Tables of a redb transaction, opened when first used: opening one costs more than a row.
pub(super) struct RedbTables<'t> {
    transaction: &'t WriteTransaction,
    open: [Option<redb::Table<'t, &'static [u8], &'static [u8]>>; TABLES],
}

impl<'t> RedbTables<'t> {
    fn table(&mut self, table: Table) -> Result<&mut redb::Table<'t, &'static [u8], &'static [u8]>, redb::Error> {
        let slot = &mut self.open[table as usize];
        if slot.is_none() {
            *slot = Some(self.transaction.open_table(table.definition())?);
        }
        Ok(slot.as_mut().expect("opened on the line above"))
    }
}

impl Tables<'_> {
    /// Makes sure that a table exists.
    pub(super) fn create(&mut self, table: Table) -> Result<(), Cause> {
        if let Tables::Redb(tables) = self {
            tables.table(table)?;
        }
        Ok(())
    }

    /// Sets a value.
    pub(super) fn put(&mut self, table: Table, key: &Bytes, value: &[u8]) -> Result<(), Cause> {
        let checksum = checksum(table, key, value).to_le_bytes();
        match self {
            Tables::Redb(tables) => {
                let mut place = tables
                    .table(table)?
                    .insert_reserve(key.as_ref(), CHECKSUM_BYTES + value.len())
                    .map_err(redb::Error::from)?;
                let place = place.as_mut();
                place[..CHECKSUM_BYTES].copy_from_slice(&checksum);
                place[CHECKSUM_BYTES..].copy_from_slice(value);
            }
            Tables::Model(operations) => {
                let mut sealed = Vec::with_capacity(CHECKSUM_BYTES + value.len());
                sealed.extend_from_slice(&checksum);
                sealed.extend_from_slice(value);
                operations.push(Op::Put(table, key.clone(), sealed.into()));
            }
        }
        Ok(())
    }

    /// Removes a value, if there is one.
    pub(super) fn remove(&mut self, table: Table, key: &Bytes) -> Result<(), Cause> {
        match self {
            Tables::Redb(tables) => {
                tables.table(table)?.remove(key.as_ref()).map_err(redb::Error::from)?;
            }
            Tables::Model(operations) => operations.push(Op::Remove(table, key.clone())),
        }
        Ok(())
    }

    /// Removes all values with `start <= key < end`.
    pub(super) fn remove_range(&mut self, table: Table, start: &Bytes, end: &Bytes) -> Result<(), Cause> {
        if start >= end {
            return Ok(());
        }
        match self {
            Tables::Redb(tables) => tables
                .table(table)?
                .retain_in::<&[u8], _>(start.as_ref()..end.as_ref(), |_, _| false)
                .map_err(redb::Error::from)?,
            Tables::Model(operations) => operations.push(Op::RemoveRange(table, start.clone(), end.clone())),
        }
        Ok(())
    }
}

/// A table to read from. Over redb it stays as it was when it was made, and the pages it sees stay taken; the model
/// always shows the latest.
pub(super) enum View {
    Redb {
        table: Table,
        opened: ReadOnlyTable<&'static [u8], &'static [u8]>,
    },
    Model {
        table: Table,
        model: ModelHandle,
    },
}

impl View {
    /// A value.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadFault> {
        match self {
            View::Redb { table, opened } => guarded(
                || match opened.get(key).map_err(ReadFault::failed)? {
                    Some(guard) => Ok(Some(Bytes::copy_from_slice(checked(*table, key, guard.value())?))),
                    None => Ok(None),
                },
                ReadFault::Failed,
            ),
            View::Model { table, model } => {
                let sealed = model.table(*table).map_err(ReadFault::Failed)?.get(key).cloned();
                sealed
                    .map(|sealed| {
                        if !model.is_trusting {
                            checked(*table, key, &sealed)?;
                        }
                        Ok(sealed.slice(CHECKSUM_BYTES..))
                    })
                    .transpose()
            }
        }
    }

    /// All values with `start <= key < end`, in order, as they are now whatever happens to the file meanwhile.
    pub(super) fn range(&self, start: &[u8], end: &[u8]) -> Result<Rows, ReadFault> {
        if start >= end {
            return Ok(Rows::None);
        }
        self.bounded(Bound::Included(start), Bound::Excluded(end))
    }

    /// The key behind the first `count` ones with `start <= key < end`; `None` where there are not more.
    pub(super) fn key_behind(&self, start: &[u8], end: &[u8], count: usize) -> Result<Option<Bytes>, ReadFault> {
        if start >= end {
            return Ok(None);
        }
        match self {
            View::Redb { opened, .. } => guarded(
                || {
                    let mut range = opened.range::<&[u8]>(start..end).map_err(ReadFault::failed)?;
                    let found = range.nth(count).transpose().map_err(ReadFault::failed)?;
                    Ok(found.map(|(key, _)| Bytes::copy_from_slice(key.value())))
                },
                ReadFault::Failed,
            ),
            View::Model { table, model } => {
                let map = model.table(*table).map_err(ReadFault::Failed)?;
                let bounds = (Bound::Included(start), Bound::Excluded(end));
                Ok(map.range::<[u8], _>(bounds).nth(count).map(|(key, _)| key.clone()))
            }
        }
    }

    /// All values, in order.
    pub(super) fn all(&self) -> Result<Rows, ReadFault> {
        self.bounded(Bound::Unbounded, Bound::Unbounded)
    }

    fn bounded(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Result<Rows, ReadFault> {
        Ok(match self {
            View::Redb { table, opened } => guarded(
                || {
                    let range = opened.range::<&[u8]>((start, end)).map_err(ReadFault::failed)?;
                    Ok(Rows::Redb {
                        table: *table,
                        range: Box::new(range),
                    })
                },
                ReadFault::Failed,
            )?,
            View::Model { table, model } => Rows::Model {
                table: *table,
                is_trusting: model.is_trusting,
                range: SharedRange::new(model.table(*table).map_err(ReadFault::Failed)?, start, end),
            },
        })
    }
}

/// Values in key order, each checked.
pub(super) enum Rows {
    None,
    Redb {
        table: Table,
        range: Box<redb::Range<'static, &'static [u8], &'static [u8]>>,
    },
    Model {
        table: Table,
        is_trusting: bool,
        range: SharedRange<Bytes>,
    },
}

impl Iterator for Rows {
    type Item = Result<(Bytes, Bytes), ReadFault>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Rows::None => None,
            Rows::Redb { table, range } => guarded(
                || {
                    let Some((key, value)) = range.next().transpose().map_err(ReadFault::failed)? else {
                        return Ok(None);
                    };
                    let value = checked(*table, key.value(), value.value())?;
                    Ok(Some((
                        Bytes::copy_from_slice(key.value()),
                        Bytes::copy_from_slice(value),
                    )))
                },
                ReadFault::Failed,
            )
            .transpose(),
            Rows::Model {
                table,
                is_trusting,
                range,
            } => range.next().map(|(key, sealed)| {
                if !*is_trusting {
                    checked(*table, &key, &sealed)?;
                }
                let value = sealed.slice(CHECKSUM_BYTES..);
                Ok((key, value))
            }),
        }
    }
}

/// A range of an ordered map that somebody else may replace, but not change, while it is read.
pub(super) struct SharedRange<V> {
    map: Arc<BTreeMap<Bytes, V>>,
    start: Bound<Bytes>,
    end: Bound<Bytes>,
    /// Read ahead, last first: finding one's place again for each row would cost more than the row.
    chunk: Vec<(Bytes, V)>,
}

impl<V: Clone> SharedRange<V> {
    pub(super) fn new(map: Arc<BTreeMap<Bytes, V>>, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Self {
        Self {
            map,
            start: start.map(Bytes::copy_from_slice),
            end: end.map(Bytes::copy_from_slice),
            chunk: Vec::new(),
        }
    }
}

impl<V: Clone> Iterator for SharedRange<V> {
    type Item = (Bytes, V);

    fn next(&mut self) -> Option<(Bytes, V)> {
        if self.chunk.is_empty() {
            let ahead = self.map.range((self.start.clone(), self.end.clone())).take(CHUNK_ROWS);
            self.chunk
                .extend(ahead.map(|(key, value)| (key.clone(), value.clone())));
            self.start = Bound::Excluded(self.chunk.last()?.0.clone());
            self.chunk.reverse();
        }
        self.chunk.pop()
    }
}

/// Checksum of a value at its place: in another table or under another key it is another one.
fn checksum(table: Table, key: &[u8], value: &[u8]) -> u32 {
    let [a, b, c, d] = (key.len() as u32).to_le_bytes();
    let place = crc32c::crc32c(&[table as u8, a, b, c, d]);
    crc32c::crc32c_append(crc32c::crc32c_append(place, key), value)
}

/// The value in what was stored under `key`.
fn checked<'v>(table: Table, key: &[u8], sealed: &'v [u8]) -> Result<&'v [u8], ReadFault> {
    if let Some((sum, value)) = sealed.split_first_chunk::<CHECKSUM_BYTES>()
        && u32::from_le_bytes(*sum) == checksum(table, key, value)
    {
        return Ok(value);
    }
    Err(ReadFault::Checksum {
        key: Bytes::copy_from_slice(key),
    })
}

/// In front of each value. Unit: bytes.
pub(super) const CHECKSUM_BYTES: usize = 4;
/// How far a `SharedRange` reads ahead. Unit: rows.
const CHUNK_ROWS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_bound_to_its_table_and_key() {
        let seal = |table, key: &[u8], value: &[u8]| {
            let mut sealed = checksum(table, key, value).to_le_bytes().to_vec();
            sealed.extend_from_slice(value);
            sealed
        };
        let sealed = seal(Table::Rows, b"ab", b"cd");
        assert_eq!(checked(Table::Rows, b"ab", &sealed).unwrap(), b"cd");
        assert!(checked(Table::Log, b"ab", &sealed).is_err());
        assert!(checked(Table::Rows, b"ac", &sealed).is_err());
        // The same bytes cut elsewhere are another value.
        let shifted = seal(Table::Rows, b"abc", b"d");
        assert_ne!(sealed[..4], shifted[..4]);
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(checked(Table::Rows, b"ab", &flipped).is_err(), "bit {bit}");
        }
        assert!(checked(Table::Rows, b"ab", b"abc").is_err());
    }

    #[test]
    fn a_shared_range_reads_every_row_once_whatever_happens_to_the_map() {
        let key = |n: usize| Bytes::from(format!("{n:05}"));
        for (total, end) in [
            (0, 10),
            (1, 10),
            (CHUNK_ROWS, 1000),
            (1000, 1000),
            (1000, 777),
            (1000, 384),
        ] {
            let mut map = Arc::new((0..total).map(|n| (key(n), n)).collect::<BTreeMap<_, _>>());
            let range = SharedRange::new(map.clone(), Bound::Included(&key(3)), Bound::Excluded(&key(end)));
            Arc::make_mut(&mut map).clear();
            let seen = range.map(|(_, n)| n).collect::<Vec<_>>();
            assert_eq!(seen, (3..total.min(end)).collect::<Vec<_>>());
        }
    }
}
