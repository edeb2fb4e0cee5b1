//! Which keys are asked for: a few of the latest requests to a shard, so that it can be cut where its load is.
use std::collections::VecDeque;

use crate::protocol::key::{KeyRange, Position};

/// The latest positions that were noted.
#[derive(Debug, Default)]
pub struct Samples {
    latest: VecDeque<Position>,
}

impl Samples {
    /// Whether the request with this number is one to be noted.
    pub fn wants(number: u64) -> bool {
        number.is_multiple_of(SAMPLE_EVERY)
    }

    /// Notes that a position was asked for.
    pub fn note(&mut self, position: Position) {
        if self.latest.len() == SAMPLES_MAX {
            self.latest.pop_front();
        }
        self.latest.push_back(position);
    }

    /// Keys within the range, in order, each as often as it was noted.
    pub fn keys(&self, range: &KeyRange) -> Vec<String> {
        let inside = self.latest.iter().filter(|position| range.contains(position));
        let mut keys: Vec<String> = inside
            .filter_map(|position| position.parts().1.map(str::to_owned))
            .collect();
        keys.sort_unstable();
        keys
    }
}

/// Noting costs a copy of the key: not for every request.
const SAMPLE_EVERY: u64 = 8;
/// Enough to cut by: half of the load is found to within five percent. Unit: positions.
const SAMPLES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_only_those_inside_are_told() {
        let mut samples = Samples::default();
        for n in 0..2_000u32 {
            samples.note(Position::new("campaign", &format!("c-{n:05}")));
        }
        let whole = KeyRange::all_of("campaign");
        assert_eq!(samples.keys(&whole).len(), SAMPLES_MAX);
        let (left, _) = whole.split(&Position::new("campaign", "c-01500")).expect("inside");
        let keys = samples.keys(&left);
        assert!(keys.len() < SAMPLES_MAX && keys.iter().all(|key| key.as_str() < "c-01500"));
        assert!(keys.is_sorted());
    }
}
