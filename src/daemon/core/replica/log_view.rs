//! The Raft crate's view of a replica's log.
//!
//! The log's tail is in memory, unsynced part included: Raft reads entries before they are on disk. What falls out of
//! the tail is gone for Raft (a follower that needs it gets a snapshot); on disk it is dropped once a checkpoint has it.
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::daemon::core::limits::{FOLLOWED_LOG_BYTES_MAX, LOG_TAIL_BYTES_MAX};

/// Log tail, hard state and membership of one replica.
#[derive(Debug, Default)]
pub struct LogView {
    entries: VecDeque<Entry>,
    entry_bytes: usize,
    /// Index and term of the entry before the tail.
    base: (u64, u64),
    /// Term, vote, commit as Raft last gave them out.
    pub hard_state: HardState,
    /// Membership as of the applied index.
    pub conf_state: ConfState,
    /// Index and term up to which entries are applied.
    pub applied: (u64, u64),
    /// Whether a snapshot may be started now.
    pub snapshots_allowed: bool,
}

impl LogView {
    /// A log that begins behind `base`, everything up to there applied.
    pub fn new(base: (u64, u64), hard_state: HardState, conf_state: ConfState) -> Self {
        Self {
            base,
            hard_state,
            conf_state,
            applied: base,
            ..Self::default()
        }
    }

    /// Index of the first entry in the tail.
    pub fn first(&self) -> u64 {
        self.base.0 + 1
    }

    /// Index of the last entry.
    pub fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    /// Term of an entry in the tail or just before it.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        let offset = index.checked_sub(self.first())?;
        self.entries.get(offset as usize).map(|entry| entry.term)
    }

    /// Takes in entries, replacing what was there from their first index on. False where they would leave a gap.
    pub fn append(&mut self, entries: &[Entry]) -> bool {
        let Some(front) = entries.first() else { return true };
        if front.index > self.last() + 1 || front.index <= self.base.0 {
            return false;
        }
        self.truncate_from(front.index);
        for entry in entries {
            self.entry_bytes += entry.data.len();
            self.entries.push_back(entry.clone());
        }
        true
    }

    /// Drops all entries from `index` on.
    pub fn truncate_from(&mut self, index: u64) {
        while self.last() >= index.max(self.first()) {
            let Some(entry) = self.entries.pop_back() else { break };
            self.entry_bytes -= entry.data.len();
        }
    }

    /// Forgets everything: a snapshot took its place.
    pub fn reset(&mut self, base: (u64, u64), conf_state: ConfState) {
        self.entries.clear();
        self.entry_bytes = 0;
        self.base = base;
        self.applied = base;
        self.conf_state = conf_state;
    }

    /// Shortens the tail to its bounds, not beyond `keep_from` unless that takes too much memory: then whoever needs it gets
    /// another snapshot, of which it has most rows by then.
    pub fn compact(&mut self, keep_from: u64, entries_max: usize) {
        while self.entries.len() > entries_max || self.entry_bytes > LOG_TAIL_BYTES_MAX {
            match self.entries.front() {
                Some(entry)
                    if entry.index < keep_from
                        || self.entry_bytes > FOLLOWED_LOG_BYTES_MAX && entry.index < self.applied.0 =>
                {
                    self.base = (entry.index, entry.term);
                    self.entry_bytes -= entry.data.len();
                    self.entries.pop_front();
                }
                _ => break,
            }
        }
    }

    /// All entries behind `index`.
    pub fn entries_behind(&self, index: u64) -> Vec<Entry> {
        let skip = (index + 1).saturating_sub(self.first()) as usize;
        self.entries.iter().skip(skip).cloned().collect()
    }
}

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(
            high <= self.last() + 1,
            "raft asked for entries {low}..{high}, the log ends at {}",
            self.last()
        );
        let budget = max_size.into().unwrap_or(u64::MAX);
        let (skip, take) = ((low - self.first()) as usize, (high - low) as usize);
        let mut size = 0;
        let mut found = Vec::with_capacity(take.min(64));
        for entry in self.entries.iter().skip(skip).take(take) {
            size += entry.encoded_len() as u64;
            if !found.is_empty() && size > budget {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.term_at(index) {
            Some(term) => Ok(term),
            None if index < self.base.0 => Err(Error::Store(StorageError::Compacted)),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if !self.snapshots_allowed || self.applied.0 < request_index || self.applied.0 == 0 {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        // Index, term and manifest are set again when the snapshot leaves: entries may be applied in between.
        Ok(Snapshot {
            metadata: SnapshotMetadata {
                conf_state: self.conf_state.clone(),
                index: self.applied.0,
                term: self.applied.1,
            },
            ..Snapshot::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::core::limits::LOG_TAIL_ENTRIES_MAX;

    fn entry(index: u64, term: u64) -> Entry {
        Entry {
            index,
            term,
            data: vec![0; 10].into(),
            ..Entry::default()
        }
    }

    #[test]
    fn entries_replace_the_tail_they_overlap() {
        let mut log = LogView::new((5, 1), HardState::default(), ConfState::default());
        assert!(log.append(&[entry(6, 1), entry(7, 1), entry(8, 1)]));
        assert!(log.append(&[entry(7, 2)]));
        assert_eq!(
            (log.last(), log.term_at(7), log.term_at(6), log.term_at(5)),
            (7, Some(2), Some(1), Some(1))
        );
        assert!(!log.append(&[entry(9, 2)]), "a gap");
        assert!(!log.append(&[entry(5, 2)]), "below the base");
        assert_eq!(log.entry_bytes, 20);
        assert_eq!(log.term_at(4), None);
    }

    #[test]
    fn the_tail_is_bounded_but_keeps_what_is_needed() {
        let mut log = LogView::new((0, 0), HardState::default(), ConfState::default());
        let many: Vec<Entry> = (1..=LOG_TAIL_ENTRIES_MAX as u64 + 100).map(|i| entry(i, 1)).collect();
        assert!(log.append(&many));
        log.compact(50, LOG_TAIL_ENTRIES_MAX);
        assert_eq!(log.first(), 50);
        log.compact(1000, LOG_TAIL_ENTRIES_MAX);
        assert_eq!(log.first(), 101);
    }
}
