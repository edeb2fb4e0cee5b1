//! The latest changes of one shard, in memory, for those who follow them.
//!
//! Filled as entries are applied, so every replica of the shard has the same, but for how far back it reaches: a restart
//! or a snapshot begins anew. Whoever asks for changes from further back gets the rows instead (`node::follow`):
//! each head row knows the place of its last change.
use std::collections::VecDeque;

use super::limits::{CHANGE_FLOORS_MAX, CHANGES_KEPT_MAX};
use crate::protocol::change::{Cause, Since};
use crate::protocol::key::{KeyRange, Position};

/// One change, as the shard remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// Its place in the shard's history.
    pub at: u64,
    /// Which entity.
    pub position: Position,
    /// The version that it made.
    pub version: u64,
    /// Whether it removed the entity.
    pub deleted: bool,
    /// Leader's wall clock. Unit: ms since 1970.
    pub wall_ms: u64,
    /// What made it.
    pub cause: Option<Cause>,
}

impl Noted {
    /// About how much memory it takes. Unit: bytes.
    fn size(&self) -> usize {
        let cause = match &self.cause {
            Some(Cause::Message { from, .. }) => from.len(),
            _ => 0,
        };
        std::mem::size_of::<Self>() + self.position.0.len() + cause
    }
}

/// The latest changes of a shard. Takes no memory of its own before the first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// By place; a delivery of messages makes several changes at one place, and shards that became one have used the same.
    items: VecDeque<Noted>,
    bytes: usize,
    /// All changes behind this place are here,
    floor: u64,
    /// but for keys from these positions on: those of other shards that were taken over.
    floors: Vec<(Position, u64)>,
}

impl Changes {
    /// Nothing is known of what was before `floor`.
    pub fn behind(floor: u64) -> Self {
        Self {
            floor,
            ..Self::default()
        }
    }

    /// About how much memory they take. Unit: bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Notes a change, and forgets the oldest beyond the bounds.
    pub fn push(&mut self, noted: Noted, bytes_max: usize) {
        debug_assert!(self.items.back().is_none_or(|last| last.at <= noted.at));
        self.bytes += noted.size();
        self.items.push_back(noted);
        self.trim(bytes_max);
    }

    /// Forgets the oldest beyond the bounds.
    pub fn trim(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max || self.items.len() > CHANGES_KEPT_MAX {
            let Some(old) = self.items.pop_front() else { break };
            self.bytes -= old.size();
            let floor = match self.floors.iter_mut().rev().find(|(from, _)| *from <= old.position) {
                Some((_, floor)) => floor,
                None => &mut self.floor,
            };
            *floor = old.at.max(*floor);
        }
        if self.items.is_empty() {
            self.items = VecDeque::new();
        } else if self.items.capacity() > 64 && self.items.capacity() > 4 * self.items.len() {
            self.items.shrink_to(2 * self.items.len());
        }
    }

    /// Cuts off what belongs to keys from `at` on.
    pub fn split_off(&mut self, at: &Position) -> Self {
        let mut right = Self::behind(self.floor_at(at));
        let first = self.floors.partition_point(|(from, _)| from < at);
        right.floors = self.floors.split_off(first);
        right.floors.retain(|(from, _)| from > at);
        for noted in std::mem::take(&mut self.items) {
            let half = if noted.position >= *at { &mut right } else { &mut *self };
            half.items.push_back(noted);
        }
        for half in [&mut right, self] {
            half.bytes = half.items.iter().map(Noted::size).sum();
        }
        right
    }

    /// Takes in the changes of the right neighbour, whose keys begin at `boundary`.
    pub fn join(&mut self, right: Self, boundary: &Position, bytes_max: usize) {
        self.floors.push((boundary.clone(), right.floor));
        self.floors.extend(right.floors);
        let mut floor = self.floor;
        self.floors
            .retain(|&(_, next)| std::mem::replace(&mut floor, next) != next);
        if self.floors.len() > CHANGE_FLOORS_MAX {
            // Too low a floor would hide what is missing; too high a one only costs a look at the rows.
            let highest = self.floors.iter().map(|&(_, floor)| floor).max();
            self.floor = self.floor.max(highest.unwrap_or(0));
            self.floors.clear();
        }
        let mut both: Vec<Noted> = std::mem::take(&mut self.items).into();
        both.extend(right.items);
        // Stable: of the same place, the left one first.
        both.sort_by_key(|noted| noted.at);
        self.items = both.into();
        self.bytes += right.bytes;
        self.trim(bytes_max);
    }

    /// Whether all changes of a range behind a place are here.
    pub fn reach(&self, range: &KeyRange, after: u64) -> bool {
        let later = self.floors.iter().filter(|(from, _)| range.contains(from));
        let highest = later.map(|&(_, floor)| floor).max().unwrap_or(0);
        self.floor_at(&range.start).max(highest) <= after
    }

    /// Changes in the ranges, each behind its range's place; all of one place are given together.
    pub fn since<'a>(&'a self, ranges: &'a [Since]) -> impl Iterator<Item = &'a Noted> {
        let oldest = ranges.iter().filter_map(|since| since.after).min().unwrap_or(u64::MAX);
        let first = self.items.partition_point(|noted| noted.at <= oldest);
        self.items.range(first..).filter(move |noted| {
            // Adjacent and in order.
            let n = ranges.partition_point(|since| since.range.end <= noted.position);
            ranges.get(n).is_some_and(|since| {
                since.range.start <= noted.position && since.after.is_some_and(|after| noted.at > after)
            })
        })
    }

    fn floor_at(&self, position: &Position) -> u64 {
        let known = self.floors.iter().rev().find(|(from, _)| from <= position);
        known.map_or(self.floor, |&(_, floor)| floor)
    }

    /// A planted bug: the changes are lost, and nobody is told.
    pub fn lose(&mut self) {
        self.items.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::id::RequestId;

    const ROOM: usize = 1 << 20;

    fn noted(at: u64, key: &str) -> Noted {
        Noted {
            at,
            position: Position::new("campaign", key),
            version: at,
            deleted: false,
            wall_ms: 0,
            cause: Some(Cause::Request(RequestId(at.into()))),
        }
    }

    fn range(from: &str, to: &str) -> KeyRange {
        KeyRange {
            start: Position::new("campaign", from),
            end: Position::new("campaign", to),
        }
    }

    fn since(from: &str, to: &str, after: u64) -> Since {
        Since {
            range: range(from, to),
            after: Some(after),
        }
    }

    fn places(changes: &Changes, ranges: &[Since]) -> Vec<u64> {
        changes.since(ranges).map(|noted| noted.at).collect()
    }

    fn with(changes: &[(u64, &str)]) -> Changes {
        let mut all = Changes::default();
        for &(at, key) in changes {
            all.push(noted(at, key), ROOM);
        }
        all
    }

    #[test]
    fn idle_shards_cost_nothing() {
        let changes = Changes::behind(77);
        assert_eq!((changes.items.capacity(), changes.floors.capacity()), (0, 0));
        assert!(changes.reach(&range("a", "z"), 77) && !changes.reach(&range("a", "z"), 76));
    }

    #[test]
    fn what_is_forgotten_raises_the_floor() {
        let mut changes = Changes::default();
        for at in 1..=CHANGES_KEPT_MAX as u64 + 10 {
            changes.push(noted(at, "k"), usize::MAX);
        }
        assert!(changes.reach(&range("a", "z"), 10) && !changes.reach(&range("a", "z"), 9));
        assert_eq!(changes.items.len(), CHANGES_KEPT_MAX);
        let each = noted(1, "k").size();
        changes.trim(5 * each);
        assert_eq!((changes.items.len(), changes.bytes()), (5, 5 * each));
        assert!(changes.items.capacity() < 64, "memory comes back");
        assert!(!changes.reach(&range("a", "z"), 10));
    }

    #[test]
    fn halves_and_joins_lose_nothing() {
        let mut left = with(&[(1, "a"), (2, "q"), (3, "b"), (4, "m")]);
        let mut right = left.split_off(&Position::new("campaign", "m"));
        assert_eq!(places(&left, &[since("a", "m", 0)]), [1, 3]);
        assert_eq!(places(&right, &[since("m", "z", 0)]), [2, 4]);
        // Both go on from the same place, and meet again.
        left.push(noted(5, "b"), ROOM);
        right.push(noted(5, "p"), ROOM);
        right.push(noted(6, "q"), ROOM);
        left.join(right, &Position::new("campaign", "m"), ROOM);
        left.push(noted(7, "c"), ROOM);
        assert_eq!(places(&left, &[since("a", "z", 0)]), [1, 2, 3, 4, 5, 5, 6, 7]);
        assert_eq!(places(&left, &[since("a", "m", 3), since("m", "z", 5)]), [5, 6, 7]);
        assert!(left.floors.is_empty(), "the same floor on both sides is one");
        assert_eq!(left.bytes, left.items.iter().map(Noted::size).sum::<usize>());
    }

    #[test]
    fn each_part_keeps_its_own_floor() {
        let mut left = Changes::behind(3);
        left.push(noted(4, "b"), ROOM);
        let mut right = Changes::behind(900);
        right.push(noted(901, "p"), ROOM);
        left.join(right, &Position::new("campaign", "m"), ROOM);
        assert!(left.reach(&range("a", "m"), 3) && !left.reach(&range("a", "m"), 2));
        assert!(left.reach(&range("m", "z"), 900) && !left.reach(&range("m", "z"), 899));
        assert!(!left.reach(&range("a", "z"), 3));
        let mut middle = left.split_off(&Position::new("campaign", "g"));
        assert!(middle.reach(&range("g", "m"), 3) && !middle.reach(&range("k", "p"), 3));
        assert!(left.floors.is_empty());
        let right = middle.split_off(&Position::new("campaign", "m"));
        assert!(right.reach(&range("m", "z"), 900) && !right.reach(&range("m", "z"), 899));
        assert!(middle.floors.is_empty() && right.floors.is_empty());
        // What is forgotten of one part says nothing of the other.
        left.join(right, &Position::new("campaign", "m"), 0);
        assert!(left.reach(&range("a", "m"), 4) && !left.reach(&range("a", "m"), 3));
        assert!(left.reach(&range("m", "z"), 901) && !left.reach(&range("m", "z"), 900));
    }

    #[test]
    fn many_floors_become_the_highest() {
        let mut all = Changes::behind(0);
        for n in 0..=CHANGE_FLOORS_MAX as u64 {
            let boundary = Position::new("campaign", &format!("k{n:03}"));
            all.join(Changes::behind(n + 1), &boundary, ROOM);
        }
        assert!(all.floors.is_empty());
        assert!(!all.reach(&range("a", "b"), CHANGE_FLOORS_MAX as u64));
        assert!(all.reach(&range("a", "z"), CHANGE_FLOORS_MAX as u64 + 1));
    }
}
