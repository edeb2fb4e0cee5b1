//! Slices of rows that are kept as they were at one log entry, to be summed up on another thread.
use std::ops::Bound;

use super::snapshot::SnapshotRows;
use super::state::Store;
use super::tables::SharedRange;
use crate::daemon::core::state::StateError;
use crate::daemon::core::verify::{Slice, Summing};
use crate::protocol::message::SliceSum;

/// A slice of rows exactly as they were when it was kept. It keeps the state file from reusing pages while it lives.
pub struct KeptSlice {
    slice: Slice,
    rows: Result<SnapshotRows, StateError>,
}

impl KeptSlice {
    /// Copies what the memtable has of the slice; the rest is read when it is summed up.
    pub(super) fn new(store: &Store, slice: Slice) -> Self {
        let rows = rows_of(store, &slice);
        Self { slice, rows }
    }

    /// Reads the rows, their checksums included.
    pub fn sum(self) -> SliceSum {
        let mut rows = match self.rows {
            Ok(rows) => rows,
            Err(error) => return unreadable(error),
        };
        let mut sum = Summing::new(&self.slice);
        for row in &mut rows {
            match row {
                Ok((key, value)) if sum.add(&key, &value) => {}
                Ok((key, _)) => return sum.end(Some(key)),
                Err(error) => return unreadable(error),
            }
        }
        sum.end(None)
    }
}

fn unreadable(error: StateError) -> SliceSum {
    match error {
        StateError::Checksum { key } => SliceSum::Damaged { row: key },
        // The node finds out by itself when its file can't be read at all.
        StateError::Io(_) => SliceSum::Unread,
    }
}

fn rows_of(store: &Store, slice: &Slice) -> Result<SnapshotRows, StateError> {
    store.check()?;
    let mut rows = SnapshotRows::default();
    for (start, end) in &slice.ranges {
        let bounds = (Bound::Included(start.as_ref()), Bound::Excluded(end.as_ref()));
        // Every row that is there counts towards the slice's end: what lies behind so many of them is not in it, nor is
        // it the first row behind it.
        let mut there = 0;
        let mut active = Vec::new();
        for (key, value) in store.active.range::<[u8], _>(bounds) {
            active.push((key.clone(), value.clone()));
            there += u32::from(value.is_some());
            if there > slice.rows {
                break;
            }
        }
        let frozen = store.frozen.as_ref();
        let frozen = frozen.map(|frozen| SharedRange::new(frozen.clone(), bounds.0, bounds.1));
        rows.push(active, frozen, store.view.range(start, end)?);
    }
    Ok(rows)
}
