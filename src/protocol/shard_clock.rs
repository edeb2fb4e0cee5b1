//! A shard's clock, and how far ahead of it that of each of its entities is.
//!
//! A shard's clock moves with the entries of its log. What an entity is to do at some time, and how long it remembers a
//! request, is written down in that clock. Those of two shards may be months apart: what no entry booked before a leader
//! lost its place is lost, and where nothing happens that may be much. When two shards merge, the left one's clock goes on,
//! and the entities of both keep their time:
//!
//! ```text
//! the shard's clock   5 days
//! its entities        campaign/start: +0    campaign/k: +3 h    campaign/t: -2 days
//! ```
//! So nothing that was set by either clock comes late or early, and no row is written again. A split cuts the list.
use serde::{Deserialize, Serialize};

use super::key::Position;

/// What a shard's clock shows, for the shard itself and for its entities.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShardClock {
    now_ms: u64,
    /// How far ahead the first entities' clock is; behind where negative. Unit: ms.
    first_ms: i64,
    /// The same from these positions on, in order; neighbours differ.
    further: Vec<(Position, i64)>,
}

impl ShardClock {
    /// A clock that shows this for all alike. Unit: ms.
    pub fn new(now_ms: u64) -> Self {
        Self {
            now_ms,
            ..Self::default()
        }
    }

    /// The shard's own time: what holds for the shard as a whole goes by it. Unit: ms.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Time has passed, for all alike. Unit: ms.
    pub fn advance(&mut self, elapsed_ms: u64) {
        self.now_ms = self.now_ms.saturating_add(elapsed_ms);
    }

    /// The time of the entity at this position. Unit: ms.
    pub fn at(&self, entity: &Position) -> u64 {
        self.now_ms.saturating_add_signed(self.ahead_ms(entity))
    }

    /// What the shard's own clock will show when it is `due_ms` for the entity. Unit: ms.
    pub fn when_due(&self, entity: &Position, due_ms: u64) -> u64 {
        due_ms.saturating_add_signed(self.ahead_ms(entity).saturating_neg())
    }

    /// Takes over the entities from `start` on, which had this clock.
    ///
    /// A clock has at most [`PARTS_MAX`] parts: where there would be more, of the two neighbours that differ least the one
    /// that is ahead is turned back to the other. What was set by it comes late by their difference, never early.
    pub fn take_over(&mut self, right: &ShardClock, start: &Position) {
        let shift = (right.now_ms as i64).saturating_sub(self.now_ms as i64);
        let first = (start.clone(), right.first_ms);
        let taken = std::iter::once(&first).chain(&right.further);
        self.further
            .extend(taken.map(|(from, ahead)| (from.clone(), ahead.saturating_add(shift))));
        self.join();
    }

    /// Gives away the entities from this position on, with the clock that they go on with.
    pub fn split_off(&mut self, at: &Position) -> Self {
        let first_ms = self.ahead_ms(at);
        let kept = self.further.partition_point(|(from, _)| from < at);
        let mut further = self.further.split_off(kept);
        further.retain(|(from, _)| from > at);
        Self {
            now_ms: self.now_ms,
            first_ms,
            further,
        }
    }

    fn ahead_ms(&self, entity: &Position) -> i64 {
        match self.further.partition_point(|(from, _)| from <= entity) {
            0 => self.first_ms,
            after => self.further[after - 1].1,
        }
    }

    /// Makes one of neighbours that are alike, and of others where there are too many.
    fn join(&mut self) {
        loop {
            let mut before = self.first_ms;
            self.further
                .retain(|&(_, ahead)| std::mem::replace(&mut before, ahead) != ahead);
            if self.further.len() < PARTS_MAX {
                return;
            }
            let part = |at: usize| if at == 0 { self.first_ms } else { self.further[at - 1].1 };
            let differs = |at: &usize| part(*at).abs_diff(part(at + 1));
            let at = (0..self.further.len()).min_by_key(differs).expect("there are many");
            let least = part(at).min(part(at + 1));
            self.further.remove(at);
            match at.checked_sub(1) {
                None => self.first_ms = least,
                Some(before) => self.further[before].1 = least,
            }
        }
    }
}

/// Most parts of a shard's range whose entities have clocks of their own. Each costs a key of up to 576 bytes wherever the
/// shard's bookkeeping is kept: 37 KB at worst.
pub const PARTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(key: &str) -> Position {
        Position::new("campaign", key)
    }

    fn taken(left_ms: u64, right_ms: u64, start: &str) -> ShardClock {
        let mut clock = ShardClock::new(left_ms);
        clock.take_over(&ShardClock::new(right_ms), &at(start));
        clock
    }

    #[test]
    fn entities_keep_their_time_whichever_clock_is_ahead() {
        for (left, right) in [(1_000, 5_000), (5_000, 1_000), (0, u64::MAX / 4)] {
            let mut clock = taken(left, right, "m");
            assert_eq!(clock.now_ms(), left);
            for (key, then) in [("a", left), ("lzz", left), ("m", right), ("z", right)] {
                assert_eq!(clock.at(&at(key)), then, "{key}");
                let due = then + 700;
                assert_eq!(clock.when_due(&at(key), due), left + 700, "{key}");
            }
            clock.advance(700);
            assert_eq!((clock.at(&at("a")), clock.at(&at("z"))), (left + 700, right + 700));
        }
    }

    #[test]
    fn what_is_overdue_is_due_now() {
        let clock = taken(10, 5_000, "m");
        assert_eq!(clock.when_due(&at("z"), 100), 0);
        assert_eq!(clock.when_due(&at("z"), u64::MAX), u64::MAX - 4_990);
        assert_eq!(taken(5_000, 10, "m").when_due(&at("z"), u64::MAX), u64::MAX);
    }

    #[test]
    fn a_split_cuts_at_its_key() {
        let mut whole = taken(1_000, 2_000, "f");
        whole.take_over(&ShardClock::new(3_000), &at("p"));
        let keys = ["a", "f", "fa", "k", "p", "pa", "z"];
        let before: Vec<u64> = keys.map(|key| whole.at(&at(key))).to_vec();
        for cut in ["c", "f", "k", "p", "t"] {
            let mut left = whole.clone();
            let right = left.split_off(&at(cut));
            assert_eq!((left.now_ms(), right.now_ms()), (1_000, 1_000));
            for (key, &then) in keys.iter().zip(&before) {
                let half = if *key < cut { &left } else { &right };
                assert_eq!(half.at(&at(key)), then, "{key} cut at {cut}");
            }
            left.take_over(&right, &at(cut));
            assert_eq!(left, whole, "together again after a cut at {cut}");
        }
    }

    #[test]
    fn clocks_that_are_alike_are_one() {
        assert_eq!(taken(1_000, 1_000, "m"), ShardClock::new(1_000));
        let mut clock = taken(1_000, 2_000, "m");
        clock.take_over(&ShardClock::new(2_000), &at("t"));
        assert_eq!(clock, taken(1_000, 2_000, "m"));
    }

    #[test]
    fn too_many_parts_are_late_by_the_least_that_they_differ_by_and_never_early() {
        let mut clock = ShardClock::new(1_000_000);
        for part in 1..PARTS_MAX {
            let right = ShardClock::new(1_000_000 + if part % 2 == 0 { 0 } else { part as u64 * 1_000 });
            clock.take_over(&right, &at(&format!("k{part:02}")));
        }
        assert_eq!(clock.further.len(), PARTS_MAX - 1, "as many as there may be");
        let before = clock.clone();
        clock.take_over(&ShardClock::new(1_063_007), &at("z"));
        assert_eq!(clock.further.len(), PARTS_MAX - 1);
        for part in 1..PARTS_MAX {
            let key = at(&format!("k{part:02}"));
            assert_eq!(clock.at(&key), before.at(&key), "{part}");
        }
        assert_eq!(clock.at(&at("z")), 1_063_000, "7 ms late");
    }

    /// Against a list of what each key's clock would show by itself.
    #[test]
    fn no_clock_ever_runs_ahead() {
        let keys: Vec<Position> = (0..100).map(|key| at(&format!("{key:02}"))).collect();
        let (mut exact, mut joined) = (0, 0);
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut truth: Vec<u64> = vec![0; keys.len()];
            // Each shard: its first key, its clock.
            let mut shards = vec![(0, ShardClock::new(0))];
            let mut parts_most = 0;
            for _ in 0..[300, 3_000][seed as usize % 2] {
                let which = rng.usize(..shards.len());
                let end = shards.get(which + 1).map_or(keys.len(), |shard| shard.0);
                let start = shards[which].0;
                match rng.u32(..4) {
                    0 if end - start > 1 => {
                        let cut = rng.usize(start + 1..end);
                        let right = shards[which].1.split_off(&keys[cut]);
                        shards.insert(which + 1, (cut, right));
                    }
                    1 if which + 1 < shards.len() => {
                        let (cut, right) = shards.remove(which + 1);
                        shards[which].1.take_over(&right, &keys[cut]);
                    }
                    _ => {
                        let elapsed_ms = [rng.u64(..5), rng.u64(..3_000_000_000)][rng.usize(..2)];
                        shards[which].1.advance(elapsed_ms);
                        truth[start..end].iter_mut().for_each(|time| *time += elapsed_ms);
                    }
                }
                let clock = &shards[which.min(shards.len() - 1)].1;
                parts_most = parts_most.max(clock.further.len() + 1);
            }
            assert!(parts_most <= PARTS_MAX);
            let is_exact = parts_most < PARTS_MAX;
            *(if is_exact { &mut exact } else { &mut joined }) += 1;
            for (index, (start, clock)) in shards.iter().enumerate() {
                let end = shards.get(index + 1).map_or(keys.len(), |shard| shard.0);
                for key in *start..end {
                    let (shown, truth) = (clock.at(&keys[key]), truth[key]);
                    assert!(shown <= truth, "seed {seed}: {} shows {shown} at {truth}", keys[key]);
                    if is_exact {
                        assert_eq!(shown, truth, "seed {seed}: {}", keys[key]);
                    }
                    let due = clock.when_due(&keys[key], shown + 5);
                    assert_eq!(due, clock.now_ms() + 5, "seed {seed}: {}", keys[key]);
                }
            }
        }
        assert!(exact > 10 && joined > 10, "{exact} exact, {joined} with too many parts");
    }
}
