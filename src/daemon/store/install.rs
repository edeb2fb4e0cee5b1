//! Putting a snapshot, or a replica's end, into the state file without holding up everybody else's checkpoints.
//!
//! A small one is one transaction. A large one is a *record* first, in one transaction with the metas, that says what is
//! left to be done: which ranges to clear, from which staged chunk on to write. Then it is worked off piece by piece, each
//! in one transaction with what is left after it; the last one removes the record. Until then the rows are neither the old
//! ones nor the new ones, and nobody may ask for them. After a crash the store is opened only when every record is worked
//! off ([`finish`]), so outside of this file an install is there whole or not at all.
//!
//! The staged chunks are synced before the record is written and removed after it, so a record can always be worked off;
//! the metas are the new replica's from the start, so it never forgets a promise.
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::OpenError;
use super::open::{Files, number_key, row_error};
use super::staging::Staging;
use super::tables::{Cause, File, Table, Tables};
use crate::daemon::core::state::StagedCopy;
use crate::protocol::id::ShardId;
use crate::protocol::key::KeyRange;
use crate::protocol::message::Row;

/// What is left of an install.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Left {
    /// Ranges of rows to be cleared, the first one next.
    clear: Vec<(Bytes, Bytes)>,
    chunks: Option<ChunksLeft>,
}

/// Where the chunks are, in which ranges their rows lie, and where the next one begins.
type ChunksLeft = (StagedCopy, Vec<(Bytes, Bytes)>, Bytes);

/// The next transaction of an install.
pub(super) struct Piece {
    remove: Vec<(Bytes, Bytes)>,
    put: Vec<Row>,
    left: Option<Left>,
}

impl Left {
    pub(super) fn new(clear: &[KeyRange], range: &KeyRange, rows: Option<StagedCopy>) -> Self {
        let ranges = range.row_ranges_sorted();
        let first = ranges.first().map(|(start, _)| start.clone());
        Self {
            clear: clear.iter().flat_map(KeyRange::row_ranges_sorted).collect(),
            chunks: rows.zip(first).map(|(copy, first)| (copy, ranges, first)),
        }
    }

    /// What is done next: a bounded piece of it.
    pub(super) fn piece(mut self, file: &File, staging: &Staging) -> Result<Piece, Cause> {
        let (mut remove, mut put) = (Vec::new(), Vec::new());
        let view = file.view(Table::Rows)?;
        let (mut rows_left, bytes_max) = staging.piece_limits();
        while rows_left > 0
            && let Some((start, end)) = self.clear.first().cloned()
        {
            match view.key_behind(&start, &end, rows_left)? {
                Some(next) => {
                    remove.push((start, next.clone()));
                    self.clear[0].0 = next;
                    rows_left = 0;
                }
                None => {
                    // Ranges are few: one that is nearly empty need not be counted.
                    remove.push((start, end));
                    self.clear.remove(0);
                }
            }
        }
        if self.clear.is_empty()
            && rows_left > 0
            && let Some((copy, ranges, from)) = self.chunks.take()
        {
            let (chunks, next) = staging.read(&copy, &ranges, &from, bytes_max)?;
            put.extend(chunks.into_iter().flat_map(|chunk| chunk.rows));
            self.chunks = next.map(|next| (copy, ranges, next));
        }
        let is_done = self.clear.is_empty() && self.chunks.is_none();
        Ok(Piece {
            remove,
            put,
            left: (!is_done).then_some(self),
        })
    }
}

impl Piece {
    /// Whether this is all.
    pub(super) fn is_last(&self) -> bool {
        self.left.is_none()
    }

    pub(super) fn into_left(self) -> Option<Left> {
        self.left
    }

    /// Does it, inside a transaction of the state file.
    pub(super) fn write(&self, shard: ShardId, tables: &mut Tables<'_>) -> Result<(), Cause> {
        for (start, end) in &self.remove {
            tables.remove_range(Table::Rows, start, end)?;
        }
        for (key, value) in &self.put {
            tables.put(Table::Rows, key, value)?;
        }
        match &self.left {
            Some(left) => tables.put(Table::Installs, &number_key(shard.0), &postcard::to_stdvec(left)?),
            None => tables.remove(Table::Installs, &number_key(shard.0)),
        }
    }
}

/// Notes an install that takes more than one piece.
pub(super) fn begin(shard: ShardId, left: &Left, tables: &mut Tables<'_>) -> Result<(), Cause> {
    tables.put(Table::Installs, &number_key(shard.0), &postcard::to_stdvec(left)?)
}

/// Works off what a crash interrupted. `progress` is told of each piece.
pub(super) fn finish(file: &File, files: &Files, staging: &Arc<Staging>, progress: &dyn Fn()) -> Result<(), OpenError> {
    let path = &files.state;
    let damaged = |source| OpenError::Damaged {
        path: path.to_owned(),
        source,
    };
    let view = file.view(Table::Installs).map_err(|fault| damaged(fault.into()))?;
    let mut begun = Vec::new();
    for row in view.all().map_err(|fault| damaged(fault.into()))? {
        let (key, value) = row.map_err(|fault| row_error(path, "install of shard", fault))?;
        let bad = |source: Cause| OpenError::Row {
            path: path.to_owned(),
            row: format!("install of shard {}", key.escape_ascii()),
            source,
        };
        let number = <[u8; 8]>::try_from(&key[..]).map_err(|error| bad(error.into()))?;
        let left: Left = postcard::from_bytes(&value).map_err(|error| bad(error.into()))?;
        begun.push((ShardId(u64::from_be_bytes(number)), left));
    }
    drop(view);
    for (shard, left) in begun {
        let copy = left.chunks.as_ref().map(|(copy, _, _)| copy.clone());
        let mut left = Some(left);
        while let Some(next) = left {
            progress();
            let piece = next.piece(file, staging).map_err(|source| OpenError::Install {
                path: path.to_owned(),
                shard,
                source,
            })?;
            let written = file.write(true, |tables| piece.write(shard, tables));
            written.map_err(|source| OpenError::Install {
                path: path.to_owned(),
                shard,
                source,
            })?;
            left = piece.into_left();
        }
        if let Some(copy) = copy {
            staging.remove(copy.shard, copy.replica);
        }
    }
    Ok(())
}
